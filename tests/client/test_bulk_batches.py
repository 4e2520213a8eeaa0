"""`recommend_many` where not everybody's answer is plain: those go on alone, the others stay together."""

from typing import Any

import grpc
import numpy as np
import pytest

from longrec.client import Client, Event, Options, ProtocolError, ServerError, Status
from longrec.client.bulk import rows_of
from longrec.client.codec import event_rows


def events(*items: int) -> list[Event]:
    return [Event(item, 1000) for item in items]


def test_plain_and_other_forms_of_events_give_the_same_rows() -> None:
    array = np.array([[-1, 5, 7], [-1, 6, 8]], np.int64)
    own: list[Any] = [events(1, 2), (), events(3), array, [Event(np.int64(4), 9)], [Event(1, 2, 7), Event(2, 2, 8)]]
    for some in (own, own[:3]):
        rows, counts = rows_of(some)
        assert counts.tolist() == [len(one) for one in some]
        assert rows.tolist() == [row for one in some for row in event_rows(one).tolist()]


def test_known_users_cost_one_request_a_batch_and_new_ones_two(client: Client, servicer: Any) -> None:
    requests = [(f"u{number}", events(number)) for number in range(100)]
    for most in (2, 3):
        list(client.recommend_many(requests, k=3))
        assert len(servicer.requests) == most


def test_a_refused_batch_is_halved_until_the_bad_user_is_found(client: Client, servicer: Any) -> None:
    users = [f"u{number}" for number in range(64)]
    list(client.recommend_many([(user, events(1)) for user in users]))
    servicer.requests.clear()
    servicer.faults["u37"] = lambda request, context: "refused"
    errors: list[ServerError] = []
    found = list(client.recommend_many([(user, events(2)) for user in users], errors=errors))
    assert [prediction.user for prediction in found] == [user for user in users if user != "u37"]
    assert [error.user for error in errors] == ["u37"]
    assert len(servicer.requests) <= 13  # 1 + 2 log2(64)
    assert all(len(servicer.logs[user]) == 2 for user in users if user != "u37")
    assert len(servicer.logs["u37"]) == 1


def test_what_was_given_up_goes_along_in_bulk_too(url: str, servicer: Any) -> None:
    with Client(url, timeout_seconds=0.3) as client:
        list(client.recommend_many([("u", events(1)), ("v", events(1))]))
        servicer.faults["u"] = lambda request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        errors: list[ServerError] = []
        assert not list(client.recommend_many([("u", events(2)), ("v", events(2))], errors=errors))
        assert [error.user for error in errors] == ["u", "v"]
        assert [event.item for event in client.unacknowledged(user="u")] == [2]
        del servicer.faults["u"]
        assert [p.position for p in client.recommend_many([("u", events(3)), "v"])] == [3, 2]
    assert [item for item, _ in servicer.logs["u"]] == [1, 2, 3]
    assert [item for item, _ in servicer.logs["v"]] == [1, 2]


def test_what_was_given_up_before_lengths_were_known_goes_along_too(url: str, servicer: Any) -> None:
    with Client(url, timeout_seconds=0.3) as client:
        assert client.recommend(user="w").position == 0  # the server is known
        servicer.faults["u"] = lambda request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        errors: list[ServerError] = []
        assert not list(client.recommend_many([("u", events(2)), ("v", events(2))], errors=errors))
        assert [event.item for event in client.unacknowledged(user="v")] == [2]
        del servicer.faults["u"]
        client.flush()
        assert [p.position for p in client.recommend_many([("u", events(3)), "v"])] == [2, 1]
    assert [item for item, _ in servicer.logs["u"]] == [2, 3]
    assert [item for item, _ in servicer.logs["v"]] == [2]


def test_more_events_than_a_request_takes_go_in_parts(client: Client, servicer: Any) -> None:
    many = np.column_stack([np.full(5000, -1), np.arange(5000), np.arange(5000)])
    assert [p.position for p in client.recommend_many([("long", many), ("short", events(1))])] == [5000, 1]
    assert [item for item, _ in servicer.logs["long"]] == list(range(5000))


def test_a_gap_of_own_positions_and_rollouts_come_back(client: Client, servicer: Any) -> None:
    found = list(client.recommend_many([("a", [Event(1, 1, 5)]), ("b", [Event(1, 1, 0)])], k=2))
    assert [(p.status, p.position, len(p.items)) for p in found] == [(Status.GAP, 0, 0), (Status.OK, 1, 2)]

    def rollout(request: Any, context: Any) -> Any:
        tensors = {
            "ITEMS": ("INT64", [1, 2, 3], np.arange(6)),
            "SCORES": ("FP32", [1, 2, 3], np.zeros(6, np.float32)),
            "STATE": ("INT64", [1, 2], np.array([0, 4])),
            "BECAUSE": ("INT64", [1, 2, 3, 1], np.arange(6)),
        }
        return servicer.respond(request.id, tensors)

    servicer.faults["r"] = rollout
    (prediction,) = client.recommend_many(["r"], k=3, options=Options(horizon=2, explain=1))
    assert prediction.items.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert prediction.because is not None
    assert prediction.because.shape == (2, 3, 1)


def test_fewer_than_k_are_left_out(client: Client, servicer: Any) -> None:
    servicer.faults["few"] = lambda request, context: servicer.respond(
        request.id,
        {
            "ITEMS": ("INT64", [1, 1, 3], np.array([4, -1, -1])),
            "SCORES": ("FP32", [1, 1, 3], np.zeros(3, np.float32)),
            "STATE": ("INT64", [1, 2], np.array([0, 0])),
        },
    )
    (prediction,) = client.recommend_many(["few"], k=3)
    assert (prediction.items.tolist(), prediction.scores.tolist()) == ([4], [0.0])


def test_garbage_is_named(client: Client, servicer: Any) -> None:
    servicer.faults["g"] = lambda request, context: servicer.respond(
        request.id, {"STATE": ("INT64", [1, 2], np.array([0, 0]))}
    )
    errors: list[ServerError] = []
    assert [p.user for p in client.recommend_many(["g", "well"], errors=errors)] == ["well"]
    assert isinstance(errors[0], ProtocolError)
    assert errors[0].user == "g"
    with pytest.raises(ProtocolError, match="ITEMS: expected it among the outputs"):
        list(client.recommend_many(["g"]))
