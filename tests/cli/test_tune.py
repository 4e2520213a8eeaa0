"""`longrec tune` from a data set to settings that `longrec train` takes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Longrec = Callable[..., str]  # the fixture


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, longrec: Longrec) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = [f"u{u},i{(u + 2 * n) % 9},{100 * n}" for u in range(20) for n in range(7)]
    (folder / "orders.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    longrec("data", "import", folder / "orders.csv", "--out", folder / "orders")
    return folder / "orders"


def test_the_settings_that_it_writes_train(dataset: Path, tmp_path: Path, longrec: Longrec) -> None:
    options = ["--set", "dim=8", "--set", "num_layers=1", "--set", "epochs=2", "--search", "dropout", "--trials", 2]
    table = longrec("tune", dataset, "--out", tmp_path / "tune", *options)
    assert "2 trials" in table
    best = json.loads((tmp_path / "tune" / "best.json").read_text())
    longrec("train", dataset, "--out", tmp_path / "run", "--config", tmp_path / "tune" / "best.json")
    order = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert order["train"]["dropout"] == best["train"]["dropout"]
    assert order["model"]["dim"] == 8
    again = json.loads(longrec("tune", dataset, "--out", tmp_path / "tune", *options, "--json"))
    assert again["trials"] == 2
    assert again["settings"] == best
