"""What happens to simulated users, one small record each, and their way between processes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass

__all__ = [
    "DROPPED",
    "ENDED",
    "ERROR",
    "FIRST",
    "FRAME",
    "JOB",
    "ORDER",
    "REFUSED",
    "REGISTERED",
    "REPEATED",
    "SKIPPED",
    "Event",
    "decode",
    "encode",
]

REGISTERED = "registered"  # ms: the whole call
FIRST = "first"  # ms: from opening the stream to its first synced frame, look-ahead included
FRAME = "frame"  # ms: live, from the frame's audio being complete; dub, from being taken up
DROPPED = "dropped"  # count: frames that the camera had to throw away
SKIPPED = "skipped"  # count: live frames that the client left out, as they were late
REPEATED = "repeated"  # a live frame that was late: the client gave the one before it again
ORDER = "order"  # count: answers that were not the next frame's
JOB = "job"  # ms: a whole dubbing job; count: its frames
ENDED = "ended"  # a live stream ran to its end; count: frames that never came back
REFUSED = "refused"  # the server had no room; ms: until it may be asked again, as it says, 0 where it does not
ERROR = "error"  # text: the error's kind and message


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: one of this module's names.
        user: number of the user.
        role: "live", "dub" or "twin".
        at_s: `time.monotonic()`, which all processes of a machine share.
        ms: how long it took, or is to take.
        count: how many of it.
        late: a live frame that missed its deadline.
        text: of an error or a refusal.
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
