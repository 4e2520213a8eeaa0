"""New weights in a running tritonserver, and several instances of a model, both under load: nothing fails, positions
stay exact, and every answer is that of the weights that the server then has."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from tritonclient.grpc import InferenceServerClient
from typer.testing import CliRunner

from longrec.catalogue import Catalogue
from longrec.cli.main import app
from longrec.client import Client, Status
from longrec.config import EngineConfig
from longrec.errors import ServerError
from longrec.modeling import Transformer, recompute_scores, save_run
from longrec.protocol import MODEL
from longrec.server.loading import switch_version
from longrec.server.process import Server
from longrec.server.repository import served_version, write_repository

pytestmark = pytest.mark.server

TOLERANCE = 1e-4
INSTANCES = 2
K = 8
CONFIG = EngineConfig(memory_bytes=1 << 20, log_bytes=64 << 20, inline_events=8, chunk_events=16)
SETTINGS = [f"--set={name}={value}" for name, value in CONFIG.model_dump(exclude_defaults=True).items()]


@pytest.fixture(scope="module")
def networks(network: Transformer) -> dict[int, Transformer]:
    """Weights of versions 1 and 2."""
    torch.manual_seed(4)
    other = Transformer(network.config).eval()
    with torch.no_grad():
        for weight in other.parameters():
            if weight.ndim > 1:
                weight.mul_(8)
    return {1: network, 2: other}


@pytest.fixture(scope="module")
def runs(networks, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for version, network in networks.items():
        ids = [str(item) for item in range(network.config.num_items)]
        save_run(folder / str(version), network, network.config, Catalogue(ids, ids), {})
    return {version: folder / str(version) for version in networks}


@pytest.fixture(scope="module")
def server(runs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("versions") / "repository"
    write_repository(runs[1], repository, engine=CONFIG, instances=INSTANCES)
    with Server(repository, grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server


class Load:
    """A thread that streams users' events, one request of each user in flight, and keeps what comes back."""

    def __init__(self, url: str, name: str, num_users: int = 4) -> None:
        self._url, self._thread = url, threading.Thread(target=self._run)
        self.histories: dict[str, list[list[int]]] = {f"{name} {number}": [] for number in range(num_users)}
        self.predictions = defaultdict(list)
        self.failures: list[Exception] = []
        self._stop = threading.Event()
        self._enough = threading.Condition()
        self._count = 0

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def wait_for(self, more: int) -> None:
        """Return when so many more answers have come."""
        with self._enough:
            goal = self._count + more
            assert self._enough.wait_for(lambda: self._count >= goal or self.failures, 60)

    @property
    def count(self) -> int:
        """Answers so far."""
        return self._count

    def _run(self) -> None:
        rng = np.random.default_rng(0)
        with Client(self._url, timeout_seconds=60) as client, client.stream(k=K, max_in_flight=64) as stream:

            def send(user: str) -> None:
                history = self.histories[user]
                start = len(history)
                for _ in range(rng.integers(0, 4)):
                    history.append([int(rng.integers(0, 100)), 1_700_000_000_000 + 1_000 * len(history)])
                events = [[at, *history[at]] for at in range(start, len(history))]
                stream.send(user, np.array(events, np.int64).reshape(-1, 3))

            for user in self.histories:
                send(user)
            while stream.in_flight:
                try:
                    prediction = next(stream)
                except ServerError as error:
                    self.failures.append(error)
                    if error.user is None:
                        return
                    continue
                with self._enough:
                    self._count += 1
                    self.predictions[prediction.user].append((self._count, prediction))
                    self._enough.notify_all()
                if not self._stop.is_set():
                    send(prediction.user)

    def differences(self, networks: dict[int, Transformer]) -> dict[int, np.ndarray]:
        """Of every answer, in the order they came: largest difference from the scores under each version's weights."""
        found = {version: np.empty(self._count) for version in networks}
        for user, answers in self.predictions.items():
            history = np.array(self.histories[user]).reshape(-1, 2)
            after = np.array([prediction.position for _, prediction in answers])
            for version, network in networks.items():
                expected = recompute_scores(network, history[:, 0], history[:, 1], after)
                for (number, prediction), row in zip(answers, expected, strict=True):
                    best = np.sort(row)[::-1][:K]
                    found[version][number - 1] = np.abs(prediction.scores - best).max()
        return found

    def assert_nothing_went_wrong(self) -> None:
        assert not self.failures
        for user, answers in self.predictions.items():
            assert all(prediction.status is Status.OK for _, prediction in answers)
            positions = [prediction.position for _, prediction in answers]
            assert positions == sorted(positions)
            assert positions[-1] == len(self.histories[user])


def executions(server: Server) -> list[int]:
    with InferenceServerClient(server.grpc_url) as client:
        return [int(model.execution_count) for model in client.get_inference_statistics(MODEL).model_stats]


def test_instances_catch_up_with_each_other(server, networks):
    with Load(server.grpc_url, "instances", num_users=12) as load:
        load.wait_for(600)
    load.assert_nothing_went_wrong()
    assert load.differences({1: networks[1]})[1].max() <= TOLERANCE


def test_versions_change_under_load_and_back(server, networks, runs):
    with Load(server.grpc_url, "versions") as load:
        load.wait_for(100)
        marks = [load.count]
        for arguments in (
            ["export", str(runs[2]), str(server.repository), "--load", server.grpc_url, *SETTINGS],
            ["rollback", str(server.repository), "--url", server.grpc_url],
        ):
            result = CliRunner().invoke(app, arguments, catch_exceptions=False)
            assert result.exit_code == 0
            marks.append(load.count + len(load.histories))  # one of each user was on its way
            load.wait_for(100)
            marks.append(load.count)
    load.assert_nothing_went_wrong()
    differences = load.differences(networks)
    assert np.minimum(*differences.values()).max() <= TOLERANCE
    for version, begin, end in ((1, 0, marks[0]), *zip((2, 1), marks[1::2], marks[2::2], strict=True)):
        assert differences[version][begin:end].max() <= TOLERANCE
        assert (differences[3 - version][begin:end] > 100 * TOLERANCE).mean() > 0.9, "the weights must differ"


def test_new_weights_get_their_memories_before_anybody_asks(server, runs):
    users = [f"idle {number}" for number in range(5)]
    with Client(server.grpc_url) as client:
        for user in users:
            client.append(user=user, events=np.stack([np.arange(30), np.arange(30), 1_000 * np.arange(30)], axis=1))
    version = int(write_repository(runs[2], server.repository, engine=CONFIG, instances=INSTANCES, select=False).name)
    before = served_version(server.repository)
    switch_version(server.repository, version, server.grpc_url)

    def rebuilt() -> list[float]:
        """Of each of the version's instances."""
        label = f'version="{version}"'
        lines = urlopen(server.metrics_url).read().decode().splitlines()
        wanted = (line for line in lines if line.startswith("longrec_background_rebuilds_total{") and label in line)
        return [float(line.split()[-1]) for line in wanted]

    deadline = time.monotonic() + 30
    while not (counts := rebuilt()) or min(counts) < len(users):
        assert time.monotonic() < deadline, counts
        time.sleep(0.1)
    assert len(counts) == INSTANCES
    assert before is not None
    switch_version(server.repository, before, server.grpc_url)


def test_what_cannot_load_changes_nothing(server, runs):
    before = served_version(server.repository)
    broken = write_repository(runs[1], server.repository, engine=CONFIG, select=False)
    (broken / "model.py").write_text("raise RuntimeError('no such device: warp drive')")
    with Load(server.grpc_url, "broken", num_users=3) as load:
        load.wait_for(10)
        with pytest.raises(ServerError, match=f"expected version {broken.name} to load, got .*warp drive"):
            switch_version(server.repository, int(broken.name), server.grpc_url)
        load.wait_for(10)
    load.assert_nothing_went_wrong()
    assert served_version(server.repository) == before
    with InferenceServerClient(server.grpc_url) as client:
        assert list(client.get_model_metadata(MODEL).versions) == [str(before)]


def test_a_server_of_another_repository_is_told_apart(server, runs, tmp_path):
    write_repository(runs[1], tmp_path / "other", engine=CONFIG, version=7)
    with pytest.raises(ServerError, match=r"expected version 7 to be served, got .*does the server run from this"):
        switch_version(tmp_path / "other", 7, server.grpc_url)
