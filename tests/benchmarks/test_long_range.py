"""What `benchmarks/long_range.py` trains on and tests; the accuracies are the benchmark's own."""

import json
from pathlib import Path
from typing import Any

import long_range
import numpy as np
import pytest
from long_range import CASES, DISTANCES, histories, plot, run

from longrec.config import ModelConfig


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few, short histories and a small network."""
    sizes: dict[str, Any] = {"dim": 8, "hidden_dim": 8, "num_layers": 1, "window": 64}
    for name, value in {"SHORT": 20, "LONG": 2, "TESTED": 2, "DISTANCES": (3, 9), "SIZES": sizes}.items():
        monkeypatch.setattr(long_range, name, value)


def test_tested_histories_are_not_trained_on_and_end_at_their_distance() -> None:
    data, split, tested = histories(seed=0)
    assert set(tested) == set(DISTANCES)
    assert (split.train_end[split.evaluated] == data.indptr[split.evaluated]).all()
    assert (data.items[split.test] == data.items[split.test - tested]).all()
    trained = np.diff(data.indptr)[: split.evaluated[0]]
    assert (trained <= 1024 + 17).all()  # whole in a sequence of the recipe


def test_cases_are_what_their_names_say() -> None:
    shapes = {name: ModelConfig(num_items=17, **{**long_range.SIZES, **sizes}) for name, (sizes, _) in CASES.items()}
    assert all(shape.window <= 1024 for shape in shapes.values())
    assert shapes["transformer of 199 events"].reach == 199
    assert shapes["transformer_xl, window 256, 4 layers"].window == 256
    assert all(name.startswith(shape.family) for name, shape in shapes.items())


@pytest.mark.usefixtures("small")
def test_a_case_gives_a_row_a_distance_and_rows_a_plot(tmp_path: Path) -> None:
    rows = run("transformer", seed=0, epochs=1)
    assert [(row["family"], row["distance"], row["chance"]) for row in rows] == [
        ("transformer", 3, 0.125),
        ("transformer", 9, 0.125),
    ]
    assert all(0.0 <= row["accuracy"] <= 1.0 for row in json.loads(json.dumps(rows)))
    plot(rows, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
