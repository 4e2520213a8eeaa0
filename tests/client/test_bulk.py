"""`recommend_many` and `score` over a real gRPC connection, and frames in and out."""

from typing import Any

import grpc
import numpy as np
import polars as pl
import pytest

from longrec.catalogue import Catalogue
from longrec.client import ArgumentError, Client, Event, GapError, Options, Prediction, RejectedError, ServerError


def events(*items: int) -> list[Event]:
    return [Event(item, 1000) for item in items]


@pytest.mark.parametrize(("batch_size", "in_flight"), [(1, 1), (7, 3), (256, 4)])
def test_many_users_are_answered_in_order_by_few_requests(
    client: Client, servicer: Any, batch_size: int, in_flight: int
) -> None:
    requests = [(f"u{number}", events(*range(number % 4))) for number in range(50)]
    for turn in (1, 2):
        found = list(client.recommend_many(requests, k=3, batch_size=batch_size, in_flight=in_flight))
        assert [prediction.user for prediction in found] == [user for user, _ in requests]
        assert [prediction.position for prediction in found] == [turn * len(own) for _, own in requests]
        assert all(p.items.tolist() == servicer.expected_items(p.position, 3) for p in found)
    assert all([item for item, _ in servicer.logs[user]] == [e.item for e in own] * 2 for user, own in requests)
    if batch_size == 256:
        assert len(servicer.requests) < 20


def test_a_user_may_come_twice_in_a_batch(client: Client, servicer: Any) -> None:
    found = list(client.recommend_many([("u", events(1)), ("u", events(2, 3)), "u"]))
    assert [prediction.user for prediction in found] == ["u"] * 3
    assert [item for item, _ in servicer.logs["u"]] == [1, 2, 3]


def test_one_bad_user_does_not_spoil_the_others(client: Client, servicer: Any) -> None:
    servicer.faults["bad"] = lambda request, context: "refused"
    errors: list[ServerError] = []
    requests = [("a", events(1)), ("bad", events(1)), ("b", events(1))]
    assert [p.user for p in client.recommend_many(requests, errors=errors)] == ["a", "b"]
    assert [(type(error), error.user) for error in errors] == [(RejectedError, "bad")]
    with pytest.raises(RejectedError):
        list(client.recommend_many(requests))


def test_a_lost_past_is_filled_in_bulk_too(url: str, servicer: Any) -> None:
    history = {"u": events(1, 2, 3)}
    with Client(url, resend_seconds=1e-9, history=lambda user: history[user]) as client:
        list(client.recommend_many([("u", events(1, 2, 3)), ("v", events(1))]))
        client.append(user="w", events=events(1))  # an acknowledgement later: what was acknowledged before is dropped
        del servicer.logs["u"][1:]
        list(client.recommend_many([("u", events(4)), ("v", events(2))]))
    assert [item for item, _ in servicer.logs["u"]] == [1, 2, 3, 4]
    with Client(url, resend_seconds=1e-9) as client:
        client.append(user="u", events=events(5))
        client.append(user="w", events=events(1))
        del servicer.logs["u"][2:]
        errors: list[ServerError] = []
        assert [p.user for p in client.recommend_many([("u", events(6)), "v"], errors=errors)] == ["v"]
        assert isinstance(errors[0], GapError)


def test_unchecked_events_are_sent_once(url: str, servicer: Any) -> None:
    def gone(request: Any, context: grpc.ServicerContext) -> Any:
        servicer.answers(servicer.users(request), request)
        context.abort(grpc.StatusCode.UNAVAILABLE, "after writing")

    servicer.faults["u"] = gone
    with Client(url, number=False) as client:
        errors: list[ServerError] = []
        assert not list(client.recommend_many([("u", events(1)), ("v", events(1))], errors=errors))
        assert [error.user for error in errors] == ["u", "v"]
        with pytest.raises(ServerError):
            client.append(user="u", events=events(2))
        del servicer.faults["u"]
        assert [p.position for p in client.recommend_many([("v", events(2))])] == [2]
    assert [item for item, _ in servicer.logs["u"]] == [1, 2]


def test_frames_come_in(client: Client, servicer: Any) -> None:
    frame = pl.DataFrame({"user": ["a", "b", "a"], "item": [1, 2, 3], "time_ms": [1, 2, 3]})
    assert [(p.user, p.position) for p in client.recommend_many(frame, progress=True)] == [("a", 2), ("b", 1)]
    assert servicer.logs["a"] == [(1, 1), (3, 3)]
    import pandas  # type: ignore[import-untyped, unused-ignore]

    placed = pandas.DataFrame({"user": ["a", "a"], "item": [3, 4], "time_ms": [3, 4], "position": [1, 2]})
    assert [p.position for p in client.recommend_many(placed)] == [3]
    assert [p.user for p in client.recommend_many(pl.DataFrame({"user": ["b", "a"]}))] == ["b", "a"]


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ("abc", r"^requests: expected an iterable of users"),
        ([7], r"^requests\[0\]: expected a user, or \(user, events\), got int"),
        (pl.DataFrame({"item": [1]}), r"^requests: expected columns user"),
        (pl.DataFrame({"user": ["a"], "item": [1]}), r"^requests: expected columns user"),
        (pl.DataFrame({"user": ["a"], "item": [1.5], "time_ms": [1]}), r"^requests\['item'\]: expected integers"),
    ],
    ids=range(5),
)
def test_bad_requests_are_named(client: Client, requests: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        list(client.recommend_many(requests))


@pytest.mark.parametrize("name", ["batch_size", "in_flight"])
def test_bad_sizes_are_named(client: Client, name: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}=0"):
        client.recommend_many([], **{name: 0})  # type: ignore[arg-type]


def test_predictions_become_frames() -> None:
    plain = Prediction("u", np.array([1, 0]), np.array([2.0, 1.0], np.float32), 5)
    catalogue = Catalogue(["x", "y"], ["X", "Y"])
    frame = plain.to_frame(catalogue)
    assert frame["title"].to_list() == ["Y", "X"]
    assert frame["rank"].to_list() == [0, 1]
    rolled = Prediction("u", np.array([[1, 0], [0, -1]]), np.zeros((2, 2), np.float32), 5)
    assert rolled.to_frame()["step"].to_list() == [0, 0, 1]
    assert list(rolled.to_frame(library="pandas").columns) == ["user", "position", "step", "rank", "item", "score"]
    with pytest.raises(ArgumentError, match=r"^library='arrow'"):
        plain.to_frame(library="arrow")


def test_each_candidate_gets_its_score(client: Client, servicer: Any) -> None:
    candidates = list(range(500, 0, -1))
    scored = client.score(user="u", candidates=candidates, events=events(1))
    assert scored.candidates.tolist() == candidates
    assert scored.scores[:3].tolist() == [0, -1, -2]  # the servicer ranks as given, each request from 0
    assert scored.position == 1
    assert len(servicer.logs["u"]) == 1
    with pytest.raises(ArgumentError, match="candidates"):
        client.score(user="u", candidates=[])
    with pytest.raises(ArgumentError, match="options"):
        client.score(user="u", candidates=[1], options=Options(horizon=2))
