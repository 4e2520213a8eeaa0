"""Part `start`: how long a server takes from its launch to the first answer, with a long event log on disk."""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from longrec.client import Client
from longrec.config import EngineConfig
from longrec.errors import ServerError
from longrec.protocol import UNCHECKED_POSITION
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.event_log.log import Append
from longrec.server.bench.material import Material

__all__ = ["StartPlan", "StartResult", "measure_start"]

BATCH = 256


@dataclass(frozen=True)
class StartPlan:
    """How much to measure.

    Args:
        users, events: in the log, so many events each.
        starts: of the server; the figure is their median.
    """

    users: int = 10_000
    events: int = 100
    starts: int = 3


@dataclass(frozen=True)
class StartResult:
    """Seconds of each start."""

    seconds: tuple[float, ...]

    @property
    def start_seconds(self) -> float:
        """The median."""
        return median(self.seconds)


def measure_start(material: Material, plan: StartPlan) -> StartResult:
    """From the launch to the answer for a user whose events are in the log and not in memory.

    Raises:
        MachineError, ServerError: as `Server.start`; or the server doesn't know the log's users.
    """
    seconds = []
    with TemporaryDirectory(prefix="start-", dir=material.scratch) as folder:
        server = material.server(Path(folder), EngineConfig())
        log = LmdbLog(Path(folder, "event_log"), durability="none")
        try:
            rows = material.drawn([plan.events])[0]
            for begin in range(0, plan.users, BATCH):
                numbers = range(begin, min(begin + BATCH, plan.users))
                log.append([Append(f"user-{number}".encode(), UNCHECKED_POSITION, rows) for number in numbers])
        finally:
            log.close()
        for number in range(plan.starts):
            began = time.perf_counter()
            with server, Client(server.grpc_url) as client:
                prediction = client.recommend(user=f"user-{number}", events=np.empty((0, 3), np.int64))
                seconds.append(time.perf_counter() - began)
                if prediction.position != plan.events:
                    raise ServerError(f"start: expected a log of {plan.events} events, got {prediction.position}")
    return StartResult(tuple(seconds))
