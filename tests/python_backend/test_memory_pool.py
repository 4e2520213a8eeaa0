"""Pages are handed out once, the longest unused user goes first, and users of the running batch never go."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from longrec.config import EngineConfig, ModelConfig
from longrec.python_backend.memory_pool import MemoryPool, UserMemory

MODEL = ModelConfig(num_items=5, dim=8, num_layers=1, num_heads=1, num_kv_heads=1, window=20)
PAGE_BYTES = 2 * 16 * 8 * 4


def make_pool(pages=5):
    engine = EngineConfig(page_size=16, max_step_events=16, memory_bytes=pages * PAGE_BYTES)
    return MemoryPool(MODEL, engine, torch.device("cpu"), torch.float32)


def add(pool, user, num_events, keep=()):
    memory = UserMemory(0, None)
    pool.put(user, memory)
    held = pool.reserve(memory, num_events, keep={user, *keep})
    if held:
        pool.advance(memory, num_events)
    return memory if held else None


def test_the_longest_unused_user_is_evicted():
    pool = make_pool()
    for user in (b"a", b"b", b"c"):
        add(pool, user, 10)
    pool.get(b"a")
    assert add(pool, b"d", 48) is not None  # three pages: two are free
    assert pool.get(b"b") is None
    assert pool.get(b"a") is not None
    assert pool.evictions == 1


def test_a_user_of_the_running_batch_is_never_evicted():
    pool = make_pool()
    memories = [add(pool, user, 10) for user in (b"a", b"b", b"c")]
    pages = [list(memory.pages) for memory in memories]
    assert add(pool, b"d", 48, keep={b"a", b"b", b"c"}) is None
    assert [memory.pages for memory in memories] == pages
    assert pool.evictions == 0
    assert pool.num_free_pages == 2


def test_slots_run_through_the_users_own_pages():
    pool = make_pool()
    memory = add(pool, b"u", 10)
    assert pool.reserve(memory, 12, keep={b"u"})
    slots = pool.slots(memory, 12)
    first, second = memory.pages
    np.testing.assert_array_equal(slots, [*(first * 16 + np.arange(10, 16)), *(second * 16 + np.arange(6))])


def test_pages_that_left_the_window_are_free():
    pool = make_pool()
    memory = add(pool, b"u", 32)
    assert (memory.first, len(memory.pages)) == (0, 2), "the next event still sees event 13"
    pool.reserve(memory, 3, keep={b"u"})
    pool.advance(memory, 3)
    assert (memory.first, len(memory.pages), pool.num_free_pages) == (16, 2, 3), "the next event sees 16 and later"


@given(st.lists(st.tuples(st.sampled_from(b"abcdef"), st.integers(1, 16), st.booleans()), max_size=60))
def test_every_page_has_one_owner(steps):
    pool = make_pool()
    for letter, count, drop in steps:
        user = bytes([letter])
        if drop:
            pool.drop(user)
            continue
        memory = pool.get(user)
        if memory is None:
            memory = UserMemory(0, None)
            pool.put(user, memory)
        assert pool.reserve(memory, count, keep={user})
        pool.advance(memory, count)
        held = [page for name in b"abcdef" if (m := pool.get(bytes([name]))) for page in m.pages]
        assert len(held) == len(set(held))
        assert len(held) + pool.num_free_pages == pool.num_pages
        assert memory.length - memory.first <= len(memory.pages) * 16
        assert memory.first <= max(0, memory.length - 19), "an event that the next one sees has lost its page"
