"""The command line of `insync loadtest`."""

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
CAPACITY_RUN_TIME_S = 180.0  # three and a half minutes with the server's start and stop
SOAK_TWIN_CACHE = "8"  # twins that an embedded server keeps in memory: full after warm-up, not after half an hour


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code: 1 if it failed or a resource grew during a soak, 130 after Ctrl-C."""
    parser = _parser()
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    log = _quiet if options.quiet else _log
    try:
        video, audio = footage.sample() if None in (options.video, options.audio) else (options.video, options.audio)
        if options.soak and options.host is None:
            os.environ.setdefault("INSYNC_TWIN_CACHE", SOAK_TWIN_CACHE)
        tls = tls_options(options, options.host, "--host")
        if tls is not None:
            tls.credentials()  # report unusable certificate files here, not once in every load process
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
                log=log,
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
        description="Load-test a server and write a report with plots (report.html, report.json). The load consists of paced "
        "live streams, unpaced dubbing jobs, registrations, or a mix of them. Persons that are registered during the test "
        "stay in the twin store of a server given by --host.",
    )
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host", metavar="HOST:PORT", help="gRPC endpoint (default: start an embedded server for this run)"
    )
    server.add_argument(
        "--metrics",
        metavar="HOST:PORT",
        help="address of Triton's metrics (default: port 8002 of the same host, if it answers)",
    )
    add_tls_options(server)

    load_options = parser.add_argument_group("load")
    modes = load_options.add_mutually_exclusive_group()
    modes.add_argument("--find-capacity", action="store_true", help="add live streams until they miss their deadline")
    modes.add_argument(
        "--soak",
        metavar="MINUTES",
        type=_positive,
        help="long mixed load; fails if memory, file handles, processes or threads grow",
    )
    modes.add_argument(
        "--shape", choices=tuple(PLANS), default="steady", help="number of users over time (default: %(default)s)"
    )
    load_options.add_argument(
        "--users",
        metavar="USERS",
        type=_users,
        help="number of live streams, or of users of each kind, as in live=3,dub=1,twin=1; "
        f"kinds: {', '.join(ROLES)} (default: 1; for a soak live=2,dub=1,twin=1). "
        "--find-capacity starts with this number of live streams",
    )
    load_options.add_argument(
        "--run-time",
        metavar="TIME",
        type=_duration_s,
        help=f"duration, as in 90, 90s, 5m or 1h (default: {RUN_TIME_S:g}s); with --find-capacity, no step starts that "
        f"could end later (default: {CAPACITY_RUN_TIME_S:g}s)",
    )
    load_options.add_argument("--web", action="store_true", help="serve Locust's web page; runs until Ctrl-C")
    load_options.add_argument(
        "--web-port", metavar="PORT", type=int, default=WEB_PORT, help="port of that page (default: %(default)s)"
    )

    users = parser.add_argument_group("users")
    users.add_argument("--video", metavar="FILE", type=Path, help="footage of one person (default: the sample)")
    users.add_argument("--audio", metavar="FILE", type=Path, help="speech (default: the sample's)")
    users.add_argument(
        "--height", metavar="PIXELS", type=int, default=0, help="scale the footage to this height (default: unscaled)"
    )
    users.add_argument("--fps", type=_positive, default=25.0, help="frame rate of live streams (default: %(default)g)")
    users.add_argument(
        "--deadline",
        metavar="MS",
        type=_positive,
        default=100.0,
        help="deadline of a live frame, counted from when its audio is complete (default: %(default)g)",
    )
    users.add_argument(
        "--late",
        choices=LATE,
        default=LATE[0],
        help="policy of the client for a live frame that misses its deadline: wait for it, which measures how late it is; "
        "skip it; or repeat the previous frame; each outcome is counted (default: %(default)s)",
    )
    users.add_argument(
        "--in-flight",
        metavar="N",
        type=int,
        default=8,
        help="maximum frames of one stream in flight (default: %(default)s)",
    )
    users.add_argument(
        "--session",
        metavar="S",
        type=float,
        nargs=2,
        default=(0.0, 0.0),
        help="minimum and maximum duration of a live stream, after which its user starts another one "
        "(default: it never ends; for a soak 15 45)",
    )
    users.add_argument(
        "--away",
        metavar="S",
        type=float,
        default=0.0,
        help="maximum pause of a user between two streams or jobs (default: none; for a soak 20)",
    )
    users.add_argument(
        "--reconnect",
        metavar="SHARE",
        type=float,
        default=0.0,
        help="share of sessions that start with a new connection and registration, 0 to 1 (default: 0; for a soak 0.3)",
    )
    users.add_argument(
        "--job-frames", metavar="N", type=int, default=150, help="frames of a dubbing job (default: %(default)s)"
    )
    users.add_argument(
        "--seed", type=int, default=0, help="random seed of session lengths and pauses (default: %(default)s)"
    )
    users.add_argument(
        "--processes",
        metavar="N",
        type=int,
        default=1,
        help="number of load processes that run the users (default: %(default)s)",
    )

    capacity = parser.add_argument_group("--find-capacity")
    capacity.add_argument(
        "--miss-rate",
        metavar="PERCENT",
        type=_positive,
        default=1.0,
        help="maximum share of late or missing frames (default: %(default)g)",
    )
    capacity.add_argument(
        "--step",
        metavar="S",
        type=_positive,
        default=Limits.measure_s,
        help="measurement time for each number of streams (default: %(default)g)",
    )
    capacity.add_argument(
        "--most", metavar="N", type=int, default=Limits.most, help="maximum number of streams (default: %(default)s)"
    )

    parser.add_argument(
        "-o",
        "--out",
        metavar="FOLDER",
        type=Path,
        default=Path("loadtest-report"),
        help="output folder (default: %(default)s)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print no progress")
    return parser


def _users(text: str) -> dict[str, int]:
    """Parse the number of users of each kind: "4" or "live=3,dub=1"."""
    if text.isdecimal():
        text = f"live={text}"
    users: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(rf"({'|'.join(ROLES)})=(\d{{1,5}})", part.strip())
        if match is None:
            raise argparse.ArgumentTypeError(f"{part!r} must be KIND=NUMBER, with KIND one of {', '.join(ROLES)}")
        users[match[1]] = users.get(match[1], 0) + int(match[2])
    if not 1 <= sum(users.values()) <= 10_000:
        raise argparse.ArgumentTypeError(f"{sum(users.values())} users; must be 1 to 10000")
    return users


def _duration_s(text: str) -> float:
    """Parse a duration in seconds: "90", "90s", "5m" or "1h"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} must be a duration above 0, as in 90s, 5m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _positive(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a finite number above 0")
    return value


def _log(line: str) -> None:
    """Print a line of progress on standard error."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def _quiet(line: str) -> None:
    """Print nothing."""
