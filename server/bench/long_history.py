"""Part `long_history`: what an event costs a user with a very long past, against one with a short one. The window
bounds it."""

import time
from dataclasses import dataclass
from statistics import median

import numpy as np

from longrec.client import Client
from longrec.config import EngineConfig
from longrec.protocol import UNCHECKED_POSITION
from longrec.server.bench.load import fill
from longrec.server.bench.material import Material

__all__ = ["LongHistoryPlan", "LongHistoryResult", "measure_long_history"]


@dataclass(frozen=True)
class LongHistoryPlan:
    """How much to measure.

    Args:
        window: of the network.
        short, long: events of the histories compared.
        users: of each; they take turns.
        rounds: events of each user.
    """

    window: int = 512
    short: int = 1024
    long: int = 16_384
    users: int = 8
    rounds: int = 60


@dataclass(frozen=True)
class LongHistoryResult:
    """Seconds from a request to its answer, medians."""

    short_seconds: float
    long_seconds: float

    @property
    def ratio(self) -> float:
        """The long history's, against the short one's."""
        return self.long_seconds / self.short_seconds


def measure_long_history(material: Material, plan: LongHistoryPlan) -> LongHistoryResult:
    """One event a request, one request in flight, the two kinds of users in turns.

    Raises:
        MachineError, ServerError: as `Server.start`, and where a request failed.
    """
    lengths = [plan.short, plan.long] * plan.users
    users = [f"user-{number}-{length}" for number, length in enumerate(lengths)]
    histories = material.drawn(lengths)
    latencies: dict[int, list[float]] = {plan.short: [], plan.long: []}
    windowed = material.with_window(plan.window)
    with windowed.serve(EngineConfig()) as server, Client(server.grpc_url) as client:
        fill(server.grpc_url, users, histories)
        for number in range(plan.rounds + 1):
            for user, length, history in zip(users, lengths, histories, strict=True):
                event = np.array([[UNCHECKED_POSITION, *history[number % len(history)]]])
                began = time.perf_counter()
                client.recommend(user=user, events=event)
                if number:  # the first finds code and memory cold
                    latencies[length].append(time.perf_counter() - began)
    return LongHistoryResult(median(latencies[plan.short]), median(latencies[plan.long]))
