"""`Stream` over a real gRPC connection: order, the bound on what is in flight, failures of one request and of all."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from longrec.client import (
    ArgumentError,
    Client,
    DeadlineError,
    Event,
    Prediction,
    RejectedError,
    ServerError,
    Status,
    Stream,
)


def interleaved(users: int, steps: int) -> Iterator[tuple[str, list[Event]]]:
    for step in range(steps):
        for user in range(users):
            yield f"u{user}", [Event(step, step, step)]


def outcome(stream: Stream) -> Any:
    try:
        return next(stream)
    except ServerError as error:
        return error


def check(predictions: list[Prediction], servicer: Any, users: int, steps: int) -> None:
    positions = defaultdict(list)
    for prediction in predictions:
        positions[prediction.user].append(prediction.position)
        assert prediction.items.tolist() == servicer.expected_items(prediction.position, 3)
    assert positions == {f"u{user}": list(range(1, steps + 1)) for user in range(users)}


@pytest.mark.parametrize("max_in_flight", [1, 7, 1000])
def test_map_answers_every_user_in_order(client: Client, servicer: Any, max_in_flight: int) -> None:
    with client.stream(k=3, max_in_flight=max_in_flight) as stream:
        check(list(stream.map(interleaved(9, 11))), servicer, 9, 11)
        assert stream.in_flight == 0


def test_one_thread_sends_and_another_reads(client: Client, servicer: Any) -> None:
    with client.stream(k=3, max_in_flight=8) as stream:

        def produce() -> None:
            for user, events in interleaved(10, 20):
                stream.send(user, events)
            stream.finish()

        thread = threading.Thread(target=produce)
        thread.start()
        check(list(stream), servicer, 10, 20)
        thread.join()


def test_flush_reads_what_is_in_flight(client: Client, servicer: Any) -> None:
    with client.stream(k=3) as stream:
        for user, events in interleaved(4, 1):
            stream.send(user, events)
        assert stream.in_flight == 4
        check(stream.flush(), servicer, 4, 1)
        assert stream.flush() == []
        stream.send("u0", [Event(1, 1, 1)])
        assert [prediction.position for prediction in stream.flush()] == [2]


def test_send_waits_for_room_and_never_sends_more(url: str, servicer: Any) -> None:
    with Client(url, timeout_seconds=1) as client, client.stream(max_in_flight=2) as stream:
        stream.send("a")
        stream.send("b")
        message = "^no room for 1.0 s: 2 requests are in flight, of which 2 are answered and wait to be read; read them"
        with pytest.raises(ServerError, match=message):
            stream.send("c")
        with pytest.raises(ArgumentError, match=r"^user"):  # said at once, not after a wait
            stream.send("")
        assert [request.raw_input_contents[0][4:] for request in servicer.requests] == [b"a", b"b"]
        next(stream)
        stream.send("c")
        assert [prediction.user for prediction in stream.flush()] == ["b", "c"]


def test_a_gap_is_yielded_and_the_stream_goes_on(client: Client) -> None:
    with client.stream() as stream:
        gap, after = stream.map([("u", [Event(1, 1, 5)]), ("u", [Event(1, 1, 0)])])
        assert (gap.status, gap.position) == (Status.GAP, 0)
        assert (after.status, after.position) == (Status.OK, 1)


def test_one_failed_request_leaves_the_stream_usable(client: Client, servicer: Any) -> None:
    servicer.faults["bad"] = lambda request, context: "EVENT: expected rows"
    servicer.faults["garbage"] = lambda request, context: servicer.respond(
        request.id, {"STATE": ("INT64", [1, 2], np.array([7, 0]))}
    )
    with client.stream() as stream:
        for user in ("a", "bad", "garbage", "b"):
            stream.send(user)
        assert next(stream).user == "a"
        results = {str(result.user): result for result in (outcome(stream) for _ in range(3))}
        assert isinstance(results["bad"], RejectedError)  # by the status that it got when it was sent alone
        assert "EVENT: expected rows" in str(results["bad"])
        assert "expected a status of 0 OK" in str(results["garbage"])
        assert results["b"].status is Status.OK


def test_leaving_the_block_waits_for_the_answers_and_shows_their_errors(client: Client, servicer: Any) -> None:
    with client.stream() as stream:
        stream.send("a", [Event(1, 1, 0)])
    assert client.history_length(user="a") == 1
    servicer.faults["bad"] = lambda request, context: "refused"
    with pytest.raises(ServerError, match="refused"), client.stream() as stream:
        stream.send("bad")


def test_an_exception_in_the_block_cancels_what_is_in_flight(client: Client, servicer: Any) -> None:
    released = threading.Event()
    servicer.faults["slow"] = lambda request, context: released.wait(10)
    started = time.monotonic()
    stream = client.stream()

    def leave_by_exception() -> None:
        with stream:
            stream.send("slow")
            raise KeyError

    with pytest.raises(KeyError):
        leave_by_exception()
    assert time.monotonic() - started < 5  # of the 10 s that the answer takes
    released.set()


def test_a_broken_stream_says_so_from_every_call(client: Client, servicer: Any) -> None:
    servicer.faults["last"] = lambda request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "going down")
    stream = client.stream()
    for user in ("a", "last", "b"):
        stream.send(user)
    assert next(stream).user == "a"
    for _ in range(2):
        with pytest.raises(
            ServerError, match=r"UNAUTHENTICATED: going down\); 2 requests of the stream went unanswered"
        ):
            next(stream)
    with pytest.raises(ServerError, match="going down") as caught:
        stream.send("c")
    assert caught.value.user is None
    stream.close()


def test_a_silent_server_ends_with_the_deadline(url: str, servicer: Any) -> None:
    servicer.faults["silent"] = lambda request, context: None
    with Client(url, timeout_seconds=0.2) as client:
        stream = client.stream()
        stream.send("silent")
        with pytest.raises(DeadlineError, match=r"^no answer for 0\.2 s$") as caught:
            next(stream)
        assert caught.value.user == "silent"
        stream.close()


def test_an_answer_to_nothing_breaks_the_stream(client: Client, servicer: Any) -> None:
    servicer.faults["odd"] = lambda request, context: servicer.respond("77", {})
    stream = client.stream()
    stream.send("odd")
    with pytest.raises(ServerError, match="answered request '77', which isn't in flight; 1 requests"):
        next(stream)
    stream.close()


def test_bad_arguments_and_a_finished_stream_send_nothing(client: Client, servicer: Any) -> None:
    with client.stream() as stream:
        with pytest.raises(ArgumentError, match=r"^user: expected a string"):
            stream.send(7)  # type: ignore[arg-type]
        stream.finish()
        with pytest.raises(
            ArgumentError, match=r"^send: expected an open stream, got one that was finished or closed$"
        ):
            stream.send("u")
        assert list(stream) == []
    assert not servicer.requests
    stream.close()


def test_closing_wakes_a_reader(client: Client) -> None:
    stream, read = client.stream(), []
    reader = threading.Thread(target=lambda: read.extend(stream))
    reader.start()
    stream.close()
    reader.join(5)
    assert not reader.is_alive()
    assert read == []


def test_closing_inside_the_block_gives_up_what_is_in_flight(client: Client, servicer: Any) -> None:
    servicer.faults["silent"] = lambda request, context: None
    with client.stream() as stream:
        stream.send("silent")
        stream.close()
        with pytest.raises(ServerError, match="the stream was closed; 1 requests"):
            next(stream)


def test_two_streams_of_one_client(client: Client) -> None:
    with client.stream() as one, client.stream() as two:
        one.send("a", [Event(1, 1, 0)])
        assert next(one).position == 1
        two.send("a", [Event(1, 1, 1)])
        assert next(two).position == 2
