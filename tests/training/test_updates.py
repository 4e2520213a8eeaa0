from pathlib import Path

import pytest

from longrec.catalogue import Catalogue
from longrec.checkpoint import load_checkpoint
from longrec.config import ModelConfig
from longrec.modeling import build_network, save_run
from longrec.training.updates import save_update


@pytest.mark.parametrize(("before", "after"), [({"held_out": 5}, 2), ({"held_out": 0}, 0), ({}, 2)])
def test_an_update_records_how_little_it_spared(before: dict[str, int], after: int, tmp_path: Path) -> None:
    """It learns from all but the last two events of a user, whatever the run that it began with had held out."""
    model = ModelConfig(num_items=3, dim=8, num_layers=1, num_heads=1, num_kv_heads=1, hidden_dim=8, window=4)
    network = build_network(model)
    save_run(tmp_path, network, model, Catalogue(["a", "b", "c"], ["A", "B", "C"]), {"dataset": "shop", **before})
    updated = save_update(tmp_path, load_checkpoint(tmp_path), network, {b"u": 4}, {})
    assert load_checkpoint(updated).training == {"dataset": "shop", "update": 1, "held_out": after}
