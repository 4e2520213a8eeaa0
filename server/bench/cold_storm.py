"""Part `cold_storm`: warm users at a steady load, while many cold users with long histories arrive at once."""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from longrec.config import EngineConfig
from longrec.errors import ServerError
from longrec.modeling import recompute_scores
from longrec.protocol import UNCHECKED_POSITION
from longrec.server.bench.load import Bulk, Channel, SteadyLoad, answered_a_second, bulk_request, fill, read_bulk
from longrec.server.bench.material import History, Material

__all__ = ["StormPlan", "StormResult", "measure_cold_storm"]

TOLERANCE = 1e-4  # of scores: float32, sums in another order
K = 10
SETTLE_SECONDS = 0.5


@dataclass(frozen=True)
class StormPlan:
    """How much to measure.

    Args:
        warm_users: of the dataset, round and round, one event a request.
        cold_users: that arrive at once in each storm, each a request.
        events: of each of them.
        load: of the throughput that the warm users alone reach, the share that is kept up.
        in_flight: to find that throughput.
        probe_seconds: how long to look for it.
        quiet_seconds: before each storm.
        storms: one after the other, of other users.
        checked: cold users of each storm whose answers are held against a pass over their whole history.
    """

    warm_users: int = 256
    cold_users: int = 64
    events: int = 2000
    load: float = 0.5
    in_flight: int = 16
    probe_seconds: float = 1.0
    quiet_seconds: float = 5.0
    storms: int = 3
    checked: int = 4


@dataclass(frozen=True)
class StormResult:
    """What came of it.

    Args:
        rate: warm requests a second.
        samples: [n, 2] of the warm requests: seconds from the beginning, latency in seconds.
        storms: begin and end of each, in seconds from the beginning; the end is the last cold user's answer.
        answered: cold users who got an answer, and the right one as far as it was checked; of the storm with the
            fewest.
    """

    rate: float
    samples: NDArray[np.float64]
    storms: tuple[tuple[float, float], ...]
    answered: int

    @property
    def quiet_p99_ms(self) -> float:
        """99th percentile of the latencies outside the storms, and not right behind one, whose queue they share."""
        return self._p99_ms(~self._due(settle=SETTLE_SECONDS))

    @property
    def storm_p99_ms(self) -> float:
        """99th percentile of the latencies of requests that were due in a storm."""
        return self._p99_ms(self._due())

    @property
    def p99_ratio(self) -> float:
        """In storms, against quiet."""
        return self.storm_p99_ms / self.quiet_p99_ms

    def _due(self, settle: float = 0.0) -> NDArray[np.bool_]:
        """[n] which requests were due in a storm, or so many seconds behind it."""
        due = self.samples[:, 0]
        inside = np.zeros(len(due), bool)
        for begin, end in self.storms:
            inside |= (due >= begin) & (due < end + settle)
        return inside

    def _p99_ms(self, chosen: NDArray[np.bool_]) -> float:
        if not chosen.any():
            raise ServerError("cold_storm: expected requests of warm users in and outside storms, got none")
        return float(np.percentile(self.samples[chosen, 1], 99)) * 1000


def measure_cold_storm(material: Material, plan: StormPlan) -> StormResult:
    """Quiet, storm, quiet, storm … under the same load of warm users.

    Raises:
        MachineError, ServerError: as `Server.start`, and where a request failed.
    """
    histories = material.recorded(plan.warm_users)
    users = [f"warm-{number}" for number in range(len(histories))]
    messages = [
        bulk_request([user], [np.array([[UNCHECKED_POSITION, *history[-1]]])], k=K)
        for user, history in zip(users, histories, strict=True)
    ]
    colds = [material.drawn([plan.events] * plan.cold_users, seed=1 + storm) for storm in range(plan.storms)]
    storms: list[tuple[float, float]] = []
    answers: list[list[Bulk | None]] = []
    with material.serve(EngineConfig(memory_bytes=1 << 30)) as server:
        fill(server.grpc_url, users, histories)
        for _ in range(2):  # the first finds code and memory cold
            windows = answered_a_second(
                server.grpc_url, messages, in_flight=plan.in_flight, window_seconds=plan.probe_seconds
            )
        rate = plan.load * median(windows)
        with _crowd(server.grpc_url) as crowd, SteadyLoad(server.grpc_url, messages, rate) as load:
            time.sleep(plan.probe_seconds)  # the load's own beginning is in no figure
            began = time.perf_counter()
            for number, cold in enumerate(colds):
                crowd.send([_cold_request(f"cold-{number}-{user}", rows) for user, rows in enumerate(cold)])
                time.sleep(plan.quiet_seconds)
                begin = time.perf_counter()
                crowd.send("go")
                answers.append(crowd.recv())
                storms.append((begin - began, time.perf_counter() - began))
            time.sleep(plan.quiet_seconds)
        samples = load.samples() - (began, 0.0)
    answered = min(_count_right(material, *storm, plan.checked) for storm in zip(colds, answers, strict=True))
    return StormResult(rate, samples[samples[:, 0] >= 0], tuple(storms), answered)


@contextmanager
def _crowd(url: str) -> Iterator[Connection]:
    """A process that sends the cold users' requests: in the warm users' own they would wait for its interpreter.

    Send it a list of requests, as bytes, and "go" when they shall leave; it sends their answers back.
    """
    spawn = multiprocessing.get_context("spawn")  # gRPC's threads don't survive a fork
    here, there = spawn.Pipe()
    process = spawn.Process(target=_send_storms, args=(url, there), daemon=True)
    process.start()
    there.close()
    try:
        here.recv()  # it has started
        yield here
    except EOFError:
        raise ServerError("cold_storm: expected answers from the process of the cold users, got its end") from None
    finally:
        here.close()
        process.join()


def _send_storms(url: str, crowd: Connection) -> None:
    """What that process does until the other end closes."""
    with Channel(url) as channel:
        crowd.send("ready")
        while True:
            try:
                requests = [service_pb2.ModelInferRequest.FromString(request) for request in crowd.recv()]
                crowd.recv()
            except EOFError:
                return
            futures = [channel.send(request) for request in requests]
            crowd.send([_answer_or_none(future) for future in futures])


def _cold_request(user: str, rows: History) -> bytes:
    request = bulk_request([user], [np.column_stack((np.arange(len(rows)), rows))], k=K)
    message: bytes = request.SerializeToString()
    return message


def _answer_or_none(future: Any) -> Bulk | None:
    try:
        return read_bulk(future)
    except ServerError:
        return None


def _count_right(material: Material, histories: Sequence[History], answers: Sequence[Bulk | None], checked: int) -> int:
    """Cold users who were answered; of the first `checked`, those with the scores of a pass over their history."""
    right = 0
    for number, (rows, answer) in enumerate(zip(histories, answers, strict=True)):
        right += answer is not None and (number >= checked or _is_right(material, rows, answer))
    return right


def _is_right(material: Material, rows: History, answer: Bulk) -> bool:
    (scores,) = recompute_scores(material.network, rows[:, 0], rows[:, 1], np.array([len(rows)]))
    best = np.sort(scores)[::-1][: answer.scores.shape[1]]
    at_items = scores[answer.items[0]]  # equal scores may change places
    return all(np.allclose(answer.scores[0], wanted, atol=TOLERANCE, rtol=0) for wanted in (best, at_items))
