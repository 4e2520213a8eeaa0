"""Part `echo`: single events of warm users, against a model that does no work, in one server and in turns."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from longrec.config import EngineConfig
from longrec.protocol import MODEL, UNCHECKED_POSITION
from longrec.server.bench.load import fill
from longrec.server.bench.material import Material
from longrec.server.bench.running import write_requests
from longrec.server.model_configs import EXTRAS
from longrec.server.perf_analyzer import PerfResult, run_perf_analyzer

__all__ = ["EchoPlan", "EchoResult", "measure_echo"]


@dataclass(frozen=True)
class EchoPlan:
    """How much to measure.

    Args:
        users: of the dataset, warm.
        concurrency: requests in flight.
        rounds: runs of perf_analyzer on each model, in turns.
        window_ms: a run is the mean of three windows of this length.
    """

    users: int = 943
    concurrency: int = 32
    rounds: int = 5
    window_ms: int = 1000


@dataclass(frozen=True)
class EchoResult:
    """Runs of both models, a pair a round; the figures are their medians."""

    echo: tuple[PerfResult, ...]
    recommender: tuple[PerfResult, ...]

    @property
    def ratio(self) -> float:
        """Throughput, as a share of the echo's."""
        return middle(self.recommender, "throughput") / middle(self.echo, "throughput")


def middle(runs: tuple[PerfResult, ...], name: str) -> float:
    """The median of a field over runs."""
    return float(median(getattr(run, name) for run in runs))


def measure_echo(material: Material, plan: EchoPlan) -> EchoResult:
    """One new event a request, from users whose histories are the dataset's.

    Raises:
        MachineError, ServerError: as `Server.start` and `run_perf_analyzer`.
    """
    histories = material.recorded(plan.users)
    users = [f"user-{number}" for number in range(len(histories))]
    runs: dict[str, list[PerfResult]] = {EXTRAS["echo"].name: [], MODEL: []}
    engine = EngineConfig(memory_bytes=1 << 30)  # room for everyone's window
    with material.serve(engine, ["echo"]) as server, TemporaryDirectory(dir=material.scratch) as folder:
        fill(server.grpc_url, users, histories)
        requests = Path(folder, "requests.json")
        last = [np.array([[UNCHECKED_POSITION, *history[-1]]]) for history in histories]
        write_requests(requests, list(zip(users, last, strict=True)))
        for _ in range(plan.rounds):
            for model, results in runs.items():
                results += run_perf_analyzer(
                    server.grpc_url, model, requests, [plan.concurrency], window_ms=plan.window_ms
                )
    echo, recommender = runs.values()
    return EchoResult(tuple(echo), tuple(recommender))
