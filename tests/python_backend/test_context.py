"""Events with features, through client, wire, log and memory: what is streamed equals what is recomputed with them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longrec.catalogue import Catalogue
from longrec.client import ArgumentError, Client, Event, Options, Prediction, RejectedError
from longrec.config import EngineConfig, ModelConfig
from longrec.modeling import Network, build_network, recompute_scores, save_run
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log.lmdb_log import LmdbLog
from longrec.python_backend.local import LocalServer, serve_locally
from longrec.python_backend.query import Query
from longrec.schema import EventCategory, EventNumber, Schema, TimeOfDay, Weekday
from longrec.server.process import Server
from longrec.server.repository import write_repository

TOLERANCE = 1e-4
NUM_ITEMS = 40
SCHEMA = Schema(
    event={
        "action": EventCategory(kind="category", values=("view", "cart", "buy")),
        "hour": TimeOfDay(kind="time_of_day"),
        "dwell": EventNumber(kind="number", edges=(1.0, 10.0, 60.0)),
        "day": Weekday(kind="weekday"),
    }
)
CONFIG = EngineConfig(
    max_step_events=64, inline_events=8, chunk_events=16, memory_bytes=1 << 20, log_bytes=64 << 20, max_k=40
)


def made(family: str = "transformer") -> Network:
    torch.manual_seed(5)
    shape = {"num_items": NUM_ITEMS, "dim": 16, "num_heads": 2, "hidden_dim": 24, "num_layers": 2, "window": 10}
    network = build_network(ModelConfig(family=family, features=SCHEMA, **shape)).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():  # make every part count
            if weight.ndim > 1:
                weight.mul_(2 if name.startswith("layers.") else 8)
    return network


def saved(network: Network, folder: Path) -> Path:
    names = [str(item) for item in range(NUM_ITEMS)]
    save_run(folder, network, network.config, Catalogue(names, names), {})
    return folder


@pytest.fixture(scope="module")
def network() -> Network:
    return made()


@pytest.fixture(scope="module")
def run(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(network, tmp_path_factory.mktemp("context") / "run")


@pytest.fixture(scope="module")
def local(run: Path) -> Iterator[LocalServer]:
    with serve_locally(run, config=CONFIG) as local:
        yield local


@pytest.fixture(scope="module")
def client(local: LocalServer) -> Iterator[Client]:
    with Client(transport=local.transport, timeout_seconds=30) as client:
        yield client


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    write_repository(run, folder / "repository", engine=CONFIG, extras=["recompute", "echo"])
    with Server(folder / "repository", grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server


def history(seed: int, length: int) -> np.ndarray:
    """[n, 5] as the wire has it."""
    rng = np.random.default_rng(seed)
    times = 1_700_000_000_000 + np.cumsum(rng.choice([0, 900, 70_000, 30_000_000], size=length))
    columns = (rng.integers(0, NUM_ITEMS + 3, length), times, rng.integers(0, 4, length), rng.integers(0, 5, length))
    return np.stack((np.arange(length), *columns), axis=1)


def events(rows: np.ndarray) -> list[Event]:
    """The same as the caller has it."""
    dwell = [None, 0.5, 1.0, 59.9, 1e6]
    actions = [None, "view", "cart", "buy"]
    return [
        Event(int(item), int(time), features={"action": actions[action], "dwell": dwell[bucket]})
        for _, item, time, action, bucket in rows
    ]


def scores_of(network: Network, rows: np.ndarray, after: int) -> np.ndarray:
    (scores,) = recompute_scores(network, rows[:, 1], rows[:, 2], np.array([after]), rows[:, 3:])
    return scores


def check(network: Network, rows: np.ndarray, prediction: Prediction) -> None:
    scores = scores_of(network, rows, prediction.position)
    found, items = prediction.scores, prediction.items
    np.testing.assert_allclose(found, np.sort(scores)[::-1][: len(found)], atol=TOLERANCE)
    np.testing.assert_allclose(scores[items], found, atol=TOLERANCE)


def stream_and_check(client: Client, network: Network, name: str, users: int = 6) -> None:
    histories = {f"{name} {seed}": history(seed, 60) for seed in range(users)}
    client.schema()
    rng = np.random.default_rng(1)
    done = dict.fromkeys(histories, 0)
    requests = []
    while any(done[user] < 60 for user in histories):
        user = str(rng.choice([user for user in histories if done[user] < 60]))
        count = min(int(rng.integers(1, 20)), 60 - done[user])  # some at once, some deferred
        requests.append((user, events(histories[user][done[user] : done[user] + count])))
        done[user] += count
    with client.stream(k=10, max_in_flight=16) as stream:
        for prediction in stream.map(requests):
            check(network, histories[prediction.user], prediction)


def test_what_is_streamed_is_what_is_recomputed(client: Client, network: Network) -> None:
    stream_and_check(client, network, "local")


@pytest.mark.parametrize("family", ["transformer_xl", "hstu", "gru", "lstm", "bert4rec", "seq2seq"])
def test_every_family_takes_context(family: str, tmp_path: Path) -> None:
    network = made(family)
    config = CONFIG.model_copy(update={"max_explain": 0})
    with (
        serve_locally(saved(network, tmp_path / "run"), config=config) as local,
        Client(transport=local.transport, timeout_seconds=30) as client,
    ):
        stream_and_check(client, network, family, users=2)
        client.append(user="roll", events=history(50, 6))
        assert client.recommend(user="roll", k=3, horizon=2).items.shape == (2, 3)


@pytest.mark.server
def test_the_real_server_streams_what_is_recomputed(server: Server, network: Network) -> None:
    with Client(server.grpc_url) as client:
        assert client.schema() == SCHEMA
        stream_and_check(client, network, "served")
    with Client(server.grpc_url, model="recommender_recompute") as client:
        check(network, history(1, 9), client.recommend(user="u", events=events(history(1, 9)), k=5))
    with Client(server.grpc_url, model="recommender_echo") as client:
        assert client.schema() == SCHEMA


def test_context_counts_and_is_unknown_where_it_is_left_out(client: Client, network: Network) -> None:
    rows = history(20, 12)
    unknown = rows.copy()
    unknown[:, 3:] = 0
    assert np.abs(scores_of(network, rows, 12) - scores_of(network, unknown, 12)).max() > 100 * TOLERANCE
    check(network, rows, client.recommend(user="with", events=events(rows), k=10))
    plain = [Event(int(row[1]), int(row[2])) for row in rows]
    check(network, unknown, client.recommend(user="without", events=plain, k=10))
    mixed = rows.copy()
    mixed[:6, 3:] = 0
    client.append(user="mixed", events=rows[:6, :3])
    check(network, mixed, client.recommend(user="mixed", events=rows[6:], k=10))


def test_bulk_carries_context(client: Client, network: Network) -> None:
    client.schema()
    histories = {f"bulk {seed}": history(seed, 5 + seed) for seed in range(6)}
    requests = [(user, events(rows) if seed % 2 else rows) for seed, (user, rows) in enumerate(histories.items())]
    requests += [("bulk plain", [Event(1, 1)])]
    histories["bulk plain"] = np.array([[0, 1, 1, 0, 0]])
    for prediction in client.recommend_many(requests, k=5):
        check(network, histories[prediction.user], prediction)


def test_rollouts_and_explanations_go_on_with_unknown_context(client: Client, network: Network) -> None:
    rows = history(30, 8)
    client.append(user="roll", events=rows)
    gap = int(np.median(np.diff(rows[:, 2])))
    prediction = client.recommend(user="roll", k=4, options=Options(horizon=3, explain=2))
    for step in range(3):
        (scores,) = recompute_scores(network, rows[:, 1], rows[:, 2], np.array([len(rows)]), rows[:, 3:])
        np.testing.assert_allclose(prediction.scores[step], np.sort(scores)[::-1][:4], atol=TOLERANCE)
        rows = np.vstack((rows, [len(rows), prediction.items[step, 0], rows[-1, 2] + gap, 0, 0]))
    assert prediction.because is not None
    assert (prediction.because[0] >= 0).all()


def test_a_retry_of_another_context_changes_nothing(client: Client, network: Network) -> None:
    rows = history(40, 6)
    client.append(user="again", events=rows)
    other = rows.copy()
    other[:, 3:] = 0
    check(network, rows, client.recommend(user="again", events=other, k=10))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"device": "phone"}, r"events\[1\].features\['device'\]: expected one of the model's features"),
        ({"dwell": "long"}, r"events\[1\].features\['dwell'\]: expected a number, got str"),
    ],
)
def test_wrong_features_are_refused_before_anything_is_sent(
    client: Client, features: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        client.append(user="refused", events=[Event(1, 1), Event(2, 2, features=features)])
    assert client.history_length(user="refused") == 0


def test_indices_that_mean_nothing_are_refused(run: Path, client: Client) -> None:
    rows = history(1, 3)
    rows[1, 3] = 4
    client.schema()
    with pytest.raises(ArgumentError, match=r"events, column action: expected indices 0..3"):
        client.append(user="refused", events=rows)
    with pytest.raises(ArgumentError, match="at most 2 columns of features"):
        client.append(user="refused", events=np.zeros((1, 6), np.int64))
    for wrong, message in (
        (rows, r"EVENT column action: expected values 0..3 \(0: unknown\)"),
        (np.zeros((1, 6), np.int64), r"expected INT64 \[1, n, 3..5\]"),
    ):
        with (
            serve_locally(run, config=CONFIG) as local,
            Client(transport=local.transport) as fresh,  # knows no schema
            pytest.raises(RejectedError, match=message),
        ):
            fresh.append(user="refused", events=wrong)


def test_a_stream_wants_to_know_the_schema_before(run: Path) -> None:
    with serve_locally(run, config=CONFIG) as local, Client(transport=local.transport) as client:
        with client.stream() as stream, pytest.raises(ArgumentError, match=r"let it ask before: client.schema\(\)"):
            stream.send("u", events(history(1, 1)))
        client.recommend(user="u", events=events(history(1, 1)))  # asks by itself
        with client.stream() as stream:
            assert [one.position for one in stream.map([("v", events(history(1, 2)))])] == [2]


def test_events_that_are_owed_keep_their_context(local: LocalServer, client: Client) -> None:
    client.schema()
    rows = history(2, 3)
    ledger = client.core.ledger
    with ledger.lock:
        book = ledger.open("owed")
        book.acknowledge(0, 0.0)
        book.hold(0, rows.tolist())
        assert book.find(0, 3) is not None
        np.testing.assert_array_equal(book.find(0, 3), rows)
        ledger.release(book)
    back = client.unacknowledged(user="owed")
    client.forget(user="owed")
    client.append(user="given back", events=[Event(e.item, e.time_ms, features=e.features) for e in back])
    np.testing.assert_array_equal(local.service.log.read(b"given back", 0, 3), rows[:, 1:])


def test_padded_decode_steps_take_context_too(network: Network, tmp_path: Path) -> None:
    log = LmdbLog(tmp_path / "log", durability="none", max_bytes=64 << 20, num_features=2)
    engine = Engine(network, log, CONFIG, decode_batches=(4,))
    rows = history(3, 20)
    for at in range(20):
        (answer,) = engine.answer_all([Query(b"u", rows[at : at + 1, 1:], at, None, 10)])
        expected = np.sort(scores_of(network, rows, at + 1))[::-1][:10]
        np.testing.assert_allclose(answer.scores, expected, atol=TOLERANCE)
    log.close()
