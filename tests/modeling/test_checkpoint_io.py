import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from longrec.catalogue import Catalogue
from longrec.checkpoint import load_checkpoint, save_checkpoint
from longrec.config import ModelConfig
from longrec.errors import CheckpointError
from longrec.modeling import Transformer, load_network, save_run

CONFIG = ModelConfig(num_items=7, dim=8, num_heads=2, num_kv_heads=1, hidden_dim=12)
CATALOGUE = Catalogue([f"i{n}" for n in range(7)], [f"Item {n}" for n in range(7)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_run(tmp_path, Transformer(CONFIG), CONFIG, CATALOGUE, {"seed": 0})
    return tmp_path


def rewrite(run: Path, change: dict[str, np.ndarray | None], config: ModelConfig = CONFIG) -> None:
    """Replace (or, with None, drop) weights, keeping the hashes right."""
    weights = {**load_checkpoint(run).weights, **change}
    kept = {name: array for name, array in weights.items() if array is not None}
    save_checkpoint(run, config, kept, CATALOGUE, {})


def test_a_network_is_read_back(run: Path) -> None:
    network, checkpoint = load_network(run)
    torch.manual_seed(0)
    expected = Transformer(CONFIG)
    for name, weight in expected.state_dict().items():
        assert torch.equal(weight, network.state_dict()[name]), name
    assert not network.training
    assert (checkpoint.config, checkpoint.catalogue, checkpoint.training) == (CONFIG, CATALOGUE, {"seed": 0})


def test_reading_does_not_import_the_compiler(run: Path) -> None:
    """It takes longer than all else that a model's start takes."""
    script = (
        "import sys; from pathlib import Path; from longrec.modeling.checkpoint_io import load_network\n"
        f"load_network(Path({str(run)!r})); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_reading_draws_no_random_numbers_that_others_would_miss(run: Path) -> None:
    torch.manual_seed(1)
    load_network(run)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))


def test_weights_that_do_not_fit_are_refused(run: Path) -> None:
    norm = np.ones(8, dtype=np.float32)
    for change, message in (
        ({"norm.weight": None}, "missing norm.weight"),
        ({"extra": norm}, "unexpected extra"),
        ({"norm.weight": norm[:4]}, r"norm\.weight: expected torch\.float32 \[8\] .* got torch\.float32 \[4\]"),
        ({"norm.weight": norm.astype(np.float64)}, r"got torch\.float64 \[8\]"),
        ({"norm.weight": norm * np.nan}, "norm.weight: expected finite numbers"),
    ):
        original = load_checkpoint(run).weights
        rewrite(run, change)
        with pytest.raises(CheckpointError, match=message):
            load_network(run)
        save_checkpoint(run, CONFIG, original, CATALOGUE, {})


def test_a_config_of_another_shape_is_refused(run: Path) -> None:
    rewrite(run, {}, CONFIG.model_copy(update={"dim": 16}))
    with pytest.raises(CheckpointError, match=r"from config\.json"):
        load_network(run)
    rewrite(run, {}, CONFIG.model_copy(update={"num_layers": 1}))
    with pytest.raises(CheckpointError, match=r"unexpected blocks\.1"):
        load_network(run)
