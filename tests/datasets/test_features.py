from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from longrec.attributes import encode_attributes
from longrec.cli.main import app
from longrec.datasets import Dataset
from longrec.errors import ArgumentError, DataError
from longrec.schema import EventCategory, Schema

EVENTS = "user_id,item_id,timestamp,action,dwell\nu,a,1,view,5\nu,b,2,,\nv,a,1,buy,50\nv,c,3,view,500\n"
ITEMS = "item_id;movie_title;class;price\n".replace(";", ",") + "a,A,Drama|Comedy,3\nb,B,Comedy,\nc,C,,9\nd,D,Drama,1\n"
SCHEMA = """
[event.action]
kind = "category"
[event.dwell]
kind = "number"
buckets = 2
[event.hour]
kind = "time_of_day"
[item.class]
kind = "categories"
[item.price]
kind = "number"
edges = [5]
[item.facts]
kind = "triples"
file = "facts.csv"
at_least = 1
links = "links.csv"
[item.text]
kind = "vector"
file = "text.npy"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "events.csv").write_text(EVENTS)
    (tmp_path / "items.csv").write_text(ITEMS)
    (tmp_path / "schema.toml").write_text(SCHEMA)
    (tmp_path / "facts.csv").write_text("head_id,relation_id,tail_id\nq1,by,x\nq1,by,x\nq2,in,x\nq9,in,y\n")
    (tmp_path / "links.csv").write_text("item_id,entity_id\na,q1\nc,q2\n")
    np.save(tmp_path / "text.npy", np.arange(12, dtype=np.float64).reshape(4, 3))
    return tmp_path


def imported(folder: Path) -> Dataset:
    arguments = [folder / "events.csv", "--titles", folder / "items.csv", "--schema", folder / "schema.toml"]
    done = CliRunner().invoke(app, ["data", "import", *map(str, arguments), "--out", str(folder / "data")])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return Dataset.load(folder / "data")


def test_a_dataset_keeps_what_the_schema_declares(folder: Path) -> None:
    data = imported(folder)
    assert data.schema.is_closed
    assert data.schema.columns["action"].model_dump()["values"] == ("buy", "view")
    assert data.columns["action"].tolist() == [2, 0, 1, 2]
    assert data.columns["dwell"][[0, 2, 3]].tolist() == [5.0, 50.0, 500.0]
    assert np.isnan(data.columns["dwell"][1])
    assert data.events(0).tolist() == [[0, 0, 1000], [1, 1, 2000]]
    assert data.events(0, data.schema).tolist() == [[0, 0, 1000, 2, 1], [1, 1, 2000, 0, 0]]
    assert data.context(data.schema.pick(["dwell"])).tolist() == [[1], [0], [2], [2]]
    assert data.attributes is not None
    assert data.attributes["facts"].to_list() == [["by x"], None, ["in x"]]


def test_items_become_values_and_vectors(folder: Path) -> None:
    data = imported(folder)
    assert data.attributes is not None
    found = encode_attributes(data.schema, data.attributes)
    names = {name: feature.model_dump().get("values") for name, feature in data.schema.item.items()}
    assert names == {"class": ("Comedy", "Drama"), "price": None, "facts": ("by x", "in x"), "text": None}
    of_item = [found.values[a:b].tolist() for a, b in zip(found.indptr[:-1], found.indptr[1:], strict=True)]
    assert of_item == [[1, 0, 2, 4], [0], [3, 5]]  # class 0, 1; price 2, 3; facts 4, 5
    assert found.vectors["text"].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_an_open_feature_is_closed_by_what_is_used_and_by_enough_of_it(folder: Path) -> None:
    text = SCHEMA.replace('kind = "categories"', 'kind = "categories"\nat_least = 2')
    (folder / "schema.toml").write_text(text)
    genres = imported(folder).schema.item["class"]
    assert genres.model_dump()["values"] == ("Comedy",)  # d, the second drama, has no interaction


def test_values_that_the_schema_has_stay_as_they_are(folder: Path) -> None:
    text = SCHEMA.replace('kind = "category"', 'kind = "category"\nvalues = ["view", "like"]')
    (folder / "schema.toml").write_text(text)
    assert imported(folder).columns["action"].tolist() == [1, 0, 0, 1]


def test_vectors_come_from_parquet_too(folder: Path) -> None:
    pl.DataFrame({"sku": ["c", "a"], "vec": [[1.0, 2.0], [3.0, 4.0]]}).write_parquet(folder / "text.parquet")
    text = SCHEMA.replace('file = "text.npy"', 'file = "text.parquet"\nitem = "sku"\ncolumn = "vec"')
    (folder / "schema.toml").write_text(text)
    data = imported(folder)
    assert data.attributes is not None
    assert encode_attributes(data.schema, data.attributes).vectors["text"].tolist() == [[3, 4], [0, 0], [1, 2]]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("events.csv", "view,5\n", "view,long\n", "events.csv: row 2, column 'dwell': expected a finite number"),
        ("events.csv", "view,5\n", "view,inf\n", "row 2, column 'dwell'"),
        ("events.csv", "dwell", "dwelt", "expected a column 'dwell'"),
        ("items.csv", "C,,9", "C,,dear", "items.csv: row 4, column 'price': expected a finite number"),
        ("items.csv", "b,B", "a,B", "row 3, column 'item_id': expected an item that no earlier row has"),
        ("facts.csv", "q2,in,x", "q2,,x", "facts.csv: row 4, column 'relation_id': expected a value"),
        ("schema.toml", "facts.csv", "fact.csv", "fact.csv: expected a file"),
        ("schema.toml", "text.npy", "text.npz", "format of text.npz"),
    ],
)
def test_what_is_not_as_declared_is_refused_by_row(folder: Path, file: str, old: str, new: str, message: str) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    arguments = [folder / "events.csv", "--titles", folder / "items.csv", "--schema", folder / "schema.toml"]
    done = CliRunner().invoke(app, ["data", "import", *map(str, arguments), "--out", str(folder / "data")])
    assert isinstance(done.exception, DataError | ArgumentError)
    assert message in str(done.exception)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.zeros((3, 2)), r"expected numbers \[4, width\]"),
        (np.array([[1.0], [2.0], [np.nan], [0.0]]), "row 3, column 'text': expected finite numbers"),
        (np.array([["x"]] * 4), "expected numbers"),
    ],
)
def test_wrong_vectors_are_refused(folder: Path, table: np.ndarray, message: str) -> None:
    np.save(folder / "text.npy", table)
    with pytest.raises(DataError, match=message):
        imported(folder)


def test_a_schema_with_items_wants_their_file() -> None:
    schema = Schema.from_json('{"item": {"price": {"kind": "number"}}}', "here")
    frame = pl.DataFrame({"user": ["u"], "item": ["a"], "time_ms": [0]})
    with pytest.raises(DataError, match="expected the features price"):
        Dataset.from_interactions("test", frame, schema=schema)


def test_a_model_of_other_features_is_refused(folder: Path) -> None:
    data = imported(folder)
    other = Schema(event={"action": EventCategory(kind="category", values=("view",))})
    with pytest.raises(DataError, match="expected feature action as the model's schema has it"):
        data.events(0, other)
