"""The command line: `insync dub`, `twin`, `serve`, `probe`, `verify`, `export`, `evaluate`, `curate`, `train`, `loadtest`. Each command imports its part only when it runs."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from insync.client.errors import BadInput, InsyncError, MissingExtra
from insync.client.pacer import LATE
from insync.client.tls import add_tls_options, tls_options

__all__ = ["main"]

EXIT_FAILED = 1
EXIT_USAGE = 2  # also a missing part
EXIT_TAGGED = 3  # only the metadata tag says that a file is synthetic: not signed
EXIT_UNMARKED = 4
EXIT_ALTERED = 5  # since it was signed
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: arguments without the program's name; None takes the process's.

    Returns:
        0; 1 where the command failed, 2 for wrong usage or a part that is not installed, 130 where it was interrupted;
        3 to 5 as `insync verify` says, and 3 for a dubbed file that is whole but could not be signed.
        A failure is one line on stderr.
    """
    # gRPC's own log would mix its lines with ours; what matters of it comes as an error.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["export"], ["evaluate"], ["curate"], ["train"], ["loadtest"]):  # have parsers of their own
        return _own_parser(arguments[0], arguments[1:])
    options = _parser().parse_args(arguments)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up on both
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        _say("interrupted")
        return EXIT_INTERRUPTED
    except InsyncError as exc:
        if options.debug:
            raise
        _say(str(exc))
        return EXIT_USAGE if isinstance(exc, MissingExtra) else EXIT_FAILED
    except Exception as exc:
        if options.debug or not _is_ours(exc):
            raise
        _say(str(exc))
        return EXIT_FAILED
    finally:
        signal.signal(signal.SIGTERM, previous)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="insync", description="Makes a filmed person speak any audio, through a Triton Inference Server."
    )
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_dub(commands)
    _add_twin(commands)
    _add_serve(commands)
    _add_verify(commands)
    _add_probe(commands)
    commands.add_parser("export", help="write the served artefacts from a checkpoint", add_help=False)
    commands.add_parser("evaluate", help="measure dubs of held-out footage, with a page to look at", add_help=False)
    commands.add_parser("loadtest", help="put load on a server: capacity, soak, reports", add_help=False)
    commands.add_parser("curate", help="turn footage into a training set, with a report to look at", add_help=False)
    commands.add_parser("train", help="train the network, stage by stage, or all of it", add_help=False)
    return parser


def _add_dub(commands: Any) -> None:
    dub = commands.add_parser(
        "dub",
        help="make the person in a video speak an audio file",
        description="Makes the person in VIDEO speak AUDIO and writes the result to OUT. Size, frame rate, rotation "
        "and colours stay; every pixel outside the mouth is the source's.",
    )
    dub.add_argument("video", metavar="VIDEO", type=Path, help="video file, or a photo")
    dub.add_argument("audio", metavar="AUDIO", type=Path, help="any file with an audio track")
    dub.add_argument(
        "-o", "--out", metavar="OUT", type=Path, required=True, help=".mp4, .m4v, .mov or .mkv; replaced if it exists"
    )
    dub.add_argument("--twin", metavar="ID", help="a registered person; default: registers the one in VIDEO")
    dub.add_argument(
        "--extend",
        choices=("bounce", "loop", "freeze", "none"),
        default="bounce",
        help="where the audio is longer, the video runs back and forth, starts again, stands still, or ends with the "
        "audio cut (default: %(default)s)",
    )
    dub.add_argument(
        "--trim", action="store_true", help="where the video is longer, end with the audio; default: a resting mouth"
    )
    dub.add_argument(
        "--quality",
        choices=("lossless", "high", "medium", "low"),
        default="high",
        help="of the result; lossless keeps every pixel outside the mouth exactly (default: %(default)s)",
    )
    dub.add_argument(
        "--in-flight", metavar="N", type=int, default=8, help="frames under way at once (default: %(default)s)"
    )
    dub.add_argument(
        "--whole-frames", action="store_true", help="send whole frames to the server, not only the face's surroundings"
    )
    dub.add_argument(
        "--no-provenance",
        action="store_true",
        help="do not mark OUT as synthetic; default: a signed C2PA manifest (.mp4, .m4v, .mov) and a metadata tag",
    )
    dub.add_argument(
        "--deadline",
        metavar="S",
        type=float,
        help="take VIDEO for a camera, whose frames come at their own pace and are wanted S seconds later; the server "
        "keeps room for it, or refuses it at once (default: as fast as it goes)",
    )
    dub.add_argument(
        "--late",
        choices=LATE,
        default=LATE[0],
        help="a frame that is not there after --deadline is waited for, is left out, or the one before stands in for it "
        "(default: %(default)s)",
    )
    dub.add_argument(
        "--retry",
        metavar="S",
        type=float,
        default=30.0,
        help="send frames again for so long while no server answers (default: %(default)s)",
    )
    dub.add_argument("--timings", action="store_true", help="print where the time went")
    dub.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no notes")
    _add_server(dub)
    dub.set_defaults(run=_dub)


def _add_twin(commands: Any) -> None:
    twin = commands.add_parser("twin", help="register a person, and look after those registered")
    actions = twin.add_subparsers(title="actions", required=True, metavar="ACTION")

    create = actions.add_parser(
        "create", help="register the person in videos or photos", description="Prints the new twin's id."
    )
    create.add_argument("sources", metavar="FILE", type=Path, nargs="+", help="a video or photo of the person")
    _add_server(create)
    create.set_defaults(run=_twin_create)

    for name, function, text in (
        ("list", _twin_list, "list the registered persons of this machine"),
        ("show", _twin_show, "draw a person's chosen references"),
        ("rm", _twin_rm, "forget a person"),
    ):
        action = actions.add_parser(name, help=text)
        if name != "list":
            action.add_argument("twin", metavar="ID", help="as 'insync twin create' printed it")
        if name == "rm":
            action.add_argument(
                "--server", metavar="HOST:PORT", help="of this server's store (default: this machine's)"
            )
            add_tls_options(action)
        if name == "show":
            action.add_argument("-o", "--out", metavar="PNG", type=Path, help="default: ID.png in this folder")
        action.add_argument("--twins", metavar="FOLDER", type=Path, help="twin store (default: $INSYNC_TWINS)")
        action.add_argument("--debug", action="store_true", help="show tracebacks")
        action.set_defaults(run=function)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="run the server on this machine",
        description="Runs Triton with InSync's models until Ctrl-C or SIGTERM, and prints where it listens.",
    )
    serve.add_argument("--repository", metavar="FOLDER", type=Path, help="model repository (default: the shipped one)")
    serve.add_argument("--twins", metavar="FOLDER", type=Path, help="twin store (default: $INSYNC_TWINS)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    for name, port in (("grpc", 8001), ("http", 8000), ("metrics", 8002)):
        serve.add_argument(f"--{name}-port", metavar="PORT", type=int, default=port, help="default: %(default)s")
    serve.add_argument(
        "--gpu", action="store_true", help="run the networks on the GPU: ONNX Runtime's CUDA, or else PyTorch's"
    )
    serve.add_argument(
        "--separate-steps",
        action="store_true",
        help="on the CPU too, a process for each step of a frame, with metrics of its own: slower",
    )
    serve.add_argument("--tls-cert", metavar="PEM", type=Path, help="speak TLS over gRPC, with this certificate")
    serve.add_argument("--tls-key", metavar="PEM", type=Path, help="its key")
    serve.add_argument(
        "--tls-client-ca", metavar="PEM", type=Path, help="let in only clients whose certificate it signed"
    )
    serve.add_argument("--log", metavar="FILE", type=Path, help="keep the server's log here")
    serve.add_argument("--debug", action="store_true", help="show tracebacks")
    serve.set_defaults(run=_serve)


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser(
        "verify",
        help="read what a file says about having been dubbed",
        description="Exit code 0: a signed manifest says that FILE is synthetic, and fits it. 3: only a metadata tag says "
        "so. 4: nothing does. 5: FILE was changed after it was signed. 1: it cannot be read. Nothing is fetched.",
    )
    verify.add_argument("file", metavar="FILE", type=Path, help="a media file")
    verify.add_argument("--ca", metavar="PEM", type=Path, help="an authority whose certificates count as known")
    verify.add_argument("--debug", action="store_true", help="show tracebacks")
    verify.set_defaults(run=_verify)


def _add_probe(commands: Any) -> None:
    probe = commands.add_parser(
        "probe",
        help="ask servers whether they serve",
        description="Exits with 0 if all servers serve, with 1 and a line that says why if one does not: for containers' "
        "health checks. A full server serves.",
    )
    probe.add_argument("server", metavar="HOST:PORT", help="gRPC endpoint; several with commas between them")
    probe.add_argument(
        "--canary", action="store_true", help="send a frame through every step: finds models that have died or hang"
    )
    probe.add_argument(
        "--timeout", metavar="S", type=float, default=5.0, help="seconds for each answer (default: %(default)s)"
    )
    add_tls_options(probe)
    probe.add_argument("--debug", action="store_true", help="show tracebacks")
    probe.set_defaults(run=_probe)


def _add_server(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--server",
        metavar="HOST:PORT",
        help="gRPC endpoint; several with commas between them, where one goes on when another fails; default: a server "
        "on this machine, for this command alone",
    )
    add_tls_options(command)
    command.add_argument("--debug", action="store_true", help="show tracebacks")


def _dub(options: argparse.Namespace) -> int:
    from insync.client.dub import dub

    report = dub(
        options.video,
        options.audio,
        options.out,
        server=options.server,
        twin=options.twin,
        extend=options.extend,
        trim=options.trim,
        quality=options.quality,
        in_flight=options.in_flight,
        region=not options.whole_frames,
        progress=not options.quiet,
        tls=tls_options(options, options.server),
        provenance=not options.no_provenance,
        deadline_s=options.deadline,
        late=options.late,
        retry_s=options.retry,
    )
    if options.quiet and report.failed_to_sign:
        _say(f"{report.out} is whole, but not signed: {report.failed_to_sign}")
    if not options.quiet:
        for note in report.notes:
            _say(f"note: {note}")
    if options.timings:
        stages = report.stages
        parts = ", ".join(f"{stage} {1000 * s / max(1, report.frames):.1f}" for stage, s in report.stages_s.items())
        _say(
            f"{report.frames} frames in {stages.wall_s:.1f} s: {stages.fps:.1f} fps; ms per frame: {parts}; "
            f"client processor time {stages.client_cpu_ms:.1f}"
        )
    return EXIT_TAGGED if report.failed_to_sign else 0


def _verify(options: argparse.Namespace) -> int:
    from insync.client.provenance import State, read_mark

    try:
        authorities = options.ca.read_bytes() if options.ca is not None else b""
    except OSError as exc:
        raise BadInput(f"{options.ca}: cannot be read: {exc.strerror}") from exc
    verdict = read_mark(options.file, authorities)
    for line in verdict.lines():
        print(f"{options.file}: {line}")  # noqa: T201
    codes = {State.SIGNED: 0, State.TAGGED: EXIT_TAGGED, State.UNMARKED: EXIT_UNMARKED, State.ALTERED: EXIT_ALTERED}
    return codes[verdict.state]


def _twin_create(options: argparse.Namespace) -> int:
    import itertools
    from contextlib import nullcontext

    from insync.client.client import Client, Twin
    from insync.client.dub import embedded_server, registration_pictures
    from insync.client.media import VideoFile

    videos = [VideoFile(path) for path in options.sources]

    async def register(address: str) -> Twin:
        async with Client(address, tls=tls_options(options, options.server)) as client:
            return await client.register(itertools.chain.from_iterable(registration_pictures(v) for v in videos))

    with nullcontext(options.server) if options.server is not None else embedded_server() as address:
        print(asyncio.run(register(address)))  # noqa: T201
    return 0


def _store(options: argparse.Namespace) -> Any:
    from insync.client.dub import missing_extra

    try:
        from insync.ensemble import settings
        from insync.ensemble.store import TwinStore
    except ImportError as exc:
        raise missing_extra("serve", exc) from exc
    return TwinStore(options.twins or settings.load().twins)


def _twin_list(options: argparse.Namespace) -> int:
    for entry in _store(options).list():
        print(f"{entry.id}  {entry.created}")  # noqa: T201
    return 0


def _twin_show(options: argparse.Namespace) -> int:
    import cv2

    from insync.client.dub import missing_extra
    from insync.client.errors import UnwritableMedia

    twin = _store(options).load(options.twin)
    try:
        from insync.ensemble.twin import contact_sheet
    except ImportError as exc:
        raise missing_extra("serve", exc) from exc
    out = options.out or Path(f"{options.twin}.png")
    try:
        written = cv2.imwrite(str(out), cv2.cvtColor(contact_sheet(twin), cv2.COLOR_RGB2BGR))
    except cv2.error as exc:
        raise UnwritableMedia(f"{out}: no picture format has this extension; try .png") from exc
    if not written:
        raise UnwritableMedia(f"{out}: cannot be written")
    print(out)  # noqa: T201
    return 0


def _twin_rm(options: argparse.Namespace) -> int:
    if options.server is None and tls_options(options, options.server) is None:
        try:
            _store(options).remove(options.twin)
        except OSError as exc:
            raise InsyncError(f"{options.twin} cannot be deleted: {exc.strerror}") from exc
        return 0
    from insync.client.client import Client

    async def forget() -> None:
        async with Client(options.server, tls=tls_options(options, options.server)) as client:
            await client.forget(options.twin)

    asyncio.run(forget())
    return 0


def _serve(options: argparse.Namespace) -> int:
    from insync.client.dub import missing_extra

    try:
        from insync.ensemble.access import ServerTls
        from insync.ensemble.serve import serve
    except ImportError as exc:
        raise missing_extra("serve", exc) from exc
    tls = None
    if options.tls_cert or options.tls_key or options.tls_client_ca:
        if not (options.tls_cert and options.tls_key):
            raise BadInput("TLS needs both --tls-cert and --tls-key")
        tls = ServerTls(options.tls_cert, options.tls_key, options.tls_client_ca)
    return int(
        serve(
            repository=options.repository,
            twin_store=options.twins,
            grpc_port=options.grpc_port,
            http_port=options.http_port,
            metrics_port=options.metrics_port,
            host=options.host,
            log=options.log,
            gpu=options.gpu,
            tls=tls,
            separate_steps=options.separate_steps,
        )
        or 0
    )


def _probe(options: argparse.Namespace) -> int:
    from insync.client.probe import probe

    asyncio.run(
        probe(
            options.server, canary=options.canary, timeout_s=options.timeout, tls=tls_options(options, options.server)
        )
    )
    print(f"{options.server} serves")  # noqa: T201
    return 0


def _own_parser(command: str, arguments: list[str]) -> int:
    module, extras = {
        "export": ("insync.export.cli", "export"),
        "evaluate": ("insync.training.evaluate_cli", "serve,train"),
        "loadtest": ("insync.loadtest.cli", "loadtest"),
        "curate": ("insync.training.curate_cli", "serve,train"),
        "train": ("insync.training.train_cli", "serve,train"),
    }[command]
    try:
        run = importlib.import_module(module).main
    except ImportError as exc:
        _say(f"this needs a part that is not installed ({exc.name}): pip install 'insync[{extras}]'")
        return EXIT_USAGE
    return int(run(arguments) or 0)


def _is_ours(exc: Exception) -> bool:
    """Whether an error was raised on purpose by the serving part, which has a tree of its own."""
    from insync.ensemble.errors import EnsembleError

    return isinstance(exc, EnsembleError)


def _say(text: str) -> None:
    print(f"insync: {text}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(main())
