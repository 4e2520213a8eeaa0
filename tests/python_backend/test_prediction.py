"""Predictions through the engine, against scores recomputed from scratch: masks, rollouts, explanations."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longrec.catalogue import Catalogue
from longrec.config import EngineConfig
from longrec.errors import DataError, MachineError
from longrec.protocol import NO_ITEM, Status
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.query import Query
from longrec.python_backend.rules import Rules
from longrec.python_backend.settings import Settings

NUM_ITEMS, WINDOW = 97, 12
TOLERANCE = 1e-4
MAX = np.iinfo(np.int64).max
NO_EVENTS = np.empty((0, 2), np.int64)


@pytest.fixture(scope="module")
def engine(network, tmp_path_factory) -> Iterator[Engine]:
    log = LmdbLog(tmp_path_factory.mktemp("log"), durability="none", max_bytes=64 << 20)
    yield Engine(network, log, EngineConfig(page_size=16, memory_bytes=4 << 20, max_seen=30))
    log.close()


def query(user: bytes, events=NO_EVENTS, candidates=None, **sent) -> Query:
    asked = Settings(**sent)
    return Query(user, events, -1, candidates, asked.k, asked)


_users = iter(range(1_000_000))


def fresh_user() -> bytes:
    return f"user {next(_users)}".encode()


def median_gap(history) -> int:
    times = history[-33:, 1]
    return int(np.median(np.maximum(np.diff(times), 0))) if len(times) > 1 else 0


def extended(history, items):
    """The history, and these items as a rollout takes them to follow."""
    last = max(int(history[-1, 1]), 0) if len(history) else 0
    gap = median_gap(history)
    more = [(item, last + gap * (at + 1)) for at, item in enumerate(items)]
    return np.concatenate((history, np.array(more, np.int64).reshape(-1, 2)))


def log_softmax(scores):
    scores = scores.astype(np.float64)
    return scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()


def searched(recompute, history, horizon, beam, left_out=(), *, own_too=False):
    """Beam search by the book, every path recomputed from scratch: the best path's summed log-probability."""
    paths = [((), 0.0)]
    for step in range(horizon):
        found = []
        for items, total in paths:
            gains = log_softmax(recompute(extended(history, items)))
            gains[list(left_out) + (list(items) if own_too else [])] = -np.inf
            found += [
                ((*items, item), total + gains[item]) for item in np.argsort(-gains, kind="stable")[:beam].tolist()
            ]
        paths = sorted(found, key=lambda path: -path[1])[: beam if step + 1 < horizon else 1]
    return paths[0]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.sampled_from([0, 1, 5, 15, 16, 17, 31, 40]),
    horizon=st.integers(2, 7),
    beam=st.sampled_from([1, 1, 2, 4]),
    k=st.integers(1, 6),
    probability=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_rollout_equals_the_network_from_scratch(
    engine, recompute, make_history, length, horizon, beam, k, probability, seed
):
    history, user = make_history(seed, length), fresh_user()
    free, users = engine.pool.num_free_pages, len(engine.pool)
    engine.answer_all([query(user, history)])
    held = engine.pool.num_free_pages
    (answer,) = engine.answer_all([query(user, k=k, horizon=horizon, beam=beam, probability=probability)])
    assert (answer.status, answer.length, answer.error) == (Status.OK, length, None)
    assert answer.items.shape == answer.scores.shape == (horizon, k)
    path, total = answer.items[:, 0].tolist(), 0.0
    for step in range(horizon):
        scores = recompute(extended(history, path[:step]))
        logs = log_softmax(scores)
        total += logs[path[step]]
        values = np.exp(logs) if probability else scores
        np.testing.assert_allclose(answer.scores[step], values[answer.items[step]], atol=TOLERANCE)
        others = np.sort(np.delete(values, path[step]))[::-1][: k - 1]
        np.testing.assert_allclose(answer.scores[step, 1:], others, atol=TOLERANCE)
        assert len(set(answer.items[step].tolist())) == k
        if beam == 1:
            assert answer.scores[step, 0] >= values.max() - TOLERANCE
    assert total == pytest.approx(searched(recompute, history, horizon, beam)[1], abs=1e-3)
    assert engine.pool.num_free_pages == held, "every fork is gone"
    assert len(engine.pool) == users + (length > 0)
    assert not engine.pool.pinned.any()
    assert free >= held
    (after,) = engine.answer_all([query(user, k=NUM_ITEMS)])
    np.testing.assert_allclose(after.scores, np.sort(recompute(history))[::-1], atol=TOLERANCE)


def test_a_batch_of_every_kind(engine, recompute, make_history):
    """Rollouts of different horizons and beams, one user twice at different lengths, plain queries in between."""
    histories = {fresh_user(): make_history(seed, 20 + seed) for seed in range(6)}
    engine.answer_all([query(user, history) for user, history in histories.items()])
    queries, expected = [], []
    for at, (user, history) in enumerate(histories.items()):
        more = make_history(at + 50, 2)
        for events in (NO_EVENTS, more[:1], more[1:]):
            history = np.concatenate((history, events))
            horizon, beam = 1 + (at + len(queries)) % 3, 1 + at % 3
            queries.append(query(user, events, k=3, horizon=horizon, beam=beam, explain=2))
            expected.append((history, horizon, beam))
    for answer, (history, horizon, beam) in zip(engine.answer_all(queries), expected, strict=True):
        assert answer.length == len(history)
        rows = answer.items.reshape(horizon, 3)
        path = rows[:, 0].tolist()
        totals = [log_softmax(recompute(extended(history, path[:step])))[path[step]] for step in range(horizon)]
        assert sum(totals) == pytest.approx(searched(recompute, history, horizon, beam)[1], abs=1e-3)
        because = answer.because.reshape(horizon, 3, 2)
        assert ((because >= len(history) - WINDOW) & (because < len(history))).all()


def test_a_step_over_fixed_buffers_as_on_a_gpu(network, log, recompute, make_history):
    """There the states of a step are overwritten by the next."""
    config = EngineConfig(page_size=16, memory_bytes=4 << 20)
    engine, users = Engine(network, log, config, decode_batches=(1, 4, 16)), [b"a", b"b", b"c"]
    histories = {user: make_history(at, 11 + 9 * at) for at, user in enumerate(users)}
    engine.answer_all([query(user, history) for user, history in histories.items()])
    asked = [query(b"a", k=3, horizon=6), query(b"b", k=3, horizon=4, beam=3), query(b"c", k=3, horizon=5, beam=2)]
    for answer, each in zip(engine.answer_all(asked), asked, strict=True):
        history, path = histories[each.user], answer.items[:, 0].tolist()
        for step in range(each.settings.horizon):
            scores = recompute(extended(history, path[:step]))
            np.testing.assert_allclose(answer.scores[step], scores[answer.items[step]], atol=TOLERANCE)


def test_more_at_once_than_others_should_wait_for(network, log, make_history):
    """They are answered in turns, all of them, and as each alone is."""
    engine = Engine(network, log, EngineConfig(page_size=16, memory_bytes=4 << 20, chunk_events=24, inline_events=20))
    users = [f"many {at}".encode() for at in range(40)]
    engine.answer_all([query(user, make_history(at, 14)) for at, user in enumerate(users)])
    for asked in ({"k": 3, "horizon": 5, "beam": 3}, {"k": 3, "explain": 2}):
        together = engine.answer_all([query(user, **asked) for user in users])
        assert [answer.error for answer in together] == [None] * 40
        for user, answer in zip(users[::13], together[::13], strict=True):
            (alone,) = engine.answer_all([query(user, **asked)])
            np.testing.assert_allclose(answer.scores, alone.scores, atol=TOLERANCE)
            if "explain" in asked:
                np.testing.assert_array_equal(answer.because, alone.because)
    assert not engine.has_work
    assert not engine.pool.pinned.any()


def test_what_was_seen_is_excluded_in_every_step(engine, recompute, make_history):
    history, user = make_history(3, 60), fresh_user()
    engine.answer_all([query(user, history)])
    seen = set(history[-30:, 0].tolist())  # max_seen
    assert set(history[:, 0].tolist()) - seen, "older items may come again"
    rank, rollout = engine.answer_all(
        [query(user, k=NUM_ITEMS, exclude_seen=True), query(user, k=8, horizon=6, beam=3, exclude_seen=True)]
    )
    assert set(rank.items.tolist()) - {NO_ITEM} == set(range(NUM_ITEMS)) - seen
    path = rollout.items[:, 0].tolist()
    for step in range(6):
        assert not set(rollout.items[step].tolist()) & (seen | set(path[:step]))
    left_out = [item for item in seen if item < NUM_ITEMS]
    best, total = searched(recompute, history, 6, 3, left_out, own_too=True)
    scored = [log_softmax(recompute(extended(history, path[:step])))[path[step]] for step in range(6)]
    assert sum(scored) == pytest.approx(total, abs=1e-3), f"expected {best}, got {path}"


def test_a_rollout_that_runs_out_of_items(network, log, make_history, tmp_path):
    ids = [str(item) for item in range(NUM_ITEMS)]
    Catalogue(ids, ids, [["few"] if item < 3 else ["many"] for item in range(NUM_ITEMS)]).save(tmp_path / "c.parquet")
    rules = Rules(tmp_path / "c.parquet", tmp_path)
    engine = Engine(network, log, EngineConfig(page_size=16, memory_bytes=4 << 20), rules=rules)
    asked = {"k": 2, "horizon": 5, "beam": 4, "exclude_seen": True, "allowed": rules.bits["few"], "explain": 1}
    history = np.array([[50, 1], [1, 2]])
    for events in (history, NO_EVENTS):
        (answer,) = engine.answer_all([query(b"u", events, **asked)])
        assert sorted(answer.items[:2, 0].tolist()) == [0, 2]
        assert (answer.items[2:] == NO_ITEM).all()
        assert (answer.scores[2:] == -np.inf).all()
        assert (answer.because[2:] == -1).all()


def test_blocked_and_excluded_items_and_categories(network, log, make_history, tmp_path):
    ids = [f"id {item}" for item in range(NUM_ITEMS)]
    genres = [["even"] if item % 2 == 0 else ["odd", "third"][: 1 + (item % 3 == 0)] for item in range(NUM_ITEMS)]
    Catalogue(ids, ids, genres).save(tmp_path / "c.parquet")
    (tmp_path / "blocked.txt").write_text("id 3\nid 4\n")
    rules = Rules(tmp_path / "c.parquet", tmp_path, interval_seconds=0)
    engine = Engine(network, log, EngineConfig(page_size=16, memory_bytes=4 << 20), rules=rules)
    whole, some, third = engine.answer_all(
        [
            query(b"a", make_history(1, 4), k=NUM_ITEMS),
            query(b"b", candidates=np.array([2, 3, 4, 5, 6]), k=5, exclude=(5, 900)),
            query(b"c", k=NUM_ITEMS, allowed=rules.bits["third"], exclude=(9,)),
        ]
    )
    assert set(whole.items.tolist()) == set(range(NUM_ITEMS)) - {3, 4} | {NO_ITEM}
    assert sorted(some.items.tolist()) == [NO_ITEM, NO_ITEM, NO_ITEM, 2, 6]
    assert set(third.items.tolist()) == set(range(3, NUM_ITEMS, 6)) - {3, 9} | {NO_ITEM}
    (tmp_path / "blocked.txt").write_bytes(b"\xff")
    assert not rules.refresh()
    assert engine.observe().rules_failures == 1
    (tmp_path / "blocked.txt").unlink()
    assert rules.refresh()
    (whole,) = engine.answer_all([query(b"a", k=NUM_ITEMS)])
    assert set(whole.items.tolist()) == set(range(NUM_ITEMS))


@pytest.mark.parametrize("length", [0, 1, 2, 13, 27, 29, 43, 64])  # at 27 and 43 the window begins before a page
def test_explanations_name_the_events_that_weigh_most(engine, network, make_history, length):
    """Against the formula on a memory-free pass: positions of the log, heaviest first, within the window."""
    history, user = make_history(length, length), fresh_user()
    engine.answer_all([query(user, history[:20])])  # all of them are in reach, so that pages begin at event 0
    engine.answer_all([query(user, history[20:])])
    first, second = engine.answer_all(
        [query(user, k=4, explain=16), query(user, k=2, explain=3, candidates=np.arange(9))]
    )
    seen = min(length, WINDOW)
    assert first.because.shape == (4, 16)
    for because in first.because.tolist():
        assert sorted(because[:seen]) == list(range(length - seen, length))
        assert because[seen:] == [-1] * (16 - seen)
    assert second.because.shape == (2, 3)
    again, _ = engine.answer_all([query(user, k=4, explain=2), query(user)])
    np.testing.assert_array_equal(again.because, first.because[:, :2])
    assert engine.answer_all([query(user)])[0].because is None


def tiny(num_pages: int) -> EngineConfig:
    """Memory for so many pages of 16 events; an engine takes 3 at least."""
    page_bytes = 2 * 2 * 16 * 2 * 8 * 4  # keys and values, layers, events, heads, width, float32
    return EngineConfig(page_size=16, chunk_events=16, inline_events=16, memory_bytes=num_pages * page_bytes)


@pytest.mark.parametrize("asked", [{"explain": 3}, {"horizon": 3, "explain": 2}], ids=str)
@pytest.mark.parametrize("bounds", [[0, 18, 18, 19, 19, 25, 30], [0, 18, 19, 19, 25, 26, 30]], ids=["there", "behind"])
def test_one_users_queries_of_a_batch_each_see_their_own_memory(engine, make_history, asked, bounds):
    """However many events are appended in between, and whether or not the memory stands there already."""
    history, together, alone = make_history(5, 30), fresh_user(), fresh_user()
    batch = [history[start:stop] for start, stop in pairwise(bounds)]
    engine.answer_all([query(together, batch[0]), query(alone, batch[0])])
    found = engine.answer_all([query(together, events, k=4, **asked) for events in batch[1:]])
    for answer, events in zip(found, batch[1:], strict=True):
        (expected,) = engine.answer_all([query(alone, events, k=4, **asked)])
        assert answer.length == expected.length
        np.testing.assert_array_equal(answer.items, expected.items)
        np.testing.assert_array_equal(answer.because, expected.because)


def test_a_rollout_without_room_fails_alone_and_leaves_nothing(network, log, make_history):
    engine = Engine(network, log, tiny(3))
    history = make_history(1, 40)
    (answer,) = engine.answer_all([query(b"u", history)])
    held = engine.pool.num_free_pages
    rolled, plain = engine.answer_all([query(b"u", k=2, horizon=16, beam=16), query(b"u", k=2)])
    assert isinstance(rolled.error, MachineError)
    assert "max_beam" in str(rolled.error) or "memory_bytes" in str(rolled.error)
    assert plain.error is None
    np.testing.assert_array_equal(plain.items, answer.items[:2])
    assert engine.pool.num_free_pages == held
    assert not engine.pool.pinned.any()


def test_rollouts_evict_others_for_their_forks(network, log, make_history):
    engine = Engine(network, log, tiny(8))
    users = [f"u{n}".encode() for n in range(6)]
    for at, user in enumerate(users):
        engine.answer_all([query(user, make_history(at, 20))])
    answers = engine.answer_all([query(user, k=2, horizon=3, beam=2) for user in users])
    assert [answer.error for answer in answers] == [None] * 6
    assert not engine.pool.pinned.any()


def test_a_step_that_fails_leaves_no_fork(engine, make_history, monkeypatch):
    history, user = make_history(8, 20), fresh_user()
    engine.answer_all([query(user, history)])
    (before,) = engine.answer_all([query(user)])
    held, steps = engine.pool.num_free_pages, engine._memory._steps
    run, calls = steps.run, []

    def failing(inputs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return run(inputs)

    monkeypatch.setattr(steps, "run", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.answer_all([query(user, horizon=8, beam=4)])
    monkeypatch.undo()
    assert len(calls) == 3
    assert engine.pool.num_free_pages == held
    engine.give_up()
    assert not engine.pool.pinned.any()
    np.testing.assert_array_equal(engine.answer_all([query(user)])[0].scores, before.scores)


def test_a_log_that_lost_its_older_events_excludes_and_explains_what_it_has(network, tmp_path, make_history):
    with_limit = LmdbLog(tmp_path / "short", durability="none", max_bytes=64 << 20, max_user_events=64)
    engine = Engine(network, with_limit, EngineConfig(page_size=16, memory_bytes=4 << 20))
    history = make_history(2, 700)
    for start in range(0, 700, 70):
        engine.answer_all([query(b"u", history[start : start + 70])])
    first = with_limit.extent(b"u").first
    assert first > 0
    (answer,) = engine.answer_all([query(b"u", k=NUM_ITEMS, exclude_seen=True, explain=1)])
    kept = set(history[first:, 0].tolist())
    assert set(answer.items.tolist()) - {NO_ITEM} == set(range(NUM_ITEMS)) - kept
    with_limit.close()


def test_an_event_that_cannot_be_read_fails_its_query_alone(engine, make_history, monkeypatch):
    user, other = fresh_user(), fresh_user()
    engine.answer_all([query(user, make_history(1, 9)), query(other, make_history(2, 9))])
    read = engine.log.read

    def damaged(key, start, stop):
        if key == user:
            raise DataError("event_log: damaged")
        return read(key, start, stop)

    monkeypatch.setattr(engine.log, "read", damaged)
    for asked in ({"exclude_seen": True}, {"explain": 2}, {"horizon": 2}):
        hurt, well = engine.answer_all([query(user, **asked), query(other, **asked)])
        assert isinstance(hurt.error, DataError)
        assert well.error is None


def test_gradients_are_not_kept(engine, make_history):
    (answer,) = engine.answer_all([query(fresh_user(), make_history(4, 9), horizon=2, explain=1)])
    assert not any(isinstance(part, torch.Tensor) for part in answer)


def test_whose_memory_made_room_in_the_step_is_explained_later(make_engine, make_history):
    engine = make_engine(memory_bytes=4 * 2 * 2 * 16 * 2 * 8 * 4)
    history, fresh = make_history(1, 15), make_history(2, 20)
    engine.answer_all([query(b"asks why", history)])
    evictions = engine.pool.evictions
    queries = [query(b"asks why", explain=2), query(b"a", fresh), query(b"b", fresh)]
    answers = engine.answer_all(queries)
    assert engine.pool.evictions > evictions
    assert [answer.error for answer in answers] == [None] * 3
    (expected,) = engine.answer_all(queries[:1])
    np.testing.assert_array_equal(answers[0].because, expected.because)


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("times", [(0, MAX), (0, MAX // 2, MAX), (MAX, 0), (MAX,)], ids=repr)
def test_times_at_the_end_of_int64_are_rolled_out_as_others(engine, times, beam):
    user = fresh_user()
    events = np.array([(3, time) for time in times], np.int64)
    (answer,) = engine.answer_all([query(user, events, horizon=4, beam=beam, explain=2)])
    assert answer.error is None
    assert (answer.items >= 0).all()
