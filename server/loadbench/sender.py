"""Sends messages when they are due, on one stream, and notes when each answer came.

Open loop: the next message doesn't wait for an answer. What is late is sent at once, and how late it was is noted; a
latency counts from the moment at which the message was due, so that a stall of server or sender is in every latency it
delayed (no coordinated omission). Messages are bytes that were made before and answers are read afterwards: sending and
receiving is all that the machine does for it meanwhile.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

from longrec.errors import ServerError

__all__ = ["Flight", "send_on_time"]

METHOD: Final = "/inference.GRPCInferenceService/ModelStreamInfer"
MAX_IN_FLIGHT: Final = 4096  # more is an overload; half of what a server of ours has states for (server/process.py)
LEAD_SECONDS: Final = 0.05  # from opening the stream to the first moment that anything is due


class Flight(NamedTuple):
    """What became of n messages of which the first m were sent.

    Args:
        sent: [m] when each was handed over, in seconds since the beginning.
        answered: [m] when each answer came, in the order of coming. answers: theirs, as bytes.
        overloaded: whether the sending ended early because too many were without an answer.
    """

    sent: NDArray[np.float64]
    answered: NDArray[np.float64]
    answers: list[bytes]
    overloaded: bool


def send_on_time(
    url: str, messages: Sequence[bytes], due: NDArray[np.float64], *, timeout_seconds: float = 30.0
) -> Flight:
    """Send each message at its moment, and wait for all answers.

    Args:
        url: host:port of the server's gRPC endpoint.
        messages: n serialised `ModelInferRequest`s.
        due: [n] rising, seconds since the beginning.
        timeout_seconds: for the answers after the last moment.

    Raises:
        ServerError: the stream broke, or an answer is missing.
    """
    moments = due.tolist()
    sent: list[float] = []
    arrived: list[tuple[float, bytes]] = []
    overloaded = False
    now, sleep = time.perf_counter, time.sleep
    began = now() + LEAD_SECONDS

    def requests() -> Iterator[bytes]:  # gRPC's sending thread asks for the next when the last is handed over
        nonlocal overloaded
        for moment, message in zip(moments, messages, strict=True):
            if len(sent) - len(arrived) > MAX_IN_FLIGHT:
                overloaded = True
                return
            wait = began + moment - now()
            if wait > 0:
                sleep(wait)
            sent.append(now() - began)
            yield message

    with grpc.insecure_channel(url) as channel:
        stream: Any = channel.stream_stream(METHOD)
        call = stream(requests(), timeout=LEAD_SECONDS + moments[-1] + timeout_seconds)
        try:
            for answer in call:
                arrived.append((now() - began, answer))  # noqa: PERF401 - the sending thread reads its length
        except grpc.RpcError as error:
            call_error: Any = error  # of a call: it has a code and details
            raise ServerError(
                f"{url}: expected {len(sent)} answers, got {len(arrived)} before the stream ended with "
                f"{call_error.code().name}: {call_error.details()}"
            ) from None
        finally:
            call.cancel()
    if len(arrived) != len(sent):
        raise ServerError(f"{url}: expected {len(sent)} answers, got {len(arrived)} before the stream ended")
    return Flight(np.array(sent), np.array([moment for moment, _ in arrived]), [one for _, one in arrived], overloaded)
