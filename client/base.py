"""What `Client` and `AsyncClient` are made of: arguments, transports, and what needs no waiting."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from longrec.catalogue import Catalogue
from longrec.client.connection import Connection, Retry, Tls
from longrec.client.core import Core
from longrec.client.ids import load_catalogue
from longrec.client.steps import Ask, Await, Describe, Look, Send, Step
from longrec.client.types import Event
from longrec.protocol import MODEL

if TYPE_CHECKING:
    from longrec.client.telemetry import Telemetry

__all__ = ["BaseClient"]

TransportT = TypeVar("TransportT")
HistoryT = TypeVar("HistoryT")


class BaseClient(ABC, Generic[TransportT, HistoryT]):
    """See `Client` and `AsyncClient`, whose arguments these are."""

    def __init__(
        self,
        url: str | Sequence[str] = "127.0.0.1:8001",
        *,
        model: str = MODEL,
        timeout_seconds: float = 30.0,
        number: bool = True,
        resend_seconds: float = 5.0,
        history: Callable[[str], HistoryT] | None = None,
        retry: Retry | None = None,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        compression: Literal["none", "gzip", "deflate"] = "none",
        catalogue: Catalogue | str | Path | None = None,
        transport: Callable[[str, str, Connection], TransportT] | None = None,
        telemetry: "Telemetry | None" = None,
    ) -> None:
        self._prepare()
        self.core = (telemetry.core if telemetry else Core)(
            url,
            model=model,
            timeout_seconds=timeout_seconds,
            number=number,
            resend_seconds=resend_seconds,
            history=history,
            retry=retry,
            tls=tls,
            headers=headers,
            compression=compression,
            catalogue=load_catalogue(catalogue),
            watch=self._watch,
        )
        make = transport or self._grpc
        self.transports = [make(one, model, self.core.connection) for one in self.core.fleet.urls]

    def unacknowledged(self, *, user: str) -> list[Event]:
        """The user's events, with their positions, that the server hasn't said it has; oldest first."""
        return self.core.unacknowledged(user)

    def forget(self, *, user: str) -> None:
        """Drop what the client knows and holds of a user: the next call asks for the log's length anew."""
        self.core.forget(user)

    def start(self, step: Step) -> Any:
        """Begin a step: what it gives, or what to await for it."""
        if isinstance(step, Send):
            return self._transport(step.server).infer(step.request, step.seconds)
        if isinstance(step, Look):
            return self._transport(step.server).is_ready(step.seconds)
        if isinstance(step, Describe):
            return self._transport(step.server).model_info(step.seconds)
        if isinstance(step, Ask):
            return self.core.history(step.user) if self.core.history else None
        if isinstance(step, Await):
            return self._wait(step.future, step.seconds)
        return self._sleep(step.seconds)

    @abstractmethod
    def _prepare(self) -> None:
        """What a client keeps beside this."""

    def _transport(self, server: int) -> Any:
        return self.transports[server]

    @abstractmethod
    def _grpc(self, url: str, model: str, connection: Connection) -> TransportT:
        """What carries requests where the caller says nothing."""

    @abstractmethod
    def _sleep(self, seconds: float) -> Any:
        """Wait, or what to await for it."""

    @abstractmethod
    def _wait(self, future: Future[Any], seconds: float) -> Any:
        """The future's result, or what to await for it; `DeadlineError` if it takes longer."""

    @abstractmethod
    def _watch(self) -> None:
        """Run the core's `probe` in the background, unless that is under way."""
