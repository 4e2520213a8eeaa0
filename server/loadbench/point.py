"""One rate: arrivals of a Poisson process, what came back and how late, and how many users had a memory."""

import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray

from longrec.errors import ArgumentError, ServerError
from longrec.server.bench.load import bulk_request, fill
from longrec.server.bench.material import Target
from longrec.server.loadbench.answers import hold_against_recompute, read_answers
from longrec.server.loadbench.population import Population
from longrec.server.loadbench.sender import send_on_time

__all__ = ["Load", "LoadPlan", "Point"]

COUNTED_SECONDS: Final = 10.0  # for the server to publish its counts: it does so twice a second
RECOMPUTED: Final = 16  # answers of a point that are recomputed, where the network is at hand


@dataclass(frozen=True)
class LoadPlan:
    """How a rate is measured.

    Args:
        users: returning users, all with a memory before the first request.
        zipf: exponent of the law by which they return.
        k: items wanted.
        seconds: of a point. settle_seconds: before them, not measured.
        max_lag_ms: a point whose sender was later than this with more than 1 request of 100 says nothing.
        seed: of arrivals and users.
    """

    users: int = 1000
    zipf: float = 1.0
    k: int = 10
    seconds: float = 10.0
    settle_seconds: float = 1.0
    max_lag_ms: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("seconds", "max_lag_ms"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name}={getattr(self, name)}", "more than 0")
        if not self.settle_seconds >= 0:
            raise ArgumentError(f"settle_seconds={self.settle_seconds}", "0 or more")


@dataclass(frozen=True, eq=False)
class Point:
    """What one rate gave.

    Args:
        offered: requests a second that were to be sent, on average. cold: share of them that were of cold users.
        requests: how many were measured.
        lag_ms: by which the sender was late, 99th percentile.
        hit_rate: share of the point's requests whose user had a memory, by the server's own count.
        verdict: `ok`; `overloaded`: thousands waited and the sending ended early; `late`: the sender couldn't keep the
            rate. Only `ok` has the figures below.
        throughput: answers a second, within the measured time. NaN: there are none.
        latencies: [n] seconds, from when a request was due to its answer.
    """

    offered: float
    cold: float
    requests: int
    lag_ms: float
    hit_rate: float
    verdict: str
    throughput: float = float("nan")
    latencies: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def percentile_ms(self, percentile: float) -> float:
        """A percentile of the latency; NaN where no request would lie beyond it."""
        if len(self.latencies) * (100 - percentile) < 100:
            return float("nan")
        return float(1000 * np.percentile(self.latencies, percentile))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; null where there is no figure."""
        figures = {
            "offered": self.offered,
            "cold": self.cold,
            "requests": self.requests,
            "verdict": self.verdict,
            "throughput": self.throughput,
            "hit_rate": self.hit_rate,
            **{name: self.percentile_ms(float(name[1:-3])) for name in ("p50_ms", "p99_ms", "p99.9_ms")},
            "lag_ms": self.lag_ms,
        }
        return {name: None if value != value else value for name, value in figures.items()}


class Load:
    """A server under a population's requests.

    Args:
        target: the server, and the data set whose histories the users have. Some answers of each point are recomputed
            where it has the network.
        plan: how to measure.
    """

    def __init__(self, target: Target, plan: LoadPlan) -> None:
        self._url, self._metrics_url, self._network = target.url, target.metrics_url, target.network
        dataset, self._plan = target.dataset, plan
        prefix = f"load-{uuid.uuid4().hex[:8]}-"
        self._num_items = len(dataset.catalogue)
        self._population = Population(dataset, plan.users, zipf=plan.zipf, prefix=prefix, seed=plan.seed)
        self._rng = np.random.default_rng(plan.seed)
        before = self._memory_counts()
        self._fill(np.arange(plan.users), warm=True)
        self._hit_rate(before, plan.users)  # these are counted now, and won't be among the first point's

    def measure(self, rate: float, cold: float = 0.0) -> Point:
        """Offer a rate.

        Args:
            rate: requests a second, of a Poisson process.
            cold: share of the requests whose user has a log but no memory; 0..1.

        Raises:
            ArgumentError: an argument doesn't fit.
            ServerError: the server failed, or an answer is wrong.
        """
        if not 0 < rate < np.inf:
            raise ArgumentError(f"rate={rate}", "requests a second, more than 0")
        plan = self._plan
        until = plan.settle_seconds + plan.seconds
        due = np.cumsum(self._rng.exponential(1 / rate, max(1, round(rate * until))))
        arrivals = self._population.draw(len(due), cold)
        self._fill(arrivals.users[arrivals.cold], warm=False)
        events = self._population.events(arrivals.users, arrivals.positions)
        messages = [self._message(*one) for one in enumerate(zip(arrivals.users.tolist(), events, strict=True))]
        before = self._memory_counts()
        flight = send_on_time(self._url, messages, due)
        count = len(flight.sent)
        users, positions, due = arrivals.users[:count], arrivals.positions[:count], due[:count]
        self._population.commit(users)
        answers = read_answers(flight.answers, positions, self._num_items, plan.k)
        if self._network is not None:
            sample = self._rng.choice(count, min(RECOMPUTED, count), replace=False)
            hold_against_recompute(answers, users, positions, self._population, self._network, sample)
        hit_rate = self._hit_rate(before, count)
        answered = np.empty(count)
        answered[answers.order] = flight.answered
        measured = due >= plan.settle_seconds
        lag_ms = 1000 * float(np.percentile((flight.sent - due)[measured], 99)) if measured.any() else float("nan")
        if flight.overloaded or not lag_ms <= plan.max_lag_ms:
            verdict = "overloaded" if flight.overloaded else "late"
            return Point(rate, cold, int(measured.sum()), lag_ms, hit_rate, verdict)
        end = due[-1]
        within = ((answered >= plan.settle_seconds) & (answered < end)).sum()
        throughput = float(within / (end - plan.settle_seconds))
        latencies = (answered - due)[measured]
        return Point(rate, cold, int(measured.sum()), lag_ms, hit_rate, "ok", throughput, latencies)

    def _message(self, number: int, request: tuple[int, NDArray[np.int64]]) -> bytes:
        user, event = request
        message = bulk_request([self._population.key(user)], [event[None]], k=self._plan.k)
        message.id = str(number)
        return bytes(message.SerializeToString())

    def _fill(self, users: NDArray[np.int64], *, warm: bool) -> None:
        if len(users):
            numbers = users.tolist()
            histories = [self._population.beginning(user) for user in numbers]
            fill(self._url, self._population.keys(numbers), histories, warm=warm)

    def _hit_rate(self, before: tuple[float, float], count: int) -> float:
        """Share of hits since `before`, once the server has published as many hits and misses as were asked."""
        deadline = time.monotonic() + COUNTED_SECONDS
        while True:
            hits, misses = (now - then for now, then in zip(self._memory_counts(), before, strict=True))
            if hits + misses >= count:
                return hits / (hits + misses)
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self._metrics_url}: expected {count} more hits and misses than before, got {hits + misses:.0f}; "
                    "are these the metrics of the server that was asked?"
                )
            time.sleep(0.1)

    def _memory_counts(self) -> tuple[float, float]:
        try:
            with urlopen(self._metrics_url, timeout=10) as page:
                text = page.read().decode()
        except (URLError, OSError, ValueError) as error:
            raise ServerError(f"{self._metrics_url}: expected the server's metrics, got {error}") from None
        hits, misses = (
            [float(value) for value in re.findall(rf"^longrec_memory_{name}_total{{.*}} (\S+)$", text, re.MULTILINE)]
            for name in ("hits", "misses")
        )
        return sum(hits), sum(misses)
