"""The LMDB log under what a disk, a kill and other processes do to it."""

import os
import random
import re
import resource
import struct
import subprocess
import sys
import threading
import time

import lmdb
import numpy as np
import pytest

from longrec.errors import DataError, MachineError
from longrec.protocol import Status
from longrec.python_backend.event_log import Append, Appended
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.event_log.log import Span

PREAMBLE = """
import pathlib, sys, numpy as np
from longrec.python_backend.event_log import Append
from longrec.python_backend.event_log.lmdb_log import LmdbLog
folder = pathlib.Path(sys.argv[1])
def rows(*items): return np.array([(item, 1_000 * item + 7) for item in items], np.int64).reshape(-1, 2)
"""
# acknowledges on its standard output each append of three users' next event, an unchecked one among them
WRITER = """
log = LmdbLog(folder, durability=sys.argv[2], max_bytes=64 << 20)
n = log.length(b"a")
while True:
    log.append([Append(b"a", n, rows(n)), Append(b"b", -1, rows(n, n)), Append(b"c", n, rows(n))])
    n += 1
    sys.stdout.write(f"{n}\\n")
    sys.stdout.flush()
"""


def run(code, *arguments, **settings):
    command = [sys.executable, "-c", PREAMBLE + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **settings)


def open_log(folder, **settings):
    return LmdbLog(folder, **{"durability": "none", "max_bytes": 64 << 20, **settings})


def is_contiguous(log, n):
    """Whether n events of each user are there, once each."""
    once = np.arange(n)
    return (
        (log.read(b"a", 0, n)[:, 0] == once).all()
        and (log.read(b"b", 0, 2 * n)[:, 0] == np.repeat(once, 2)).all()
        and (log.read(b"c", 0, n)[:, 0] == once).all()
        and [log.length(user) for user in (b"a", b"b", b"c")] == [n, 2 * n, n]
    )


@pytest.mark.parametrize("durability", ["commit", "interval"])
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)], ids="kills{}".format)
def test_every_acknowledged_event_is_there_once_after_a_kill(tmp_path, durability, kills):
    moments, acknowledged = random.Random(5), 0
    for _ in range(kills):
        process = run(WRITER, tmp_path / "log", durability)
        lines = iter(process.stdout)
        acknowledged = int(next(lines))
        time.sleep(moments.uniform(0.0, 0.1))
        process.kill()
        acknowledged = max([acknowledged, *(int(line) for line in lines if line.endswith("\n"))])
        process.wait()
        process.stdout.close()
        log = open_log(tmp_path / "log")
        n = log.length(b"a")
        assert n in (acknowledged, acknowledged + 1), "the append that was under way may be there, and no other"
        assert is_contiguous(log, n)
        log.close()


def test_processes_share_a_folder(tmp_path, rows):
    """Two writers append 200 events a user each, unchecked, and this process sees them while they run."""
    code = """
log = LmdbLog(folder, max_bytes=64 << 20)
for n in range(200): log.append([Append(b"both", -1, rows(n)), Append(sys.argv[2].encode(), n, rows(n))])
log.close()
"""
    log = open_log(tmp_path / "log")
    writers = [run(code, tmp_path / "log", name) for name in ("x", "y")]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        length = log.length(b"both")
        assert length >= seen
        seen = length
        if length:
            log.read(b"both", 0, length)
    assert [writer.returncode for writer in writers] == [0, 0]
    for writer in writers:
        writer.stdout.close()
    items = log.read(b"both", 0, 400)[:, 0]
    assert sorted(items) == sorted([*range(200), *range(200)])
    np.testing.assert_array_equal(log.read(b"x", 0, 200), log.read(b"y", 0, 200))
    log.close()


@pytest.mark.parametrize("hint", [-1, 0, 1, 60, 63, 64, 65, 70, 71, 128, 10**12])
def test_a_hint_changes_nothing(tmp_path, rows, hint):
    """Right, stale, from a log that was longer, at a chunk's edge: the events are appended at the end."""
    for length in (0, 1, 60, 63, 64, 65, 70):
        log = open_log(tmp_path / str(length))
        log.append([Append(b"u", 0, rows(*range(length)))])
        found = log.append([Append(b"u", -1, rows(7), hint), Append(b"u", -1, rows(8, 9), hint)])
        assert found == [Appended(Status.OK, 0, length + 1), Appended(Status.OK, 0, length + 3)]
        assert log.read(b"u", 0, length + 3)[:, 0].tolist() == [*range(length), 7, 8, 9]
        assert log.append([Append(b"u", length, rows(7), hint)]) == [Appended(Status.OK, 1, length + 3)]
        log.close()


def test_flipped_bytes_on_the_disk_fail_their_user_alone(tmp_path, rows):
    log, marked = open_log(tmp_path / "log"), 0x5AFE_C0DE_5AFE_C0DE
    log.append([Append(b"%d" % n, 0, rows(*range(40))) for n in range(50)])
    log.append([Append(b"hurt", 0, np.array([[marked, 0]] * 30))])
    log.close()
    data = bytearray((tmp_path / "log" / "data.mdb").read_bytes())
    mark, at = marked.to_bytes(8, "little"), -1
    while (at := data.find(mark, at + 1)) >= 0:  # an unused part of a page may hold a copy, too
        data[at + 3] ^= 0x10
    (tmp_path / "log" / "data.mdb").write_bytes(data)

    log = open_log(tmp_path / "log")
    with pytest.raises(DataError, match=r"event_log=.*log: chunk at 0: its checksum doesn't fit"):
        log.read(b"hurt", 0, 30)
    batch = [Append(b"7", 40, rows(40)), Append(b"hurt", 30, rows(9)), Append(b"8", 40, rows(40))]
    for appends in (batch, [append._replace(events=rows()) for append in batch]):
        first, hurt, last = log.append(appends)
        assert first[0] == last[0] == Status.OK
        assert isinstance(hurt, DataError), "what is damaged must not be extended, nor answered from"
    np.testing.assert_array_equal(log.read(b"7", 0, 41), rows(*range(41)))
    log.close()


def keys_of_page(data, at, kind):
    """The keys on one of LMDB's pages; none if it isn't of that kind (1: branch, 2: leaf)."""
    number, _, found, stop = struct.unpack_from("<QHHH", data, at)
    if (number, found) != (at // 4096, kind):
        return []
    nodes = [at + node for (node,) in struct.iter_unpack("<H", data[at + 16 : at + stop])]
    return [bytes(data[node + 8 :][: struct.unpack_from("<H", data, node + 6)[0]]) for node in nodes]


@pytest.mark.parametrize("which", ["root", "branch", "leaf"])
def test_a_damaged_page_of_the_tree_fails_those_behind_it_alone(tmp_path, rows, which):
    """Bytes of LMDB's own, which carry no checksum: 0xff over a page of the tree that leads to the chunks."""
    users, size = [b"user %03d" % n for n in range(800)], 4096
    log = open_log(tmp_path / "log")
    log.append([Append(user, 0, rows(*range(60))) for user in users])
    log.close()
    data = bytearray((tmp_path / "log" / "data.mdb").read_bytes())
    pages = range(2 * size, len(data), size)
    tree = {at: keys for at in pages if (keys := keys_of_page(data, at, 2 if which == "leaf" else 1))}
    if which == "root":
        at = min(tree, key=lambda at: len(tree[at]))
    else:
        at = max(tree, key=lambda at: sum(b"user 4" in key for key in tree[at]))
    on_page = {key[2:10] for key in tree[at]}
    data[at : at + size] = b"\xff" * size
    (tmp_path / "log" / "data.mdb").write_bytes(data)

    def damaged(results):
        failed = {user: r for user, r in zip(users, results, strict=True) if isinstance(r, DataError)}
        assert all(re.match(r"event_log=.*log: a page of data\.mdb is damaged: ", str(r)) for r in failed.values())
        return set(failed)

    for length in (60, 61):
        log = open_log(tmp_path / "log")
        found = log.read_many([Span(user, 0, length) for user in users])
        behind = damaged(found)
        assert {"root": behind == set(users), "branch": 0 < len(behind) < len(users), "leaf": behind == on_page}[which]
        for user, events in zip(users, found, strict=True):
            assert user in behind or (events == rows(*range(length))).all()
        for events, position in ((rows(60), 60), (rows(), 61), (rows(*range(50, 61)), 50), (rows(), -1)):
            outcomes = log.append([Append(user, position, events) for user in users])
            # to find a log's end, what follows it is looked at, too
            assert behind <= damaged(outcomes) <= behind | {users[users.index(min(behind)) - 1]}
            assert {(o.status, o.length) for o in outcomes if isinstance(o, Appended)} <= {(Status.OK, 61)}
        assert set(log.recent_users(len(users))) <= set(users)
        log.close()


@pytest.mark.parametrize("lost", [False, True], ids=["flipped", "lost"])
def test_a_retry_of_events_in_a_damaged_chunk_is_no_conflict(tmp_path, rows, lost):
    log, events = open_log(tmp_path / "log"), rows(*range(300))
    log.append([Append(b"u", 0, events)])
    log.close()
    with lmdb.open(str(tmp_path / "log"), max_dbs=2) as env, env.begin(write=True, db=env.open_db(b"events")) as txn:
        key = b"\0\1u" + (64).to_bytes(8, "big")
        value = bytearray(txn.get(key))
        value[50] ^= 1
        assert txn.delete(key) if lost else txn.put(key, bytes(value))
    log = open_log(tmp_path / "log")
    batch = [Append(b"u", start, events[start:stop]) for start, stop in ((0, 65), (100, 110), (0, 64), (128, 300))]
    first, second, before, behind = log.append(batch)
    assert isinstance(first, DataError)
    assert isinstance(second, DataError)
    assert (before, behind) == ((Status.OK, 64, 300), (Status.OK, 172, 300))
    log.close()


def test_a_file_that_was_cut_off_is_refused(tmp_path, rows):
    log = open_log(tmp_path / "log")
    log.append([Append(b"%d" % n, 0, rows(*range(60))) for n in range(50)])
    log.close()
    data = tmp_path / "log" / "data.mdb"
    os.truncate(data, data.stat().st_size - 16384)
    with pytest.raises(DataError, match=r"expected \d+ bytes in data.mdb, got \d+; it was cut off"):
        open_log(tmp_path / "log")


def test_a_file_that_is_no_log_is_refused(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"no log" * 3000)
    with pytest.raises(DataError, match="expected an LMDB folder, got a damaged one"):
        open_log(tmp_path)


@pytest.mark.parametrize("found", ["1", "3"])
def test_another_format_is_refused(tmp_path, found):
    with lmdb.open(str(tmp_path), max_dbs=2) as environment:
        if found == "1":  # had no databases of its own, and no format
            with environment.begin(write=True) as transaction:
                transaction.put(b"\0\1u" + bytes(8), b"record")
        else:
            meta = environment.open_db(b"meta")
            with environment.begin(write=True, db=meta) as transaction:
                transaction.put(b"format", found.encode())
    before = (tmp_path / "data.mdb").read_bytes()
    with pytest.raises(DataError, match=rf"expected a log of format 2, got {found}; serve it with the release that"):
        open_log(tmp_path)
    assert (tmp_path / "data.mdb").read_bytes() == before
    with lmdb.open(str(tmp_path)):
        pass  # the folder isn't held


def test_a_folder_that_cant_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"event_log=.*file.*: expected a folder that can be written"):
        open_log(tmp_path / "file" / "log")


def test_a_folder_that_cant_be_written_is_named(tmp_path):
    """Root writes where the mode forbids it, so the process gives that right up first."""
    code = """
import os
if os.getuid() == 0: os.setuid(65534)
try: LmdbLog(folder)
except Exception as error: print(type(error).__name__, error)
"""
    open_log(tmp_path / "log").close()
    for file in (tmp_path / "log").iterdir():
        file.chmod(0o444)
    for folder in (tmp_path / "log", tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o555 if folder == tmp_path / "log" else 0o755)
    process = run(code, tmp_path / "log")
    output, _ = process.communicate()
    (tmp_path / "log").chmod(0o755)
    assert output.startswith("MachineError event_log="), output
    assert "expected a folder that can be written, got" in output


def test_a_disk_that_is_full_appends_nothing_and_stays_usable(tmp_path, rows):
    """The kernel refuses to let the file grow, as on a full disk; then there is room again."""
    code = """
from longrec.errors import MachineError
log = LmdbLog(folder, durability="commit", max_bytes=64 << 20)
n = 0
try:
    while True:
        log.append([Append(b"a", n, rows(n)), Append(b"u%d" % n, 0, rows(*range(500)))])
        n += 1
except MachineError as error: assert "nothing was appended" in str(error), error
assert n > 5 and log.length(b"a") == n and log.length(b"u%d" % n) == 0
assert len(log.read(b"u3", 0, 500)) == 500
refused, silent = log.append([Append(b"v", 0, rows(*range(5000))), Append(b"u3", -1, rows())])
assert isinstance(refused, MachineError) and "nothing was appended" in str(refused), refused
assert tuple(silent) == (0, 0, 500), "who brings no events is answered all the same"
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.append([Append(b"a", n, rows(n))])
print(n + 1)
"""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    limit = (300_000, hard)
    process = run(code, tmp_path / "log", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    output, _ = process.communicate()
    assert process.returncode == 0
    log = open_log(tmp_path / "log")
    assert log.length(b"a") == int(output)
    np.testing.assert_array_equal(log.read(b"a", 0, int(output)), rows(*range(int(output))))
    log.close()


def test_a_sync_that_fails_surfaces(tmp_path, rows):
    """A pipe in the place of the file makes the flusher's sync fail; the next append says so."""
    log = open_log(tmp_path / "log", durability="interval", flush_milliseconds=200)
    log.append([Append(b"u", 0, rows(1))])
    descriptors = [int(fd) for fd in os.listdir("/proc/self/fd") if _is_data(fd, tmp_path)]
    kept, ends = [os.dup(fd) for fd in descriptors], os.pipe()
    for fd in descriptors:
        os.dup2(ends[1], fd)
    flusher = next(thread for thread in threading.enumerate() if thread.name == "event log flusher")
    flusher.join(20)
    for fd, file in zip(descriptors, kept, strict=True):
        os.dup2(file, fd)
    for fd in (*kept, *ends):
        os.close(fd)
    with pytest.raises(MachineError, match=r"may not be on disk, and no more are taken: the sync failed"):
        log.append([Append(b"u", 1, rows(2))])
    np.testing.assert_array_equal(log.read(b"u", 0, 1), rows(1))
    with pytest.raises(MachineError, match="may not be on disk"):
        log.close()
    log.close()
    assert not any(thread.name == "event log flusher" for thread in threading.enumerate())


def _is_data(fd, folder):
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == str(folder / "log" / "data.mdb")
    except OSError:
        return False  # the listing's own descriptor


def test_a_large_log_opens_at_once(tmp_path):
    """The work of opening doesn't grow with the log: its pages are not read."""
    log, events = open_log(tmp_path / "log", max_bytes=1 << 30), np.arange(200).reshape(100, 2)
    for start in range(0, 10_000, 1000):
        log.append([Append(b"user %d" % n, 0, events) for n in range(start, start + 1000)])
    log.close()
    before = resource.getrusage(resource.RUSAGE_SELF)
    log = open_log(tmp_path / "log", max_bytes=1 << 30)
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults = after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt
    assert faults < 1000, "of the file's 5,000 pages or more"
    assert log.length(b"user 9999") == 100
    log.close()
