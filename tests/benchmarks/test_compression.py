"""The table of compressed checkpoints, of a small run."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from longrec.config import ModelConfig
from longrec.datasets.synthetic import make_drift
from longrec.modeling import build_network, save_run

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compression.py"


def test_every_method_is_measured_against_the_whole(tmp_path: Path) -> None:
    data = make_drift(20, 200, num_items=60)
    data.save(tmp_path / "data")
    torch.manual_seed(0)
    config = ModelConfig(num_items=60, dim=16, num_layers=1, hidden_dim=32, window=8)
    save_run(tmp_path / "run", build_network(config), config, data.catalogue, {})
    out = tmp_path / "compression.json"
    command = [sys.executable, SCRIPT, tmp_path / "run", tmp_path / "data", "--out", out]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    rows = json.loads(out.read_text())["rows"]
    assert {row["method"] for row in rows} == {"none", "int8", "int8-items", "low-rank", "prune", "prune-hidden"}
    assert all(row["method"] in printed for row in rows)
    whole = rows[0]
    for row in rows[1:]:
        assert row["bytes_on_disk"] < whole["bytes_on_disk"]
        assert (row["bytes_in_memory"] < whole["bytes_in_memory"]) == (row["method"] == "prune-hidden")
