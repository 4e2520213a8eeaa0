"""Bytes to a server and back, with asyncio: `transport.py`'s twin over `grpc.aio`."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from longrec.client import messages
from longrec.client.codec import Request, Tensor
from longrec.client.connection import Connection
from longrec.client.transport import Answer
from longrec.client.types import ModelInfo
from longrec.errors import ServerError

__all__ = ["AsyncCall", "AsyncGrpcTransport", "AsyncStreamCall", "AsyncTransport"]


class AsyncStreamCall(Protocol):
    """`StreamCall` for asyncio."""

    def send(self, id: str, request: Request) -> None:
        """Queue a request; its answer carries `id`."""

    def finish(self) -> None:
        """Half-close: the server answers what it has and ends the stream."""

    def cancel(self) -> None:
        """End the stream at once, whatever is in flight."""

    def answers(self) -> AsyncIterator[Answer]:
        """Answers as they come, until the server ends the stream; raises ServerError where it broke."""


class AsyncTransport(Protocol):
    """`Transport` for asyncio."""

    async def infer(self, request: Request, seconds: float) -> Mapping[str, Tensor]:
        """Send a request, wait for its outputs; raises ServerError."""

    async def is_ready(self, seconds: float) -> bool:
        """Whether the server answers and says that the model is ready."""

    async def model_info(self, seconds: float) -> ModelInfo:
        """What the server says of its model."""

    def open(self) -> AsyncStreamCall:
        """Open a stream. Connects in the background: a failure shows in `AsyncStreamCall.answers`."""

    async def close(self) -> None:
        """End it; what is in flight is cancelled."""


class AsyncGrpcTransport:
    """A channel to one server; made inside a running event loop. Arguments as `GrpcTransport`."""

    def __init__(self, url: str, model: str, connection: Connection) -> None:
        self.url, self.model = url, model
        self._headers = messages.headers(connection)
        options, secret = messages.channel_options(connection), messages.credentials(connection)
        squeeze = messages.compression(connection)
        if secret is None:
            self._channel = grpc.aio.insecure_channel(url, options=options, compression=squeeze)
        else:
            self._channel = grpc.aio.secure_channel(url, secret, options=options, compression=squeeze)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Close the channel; what is in flight is cancelled."""
        await self._channel.close()

    async def is_ready(self, seconds: float) -> bool:
        """Whether the server answers and says that the model is ready."""
        request = service_pb2.ModelReadyRequest(name=self.model)
        try:
            return bool((await self._stub.ModelReady(request, timeout=seconds, metadata=self._headers)).ready)
        except grpc.RpcError as error:
            mapped = self._mapped(error)
            if isinstance(mapped, messages.NOT_READY):
                return False
            raise mapped from error

    async def model_info(self, seconds: float) -> ModelInfo:
        """What the server says of its model.

        Raises:
            ServerError: it can't be reached, or speaks another protocol.
        """
        request = service_pb2.ModelConfigRequest(name=self.model)
        try:
            answer = await self._stub.ModelConfig(request, timeout=seconds, metadata=self._headers)
        except grpc.RpcError as error:
            raise self._mapped(error) from error
        return messages.model_info(answer, self.url)

    async def infer(self, request: Request, seconds: float) -> Mapping[str, Tensor]:
        """Send a request, wait for its outputs.

        Raises:
            RejectedError: the server refused it. ServerError: it failed, can't be reached, or was too slow.
        """
        message = messages.infer_message(self.model, "", request)
        metadata = (*self._headers, *request.headers, messages.user_header(request.user))
        try:
            return messages.outputs_of(await self._stub.ModelInfer(message, timeout=seconds, metadata=metadata))
        except grpc.RpcError as error:
            raise self._mapped(error) from error

    def open(self) -> "AsyncCall":
        """Open a bidirectional stream. Connects in the background: a failure shows in `AsyncCall.answers`."""
        return AsyncCall(self)

    def _mapped(self, error: Any) -> ServerError:
        return messages.error_of(error, self.url, self.model)


class AsyncCall:
    """One bidirectional stream. `send` never blocks: the caller bounds what is in flight.

    Args:
        transport: the channel.
    """

    def __init__(self, transport: AsyncGrpcTransport) -> None:
        self._transport = transport
        self._queue: asyncio.Queue[Any] = asyncio.Queue()  # None ends it
        self._call = transport._stub.ModelStreamInfer(self._requests(), metadata=transport._headers)

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self._queue.get()) is not None:
            yield message

    def send(self, id: str, request: Request) -> None:
        """Queue a request; its answer carries `id`."""
        self._queue.put_nowait(messages.infer_message(self._transport.model, id, request))

    def finish(self) -> None:
        """Half-close: the server answers what it has and ends the stream."""
        self._queue.put_nowait(None)

    def cancel(self) -> None:
        """End the stream at once, whatever is in flight."""
        self._queue.put_nowait(None)
        self._call.cancel()

    async def answers(self) -> AsyncIterator[Answer]:
        """Answers as they come, until the server ends the stream.

        Raises:
            ServerError: the stream broke.
        """
        try:
            async for message in self._call:
                answer = message.infer_response
                yield Answer(answer.id, messages.outputs_of(answer), message.error_message)
        except grpc.RpcError as error:
            raise self._transport._mapped(error) from error
