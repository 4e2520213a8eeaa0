"""A real server that is killed, loses its stub or hangs serves again on the same ports, with all it acknowledged."""

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from longrec.catalogue import Catalogue
from longrec.client import Client, Event
from longrec.config import EngineConfig, ModelConfig
from longrec.errors import ArgumentError, LongrecError, ServerError
from longrec.modeling.checkpoint_io import save_run
from longrec.modeling.transformer import Transformer
from longrec.server.process import Server
from longrec.server.processes import children, end_of, stubs
from longrec.server.repository import write_repository
from longrec.server.watch import WatchConfig, WatchedServer

NUM_ITEMS = 50
USER = "anna"
ENGINE = EngineConfig(memory_bytes=8 << 20, log_bytes=64 << 20, durability="commit")


class Watching:
    """A watched server in a thread, and the victims that its processes make."""

    def __init__(self, repository: Path, config: WatchConfig) -> None:
        ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
        self.server = Server(repository, **ports, start_seconds=60.0)
        self.server.start()
        self.watched = WatchedServer(self.server, config)
        self.error: LongrecError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.watched.run(self._stop)
        except LongrecError as error:
            self.error = error

    @property
    def server_id(self) -> int:
        (server,) = children(self.server.supervisor_id or 0)
        return server

    @property
    def stub_id(self) -> int:
        (stub,) = stubs(self.server_id)
        return stub.process_id

    def join(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.server.stop(at_once=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(num_items=NUM_ITEMS, dim=32, window=16)
    catalogue = Catalogue([f"i{item}" for item in range(NUM_ITEMS)], ["title"] * NUM_ITEMS)
    folder = tmp_path_factory.mktemp("watched")
    save_run(folder / "checkpoint", Transformer(config), config, catalogue, {})
    return write_repository(folder / "checkpoint", folder / "repository", engine=ENGINE).parents[1]


@pytest.fixture(scope="module")
def watching(repository: Path) -> Iterator[Watching]:
    config = WatchConfig(deadline_seconds=3.0, failed_probes=1, max_restarts=100, backoff_seconds=0.0)
    watching = Watching(repository, config)
    yield watching
    watching.close()


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def hang(watching: Watching) -> None:
    os.kill(watching.stub_id, signal.SIGSTOP)


def kill_stub(watching: Watching) -> None:
    os.kill(watching.stub_id, signal.SIGKILL)


def kill_server(watching: Watching) -> None:
    os.kill(watching.server_id, signal.SIGKILL)


def kill_supervisor(watching: Watching) -> None:
    os.kill(watching.server.supervisor_id or 0, signal.SIGKILL)


@pytest.mark.server
@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (kill_stub, "a process of model recommender, version 1, has ended: 0 of 1 are left"),
        (kill_server, "tritonserver has ended"),
        (kill_supervisor, "tritonserver has ended"),
        (hang, "1 probes in a row failed; the last: recommender at"),
    ],
)
def test_serves_again_what_it_acknowledged(watching: Watching, harm: Callable[[Watching], None], reason: str) -> None:
    server, watched = watching.server, watching.watched
    url, restarts, victims = server.grpc_url, watched.restarts, (watching.server_id, watching.stub_id)
    with Client(url) as client:
        length = client.recommend(user=USER, events=[], k=10).position
        events = [
            Event(item=(7 * at) % NUM_ITEMS, time_ms=60_000 * at, position=at) for at in range(length, length + 30)
        ]
        before = client.recommend(user=USER, events=events, k=10)
    harm(watching)
    wait_until(lambda: watched.restarts > restarts)
    assert watched.restarts == restarts + 1
    assert server.grpc_url == url
    server.check()
    with Client(url) as client:
        after = client.recommend(user=USER, events=events[-3:], k=10)  # a retry of what was acknowledged
    assert after.position == before.position == length + 30
    np.testing.assert_array_equal(after.items, before.items)
    np.testing.assert_allclose(after.scores, before.scores, atol=1e-4)
    assert re.search(reason, watched.reason), watched.reason
    assert all(not Path(f"/proc/{process}").exists() for process in victims)
    assert server.log.with_name(f"{server.log.name}.1").exists()


@pytest.mark.server
def test_gives_up_a_server_that_no_longer_starts(repository: Path, tmp_path: Path) -> None:
    model = repository / "recommender/1/model.py"
    sound = model.read_text()
    watching = Watching(repository, WatchConfig(max_restarts=2, backoff_seconds=0.1))
    try:
        model.write_text("raise RuntimeError('no such device: warp drive')")
        kill_stub(watching)
        assert watching.join(60.0)
    finally:
        model.write_text(sound)
        watching.close()
    assert isinstance(watching.error, ServerError)
    assert "expected at most 2 restarts within 120 s, got one more" in str(watching.error)
    assert "no such device: warp drive" in str(watching.error)
    with pytest.raises(ServerError, match="expected it to run"):
        watching.server.check()


@pytest.mark.server
def test_a_version_that_fails_to_load_restarts_nothing(repository: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    watching = Watching(copy, WatchConfig())
    try:
        broken = write_repository(repository.parent / "checkpoint", copy, engine=ENGINE, version=2)
        (broken / "model.py").write_text("raise RuntimeError('no such device: warp drive')")
        with (
            InferenceServerClient(watching.server.grpc_url) as client,
            pytest.raises(InferenceServerException, match="version 2 is at UNAVAILABLE"),
        ):
            client.load_model("recommender")
        write_repository(repository.parent / "checkpoint", copy, engine=ENGINE, version=1)
        shutil.rmtree(broken)
        kill_stub(watching)
        wait_until(lambda: watching.watched.restarts > 0)
    finally:
        watching.close()
    assert watching.watched.restarts == 1
    assert watching.watched.reason == "a process of model recommender, version 1, has ended: 0 of 1 are left"


def test_the_end_of_a_process_can_be_waited_for() -> None:
    assert end_of(os.getpid()) is not None
    child = os.fork()
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[0] == child
    assert end_of(child) is None
    assert child not in children(os.getpid())


@pytest.mark.parametrize(
    ("values", "named"), [({"probe_seconds": 0.0}, "probe_seconds=0"), ({"max_restarts": -1}, "max_restarts=-1")]
)
def test_a_setting_out_of_range(values: dict[str, float], named: str) -> None:
    with pytest.raises(ArgumentError, match=f"{named}: expected"):
        WatchConfig(**values)  # type: ignore[arg-type]
