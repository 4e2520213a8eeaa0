"""`Client` over a real gRPC connection: results, errors by status, deadlines."""

import socket
import time
from typing import Any

import grpc
import numpy as np
import pytest

from longrec.client import (
    AccessError,
    ArgumentError,
    Client,
    Event,
    MissingModelError,
    RejectedError,
    ServerError,
    Status,
    UnavailableError,
)


def events(start: int, count: int) -> list[Event]:
    return [Event(100 + i, 1_700_000_000_000 + i, i) for i in range(start, start + count)]


def test_recommend_appends_and_ranks(client: Client, servicer: Any) -> None:
    prediction = client.recommend(user="ü1", events=events(0, 3), k=5)
    assert (prediction.user, prediction.position, prediction.status) == ("ü1", 3, Status.OK)
    assert prediction.items.tolist() == servicer.expected_items(3, 5)
    assert prediction.scores.tolist() == [0, -1, -2, -3, -4]
    assert servicer.logs["ü1"] == [(100 + i, 1_700_000_000_000 + i) for i in range(3)]
    assert client.recommend(user="ü1").position == 3


def test_a_retry_with_positions_appends_once(client: Client) -> None:
    for _ in range(2):
        assert client.recommend(user="u", events=events(0, 3)).position == 3
    assert client.append(user="u", events=events(2, 2)).length == 4


def test_candidates_are_ranked_and_the_rest_trimmed(client: Client) -> None:
    prediction = client.recommend(user="u", candidates=[9, 4], k=10)
    assert prediction.items.tolist() == [9, 4]
    assert np.isfinite(prediction.scores).all()


def test_append_and_history_length_ask_for_the_state_only(client: Client, servicer: Any) -> None:
    assert client.history_length(user="u") == 0
    appended = client.append(user="u", events=events(0, 2))
    assert (appended.length, appended.status) == (2, Status.OK)
    assert client.history_length(user="u") == 2
    assert {output.name for request in servicer.requests for output in request.outputs} == {"STATE"}


def test_a_gap_comes_back_as_a_result(client: Client, servicer: Any) -> None:
    client.append(user="u", events=events(0, 2))
    prediction = client.recommend(user="u", events=events(5, 1))
    assert (prediction.status, prediction.position, len(prediction.items)) == (Status.GAP, 2, 0)
    assert client.append(user="u", events=events(5, 1)).status is Status.GAP
    assert len(servicer.logs["u"]) == 2


@pytest.mark.parametrize(
    ("code", "kind", "meaning"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, RejectedError, "the server refused the request"),
        (grpc.StatusCode.NOT_FOUND, MissingModelError, "no such model"),
        (grpc.StatusCode.UNAVAILABLE, UnavailableError, "can't be reached, or the model isn't ready"),
        (grpc.StatusCode.INTERNAL, ServerError, "the server failed"),
        (grpc.StatusCode.UNAUTHENTICATED, AccessError, "credentials"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_an_error_is_mapped_by_its_status(
    url: str, servicer: Any, code: grpc.StatusCode, kind: type[ServerError], meaning: str
) -> None:
    servicer.faults["u"] = lambda request, context: context.abort(code, "EVENT: expected rows")
    with (
        Client(url, timeout_seconds=0.5) as client,
        pytest.raises(ServerError, match=rf"{meaning} \({code.name}: EVENT: expected rows\)") as caught,
    ):
        client.recommend(user="u")
    assert type(caught.value) is kind


def test_a_slow_answer_ends_with_the_deadline(url: str, servicer: Any) -> None:
    servicer.faults["slow"] = lambda request, context: time.sleep(0.5)
    with Client(url, timeout_seconds=0.1) as client, pytest.raises(ServerError, match="no answer in time"):
        client.recommend(user="slow")


def test_a_garbage_answer_is_named(client: Client, servicer: Any) -> None:
    servicer.faults["u"] = lambda request, context: servicer.respond(
        request.id, {"STATE": ("FP32", [1, 2], np.zeros(2, np.float32))}
    )
    with pytest.raises(ServerError, match=r"^STATE: expected INT64 \[1, 2\] in 16 bytes, got FP32 \[1, 2\] in 8$"):
        client.recommend(user="u")


def test_bad_arguments_are_refused_before_anything_is_sent(client: Client, servicer: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^k=0: expected an integer in 1\.\.256$"):
        client.recommend(user="u", k=0)
    with pytest.raises(ArgumentError, match=r"^k=None"):
        client.recommend(user="u", k=None)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"^events: expected at least one, got none; history_length only asks$"):
        client.append(user="u", events=[])
    with pytest.raises(ArgumentError, match=r"^max_in_flight=0: expected an integer in 1\.\.8192$"):
        client.stream(max_in_flight=0)
    with pytest.raises(ArgumentError, match=r"^k=300"):
        client.stream(k=300)
    assert not servicer.requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "http://127.0.0.1:8000"}, r"^url='http://127\.0\.0\.1:8000': expected host:port"),
        ({"url": "localhost"}, r"^url='localhost': expected host:port"),
        ({"url": None}, r"^url=None: expected host:port"),
        ({"model": ""}, r"^model='': expected the name of a model$"),
        ({"timeout_seconds": 0}, r"^timeout_seconds=0: expected a number of seconds > 0$"),
        ({"timeout_seconds": float("inf")}, r"^timeout_seconds=inf: expected"),
        ({"timeout_seconds": "3"}, r"^timeout_seconds='3': expected"),
    ],
)
def test_a_bad_client_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Client(**arguments)


def test_readiness(client: Client, url: str) -> None:
    assert client.is_ready()
    with Client(url, model="another") as other:
        assert not other.is_ready()


def test_nobody_listens() -> None:
    with socket.socket() as taken:  # bound, not listening: refuses
        taken.bind(("127.0.0.1", 0))
        with Client(f"127.0.0.1:{taken.getsockname()[1]}", timeout_seconds=0.5) as client:
            assert not client.is_ready()
            with pytest.raises(ServerError, match=r"can't be reached, or the model isn't ready \(UNAVAILABLE"):
                client.history_length(user="u")
            stream = client.stream()
            stream.send("u")
            with pytest.raises(ServerError, match=r"no answer for 0\.5 s; .*UNAVAILABLE") as caught:
                next(stream)
            assert caught.value.user == "u"
            stream.close()
