"""Steps over fixed buffers: padded, replayed with other users, and as exact as steps that allocate."""

import numpy as np
import pytest
import torch

from longrec.config import EngineConfig
from longrec.python_backend.engine import Engine
from longrec.python_backend.memory_pool import MemoryPool, UserMemory
from longrec.python_backend.query import Query
from longrec.python_backend.step import DecodeStep, StepInputs, StepRunner


@pytest.fixture
def make_pool(network):
    def make():
        config = EngineConfig(page_size=16, max_step_events=32, memory_bytes=1 << 20)
        pool = MemoryPool(network.config, config, torch.device("cpu"), torch.float32)
        for pages in (*pool.k_pages, *pool.v_pages):
            pages.fill_(torch.nan)
        return pool

    return make


def inputs(pool, memories, counts, seed):
    """The next `counts` random events of each memory, for which pages are reserved."""
    rng, total = np.random.default_rng(seed), sum(counts)
    for memory, count in zip(memories, counts, strict=True):
        assert pool.reserve(memory, count, keep=())
    numbered = [np.arange(memory.length, memory.length + count) for memory, count in zip(memories, counts, strict=True)]
    return StepInputs(
        rng.integers(0, 98, total),
        rng.integers(0, 32, total),
        np.concatenate(numbered),
        np.concatenate([pool.slots(memory, count) for memory, count in zip(memories, counts, strict=True)]),
        np.cumsum([0, *counts], dtype=np.int32),
        np.cumsum([0, *(len(memory.pages) for memory in memories)], dtype=np.int32),
        np.concatenate([memory.pages for memory in memories]).astype(np.int32),
        np.array([memory.length - memory.first for memory in memories], np.int32),
    )


def advance(pool, memories, counts):
    for memory, count in zip(memories, counts, strict=True):
        pool.advance(memory, count)


@torch.inference_mode()
def test_a_padded_step_is_replayed_with_other_users_and_lengths(network, make_pool):
    fixed_pool, pool = make_pool(), make_pool()
    eager, decode = StepRunner(network, pool), DecodeStep(network, fixed_pool, 4)
    fixed_memories, memories = [UserMemory(0, None) for _ in range(4)], [UserMemory(0, None) for _ in range(4)]
    prefill = StepRunner(network, fixed_pool)
    counts = [30, 1, 16, 7]
    prefill.run(inputs(fixed_pool, fixed_memories, counts, 0))
    eager.run(inputs(pool, memories, counts, 0))
    advance(fixed_pool, fixed_memories, counts)
    advance(pool, memories, counts)
    rng = np.random.default_rng(1)
    for step in range(40):  # users leave the window's first page, and change places
        users = rng.permutation(4)[: rng.integers(1, 5)]
        own, theirs = [fixed_memories[u] for u in users], [memories[u] for u in users]
        ones = [1] * len(users)
        got = decode.run(inputs(fixed_pool, own, ones, step))
        expected = eager.run(inputs(pool, theirs, ones, step))
        np.testing.assert_allclose(got, expected, atol=1e-5)
        advance(fixed_pool, own, ones)
        advance(pool, theirs, ones)
    for fixed, free in zip(fixed_pool.k_pages + fixed_pool.v_pages, pool.k_pages + pool.v_pages, strict=True):
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
        memories = [UserMemory(0, None) for _ in range(users)]
        decode.run(inputs(pool, memories, [1] * users, users))
    assert seen[0] == seen[1] == seen[2]


def test_an_engine_over_fixed_buffers_answers_as_a_recompute_does(network, log, make_history, recompute):
    config = EngineConfig(page_size=16, max_step_events=32, memory_bytes=1 << 20)
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
        for user, answer in zip(users, engine.answer(batch), strict=True):
            scores = recompute(histories[user][: sent[user]])
            np.testing.assert_allclose(answer.scores, np.sort(scores)[::-1][:5], atol=1e-4)


def test_half_precision_answers_are_those_of_its_own_recompute(network, log, make_history):
    half = type(network)(network.config).eval()
    half.load_state_dict(network.state_dict())
    half = half.to(torch.bfloat16)
    config = EngineConfig(page_size=16, max_step_events=32, memory_bytes=1 << 20, dtype="bfloat16")
    engine, history = Engine(half, log, config), make_history(1, 30)
    assert engine.pool.k_pages[0].dtype == torch.bfloat16
    (whole,) = engine.answer([Query(b"whole", history, 0, None, 97)])
    for start in range(30):
        (answer,) = engine.answer([Query(b"single", history[start : start + 1], start, None, 97)])
    by_item = np.empty((2, 97))
    for row, found in zip(by_item, (whole, answer), strict=True):
        row[found.items] = found.scores
    assert np.abs(by_item[0] - by_item[1]).max() < 0.05 * np.abs(by_item[0]).max()
