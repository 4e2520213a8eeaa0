"""A real inference on a running server, and what the server says of itself. The only file here that knows tritonclient.

"Ready" is no proof: a server whose Python stub has died still says ready.
"""

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from longrec.errors import ServerError
from longrec.protocol import CANDIDATE, EVENT, EVENT_COLUMNS, MODEL, STATE, USER

__all__ = ["PROBE_USER", "instances", "probe_recommender", "server_version"]

PROBE_USER = "longrec-probe"


def probe_recommender(url: str, timeout_seconds: float) -> None:
    """Ask model `recommender` for the next items of `PROBE_USER`; nothing is written to that user's log.

    Args:
        url: host:port of the server's gRPC endpoint.
        timeout_seconds: of the request.

    Raises:
        ServerError: the model didn't answer, or answered without `STATE`.
    """
    user = triton.InferInput(USER, [1, 1], "BYTES")
    user.set_data_from_numpy(np.array([[PROBE_USER.encode()]], dtype=np.object_))
    event = triton.InferInput(EVENT, [1, 0, len(EVENT_COLUMNS)], "INT64")
    event.set_data_from_numpy(np.empty((1, 0, len(EVENT_COLUMNS)), dtype=np.int64))
    candidate = triton.InferInput(CANDIDATE, [1, 0], "INT64")
    candidate.set_data_from_numpy(np.empty((1, 0), dtype=np.int64))
    client = triton.InferenceServerClient(url)
    try:
        answer = client.infer(MODEL, [user, event, candidate], client_timeout=timeout_seconds)
    except InferenceServerException as error:
        raise ServerError(f"{MODEL} at {url}: expected an answer, got {_one_line(error)}") from None
    finally:
        client.close()
    if answer.as_numpy(STATE) is None:
        raise ServerError(f"{MODEL} at {url}: expected output {STATE}, got an answer without it")


def instances(url: str, model: str, version: str, timeout_seconds: float) -> int:
    """How many instances of the model's version the server means to run; 0 where it is not loaded.

    Raises:
        ServerError: the server didn't answer.
    """
    client = triton.InferenceServerClient(url)
    try:
        index = client.get_model_repository_index(client_timeout=timeout_seconds).models
        if not any((entry.name, entry.version, entry.state) == (model, version, "READY") for entry in index):
            return 0
        config = client.get_model_config(model, version, client_timeout=timeout_seconds).config
    except InferenceServerException as error:
        raise ServerError(f"{model} at {url}: expected its state, got {_one_line(error)}") from None
    finally:
        client.close()
    return sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)


def server_version(url: str) -> str:
    """The version that the server at `url` reports, such as "2.51.0".

    Raises:
        ServerError: it can't be reached.
    """
    client = triton.InferenceServerClient(url)
    try:
        return str(client.get_server_metadata(client_timeout=10.0).version)
    except InferenceServerException as error:
        raise ServerError(f"{url}: expected the server's metadata, got {_one_line(error)}") from None
    finally:
        client.close()


def _one_line(error: InferenceServerException) -> str:
    """Status and message without the traceback that the Python backend puts behind `At:`."""
    return " ".join(f"{error.status()}: {error.message()}".partition("\n\nAt:")[0].split())
