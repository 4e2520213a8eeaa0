"""The order of users outlives kills and full logs, is bounded, and costs no event."""

import time

import lmdb
import numpy as np

from longrec.python_backend.event_log import Append
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.event_log.recency import PAGES_KEPT, RecentUsers, page_of_users, users_of_page


def test_a_page_holds_any_keys_and_a_damaged_one_none():
    users = [b"a", b"\xff" * 256, "gän".encode(), b"\0"]
    page = page_of_users(users)
    assert users_of_page(page) == users[::-1]
    assert users_of_page(b"") == users_of_page(page[:-1]) == users_of_page(b"\xff" + page) == []


def test_it_is_written_now_and_then_and_page_by_page():
    recent = RecentUsers()
    assert not recent.is_due
    recent.note([b"a", b"b", b"a"])
    first = recent.page()
    assert users_of_page(first.users) == [b"a", b"b"]
    assert first.replaces is None
    recent.written(first)
    recent.note([b"b"])
    assert not recent.is_due, "not again within a second"
    recent.note([b"%05d" % n for n in range(10_000)])
    second = recent.page()
    assert second.replaces == first.place
    assert users_of_page(second.users)[-2:] == [b"b", b"a"]
    recent.written(second)
    recent.note([b"c"])
    third = recent.page()
    assert (users_of_page(third.users), third.replaces) == ([b"c"], None), "a full page stays"


def test_an_older_log_is_listed_in_no_order(tmp_path, rows):
    """One that kept no order yet; and of the users whose place in it was forgotten."""
    log = LmdbLog(tmp_path, durability="none", max_bytes=64 << 20)
    log.append([Append(b"%d" % n, 0, rows(*range(70))) for n in range(100)])
    log.close()
    with lmdb.open(str(tmp_path), max_dbs=2, map_size=64 << 20) as environment, environment.begin(write=True) as change:
        meta = environment.open_db(b"meta", change)
        for key in [key for key, _ in change.cursor(meta) if key != b"format"]:
            change.delete(key, db=meta)
    log = LmdbLog(tmp_path, durability="none", max_bytes=64 << 20)
    assert sorted(log.recent_users(1000)) == sorted(b"%d" % n for n in range(100))
    log.append([Append(b"77", -1, rows(1))])
    assert log.recent_users(1000)[0] == b"77"
    assert len(log.recent_users(50)) == 50
    log.close()


def test_its_pages_are_bounded(tmp_path, rows):
    for n in range(PAGES_KEPT + 5):  # each start begins a page
        log = LmdbLog(tmp_path, durability="none", max_bytes=64 << 20)
        log.append([Append(b"%d" % n, 0, rows(1))])
        log.close()
    with lmdb.open(str(tmp_path), max_dbs=2) as environment, environment.begin() as view:
        assert view.stat(environment.open_db(b"meta", view))["entries"] == PAGES_KEPT + 1
    log = LmdbLog(tmp_path, durability="none", max_bytes=64 << 20)
    assert log.recent_users(3) == [b"%d" % n for n in range(PAGES_KEPT + 4, PAGES_KEPT + 1, -1)]
    assert len(log.recent_users(1000)) == PAGES_KEPT + 5
    log.close()


def test_where_the_order_has_no_room_the_events_go_in_without_it(tmp_path, rows, monkeypatch):
    monkeypatch.setattr("longrec.python_backend.event_log.recency.page_of_users", lambda users: bytes(1 << 20))
    monkeypatch.setattr("longrec.python_backend.event_log.recency.WRITE_SECONDS", 0.0)
    log = LmdbLog(tmp_path, durability="none", max_bytes=1 << 19)
    for n in range(10):
        (outcome,) = log.append([Append(b"u", n, rows(n))])
        assert outcome.length == n + 1
    log.close()
    log = LmdbLog(tmp_path, durability="none", max_bytes=1 << 19)
    np.testing.assert_array_equal(log.read(b"u", 0, 10), rows(*range(10)))
    log.close()


def test_the_flushers_thread_and_appends_agree_on_the_lag(tmp_path, rows):
    log = LmdbLog(tmp_path, durability="interval", flush_milliseconds=1, max_bytes=64 << 20)
    for n in range(300):
        log.append([Append(b"u", n, rows(n))])
        assert 0.0 <= log.lag_seconds() < 20.0
    deadline = time.monotonic() + 20
    while log.lag_seconds():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    log.close()
