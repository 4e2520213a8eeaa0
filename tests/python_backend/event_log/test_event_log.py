"""Either store appends once, keeps positions true, and behaves like plain lists."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from longrec.errors import DataError, MachineError
from longrec.protocol import Status
from longrec.python_backend.event_log import Append, Span
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.event_log.records import CHUNK_EVENTS
from longrec.python_backend.event_log.redis_log import RedisLog


def test_compare_and_append(log, rows):
    assert log.append([Append(b"u", 0, rows(1, 2, 3))]) == [(Status.OK, 0, 3)]
    assert log.append([Append(b"u", 1, rows(2, 3, 4))]) == [(Status.OK, 2, 4)]
    assert log.append([Append(b"u", 0, rows(1, 2))]) == [(Status.OK, 2, 4)]
    assert log.append([Append(b"u", 5, rows(9))]) == [(Status.GAP, 1, 4)]
    assert log.append([Append(b"u", -1, rows(5, 6))]) == [(Status.OK, 0, 6)]
    assert log.append([Append(b"u", -1, rows()), Append(b"v", 1, rows())]) == [(Status.OK, 0, 6), (Status.GAP, 0, 0)]
    np.testing.assert_array_equal(log.read(b"u", 0, 6), rows(1, 2, 3, 4, 5, 6))
    np.testing.assert_array_equal(log.read(b"u", 2, 5), rows(3, 4, 5))
    assert log.read(b"u", 3, 3).shape == (0, 2)


def test_any_int64_is_kept(log):
    extremes = np.array([[-(1 << 63), (1 << 63) - 1], [-1, 0]])
    log.append([Append(b"u", 0, extremes[:1]), Append(b"u", 1, extremes[1:])])
    np.testing.assert_array_equal(log.read(b"u", 0, 2), extremes)


def test_events_that_lie_apart_in_memory_are_kept(log):
    grid = np.arange(60).reshape(10, 6)
    log.append([Append(b"u", 0, grid[::2, 1:5:3])])
    np.testing.assert_array_equal(log.read(b"u", 0, 5), grid[::2, 1:5:3])


@pytest.mark.parametrize("step", [1, CHUNK_EVENTS - 1, CHUNK_EVENTS, CHUNK_EVENTS + 1, 5 * CHUNK_EVENTS])
def test_chunk_edges(log, rows, step):
    total = 3 * CHUNK_EVENTS + 2
    events = rows(*range(total))
    for start in range(0, total, step):
        (outcome,) = log.append([Append(b"u", start, events[start : start + step])])
        assert outcome == (Status.OK, 0, min(start + step, total))
    edges = [0, 1, CHUNK_EVENTS - 1, CHUNK_EVENTS, CHUNK_EVENTS + 1, 2 * CHUNK_EVENTS, total - 1, total]
    for start, stop in itertools.combinations(edges, 2):
        np.testing.assert_array_equal(log.read(b"u", start, stop), events[start:stop])


def test_users_whose_keys_begin_alike_are_apart(log, rows):
    keys = [b"a", b"a\0", b"ab", b"b", b"\xff" * 256, b"\0", b"\0\0"]
    log.append([Append(key, 0, rows(*range(10 + n))) for n, key in enumerate(keys)])
    assert [log.length(key) for key in keys] == [10, 11, 12, 13, 14, 15, 16]
    assert log.length(b"aa") == log.length(b"\xff" * 255) == log.length(b"") == 0


def test_several_appends_of_a_user_in_one_transaction(log, rows):
    outcomes = log.append([Append(b"u", 0, rows(1)), Append(b"u", 1, rows(2)), Append(b"u", 1, rows(2))])
    assert outcomes == [(Status.OK, 0, 1), (Status.OK, 0, 2), (Status.OK, 1, 2)]
    np.testing.assert_array_equal(log.read(b"u", 0, 2), rows(1, 2))


def test_reading_past_the_end_is_an_error(log, rows):
    log.append([Append(b"u", 0, rows(1, 2))])
    with pytest.raises(DataError, match=r"expected events 0..4 of a user, got a log of 0..1; it is shorter"):
        log.read(b"u", 0, 5)


def test_retention_keeps_the_newest_and_their_positions(open_log, rows):
    keep = 100
    log, events = open_log(max_user_events=keep), rows(*range(1000))
    for start in range(0, 1000, 9):
        before = log.length(b"u")
        log.append([Append(b"u", start, events[start : start + 9])])
        first, length = log.extent(b"u")
        assert length == min(start + 9, 1000)
        assert first % CHUNK_EVENTS == 0
        assert first <= max(0, before - keep), "what was needed before this append is there after it"
        assert length - first < keep + 2 * CHUNK_EVENTS + 9
        np.testing.assert_array_equal(log.read(b"u", first, length), events[first:length])
    assert first > 0
    with pytest.raises(DataError, match="dropped by max_user_events"):
        log.read(b"u", first - 1, length)
    assert log.append([Append(b"u", 990, events[990:])]) == [(Status.OK, 10, 1000)], "a retry is still known"


def test_a_lower_limit_takes_hold_when_the_log_is_opened_again(open_log, rows):
    log = open_log()
    log.append([Append(b"u", 0, rows(*range(1000))), Append(b"quiet", 0, rows(*range(1000)))])
    log = open_log(max_user_events=70)
    assert log.extent(b"u") == (0, 1000)
    log.append([Append(b"u", 1000, rows(*range(1000, 1100)))])
    assert log.extent(b"u") == (896, 1100)
    assert log.extent(b"quiet") == (0, 1000)
    log.append([Append(b"u", 1100, rows(*range(1100, 1200)))])
    np.testing.assert_array_equal(log.read(b"u", 1030, 1200), rows(*range(1030, 1200)))


def test_a_full_log_appends_nothing_and_stays_usable(open_log, rows):
    log, big, held = open_log(max_bytes=1 << 19), rows(*range(4_000)), 0

    def append_until_full():
        nonlocal held
        while True:
            log.append([Append(b"user %d" % held, 0, big), Append(b"both", held, rows(held))])
            held += 1

    with pytest.raises(MachineError, match=r"nothing was appended.*raise log_bytes, or set max_user_events"):
        append_until_full()
    assert held >= 3
    assert log.length(b"both") == held
    assert log.length(b"user %d" % held) == 0, "a transaction that failed left its first half"
    np.testing.assert_array_equal(log.read(b"user 0", 0, 4_000), big)
    assert log.append([Append(b"both", held, rows())]) == [(Status.OK, 0, held)]


@pytest.mark.parametrize("length", [3, CHUNK_EVENTS, CHUNK_EVENTS + 1, 3 * CHUNK_EVENTS + 5])
def test_another_event_at_a_position_is_a_conflict_and_nothing_is_written(log, rows, length):
    events = rows(*range(length + 2))
    log.append([Append(b"u", 0, events[:length])])
    for place in {0, 1, length // 2, CHUNK_EVENTS - 1, CHUNK_EVENTS, length - 1} & set(range(length)):
        for column in (0, 1):
            other = events.copy()
            other[place, column] += 1
            for start, stop in ((0, length), (0, length + 2), (place, place + 1), (place, length + 2)):
                outcomes = log.append(
                    [Append(b"u", start, other[start:stop]), Append(b"u", start, events[start:length])]
                )
                assert outcomes == [(Status.CONFLICT, stop - start, length), (Status.OK, length - start, length)]
            if place + 1 < length:  # what lies beside it is still as it was
                assert log.append([Append(b"u", place + 1, other[place + 1 : length])])[0].status is Status.OK
    assert log.length(b"u") == length
    np.testing.assert_array_equal(log.read(b"u", 0, length), events[:length])
    assert log.append([Append(b"u", 0, events)]) == [(Status.OK, length, length + 2)]


def test_a_conflict_leaves_the_others_of_its_batch_alone(log, rows):
    log.append([Append(b"u", 0, rows(1, 2))])
    batch = [
        Append(b"v", 0, rows(1)),
        Append(b"u", 2, rows(3)),
        Append(b"u", 1, rows(2, 4)),  # another event than the one before it in this batch
        Append(b"u", 2, rows(3, 4)),
        Append(b"w", -1, rows(7)),
        Append(b"w", 0, rows(7, 8)),
        Append(b"w", 0, rows(8)),
    ]
    ok, conflict = Status.OK, Status.CONFLICT
    assert log.append(batch) == [
        (ok, 0, 1),
        (ok, 0, 3),
        (conflict, 2, 3),
        (ok, 1, 4),
        (ok, 0, 1),
        (ok, 1, 2),
        (conflict, 1, 2),
    ]
    np.testing.assert_array_equal(log.read(b"u", 0, 4), rows(1, 2, 3, 4))
    np.testing.assert_array_equal(log.read(b"w", 0, 2), rows(7, 8))
    assert log.length(b"v") == 1


def test_appends_of_a_batch_are_compared_across_a_chunks_edge(log, rows):
    events, other = rows(*range(200)), rows(*range(1, 201))
    log.append([Append(b"u", 0, events[:60])])
    batch = [
        Append(b"u", 60, events[60:150]),
        Append(b"u", 50, events[50:160]),
        Append(b"u", 130, events[130:155]),
        Append(b"u", 130, other[130:155]),
        Append(b"u", 159, other[159:]),
        Append(b"u", 159, events[159:]),
    ]
    expected = [(0, 0, 150), (0, 100, 160), (0, 25, 160), (2, 25, 160), (2, 41, 160), (0, 1, 200)]
    assert log.append(batch) == expected
    np.testing.assert_array_equal(log.read(b"u", 0, 200), events)


def test_what_retention_dropped_counts_as_equal(open_log, rows):
    log, events = open_log(max_user_events=70), rows(*range(300))
    for start in range(0, 300, 50):
        log.append([Append(b"u", start, events[start : start + 50])])
    first, length = log.extent(b"u")
    assert first > CHUNK_EVENTS
    other = events.copy()
    other[:first] += 1
    ok, conflict = Status.OK, Status.CONFLICT
    assert log.append([Append(b"u", 0, other)]) == [(ok, 300, 300)]
    assert log.append([Append(b"u", 3, other[3:first])]) == [(ok, first - 3, 300)]
    other[first] += 1
    assert log.append([Append(b"u", 0, other)]) == [(conflict, 300, 300)]
    assert log.append([Append(b"u", first, other[first:])]) == [(conflict, 300 - first, 300)]
    assert log.extent(b"u") == (first, length)


BACK = st.sampled_from([-1, 0, 1, 1, 2, 3, 40, 200])
COUNTS = st.sampled_from([0, 1, 2, CHUNK_EVENTS - 1, CHUNK_EVENTS, CHUNK_EVENTS + 1, 2 * CHUNK_EVENTS])


class _Lists(RuleBasedStateMachine):
    """A log against plain lists. `open_log` is set by the test; users are new in every run of the machine."""

    open_log = None
    runs = itertools.count()
    KEEP = 90

    @initialize(limited=st.booleans())
    def begin(self, limited):
        run = next(self.runs)
        self.settings = {"max_user_events": self.KEEP} if limited else {}
        self.log = self.open_log(**self.settings)
        self.lists = {b"%d %s" % (run, name): [] for name in (b"a", b"ab", b"b")}
        self.items = itertools.count()

    @rule(appends=st.lists(st.tuples(st.integers(0, 2), BACK, COUNTS, st.integers(-1, 3)), max_size=4))
    def append(self, appends):
        """Each append: whose, from how far before (or past) the end or unchecked, how many events, and which of those
        that the log has is another one (-1: none)."""
        batch, expected = [], []
        for user, back, count, wrong in appends:
            name = sorted(self.lists)[user]
            held = self.lists[name]
            position = -1 if back < 0 else max(0, len(held) + 1 - back)
            skipped = 0 if position < 0 else min(max(len(held) - position, 0), count)
            sent = [*held[position : position + skipped], *(next(self.items) for _ in range(count - skipped))]
            differs = 0 <= wrong < skipped
            if differs:
                sent[wrong] = next(self.items)
            batch.append(Append(name, position, np.array([(item, 0) for item in sent], np.int64).reshape(-1, 2)))
            if position > len(held):
                expected.append((Status.GAP, count, len(held)))
                continue
            if differs and position + wrong >= self.first(name):
                expected.append((Status.CONFLICT, count, len(held)))
                continue
            held += sent[skipped:]
            expected.append((Status.OK, skipped, len(held)))
        assert self.log.append(batch) == expected

    def first(self, name):
        """Oldest position that was there before this batch."""
        return self.log.extent(name).first

    @rule()
    def reopen(self):
        self.log = self.open_log(**self.settings)

    @invariant()
    def same(self):
        for name, held in getattr(self, "lists", {}).items():
            first, length = self.log.extent(name)
            assert length == len(held)
            assert first == 0 or (self.settings and length - first >= self.KEEP)
            assert self.log.read(name, first, length)[:, 0].tolist() == held[first:]


def test_it_behaves_like_plain_lists(open_log):
    machine = type("Lists", (_Lists,), {"open_log": staticmethod(open_log)})
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=12, deadline=None))


def test_many_spans_are_read_at_once_and_one_that_is_missing_fails_alone(log, rows):
    log.append([Append(b"%d" % n, 0, rows(*range(n, n + 100))) for n in range(5)])
    spans = [Span(b"0", 60, 70), Span(b"1", 0, 101), Span(b"2", 5, 5), Span(b"none", 0, 1), Span(b"4", 99, 100)]
    first, past, empty, none, last = log.read_many(spans)
    np.testing.assert_array_equal(first, rows(*range(60, 70)))
    np.testing.assert_array_equal(last, rows(103))
    assert isinstance(past, DataError)
    assert isinstance(none, DataError)
    assert empty.shape == (0, 2)
    assert log.read_many([]) == []


def test_the_users_who_appended_last_come_first(open_log, rows):
    log = open_log()
    assert log.recent_users(9) == []
    for user in (b"a", b"b", b"c", b"a"):
        log.append([Append(user, -1, rows(1))])
        sleep_a_millisecond()
    log.append([Append(b"b", -1, rows())])  # asks, appends nothing
    assert log.recent_users(9) == [b"a", b"c", b"b"]
    assert log.recent_users(2) == [b"a", b"c"]
    assert log.recent_users(0) == []
    log = open_log()
    assert log.recent_users(9) == [b"a", b"c", b"b"], "and after a start"
    log.append([Append(b"b", 1, rows(1)), Append(b"d", 0, rows(1))])
    assert set(log.recent_users(2)) == {b"b", b"d"}, "those of a batch in any order"
    assert log.recent_users(9)[2:] == [b"a", b"c"]


def sleep_a_millisecond():
    """Redis's order has the resolution of a millisecond."""
    begin = time.time_ns()
    while time.time_ns() < begin + 2_000_000:
        pass


def test_its_size_is_told_and_limited(open_log, rows):
    log = open_log(max_bytes=1 << 22)
    before, limit = log.size()
    assert limit == 1 << 22
    log.append([Append(b"%d" % n, 0, rows(*range(64))) for n in range(100)])
    used, _ = log.size()
    assert 100 * 64 * 16 <= used - before <= 3 * 100 * 64 * 16


@pytest.mark.parametrize("durability", ["commit", "interval", "none"])
def test_lag_is_what_is_not_on_disk_yet(tmp_path, make_redis_server, rows, durability):
    server = make_redis_server("--appendonly", "yes", "--appendfsync", "always")
    for log in (
        LmdbLog(tmp_path, durability=durability, max_bytes=1 << 20),
        RedisLog(server.url, durability=durability),
    ):
        if durability == "none":
            assert np.isnan(log.lag_seconds())
        else:
            assert log.lag_seconds() == 0.0
            log.append([Append(b"u", 0, rows(1))])
            lag = log.lag_seconds()
            assert 0.0 < lag < 5.0 if durability == "interval" else lag == 0.0
            deadline = time.monotonic() + 20
            while log.lag_seconds():
                assert time.monotonic() < deadline, "a flush brings it back to 0"
                time.sleep(0.01)
        log.close()
