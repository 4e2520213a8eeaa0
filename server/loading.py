"""New weights in a running server, and back: the repository names a version, the server loads it, and is asked whether
it serves that one.

Triton (explicit model control) loads the named version beside the one that it serves, hands over new requests when that
is ready, and lets the old one end when its last request is answered: none fails. Both are in memory for that while.
"""

import contextlib
from collections.abc import Collection
from pathlib import Path

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from longrec.errors import ServerError
from longrec.server.repository import select_version, served_version

__all__ = ["switch_version"]

METADATA_SECONDS = 10.0
LOAD_SECONDS = 300.0  # a stub imports torch and compiles kernels before it says that it's ready


def switch_version(
    repository: Path, version: int, url: str, *, extras: Collection[str] = (), timeout_seconds: float = LOAD_SECONDS
) -> list[str]:
    """Let a running server serve `version`; if it can't, repository and server are at the version from before.

    Args:
        repository: the server's, as `write_repository` writes it.
        version: one that it holds.
        url: host:port of the server's gRPC endpoint.
        extras: further models to make, as `select_version`.
        timeout_seconds: for each model to load.

    Returns:
        Names of the models that were loaded.

    Raises:
        CheckpointError: there is no such version.
        ServerError: the server can't be reached, or couldn't load it and goes on as before.
    """
    before = served_version(repository)
    models = select_version(repository, version, extras=extras)
    with contextlib.closing(triton.InferenceServerClient(url)) as client:
        try:
            for model in models:
                _load(client, url, model, version, timeout_seconds)
        except ServerError:
            if before is not None and before != version:
                _restore(client, url, select_version(repository, before), before, timeout_seconds)
            raise
    return models


def _load(client: triton.InferenceServerClient, url: str, model: str, version: int, timeout_seconds: float) -> None:
    """Load a model anew; its error leaves the version from before in service."""
    try:
        client.load_model(model, client_timeout=timeout_seconds)
        versions = _served(client, model)
    except InferenceServerException as error:
        said = " ".join(f"{error.status()}: {error.message()}".partition("\n\nAt:")[0].split())
        raise ServerError(f"{model} at {url}: expected version {version} to load, got {said}") from None
    if versions != [str(version)]:
        raise ServerError(
            f"{model} at {url}: expected version {version} to be served, got {', '.join(versions) or 'none'}; "
            "does the server run from this repository?"
        )


def _restore(
    client: triton.InferenceServerClient, url: str, models: Collection[str], version: int, timeout_seconds: float
) -> None:
    """Load `version` of the models that serve another one. What fails here isn't told: the first error matters."""
    for model in models:
        with contextlib.suppress(InferenceServerException, ServerError):
            if _served(client, model) != [str(version)]:
                _load(client, url, model, version, timeout_seconds)


def _served(client: triton.InferenceServerClient, model: str) -> list[str]:
    return list(client.get_model_metadata(model, client_timeout=METADATA_SECONDS).versions)
