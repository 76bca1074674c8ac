"""`insync dub`: make the person in a video speak an audio file."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from insync.cli.embedded import embedded_server
from insync.cli.exit_codes import EXIT_TAGGED, say
from insync.cli.options import add_server, tls_options
from insync.client.streaming.frame_dropping import LATE
from insync.core.errors import missing_extra

__all__ = ["add_dub"]


def add_dub(commands: Any) -> None:
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
    add_server(dub)
    dub.set_defaults(run=_dub)


def _dub(options: argparse.Namespace) -> int:
    try:
        from insync.client.dub import DubJob, DubOptions
    except ImportError as exc:
        raise missing_extra("media", exc) from exc
    tls = tls_options(options, options.server)
    how = DubOptions(
        twin=options.twin,
        extend=options.extend,
        trim=options.trim,
        quality=options.quality,
        in_flight=options.in_flight,
        region=not options.whole_frames,
        progress=not options.quiet,
        provenance=not options.no_provenance,
        deadline_s=options.deadline,
        late=options.late,
        retry_s=options.retry,
        tls=tls,
    )
    job = DubJob(options.video, options.audio, options.out, how)  # refuses bad files before a server is started
    with nullcontext(options.server) if options.server is not None else embedded_server() as address:
        report = job.run(address)
    if options.quiet and report.failed_to_sign:
        say(f"{report.out} is whole, but not signed: {report.failed_to_sign}")
    if not options.quiet:
        for note in report.notes:
            say(f"note: {note}")
    if options.timings:
        stages = report.stages
        parts = ", ".join(f"{stage} {1000 * s / max(1, report.frames):.1f}" for stage, s in report.stages_s.items())
        say(
            f"{report.frames} frames in {stages.wall_s:.1f} s: {stages.fps:.1f} fps; ms per frame: {parts}; "
            f"client processor time {stages.client_cpu_ms:.1f}"
        )
    return EXIT_TAGGED if report.failed_to_sign else 0
