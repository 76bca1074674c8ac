"""`insync loadtest`."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from insync.cli.options import add_tls_options, tls_options
from insync.client.streaming.frame_dropping import LATE
from insync.core.errors import InsyncError
from insync.loadtest.jobs import Job, find_capacity, load, soak
from insync.loadtest.options import ROLES, UserOptions
from insync.loadtest.runs.capacity import Limits
from insync.loadtest.runs.shapes import PLANS
from insync.loadtest.target import target
from insync.loadtest.users import footage

__all__ = ["main"]

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
WEB_PORT = 8089  # Locust's own
RUN_TIME_S = 60.0
CAPACITY_RUN_TIME_S = 180.0  # with a server's start and end, three minutes and a half
SOAK_TWIN_CACHE = "8"  # twins that an embedded server keeps in memory: full after warm-up, not after half an hour


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 1 where it failed or something grew in a soak, 130 after Ctrl-C."""
    parser = _parser()
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    say = _quiet if options.quiet else _say
    try:
        video, audio = footage.sample() if None in (options.video, options.audio) else (options.video, options.audio)
        if options.soak and options.host is None:
            os.environ.setdefault("INSYNC_TWIN_CACHE", SOAK_TWIN_CACHE)
        tls = tls_options(options, options.host, "--host")
        if tls is not None:
            tls.credentials()  # here, and not in each load process: what is wrong with its files
        with target(options.host, options.metrics) as server:
            job = Job(
                options=UserOptions(
                    server=server.server,
                    video=str(options.video or video),
                    audio=str(options.audio or audio),
                    height=options.height,
                    fps=options.fps,
                    deadline_ms=options.deadline,
                    late=options.late,
                    in_flight=options.in_flight,
                    session_s=tuple(options.session),
                    away_s=options.away,
                    job_frames=options.job_frames,
                    new_connection=options.reconnect,
                    seed=options.seed,
                    tls=tls,
                ),
                target=server,
                users=options.users,
                out=options.out,
                processes=options.processes,
                web_port=options.web_port if options.web else None,
                command=shlex.join(["insync", "loadtest", *arguments]),
                say=say,
            )
            if options.find_capacity:
                limits = Limits(
                    p99_ms=options.deadline,
                    miss_rate=options.miss_rate / 100,
                    measure_s=options.step,
                    most=options.most,
                    run_time_s=options.run_time or CAPACITY_RUN_TIME_S,
                )
                ended = find_capacity(job, limits)
            elif options.soak:
                ended = soak(job, 60 * options.soak)
            else:
                ended = load(job, options.shape, options.run_time or RUN_TIME_S)
    except InsyncError as exc:
        print(f"insync loadtest: {exc}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("insync loadtest: interrupted", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED
    print(options.out / "report.html")  # noqa: T201
    if ended == "interrupted":
        return EXIT_INTERRUPTED
    if ended != "complete":
        print(f"insync loadtest: {ended}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="insync loadtest",
        description="Puts load on a server and writes a report with plots (report.html, report.json): paced live streams, "
        "dubbing jobs as fast as allowed, registrations, and a mix of them. Persons registered on the way stay in the "
        "store of a server given by --host.",
    )
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host", metavar="HOST:PORT", help="gRPC endpoint; default: an embedded server for this run alone"
    )
    server.add_argument(
        "--metrics",
        metavar="HOST:PORT",
        help="of Triton's metrics page (default: port 8002 of the same host, if there)",
    )
    add_tls_options(server)

    what = parser.add_argument_group("what to run")
    modes = what.add_mutually_exclusive_group()
    modes.add_argument(
        "--find-capacity", action="store_true", help="add live streams until they no longer keep their deadline"
    )
    modes.add_argument("--soak", metavar="MINUTES", type=_positive, help="long mixed load; fails where something grows")
    modes.add_argument(
        "--shape", choices=tuple(PLANS), default="steady", help="number of users over time (default: %(default)s)"
    )
    what.add_argument(
        "--users",
        metavar="USERS",
        type=_users,
        help=f"how many live streams, or of each kind, as in live=3,dub=1,twin=1; kinds: {', '.join(ROLES)} "
        "(default: 1; for a soak live=2,dub=1,twin=1). --find-capacity begins with so many live streams",
    )
    what.add_argument(
        "--run-time",
        metavar="TIME",
        type=_duration_s,
        help=f"as in 90, 90s, 5m or 1h (default: {RUN_TIME_S:g}s); the search for the capacity begins nothing that would "
        f"end later (default: {CAPACITY_RUN_TIME_S:g}s)",
    )
    what.add_argument("--web", action="store_true", help="Locust's live page; runs until Ctrl-C")
    what.add_argument(
        "--web-port", metavar="PORT", type=int, default=WEB_PORT, help="of that page (default: %(default)s)"
    )

    users = parser.add_argument_group("users")
    users.add_argument("--video", metavar="FILE", type=Path, help="footage of one person (default: the sample)")
    users.add_argument("--audio", metavar="FILE", type=Path, help="speech (default: the sample's)")
    users.add_argument(
        "--height", metavar="PIXELS", type=int, default=0, help="scale the footage to so many (default: as it is)"
    )
    users.add_argument("--fps", type=_positive, default=25.0, help="of live streams (default: %(default)g)")
    users.add_argument(
        "--deadline",
        metavar="MS",
        type=_positive,
        default=100.0,
        help="of a live frame, from its audio being complete (default: %(default)g)",
    )
    users.add_argument(
        "--late",
        choices=LATE,
        default=LATE[0],
        help="what the client makes of a live frame that misses it: it is waited for, which shows how late it is; left out; or "
        "the one before is given again; all of them are counted (default: %(default)s)",
    )
    users.add_argument(
        "--in-flight", metavar="N", type=int, default=8, help="frames of a stream (default: %(default)s)"
    )
    users.add_argument(
        "--session",
        metavar="S",
        type=float,
        nargs=2,
        default=(0.0, 0.0),
        help="shortest and longest length of a live stream, then its user comes anew (default: it never ends; "
        "for a soak 15 45)",
    )
    users.add_argument(
        "--away", metavar="S", type=float, default=0.0, help="longest pause of a user (default: none; for a soak 20)"
    )
    users.add_argument(
        "--reconnect",
        metavar="SHARE",
        type=float,
        default=0.0,
        help="of a user's sessions that begin with a new connection and registration (default: 0; for a soak 0.3)",
    )
    users.add_argument(
        "--job-frames", metavar="N", type=int, default=150, help="of a dubbing job (default: %(default)s)"
    )
    users.add_argument("--seed", type=int, default=0, help="of lengths and pauses (default: %(default)s)")
    users.add_argument(
        "--processes", metavar="N", type=int, default=1, help="that the users are spread over (default: %(default)s)"
    )

    capacity = parser.add_argument_group("--find-capacity")
    capacity.add_argument(
        "--miss-rate",
        metavar="PERCENT",
        type=_positive,
        default=1.0,
        help="of late frames, at most (default: %(default)g)",
    )
    capacity.add_argument(
        "--step",
        metavar="S",
        type=_positive,
        default=Limits.measure_s,
        help="measured for each number of streams (default: %(default)g)",
    )
    capacity.add_argument("--most", metavar="N", type=int, default=Limits.most, help="streams (default: %(default)s)")

    parser.add_argument(
        "-o", "--out", metavar="FOLDER", type=Path, default=Path("loadtest-report"), help="default: %(default)s"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    return parser


def _users(text: str) -> dict[str, int]:
    """Users of each kind: "4" or "live=3,dub=1"."""
    if text.isdecimal():
        text = f"live={text}"
    users: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(rf"({'|'.join(ROLES)})=(\d{{1,5}})", part.strip())
        if match is None:
            raise argparse.ArgumentTypeError(f"{part!r} is not KIND=NUMBER; kinds are {', '.join(ROLES)}")
        users[match[1]] = users.get(match[1], 0) + int(match[2])
    if not 1 <= sum(users.values()) <= 10_000:
        raise argparse.ArgumentTypeError("allowed are 1 to 10000 users")
    return users


def _duration_s(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time, as in 90s, 5m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def _quiet(line: str) -> None:
    """Says nothing."""
