"""Messages on time, whatever the server does; and a server that answers nonsense."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from longrec.errors import ServerError
from longrec.server.loadbench import sender
from longrec.server.loadbench.answers import read_answers
from longrec.server.loadbench.sender import send_on_time

Stream = Callable[[Iterator[Any]], Iterator[Any]]


@contextmanager
def streaming(behave: Stream) -> Iterator[str]:
    """A gRPC server whose streams behave so; its URL."""

    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
            return behave(requests)

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(grace=None).wait()


def messages(count: int) -> list[bytes]:
    return [service_pb2.ModelInferRequest(id=str(number)).SerializeToString() for number in range(count)]


def answer(number: str) -> Any:
    return service_pb2.ModelStreamInferResponse(infer_response=service_pb2.ModelInferResponse(id=number))


def after_all(requests: Iterator[Any]) -> Iterator[Any]:
    """Answers nothing before all has come: whoever waits for an answer before the next request waits for ever."""
    for request in list(requests):
        yield answer(request.id)


def test_a_stalled_server_holds_up_no_request_and_every_latency_says_so():
    due = np.linspace(0, 0.4, 50)
    with streaming(after_all) as url:
        flight = send_on_time(url, messages(50), due)
    assert not flight.overloaded
    assert (flight.sent >= due).all()
    assert flight.answered.min() >= 0.4  # so the latency of the request due at 0 is at least the whole stall
    numbers = [service_pb2.ModelStreamInferResponse.FromString(one).infer_response.id for one in flight.answers]
    assert numbers == [str(number) for number in range(50)]


def test_sending_ends_when_too_many_wait(monkeypatch):
    monkeypatch.setattr(sender, "MAX_IN_FLIGHT", 10)
    with streaming(after_all) as url:
        flight = send_on_time(url, messages(50), np.zeros(50))
    assert flight.overloaded
    assert len(flight.sent) == len(flight.answers) == 11


def test_a_missing_answer_is_an_error():
    with (
        streaming(lambda requests: (answer(one.id) for one in requests if one.id != "2")) as url,
        pytest.raises(ServerError, match="expected 4 answers, got 3"),
    ):
        send_on_time(url, messages(4), np.zeros(4))


def test_an_answer_that_never_comes_ends_the_wait():
    asked = threading.Event()

    def silent(requests: Iterator[Any]) -> Iterator[Any]:
        yield answer(next(requests).id)
        asked.wait()

    with streaming(silent) as url:
        with pytest.raises(
            ServerError, match="expected 3 answers, got 1 before the stream ended with DEADLINE_EXCEEDED"
        ):
            send_on_time(url, messages(3), np.zeros(3), timeout_seconds=0.3)
        asked.set()


def right() -> dict[str, Any]:
    """Three answers, in another order than asked, to requests whose events stand at positions 4, 7, 9."""
    return {
        "ids": [2, 0, 1],
        "items": np.array([[3, 1], [0, 2], [5, 4]]),
        "scores": np.array([[2.0, 1.0], [3.0, 3.0], [0.0, -1.0]], np.float32),
        "state": np.array([[0, 10], [0, 5], [0, 8]]),
        "error": "",
    }


def read(found: dict[str, Any]) -> Any:
    answers = []
    for place, number in enumerate(found["ids"]):
        tensors = {"ITEMS": found["items"], "SCORES": found["scores"], "STATE": found["state"]}
        response = service_pb2.ModelInferResponse(
            id=str(number),
            outputs=[{"name": name} for name in tensors],
            raw_output_contents=[array[place].tobytes() for array in tensors.values()],
        )
        message = service_pb2.ModelStreamInferResponse(error_message=found["error"], infer_response=response)
        answers.append(message.SerializeToString())
    return read_answers(answers, np.array([4, 7, 9]), num_items=6, k=2)


def test_answers_are_ordered_by_the_requests_numbers():
    answers = read(right())
    assert answers.order.tolist() == [2, 0, 1]
    assert answers.items.tolist() == [[0, 2], [5, 4], [3, 1]]


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("error", "out of pages", "a request of the load failed: out of pages"),
        ("ids", [2, 0, 0], "expected an answer to each of 3 requests"),
        ("state", np.array([[0, 10], [1, 5], [0, 8]]), "expected status 0 in every answer, got 1 of 3"),
        ("state", np.array([[0, 10], [0, 6], [0, 8]]), "expected a log one event longer"),
        ("items", np.array([[3, 1], [0, 6], [5, 4]]), "expected 2 items of the catalogue"),
        ("items", np.array([[3, 1], [0, -1], [5, 4]]), "expected 2 items of the catalogue"),
        ("items", np.array([[3, 1], [2, 2], [5, 4]]), "expected no item twice"),
        ("items", np.array([[3], [2], [5]]), "expected 2 items and scores"),
        ("scores", np.array([[1, 2], [0, 0], [0, 0]], np.float32), "expected finite scores, falling"),
        ("scores", np.array([[np.nan, 0], [0, 0], [0, 0]], np.float32), "expected finite scores, falling"),
    ],
)
def test_a_wrong_answer_is_refused(part, value, message):
    with pytest.raises(ServerError, match=message):
        read({**right(), part: value})
