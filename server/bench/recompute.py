"""Part `recompute`: what memory is worth, against the same network without it, by the length of the history.

The window is wider than every history, so that a history counts whole. The baseline, in process and served, is one
forward pass over the histories, packed, attention by PyTorch's SDPA, and scores for the last events alone. In process
there is a stronger one beside it, pruned: it also leaves out what doesn't reach the last event's state.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from longrec.config import EngineConfig
from longrec.errors import ServerError
from longrec.protocol import MODEL, UNCHECKED_POSITION
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.event_log.log import Append
from longrec.python_backend.query import Answer, Query
from longrec.python_backend.recompute import RecomputeEngine
from longrec.server.bench.load import fill
from longrec.server.bench.material import Material
from longrec.server.bench.running import write_requests
from longrec.server.bench.threads import one_thread
from longrec.server.model_configs import EXTRAS
from longrec.server.perf_analyzer import run_perf_analyzer

__all__ = ["HistoryPlan", "HistoryResult", "RecomputePlan", "Step", "measure_recompute"]

WINDOW = 4096
TOLERANCE = 1e-4  # of scores: float32, sums in another order
NO_EVENTS = np.empty((0, 2), np.int64)
K = 10


@dataclass(frozen=True)
class HistoryPlan:
    """One length of history.

    Args:
        history: events of each user before the measured one.
        groups: of users in process; other users, so that no history grows by more than a group's steps.
        users: through the server. Each run appends: the more users, the less their histories grow.
        window_ms: of perf_analyzer; the baseline must answer several batches in it.
    """

    history: int
    groups: int
    users: int
    window_ms: int


@dataclass(frozen=True)
class RecomputePlan:
    """How much to measure.

    Args:
        histories: the lengths.
        batch: users of a step, one event each.
        steps: of a group, one after the other, of one engine and then of the other.
        concurrency: requests in flight.
        rounds: runs of perf_analyzer on each model, in turns.
    """

    histories: tuple[HistoryPlan, ...] = (
        HistoryPlan(128, 12, 1024, 1000),
        HistoryPlan(512, 8, 512, 1000),
        HistoryPlan(2048, 5, 128, 2000),
    )
    batch: int = 16
    steps: int = 3
    concurrency: int = 32
    rounds: int = 3


@dataclass(frozen=True)
class Step:
    """Medians of one engine's steps.

    Args:
        seconds: of a whole step: the log's append, the network, the ranking.
        network_seconds: of the network in it.
    """

    seconds: float
    network_seconds: float


@dataclass(frozen=True)
class HistoryResult:
    """At one length: a step, and answers a second; of the engine, and of the one without memory.

    Args:
        pruned_step: of the one that computes what reaches the last event's state alone.
    """

    history: int
    step: Step
    recompute_step: Step
    pruned_step: Step
    throughput: float
    recompute_throughput: float

    @property
    def step_ratio(self) -> float:
        """How many times longer a step takes without memory."""
        return self.recompute_step.seconds / self.step.seconds

    @property
    def step_ratio_pruned(self) -> float:
        """The same, against the pruned pass."""
        return self.pruned_step.seconds / self.step.seconds

    @property
    def throughput_ratio(self) -> float:
        """How many times more is answered with memory."""
        return self.throughput / self.recompute_throughput


def measure_recompute(material: Material, plan: RecomputePlan) -> tuple[HistoryResult, ...]:
    """Steps in process, then both served models in one server.

    Raises:
        MachineError, ServerError: as `Server.start` and `run_perf_analyzer`; and where the two engines' answers differ.
    """
    wide = material.with_window(WINDOW)
    with one_thread():
        steps = [_measure_steps(wide, part, plan) for part in plan.histories]
    with wide.serve(EngineConfig(memory_bytes=1 << 30), ["recompute"]) as server:
        throughputs = [_measure_throughput(wide, server.grpc_url, part, plan) for part in plan.histories]
    return tuple(
        HistoryResult(part.history, *step, *throughput)
        for part, step, throughput in zip(plan.histories, steps, throughputs, strict=True)
    )


def _measure_steps(material: Material, part: HistoryPlan, plan: RecomputePlan) -> tuple[Step, Step, Step]:
    """A step of the engine and of both without memory, in this process."""
    count = plan.batch * (1 + part.groups)
    users = [f"user-{number}".encode() for number in range(count)]
    histories = material.drawn([part.history] * count, seed=part.history)
    config = EngineConfig(memory_bytes=64 << 20, inline_events=2048, max_horizon=1, max_explain=0)
    with TemporaryDirectory(dir=material.scratch) as folder:
        logs = [
            LmdbLog(Path(folder, name), durability="none", max_bytes=1 << 30) for name in ("memory", "whole", "pruned")
        ]
        try:
            engines = (
                Engine(material.network, logs[0], EngineConfig(memory_bytes=1 << 30)),
                RecomputeEngine(material.network, logs[1], config),
                RecomputeEngine(material.network, logs[2], config, pruned=True),
            )
            for log in logs:
                log.append([Append(user, 0, rows) for user, rows in zip(users, histories, strict=True)])
            engines[0].answer_all([Query(user, NO_EVENTS, UNCHECKED_POSITION, None, 1) for user in users])
            taken: list[list[Step]] = [[] for _ in engines]
            for begin in range(0, count, plan.batch):
                group = slice(begin, begin + plan.batch)
                queries = [
                    Query(user, rows[-1:], UNCHECKED_POSITION, None, K)
                    for user, rows in zip(users[group], histories[group], strict=True)
                ]
                answers, *others = (
                    _take_steps(engine, queries, plan.steps, into) for engine, into in zip(engines, taken, strict=True)
                )
                for other in others:
                    _check_same(answers, other)
                if not begin:  # the first steps of each compile and allocate
                    for steps in taken:
                        steps.clear()
        finally:
            for log in logs:
                log.close()
    engine, whole, pruned = (
        Step(median(step.seconds for step in steps), median(step.network_seconds for step in steps)) for steps in taken
    )
    return engine, whole, pruned


def _take_steps(engine: Engine, queries: Sequence[Query], count: int, into: list[Step]) -> list[Answer]:
    """Answer the same queries so many times; the last answers."""
    for _ in range(count):
        network, began = engine.observations.step_seconds.total, time.perf_counter()
        answers = engine.answer(queries)
        into.append(Step(time.perf_counter() - began, engine.observations.step_seconds.total - network))
    known = [answer for answer in answers if isinstance(answer, Answer)]
    if len(known) != len(queries):
        raise ServerError("recompute: expected every warm user to be answered at once, got deferred answers")
    return known


def _check_same(answers: Sequence[Answer], others: Sequence[Answer]) -> None:
    for one, other in zip(answers, others, strict=True):
        if one.error or other.error or not np.allclose(one.scores, other.scores, atol=TOLERANCE, rtol=0):
            raise ServerError("recompute: expected the engines' scores to agree, got others: no ratio of wrong answers")


def _measure_throughput(material: Material, url: str, part: HistoryPlan, plan: RecomputePlan) -> tuple[float, float]:
    """Answers a second: medians of runs in turns."""
    users = [f"history-{part.history}-{number}" for number in range(part.users)]
    histories = material.drawn([part.history] * part.users, seed=part.history)
    runs: dict[str, list[float]] = {MODEL: [], EXTRAS["recompute"].name: []}
    for model in runs:
        fill(url, users, histories, warm=model == MODEL, model=model)
    with TemporaryDirectory(dir=material.scratch) as folder:
        requests = Path(folder, "requests.json")
        last = [np.array([[UNCHECKED_POSITION, *history[-1]]]) for history in histories]
        write_requests(requests, list(zip(users, last, strict=True)))
        for _ in range(plan.rounds):
            for model, results in runs.items():
                (result,) = run_perf_analyzer(url, model, requests, [plan.concurrency], window_ms=part.window_ms)
                results.append(result.throughput)
    engine, recompute = runs.values()
    return median(engine), median(recompute)
