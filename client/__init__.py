"""Client of a longrec server. Needs the extra `client`; never imports torch, triton, pandas or polars."""

from longrec.client.aio_client import AsyncClient
from longrec.client.aio_stream import AsyncStream
from longrec.client.client import Client
from longrec.client.connection import Connection, Retry, Tls
from longrec.client.stream import Stream
from longrec.client.transport import StreamCall, Transport
from longrec.client.types import Appended, Event, Events, Items, ModelInfo, Options, Prediction, Scored
from longrec.errors import (
    AccessError,
    ArgumentError,
    ConflictError,
    DeadlineError,
    GapError,
    LongrecError,
    MissingModelError,
    ProtocolError,
    RejectedError,
    ServerError,
    UnavailableError,
)
from longrec.protocol import Status

__all__ = [
    "AccessError",
    "Appended",
    "ArgumentError",
    "AsyncClient",
    "AsyncStream",
    "Client",
    "ConflictError",
    "Connection",
    "DeadlineError",
    "Event",
    "Events",
    "GapError",
    "Items",
    "LongrecError",
    "MissingModelError",
    "ModelInfo",
    "Options",
    "Prediction",
    "ProtocolError",
    "RejectedError",
    "Retry",
    "Scored",
    "ServerError",
    "Status",
    "Stream",
    "StreamCall",
    "Tls",
    "Transport",
    "UnavailableError",
]
