"""perf_analyzer on a running server: warm users, and requests for them.

perf_analyzer's own user keys always rise, so that each request would meet a cold user: users, events and shapes come
from a data file instead. Knows no data set: histories are handed in.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient

from longrec.client import Client
from longrec.errors import ArgumentError, ServerError
from longrec.protocol import CANDIDATE, EVENT, EVENT_COLUMNS, MODEL, UNCHECKED_POSITION, USER, Status
from longrec.server.perf_analyzer import PerfResult, run_perf_analyzer

__all__ = ["BatchCounts", "bench_server", "warm_users", "write_requests"]

CHUNK_EVENTS = 512


class BatchCounts:
    """How a server batched between the making of this object and `mean_batch`.

    Args:
        url: host:port of the server's gRPC endpoint.
        model: the model's name.
    """

    def __init__(self, url: str, model: str = MODEL) -> None:
        self._url, self._model = url, model
        self._before = self._read()

    def mean_batch(self) -> float:
        """Users an execution served, on average; NaN if there was none."""
        (inferences, executions), before = self._read(), self._before
        return (inferences - before[0]) / (executions - before[1]) if executions > before[1] else float("nan")

    def _read(self) -> tuple[int, int]:
        with InferenceServerClient(self._url) as client:
            statistics = client.get_inference_statistics(self._model).model_stats
        return sum(int(s.inference_count) for s in statistics), sum(int(s.execution_count) for s in statistics)


def warm_users(url: str, histories: Mapping[str, NDArray[np.int64]]) -> None:
    """Put each user's history (int64 [n, 3], positions from 0) into the server's log and memory.

    Raises:
        ServerError: the server failed, or its log of a user lacks events before these.
    """
    with Client(url) as client:
        for user, events in histories.items():
            for start in range(0, len(events), CHUNK_EVENTS):
                prediction = client.recommend(user=user, events=events[start : start + CHUNK_EVENTS], k=1)
                if prediction.status is not Status.OK:
                    raise ServerError(f"{url}: a log of {start} events expected, got {prediction.position}")


def write_requests(path: Path, requests: Sequence[tuple[str, NDArray[np.int64]]]) -> None:
    """Write perf_analyzer's `--input-data`: one request for each (user, events int64 [n, 3]), without candidates."""
    data = [
        {
            USER: {"content": [user], "shape": [1]},
            EVENT: {"content": events.ravel().tolist(), "shape": [len(events), len(EVENT_COLUMNS)]},
            CANDIDATE: {"content": [], "shape": [0]},
        }
        for user, events in requests
    ]
    path.write_text(json.dumps({"data": data}))


def bench_server(
    url: str,
    histories: Mapping[str, NDArray[np.int64]],
    requests: Path,
    *,
    concurrency: Sequence[int],
    window_ms: int = 2000,
    model: str = MODEL,
) -> list[PerfResult]:
    """Throughput and latency of one new event a request, users already warm.

    Args:
        url: host:port of the server's gRPC endpoint.
        histories: user -> int64 [n, 3], n >= 1. Their logs grow: each request appends the user's last event anew.
        requests: where to write perf_analyzer's data file.
        concurrency: requests in flight, a result each.
        window_ms: a result is the mean of three windows of this length.

    Raises:
        ArgumentError: no histories. MachineError: perf_analyzer can't be had. ServerError: the server failed.
    """
    if not histories or not all(len(events) for events in histories.values()):
        raise ArgumentError("histories", "at least one user, each with an event")
    warm_users(url, histories)
    write_requests(requests, [(user, _append(events[-1])) for user, events in histories.items()])
    return run_perf_analyzer(url, model, requests, concurrency, window_ms=window_ms)


def _append(event: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.array([[UNCHECKED_POSITION, *event[1:]]])
