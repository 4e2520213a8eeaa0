"""Pages and blocks of the host tier are void from the moment they are free: here they are filled with NaN then, and
answers are as ever, for nobody reads what they haven't written."""

import numpy as np
import pytest
import torch

from longrec.config import EngineConfig
from longrec.python_backend.engine import Engine
from longrec.python_backend.query import Answer, Query
from longrec.python_backend.settings import Settings

PAGE_BYTES = 2 * 2 * 16 * 2 * 8 * 4  # of the test network


def poison(tensor, places):
    tensor[places] = torch.nan if tensor.is_floating_point() else -128


def poison_what_is_freed(monkeypatch, engine):
    """Everything is poisoned now, and each page and block again whenever it is freed."""
    pool, tier = engine.pool, engine.pool.tier

    def poison_pages(pages):
        for tensor in pool.store.tensors:
            poison(tensor, torch.from_numpy(np.asarray(pages)).long())

    def poison_blocks(slots):
        for tensor in (*tier._blocks, tier._hidden):
            poison(tensor, list(slots))

    poison_pages(np.arange(pool.num_pages))
    poison(pool.hidden, slice(None))
    poison_blocks(range(len(tier._hidden)))
    free_pages, release, drop = pool._free_pages, pool._release, tier.drop

    def free_poisoned(pages):
        poison_pages(pages.copy())
        free_pages(pages)

    def release_poisoned(row):
        release(row)
        poison(pool.hidden, row)

    def drop_poisoned(user):
        saved = tier.get(user)
        drop(user)
        poison_blocks(() if saved is None else saved.slots)

    monkeypatch.setattr(pool, "_free_pages", free_poisoned)
    monkeypatch.setattr(pool, "_release", release_poisoned)
    monkeypatch.setattr(tier, "drop", drop_poisoned)


def assert_nobody_reads_poison(engine):
    """What a user's length says is there was written by their own events."""
    pool, tier = engine.pool, engine.pool.tier
    floats = [tensor for tensor in pool.store.tensors if tensor.is_floating_point()]
    for row in pool._rows.values():
        count = int(pool.length[row] - pool.first[row])
        places = np.arange(count)
        pages = torch.from_numpy(pool._tables[row][places // pool.page_size]).long()
        for tensor in floats:
            assert torch.isfinite(tensor[pages, torch.from_numpy(places % pool.page_size)]).all()
        assert not count or torch.isfinite(pool.hidden[row]).all()
    for saved in tier._saved.values():
        count = saved.length - saved.first
        for tensor in tier._blocks:
            blocks = tensor[list(saved.slots)].transpose(1, 2).flatten(0, 1)  # [events, 2 * layers, ...]
            assert not tensor.is_floating_point() or torch.isfinite(blocks[:count]).all()
        assert torch.isfinite(tier._hidden[saved.slots[0]]).all()


@pytest.mark.parametrize("memory_dtype", ["same", "int8"])
def test_poison_in_free_pages_reaches_nobody(network, log, make_history, recompute, monkeypatch, memory_dtype):
    page_bytes = PAGE_BYTES if memory_dtype == "same" else PAGE_BYTES * (1 + 4 / 8) / 4
    config = EngineConfig(
        page_size=16,
        inline_events=8,
        chunk_events=24,
        memory_bytes=int(11 * page_bytes),
        host_memory_bytes=int(8 * page_bytes),
        memory_dtype=memory_dtype,
    )
    engine = Engine(network, log, config)
    poison_what_is_freed(monkeypatch, engine)
    rng = np.random.default_rng(5)
    users = [b"user %d" % number for number in range(9)]
    histories = [make_history(number, 200) for number in range(9)]
    sent = [0] * 9
    for _ in range(40):
        queries = []
        for number in rng.choice(9, 2, replace=False):
            start, sent[number] = sent[number], min(200, sent[number] + int(rng.choice([0, 1, 3, 30])))
            events = histories[number][start : sent[number]]
            rollout = Settings(k=5, horizon=3, beam=2, explain=2)
            settings = rollout if rng.random() < 0.3 else Settings(k=5, explain=2 if rng.random() < 0.3 else 0)
            queries.append(Query(users[number], events, -1, None, 5, settings))
        answers = engine.answer_all(queries)
        assert_nobody_reads_poison(engine)
        for query, answer in zip(queries, answers, strict=True):
            assert isinstance(answer, Answer)
            assert answer.error is None
            assert np.isfinite(answer.scores).all()
            if memory_dtype == "same":  # quantised memories answer by the way they were cut
                history = histories[users.index(query.user)][: answer.length]
                first = np.atleast_2d(answer.scores)[0]
                expected = recompute(history)
                np.testing.assert_allclose(np.sort(first), np.sort(expected)[-5:], atol=1e-4)
    assert engine.pool.evictions > 10
    assert engine.pool.pages_restored > 5
