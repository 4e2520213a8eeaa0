"""What is new in a log since positions that a reader remembers, of either store."""

from pathlib import Path

import numpy as np
import pytest

from longrec.config import EngineConfig
from longrec.errors import ArgumentError
from longrec.python_backend.event_log import Append, open_event_log
from longrec.python_backend.event_log.newest import holds, read_new
from longrec.python_backend.event_log.opening import open_written_log


def test_new_events_come_with_as_much_of_the_past_as_is_asked_for(log, rows) -> None:
    log.append([Append(b"a", 0, rows(*range(100))), Append(b"b", 0, rows(7)), Append(b"c", 0, rows(1, 2))])
    found = read_new(log, {b"a": 90, b"b": 1, b"gone": 5}, context=3)
    by_user = dict(zip(found.users, zip(found.rows, found.fresh, found.lengths, strict=True), strict=True))
    assert by_user.keys() == {b"a", b"c"}
    np.testing.assert_array_equal(by_user[b"a"][0], rows(*range(87, 100)))
    assert by_user[b"a"][1:] == (10, 100)
    np.testing.assert_array_equal(by_user[b"c"][0], rows(1, 2))
    assert by_user[b"c"][1:] == (2, 2)
    assert found.damaged == 0
    everything = read_new(log, {b"a": 90}, context=None)
    assert sorted(map(len, everything.rows)) == [1, 2, 100]


def test_what_retention_has_dropped_is_not_missed(open_log, rows) -> None:
    log = open_log(max_user_events=64)
    for start in range(0, 256, 64):
        log.append([Append(b"a", start, rows(*range(start, start + 64)))])
    first, length = log.extent(b"a")
    assert first > 0
    found = read_new(log, {b"a": 1}, context=None)
    assert (found.fresh.tolist(), found.lengths.tolist()) == ([length - first], [256])
    np.testing.assert_array_equal(found.rows[0], rows(*range(first, length)))


def test_a_damaged_users_log_is_counted_and_the_others_read(log, rows, monkeypatch) -> None:
    log.append([Append(b"a", 0, rows(1)), Append(b"b", 0, rows(2))])
    read_many = type(log).read_many

    def damaged(self, spans):
        flipped = [span._replace(stop=span.stop + 1) if span.user == b"a" else span for span in spans]
        return read_many(self, flipped)

    monkeypatch.setattr(type(log), "read_many", damaged)
    found = read_new(log, {}, context=None)
    assert (found.users, found.damaged) == ([b"b"], 1)


def test_a_log_to_be_read_must_be_there(tmp_path: Path, rows) -> None:
    config = EngineConfig(event_log="log", log_bytes=1 << 20, max_user_events=100)
    with pytest.raises(ArgumentError, match="event_log=log: expected the folder of an event log"):
        open_written_log(config, tmp_path)
    assert not (tmp_path / "log").exists()
    written = open_event_log(config, tmp_path, 1)
    written.append([Append(b"a", 0, rows(1))])
    written.close()
    read = open_written_log(config, tmp_path)
    assert read.length(b"a") == 1
    read.close()


def test_histories_that_were_put_into_the_log_are_recognised(log, rows) -> None:
    log.append([Append(b"same", 0, rows(1, 2, 3)), Append(b"other", 0, rows(1, 9, 3)), Append(b"short", 0, rows(2))])
    last = rows(2)[0]
    newest = dict.fromkeys((b"same", b"other", b"short", b"absent"), (2, last))
    assert holds(log, newest) == {b"same": 2}
