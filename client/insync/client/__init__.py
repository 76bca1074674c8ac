"""InSync's client library: it streams frames and audio to a server, and yields frames whose mouths follow the audio.

`Client.register` registers a person and returns a `Twin`; `Client.stream` yields a `SyncedFrame` for each frame. All errors
derive from `InsyncError`. To dub whole files, as `insync dub` does, use `insync.client.dub.dub` (needs `insync[media]`).
"""

from insync.client.client import Client, Twin
from insync.client.streaming.pictures import TimedFrame
from insync.client.streaming.stream import SyncedFrame
from insync.client.streaming.timings import StageClock, Stages
from insync.client.transport.tls import TlsOptions
from insync.core.errors import (
    BadInput,
    InsyncError,
    MediaError,
    MissingExtra,
    NoAudioTrack,
    NotFound,
    NoVideoTrack,
    Overloaded,
    ProtocolError,
    ServerError,
    ServerTimeout,
    ServerUnavailable,
    UnreadableMedia,
    UnwritableMedia,
)

__all__ = [
    "BadInput",
    "Client",
    "InsyncError",
    "MediaError",
    "MissingExtra",
    "NoAudioTrack",
    "NoVideoTrack",
    "NotFound",
    "Overloaded",
    "ProtocolError",
    "ServerError",
    "ServerTimeout",
    "ServerUnavailable",
    "StageClock",
    "Stages",
    "SyncedFrame",
    "TimedFrame",
    "TlsOptions",
    "Twin",
    "UnreadableMedia",
    "UnwritableMedia",
]
