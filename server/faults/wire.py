"""Requests to a server as gRPC messages, and what became of them. The only file of the faults that knows gRPC.

The client is of no use here: it retries nothing and hides nothing, but neither does it cancel a request, send a copy of
one, or send what is malformed.
"""

import contextlib
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from longrec.protocol import CANDIDATE, EVENT, EVENT_COLUMNS, ITEMS, MODEL, SCORES, STATE, USER, Status

__all__ = ["Fate", "Outcome", "Pending", "Wire"]

NOBODY: NDArray[np.int64] = np.empty((0, len(EVENT_COLUMNS)), np.int64)


class Fate(Enum):
    """What a request came to."""

    OK = "ok"
    GAP = "gap"
    CONFLICT = "conflict"
    REFUSED = "refused"  # INVALID_ARGUMENT: it changed nothing
    UNKNOWN = "unknown"  # it failed, or nobody waited for it: it may have been done


class Outcome(NamedTuple):
    """An answer: what it came to, the log's length, items and scores where they were asked for, or what was said."""

    fate: Fate
    length: int = 0
    items: NDArray[np.int64] | None = None
    scores: NDArray[np.float32] | None = None
    message: str = ""


class Pending:
    """A request on its way."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def cancel(self) -> None:
        """Don't wait for it any longer, and tell the server so."""
        self._call.cancel()

    def outcome(self) -> Outcome:
        """Wait for it; never raises."""
        try:
            return _read(self._call.result())
        except (grpc.RpcError, grpc.FutureCancelledError):
            with contextlib.suppress(grpc.FutureCancelledError):
                if self._call.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    return Outcome(Fate.REFUSED, message=self._call.details())
            return Outcome(Fate.UNKNOWN, message=f"{self._call.code().name}: {self._call.details()}")


class Wire:
    """A channel to one server.

    Args:
        url: host:port of its gRPC endpoint.
        seconds: deadline of each request.
    """

    def __init__(self, url: str, seconds: float = 20.0) -> None:
        # connect anew at once: servers come and go here
        options = (("grpc.max_reconnect_backoff_ms", 100), ("grpc.use_local_subchannel_pool", 1))
        self._channel = grpc.insecure_channel(url, options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self.seconds = seconds

    def send(
        self, user: str, events: NDArray[np.int64] = NOBODY, *, k: int = 0, seconds: float | None = None
    ) -> Pending:
        """Start a request for one user: events [n, 3], and with k > 0 for the k best items."""
        tensors = {
            USER: ("BYTES", [1, 1], len(key := user.encode()).to_bytes(4, "little") + key),
            EVENT: ("INT64", [1, *events.shape], events.astype("<i8").tobytes()),
            CANDIDATE: ("INT64", [1, 0], b""),
        }
        message = service_pb2.ModelInferRequest(
            model_name=MODEL,
            inputs=[{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape, _) in tensors.items()],
            outputs=[{"name": name} for name in ((STATE, ITEMS, SCORES) if k else (STATE,))],
            raw_input_contents=[data for _, _, data in tensors.values()],
        )
        if k:
            message.parameters["k"].int64_param = k
        return self.send_message(message, seconds=seconds)

    def send_message(self, message: Any, *, seconds: float | None = None) -> Pending:
        """Start any `ModelInferRequest`."""
        return Pending(self._stub.ModelInfer.future(message, timeout=seconds or self.seconds))

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(answer: Any) -> Outcome:
    dtypes: Mapping[str, str] = {"INT64": "<i8", "FP32": "<f4"}
    found = {
        output.name: np.frombuffer(data, dtypes[output.datatype]).reshape(output.shape)
        for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True)
        if output.datatype in dtypes
    }
    status, length = (int(value) for value in found[STATE][0])
    items, scores = (found[name][0, 0] if name in found else None for name in (ITEMS, SCORES))
    return Outcome(Fate[Status(status).name], length, items, scores)
