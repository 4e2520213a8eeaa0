"""The Redis log: one round trip a batch; a server that goes and comes back, that is full, that is damaged."""

import threading

import numpy as np
import pytest

from longrec.config import EngineConfig
from longrec.errors import ArgumentError, DataError, MachineError
from longrec.protocol import Status
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log import Append
from longrec.python_backend.event_log.redis_log import RedisLog
from longrec.python_backend.query import Query


@pytest.fixture
def log(redis_server):
    log = RedisLog(redis_server.url)
    yield log
    log.close()


def test_a_batch_is_one_round_trip(log, redis_server, rows):
    batch = [Append(b"%d" % n, -1, rows(n)) for n in range(100)]
    log.append(batch)
    with redis_server.client() as client:
        client.config_resetstat()
        log.append(batch)
        sent = {
            name: stats["calls"]
            for name, stats in client.info("commandstats").items()
            if "eval" in name or "script" in name
        }
    assert sent == {"cmdstat_evalsha": 1}


def test_servers_share_a_store(redis_server, log, rows):
    """Appends of eight threads with a connection each, all checked: each position is won once."""
    wins = []

    def work(number):
        mine = RedisLog(redis_server.url)
        position = 0
        while position < 200:
            ((_, skipped, length),) = mine.append([Append(b"u", position, rows(number))])
            if not skipped:
                wins.append((position, number))
            position = length
        mine.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    length = log.length(b"u")
    assert sorted(position for position, _ in wins) == list(range(length))
    items = log.read(b"u", 0, length)[:, 0]
    assert [int(items[position]) for position, _ in wins] == [number for _, number in wins]


def test_gone_and_back(make_redis_server, rows):
    server = make_redis_server("--appendonly", "yes", "--appendfsync", "always")
    log = RedisLog(server.url, durability="commit")
    log.append([Append(b"u", 0, rows(0, 1))])
    server.stop()
    for call in (
        lambda: log.append([Append(b"u", 2, rows(2))]),
        lambda: log.read(b"u", 0, 2),
        lambda: log.length(b"u"),
    ):
        with pytest.raises(MachineError, match=r"event_log=redis://127.0.0.1:\d+/0: expected a Redis server, got"):
            call()
    server.start()  # with its append-only file, and without the script
    assert log.append([Append(b"u", 0, rows(0, 1, 2))]) == [(Status.OK, 2, 3)]
    np.testing.assert_array_equal(log.read(b"u", 0, 3), rows(0, 1, 2))
    log.close()


def test_a_server_that_hangs_is_left_in_time_and_a_retry_is_harmless(make_redis_server, rows, monkeypatch):
    monkeypatch.setattr("longrec.python_backend.event_log.redis_log.TIMEOUT_SECONDS", 0.3)
    server = make_redis_server()
    log = RedisLog(server.url, durability="none")
    log.append([Append(b"u", 0, rows(0))])
    server.pause()
    with pytest.raises(MachineError, match=r"no answer within 0.3 s; whether the events were appended is unknown"):
        log.append([Append(b"u", 1, rows(1))])
    server.go_on()
    (outcome,) = log.append([Append(b"u", 1, rows(1))])
    assert outcome.length == 2
    np.testing.assert_array_equal(log.read(b"u", 0, 2), rows(0, 1))
    log.close()


def test_maxmemory_appends_nothing_and_reads_go_on(make_redis_server, rows):
    server = make_redis_server("--maxmemory", "4mb")
    log, big = RedisLog(server.url, durability="none"), rows(*range(4_000))
    held = 0

    def append_until_full():
        nonlocal held
        while True:
            log.append([Append(b"user %d" % held, 0, big), Append(b"both", held, rows(held))])
            held += 1

    with pytest.raises(MachineError, match="nothing was appended: the server's maxmemory is reached"):
        append_until_full()
    assert log.length(b"both") == held > 3
    assert log.length(b"user %d" % held) == 0
    np.testing.assert_array_equal(log.read(b"user 0", 0, 4_000), big)
    log.close()


def test_retention_gives_room_back(redis_server, log, rows):
    """What was dropped no longer counts against log_bytes: 300 of 10,000 events are held, of 20 bytes each."""
    limited = RedisLog(redis_server.url, max_bytes=10_000, max_user_events=200)
    for start in range(0, 10_000, 50):
        (outcome,) = limited.append([Append(b"u", start, rows(*range(start, start + 50)))])
        assert outcome.length == start + 50
    with redis_server.client() as client:
        first, length = limited.extent(b"u")
        assert int(client.get("longrec:bytes")) == 20 * (length - first)
        held = [name for name in client.hkeys("longrec:user:u") if name.isdigit()]
        assert sorted(map(int, held)) == list(range(first, length, 64))
    limited.close()


@pytest.mark.parametrize("kind", ["flipped", "short", "lost"])
def test_damage_fails_its_user_alone(redis_server, log, rows, kind):
    log.append([Append(b"hurt", 0, rows(*range(70))), Append(b"well", 0, rows(1, 2))])
    with redis_server.client() as client:
        for chunk in (b"0", b"64"):
            value = client.hget("longrec:user:hurt", chunk)
            if kind == "lost":
                client.hdel("longrec:user:hurt", chunk)
            else:
                client.hset("longrec:user:hurt", chunk, value[:-20] if kind == "short" else b"\xff" + value[1:])
    for start, stop in ((0, 1), (60, 70), (65, 66)):
        with pytest.raises(DataError, match=r"event_log=redis://.*(checksum doesn't fit|expected \d+ events, got \d+)"):
            log.read(b"hurt", start, stop)
    hurt, well = log.append([Append(b"hurt", 70, rows(7)), Append(b"well", 2, rows(3))])
    assert well == (Status.OK, 0, 3)
    if kind != "flipped":  # the script can't compute checksums: that damage is found when it is read, or compared
        assert isinstance(hurt, DataError)
    hurt, well = log.append([Append(b"hurt", 0, rows(0, 1)), Append(b"well", 1, rows(2))])
    assert isinstance(hurt, DataError), "damage is no conflict"
    assert well == (Status.OK, 1, 3)
    np.testing.assert_array_equal(log.read(b"well", 0, 3), rows(1, 2, 3))


def test_another_format_is_refused_when_opened_and_later(redis_server, log, rows):
    with redis_server.client() as client:
        client.set("longrec:format", "9")
        with pytest.raises(DataError, match=r"expected a log of format 2, got 9 .*; serve it with the release"):
            RedisLog(redis_server.url)
        with pytest.raises(DataError, match="expected a log of format 2, got 9"):
            log.append([Append(b"u", 0, rows(1))])
        assert client.keys() == [b"longrec:format"]


@pytest.mark.parametrize(
    ("settings", "durability", "message"),
    [
        ((), "interval", "appendfsync always or everysec, got no append-only file"),
        (("--appendonly", "yes", "--appendfsync", "everysec"), "commit", "appendfsync always, got everysec"),
        (("--maxmemory", "9mb", "--maxmemory-policy", "allkeys-lru"), "none", "expected maxmemory-policy noeviction"),
        (("--cluster-enabled", "yes"), "none", "expected a single Redis server, got a cluster"),
    ],
    ids=["no-aof", "everysec", "evicting", "cluster"],
)
def test_a_server_that_cant_keep_the_promise_is_refused(make_redis_server, settings, durability, message):
    server = make_redis_server(*settings)
    with pytest.raises(MachineError, match=message):
        RedisLog(server.url, durability=durability)


def test_a_password_stays_out_of_messages(redis_server):
    with pytest.raises(MachineError) as caught:
        RedisLog(redis_server.url.replace("://", "://nobody:secret@"))
    assert "secret" not in str(caught.value)
    with pytest.raises(ArgumentError) as refused:
        RedisLog("redis://:secret@host:port/0")
    assert "secret" not in str(refused.value)


def test_nobody_listens(tmp_path):
    with pytest.raises(MachineError, match=r"event_log=redis://127\.0\.0\.1:1/0: expected a Redis server, got"):
        RedisLog("redis://127.0.0.1:1")


def test_a_restarted_server_is_noticed_by_each_log_and_memories_of_what_it_lost_are_dropped(
    make_redis_server, network, make_history, recompute
):
    server = make_redis_server()  # keeps nothing
    logs = [RedisLog(server.url, durability="none") for _ in range(2)]
    engines = [Engine(network, log, EngineConfig(page_size=16, memory_bytes=4 << 20)) for log in logs]
    lost, kept = make_history(1, 10), make_history(2, 14)
    for engine in engines:
        engine.answer_all([Query(b"u", lost, 0, None, 5)])
    server.stop()
    server.start()
    for start, stop in ((0, 12), (12, 14)):
        for engine in engines:
            (answer,) = engine.answer_all([Query(b"u", kept[start:stop], start, None, 5)])
            best = np.sort(recompute(kept[:stop]))[::-1][:5]
            np.testing.assert_allclose(answer.scores, best, atol=1e-4)
    assert [log.generation for log in logs] == [1, 1]
    for log in logs:
        log.close()
