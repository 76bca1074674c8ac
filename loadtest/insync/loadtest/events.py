"""Events of simulated users, and their encoding for the pipe from the load processes."""

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

REGISTERED = "registered"  # ms: duration of the call
FIRST = "first"  # ms: from opening the stream to its first synced frame, look-ahead included
FRAME = (
    "frame"  # ms: latency; of a live frame since its audio was complete, of a dubbed frame as the client measures it
)
DROPPED = "dropped"  # count: frames that the camera's buffer dropped
SKIPPED = "skipped"  # count: late live frames that the client skipped
REPEATED = "repeated"  # a late live frame, for which the client repeated the previous one
ORDER = "order"  # count: responses that were not for the next frame
JOB = "job"  # ms: duration of a dubbing job; count: its frames
ENDED = "ended"  # a live stream ran to its end; count: frames without a response
REFUSED = "refused"  # the server had no capacity; ms: its retry hint, 0 without one
ERROR = "error"  # text: the error's type and message


@dataclass(frozen=True)
class Event:
    """One event of one user.

    Attributes:
        kind: one of this module's constants.
        user: number of the user.
        role: "live", "dub" or "twin".
        at_s: `time.monotonic()`, which all processes of a machine share.
        ms: a duration; see the kinds.
        count: number of frames or responses; see the kinds.
        late: whether a live frame missed its deadline.
        text: message of an error or a rejection.
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
    """Encode events as one line of JSON."""
    return json.dumps([astuple(event) for event in events]).encode() + b"\n"


def decode(line: bytes) -> list[Event]:
    """Decode a line that `encode` wrote."""
    return [Event(*fields) for fields in json.loads(line)]
