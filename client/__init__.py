"""Client of a longrec server. Needs the extra `client`; never imports torch, triton, pandas or polars."""

from longrec.client.client import Client
from longrec.client.stream import Stream
from longrec.client.types import Appended, Event, Events, Options, Prediction
from longrec.errors import ArgumentError, LongrecError, RejectedError, ServerError
from longrec.protocol import Status

__all__ = [
    "Appended",
    "ArgumentError",
    "Client",
    "Event",
    "Events",
    "LongrecError",
    "Options",
    "Prediction",
    "RejectedError",
    "ServerError",
    "Status",
    "Stream",
]
