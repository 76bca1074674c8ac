"""Processor time of a server's processes, by what each of them runs: read from Linux's /proc.

Unlike wall time it hardly changes when other work shares the cores, and its sum bounds what the cores can give.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_INSTANCE = re.compile(r"\b(lipsync\w*?)_\d+_\d+\0")


def processor_s(server: int) -> dict[str, float]:
    """Seconds that every model's Python process has used so far; `tritonserver` is the server itself.

    Args:
        server: process id of the server.
    """
    used: dict[str, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, line = (folder / "stat").read_text(), (folder / "cmdline").read_text()
        except OSError:  # it ended meanwhile
            continue
        # The name in parentheses may hold spaces; after it: state, parent, …, user and system time as 12th and 13th.
        fields = state.rpartition(")")[2].split()
        if int(folder.name) == server:
            name = "tritonserver"
        elif int(fields[1]) == server and (found := _INSTANCE.search(line)):
            name = found[1]
        else:
            continue
        used[name] = used.get(name, 0.0) + (int(fields[11]) + int(fields[12])) * _TICK_S
    return used
