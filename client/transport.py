"""Bytes to a server and back: the only file that knows gRPC and tritonclient.

It speaks the KServe v2 messages that tritonclient generates, not `InferenceServerClient`: that class takes one stream a
client, drops the id of a request that failed on a stream, and lays every tensor out twice. Errors are mapped here, in
one table, by gRPC status and never by a message's text.
"""

from collections.abc import Iterator, Mapping
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from longrec.client.codec import Request, Tensor
from longrec.errors import RejectedError, ServerError

__all__ = ["Answer", "Call", "Transport"]

UNLIMITED: Final = 2**31 - 1  # bytes of a message; gRPC's default of 4 MiB is less than a bulk request
OPTIONS: Final = (("grpc.max_send_message_length", UNLIMITED), ("grpc.max_receive_message_length", UNLIMITED))

ERRORS: Final[Mapping[grpc.StatusCode, tuple[type[ServerError], str]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (RejectedError, "the server refused the request"),
    grpc.StatusCode.OUT_OF_RANGE: (RejectedError, "the server refused the request"),
    grpc.StatusCode.NOT_FOUND: (ServerError, "the server has no such model"),
    grpc.StatusCode.UNAVAILABLE: (ServerError, "the server can't be reached, or the model isn't ready"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (ServerError, "no answer in time"),
    grpc.StatusCode.UNIMPLEMENTED: (ServerError, "what answers there is no Triton server: give its gRPC port"),
    grpc.StatusCode.CANCELLED: (ServerError, "the request was cancelled"),
    grpc.StatusCode.UNAUTHENTICATED: (ServerError, "the server wants credentials"),
    grpc.StatusCode.PERMISSION_DENIED: (ServerError, "the server denies access"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (ServerError, "the server is overloaded, or the message too large"),
}
OTHER_ERROR: Final = (ServerError, "the server failed")


class Answer(NamedTuple):
    """What came back on a stream for one request: `outputs`, or why there are none."""

    id: str
    outputs: Mapping[str, Tensor]
    error: str = ""


class Transport:
    """A channel to one server.

    Args:
        url: host:port of the server's gRPC service.
        model: name of the model.
        timeout_seconds: deadline of each unary call.
    """

    def __init__(self, url: str, model: str, timeout_seconds: float) -> None:
        self.url, self.model, self.timeout_seconds = url, model, timeout_seconds
        self._channel = grpc.insecure_channel(url, options=OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        """Close the channel; what is in flight is cancelled."""
        self._channel.close()

    def is_ready(self) -> bool:
        """Whether the server answers and says that the model is ready."""
        try:
            request = service_pb2.ModelReadyRequest(name=self.model)
            return bool(self._stub.ModelReady(request, timeout=self.timeout_seconds).ready)
        except grpc.RpcError as error:
            if error.code() in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.NOT_FOUND,
            ):
                return False
            raise self._mapped(error) from error

    def infer(self, request: Request) -> Mapping[str, Tensor]:
        """Send a request, wait for its outputs.

        Raises:
            RejectedError: the server refused it. ServerError: it failed, can't be reached, or was too slow.
        """
        try:
            answer = self._stub.ModelInfer(_message(self.model, "", request), timeout=self.timeout_seconds)
        except grpc.RpcError as error:
            raise self._mapped(error) from error
        return _outputs(answer)

    def open(self) -> "Call":
        """Open a bidirectional stream. Connects in the background: a failure shows in `Call.answers`."""
        return Call(self)

    def _mapped(self, error: Any) -> ServerError:
        kind, meaning = ERRORS.get(error.code(), OTHER_ERROR)
        return kind(f"{self.url}, model {self.model}: {meaning} ({error.code().name}: {error.details()})")


class Call:
    """One bidirectional stream. `send` never blocks: the caller bounds what is in flight.

    Args:
        transport: the channel.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._queue: SimpleQueue[Any] = SimpleQueue()  # None ends it
        self._call = transport._stub.ModelStreamInfer(iter(self._queue.get, None))

    def send(self, id: str, request: Request) -> None:
        """Queue a request; its answer carries `id`."""
        self._queue.put(_message(self._transport.model, id, request))

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
                yield Answer(answer.id, _outputs(answer), message.error_message)
        except grpc.RpcError as error:
            raise self._transport._mapped(error) from error


def _message(model: str, id: str, request: Request) -> Any:
    message = service_pb2.ModelInferRequest(
        model_name=model,
        id=id,
        inputs=[{"name": name, "datatype": t.datatype, "shape": t.shape} for name, t in request.inputs.items()],
        outputs=[{"name": name} for name in request.outputs],
        raw_input_contents=[tensor.data for tensor in request.inputs.values()],
    )
    for name, value in request.parameters.items():
        parameter = message.parameters[name]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, int):
            parameter.int64_param = value
        else:
            parameter.string_param = value
    return message


def _outputs(answer: Any) -> Mapping[str, Tensor]:
    return {
        output.name: Tensor(output.datatype, tuple(output.shape), data)
        for output, data in zip(answer.outputs, answer.raw_output_contents, strict=False)  # the codec names a lack
    }
