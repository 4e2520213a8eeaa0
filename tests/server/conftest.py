"""A small random network, a small dataset in its catalogue, and one server of them, for what measures or replays."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from longrec.catalogue import Catalogue
from longrec.config import EngineConfig, ModelConfig
from longrec.datasets import Dataset
from longrec.modeling import Transformer, save_run
from longrec.server.bench.material import Material, load_material
from longrec.server.process import Server

IDS = [f"item {number}" for number in range(40)]


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(num_items=len(IDS), dim=32, num_heads=4, num_kv_heads=2, hidden_dim=48, window=64)
    network = Transformer(config)
    with torch.no_grad():
        for weight in network.parameters():  # as initialised, scores hardly differ from item to item
            if weight.ndim > 1:
                weight.mul_(8)
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, network, config, Catalogue(IDS, IDS), {})
    return folder


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    users, events = 30, 15
    times = np.sort(rng.integers(0, 10**9, (users, events)), axis=1)
    folder = tmp_path_factory.mktemp("dataset")
    keys = [f"user {number}" for number in range(users)]
    items = rng.integers(0, len(IDS), users * events)
    indptr = np.arange(0, users * events + 1, events)
    Dataset("random", keys, Catalogue(IDS, IDS), items, times.ravel(), indptr).save(folder)
    return folder


@pytest.fixture(scope="session")
def material(run_folder: Path, dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return load_material(run_folder, dataset_folder, tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="session")
def server(material: Material) -> Iterator[Server]:
    with material.serve(EngineConfig(memory_bytes=16 << 20, log_bytes=64 << 20)) as server:
        yield server
