"""The reaper: ends an embedded server whose owner was killed. Runs as a separate process, standard library only.

`python reaper.py LEADER FOLDER PREFIX` waits for its standard input to close. If the owner wrote "done" first, there is
nothing to do. Otherwise the owner was killed: the reaper kills the server's process group and removes its folder and its
shared memory.
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
    """Kill the process group of `leader`; remove its folder and the shared memory whose names begin with `prefix`."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while _lives(leader) and time.monotonic() < deadline:
        time.sleep(0.02)
    for region in Path("/dev/shm").glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _lives(group: int) -> bool:
    """Return whether this group has a process that is not a zombie."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended while we looked
            state, _, own = entry.read_text().rpartition(")")[2].split()[:3]
            if int(own) == group and state not in "ZX":
                return True
    return False


if __name__ == "__main__":
    if sys.stdin.buffer.read() != DONE:
        reap(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
