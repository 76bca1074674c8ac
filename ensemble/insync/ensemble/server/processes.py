"""The processes that run a server's models, and their states."""

from __future__ import annotations

import re
from contextlib import suppress
from enum import Enum

import psutil

__all__ = ["State", "processes", "state"]

_INSTANCE = re.compile(r"(lipsync\w*?)_\d+_\d+")  # how Triton names the process of a model's instance


class State(Enum):
    """The state of a process."""

    RUNNING = "running"
    STOPPED = "stopped"  # by a signal
    GONE = "gone"  # or a zombie that its parent has not waited for yet


def processes(server: int | None) -> dict[int, str]:
    """Find the processes of a server's model instances: process id → model."""
    found: dict[int, str] = {}
    with suppress(psutil.Error):  # the server is gone
        for child in psutil.Process(server).children() if server is not None else ():
            with suppress(psutil.Error):  # it ended while we looked
                named = [match[1] for argument in child.cmdline() if (match := _INSTANCE.fullmatch(argument))]
                if named and state(child.pid, server) is not State.GONE:
                    found[child.pid] = named[0]
    return found


def state(process: int, parent: int | None) -> State:
    """Return a process's state; one that is no child of `parent` is gone, and its process id was reused."""
    try:
        found = psutil.Process(process)
        if found.ppid() != parent:
            return State.GONE
        status = found.status()
    except psutil.Error:
        return State.GONE
    if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        return State.GONE
    return State.STOPPED if status == psutil.STATUS_STOPPED else State.RUNNING
