"""New items in a running tritonserver: it goes on answering, and ranks and takes them by what they are."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from longrec.catalogue import Catalogue
from longrec.cli.main import app
from longrec.client import Client, Event
from longrec.config import EngineConfig, ModelConfig
from longrec.modeling import Transformer, load_network, recompute_scores, save_run
from longrec.schema import ItemCategories, Schema
from longrec.server.process import Server
from longrec.server.repository import write_repository

pytestmark = pytest.mark.server

TOLERANCE = 1e-4
NUM_ITEMS = 30
NAMES = tuple(f"genre {n}" for n in range(4))
CONFIG = EngineConfig(memory_bytes=1 << 20, log_bytes=64 << 20)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(6)
    schema = Schema(item={"genre": ItemCategories(kind="categories", values=NAMES)})
    config = ModelConfig(num_items=NUM_ITEMS, dim=16, hidden_dim=24, num_layers=2, window=10, features=schema)
    network = Transformer(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.mul_(8)
    folder = tmp_path_factory.mktemp("added")
    ids = [f"item {n}" for n in range(NUM_ITEMS)]
    save_run(folder / "run", network, config, Catalogue(ids, ids), {})
    write_repository(folder / "run", folder / "repository", engine=CONFIG, extras=["recompute"])
    return folder / "repository"


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with Server(repository, grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server


def test_a_running_server_takes_new_items(repository: Path, server: Server) -> None:
    rng = np.random.default_rng(0)
    items, times = rng.integers(0, NUM_ITEMS, 20), 1_700_000_000_000 + 60_000 * np.arange(20)
    version = repository / "recommender" / "1"
    with Client(server.grpc_url, catalogue=version) as client:
        events = [Event(f"item {item}", int(time)) for item, time in zip(items, times, strict=True)]
        before = client.recommend(user="u", events=events, k=NUM_ITEMS)
        file = repository.parent / "new.csv"
        file.write_text("item_id,genre\nnew a,genre 2\nnew b,genre 0|genre 3\n")
        done = CliRunner().invoke(app, ["items", "add", str(repository), str(file), "--load", server.grpc_url])
        assert done.exit_code == 0, done.output
        assert client.recommend(user="u", k=NUM_ITEMS + 2).position == 20
    network, _ = load_network(version)
    (scores,) = recompute_scores(network, items, times, np.array([20]))
    np.testing.assert_allclose(before.scores, np.sort(scores[:NUM_ITEMS])[::-1], atol=TOLERANCE)
    for model in ("recommender", "recommender_recompute"):
        with Client(server.grpc_url, model=model, catalogue=version) as client:
            taken = [*events, Event("new b", int(times[-1]) + 1)]
            after = client.recommend(user=f"another of {model}", events=taken, k=NUM_ITEMS + 2)
            assert set(after.ids) >= {"new a", "new b"}
            own = np.append(items, NUM_ITEMS + 1), np.append(times, times[-1] + 1)
            (scores,) = recompute_scores(network, *own, np.array([21]))
            np.testing.assert_allclose(scores[after.items], after.scores, atol=TOLERANCE)
