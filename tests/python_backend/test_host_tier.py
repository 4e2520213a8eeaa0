"""Evicted memories come back from the host's memory, exact, or are rebuilt where that is quicker."""

import numpy as np
import pytest
import torch

from longrec.config import EngineConfig
from longrec.modeling import MemoryLayout
from longrec.python_backend.engine import Engine
from longrec.python_backend.host_tier import HostTier, Saved
from longrec.python_backend.pages import PageStore
from longrec.python_backend.query import Query

PAGE_BYTES = 2 * 2 * 16 * 2 * 8 * 4  # of the test network
PAGE = MemoryLayout(num_layers=2, shape=(16, 1, 8), dtype=torch.float32)
SCALED = PAGE._replace(dtype=torch.int8)


def serve_in_turns(network, log, make_history, recompute, *, num_users, **settings):
    """An engine whose pool holds two users or three, asked for each of many in turn."""
    config = EngineConfig(page_size=16, inline_events=8, chunk_events=24, **settings)
    engine = Engine(network, log, config)
    histories = {f"user {seed}".encode(): make_history(seed, 60) for seed in range(num_users)}
    for start in range(0, 60, 6):
        for user, history in histories.items():
            (answer,) = engine.answer_all([Query(user, history[start : start + 6], start, None, 5)])
            scores = recompute(history[: start + 6])
            np.testing.assert_allclose(answer.scores, np.sort(scores)[::-1][:5], atol=1e-4)
    return engine


def test_the_evicted_come_back_without_the_log(network, log, make_history, recompute):
    sizes = {"memory_bytes": 5 * PAGE_BYTES, "host_memory_bytes": 64 * PAGE_BYTES}
    engine = serve_in_turns(network, log, make_history, recompute, num_users=9, **sizes)
    assert engine.pool.evictions > 50
    assert engine.pool.pages_restored > 50
    assert engine.observations.events_rebuilt == 0
    assert engine.observations.events_computed == 9 * 60


def test_a_tier_that_is_too_small_forgets_the_first_and_the_log_stands_in(network, log, make_history, recompute):
    sizes = {"memory_bytes": 5 * PAGE_BYTES, "host_memory_bytes": 7 * PAGE_BYTES}
    engine = serve_in_turns(network, log, make_history, recompute, num_users=6, **sizes)
    assert engine.observations.events_rebuilt > 0


def test_a_memory_that_fell_behind_the_receptive_field_is_not_brought_back(
    network, log, make_history, recompute, make_engine
):
    sizes = {"memory_bytes": 5 * PAGE_BYTES, "host_memory_bytes": 64 * PAGE_BYTES}
    engine = serve_in_turns(network, log, make_history, recompute, num_users=6, **sizes)
    history = make_history(0, 200)
    make_engine().answer_all([Query(b"user 0", history[60:], 60, None, 0)])  # by way of another engine
    restored = engine.pool.pages_restored
    (answer,) = engine.answer_all([Query(b"user 0", history[200:], -1, None, 5)])
    whole = np.concatenate([make_history(0, 60), history[60:]])
    np.testing.assert_allclose(answer.scores, np.sort(recompute(whole))[::-1][:5], atol=1e-4)
    assert engine.pool.pages_restored == restored


@pytest.mark.parametrize("page", [PAGE, SCALED], ids=["float32", "int8"])
def test_pages_scales_and_state_return_as_they_were(page):
    generator = torch.Generator().manual_seed(0)
    store = PageStore(page, 8, torch.device("cpu"))
    for tensor in store.tensors:
        tensor.copy_(torch.randint(-100, 100, tensor.shape, generator=generator))
    before = [tensor.clone() for tensor in store.tensors]
    hidden = torch.randn(8, 8, generator=generator)
    tier = HostTier(page, hidden, 4 * page.page_bytes)
    state = hidden[3].clone()
    tier.save(b"u", (0, 40, 7), store, torch.tensor([5, 1, 6]), hidden[3])
    assert tier.get(b"u")[:3] == (0, 40, 7)
    for tensor in store.tensors:
        tensor.zero_()
    tier.restore(b"u", store, torch.tensor([2, 7, 0]), hidden[4])
    for tensor, old in zip(store.tensors, before, strict=True):
        assert torch.equal(tensor[[2, 7, 0]], old[[5, 1, 6]])
    assert torch.equal(hidden[4], state)
    assert tier.get(b"u") is None


def test_the_first_saved_goes_first_and_what_is_too_large_is_not_kept():
    store, hidden = PageStore(PAGE, 8, torch.device("cpu")), torch.zeros(8, 8)
    tier = HostTier(PAGE, hidden, 4 * PAGE.page_bytes)
    for user, pages in ((b"a", [0, 1]), (b"b", [2]), (b"c", [3, 4]), (b"d", [0, 1, 2, 3, 4])):
        tier.save(user, (0, 10, 0), store, torch.tensor(pages), hidden[0])
    assert [user for user in (b"a", b"b", b"c", b"d") if tier.get(user)] == [b"b", b"c"]


def test_the_quicker_way_is_taken():
    tier = HostTier(PAGE, torch.zeros(8, 8), 4 * PAGE.page_bytes)
    tier.bytes_per_second = 1000.0 * PAGE.page_bytes  # a page a millisecond
    saved = Saved(0, 40, 0, (0, 1))
    assert tier.saves_time(saved, 5, 45, seconds_per_event=1e-3)
    assert not tier.saves_time(saved, 5, 45, seconds_per_event=1e-5)
    assert tier.saves_time(saved, 5, 45, seconds_per_event=0.0)
