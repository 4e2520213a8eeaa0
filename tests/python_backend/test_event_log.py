"""The log appends once, keeps what it acknowledged, and says so when a record is damaged."""

import subprocess
import sys

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.errors import DataError, MachineError
from longrec.protocol import Status
from longrec.python_backend.event_log import Append, EventLog


def rows(*items):
    return np.array([(item, 1_000 * item) for item in items], np.int64).reshape(-1, 2)


def test_compare_and_append(log):
    assert log.append([Append(b"u", 0, rows(1, 2, 3))]) == [(Status.OK, 0, 3)]
    assert log.append([Append(b"u", 1, rows(2, 3, 4))]) == [(Status.OK, 2, 4)]
    assert log.append([Append(b"u", 0, rows(1, 2))]) == [(Status.OK, 2, 4)]
    assert log.append([Append(b"u", 5, rows(9))]) == [(Status.GAP, 1, 4)]
    assert log.append([Append(b"u", -1, rows(5, 6))]) == [(Status.OK, 0, 6)]
    np.testing.assert_array_equal(log.read(b"u", 0, 6), rows(1, 2, 3, 4, 5, 6))
    np.testing.assert_array_equal(log.read(b"u", 2, 5), rows(3, 4, 5))


def test_users_whose_keys_begin_alike_are_apart(log):
    keys = [b"a", b"a\0", b"ab", b"b", b"\xff" * 256]
    log.append([Append(key, 0, rows(*range(10 + n))) for n, key in enumerate(keys)])
    assert [log.length(key) for key in keys] == [10, 11, 12, 13, 14]
    assert log.length(b"aa") == log.length(b"\xff" * 255) == log.length(b"") == 0


def test_several_appends_of_a_user_in_one_transaction(log):
    outcomes = log.append([Append(b"u", 0, rows(1)), Append(b"u", 1, rows(2)), Append(b"u", 1, rows(2))])
    assert outcomes == [(Status.OK, 0, 1), (Status.OK, 0, 2), (Status.OK, 1, 2)]


def test_reading_past_the_end_is_an_error(log):
    log.append([Append(b"u", 0, rows(1, 2))])
    with pytest.raises(DataError, match=r"expected events 0..4 of a user"):
        log.read(b"u", 0, 5)


def test_events_survive_a_killed_process(tmp_path):
    code = (
        "import sys, os, signal, pathlib, numpy as np\n"
        "from longrec.python_backend.event_log import Append, EventLog\n"
        f"log = EventLog(pathlib.Path({str(tmp_path)!r}), max_bytes=1 << 26)\n"
        "for n in range(50): log.append([Append(b'u', n, np.array([[n, n]]))])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    log = EventLog(tmp_path, max_bytes=1 << 26)
    assert log.length(b"u") == 50
    log.close()


def test_a_damaged_record_is_found_by_its_checksum(tmp_path):
    log = EventLog(tmp_path, max_bytes=1 << 26)
    log.append([Append(b"u", 0, rows(1, 2, 3)), Append(b"other", 0, rows(7))])
    log.close()
    with lmdb.open(str(tmp_path)) as environment, environment.begin(write=True) as transaction:
        key, value = next((k, v) for k, v in transaction.cursor() if k[2:3] == b"u")
        transaction.put(key, value[:-3] + bytes([value[-3] ^ 1]) + value[-2:])
    log = EventLog(tmp_path, max_bytes=1 << 26)
    with pytest.raises(DataError, match="checksum"):
        log.read(b"u", 0, 3)
    np.testing.assert_array_equal(log.read(b"other", 0, 1), rows(7))
    log.close()


def test_a_full_log_appends_nothing_and_stays_usable(tmp_path):
    log = EventLog(tmp_path, max_bytes=1 << 18)
    big = rows(*range(4_000))
    held = 0

    def append():
        log.append([Append(str(held).encode(), 0, big), Append(b"both", held, rows(held))])

    while held < 3:  # 64 kB each
        append()
        held = log.length(b"both")
    with pytest.raises(MachineError, match="nothing was appended"):
        append()
    assert log.length(b"both") == held
    assert log.length(str(held).encode()) == 0, "a transaction that failed left its first half"
    np.testing.assert_array_equal(log.read(b"0", 0, 4_000), big)
    log.close()


def test_a_folder_that_cant_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"event_log=.*file.*: expected a folder that can be written"):
        EventLog(tmp_path / "file" / "log")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([b"a", b"ab", b"b"]), st.integers(-1, 12), st.integers(0, 5)), max_size=25))
def test_it_behaves_like_plain_lists(tmp_path_factory, appends):
    log = EventLog(tmp_path_factory.mktemp("log"), durability="none", max_bytes=1 << 24)
    lists: dict[bytes, list[int]] = {b"a": [], b"ab": [], b"b": []}
    for n, (user, position, count) in enumerate(appends):
        events = rows(*range(100 * n, 100 * n + count))
        held = lists[user]
        (outcome,) = log.append([Append(user, position, events)])
        if position > len(held):
            assert outcome.status is Status.GAP
        else:
            assert outcome.status is Status.OK
            skipped = 0 if position == -1 else min(len(held) - position, count)
            held += [int(item) for item in events[skipped:, 0]]
        assert outcome.length == len(held)
    for user, held in lists.items():
        assert log.length(user) == len(held)
        for start in range(len(held)):
            assert log.read(user, start, len(held))[:, 0].tolist() == held[start:]
    log.close()
