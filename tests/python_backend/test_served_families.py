"""Every family in a real tritonserver, exported by the command: streamed equals recomputed, beyond what the memories
hold and over a restart. The models stand on one event log, so that each also catches up with what came by another."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch

from longrec.catalogue import Catalogue
from longrec.cli.export import export
from longrec.client import Client
from longrec.config import ModelConfig
from longrec.errors import RejectedError
from longrec.modeling import FAMILIES, Network, build_network, memory_layout, recompute_scores, save_run
from longrec.protocol import MODEL
from longrec.server.process import Server

pytestmark = pytest.mark.server

NUM_ITEMS, WINDOW, K = 83, 12, 10
TOLERANCE = 1e-4
NUM_USERS = 8
EVENTS = 60


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    made = {}
    for family in FAMILIES:
        torch.manual_seed(6)
        shape = {"dim": 32, "num_heads": 4, "num_kv_heads": 2, "hidden_dim": 32, "window": WINDOW, "horizon": 3}
        made[family] = build_network(ModelConfig(num_items=NUM_ITEMS, family=family, **shape)).eval()
        with torch.no_grad():
            for weight in made[family].parameters():
                weight.add_(0.2 * torch.randn_like(weight))
    return made


@pytest.fixture(scope="module")
def repository(networks, tmp_path_factory) -> Path:
    """A model for each family, transformer as `recommender`; each has memory for two users or three."""
    folder: Path = tmp_path_factory.mktemp("families")
    ids = [str(item) for item in range(NUM_ITEMS)]
    for family, network in networks.items():
        save_run(folder / "runs" / family, network, network.config, Catalogue(ids, ids), {})
        settings = ["page_size=16", "inline_events=8", "chunk_events=16", "log_bytes=67108864"]
        if network.memory != "window":
            layout = memory_layout(network.config, torch.float32, "same", 16)
            pages = max(3, layout.most_pages(WINDOW + 8))
            settings += [f"memory_bytes={pages * layout.page_bytes}", f"host_memory_bytes={2 * layout.page_bytes}"]
        export(folder / "runs" / family, folder / "exported" / family, set_=settings)
        model = folder / "repository" / name_of(family)
        shutil.copytree(folder / "exported" / family / MODEL, model)
        config = (model / "config.pbtxt").read_text()
        (model / "config.pbtxt").write_text(config.replace(f'name: "{MODEL}"', f'name: "{model.name}"', 1))
    return folder / "repository"


def name_of(family: str) -> str:
    return MODEL if family == "transformer" else family


@contextlib.contextmanager
def serve(repository: Path) -> Iterator[tuple[Server, dict[str, Client]]]:
    """A server of all of them, and a client for each."""
    with Server(repository, grpc_port=0, http_port=0, metrics_port=0) as server, contextlib.ExitStack() as clients:
        yield (
            server,
            {
                family: clients.enter_context(Client(server.grpc_url, model=name_of(family), timeout_seconds=60))
                for family in FAMILIES
            },
        )


def models_that_evicted(server: Server) -> set[str]:
    lines = urlopen(server.metrics_url).read().decode().splitlines()
    counts = [line for line in lines if line.startswith("longrec_memory_evictions_total{")]
    return {
        name for name in map(name_of, FAMILIES) for line in counts if f'"{name}"' in line and line.split()[-1] != "0"
    }


class Streams:
    """Histories that are sent piece by piece, by way of whichever model, and what each model must answer."""

    def __init__(self, networks, make_history) -> None:
        self.exact = {family: build_network(network.config).double().eval() for family, network in networks.items()}
        for family, network in networks.items():
            self.exact[family].load_state_dict(network.state_dict())
        self.histories = {f"user {seed}": make_history(seed, EVENTS) for seed in range(NUM_USERS)}
        self.sent = dict.fromkeys(self.histories, 0)
        self.rng = np.random.default_rng(2)

    def send(self, clients: dict[str, Client], stop: int) -> None:
        """Send every history up to an event, in random pieces in a random order, and check each answer."""
        while waiting := [user for user in self.histories if self.sent[user] < stop]:
            user, start = self.rng.choice(waiting), 0
            start, self.sent[user] = self.sent[user], min(stop, self.sent[user] + int(self.rng.choice([1, 2, 5, 19])))
            self.ask(clients, self.rng.choice(list(clients)), user, start)

    def ask_all(self, clients: dict[str, Client]) -> None:
        """Ask every model for every user."""
        for family in clients:
            for user, sent in self.sent.items():
                self.ask(clients, family, user, sent)

    def ask(self, clients: dict[str, Client], family: str, user: str, start: int) -> None:
        """Send the user's events from `start` on, ask, and check the answer."""
        stop = self.sent[user]
        history = self.histories[user][:stop]
        events = np.column_stack((np.arange(start, stop), history[start:]))
        found = clients[family].recommend(user=user, events=events, k=K)
        assert found.position == stop
        (scores,) = recompute_scores(self.exact[family], history[:, 0], history[:, 1], np.array([stop]))
        np.testing.assert_allclose(found.scores, np.sort(scores)[::-1][:K], atol=TOLERANCE, err_msg=family)
        np.testing.assert_allclose(scores[found.items], found.scores, atol=TOLERANCE, err_msg=family)


def test_streamed_equals_recomputed_over_evictions_and_a_restart(repository, networks, make_history):
    streams = Streams(networks, make_history)
    with serve(repository) as (_, clients):
        streams.send(clients, EVENTS // 2)
        streams.ask_all(clients)
    with serve(repository) as (server, clients):
        streams.ask_all(clients)
        streams.send(clients, EVENTS)
        for family, client in clients.items():
            rolled = client.recommend(user="user 0", events=[], k=3, horizon=3)
            assert rolled.items.shape == (3, 3)
            if networks[family].memory == "pages":
                assert client.recommend(user="user 0", events=[], k=3, explain=2).because.shape == (3, 2)
            else:
                with pytest.raises(RejectedError, match=r"explain=2: expected an integer in 0..0 .*max_explain"):
                    client.recommend(user="user 0", events=[], k=3, explain=2)
        streams.ask_all(clients)
        remembering = {name_of(family) for family, network in networks.items() if network.memory != "window"}
        deadline = time.monotonic() + 30  # metrics come a moment later
        while (evicted := models_that_evicted(server)) != remembering:
            assert time.monotonic() < deadline, f"only {evicted} lost memories"
