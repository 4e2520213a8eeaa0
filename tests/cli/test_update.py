"""`longrec update` beside a real tritonserver that goes on writing its log: better weights are served, worse aren't."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from longrec.checkpoint import load_checkpoint
from longrec.cli.main import app
from longrec.client import Client
from longrec.config import EngineConfig, ModelConfig, TrainConfig
from longrec.datasets import Dataset, leave_one_out
from longrec.datasets.synthetic import make_drift
from longrec.errors import ArgumentError, CheckpointError, DataError
from longrec.modeling import load_run, recompute_scores, save_run
from longrec.server.process import Server
from longrec.server.repository import served_version, versions_in, write_repository
from longrec.training import train

pytestmark = pytest.mark.server

ITEMS, USERS, K = 150, 120, 10
MOST_WRITTEN = 500


def drift(seed: int) -> Dataset:
    """Another seed: other items are popular, others follow them, and other users like them."""
    data = make_drift(USERS, 40 * USERS, num_items=ITEMS, num_categories=5, seed=seed)
    return replace(data, items=np.random.default_rng(seed).permutation(ITEMS)[data.items])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, trained on data that is kept as `data`, and the repository that serves it with settings of its own."""
    folder = tmp_path_factory.mktemp("update")
    data = drift(0)
    data.save(folder / "data")
    model = ModelConfig(num_items=ITEMS, dim=16, num_layers=1, hidden_dim=32, window=16)
    config = TrainConfig(epochs=6, learning_rate=1e-2, dropout=0.1)
    trained = train(data, leave_one_out(data), model, config)
    save_run(folder / "run", trained.network, model, data.catalogue, {"config": config.model_dump()})
    engine = EngineConfig(memory_bytes=4 << 20, log_bytes=64 << 20, max_k=K + 1)
    write_repository(folder / "run", folder / "repository", engine=engine, instances=2)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with Server(folder / "repository", grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server


def update(folder: Path, *options: object) -> dict[str, Any]:
    command = ["update", folder / "run", "--data", folder / "data", "--repository", folder / "repository", "--json"]
    result = CliRunner().invoke(app, [str(part) for part in (*command, *options)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


class Writer:
    """A thread that goes on appending events of other users, one by one, at most until the block is left."""

    def __init__(self, url: str) -> None:
        self._url, self._stop, self._thread = url, threading.Event(), threading.Thread(target=self._run)
        self.failures: list[Exception] = []

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self.failures

    def _run(self) -> None:
        with Client(self._url) as client:
            for step in range(MOST_WRITTEN):  # however slow the update is, few events beside those that it learns
                if self._stop.wait(0.02):
                    return
                event = np.array([[-1, step % ITEMS, 1_800_000_000_000 + step]])
                try:
                    client.append(user=f"writer {step % 3}", events=event)
                except Exception as error:
                    self.failures.append(error)
                    return


def append(server: Server, logged: Dataset, first: int | None, last: int | None) -> None:
    """A part of each user's history."""
    with Client(server.grpc_url) as client:
        for user, key in enumerate(logged.users):
            events = logged.events(user)[first:last]
            if len(events):
                client.append(user=key, events=events)


def test_better_weights_are_served(folder: Path, server: Server) -> None:
    logged = drift(7)
    append(server, logged, None, -5)
    with Writer(server.grpc_url):
        options = ("--learning-rate", 2e-2, "--epochs", 8, "--load", server.grpc_url)
        done = update(folder, *options)
    assert done["refusal"] == ""
    assert done["log"]["new_events"] >= len(logged) - 5 * USERS
    assert done["training"]["config"]["dropout"] == 0.1  # the recipe of the run
    assert 0.8 < done["training"]["replayed_events"] / done["training"]["learnt_events"] < 1.3
    assert done["new"]["after"]["ndcg@10"] > 1.5 * done["new"]["before"]["ndcg@10"]
    assert done["version"] == served_version(folder / "repository") == 2

    network, checkpoint = load_run(Path(done["run"]))
    assert checkpoint.weights_hash == load_checkpoint(folder / "repository" / "recommender" / "2").weights_hash
    user = int(np.argmax(np.diff(logged.indptr)))
    history = logged.events(user)[:-5]
    (expected,) = recompute_scores(network, history[:, 1], history[:, 2], np.array([len(history)]))
    with Client(server.grpc_url) as client:
        answer = client.recommend(user=logged.users[user], k=K)
        assert client.model_info().settings["max_k"] == str(K + 1)  # as the version before
    assert answer.position == len(history)
    np.testing.assert_allclose(answer.scores, np.sort(expected)[::-1][:K], atol=1e-4)


def test_worse_weights_are_refused(folder: Path, server: Server) -> None:
    """After the test above: the update begins with what that one gave, where that one ended."""
    with pytest.raises(DataError, match=r"expected new events of at least 100 users"):
        update(folder)
    append(server, drift(7), -5, None)
    with Client(server.grpc_url) as client:
        client.append(user="u0", events=np.array([[-1, ITEMS, 1_800_000_000_000]]))
    refused = update(folder, "--learning-rate", 3, "--replay", 0, "--load", server.grpc_url)
    assert refused["base"] == str(folder / "run" / "updates" / "0001")
    assert refused["log"]["unknown_events"] == 1
    assert refused["log"]["new_events"] <= 5 * USERS + MOST_WRITTEN
    assert refused["training"]["replayed_events"] == 0
    assert refused["new"]["after"]["ndcg@10"] < refused["new"]["before"]["ndcg@10"]
    assert "NDCG@10 of the newest events falls" in refused["refusal"]
    assert (refused["run"], refused["version"]) == (None, None)
    assert versions_in(folder / "repository") == [1, 2]
    assert [path.name for path in (folder / "run" / "updates").iterdir()] == ["0001"]


def test_other_weights_and_missing_logs_are_named(folder: Path, tmp_path: Path) -> None:
    network, checkpoint = load_run(folder / "run")
    network.start.data += 1
    save_run(tmp_path / "run", network, checkpoint.config, checkpoint.catalogue, {})
    for run, options, error, message in (
        (
            tmp_path / "run",
            ("--repository", folder / "repository"),
            CheckpointError,
            "expected the weights that are served",
        ),
        (
            folder / "run",
            ("--log", tmp_path / "none"),
            ArgumentError,
            "event_log=.*none: expected the folder of an event",
        ),
        (folder / "run", (), ArgumentError, "--log: expected the server's event log"),
        (folder / "run", ("--load", "a:1"), ArgumentError, "--load: expected a --repository"),
    ):
        with pytest.raises(error, match=message):
            CliRunner().invoke(app, ["update", str(run), *map(str, options)], catch_exceptions=False)
