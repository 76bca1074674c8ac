"""Processor time of a server's processes, by the model that each of them runs.

Unlike wall time it hardly changes when other work shares the cores, and its sum bounds what the cores can give.
"""

from __future__ import annotations

from contextlib import suppress

import psutil

from insync.ensemble.server.processes import processes


def processor_s(server: int) -> dict[str, float]:
    """Return the processor time in seconds that each model's Python processes have used so far; `tritonserver` is the server.

    Args:
        server: process id of the server.
    """
    used: dict[str, float] = {}
    for process, name in {server: "tritonserver", **processes(server)}.items():
        with suppress(psutil.Error):  # it has ended meanwhile
            times = psutil.Process(process).cpu_times()
            used[name] = used.get(name, 0.0) + times.user + times.system
    return used
