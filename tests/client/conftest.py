"""A real gRPC server that speaks the wire and keeps logs, but ranks by rule: the client's counterpart where Triton
itself isn't the subject, because it can be told to misbehave."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from longrec.client import Client
from longrec.protocol import DEFAULT_K, EVENT_COLUMNS, MODEL

Fault = Callable[[Any, grpc.ServicerContext], Any]


@dataclass
class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Logs by user; `faults` by user: called in place of an answer."""

    logs: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[Any] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

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
        with self.lock:
            self.requests.append(request)
        user = request.raw_input_contents[0][4:].decode()
        return self.faults[user](request, context) if user in self.faults else self.answer(user, request)

    def ModelStreamInfer(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for request in requests:
            answer = self.ModelInfer(request, context)
            if isinstance(answer, str):  # a failed request: Triton sends the id and a message
                failed = service_pb2.ModelInferResponse(id=request.id)
                yield service_pb2.ModelStreamInferResponse(error_message=answer, infer_response=failed)
            elif answer is not None:
                yield service_pb2.ModelStreamInferResponse(infer_response=answer)

    def answer(self, user: str, request: Any) -> Any:
        """Compare-and-append, then count up from the log's length."""
        shape, rows = request.inputs[1].shape, np.frombuffer(request.raw_input_contents[1], np.int64)
        candidates = np.frombuffer(request.raw_input_contents[2], np.int64)
        k = request.parameters["k"].int64_param if "k" in request.parameters else DEFAULT_K
        with self.lock:
            log = self.logs.setdefault(user, [])
            status = 0
            for position, item, time in rows.reshape(shape[1], len(EVENT_COLUMNS)).tolist():
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
        tensors = {
            "ITEMS": ("INT64", [1, 1, k], items.astype(np.int64)),
            "SCORES": ("FP32", [1, 1, k], scores),
            "STATE": ("INT64", [1, 2], np.array([status, length])),
        }
        return self.respond(request.id, {output.name: tensors[output.name] for output in request.outputs})


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
def url(servicer: Servicer) -> Iterator[str]:
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(grace=None).wait()


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, timeout_seconds=10) as client:
        yield client
