"""What happens to simulated users, one small record each, and their way between processes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass

__all__ = ["DROPPED", "ENDED", "ERROR", "FIRST", "FRAME", "JOB", "ORDER", "REGISTERED", "Event", "decode", "encode"]

REGISTERED = "registered"  # ms: the whole call
FIRST = "first"  # ms: from opening the stream to its first synced frame, look-ahead included
FRAME = "frame"  # ms: live, from the frame's audio being complete; dub, from being taken up
DROPPED = "dropped"  # count: frames that the camera had to throw away
ORDER = "order"  # count: answers that were not the next frame's
JOB = "job"  # ms: a whole dubbing job; count: its frames
ENDED = "ended"  # a live stream ran to its end; count: frames that never came back
ERROR = "error"  # text: the error's kind and message


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: one of this module's names.
        user: number of the user.
        role: "live", "dub" or "twin".
        at_s: `time.monotonic()`, which all processes of a machine share.
        ms: how long it took.
        count: how many of it.
        late: a live frame that missed its deadline.
        text: of an error.
    """

    kind: str
    user: int
    role: str
    at_s: float
    ms: float = 0.0
    count: int = 1
    late: bool = False
    text: str = ""


def encode(events: Iterable[Event]) -> bytes:
    """One line."""
    return json.dumps([astuple(event) for event in events]).encode() + b"\n"


def decode(line: bytes) -> list[Event]:
    """What `encode` made."""
    return [Event(*fields) for fields in json.loads(line)]
