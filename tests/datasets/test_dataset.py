import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrec.datasets import Dataset, leave_one_out
from longrec.errors import DataError

Row = tuple[str, str, int]


def dataset(rows: list[Row], titles: dict[str, str] | None = None) -> Dataset:
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time_ms": pl.Int64}, orient="row")
    return Dataset.from_interactions("test", frame, titles)


def histories(data: Dataset) -> dict[str, list[tuple[str, int]]]:
    ids = data.catalogue.ids
    return {
        user: [(ids[item], time) for item, time in zip(data.items[a:b], data.times_ms[a:b], strict=True)]
        for user, a, b in zip(data.users, data.indptr[:-1], data.indptr[1:], strict=True)
    }


rows_strategy = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("wxyz"), st.integers(-3, 3)), min_size=1, max_size=40
)


@given(rows_strategy)
def test_histories_are_in_time_order_and_ties_in_file_order(rows: list[Row]) -> None:
    expected: dict[str, list[tuple[str, int]]] = {}
    for user, item, time in rows:
        expected.setdefault(user, []).append((item, time))
    for events in expected.values():
        events.sort(key=lambda event: event[1])  # Python's sort is stable
    data = dataset(rows)
    assert histories(data) == expected
    assert list(data.users) == list(expected)
    assert list(data.catalogue.ids) == list(dict.fromkeys(item for _, item, _ in rows))


def test_titles_fall_back_to_ids() -> None:
    assert dataset([("u", "1", 0), ("u", "2", 1)], {"2": "Two"}).catalogue.titles == ["1", "Two"]


def test_categories_follow_the_items_and_are_read_back(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": ["u"] * 3, "item": ["9", "4", "7"], "time_ms": [1, 2, 3]})
    data = Dataset.from_interactions("test", frame, None, {"7": ["B", "A"], "9": ["A"]})
    assert data.catalogue.categories == [["A"], [], ["B", "A"]]
    data.save(tmp_path / "d")
    assert Dataset.load(tmp_path / "d").catalogue == data.catalogue


def test_a_saved_dataset_is_read_back(tmp_path: Path) -> None:
    data = dataset([("b", "1", 5), ("a", "2", 3), ("b", "2", 4), ("a", "2", 3), ("c", "1", 1)])
    data.save(tmp_path / "d")
    again = Dataset.load(tmp_path / "d")
    assert histories(again) == histories(data)
    assert (list(again.users), again.catalogue, again.name) == (list(data.users), data.catalogue, "test")
    assert json.loads((tmp_path / "d" / "dataset.json").read_text())["events"] == 5


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("user", ["a", "b", "a"]),
        ("item", [0, 2, 1]),
        ("item", [0, -1, 1]),
        ("time_ms", [2, 1, 3]),
    ],
)
def test_a_folder_whose_rows_misfit_is_refused(tmp_path: Path, column: str, values: list[object]) -> None:
    dataset([("a", "1", 1), ("a", "2", 2), ("a", "1", 3)]).save(tmp_path)
    path = tmp_path / "interactions.parquet"
    frame = pl.read_parquet(path).with_columns(pl.Series(column, values))
    frame.write_parquet(path)
    with pytest.raises(DataError, match=f"column '{column}'"):
        Dataset.load(tmp_path)


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.json is missing"):
        Dataset.load(tmp_path)
    dataset([("a", "1", 1), ("a", "2", 2)]).save(tmp_path)
    pl.read_parquet(tmp_path / "interactions.parquet").head(1).write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(DataError, match="expected 2 rows"):
        Dataset.load(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format": 9, "name": "", "events": 0}')
    with pytest.raises(DataError, match="format=9"):
        Dataset.load(tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(DataError, match="expected keys"):
        Dataset.load(tmp_path)


def test_leave_one_out_holds_back_the_last_two_events() -> None:
    rows = [("a", str(n), n) for n in range(5)] + [("b", "0", 0), ("b", "1", 1)] + [("c", str(n), n) for n in range(3)]
    split = leave_one_out(dataset(rows))
    assert split.evaluated.tolist() == [0, 2]
    assert split.validation.tolist() == [3, 8]
    assert split.test.tolist() == [4, 9]
    assert split.train_end.tolist() == [3, 7, 8]  # b is too short to be evaluated: both its events are trained on
    more = leave_one_out(dataset(rows), held_out=4)
    assert more.train_end.tolist() == [1, 7, 8]  # c has no more than 4
    assert more.test.tolist() == split.test.tolist()


def test_arrays_may_be_written_to(tmp_path: Path) -> None:
    """torch.from_numpy warns of read-only arrays, which is what polars gives by default."""
    data = dataset([("a", "1", 1), ("a", "2", 2)])
    data.save(tmp_path)
    for each in (data, Dataset.load(tmp_path)):
        assert each.items.flags.writeable
        assert each.times_ms.flags.writeable
        assert each.items.dtype == each.times_ms.dtype == each.indptr.dtype == np.int64
