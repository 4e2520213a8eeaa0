"""What the client adds to raw tritonclient: CPU time a request, and bulk throughput beside a hand-written loop. Both
ways take turns on one server in one run, so that the machine's moods hit both."""

import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

from longrec.client import Client, Event
from longrec.protocol import CANDIDATE, EVENT, ITEMS, MODEL, SCORES, STATE, UNCHECKED_POSITION, USER
from longrec.server.bench.load import Channel, bulk_request, read_bulk
from longrec.server.clientbench.rig import make_rig

__all__ = ["CostResult", "import_seconds", "measure_costs"]

BATCH = 256
IN_FLIGHT = 4
K = 10


@dataclass(frozen=True)
class CostResult:
    """What it costs.

    Args:
        raw_us, client_us: CPU time of the process a request of one event, by tritonclient and by `Client`.
        overhead_us: the median difference of neighbouring rounds.
        raw_users, client_users: users a second in requests of 256.
        bulk_ratio: the median ratio of neighbouring rounds.
    """

    raw_us: float
    client_us: float
    overhead_us: float
    raw_users: float
    client_users: float
    bulk_ratio: float


def measure_costs(*, rounds: int = 7, requests: int = 60, users: int = 4096) -> CostResult:
    """On a server of its own.

    Args:
        rounds: of bulk requests, and six times as many of single ones; the figures are medians.
        requests: of one event, in a round.
        users: of a bulk round.

    Raises:
        MachineError, ServerError: as `Server.start`.
    """
    with make_rig() as rig:
        url = rig.urls[0]
        single = _single(url, 6 * rounds, requests)
        names = [f"bulk {number}" for number in range(users)]
        with Client(url, timeout_seconds=120.0) as client:
            _bulk_own(client, names)  # learns the lengths
            bulk = [(_bulk_raw(url, names), _bulk_own(client, names)) for _ in range(rounds)]
    return CostResult(
        median(raw for raw, _ in single),
        median(own for _, own in single),
        median(own - raw for raw, own in single),
        median(raw for raw, _ in bulk),
        median(own for _, own in bulk),
        median(own / raw for raw, own in bulk),
    )


def import_seconds(runs: int = 5) -> float:
    """The best time of `import longrec.client` in a new Python, less Python's own start and numpy's import."""
    program = "import numpy, time; t = time.perf_counter(); import longrec.client; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", program]
    return min(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(runs))


def _single(url: str, rounds: int, requests: int) -> list[tuple[float, float]]:
    """Microseconds of CPU a request, raw and by `Client`, in rounds that alternate on open connections."""
    outputs = [InferRequestedOutput(name) for name in (ITEMS, SCORES, STATE)]
    user, candidates = np.array([[b"raw"]], np.object_), np.empty((1, 0), np.int64)
    with InferenceServerClient(url) as raw, Client(url) as client:

        def ask_raw(step: int) -> None:
            events = np.array([[[UNCHECKED_POSITION, step % 97, step]]], np.int64)
            inputs = []
            arrays = ((USER, "BYTES", user), (EVENT, "INT64", events), (CANDIDATE, "INT64", candidates))
            for name, datatype, array in arrays:
                tensor = InferInput(name, list(array.shape), datatype)
                tensor.set_data_from_numpy(array)
                inputs.append(tensor)
            answer = raw.infer(MODEL, inputs, outputs=outputs, parameters={"k": K}, client_timeout=60.0)
            for output in (ITEMS, SCORES, STATE):
                answer.as_numpy(output)

        def ask_client(step: int) -> None:
            client.recommend(user="own", events=[Event(step % 97, step)], k=K)

        def timed(ask: Callable[[int], None]) -> float:
            began = time.process_time()
            for step in range(requests):
                ask(step)
            return 1e6 * (time.process_time() - began) / requests

        return [(timed(ask_raw), timed(ask_client)) for _ in range(rounds + 1)][1:]


def _bulk_raw(url: str, users: Sequence[str]) -> float:
    """Users a second; every answer read as arrays."""
    event = np.array([[UNCHECKED_POSITION, 1, 1000]], np.int64)
    pending: deque[Any] = deque()
    with Channel(url) as channel:
        read_bulk(channel.send(bulk_request(["raw"], [event])))
        began = time.perf_counter()
        for start in range(0, len(users), BATCH):
            if len(pending) == IN_FLIGHT:
                read_bulk(pending.popleft())
            names = [f"raw {user}" for user in users[start : start + BATCH]]
            pending.append(channel.send(bulk_request(names, [event] * len(names), k=K)))
        while pending:
            read_bulk(pending.popleft())
        return len(users) / (time.perf_counter() - began)


def _bulk_own(client: Client, users: Sequence[str]) -> float:
    began = time.perf_counter()
    requests = ((user, [Event(1, 1000)]) for user in users)
    count = sum(1 for _ in client.recommend_many(requests, k=K, batch_size=BATCH, in_flight=IN_FLIGHT))
    assert count == len(users)
    return len(users) / (time.perf_counter() - began)
