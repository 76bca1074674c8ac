"""InSync's client: streams frames and audio to a server, and gets frames whose mouths follow the audio.

The whole job on files, as `insync dub` does it, is `insync.client.dub.dub`.
"""

from insync.client.client import Client, Twin
from insync.client.streaming.pictures import TimedFrame
from insync.client.streaming.stream import SyncedFrame
from insync.client.streaming.timings import Stages
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
    "Stages",
    "SyncedFrame",
    "TimedFrame",
    "TlsOptions",
    "Twin",
    "UnreadableMedia",
    "UnwritableMedia",
]
