"""Part `residency`: what an idle user costs in host memory, and what int8 memory saves and costs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from longrec.config import EngineConfig, parse_config
from longrec.datasets import leave_one_out
from longrec.errors import ServerError
from longrec.protocol import UNCHECKED_POSITION
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.event_log.log import Append
from longrec.python_backend.memory_pool import MemoryPool
from longrec.python_backend.query import Query
from longrec.server.bench import resident
from longrec.server.bench.material import Material
from longrec.server.bench.threads import one_thread
from longrec.training import ranking_metrics

__all__ = ["ResidencyPlan", "ResidencyResult", "measure_residency"]

K = 10
NO_EVENTS = np.empty((0, 2), np.int64)
BATCH = 64


@dataclass(frozen=True)
class ResidencyPlan:
    """How much to measure.

    Args:
        users: resident at once.
        events: of each.
        evaluated: of the dataset's users, at most, for NDCG.
        timeout_seconds: for the process that makes users resident.
    """

    users: int = 100_000
    events: int = 20
    evaluated: int = 1_000_000
    timeout_seconds: float = 600.0


@dataclass(frozen=True)
class ResidencyResult:
    """What came of it.

    Args:
        bytes_per_idle_user: host memory beside pages.
        page_bytes: of an event's keys and values of all layers, scales included, by memory dtype.
        ndcg: NDCG@10 on the dataset's test events, by memory dtype.
    """

    bytes_per_idle_user: float
    page_bytes: dict[str, float]
    ndcg: dict[str, float]

    @property
    def int8_bytes_ratio(self) -> float:
        """Of float32."""
        return self.page_bytes["int8"] / self.page_bytes["float32"]

    @property
    def int8_ndcg_ratio(self) -> float:
        """Of float32."""
        return self.ndcg["int8"] / self.ndcg["float32"]


def measure_residency(material: Material, plan: ResidencyPlan) -> ResidencyResult:
    """All three figures.

    Raises:
        ArgumentError: the engine has no int8 memory. ServerError: users couldn't be made resident.
    """
    page_bytes, ndcg = {}, {}
    for dtype in ("float32", "int8"):
        page_bytes[dtype], ndcg[dtype] = _ndcg(material, dtype, plan)
    return ResidencyResult(_bytes_per_idle_user(material, plan), page_bytes, ndcg)


def _ndcg(material: Material, dtype: str, plan: ResidencyPlan) -> tuple[float, float]:
    """Bytes of an event in memory, and NDCG@10 of answers from such memory."""
    config = parse_config(EngineConfig, {"memory_bytes": 1 << 30, "memory_dtype": dtype}, "residency")
    with TemporaryDirectory(dir=material.scratch) as folder, one_thread():
        log = LmdbLog(Path(folder, "log"), durability="none", max_bytes=1 << 30)
        try:
            engine = Engine(material.network, log, config)
            ranks = np.concatenate(list(_ranks(engine, material, plan.evaluated)))
            return _bytes_per_event(engine.pool), ranking_metrics(ranks, (K,)).ndcg[K]
        finally:
            log.close()


def _bytes_per_event(pool: MemoryPool) -> float:
    """Of keys, values and their scales in all layers."""
    return sum(tensor.nbytes for tensor in pool.store.tensors) / (pool.num_pages * pool.page_size)


def _ranks(engine: Engine, material: Material, limit: int) -> Iterator[NDArray[np.int64]]:
    """Ranks, from 0, of the users' last events; `K` where an event isn't among the K best.

    A user is warm before the event that is asked after arrives: the answer comes from memory as it is stored.
    """
    dataset, split = material.dataset, leave_one_out(material.dataset)
    evaluated = split.evaluated[:limit]
    for begin in range(0, len(evaluated), BATCH):
        users = evaluated[begin : begin + BATCH].tolist()
        histories = [dataset.events(user)[:, 1:] for user in users]
        keys = [f"user-{user}".encode() for user in users]
        engine.log.append([Append(key, 0, rows[:-2]) for key, rows in zip(keys, histories, strict=True)])
        engine.answer_all([Query(key, NO_EVENTS, UNCHECKED_POSITION, None, 1) for key in keys])
        answers = engine.answer_all(
            [Query(key, rows[-2:-1], len(rows) - 2, None, K) for key, rows in zip(keys, histories, strict=True)]
        )
        found = np.stack([answer.items for answer in answers]) == np.array([[rows[-1, 0]] for rows in histories])
        yield np.where(found.any(axis=1), found.argmax(axis=1), K)


def _bytes_per_idle_user(material: Material, plan: ResidencyPlan) -> float:
    """In a process of its own. The network has one layer and one key/value head, so that 100,000 users' pages fit into
    a small machine; what is beside the pages doesn't depend on them."""
    model = material.network.config.model_copy(update={"num_layers": 1, "num_kv_heads": 1})
    sizes = json.dumps({"model": model.model_dump(), "users": plan.users, "events": plan.events})
    command = [sys.executable, "-m", resident.__name__]
    try:
        done = subprocess.run(
            command, input=sizes, capture_output=True, text=True, timeout=plan.timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ServerError(f"residency: expected {plan.users} users within {plan.timeout_seconds:g} s") from None
    if done.returncode:
        raise ServerError(f"residency: {(done.stderr.strip() or 'no output').splitlines()[-1]}")
    return float(done.stdout)
