"""The rules of docs/data.md for data that isn't as one would wish: kept by rule, or refused with the row named."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, leave_one_out, read_interactions
from longrec.errors import DataError
from longrec.training import evaluate, train

HEADER = "user_id,item_id,timestamp\n"


def text(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet(folder: Path, **columns: Any) -> Path:
    pl.DataFrame({"user_id": [1], "item_id": [2], "timestamp": [3], **columns}).write_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def test_keys_have_one_spelling_whatever_their_type(tmp_path: Path) -> None:
    expected = [("7", "x", 1000), ("7", "x", 1000), ("7", "2", 2000)]
    lines = '{"user_id": 7, "item_id": "x", "timestamp": 1}\n{"user_id": "7", "item_id": "x", "timestamp": "1"}\n'
    lines += '{"timestamp": 2.0, "user_id": 7.0, "item_id": 2}\n'
    assert read_interactions(text(tmp_path, "a.jsonl", lines)).rows() == expected
    columns = {"user_id": [7.0], "item_id": pl.Series(["x"], dtype=pl.Categorical), "timestamp": [1]}
    assert read_interactions(parquet(tmp_path, **columns)).rows() == expected[:1]


@pytest.mark.parametrize(
    "cell", [1.5, float("nan"), True, [1], {"a": 1}, b"a"], ids=["fraction", "nan", "bool", "list", "struct", "bytes"]
)
def test_a_cell_of_parquet_that_is_no_key_is_refused(tmp_path: Path, cell: Any) -> None:
    with pytest.raises(DataError, match="row 1, column 'item_id'"):
        read_interactions(parquet(tmp_path, item_id=[cell]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "row 2: expected a JSON object"),
        ("", "row 2: expected a JSON object"),
        ('{"user_id": NaN, "item_id": 1, "timestamp": 1}', "row 2: expected a JSON object"),
        ('{"user_id": "u"', "row 2: expected a JSON object"),
        (
            '{"user_id": true, "item_id": 1, "timestamp": 1}',
            "column 'user_id': expected text or a number, got bool",
        ),
        (
            '{"user_id": "u", "item_id": [1], "timestamp": 1}',
            "column 'item_id': expected text or a number, got list",
        ),
        ('{"user_id": "u", "timestamp": 1}', "row 2, column 'item_id': expected a value"),
        ('{"user_id": "u", "item_id": 1}', "row 2, column 'timestamp'"),
    ],
)
def test_a_line_of_json_that_misfits_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = text(tmp_path, "a.jsonl", '{"user_id": "u", "item_id": "i", "timestamp": 1}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        read_interactions(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "u,i,1\nu,i,1,9\n", "row 3: expected a csv file"),
        ((HEADER + "u,i,1\nu,").encode() + b"\xe9,2\n", "row 3: expected a csv file"),
        (HEADER + "u,i,1\n\nu,i,2\n", "row 3, column 'user_id'"),
        ("user_id,user_id,item_id,timestamp\na,b,i,1\n", "row 1: expected one column 'user_id', got several"),
    ],
)
def test_a_row_of_csv_that_misfits_is_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_interactions(text(tmp_path, "a.csv", content))
    assert message in str(caught.value)


def test_duplicates_stay_and_one_event_users_and_a_very_long_history_are_trained_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    users = ["long"] * 100_000 + ["one", "twice", "twice", "twice"]
    items = [*rng.integers(5, size=100_000).tolist(), 1, 2, 2, 2]
    times = [*rng.integers(10**6, size=100_000).tolist(), 5, 6, 6, 6]
    pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times}).write_parquet(tmp_path / "a.parquet")
    data = Dataset.from_interactions("test", read_interactions(tmp_path / "a.parquet"))
    assert np.diff(data.indptr).tolist() == [100_000, 1, 3]
    assert (np.diff(data.times_ms[:100_000]) >= 0).all()
    split = leave_one_out(data)
    assert split.evaluated.tolist() == [0, 2]
    model = ModelConfig(num_items=5, dim=4, num_layers=1, num_heads=1, num_kv_heads=1, hidden_dim=4, window=16)
    config = TrainConfig(sequence_length=256, batch_events=8192, epochs=1)
    trained = train(data, split, model, config)
    assert (evaluate(trained.network, data, split.evaluated, split.test) < 5).all()
