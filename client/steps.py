"""What a call does next, as values. `core.py` yields them and gets back what came of each; `client.py` does them with
threads, `aio_client.py` with asyncio."""

from collections.abc import Generator
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeAlias, TypeVar

from longrec.client.codec import Request

__all__ = ["Ask", "Await", "Describe", "Look", "Send", "Sleep", "Step", "Steps"]

T = TypeVar("T")


class Send(NamedTuple):
    """Send a request to a server; gives its outputs."""

    server: int
    request: Request
    seconds: float


class Look(NamedTuple):
    """Look whether a server's model is ready; gives a bool."""

    server: int
    seconds: float


class Describe(NamedTuple):
    """Ask what a server says of its model; gives a `ModelInfo`."""

    server: int
    seconds: float


class Ask(NamedTuple):
    """Ask the caller for a user's history; gives events, or None."""

    user: str


class Await(NamedTuple):
    """Wait for what another call of the client does; gives its outcome, or fails with `DeadlineError`."""

    future: "Future[Any]"
    seconds: float


class Sleep(NamedTuple):
    """Wait."""

    seconds: float


Step: TypeAlias = Send | Look | Describe | Ask | Await | Sleep
Steps: TypeAlias = Generator[Step, Any, T]
"""A call without its I/O: yields steps, is sent what came of each (or thrown why nothing did), returns its result."""
