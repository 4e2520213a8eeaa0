"""The engine answers as a full recompute does, however the history arrives and whatever has been evicted."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longrec.config import EngineConfig
from longrec.errors import ArgumentError
from longrec.protocol import Status
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log import Append
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.event_log.redis_log import RedisLog
from longrec.python_backend.query import Query

EMPTY = np.empty((0, 2), np.int64)
TOLERANCE = 1e-4


def query(user, history, start, stop, *, k=5, candidates=None, position=None):
    return Query(user.encode(), history[start:stop], start if position is None else position, candidates, k)


def assert_ranks(answer, scores):
    """The answer's items and scores are the best of `scores`, up to swaps of scores closer than TOLERANCE."""
    k = len(answer.items)
    np.testing.assert_allclose(answer.scores, np.sort(scores)[::-1][:k], atol=TOLERANCE)
    np.testing.assert_allclose(scores[answer.items], answer.scores, atol=TOLERANCE)


@pytest.mark.parametrize("step", [1, 3, 20, 61], ids="append{}".format)
def test_streamed_equals_recomputed(make_engine, make_history, recompute, step):
    engine, history = make_engine(), make_history(1, 61)
    for start in range(0, 61, step):
        (answer,) = engine.answer_all([query("u", history, start, start + step)])
        assert_ranks(answer, recompute(history[: start + step]))


@pytest.mark.parametrize(("memory_dtype", "tolerance"), [("int8", 0.03), ("bfloat16", 0.02), ("float16", 0.002)])
def test_narrow_memory_answers_nearly_as_float32_however_the_history_arrives(
    make_engine, make_history, recompute, memory_dtype, tolerance
):
    engine, history = make_engine(memory_dtype=memory_dtype), make_history(1, 61)
    assert engine.pool.store.k_pages[0].dtype == getattr(torch, memory_dtype)
    (whole,) = engine.answer_all([query("whole", history, 0, 61, k=97)])
    for start in range(61):
        (answer,) = engine.answer_all([query("single", history, start, start + 1, k=97)])
    by_item = np.empty((2, 97))
    for row, found in zip(by_item, (whole, answer), strict=True):
        row[found.items] = found.scores
    exact = recompute(history)
    np.testing.assert_allclose(by_item[0], by_item[1], atol=tolerance * np.abs(exact).max() / 10)
    assert np.abs(by_item[0] - exact).max() < tolerance * np.abs(exact).max()


def test_before_the_first_event_the_start_state_answers(make_engine, recompute):
    (answer,) = make_engine().answer_all([query("nobody", EMPTY, 0, 0)])
    assert answer.length == 0
    assert_ranks(answer, recompute(EMPTY))


def test_same_user_many_times_in_one_batch_each_sees_its_own_prefix(make_engine, make_history, recompute):
    engine, mine, theirs = make_engine(), make_history(2, 30), make_history(3, 30)
    batch = [
        query("a", mine, 0, 7),
        query("b", theirs, 0, 2),
        query("a", mine, 7, 7),  # predict only
        query("a", mine, 7, 30),
        query("b", theirs, 2, 3),
    ]
    answers = engine.answer_all(batch)
    assert [answer.length for answer in answers] == [7, 2, 7, 30, 3]
    for answer, history in zip(answers, (mine[:7], theirs[:2], mine[:7], mine, theirs[:3]), strict=True):
        assert_ranks(answer, recompute(history))


def test_a_retry_changes_nothing(make_engine, make_history, recompute):
    engine, history = make_engine(), make_history(4, 9)
    engine.answer_all([query("u", history, 0, 6)])
    answers = engine.answer_all([query("u", history, 0, 6), query("u", history, 4, 9), query("u", history, 4, 9)])
    assert [answer.length for answer in answers] == [6, 9, 9]
    assert engine.observations.events_skipped == 6 + 2 + 5
    np.testing.assert_array_equal(engine.log.read(b"u", 0, 9), history)
    assert_ranks(answers[1], recompute(history))


def test_a_gap_writes_nothing_and_says_the_length(make_engine, make_history):
    engine, history = make_engine(), make_history(5, 9)
    engine.answer_all([query("u", history, 0, 3)])
    (answer,) = engine.answer_all([query("u", history, 4, 9)])
    assert (answer.status, answer.length) == (Status.GAP, 3)
    assert (answer.items == -1).all()
    assert engine.log.length(b"u") == 3


def test_a_conflict_writes_nothing_and_the_memory_stays(make_engine, make_history, recompute):
    engine, history = make_engine(inline_events=5), make_history(5, 30)
    engine.answer_all([query("u", history, 0, 9)])
    other = history.copy()
    other[7, 1] += 1
    batch = [
        query("u", other, 7, 11),
        query("v", history, 0, 2),
        query("u", other, 2, 30),
        query("u", other, 6, 9, k=0),
    ]
    first, neighbour, late, alone = engine.answer_all(batch)
    for answer in (first, late, alone):
        assert (answer.status, answer.length, answer.error) == (Status.CONFLICT, 9, None)
        assert (answer.items == -1).all()
        assert (answer.scores == -np.inf).all()
    assert_ranks(neighbour, recompute(history[:2]))
    assert (engine.observations.conflicts, engine.observations.gaps, engine.observations.queries) == (3, 0, 5)
    assert (engine.observations.events_appended, engine.observations.events_skipped) == (11, 0)
    np.testing.assert_array_equal(engine.log.read(b"u", 0, 9), history[:9])
    (answer,) = engine.answer_all([query("u", history, 7, 12)])
    assert answer.length == 12
    assert_ranks(answer, recompute(history[:12]))


def test_unchecked_events_go_to_the_end(make_engine, make_history, recompute):
    engine, history = make_engine(), make_history(6, 8)
    engine.answer_all([query("u", history, 0, 5)])
    (answer,) = engine.answer_all([query("u", history, 5, 8, position=-1)])
    assert answer.length == 8
    assert_ranks(answer, recompute(history))


def test_appends_alone_cost_no_pass_and_a_later_answer_has_them(make_engine, make_history, recompute):
    engine, history = make_engine(), make_history(7, 40)
    for start in range(0, 40, 8):
        engine.answer_all([query("u", history, start, start + 8, k=0)])
    assert engine.observations.waves == 0
    (answer,) = engine.answer_all([query("u", EMPTY, 0, 0, position=-1)])
    assert_ranks(answer, recompute(history))


def test_a_rebuild_reads_the_receptive_field_only(network, make_engine, make_history, recompute):
    engine, history = make_engine(), make_history(8, 200)
    engine.answer_all([query("u", history, 0, 200, k=0)])
    (answer,) = engine.answer_all([query("u", EMPTY, 0, 0, position=-1)])
    assert engine.observations.events_computed == network.config.receptive_field == 23
    assert_ranks(answer, recompute(history))


def test_a_pool_of_a_few_pages_serves_many_users(network, log, make_history, recompute):
    page_bytes = 2 * 2 * 16 * 2 * 8 * 4
    config = EngineConfig(page_size=16, inline_events=8, chunk_events=20, memory_bytes=4 * page_bytes)
    engine = Engine(network, log, config)
    assert engine.pool.num_pages == 4
    histories = {f"user {seed}": make_history(seed, 50) for seed in range(9)}
    for start in range(0, 50, 5):
        answers = engine.answer_all([query(user, history, start, start + 5) for user, history in histories.items()])
        for answer, history in zip(answers, histories.values(), strict=True):
            assert_ranks(answer, recompute(history[: start + 5]))
    assert engine.pool.evictions > 50
    assert engine.observations.events_rebuilt > 0


def test_free_pages_may_hold_anything(make_engine, make_history, recompute):
    engine, history = make_engine(), make_history(9, 30)
    for pages in (*engine.pool.store.k_pages, *engine.pool.store.v_pages):
        pages.fill_(torch.nan)
    for start in range(0, 30, 10):
        (answer,) = engine.answer_all([query("u", history, start, start + 10)])
        assert_ranks(answer, recompute(history[: start + 10]))


def test_another_instance_on_the_same_log_catches_up(make_engine, make_history, recompute):
    first, second, history = make_engine(), make_engine(), make_history(10, 30)
    for start in range(0, 30, 3):
        engine = (first, second)[start // 3 % 2]
        (answer,) = engine.answer_all([query("u", history, start, start + 3)])
        assert_ranks(answer, recompute(history[: start + 3]))


def test_a_log_that_was_replaced_by_a_shorter_one_is_believed(tmp_path, network, make_engine, make_history, recompute):
    engine, history = make_engine(), make_history(11, 20)
    engine.answer_all([query("u", history, 0, 20)])
    engine.log = LmdbLog(tmp_path / "other", durability="none", max_bytes=64 << 20)
    (answer,) = engine.answer_all([query("u", history, 0, 4)])
    engine.log.close()
    assert answer.length == 4
    assert_ranks(answer, recompute(history[:4]))


def test_candidates_are_ranked_by_the_same_scores_and_unknown_ones_left_out(make_engine, make_history, recompute):
    engine, history = make_engine(), make_history(12, 10)
    candidates = np.array([5, 90, 3, 10_000, 41])
    (answer,) = engine.answer_all([query("u", history, 0, 10, k=6, candidates=candidates)])
    scores = recompute(history)
    assert set(answer.items) == {5, 90, 3, 41, -1}
    np.testing.assert_allclose(answer.scores[:4], np.sort(scores[[5, 90, 3, 41]])[::-1], atol=TOLERANCE)
    assert np.isneginf(answer.scores[4:]).all()


def test_k_beyond_the_catalogue_is_filled_up(network, make_engine, make_history):
    (answer,) = make_engine().answer_all([query("u", make_history(13, 4), 0, 4, k=120)])
    assert sorted(answer.items[:97]) == list(range(97))
    assert (answer.items[97:] == -1).all()


def test_unknown_items_are_served_and_counted(make_engine, make_history, recompute):
    engine = make_engine()
    history = np.array([[10_000, 0], [3, 1_000], [97, 2_000]])
    (answer,) = engine.answer_all([query("u", history, 0, 3)])
    assert engine.observations.events_unknown == 2
    assert_ranks(answer, recompute(history))


def test_memory_bytes_too_small_for_one_user_says_how_much_is_needed(make_engine):
    with pytest.raises(ArgumentError, match=r"memory_bytes=1000: expected at least \d+ for 12 \(window\)"):
        make_engine(memory_bytes=1000)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), page_size=st.sampled_from([16, 32]), pages=st.integers(3, 12), step=st.sampled_from([4, 20]))
def test_any_interleaving_equals_recompute(
    network, make_history, recompute, tmp_path_factory, data, page_size, pages, step
):
    page_bytes = 2 * 2 * page_size * 2 * 8 * 4
    log = LmdbLog(tmp_path_factory.mktemp("log"), durability="none", max_bytes=64 << 20)
    config = EngineConfig(
        page_size=page_size,
        max_step_events=2 * step,
        inline_events=5,
        chunk_events=step,
        memory_bytes=pages * page_bytes,
    )
    engine = Engine(network, log, config)
    histories = [make_history(seed, 60) for seed in range(4)]
    sent = [0] * 4
    for _ in range(6):
        batch, expected = [], []
        for user in data.draw(st.lists(st.integers(0, 3), max_size=6)):
            count = min(data.draw(st.integers(0, 9)), 60 - sent[user])
            batch.append(query(str(user), histories[user], sent[user], sent[user] + count))
            sent[user] += count
            expected.append(recompute(histories[user][: sent[user]]))
        for answer, scores in zip(engine.answer_all(batch), expected, strict=True):
            assert_ranks(answer, scores)
    log.close()


def test_a_damaged_log_fails_its_user_alone(tmp_path, network, make_history, recompute):
    histories = {name: make_history(seed, 40) for seed, name in enumerate(("well", "hurt", "fine"), 20)}
    log = LmdbLog(tmp_path / "log", durability="none", max_bytes=64 << 20)
    log.append([Append(name.encode(), 0, history) for name, history in histories.items()])
    log.close()
    data = bytearray((tmp_path / "log" / "data.mdb").read_bytes())
    newest = histories["hurt"][30:].astype("<i8").tobytes()
    hurt = newest[:5] + bytes([newest[5] ^ 1]) + newest[6:]
    (tmp_path / "log" / "data.mdb").write_bytes(data.replace(newest, hurt))  # every copy: an unused one may come last

    log = LmdbLog(tmp_path / "log", durability="none", max_bytes=64 << 20)
    config = EngineConfig(page_size=16, max_step_events=32, memory_bytes=4 << 20)
    engine = Engine(network, log, config)
    answers = engine.answer_all([query(name, EMPTY, 0, 0, position=-1) for name in histories])
    assert [answer.error is None for answer in answers] == [True, False, True]
    assert "checksum" in str(answers[1].error)
    for answer, history in zip((answers[0], answers[2]), (histories["well"], histories["fine"]), strict=True):
        assert_ranks(answer, recompute(history))
    log.close()


def test_users_who_are_behind_are_read_from_redis_in_one_round_trip(network, redis_server, make_history, recompute):
    log = RedisLog(redis_server.url, durability="none")
    config = EngineConfig(page_size=16, inline_events=40, memory_bytes=4 << 20)
    histories = {b"%d" % seed: make_history(seed, 9 + 3 * seed) for seed in range(6)}
    Engine(network, log, config).answer([Query(user, rows, -1, None, 0) for user, rows in histories.items()])
    engine = Engine(network, log, config)
    with redis_server.client() as client:
        before = client.info("stats")["total_reads_processed"]
        answers = engine.answer([Query(user, EMPTY, -1, None, 5) for user in histories])
        trips = client.info("stats")["total_reads_processed"] - before
    for answer, history in zip(answers, histories.values(), strict=True):
        np.testing.assert_allclose(answer.scores, np.sort(recompute(history))[::-1][:5], atol=1e-4)
    assert trips <= 3, "the append, the batch's read, and the question for this number"
    log.close()
