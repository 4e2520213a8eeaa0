"""Steps over fixed buffers: padded, replayed with other users, and as exact as steps that allocate."""

import numpy as np
import pytest
import torch

from longrec.config import EngineConfig
from longrec.python_backend.engine import Engine
from longrec.python_backend.memory_pool import NO_TIME, MemoryPool
from longrec.python_backend.query import Query
from longrec.python_backend.step import DecodeStep, StepInputs, StepRunner


@pytest.fixture
def make_pool(network):
    def make():
        config = EngineConfig(page_size=16, inline_events=32, chunk_events=32, memory_bytes=1 << 20)
        pool = MemoryPool(network.config, config, torch.device("cpu"), torch.float32)
        for pages in (*pool.store.k_pages, *pool.store.v_pages):
            pages.fill_(torch.nan)
        return pool

    return make


def open_users(pool, count):
    return np.array([pool.open(b"%d" % user, 0, NO_TIME) for user in range(count)])


def inputs(pool, rows, counts, seed):
    """The next `counts` random events of each row, for which pages are reserved."""
    rng, counts = np.random.default_rng(seed), np.asarray(counts)
    total = counts.sum()
    pool.begin_step()
    pool.touch(rows)
    pool.reserve(rows, counts)
    positions = np.concatenate([pool.length[row] + np.arange(count) for row, count in zip(rows, counts, strict=True)])
    return StepInputs(
        rng.integers(0, 98, total),
        rng.integers(0, 32, total),
        positions,
        pool.places(np.repeat(rows, counts), positions),
        np.cumsum([0, *counts], dtype=np.int32),
        *pool.pages(rows, counts),
        (pool.length[rows] - pool.first[rows]).astype(np.int32),
        np.zeros(total, np.int32),
    )


def advance(pool, rows, counts):
    pool.advance(rows, np.asarray(counts), np.zeros(len(rows), np.int64), torch.zeros(len(rows), pool.hidden.shape[1]))


@torch.inference_mode()
def test_a_padded_step_is_replayed_with_other_users_and_lengths(network, make_pool):
    fixed_pool, pool = make_pool(), make_pool()
    eager, decode = StepRunner(network, pool), DecodeStep(network, fixed_pool, 4)
    fixed_rows, free_rows = open_users(fixed_pool, 4), open_users(pool, 4)
    prefill = StepRunner(network, fixed_pool)
    counts = [30, 1, 16, 7]
    prefill.run(inputs(fixed_pool, fixed_rows, counts, 0))
    eager.run(inputs(pool, free_rows, counts, 0))
    advance(fixed_pool, fixed_rows, counts)
    advance(pool, free_rows, counts)
    rng = np.random.default_rng(1)
    for step in range(40):  # users leave the window's first page, and change places
        users = rng.permutation(4)[: rng.integers(1, 5)]
        own, theirs = fixed_rows[users], free_rows[users]
        ones = [1] * len(users)
        got = decode.run(inputs(fixed_pool, own, ones, step))
        expected = eager.run(inputs(pool, theirs, ones, step))
        np.testing.assert_allclose(got, expected, atol=1e-5)
        advance(fixed_pool, own, ones)
        advance(pool, theirs, ones)
    for fixed, free in zip(
        fixed_pool.store.k_pages + fixed_pool.store.v_pages, pool.store.k_pages + pool.store.v_pages, strict=True
    ):
        assert torch.equal(fixed.isnan(), free.isnan())  # empty rows write nothing


@torch.inference_mode()
def test_buffers_stay_where_they_are(network, make_pool, monkeypatch):
    pool, seen = make_pool(), []
    decode = DecodeStep(network, pool, 4)
    forward = type(network).forward

    def watched(self, items, gaps, positions, cu_seqlens, memory):
        tensors = (items, gaps, positions, cu_seqlens, *memory.k_pages, *memory.v_pages, *memory[2:6])
        seen.append([(tensor.data_ptr(), tensor.shape) for tensor in tensors])
        return forward(self, items, gaps, positions, cu_seqlens, memory)

    monkeypatch.setattr(type(network), "forward", watched)
    for users in (1, 4, 2):
        decode.run(inputs(pool, open_users(pool, users), [1] * users, users))
    assert seen[0] == seen[1] == seen[2]


def test_an_engine_over_fixed_buffers_answers_as_a_recompute_does(network, log, make_history, recompute):
    config = EngineConfig(page_size=16, inline_events=32, chunk_events=32, memory_bytes=1 << 20)
    engine = Engine(network, log, config, decode_batches=(2, 8))
    histories = {f"user {seed}": make_history(seed, 40) for seed in range(9)}
    rng = np.random.default_rng(0)
    sent = dict.fromkeys(histories, 0)
    for _ in range(40):
        users = rng.permutation(list(histories))[: rng.integers(1, 10)]
        batch = []
        for user in users:
            count = 1 if rng.random() < 0.9 else 3
            batch.append(Query(user.encode(), histories[user][sent[user] :][:count], sent[user], None, 5))
            sent[user] = min(sent[user] + count, 40)
        for user, answer in zip(users, engine.answer_all(batch), strict=True):
            scores = recompute(histories[user][: sent[user]])
            np.testing.assert_allclose(answer.scores, np.sort(scores)[::-1][:5], atol=1e-4)


def test_half_precision_answers_are_those_of_its_own_recompute(network, log, make_history):
    half = type(network)(network.config).eval()
    half.load_state_dict(network.state_dict())
    half = half.to(torch.bfloat16)
    config = EngineConfig(page_size=16, inline_events=32, chunk_events=32, memory_bytes=1 << 20, dtype="bfloat16")
    engine, history = Engine(half, log, config), make_history(1, 30)
    assert engine.pool.store.k_pages[0].dtype == torch.bfloat16
    (whole,) = engine.answer_all([Query(b"whole", history, 0, None, 97)])
    for start in range(30):
        (answer,) = engine.answer_all([Query(b"single", history[start : start + 1], start, None, 97)])
    by_item = np.empty((2, 97))
    for row, found in zip(by_item, (whole, answer), strict=True):
        row[found.items] = found.scores
    assert np.abs(by_item[0] - by_item[1]).max() < 0.05 * np.abs(by_item[0]).max()
