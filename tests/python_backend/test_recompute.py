"""The engine without memory against the engine with one, query by query, each over a log of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from longrec.config import EngineConfig, ModelConfig
from longrec.errors import ArgumentError
from longrec.modeling import FAMILIES, build_network, recompute_scores
from longrec.protocol import UNCHECKED_POSITION, Status
from longrec.python_backend import windows
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.query import Query
from longrec.python_backend.recompute import RecomputeEngine

TOLERANCE = 1e-4


@pytest.fixture(params=[False, True], ids=["whole", "pruned"])
def baseline(request, network, tmp_path: Path) -> Iterator[RecomputeEngine]:
    log = LmdbLog(tmp_path / "own log", durability="none", max_bytes=64 << 20)
    config = EngineConfig(memory_bytes=4 << 20, inline_events=2048, max_horizon=1, max_explain=0)
    yield RecomputeEngine(network, log, config, pruned=request.param)
    log.close()


def query(user: str, rows: np.ndarray, *, position: int = UNCHECKED_POSITION, k: int = 8, candidates=None) -> Query:
    return Query(user.encode(), rows, position, candidates, k)


def assert_same(answers, expected):
    for answer, wanted in zip(answers, expected, strict=True):
        assert (answer.status, answer.length, answer.error) == (wanted.status, wanted.length, wanted.error)
        np.testing.assert_allclose(answer.scores, wanted.scores, atol=TOLERANCE)
        np.testing.assert_array_equal(answer.items, wanted.items)


def test_answers_equal_the_engine_with_memory(
    baseline: RecomputeEngine, make_engine: Callable[..., Engine], make_history, monkeypatch
):
    monkeypatch.setattr(windows, "PASS_EVENTS", 60)  # several passes a batch
    engine, rng = make_engine(), np.random.default_rng(0)
    histories = {f"user {seed}": make_history(seed, 90) for seed in range(6)}
    sent = dict.fromkeys(histories, 0)
    for _ in range(12):
        batch = []
        for user in rng.choice(list(histories), size=8):  # a user may come twice, and may bring nothing
            start, stop = sent[user], min(90, sent[user] + int(rng.choice([0, 1, 3, 15])))
            candidates = np.array([3, 40, 7, 10_000]) if rng.random() < 0.2 else None
            batch.append(query(user, histories[user][start:stop], position=start, candidates=candidates))
            sent[user] = stop
        assert_same(baseline.answer(batch), engine.answer_all(batch))
    assert max(sent.values()) > baseline.network.config.receptive_field + 1, "a history must outgrow the field"


def test_retries_gaps_and_appends_alone(baseline: RecomputeEngine, recompute, make_history):
    history = make_history(1, 40)
    appended, gap, retried, asked = baseline.answer(
        [
            query("u", history[:30], position=0, k=0),
            query("u", history[35:], position=35),
            query("u", history[25:36], position=25),
            query("u", history[:0]),
        ]
    )
    assert (appended.length, gap.status, gap.length, retried.length, asked.length) == (30, Status.GAP, 30, 36, 36)
    best = np.sort(recompute(history[:36]))[::-1][:8]
    np.testing.assert_allclose(retried.scores, best, atol=TOLERANCE)
    np.testing.assert_allclose(asked.scores, best, atol=TOLERANCE)


def test_what_goes_through_memory_is_refused(network, log):
    with pytest.raises(ArgumentError, match="max_horizon=1 and max_explain=0: there is no memory, got max_horizon=16"):
        RecomputeEngine(network, log, EngineConfig(memory_bytes=4 << 20))


def test_nothing_is_kept(baseline: RecomputeEngine, make_history):
    baseline.answer([query("u", make_history(1, 30))])
    assert baseline.most_users == 0
    assert baseline.observations.memory_misses == 1
    assert baseline.observations.events_computed == baseline.network.config.receptive_field
    assert not baseline.has_work


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "transformer"])
def test_other_families_are_recomputed_by_their_own_networks(family: str, log, make_history):
    torch.manual_seed(0)
    config = ModelConfig(num_items=97, family=family, dim=16, hidden_dim=16, window=12)
    network = build_network(config).eval()
    engine = RecomputeEngine(network, log, EngineConfig(inline_events=2048, max_horizon=1, max_explain=0))
    histories = [make_history(seed, 40) for seed in range(3)]
    for start in range(0, 40, 8):
        batch = [query(f"{at}", history[start : start + 8]) for at, history in enumerate(histories)]
        for answer, history in zip(engine.answer(batch), histories, strict=True):
            (scores,) = recompute_scores(network, history[:, 0], history[:, 1], np.array([start + 8]))
            np.testing.assert_allclose(answer.scores, np.sort(scores)[::-1][:8], atol=TOLERANCE)
