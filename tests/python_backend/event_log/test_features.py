"""Events with features in the log: what was written is read, whatever number of columns each was written with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from longrec.errors import DataError
from longrec.protocol import Status
from longrec.python_backend.event_log import Append, Span
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.event_log.records import fit_columns


def events(seed: int, count: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack((rng.integers(0, 99, count), np.arange(count), rng.integers(0, 9, (count, columns - 2))))


def test_features_are_read_back_in_either_store(open_log: Callable[..., object]) -> None:
    log = open_log(num_features=3)
    rows = events(0, 200, 5)
    for start, stop in ((0, 1), (1, 60), (60, 70), (70, 200)):
        assert log.append([Append(b"u", start, rows[start:stop])])[0] == (Status.OK, 0, stop)
    assert log.append([Append(b"u", 190, np.vstack((rows[190:], events(1, 5, 5))))])[0] == (Status.OK, 10, 205)
    np.testing.assert_array_equal(log.read(b"u", 0, 200), rows)
    log = open_log(num_features=3)
    (found,) = log.read_many([Span(b"u", 63, 129)])
    np.testing.assert_array_equal(found, rows[63:129])


def test_item_and_time_say_which_event_it_is(open_log: Callable[..., object]) -> None:
    log = open_log(num_features=1)
    rows = events(0, 70, 3)
    log.append([Append(b"u", 0, rows)])
    other = rows.copy()
    other[:, 2] += 1
    assert log.append([Append(b"u", 0, other)])[0] == (Status.OK, 70, 70)
    other[69, 0] += 1
    assert log.append([Append(b"u", 60, other[60:])])[0] == (Status.CONFLICT, 10, 70)
    np.testing.assert_array_equal(log.read(b"u", 0, 70), rows)


def test_a_log_takes_on_features_and_loses_none(tmp_path: Path) -> None:
    """LMDB: models of 0, 2, 1 and 4 features write to and read from the same log, one after the other."""
    whole = np.zeros((0, 6), np.int64)
    for turn, features in enumerate((0, 2, 1, 4, 0, 4)):
        log = LmdbLog(tmp_path / "log", durability="none", max_bytes=1 << 24, num_features=features)
        new = events(turn, 50, 2 + features)
        for start in range(0, 50, 10):
            at = len(whole)
            position = -1 if start % 20 else at
            assert log.append([Append(b"u", position, new[start : start + 10])])[0].length == at + 10
            whole = np.vstack((whole, fit_columns(new[start : start + 10], 6)))
        np.testing.assert_array_equal(log.read(b"u", 0, len(whole)), whole[:, : 2 + features])
        again = fit_columns(whole, 2 + features)
        assert log.append([Append(b"u", 0, again)])[0] == (Status.OK, len(whole), len(whole))
        log.close()


def test_redis_refuses_a_store_of_other_features(redis_server):
    from longrec.python_backend.event_log.redis_log import RedisLog

    log = RedisLog(redis_server.url, num_features=2)
    log.append([Append(b"u", 0, events(0, 3, 4))])
    log.close()
    with pytest.raises(DataError, match=r"expected a log of format 2, got 2\+2 .*features"):
        RedisLog(redis_server.url)
