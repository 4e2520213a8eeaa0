"""Pages are handed out once, the longest unused user goes first, and neither a step's users nor pinned ones ever go."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longrec.config import EngineConfig, ModelConfig
from longrec.errors import MachineError
from longrec.python_backend.memory_pool import NO_ROW, NO_TIME, MemoryPool

MODEL = ModelConfig(num_items=5, dim=8, num_layers=1, num_heads=1, num_kv_heads=1, window=20)
PAGE_BYTES = 2 * 16 * 8 * 4


def make_pool(pages=5):
    engine = EngineConfig(page_size=16, inline_events=16, chunk_events=16, memory_bytes=pages * PAGE_BYTES)
    return MemoryPool(MODEL, engine, torch.device("cpu"), torch.float32)


def step(pool, counts):
    """A step in which each user gets so many events; who fits."""
    pool.begin_step()
    rows = {user: pool.row(user) for user in counts}
    pool.touch([row for row in rows.values() if row != NO_ROW])
    rows |= {user: pool.open(user, 0, NO_TIME) for user, row in rows.items() if row == NO_ROW}
    opened = [user for user, row in rows.items() if row != NO_ROW]
    numbers = np.array([rows[user] for user in opened], np.int64)
    events = np.array([counts[user] for user in opened], np.int64)
    fitting = pool.num_fitting(numbers, events)
    for user in opened[fitting:]:
        if pool.length[pool.row(user)] == 0:
            pool.drop(user)
    numbers, events = numbers[:fitting], events[:fitting]
    pool.reserve(numbers, events)
    pairs = zip(numbers, events, strict=True)
    places = [pool.places(np.repeat(row, n), pool.length[row] + np.arange(n)) for row, n in pairs]
    pool.advance(numbers, events, np.zeros(fitting, np.int64), torch.zeros(fitting, MODEL.dim))
    return dict(zip(opened[:fitting], places, strict=True))


def pages_of(pool, user):
    return pool.pages(np.array([pool.row(user)]), np.array([0])).indices.tolist()


def test_the_longest_unused_user_is_evicted():
    pool = make_pool()
    for user in (b"a", b"b", b"c"):
        step(pool, {user: 10})
    step(pool, {b"a": 1})
    assert all(step(pool, {b"d": count}) for count in (16, 16, 15))
    assert b"b" not in pool
    assert b"a" in pool
    assert pool.evictions == 1


def test_a_user_of_the_running_step_is_never_evicted():
    pool = make_pool()
    step(pool, {b"a": 10, b"b": 10, b"c": 10})
    pages = [pages_of(pool, user) for user in (b"a", b"b", b"c")]
    found = step(pool, {b"a": 1, b"b": 1, b"c": 1, b"d": 16, b"e": 16, b"f": 16})
    assert list(found) == [b"a", b"b", b"c", b"d", b"e"]
    assert [pages_of(pool, user) for user in (b"a", b"b", b"c")] == pages
    assert pool.evictions == 0
    assert b"f" not in pool


def test_a_pinned_user_is_never_evicted():
    pool = make_pool()
    for user in (b"a", b"b", b"c", b"d", b"e"):
        step(pool, {user: 10})
    pool.pinned[[pool.row(b"a"), pool.row(b"c")]] = True
    assert list(step(pool, {b"f": 3, b"g": 3, b"h": 3, b"i": 3})) == [b"f", b"g", b"h"]
    assert b"a" in pool
    assert b"c" in pool


def test_rows_that_all_belong_to_the_step_are_not_given_to_another():
    pool = make_pool()
    assert len(step(pool, {bytes([letter]): 1 for letter in b"abcdefg"})) == 5


def test_events_are_written_into_the_users_own_pages():
    pool = make_pool()
    step(pool, {b"u": 10})
    places = step(pool, {b"u": 12})[b"u"]
    first, second = pages_of(pool, b"u")
    np.testing.assert_array_equal(places, [*(first * 16 + np.arange(10, 16)), *(second * 16 + np.arange(6))])


def test_pages_that_left_the_window_are_free():
    pool = make_pool()
    step(pool, {b"u": 16})
    step(pool, {b"u": 16})
    row = pool.row(b"u")
    assert (pool.first[row], pool.num_free_pages) == (0, 3), "the next event still sees event 13"
    step(pool, {b"u": 3})
    assert (pool.first[row], pool.num_free_pages) == (0, 2), "the newest event, which may be asked again, sees event 15"
    step(pool, {b"u": 1})
    assert (pool.first[row], pool.num_free_pages) == (16, 3), "it sees 16 and later"


def test_forks_share_full_pages_and_copy_the_others():
    pool = make_pool(pages=9)
    step(pool, {b"u": 16})
    step(pool, {b"u": 4})
    row = pool.row(b"u")
    full, partial = pages_of(pool, b"u")
    pool.store.k_pages[0][partial] = 7.0
    pool.begin_step()
    pool.touch([row])
    one, other = forks = pool.fork(np.array([row, row]))
    tables = [pool.pages(np.array([fork]), np.array([0])).indices.tolist() for fork in forks]
    assert tables[0][0] == tables[1][0] == full
    assert len({partial, tables[0][1], tables[1][1]}) == 3
    assert (pool.store.k_pages[0][tables[0][1]] == 7.0).all()
    assert pool.num_free_pages == 5

    pool.store.k_pages[0][tables[0][1]] = 8.0
    (child,) = pool.fork(np.array([one]))
    pool.release(np.array([one]))
    copied = pool.pages(np.array([child]), np.array([0])).indices.tolist()
    assert copied[0] == full
    assert (pool.store.k_pages[0][copied[1]] == 8.0).all()
    pool.release(np.array([other, child]))
    assert pool.num_free_pages == 7
    assert pages_of(pool, b"u") == [full, partial]


def test_a_fork_that_outgrows_the_window_frees_only_its_own_pages():
    pool = make_pool(pages=9)
    step(pool, {b"u": 16})
    step(pool, {b"u": 8})
    pages = pages_of(pool, b"u")
    pool.begin_step()
    pool.touch([pool.row(b"u")])
    fork = pool.fork(np.array([pool.row(b"u")]))
    for _ in range(40):
        pool.begin_step()
        one = np.array([1])
        assert pool.num_fitting(fork, one) == 1
        pool.reserve(fork, one)
        pool.advance(fork, one, np.zeros(1, np.int64), torch.zeros(1, MODEL.dim))
    pool.release(fork)
    assert pool.num_free_pages == 7
    assert pages_of(pool, b"u") == pages


def test_forks_without_room_are_refused_and_change_nothing():
    pool = make_pool()
    step(pool, {b"u": 10})
    pool.begin_step()
    pool.touch([pool.row(b"u")])
    with pytest.raises(MachineError, match="memory_bytes"):
        pool.fork(np.repeat(pool.row(b"u"), 5))
    assert pool.num_free_pages == 4


USER_STEPS = st.lists(st.tuples(st.sampled_from(b"abcdef"), st.integers(1, 16), st.booleans()), max_size=4)


@given(st.lists(USER_STEPS, max_size=40))
def test_every_page_has_one_owner(steps):
    pool = make_pool()
    for users in steps:
        for letter, _, drop in users:
            if drop:
                pool.drop(bytes([letter]))
        counts = {bytes([letter]): count for letter, count, drop in users if not drop}
        assert bool(step(pool, counts)) == bool(counts), "the first always fits"
        held = [page for letter in b"abcdef" if bytes([letter]) in pool for page in pages_of(pool, bytes([letter]))]
        assert len(held) == len(set(held))
        assert len(held) + pool.num_free_pages == pool.num_pages
        for letter in b"abcdef":
            row = pool.row(bytes([letter]))
            assert row == NO_ROW or pool.first[row] <= max(0, pool.length[row] - 19), "the next event sees what is gone"
