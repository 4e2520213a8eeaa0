"""Deferred work: long and cold users wait for turns, nobody waits for them, each user's answers keep their order."""

import threading

import numpy as np
import pytest

from longrec.config import EngineConfig
from longrec.errors import MachineError
from longrec.protocol import Status
from longrec.python_backend.engine import Engine, Ticket
from longrec.python_backend.event_log.lmdb_batch import PLACE, prefix_of
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.event_log.records import CHUNK_EVENTS
from longrec.python_backend.lanes import MAX_PASSING, Lanes
from longrec.python_backend.query import Query
from longrec.python_backend.settings import Settings

EMPTY = np.empty((0, 2), np.int64)
TOLERANCE = 1e-4


def query(user, events, *, position=-1, k=5):
    return Query(user.encode(), events, position, None, k)


def take_turns(engine):
    """Ticket -> answer, and the tickets in the order in which they were answered."""
    answers = {}
    while engine.has_work:
        answers.update(engine.turn())
    return answers


def assert_answers(answer, scores):
    np.testing.assert_allclose(answer.scores, np.sort(scores)[::-1][:5], atol=TOLERANCE)


def test_a_long_append_is_deferred_and_the_batch_around_it_is_not(make_engine, make_history, recompute):
    engine, short, long = make_engine(), make_history(1, 9), make_history(2, 60)
    first, ticket, last = engine.answer([query("a", short[:4]), query("b", long), query("c", short)])
    assert isinstance(ticket, Ticket)
    assert_answers(first, recompute(short[:4]))
    assert_answers(last, recompute(short))
    assert engine.log.length(b"b") == 0, "a long append waits for its turn with the log too"
    (answer,) = take_turns(engine).values()
    assert answer.length == engine.log.length(b"b") == 60
    assert_answers(answer, recompute(long))


def test_a_cold_user_is_deferred_though_the_request_is_small(make_engine, make_history, recompute):
    engine, history = make_engine(inline_events=10), make_history(3, 60)
    engine.answer([query("u", history[at : at + 6], k=0) for at in range(0, 60, 6)])
    (ticket,) = engine.answer([query("u", EMPTY)])
    assert isinstance(ticket, Ticket)
    assert_answers(take_turns(engine)[ticket], recompute(history))
    (answer,) = engine.answer([query("u", EMPTY)])
    assert_answers(answer, recompute(history))


def test_requests_behind_a_deferred_one_keep_their_order(make_engine, make_history, recompute):
    engine, history = make_engine(), make_history(4, 60)
    tickets = engine.answer([query("u", history[:30]), query("u", history[30:32]), query("v", history[:3])])
    assert [isinstance(answer, Ticket) for answer in tickets] == [True, True, False]
    tickets += engine.answer([query("u", history[32:32]), query("u", history[32:60])])
    answers = take_turns(engine)
    assert list(answers) == [tickets[0], tickets[1], *tickets[3:]]
    for answer, length in zip(answers.values(), (30, 32, 32, 60), strict=True):
        assert answer.length == length
        assert_answers(answer, recompute(history[:length]))


def test_a_request_behind_a_deferred_one_sees_what_another_engine_appended_meanwhile(
    make_engine, make_history, recompute
):
    engine, other, history = make_engine(), make_engine(), make_history(4, 45)
    first, second, third = engine.answer([query("u", history[:40]), query("u", EMPTY), query("v", make_history(2, 30))])
    answers = dict(engine.turn())
    assert engine.log.length(b"u") == 40
    other.answer([query("u", history[40:])])
    answers |= take_turns(engine)
    assert [answers[ticket].length for ticket in (first, second, third)] == [40, 45, 30]
    assert_answers(answers[first], recompute(history[:40]))
    assert_answers(answers[second], recompute(history))


def test_retries_gaps_and_appends_alone_are_answered_behind_a_deferred_one(make_engine, make_history, recompute):
    engine, history = make_engine(), make_history(5, 60)
    tickets = engine.answer(
        [
            query("u", history[:40], position=0),
            query("u", history[50:], position=50),
            query("u", history[40:43], position=40, k=0),
            query("u", history[:43], position=0),
        ]
    )
    answers = take_turns(engine)
    assert [answers[ticket].status for ticket in tickets] == [Status.OK, Status.GAP, Status.OK, Status.OK]
    assert [answers[ticket].length for ticket in tickets] == [40, 40, 43, 43]
    assert_answers(answers[tickets[3]], recompute(history[:43]))
    np.testing.assert_array_equal(engine.log.read(b"u", 0, 43), history[:43])


def test_a_turn_is_short_and_fair(make_engine, make_history):
    engine = make_engine(chunk_events=64, memory_bytes=16 << 20)
    histories = {f"user {seed}": make_history(seed, 23) for seed in range(8)}
    tickets = engine.answer([query(user, history) for user, history in histories.items()])
    done, before = {}, 0
    while len(done) < 8:
        answers = dict(engine.turn())
        computed = engine.observations.events_computed
        assert computed - before <= 64
        before = computed
        done |= answers
    assert list(done) == tickets, "who came first is done first, when all need the same"


def test_a_turn_appends_a_long_history_or_computes(make_engine, make_history, recompute):
    engine, history = make_engine(chunk_events=16), make_history(9, 60)
    (ticket,) = engine.answer([query("u", history)])
    assert engine.turn() == []
    assert engine.log.length(b"u") == 60
    assert engine.observations.events_computed == 0
    engine.turn()
    assert 0 < engine.observations.events_computed <= 16
    assert_answers(take_turns(engine)[ticket], recompute(history))


def test_a_short_one_overtakes_a_long_one(network, log, make_history):
    engine = Engine(network, log, EngineConfig(page_size=16, inline_events=4, chunk_events=8, memory_bytes=4 << 20))
    long, short = engine.answer([query("long", make_history(1, 500)), query("short", make_history(2, 8))])
    assert list(take_turns(engine)) == [short, long]


def test_a_pool_for_one_user_serves_many_cold_ones(network, log, make_history, recompute):
    config = EngineConfig(page_size=16, inline_events=8, chunk_events=16, memory_bytes=3 * 2 * 2 * 16 * 2 * 8 * 4)
    engine = Engine(network, log, config)
    histories = {f"user {seed}": make_history(seed, 50) for seed in range(9)}
    tickets = engine.answer([query(user, history) for user, history in histories.items()])
    answers = take_turns(engine)
    for ticket, history in zip(tickets, histories.values(), strict=True):
        assert_answers(answers[ticket], recompute(history))
    assert engine.observations.events_computed == 9 * network.config.receptive_field, "no work is thrown away"


def test_a_log_that_fails_answers_with_its_error_and_serves_on(make_engine, make_history, recompute, monkeypatch):
    engine, history = make_engine(), make_history(6, 60)

    def fail(appends):
        raise MachineError("event_log: the disk is full")

    (ticket,) = engine.answer([query("u", history)])
    with monkeypatch.context() as patch:
        patch.setattr(engine.log, "append", fail)
        answer = take_turns(engine)[ticket]
    assert isinstance(answer.error, MachineError)
    (answer,) = engine.answer_all([query("u", history, position=0)])
    assert_answers(answer, recompute(history))


def test_given_up_work_leaves_nothing_pinned(make_engine, make_history):
    engine = make_engine(chunk_events=8)
    engine.answer([query("a", make_history(1, 60)), query("b", make_history(2, 60))])
    for _ in range(2):  # one appends, the next computes
        assert not engine.turn()
    assert engine.pool.pinned.any()
    engine.give_up()
    assert not engine.has_work
    assert not engine.pool.pinned.any()


@pytest.mark.parametrize(("deferred", "warm"), [(False, False), (True, False), (False, True)])
def test_a_step_that_fails_leaves_memories_as_they_were(
    make_engine, make_history, recompute, monkeypatch, deferred, warm
):
    engine, history, fresh = make_engine(), make_history(8, 30), make_history(9, 60 if deferred else 6)
    engine.answer_all([query("u", history[:20])])
    pages = engine.pool.num_free_pages

    def fail(*inputs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        if warm:
            patch.setattr(engine._memory._warm._blocks, "run", fail)
        else:
            patch.setattr(engine._memory, "_warm", None)
        patch.setattr(engine.network, "forward", fail)
        with pytest.raises(RuntimeError):
            engine.answer_all([query("u", history[20:], position=20), query("v", fresh)])
    engine.give_up()
    engine.pool.drop(b"v")
    assert engine.pool.num_free_pages == pages
    answers = engine.answer_all([query("u", history[20:], position=20), query("v", fresh, position=0)])
    assert_answers(answers[0], recompute(history))
    assert_answers(answers[1], recompute(fresh))


def test_cold_users_are_warmed_in_order_while_pages_are_free(make_engine, make_history):
    engine = make_engine(memory_bytes=5 * 2 * 2 * 16 * 2 * 8 * 4)
    users = [b"user %d" % number for number in range(6)]
    engine.answer([Query(user, make_history(1, 10), -1, None, 0) for user in users])
    engine.warm_up([b"nobody", *users])
    take_turns(engine)
    warm = [user in engine.pool for user in users]
    assert warm == sorted(warm, reverse=True)
    assert 1 <= sum(warm) < 6
    assert engine.pool.evictions == 0


def test_a_cold_user_with_a_damaged_log_is_passed_over(make_engine, make_history, log):
    engine, length = make_engine(), 2 * CHUNK_EVENTS + 5
    engine.answer_all([query("hurt", make_history(1, length), k=0), query("well", make_history(2, 9), k=0)])
    with log._env.begin(write=True, db=log._events) as transaction:
        key = prefix_of(b"hurt") + PLACE.pack(CHUNK_EVENTS)
        value = transaction.get(key)
        transaction.put(key, value[:-1] + bytes([value[-1] ^ 1]))
    engine.warm_up([b"hurt", b"well"])
    for _ in range(9):
        engine.turn()
    assert not engine.has_work
    assert b"well" in engine.pool
    assert b"hurt" not in engine.pool


def test_a_full_pool_ends_the_warming_at_once(make_engine, make_history, monkeypatch):
    engine = make_engine(memory_bytes=3 * 2 * 2 * 16 * 2 * 8 * 4)
    engine.answer_all([query("u", make_history(1, 9))])
    monkeypatch.setattr(engine.log, "length", None)  # nobody is looked up
    engine.warm_up([b"%d" % number for number in range(10_000)])
    assert not engine.turn()
    assert not engine.has_work


def test_a_turn_comes_though_a_request_always_waits():
    left, requests = [0], [0]
    lanes = Lanes(lambda: bool(left[0]), lambda: bool(left[0]))

    def behind():
        while True:
            with lanes.behind() as holds:
                if not holds:
                    return
                left[0] -= 1

    def goes_on():
        return (left[0] or not requests[0]) and requests[0] < 20 * MAX_PASSING

    def ask():
        while goes_on():
            with lanes.front():
                left[0] = left[0] if requests[0] else 3
                requests[0] += 1
                while goes_on() and not lanes._in_front:  # the other request is there before this one is done
                    pass

    threads = [threading.Thread(target=target) for target in (behind, ask, ask)]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join(60)
    assert requests[0] < 20 * MAX_PASSING
    lanes.close()
    threads[0].join(10)


def test_a_request_goes_before_the_next_turn():
    work, order = [3], []
    lanes = Lanes(lambda: bool(work[0]), lambda: bool(work[0]))
    in_turn, asked = threading.Event(), threading.Event()

    def behind():
        while True:
            with lanes.behind() as holds:
                if not holds:
                    return
                order.append("turn")
                in_turn.set()
                assert asked.wait(10)
                work[0] -= 1

    thread = threading.Thread(target=behind)
    thread.start()
    assert in_turn.wait(10)

    def ask():
        with lanes.front():
            order.append("request")

    request = threading.Thread(target=ask)
    request.start()
    while not lanes._in_front:  # the request waits for the turn that runs
        pass
    asked.set()
    request.join(10)
    while work[0]:
        pass
    lanes.close()
    thread.join(10)
    assert order == ["turn", "request", "turn", "turn"]


def test_users_that_only_ask_make_room_for_those_that_need_it(make_engine, make_history, recompute):
    """All pages are held by users of the same batch."""
    engine = make_engine(inline_events=24, memory_bytes=5 * 2 * 2 * 16 * 2 * 8 * 4)
    histories = [make_history(seed, 16) for seed in range(5)]
    for number, history in enumerate(histories):
        engine.answer_all([query(f"user {number}", history)])
    assert engine.pool.num_free_pages == 0
    fresh = make_history(9, 16)
    answers = engine.answer_all([*(query(f"user {number}", EMPTY) for number in range(5)), query("fresh", fresh)])
    for answer, history in zip(answers, [*histories, fresh], strict=True):
        assert_answers(answer, recompute(history))


@pytest.mark.parametrize("k", [0, 5])
def test_users_of_one_batch_that_exceed_a_step_are_all_answered(make_engine, make_history, recompute, k):
    engine, histories = make_engine(max_step_events=32), [make_history(seed, 15) for seed in range(6)]
    answers = engine.answer_all([query(f"user {n}", history, k=k) for n, history in enumerate(histories)])
    assert [answer.length for answer in answers] == [15] * 6
    if k:
        for answer, history in zip(answers, histories, strict=True):
            assert_answers(answer, recompute(history))


def rollout(user, events=EMPTY, *, horizon=6, beam=4):
    settings = Settings(k=5, horizon=horizon, beam=beam)
    return Query(user.encode(), events, -1, None, 5, settings)


def test_a_rollout_takes_a_step_a_turn_and_others_go_on(make_engine, make_history, recompute, monkeypatch):
    engine, history, other = make_engine(), make_history(1, 20), make_history(2, 120)
    engine.answer_all([query("roll", history)])
    (expected,) = make_engine().answer_all([rollout("roll")])
    pages, steps, run = engine.pool.num_free_pages, [], engine._memory._steps.run

    def counted(inputs):
        steps[-1].append(len(inputs.items))
        return run(inputs)

    monkeypatch.setattr(engine._memory._steps, "run", counted)
    rolled, long = engine.answer([rollout("roll"), query("long", other)])
    answers, order = {}, []
    while engine.has_work:
        steps.append([])
        found = dict(engine.turn())
        answers |= found
        order += found
        (warm,) = engine.answer([query(f"warm {len(steps)}", history[:3])])
        assert_answers(warm, recompute(history[:3]))
    assert max(len(each) for each in steps) <= 2, "a step of the network a turn, and one of the request between turns"
    assert order == [long, rolled] or order == [rolled, long]
    np.testing.assert_array_equal(answers[rolled].items, expected.items)
    np.testing.assert_allclose(answers[rolled].scores, expected.scores, atol=TOLERANCE)
    assert_answers(answers[long], recompute(other))
    assert not engine.pool.pinned.any()
    assert len(engine.pool) + len(engine.pool._free_rows) == engine.pool.num_pages
    for user in list(engine.pool._rows):
        engine.pool.drop(user)
    assert engine.pool.num_free_pages == engine.pool.num_pages
    assert pages < engine.pool.num_pages


@pytest.mark.parametrize("events", [0, 20])
def test_a_rollout_that_is_given_up_leaves_no_fork(make_engine, make_history, events):
    engine = make_engine()
    engine.answer_all([query("u", make_history(1, events), k=1)])
    free_pages, free_rows = engine.pool.num_free_pages, len(engine.pool._free_rows)
    engine.answer([rollout("u")])
    for _ in range(4):
        assert not engine.turn()
    assert engine.pool.num_free_pages < free_pages
    engine.give_up()
    assert (engine.pool.num_free_pages, len(engine.pool._free_rows)) == (free_pages, free_rows)
    assert not engine.pool.pinned.any()


def test_a_log_that_may_have_lost_events_begins_rollouts_anew(make_engine, make_history):
    engine = make_engine()
    engine.answer_all([query("u", make_history(1, 20))])
    (expected,) = engine.answer_all([rollout("u")])
    (ticket,) = engine.answer([rollout("u")])
    for _ in range(3):
        engine.turn()
    engine.log.generation += 1
    engine.answer([query("other", EMPTY)])
    assert engine.pool.num_free_pages == engine.pool.num_pages
    answer = take_turns(engine)[ticket]
    np.testing.assert_array_equal(answer.items, expected.items)
    np.testing.assert_allclose(answer.scores, expected.scores, atol=TOLERANCE)
    assert not engine.pool.pinned.any()


def test_rollouts_that_do_not_fit_together_take_turns(make_engine, make_history):
    page_bytes = 2 * 2 * 16 * 2 * 8 * 4
    engine = make_engine(memory_bytes=24 * page_bytes, chunk_events=16, inline_events=16)
    histories = {f"u{seed}": make_history(seed, 20) for seed in range(6)}
    roomy = make_engine()
    for user, history in histories.items():
        engine.answer_all([query(user, history)])
    answers = engine.answer_all([rollout(user, beam=8) for user in histories])
    for answer, expected in zip(answers, roomy.answer_all([rollout(user, beam=8) for user in histories]), strict=True):
        assert answer.error is None
        np.testing.assert_array_equal(answer.items, expected.items)
        np.testing.assert_allclose(answer.scores, expected.scores, atol=TOLERANCE)
    assert not engine.pool.pinned.any()


@pytest.mark.parametrize("known", [0, 10], ids=["cold", "behind"])
def test_a_request_that_retention_overtakes_is_answered_after_what_the_log_holds(
    network, tmp_path, make_history, recompute, known
):
    field = network.config.receptive_field
    log = LmdbLog(tmp_path / "short", durability="none", max_bytes=64 << 20, max_user_events=field + 1)
    config = EngineConfig(page_size=16, inline_events=8, chunk_events=16, memory_bytes=4 << 20)
    late, other = Engine(network, log, config), Engine(network, log, config)
    history = make_history(3, 400)
    if known:
        late.answer_all([query("u", history[:known])])
    other.answer_all([query("u", history[known : known + 20], k=0)])
    (ticket,) = late.answer([query("u", EMPTY)])
    assert isinstance(ticket, Ticket)
    for start in range(known + 20, 400, 40):
        other.answer_all([query("u", history[start : start + 40], k=0)])
    assert log.extent(b"u").first > known + 20
    answer = take_turns(late)[ticket]
    assert answer.error is None
    assert answer.length == log.length(b"u") == 400
    assert_answers(answer, recompute(history))
    log.close()
