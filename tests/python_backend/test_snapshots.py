"""Snapshots of recurrent states: a rebuild goes on from one, exact, and from none that it must not believe."""

import numpy as np
import pytest
import torch

from longrec.config import EngineConfig, ModelConfig
from longrec.errors import MachineError
from longrec.modeling import build_network, recompute_scores
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.event_log.redis_log import RedisLog
from longrec.python_backend.query import Query
from longrec.python_backend.snapshots import EVERY_EVENTS, LEAST_EVENTS

TOLERANCE = 1e-4
LENGTH = 2 * EVERY_EVENTS + 30
NO_EVENTS = np.empty((0, 2), np.int64)
STATE_BYTES = {"gru": 2 * 24 * 4, "lstm": 2 * 48 * 4}


def make_network(family: str, seed: int = 0):
    torch.manual_seed(seed)
    return build_network(ModelConfig(num_items=97, family=family, dim=16, hidden_dim=24)).eval()


def make_engine(network, log, **settings) -> Engine:
    return Engine(network, log, EngineConfig(**{"memory_bytes": 1 << 20, "max_explain": 0, **settings}))


def send(engine, user: bytes, history, start: int = 0, step: int = 50) -> None:
    for begin in range(start, len(history), step):
        engine.answer_all([Query(user, history[begin : begin + step], begin, None, 1)])


def ask(engine, network, user: bytes, history) -> int:
    """Check the answer after the history; how many events that took."""
    before = engine.observations.events_computed
    (answer,) = engine.answer_all([Query(user, NO_EVENTS, -1, None, 5)])
    assert (answer.error, answer.length) == (None, len(history))
    (scores,) = recompute_scores(network.double(), history[:, 0], history[:, 1], np.array([len(history)]))
    network.float()
    np.testing.assert_allclose(answer.scores, np.sort(scores)[::-1][:5], atol=TOLERANCE)
    return engine.observations.events_computed - before


@pytest.fixture(params=["lmdb", "redis"])
def store(request, log):
    if request.param == "lmdb":
        yield log
    else:
        redis_log = RedisLog(request.getfixturevalue("redis_server").url, durability="none")
        yield redis_log
        redis_log.close()


@pytest.mark.parametrize("family", ["gru", "lstm"])
def test_a_rebuild_goes_on_from_the_newest_snapshot(store, make_history, family):
    network, history = make_network(family), make_history(1, LENGTH)
    send(make_engine(network, store), b"u", history)
    engine = make_engine(network, store)
    assert 0 < ask(engine, network, b"u", history) < EVERY_EVENTS
    more = np.concatenate((history, make_history(2, 20)))
    send(engine, b"u", more, len(history), 7)
    assert ask(engine, network, b"u", more) == 0


def test_who_loses_their_memory_leaves_a_snapshot(store, make_history):
    network, histories = make_network("lstm"), [make_history(seed, LEAST_EVENTS + 7) for seed in range(5)]
    engine = make_engine(network, store, memory_bytes=2 * STATE_BYTES["lstm"])
    for number, history in enumerate(histories):
        send(engine, b"%d" % number, history)
    assert engine.pool.evictions == 3
    assert [ask(engine, network, b"%d" % number, histories[number]) for number in range(3)] == [0] * 3


def test_a_short_history_is_rebuilt_from_its_beginning(store, make_history):
    network, history = make_network("gru"), make_history(1, LEAST_EVENTS - 1)
    engine = make_engine(network, store, memory_bytes=STATE_BYTES["gru"])
    send(engine, b"u", history)
    send(engine, b"other", history)
    assert store.read_states([b"u"]) == [None]
    assert ask(engine, network, b"u", history) == len(history)


def test_a_snapshot_of_other_weights_is_ignored(store, make_history):
    history, other = make_history(1, LENGTH), make_network("gru", 1)
    send(make_engine(make_network("gru"), store), b"u", history)
    assert ask(make_engine(other, store), other, b"u", history) == LENGTH


@pytest.mark.parametrize("place", [0, 5, 20, 28, 34, 60, -1])
def test_a_damaged_snapshot_is_ignored(log, make_history, place):
    network, history = make_network("gru"), make_history(1, LENGTH)
    send(make_engine(network, log), b"u", history)
    (value,) = log.read_states([b"u"])
    hurt = bytearray(value)
    hurt[place] ^= 1
    log.write_states({b"u": bytes(hurt), b"v": value})
    assert ask(make_engine(network, log), network, b"u", history) == LENGTH
    send(make_engine(network, log), b"v", history[:300], step=300)
    log.write_states({b"v": value})
    assert ask(make_engine(network, log), network, b"v", history[:300]) == 300, "another user's"


def test_a_snapshot_beyond_the_log_is_ignored(tmp_path, log, make_history):
    network, history = make_network("gru"), make_history(1, LENGTH)
    send(make_engine(network, log), b"u", history)
    replaced = LmdbLog(tmp_path / "replaced", durability="none", max_bytes=64 << 20)
    send(make_engine(network, replaced), b"u", history[:100])
    replaced.write_states({b"u": log.read_states([b"u"])[0]})
    assert ask(make_engine(network, replaced), network, b"u", history[:100]) == 100
    replaced.close()


def test_a_store_without_room_for_snapshots_serves_on(log, make_history, monkeypatch):
    def full(states):
        raise MachineError("no room")

    monkeypatch.setattr(log, "write_states", full)
    network, history = make_network("gru"), make_history(1, LENGTH)
    engine = make_engine(network, log)
    send(engine, b"u", history)
    assert ask(engine, network, b"u", history) == 0
    assert ask(make_engine(network, log), network, b"u", history) == LENGTH


def test_states_outlive_the_process(tmp_path):
    for value in (b"one", b"two"):
        log = LmdbLog(tmp_path / "log", durability="commit", max_bytes=64 << 20)
        log.write_states({b"u": value})
        log.close()
    log = LmdbLog(tmp_path / "log", durability="commit", max_bytes=64 << 20)
    assert log.read_states([b"nobody", b"u"]) == [None, b"two"]
    log.close()
