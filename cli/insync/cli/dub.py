"""`insync dub`: make the person in a video speak an audio file."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from insync.cli.embedded import embedded_server
from insync.cli.exit_codes import EXIT_TAGGED, log
from insync.cli.options import add_server, tls_options
from insync.client.streaming.frame_dropping import LATE
from insync.core.errors import missing_extra

__all__ = ["add_dub"]


def add_dub(commands: Any) -> None:
    """Add the command."""
    dub = commands.add_parser(
        "dub",
        help="make the person in a video speak an audio file",
        description="Make the person in VIDEO speak AUDIO, and write the result to OUT. Size, frame rate, rotation and "
        "colours stay the same; every pixel outside the mouth comes from VIDEO.",
    )
    dub.add_argument("video", metavar="VIDEO", type=Path, help="video file, or a photo")
    dub.add_argument("audio", metavar="AUDIO", type=Path, help="any file with an audio track")
    dub.add_argument(
        "-o",
        "--out",
        metavar="OUT",
        type=Path,
        required=True,
        help="output: .mp4, .m4v, .mov or .mkv; replaced if it exists",
    )
    dub.add_argument("--twin", metavar="ID", help="id of a registered person (default: register the person in VIDEO)")
    dub.add_argument(
        "--extend",
        choices=("bounce", "loop", "freeze", "none"),
        default="bounce",
        help="if AUDIO is longer: play VIDEO backwards and forwards in turn, start it again, repeat its last frame, or end "
        "with it and cut AUDIO (default: %(default)s)",
    )
    dub.add_argument(
        "--trim",
        action="store_true",
        help="if VIDEO is longer, end with AUDIO (default: continue VIDEO with a resting mouth)",
    )
    dub.add_argument(
        "--quality",
        choices=("lossless", "high", "medium", "low"),
        default="high",
        help="quality of OUT; lossless keeps every pixel outside the mouth exactly (default: %(default)s)",
    )
    dub.add_argument(
        "--chroma",
        choices=("420", "source"),
        default="420",
        help="colour resolution of OUT: 4:2:0, which every player shows, or that of VIDEO, as --quality lossless keeps it "
        "(default: %(default)s)",
    )
    dub.add_argument(
        "--video-track", metavar="N", type=int, help="video track of VIDEO, from 1 (default: the file's default track)"
    )
    dub.add_argument(
        "--audio-track", metavar="N", type=int, help="audio track of AUDIO, from 1 (default: the file's default track)"
    )
    dub.add_argument(
        "--in-flight",
        metavar="N",
        type=int,
        default=8,
        help="maximum number of frames in flight (default: %(default)s)",
    )
    dub.add_argument(
        "--whole-frames",
        action="store_true",
        help="send whole frames to the server instead of only the face's surroundings",
    )
    dub.add_argument(
        "--no-provenance",
        action="store_true",
        help="do not mark OUT as synthetic (default: add a signed C2PA manifest to .mp4, .m4v and .mov, and a metadata tag)",
    )
    dub.add_argument(
        "--deadline",
        metavar="S",
        type=float,
        help="simulate a live camera: read frames at their own times, and expect each within S seconds; the server reserves "
        "capacity for the stream, or refuses it at once (default: dub as fast as possible)",
    )
    dub.add_argument(
        "--late",
        choices=LATE,
        default=LATE[0],
        help="policy for frames that miss --deadline: wait for them, skip them, or repeat the previous frame "
        "(default: %(default)s)",
    )
    dub.add_argument(
        "--retry",
        metavar="S",
        type=float,
        default=30.0,
        help="retry for S seconds while no server responds (default: %(default)s)",
    )
    dub.add_argument("--timings", action="store_true", help="print the time of each stage")
    dub.add_argument("-q", "--quiet", action="store_true", help="show no progress bar and no notes")
    add_server(dub)
    dub.set_defaults(run=_dub)


def _dub(options: argparse.Namespace) -> int:
    """Run the command."""
    try:
        from insync.client.dub import DubJob, DubOptions
    except ImportError as exc:
        raise missing_extra("media", exc) from exc
    tls = tls_options(options, options.server)
    dub_options = DubOptions(
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
        video_track=options.video_track,
        audio_track=options.audio_track,
        chroma=options.chroma,
    )
    job = DubJob(options.video, options.audio, options.out, dub_options)  # checks the files before a server is started
    with nullcontext(options.server) if options.server is not None else embedded_server() as address:
        report = job.run(address)
    if options.quiet and report.failed_to_sign:
        log(f"{report.out} is complete, but not signed: {report.failed_to_sign}")
    if not options.quiet:
        for note in report.notes:
            log(f"note: {note}")
    if options.timings:
        stages = report.stages
        parts = ", ".join(f"{stage} {1000 * s / max(1, report.frames):.1f}" for stage, s in report.stages_s.items())
        log(
            f"{report.frames} frames in {stages.wall_s:.1f} s: {stages.fps:.1f} fps; ms per frame: {parts}; "
            f"client CPU time {stages.client_cpu_ms:.1f}"
        )
    return EXIT_TAGGED if report.failed_to_sign else 0
