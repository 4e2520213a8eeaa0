"""Requests and answers as the messages that tritonclient generates, and gRPC's statuses as errors, in one table: by
status, never by a message's text. The transports beside this move them.

The messages are used, not `InferenceServerClient`: that class takes one stream a client, drops the id of a request that
failed on a stream, and lays every tensor out twice.
"""

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import grpc
from tritonclient.grpc import service_pb2

from longrec.client.codec import Request, Tensor
from longrec.client.connection import Connection
from longrec.client.types import ModelInfo
from longrec.errors import (
    AccessError,
    DeadlineError,
    MissingModelError,
    ProtocolError,
    RejectedError,
    ServerError,
    UnavailableError,
)
from longrec.protocol import ANY_EVENT, EVENT, INPUTS, PROTOCOL_VERSION

__all__ = [
    "NOT_READY",
    "USER_HEADER",
    "channel_options",
    "compression",
    "credentials",
    "error_of",
    "failure",
    "headers",
    "infer_message",
    "model_info",
    "outputs_of",
    "service_pb2",
]

UNLIMITED: Final = 2**31 - 1  # bytes of a message; gRPC's default of 4 MiB is less than a bulk request
USER_HEADER: Final = "longrec-user"  # for proxies that route by user; percent-encoded
DTYPES: Final = {"object": "TYPE_STRING", "int64": "TYPE_INT64", "float32": "TYPE_FP32"}

ERRORS: Final[Mapping[grpc.StatusCode, tuple[type[ServerError], str]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (RejectedError, "the server refused the request"),
    grpc.StatusCode.OUT_OF_RANGE: (RejectedError, "the server refused the request"),
    grpc.StatusCode.NOT_FOUND: (MissingModelError, "the server has no such model"),
    grpc.StatusCode.UNAVAILABLE: (UnavailableError, "the server can't be reached, or the model isn't ready"),
    grpc.StatusCode.ABORTED: (UnavailableError, "the server gave the request up"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (DeadlineError, "no answer in time"),
    grpc.StatusCode.UNIMPLEMENTED: (ProtocolError, "what answers there is no Triton server: give its gRPC port"),
    grpc.StatusCode.CANCELLED: (ServerError, "the request was cancelled"),
    grpc.StatusCode.UNAUTHENTICATED: (AccessError, "the server wants credentials"),
    grpc.StatusCode.PERMISSION_DENIED: (AccessError, "the server denies access"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (ServerError, "the server is overloaded, or the message too large"),
}
OTHER_ERROR: Final = (ServerError, "the server failed")
NOT_READY: Final = (UnavailableError, DeadlineError, MissingModelError)


def channel_options(connection: Connection) -> list[tuple[str, Any]]:
    """Of a channel: large messages, and a server that comes back is noticed soon."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", UNLIMITED),
        ("grpc.max_receive_message_length", UNLIMITED),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.use_local_subchannel_pool", 1),  # two clients of a process share no connection, nor its backoff
    ]
    if connection.tls is not None and connection.tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", connection.tls.server_name))
    return options


def credentials(connection: Connection) -> Any:
    """Of a channel; None: no encryption."""
    tls = connection.tls
    return tls and grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)


def compression(connection: Connection) -> grpc.Compression | None:
    """Of a channel's requests; None costs nothing, NoCompression a header a call."""
    return {
        "none": None,
        "gzip": grpc.Compression.Gzip,
        "deflate": grpc.Compression.Deflate,
    }[connection.compression]


def headers(connection: Connection) -> tuple[tuple[str, str], ...]:
    """Of every call."""
    return tuple(connection.headers.items())


def user_header(user: str) -> tuple[str, str]:
    """Of a call about one user."""
    return (USER_HEADER, user if user.isalnum() and user.isascii() else quote(user, safe=""))


def error_of(error: Any, url: str, model: str) -> ServerError:
    """What a gRPC error means."""
    return failure(error.code(), error.details(), url, model)


def failure(code: grpc.StatusCode, details: str, url: str, model: str) -> ServerError:
    """What a status means, with what the server says of it."""
    kind, meaning = ERRORS.get(code, OTHER_ERROR)
    return kind(f"{url}, model {model}: {meaning} ({code.name}: {details})")


def infer_message(model: str, id: str, request: Request) -> Any:
    """A request's message."""
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


def outputs_of(answer: Any) -> Mapping[str, Tensor]:
    """An answer's tensors; a lack is the codec's to name."""
    return {
        output.name: Tensor(output.datatype, tuple(output.shape), data)
        for output, data in zip(answer.outputs, answer.raw_output_contents, strict=False)
    }


def model_info(answer: Any, url: str) -> ModelInfo:
    """What the server says of its model.

    Raises:
        ProtocolError: its inputs, or the parameter protocol_version if it has one, aren't this library's.
    """
    config = answer.config
    settings = {name: parameter.string_value for name, parameter in config.parameters.items()}
    inputs = [ANY_EVENT if spec.name == EVENT and "schema" in settings else spec for spec in INPUTS]
    expected = {(spec.name, DTYPES[_name(spec.dtype)], spec.dims) for spec in inputs}
    from tritonclient.grpc import model_config_pb2

    found = {
        (tensor.name, model_config_pb2.DataType.Name(tensor.data_type), tuple(tensor.dims)) for tensor in config.input
    }
    if found != expected:
        raise ProtocolError(
            f"{url}, model {config.name}: expected the inputs {_spell(expected)}, got {_spell(found)}; "
            "install the longrec of the server's version"
        )
    version = settings.get("protocol_version", str(PROTOCOL_VERSION))
    if version != str(PROTOCOL_VERSION):
        raise ProtocolError(
            f"{url}, model {config.name}: expected protocol version {PROTOCOL_VERSION}, got {version[:20]}; "
            "install the longrec of the server's version"
        )
    versions = tuple(config.version_policy.specific.versions)
    return ModelInfo(config.name, versions, int(config.max_batch_size), settings)


def _name(dtype: Any) -> str:
    return str(dtype.__name__).removesuffix("_")


def _spell(tensors: set[tuple[str, str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype} {json.dumps(dims)}" for name, dtype, dims in sorted(tensors)) or "none"
