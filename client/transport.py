"""Bytes to a server and back, with threads. `aio_transport.py` does it with asyncio; both share `messages.py`."""

from collections.abc import Iterator, Mapping
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from longrec.client import messages
from longrec.client.codec import Request, Tensor
from longrec.client.connection import Connection
from longrec.client.types import ModelInfo
from longrec.errors import ServerError

__all__ = ["Answer", "Call", "GrpcTransport", "StreamCall", "Transport"]


class Answer(NamedTuple):
    """What came back on a stream for one request: `outputs`, or why there are none."""

    id: str
    outputs: Mapping[str, Tensor]
    error: str = ""


class StreamCall(Protocol):
    """One bidirectional stream. `send` never blocks: the caller bounds what is in flight."""

    def send(self, id: str, request: Request) -> None:
        """Queue a request; its answer carries `id`."""

    def finish(self) -> None:
        """Half-close: the server answers what it has and ends the stream."""

    def cancel(self) -> None:
        """End the stream at once, whatever is in flight."""

    def answers(self) -> Iterator[Answer]:
        """Answers as they come, until the server ends the stream; raises ServerError where it broke."""


class Transport(Protocol):
    """One server, as `Client` sees it: what a test or another way to reach an engine puts in gRPC's place."""

    def infer(self, request: Request, seconds: float) -> Mapping[str, Tensor]:
        """Send a request, wait for its outputs; raises ServerError."""

    def is_ready(self, seconds: float) -> bool:
        """Whether the server answers and says that the model is ready."""

    def model_info(self, seconds: float) -> ModelInfo:
        """What the server says of its model."""

    def open(self) -> StreamCall:
        """Open a stream. Connects in the background: a failure shows in `StreamCall.answers`."""

    def close(self) -> None:
        """End it; what is in flight is cancelled."""


class GrpcTransport:
    """A channel to one server.

    Args:
        url: host:port of the server's gRPC service.
        model: name of the model.
        connection: encryption, headers, compression.
    """

    def __init__(self, url: str, model: str, connection: Connection) -> None:
        self.url, self.model = url, model
        self._headers = messages.headers(connection)
        options, secret = messages.channel_options(connection), messages.credentials(connection)
        squeeze = messages.compression(connection)
        if secret is None:
            self._channel = grpc.insecure_channel(url, options=options, compression=squeeze)
        else:
            self._channel = grpc.secure_channel(url, secret, options=options, compression=squeeze)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        """Close the channel; what is in flight is cancelled."""
        self._channel.close()

    def is_ready(self, seconds: float) -> bool:
        """Whether the server answers and says that the model is ready."""
        request = service_pb2.ModelReadyRequest(name=self.model)
        try:
            return bool(self._stub.ModelReady(request, timeout=seconds, metadata=self._headers).ready)
        except grpc.RpcError as error:
            mapped = self._mapped(error)
            if isinstance(mapped, messages.NOT_READY):
                return False
            raise mapped from error

    def model_info(self, seconds: float) -> ModelInfo:
        """What the server says of its model.

        Raises:
            ServerError: it can't be reached, or speaks another protocol.
        """
        request = service_pb2.ModelConfigRequest(name=self.model)
        try:
            answer = self._stub.ModelConfig(request, timeout=seconds, metadata=self._headers)
        except grpc.RpcError as error:
            raise self._mapped(error) from error
        return messages.model_info(answer, self.url)

    def infer(self, request: Request, seconds: float) -> Mapping[str, Tensor]:
        """Send a request, wait for its outputs.

        Raises:
            RejectedError: the server refused it. ServerError: it failed, can't be reached, or was too slow.
        """
        message = messages.infer_message(self.model, "", request)
        metadata = (*self._headers, *request.headers, messages.user_header(request.user))
        try:
            return messages.outputs_of(self._stub.ModelInfer(message, timeout=seconds, metadata=metadata))
        except grpc.RpcError as error:
            raise self._mapped(error) from error

    def open(self) -> "Call":
        """Open a bidirectional stream. Connects in the background: a failure shows in `Call.answers`."""
        return Call(self)

    def _mapped(self, error: Any) -> ServerError:
        return messages.error_of(error, self.url, self.model)


class Call:
    """A `StreamCall` over gRPC.

    Args:
        transport: the channel.
    """

    def __init__(self, transport: GrpcTransport) -> None:
        self._transport = transport
        self._queue: SimpleQueue[Any] = SimpleQueue()  # None ends it
        self._call = transport._stub.ModelStreamInfer(iter(self._queue.get, None), metadata=transport._headers)

    def send(self, id: str, request: Request) -> None:
        """Queue a request; its answer carries `id`."""
        self._queue.put(messages.infer_message(self._transport.model, id, request))

    def finish(self) -> None:
        """Half-close: the server answers what it has and ends the stream."""
        self._queue.put(None)

    def cancel(self) -> None:
        """End the stream at once, whatever is in flight."""
        self._queue.put(None)  # or gRPC's sender would wait on the queue for ever
        self._call.cancel()

    def answers(self) -> Iterator[Answer]:
        """Answers as they come, until the server ends the stream.

        Raises:
            ServerError: the stream broke.
        """
        try:
            for message in self._call:
                answer = message.infer_response
                yield Answer(answer.id, messages.outputs_of(answer), message.error_message)
        except grpc.RpcError as error:
            raise self._transport._mapped(error) from error
