"""Ends an embedded server whose owner died without a chance to: run as a process of its own, standard library only.

`python reaper.py LEADER FOLDER PREFIX` waits for its standard input to end. Where the owner said "done" before, all is well;
where it did not, it was killed: the server's process group, its folder and its shared memory go too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

DONE = b"done"
_KILL_TIMEOUT_S = 2.0


def reap(leader: int, folder: Path, prefix: str) -> None:
    """Kills the process group of `leader`; removes its folder and the shared memory whose names begin with `prefix`."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while _lives(leader) and time.monotonic() < deadline:
        time.sleep(0.02)
    for region in Path("/dev/shm").glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _lives(group: int) -> bool:
    """Whether a process of this group is more than an entry that its parent has not read yet."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended while we looked
            state, _, own = entry.read_text().rpartition(")")[2].split()[:3]
            if int(own) == group and state not in "ZX":
                return True
    return False


if __name__ == "__main__":
    if sys.stdin.buffer.read() != DONE:
        reap(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
