"""A client with a catalogue takes and gives the data set's own ids, on every way in, and names those that it lacks."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pandas  # type: ignore[import-untyped, unused-ignore]
import polars as pl
import pytest

from longrec.catalogue import Catalogue
from longrec.client import ArgumentError, AsyncClient, Client, ConflictError, Event, Options, Prediction
from longrec.errors import CheckpointError

IDS = [str(10 * index) for index in range(50)]  # so that an id is never its index, except for 0
TITLES = [f"Title {index}" for index in range(50)]
CATALOGUE = Catalogue(IDS, TITLES)
HISTORY = {"h": [Event("10", 1), Event(20, 2), Event("30", 3)]}


@pytest.fixture
def named(url: str) -> Any:
    with Client(url, timeout_seconds=10, catalogue=CATALOGUE) as client:
        yield client


def bought(*ids: int | str) -> list[Event]:
    return [Event(item, 1000) for item in ids]


def test_events_are_given_and_items_come_back_by_id(named: Client, servicer: Any) -> None:
    prediction = named.recommend(user="u", events=bought("10", 20), k=2)
    assert servicer.logs["u"] == [(1, 1000), (2, 1000)]
    assert (prediction.items.tolist(), prediction.ids.tolist()) == ([2, 3], ["20", "30"])
    assert prediction.titles.tolist() == ["Title 2", "Title 3"]
    for library in ("polars", "pandas"):
        frame = prediction.to_frame(library=library)
        assert (list(frame["id"]), list(frame["title"])) == (["20", "30"], ["Title 2", "Title 3"])
    assert named.append(user="u", events=bought("30")).length == 3
    assert named.unacknowledged(user="u") == []


def test_candidates_and_what_is_left_out_are_ids(named: Client, servicer: Any) -> None:
    assert named.recommend(user="u", candidates=["90", "40"], k=2).ids.tolist() == ["90", "40"]
    scored = named.score(user="u", candidates=[70, 50], events=bought("10"))
    assert (scored.candidates.tolist(), scored.ids.tolist()) == ([7, 5], ["70", "50"])
    assert scored.titles.tolist() == ["Title 7", "Title 5"]
    named.recommend(user="u", exclude=["30", "10"])
    named.recommend(user="u", options=Options(exclude=np.array(["30"])))  # type: ignore[arg-type]
    asked = [request.parameters["exclude"].string_param for request in servicer.requests[-2:]]
    assert asked == ["[3, 1]", "[3]"]


def test_integer_arrays_hold_indices_even_so(named: Client, servicer: Any) -> None:
    first = named.recommend(user="u", events=np.array([[-1, 3, 1000]]), k=3)
    assert servicer.logs["u"] == [(3, 1000)]
    assert named.recommend(user="u", candidates=first.items, k=3).items.tolist() == first.items.tolist()


def test_in_bulk_frames_and_on_streams(named: Client, servicer: Any) -> None:
    many = [("a", bought("10")), ("b", bought(20, "30")), ("c", [Event("40", 1, 0)]), "d"]
    assert [p.ids.tolist() for p in named.recommend_many(many, k=1)] == [["10"], ["20"], ["10"], ["0"]]
    assert [servicer.logs[user] for user in "abc"] == [[(1, 1000)], [(2, 1000), (3, 1000)], [(4, 1)]]
    columns = {"user": ["e", "f", "e"], "item": ["10", "20", "30"], "time_ms": [1, 2, 3]}
    for position, frame in enumerate((pl.DataFrame(columns), pandas.DataFrame({**columns, "item": [10, 20, 30]})), 1):
        assert [p.position for p in named.recommend_many(frame)] == [2 * position, position]
    assert servicer.logs["e"] == [(1, 1), (3, 3)] * 2
    with named.stream(k=2, options=Options(exclude=["10"])) as stream:
        (prediction,) = stream.map([("s", bought("70"))])
    assert (servicer.logs["s"], prediction.ids.tolist()) == ([(7, 1000)], ["10", "20"])


@pytest.mark.parametrize("fewer", [False, True])
def test_rollouts_and_short_lists_have_ids(named: Client, servicer: Any, fewer: bool) -> None:
    shape = [1, 1, 2] if fewer else [1, 2, 2]
    items = np.array([4, -1] if fewer else [1, 2, 3, -1])
    tensors = {
        "ITEMS": ("INT64", shape, items),
        "SCORES": ("FP32", shape, np.zeros(len(items), np.float32)),
        "STATE": ("INT64", [1, 2], np.array([0, 0])),
    }
    servicer.faults["u"] = lambda request, context: servicer.respond(request.id, tensors)
    options = Options(horizon=shape[1])
    expected = ["40"] if fewer else [["10", "20"], ["30", None]]
    (bulk,) = named.recommend_many(["u"], k=2, options=options)
    for prediction in (named.recommend(user="u", k=2, options=options), bulk):
        assert prediction.ids.tolist() == expected


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.recommend(user="u", events=bought("10", "x", "y")),
        lambda client: client.append(user="u", events=bought("x", "y")),
        lambda client: client.recommend(user="u", candidates=["x", "y", "10"]),
        lambda client: client.score(user="u", candidates=["x", "y"]),
        lambda client: client.recommend(user="u", exclude=["x", "y"]),
        lambda client: list(client.recommend_many([("v", bought("10")), ("u", bought("x", "y"))])),
        lambda client: list(client.recommend_many(["v"], options=Options(exclude=["x", "y"]))),
        lambda client: list(client.recommend_many(pl.DataFrame({"user": "u", "item": ["x", "y"], "time_ms": [1, 2]}))),
        lambda client: client.stream(options=Options(exclude=["x", "y"])),
        lambda client: send(client, bought("x", "y")),
    ],
    ids=range(10),
)
def test_unknown_ids_are_named_before_anything_is_sent(named: Client, servicer: Any, call: Any) -> None:
    with pytest.raises(ArgumentError, match="ids of the catalogue, which has 50, got 'x', 'y'; leave them out"):
        call(named)
    assert not servicer.requests


def send(client: Client, events: list[Event]) -> None:
    with client.stream() as stream:
        stream.send("u", events)


def test_of_many_unknown_ids_the_first_are_named(named: Client) -> None:
    with pytest.raises(ArgumentError, match=r"got 'a', 'b', 'c', 'd', 'e' and 2 more"):
        named.recommend(user="u", candidates=list("abcdefg"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"events": bought(None)}, r"^events\[0\]\.item: expected an id, a string or an integer, got NoneType"),  # type: ignore[arg-type]
        ({"events": bought(True)}, r"^events\[0\]\.item: expected an id.* got bool"),
        ({"events": np.array([[-1, 50, 1]])}, r"^events: expected indices of the catalogue, 0\.\.49, got a larger one"),
        ({"candidates": np.array([50])}, r"^candidates: expected indices of the catalogue"),
        ({"candidates": [["10"]]}, r"^candidates: expected ids in one dimension"),
        ({"candidates": "10"}, r"^candidates: expected ids in one dimension"),
        ({"candidates": [1.5]}, r"^candidates\[0\]: expected an id"),
        ({"candidates": []}, r"^candidates: expected .* got none"),
    ],
    ids=range(8),
)
def test_what_is_no_id_is_named(named: Client, servicer: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        named.recommend(user="u", **arguments)
    assert not servicer.requests


def test_a_history_is_by_id_and_what_comes_back_of_events_too(url: str, servicer: Any) -> None:
    with Client(url, catalogue=CATALOGUE, history=lambda user: HISTORY[user]) as client:
        client.append(user="h", events=[Event("40", 4, 3)])
        assert servicer.logs["h"] == [(1, 1), (2, 2), (3, 3), (4, 4)]
        client.append(user="u", events=bought("10"))
        servicer.faults["u"] = lambda request, context: servicer.respond(
            request.id, {"STATE": ("INT64", [1, 2], np.array([2, 1]))}
        )
        book = client.core.ledger.peek("u")
        assert book is not None
        book.hold(1, [(1, 2, 1000)])
        assert client.unacknowledged(user="u") == [Event("20", 1000, 1)]
        with pytest.raises(ConflictError) as caught:
            client.append(user="u", events=bought("30"))
        assert caught.value.events == (("20", 1000),)


def test_with_asyncio(url: str, servicer: Any) -> None:
    async def main() -> None:
        async with AsyncClient(url, catalogue=CATALOGUE) as client:
            assert (await client.recommend(user="u", events=bought("10"), k=1)).ids.tolist() == ["10"]
            assert [p.ids.tolist() async for p in client.recommend_many([("v", bought(20))], k=1)] == [["10"]]
            with pytest.raises(ArgumentError, match="got 'x'"):
                await client.append(user="u", events=bought("x"))
            async with client.stream(k=1) as stream:
                await stream.send("u", bought("30"))
                assert (await stream.__anext__()).ids.tolist() == ["20"]

    asyncio.run(main())
    assert [item for item, _ in servicer.logs["u"]] == [1, 3]


def test_a_catalogue_is_a_file_or_a_runs_folder(tmp_path: Path, url: str) -> None:
    file = tmp_path / "catalogue.parquet"
    CATALOGUE.save(file)
    for source in (file, tmp_path, str(tmp_path)):
        with Client(url, catalogue=source) as client:
            assert client.recommend(user="u", k=1).titles.tolist() == ["Title 0"]
    with pytest.raises(ArgumentError, match=r"^catalogue='.*missing': expected a Catalogue, a run's folder"):
        Client(url, catalogue=tmp_path / "missing")
    with pytest.raises(ArgumentError, match=r"^catalogue: expected .* got int"):
        Client(url, catalogue=7)  # type: ignore[arg-type]
    file.write_bytes(b"PAR0 no such thing")
    with pytest.raises(CheckpointError, match="expected a Parquet file"):
        Client(url, catalogue=file)


def test_without_a_catalogue_or_with_another_there_are_no_ids(client: Client, url: str) -> None:
    with pytest.raises(ArgumentError, match="expected a client that was given one"):
        _ = client.recommend(user="u").ids
    with Client(url, catalogue=Catalogue(["a"], ["A"])) as other:
        prediction = other.recommend(user="u", k=2)
        with pytest.raises(ArgumentError, match="one of 1 items, where the server recommends item 1"):
            _ = prediction.titles
        with pytest.raises(ArgumentError, match="that of the run that is served"):
            prediction.to_frame()


def test_a_frame_may_take_another_catalogue() -> None:
    prediction = Prediction("u", np.array([1, 0]), np.zeros(2, np.float32), 5, catalogue=CATALOGUE)
    assert prediction.to_frame()["id"].to_list() == ["10", "0"]
    assert prediction.to_frame(Catalogue(["x", "y"], ["X", "Y"]))["id"].to_list() == ["y", "x"]
    assert "catalogue" not in repr(prediction)
