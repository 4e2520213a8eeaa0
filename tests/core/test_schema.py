import json
from pathlib import Path

import numpy as np
import pytest

from longrec.config import ModelConfig
from longrec.errors import ArgumentError
from longrec.schema import EventCategory, EventNumber, Schema, TimeOfDay, Weekday

TOML = """
[event.action]
kind = "category"
values = ["view", "buy"]
[event.dwell]
kind = "number"
column = "seconds"
edges = [10, 60]
[event.hour]
kind = "time_of_day"
[event.day]
kind = "weekday"
[item.genres]
kind = "categories"
column = "class"
separator = " "
values = ["Drama"]
"""


def schema(text: str = TOML, folder: Path | None = None) -> Schema:
    assert folder is not None
    (folder / "schema.toml").write_text(text)
    return Schema.load(folder / "schema.toml")


def test_a_file_in_toml_or_json_says_what_there_is(tmp_path: Path) -> None:
    read = schema(folder=tmp_path)
    assert list(read.event) == ["action", "dwell", "hour", "day"]
    assert list(read.columns) == ["action", "dwell"]
    assert read.is_closed
    assert read.num_event_values == 3 + 4 + 25 + 8
    assert read.num_item_values == 1
    (tmp_path / "schema.json").write_text(read.to_json())
    assert Schema.load(tmp_path / "schema.json") == read
    assert Schema.from_json(json.dumps(read.model_dump()), "here") == read


def test_values_of_an_event_become_the_columns_of_the_wire(tmp_path: Path) -> None:
    read = schema(folder=tmp_path)
    assert read.indices({"action": "buy", "dwell": 10}, "features") == [2, 2]
    assert read.indices({"dwell": 9.99}, "features") == [0, 1]
    assert read.indices({"action": "never seen", "dwell": float("nan")}, "features") == [0, 0]
    assert read.indices({"action": None, "dwell": np.float32(1e9)}, "features") == [0, 3]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"device": "phone"}, r"e\['device'\]: expected one of the model's features \(action, dwell\)"),
        ({"hour": 3}, "one of the model's features"),  # it follows from the time
        ({"action": 1.5}, r"e\['action'\]: expected text or an integer, got float"),
        ({"action": True}, "text or an integer, got bool"),
        ({"dwell": "long"}, r"e\['dwell'\]: expected a number, got str"),
    ],
)
def test_what_no_feature_can_be_is_refused(tmp_path: Path, features: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        schema(folder=tmp_path).indices(features, "e")


def test_whole_numbers_are_spelled_alike() -> None:
    rating = EventCategory(kind="category", values=("4", "5"))
    assert [rating.index(value) for value in (4, 4.0, np.int64(5), "5", "4.0")] == [1, 1, 2, 2, 0]


def test_one_number_and_many_fall_into_the_same_buckets() -> None:
    number = EventNumber(kind="number", edges=(-1.0, 0.0, 2.5))
    values = np.array([-9.0, -1.0, -0.5, 0.0, 2.4, 2.5, np.inf, np.nan])
    assert number.indices(values).tolist() == [number.index(value) for value in values] == [1, 2, 2, 3, 3, 4, 4, 0]


def test_the_time_tells_hour_and_weekday() -> None:
    thursday_noon = np.array([12 * 3_600_000, -1, 4 * 86_400_000])  # 1970-01-01; the ms before; the Monday after
    assert TimeOfDay(kind="time_of_day").indices(thursday_noon).tolist() == [13, 24, 1]
    assert Weekday(kind="weekday").indices(thursday_noon).tolist() == [4, 3, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[event.a]\nkind = 'colour'", r"schema.toml: event.a: expected .*'category', 'number'"),
        ("[event.a]\nkind = 'category'\nvalues = ['x', 'x']", "event.a.category.values: expected values that differ"),
        ("[event.a]\nkind = 'number'\nedges = [2, 1]", "event.a.number.edges: expected finite numbers that rise"),
        ("[event.a]\nkind = 'category'\nsize = 3", "event.a.category.size"),
        ("[event.time]\nkind = 'category'", "expected another name than time"),
        ("[events.a]\nkind = 'category'", "events: expected one of event, item"),
        ("[event.a", "schema.toml: expected TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_field(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        schema(text, tmp_path)


def test_some_features_can_be_picked(tmp_path: Path) -> None:
    picked = schema(folder=tmp_path).pick(["genres", "hour"])
    assert list(picked.event) == ["hour"]
    assert list(picked.item) == ["genres"]
    with pytest.raises(ArgumentError, match=r"features=colour: expected features of the schema \(action, dwell"):
        picked = schema(folder=tmp_path).pick(["colour"])


def test_a_network_wants_a_closed_schema() -> None:
    with pytest.raises(ValueError, match="a closed schema"):
        ModelConfig(num_items=3, features=Schema(event={"a": EventCategory(kind="category")}))
