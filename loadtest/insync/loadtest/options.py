"""Options of the simulated users: server, footage, frame rate, deadline and sessions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from insync.client.streaming.frame_dropping import LATE, Late
from insync.client.transport.tls import TlsOptions
from insync.loadtest.errors import LoadTestError

__all__ = ["ROLES", "UserOptions"]

# A paced live stream; unpaced dubbing jobs; registrations; one of these at random, in most cases a live stream.
ROLES = ("live", "dub", "twin", "mix")


@dataclass(frozen=True)
class UserOptions:
    """The options of every simulated user. They are sent to the load processes as JSON.

    Attributes:
        server: HOST:PORT of the gRPC endpoint.
        video: footage of one person, or a photo.
        audio: speech, repeated in a loop.
        height: height in pixels that the footage is scaled to; 0 leaves it unscaled.
        fps: frame rate of live streams.
        deadline_ms: time in which a live frame must have its response, counted from when its audio is complete.
        late: policy of the client for a frame that misses the deadline, one of `LATE`.
        in_flight: maximum frames of one stream in flight.
        buffer_s: length of a live camera's buffer; frames that wait longer for the client are dropped and counted.
        session_s: minimum and maximum duration of a live stream, after which its user starts another one; (0, 0): never ends.
        away_s: maximum pause between two sessions, jobs or registrations of a user.
        job_frames: frames of one dubbing job.
        new_connection: share of sessions that start with a new connection and registration, 0 to 1.
        seed: random seed of session lengths and pauses.
        tls: TLS options of the connection; None: no TLS.
    """

    server: str
    video: str
    audio: str
    height: int = 0
    fps: float = 25.0
    deadline_ms: float = 100.0
    late: Late = "wait"
    in_flight: int = 8
    buffer_s: float = 1.0
    session_s: tuple[float, float] = (0.0, 0.0)
    away_s: float = 0.0
    job_frames: int = 150
    new_connection: float = 0.0
    seed: int = 0
    tls: TlsOptions | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("height", 0, 4_320),
            ("fps", 0.1, 240.0),
            ("deadline_ms", 1.0, 60_000.0),
            ("in_flight", 1, 256),
            ("buffer_s", 0.04, 60.0),
            ("away_s", 0.0, 3_600.0),
            ("job_frames", 1, 100_000),
            ("new_connection", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise LoadTestError(f"{name.replace('_', '-')} is {value:g}; must be {low:g} to {high:g}")
        if self.late not in LATE:
            raise LoadTestError(f"late is {self.late!r}; must be one of {', '.join(LATE)}")
        shortest, longest = self.session_s
        if not 0 <= shortest <= longest:
            raise LoadTestError(
                f"session is {shortest:g} to {longest:g} s; must be at least 0, and the first not above the second"
            )

    def to_json(self) -> str:
        """Encode as one line of JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> UserOptions:
        """Decode what `to_json` wrote."""
        fields = json.loads(text)
        shortest, longest = fields["session_s"]
        tls = TlsOptions(**fields["tls"]) if fields["tls"] else None
        return cls(**{**fields, "session_s": (float(shortest), float(longest)), "tls": tls})
