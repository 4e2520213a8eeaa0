"""A real gRPC server that speaks the wire and keeps logs, but ranks by rule: the client's counterpart where Triton
itself isn't the subject, because it can be told to misbehave."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from longrec.client import Client
from longrec.protocol import DEFAULT_K, EVENT_COLUMNS, MODEL, NO_ITEM

Fault = Callable[[Any, grpc.ServicerContext], Any]


def make_config() -> Any:
    """Of the committed repository."""
    text = (Path(__file__).parents[2] / "model_repository" / MODEL / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@dataclass
class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Logs by user; `faults` by user: called in place of an answer."""

    logs: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[Any] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    config: Any = field(default_factory=make_config)
    descriptions: int = 0  # how often it was asked for its config

    @staticmethod
    def expected_items(length: int, k: int) -> list[int]:
        """What is recommended after `length` events."""
        return [length + i for i in range(k)]

    @staticmethod
    def respond(id: str, tensors: dict[str, tuple[str, list[int], Any]]) -> Any:
        """A response message: name -> datatype, shape, array."""
        return service_pb2.ModelInferResponse(
            model_name=MODEL,
            id=id,
            outputs=[{"name": name, "datatype": dtype, "shape": shape} for name, (dtype, shape, _) in tensors.items()],
            raw_output_contents=[array.tobytes() for _, _, array in tensors.values()],
        )

    def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        return service_pb2.ModelReadyResponse(ready=request.name == MODEL)

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        answer = self.infer(request, context)
        return context.abort(grpc.StatusCode.INVALID_ARGUMENT, answer) if isinstance(answer, str) else answer

    def infer(self, request: Any, context: grpc.ServicerContext) -> Any:
        """An answer, or what is wrong with the request."""
        with self.lock:
            self.requests.append(request)
        users = self.users(request)
        fault = next((self.faults[user] for user in users if user in self.faults), None)
        return self.answers(users, request) if fault is None else fault(request, context)

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.descriptions += 1
        if request.name != MODEL:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        return service_pb2.ModelConfigResponse(config=self.config)

    @staticmethod
    def users(request: Any) -> list[str]:
        """The keys in a request."""
        data, users = request.raw_input_contents[0], []
        while data:
            end = 4 + int.from_bytes(data[:4], "little")
            users.append(data[4:end].decode())
            data = data[end:]
        return users

    def ModelStreamInfer(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for request in requests:
            answer = self.infer(request, context)
            if isinstance(answer, str):  # a failed request: Triton sends the id and a message
                failed = service_pb2.ModelInferResponse(id=request.id)
                yield service_pb2.ModelStreamInferResponse(error_message=answer, infer_response=failed)
            elif answer is not None:
                yield service_pb2.ModelStreamInferResponse(infer_response=answer)

    def answer(self, user: str, request: Any) -> Any:
        """The answer to one user's request."""
        return self.answers([user], request)

    def answers(self, users: list[str], request: Any) -> Any:
        """Compare-and-append for each, then count up from the log's length."""
        shape, rows = request.inputs[1].shape, np.frombuffer(request.raw_input_contents[1], np.int64)
        parts = [self.tensors(user, own, request) for user, own in zip(users, rows.reshape(tuple(shape)), strict=True)]
        size = len(users)
        tensors = {
            name: (dtype, [size, *dims], np.stack([part[name][2] for part in parts]))
            for name, (dtype, dims, _) in parts[0].items()
        }
        return self.respond(request.id, {output.name: tensors[output.name] for output in request.outputs})

    def tensors(self, user: str, rows: Any, request: Any) -> dict[str, tuple[str, list[int], Any]]:
        """One user's outputs."""
        candidates = np.frombuffer(request.raw_input_contents[2], np.int64)
        k = request.parameters["k"].int64_param if "k" in request.parameters else DEFAULT_K
        with self.lock:
            log = self.logs.setdefault(user, [])
            status = 0
            for position, item, time in rows.reshape(-1, len(EVENT_COLUMNS)).tolist():
                if item == NO_ITEM:
                    continue
                if position > len(log):
                    status = 1
                    break
                if position in (-1, len(log)):
                    log.append((item, time))
            length = len(log)
        items = np.full(k, -1)
        ranked = candidates[:k] if len(candidates) else np.array(self.expected_items(length, k))
        items[: len(ranked)] = ranked
        scores = np.where(items < 0, -np.inf, -np.arange(k)).astype(np.float32)
        return {
            "ITEMS": ("INT64", [1, k], items.astype(np.int64)),
            "SCORES": ("FP32", [1, k], scores),
            "STATE": ("INT64", [2], np.array([status, length])),
        }


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@contextmanager
def serving(servicer: Servicer, credentials: Any = None) -> Iterator[tuple[str, Any]]:
    """A server of a servicer: host:port, and the server itself."""
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        yield f"127.0.0.1:{port}", server
        server.stop(grace=None).wait()


@pytest.fixture
def url(servicer: Servicer) -> Iterator[str]:
    with serving(servicer) as (url, _):
        yield url


@pytest.fixture
def serve() -> Any:
    """`serving`, for tests."""
    return serving


@pytest.fixture
def two() -> Iterator[list[tuple[str, Servicer, Any]]]:
    """Two servers: url, servicer, server."""
    servicers = Servicer(), Servicer()
    with serving(servicers[0]) as one, serving(servicers[1]) as other:
        yield [(url, servicer, server) for servicer, (url, server) in zip(servicers, (one, other), strict=True)]


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, timeout_seconds=10) as client:
        yield client
