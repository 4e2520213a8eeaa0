"""A small random network, an engine over a log in a temporary folder, and the answer that both are held against."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from longrec.config import EngineConfig, ModelConfig
from longrec.modeling.features import gap_buckets
from longrec.modeling.transformer import Transformer
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log import EventLog

NUM_ITEMS = 97
WINDOW = 12


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
def log(tmp_path: Path) -> Iterator[EventLog]:
    log = EventLog(tmp_path / "log", durability="none", max_bytes=64 << 20)
    yield log
    log.close()


@pytest.fixture
def make_engine(network: Transformer, log: EventLog) -> Callable[..., Engine]:
    def make(**settings: object) -> Engine:
        defaults = {"page_size": 16, "max_step_events": 32, "memory_bytes": 4 << 20}
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
