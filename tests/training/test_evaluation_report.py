from pathlib import Path

import numpy as np
import polars as pl
import pytest

from longrec.datasets import Dataset, leave_one_out
from longrec.errors import ArgumentError
from longrec.training import Answers
from longrec.training.evaluation_plots import plot_groups
from longrec.training.evaluation_report import group_figures, list_figures, training_counts


def dataset(categories: dict[str, list[str]] | None = None) -> Dataset:
    """Users of 3, 4 and 12 events; the last event of b is an item that no training event has."""
    histories = {"a": "xyx", "b": "xyxz", "c": "xxxxxxxxxxyx"}
    rows = [(user, item, n) for user, items in histories.items() for n, item in enumerate(items)]
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time_ms": pl.Int64}, orient="row")
    return Dataset.from_interactions("test", frame, None, categories)


def test_only_training_events_are_counted() -> None:
    data = dataset()
    assert training_counts(data, leave_one_out(data)).tolist() == [1 + 1 + 10, 1, 0]  # x, y, z


def test_groups_hold_their_users_and_empty_ones_stay() -> None:
    data = dataset()
    split = leave_one_out(data)
    answers = Answers(np.array([0, 20, 1]), np.zeros((3, 1), dtype=np.int64))
    counts = training_counts(data, split)
    by = ["history", "popularity", "cold"]
    found = group_figures(answers, data, split.evaluated, split.test, counts, by, cold_events=2)
    sizes = {name: {group.name: group.users for group in of if group.users} for name, of in found.items()}
    assert sizes == {
        "history": {"0-9": 2, "10-19": 1},
        "popularity": {"head": 2, "tail": 1},
        "cold": {"users, <= 2 events": 1, "other users": 2, "unseen items": 1, "seen items": 2},
    }
    unseen = next(group for group in found["cold"] if group.name == "unseen items")
    assert unseen.metrics["hr@10"] == (0, 0, 0)
    assert found["history"][0].metrics["hr@10"].mean == 0.5
    assert not found["history"][-1].metrics
    with pytest.raises(ArgumentError, match="by=age: expected one of history, popularity, cold"):
        group_figures(answers, data, split.evaluated, split.test, counts, ["age"])


@pytest.mark.parametrize("categories", [None, {"x": ["A"], "y": ["A", "B"]}])
def test_lists_that_keep_the_proportions_are_calibrated(categories: dict[str, list[str]] | None) -> None:
    data = dataset(categories)
    split = leave_one_out(data)
    counts = training_counts(data, split)
    x = data.catalogue.index["x"]
    users, rows = split.evaluated[2:], split.test[2:]  # c: ten of x, one of y
    near = list_figures(Answers(np.zeros(1), np.array([[x, x]])), data, users, rows, counts)
    far = list_figures(Answers(np.zeros(1), np.array([[1, 1]])), data, users, rows, counts)
    assert 0 < near["calibration@2"] < far["calibration@2"]
    assert near["coverage@2"] == pytest.approx(1 / 3)
    assert near["popularity@2"] == 12
    assert near["novelty@2"] == pytest.approx(-np.log2(13 / 16))


def test_every_grouping_is_drawn(tmp_path: Path) -> None:
    data = dataset()
    split = leave_one_out(data)
    answers = Answers(np.array([0, 20, 1]), np.zeros((3, 1), dtype=np.int64))
    counts = training_counts(data, split)
    paths = plot_groups(group_figures(answers, data, split.evaluated, split.test, counts, ["cold"]), tmp_path / "new")
    assert [path.name for path in paths] == ["cold.png"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
