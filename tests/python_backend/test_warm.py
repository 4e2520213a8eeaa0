"""The short way of warm users against the general one: the same answers, memories and pages, whatever came before."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.config import EngineConfig
from longrec.modeling.features import gap_buckets
from longrec.protocol import UNCHECKED_POSITION
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.query import Query
from longrec.python_backend.settings import DEFAULTS
from longrec.python_backend.warm_body import gap_bucket

USERS = [f"user {number}".encode() for number in range(7)]


@pytest.fixture(scope="module", params=[40_000, 400_000], ids=["nine-pages", "no-evictions"])
def engines(request, network, tmp_path_factory):
    """An engine with the short way and one without, each over a log of its own."""
    logs, made = [], []
    for name in ("warm", "general"):
        logs.append(LmdbLog(tmp_path_factory.mktemp(name), durability="none", max_bytes=64 << 20))
        config = EngineConfig(page_size=16, inline_events=20, chunk_events=24, memory_bytes=request.param)
        made.append(Engine(network, logs[-1], config))
    made[1]._memory._warm = None
    yield made
    for log in logs:
        log.close()


def poison(engine):
    for pages in (*engine.pool.store.k_pages, *engine.pool.store.v_pages):
        pages.fill_(torch.nan)


def memories(pool):
    """What each user's stands for."""
    rows = {user: pool.row(user) for user in USERS if user in pool}
    return {user: (int(pool.first[row]), int(pool.length[row]), int(pool.time[row])) for user, row in rows.items()}


def check_pages(pool):
    """Each page is one user's or nobody's."""
    held = [
        page
        for user in USERS
        if user in pool
        for page in pool.pages(np.array([pool.row(user)]), np.array([0])).indices.tolist()
    ]
    assert sorted(held + pool._free[: pool.num_free_pages].tolist()) == list(range(pool.num_pages))


EVENT = st.tuples(st.integers(0, 105), st.sampled_from([0, 0, -5_000, 900, 70_000, 86_400_000, 10**12]))
SENT = st.tuples(st.sampled_from(USERS), st.lists(EVENT, max_size=6), st.booleans(), st.sampled_from([0, 3, 9, 97]))


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(SENT, min_size=1, max_size=9), min_size=1, max_size=25))
def test_answers_and_memories_are_those_of_the_general_way(engines, batches):
    for engine in engines:
        poison(engine)
        engine.pool.drop_all()
        engine.pool.evictions = 0
    lengths = {user: engines[0].log.length(user) for user in USERS}
    clock = dict.fromkeys(USERS, 1_700_000_000_000)
    for batch in batches:
        queries = []
        for user, events, is_checked, k in batch:
            rows = np.zeros((len(events), 2), np.int64)
            for row, (item, gap) in zip(rows, events, strict=True):
                clock[user] += gap
                row[:] = item, clock[user]
            queries.append(Query(user, rows, lengths[user] if is_checked else UNCHECKED_POSITION, None, k))
            lengths[user] += len(rows)
        found, expected = (engine.answer_all(queries) for engine in engines)
        for answer, wanted in zip(found, expected, strict=True):
            assert (answer.status, answer.length, answer.error) == (wanted.status, wanted.length, None)
            np.testing.assert_allclose(answer.scores, wanted.scores, atol=1e-4, rtol=0)
        for engine in engines:
            check_pages(engine.pool)
        if not any(engine.pool.evictions for engine in engines):  # a step of both kinds of users evicts sooner
            assert memories(engines[0].pool) == memories(engines[1].pool)


def test_it_is_the_way_of_warm_users(engines, monkeypatch):
    engine, _ = engines
    rows = np.array([[3, 1_700_000_000_000 + 10**13]])
    ask = [Query(user, rows, UNCHECKED_POSITION, None, 5) for user in USERS[:3]]
    engine.answer_all(ask)
    monkeypatch.setattr(engine._memory, "run", None)
    hits, computed = engine.observations.memory_hits, engine.observations.events_computed
    assert [answer.length for answer in engine.answer(ask)] == [engine.log.length(user) for user in USERS[:3]]
    assert engine.observations.memory_hits == hits + 3
    assert engine.observations.events_computed == computed + 3
    nothing = [query._replace(events=rows[:0]) for query in ask]
    assert all(len(answer.items) == 5 for answer in engine.answer(nothing))
    assert engine.observations.events_computed == computed + 3


@pytest.mark.parametrize("num_threads", [1, 2])
def test_large_batches(network, tmp_path, recompute, make_history, num_threads):
    """More users than a step's buffers hold, in one thread and in two."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    log = LmdbLog(tmp_path / "log", durability="none", max_bytes=64 << 20)
    try:
        engine = Engine(network, log, EngineConfig(page_size=16, memory_bytes=8 << 20))
        histories = {b"user %d" % seed: make_history(seed, 32) for seed in range(300)}
        for start, stop in ((0, 29), (29, 30), (30, 32)):
            queries = [Query(user, rows[start:stop], start, None, 97) for user, rows in histories.items()]
            answers = engine.answer_all(queries)
        for user, answer in list(zip(histories, answers, strict=True))[::23]:
            assert answer.length == 32
            np.testing.assert_allclose(
                answer.scores, np.sort(recompute(histories[user]))[::-1], atol=1e-4, err_msg=user.decode()
            )
    finally:
        torch.set_num_threads(before)
        log.close()


def test_narrow_pages(network, tmp_path, make_history):
    """What is read back is what was written: an event's answer doesn't depend on the way it took."""
    answers = []
    for name in ("warm", "general"):
        log = LmdbLog(tmp_path / name, durability="none", max_bytes=64 << 20)
        engine = Engine(network, log, EngineConfig(page_size=16, memory_bytes=1 << 20, memory_dtype="int8"))
        assert engine._memory._warm is not None
        if name == "general":
            engine._memory._warm = None
        history = make_history(5, 40)
        for start in range(0, 40, 2):
            (answer,) = engine.answer_all([Query(b"u", history[start : start + 2], start, None, 97)])
        answers.append(answer)
        log.close()
    np.testing.assert_allclose(answers[0].scores, answers[1].scores, atol=1e-6)
    np.testing.assert_array_equal(answers[0].items, answers[1].items)


@pytest.mark.parametrize("num_buckets", [2, 3, 32, 64])
def test_gap_buckets_are_those_of_training(num_buckets):
    edges = [(1 << power) * 1000 - 1000 + near for power in range(38) for near in (-1, 0, 1)]
    gaps = np.array([-(10**15), -1, 0, 1, *edges[3:], 10**15, 1 << 62])
    expected = [int(gap_buckets(np.array([gap]), 0, num_buckets)[0]) for gap in gaps]
    assert [gap_bucket(gap, num_buckets) for gap in gaps.tolist()] == expected


def test_settings_that_need_no_memory_take_it_too(engines, monkeypatch):
    engine, _ = engines
    engine.answer_all([Query(USERS[0], np.array([[3, 1_800_000_000_000]]), UNCHECKED_POSITION, None, 5)])
    monkeypatch.setattr(engine._memory, "run", None)
    wanted = DEFAULTS._replace(exclude=(7,), probability=True)
    (answer,) = engine.answer([Query(USERS[0], np.zeros((0, 2), np.int64), UNCHECKED_POSITION, None, 97, wanted)])
    assert 7 not in answer.items
