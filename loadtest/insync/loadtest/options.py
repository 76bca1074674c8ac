"""What every simulated user is told: where to, how fast, and how patient."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from insync.client.streaming.frame_dropping import LATE, Late
from insync.client.transport.tls import TlsOptions
from insync.loadtest.errors import LoadTestError

__all__ = ["ROLES", "UserOptions"]

# A paced stream; jobs as fast as allowed; registrations; and one of these by lot, mostly a stream.
ROLES = ("live", "dub", "twin", "mix")


@dataclass(frozen=True)
class UserOptions:
    """How users behave. All of it travels to the load processes as JSON.

    Attributes:
        server: HOST:PORT of the gRPC endpoint.
        video: footage of one person, or a photo.
        audio: speech, repeated without end.
        height: what the footage is scaled to, in pixels; 0: as it is.
        fps: of live streams.
        deadline_ms: a live frame has missed it when it is answered later than this after its audio was complete.
        late: what the client makes of such a frame, one of `LATE`.
        in_flight: most frames of one stream under way.
        buffer_s: what a live camera keeps for a client that does not keep up; older frames are dropped and counted.
        session_s: shortest and longest length of a live stream, after which its user comes anew; (0, 0): never ends.
        away_s: longest pause between two sessions, jobs or registrations of a user.
        job_frames: of one dubbing job.
        new_connection: share of sessions that begin with a new connection and registration, 0 to 1.
        seed: of lengths and pauses.
        tls: how to speak TLS with the server; None: without.
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
                raise LoadTestError(f"{name.replace('_', '-')} is {value:g}; allowed: {low:g} to {high:g}")
        if self.late not in LATE:
            raise LoadTestError(f"late is {self.late!r}; allowed: {', '.join(LATE)}")
        shortest, longest = self.session_s
        if not 0 <= shortest <= longest:
            raise LoadTestError(f"sessions last from {shortest:g} to {longest:g} s; the first must not be the larger")

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> UserOptions:
        """What `to_json` wrote."""
        fields = json.loads(text)
        shortest, longest = fields["session_s"]
        tls = TlsOptions(**fields["tls"]) if fields["tls"] else None
        return cls(**{**fields, "session_s": (float(shortest), float(longest)), "tls": tls})
