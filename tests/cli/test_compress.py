"""`longrec compress`, and what else writes a run anew: items that were added since its training come along."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from longrec.added_items import AddedItems
from longrec.catalogue import Catalogue
from longrec.cli.main import app
from longrec.config import ModelConfig
from longrec.errors import ArgumentError, CheckpointError
from longrec.modeling import build_network, load_run, recompute_scores, save_run
from longrec.training.updates import find_base, save_update

HISTORY = np.array([1, 4, 2]), np.arange(3) * 1000, np.array([3])  # 4 was added


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(num_items=4, dim=16, num_layers=1, hidden_dim=16, window=8)
    save_run(tmp_path / "run", build_network(config), config, Catalogue(list("abcd"), list("abcd")), {"config": {}})
    AddedItems(["e"], ["E"], [[]], np.full((1, 16), 0.1, np.float32)).save(tmp_path / "run")
    return tmp_path / "run"


def compress(run: Path, out: Path, *options: object) -> dict[str, int]:
    command = ["compress", run, "--out", out, "--json", *options]
    done = CliRunner().invoke(app, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_run_is_written_smaller_with_the_items_that_were_added(run: Path, tmp_path: Path) -> None:
    figures = compress(run, tmp_path / "small", "--method", "int8")
    assert figures["bytes"] == (tmp_path / "small" / "weights.safetensors").stat().st_size < figures["bytes_before"]
    network, checkpoint = load_run(tmp_path / "small")
    assert list(checkpoint.catalogue.ids) == list("abcde")
    assert checkpoint.training["compressed"] == {"method": "int8", "keep": None}
    np.testing.assert_allclose(
        recompute_scores(network, *HISTORY), recompute_scores(load_run(run)[0], *HISTORY), atol=1e-2
    )
    with pytest.raises(ArgumentError, match="expected another folder than the run's"):
        compress(run, run, "--method", "int8")


def test_an_update_is_found_by_its_weights(run: Path) -> None:
    base = find_base(run)
    assert (base.folder, dict(base.learnt)) == (run, {})
    with torch.no_grad():
        base.network.start += 1
    first = save_update(run, base.checkpoint, base.network, {b"u": 3, b"\xff": 1}, {"refusal": ""})
    newest = find_base(run)
    assert newest.folder == first == run / "updates" / "0001"
    assert dict(newest.learnt) == {b"u": 3, b"\xff": 1}
    assert list(newest.checkpoint.catalogue.ids) == list("abcde")
    np.testing.assert_array_equal(recompute_scores(newest.network, *HISTORY), recompute_scores(base.network, *HISTORY))
    assert find_base(run, base.checkpoint.weights_hash).folder == run  # after a rollback
    assert save_update(run, base.checkpoint, base.network, {}, {}).name == "0002"
    with pytest.raises(CheckpointError, match="expected the weights that are served"):
        find_base(run, "other")
