"""`AsyncClient`: `client.py`'s twin with asyncio. What both share is `core.py`."""

import asyncio
import inspect
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import tenacity

from longrec.client.aio_stream import AsyncStream
from longrec.client.aio_transport import AsyncGrpcTransport, AsyncTransport
from longrec.client.bulk import batches, groups, merge, split
from longrec.client.codec import Request, Tensor
from longrec.client.connection import Connection, Retry, Tls
from longrec.client.core import PROBE_SECONDS, Core, failed, logger
from longrec.client.delivery import Delivery, Next, Outcome
from longrec.client.frames import requests_of
from longrec.client.progress import showing
from longrec.client.retrying import is_passing, retry_arguments
from longrec.client.types import Appended, Event, Events, ModelInfo, Options, Prediction, Scored
from longrec.errors import DeadlineError, ServerError, UnavailableError
from longrec.protocol import DEFAULT_K, MODEL

__all__ = ["AsyncClient"]


class AsyncClient:
    """`Client` for asyncio: the same arguments, calls, results and errors; made and used in one event loop.

        async with AsyncClient("127.0.0.1:8001") as client:
            prediction = await client.recommend(user="u1", events=[Event(item=3, time_ms=1_700_000_000_000)], k=10)

    A call that is cancelled counts as one without an answer: its events go along with the user's next request.

    Args:
        history: as `Client`'s, or a coroutine function.
        transport: (url, model, connection) -> what carries requests, in place of gRPC.
        url, model, timeout_seconds, number, resend_seconds, retry, tls, headers, compression: as `Client`.

    Raises:
        ArgumentError: an argument doesn't fit.
    """

    def __init__(
        self,
        url: str | Sequence[str] = "127.0.0.1:8001",
        *,
        model: str = MODEL,
        timeout_seconds: float = 30.0,
        number: bool = True,
        resend_seconds: float = 5.0,
        history: Callable[[str], Events | Awaitable[Events]] | None = None,
        retry: Retry | None = None,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        compression: Literal["none", "gzip", "deflate"] = "none",
        transport: Callable[[str, str, Connection], AsyncTransport] = AsyncGrpcTransport,
    ) -> None:
        self.core = Core(
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
        )
        self.transports = [transport(one, model, self.core.connection) for one in self.core.fleet.urls]
        self._prober: asyncio.Task[None] | None = None

    async def recommend(
        self,
        *,
        user: str,
        events: Events = (),
        k: int = DEFAULT_K,
        horizon: int | None = None,
        exclude: Sequence[int] | None = None,
        explain: int | None = None,
        candidates: Sequence[int] | None = None,
        options: Options | None = None,
    ) -> Prediction:
        """As `Client.recommend`."""
        delivery = self.core.recommend(user, events, k, horizon, exclude, explain, candidates, options)
        return await self._predict(delivery, self.core.deadline())

    async def score(
        self, *, user: str, candidates: Sequence[int], events: Events = (), options: Options | None = None
    ) -> Scored:
        """As `Client.score`."""
        deadline = self.core.deadline()
        first, rest = self.core.score(user, candidates, events, options)
        parts = [await self._predict(part, deadline) for part in (first, *rest)]
        return self.core.scored(user, candidates, parts)

    async def append(self, *, user: str, events: Events) -> Appended:
        """As `Client.append`."""
        return await self._append(self.core.append(user, events))

    async def history_length(self, *, user: str) -> int:
        """As `Client.history_length`."""
        return (await self._append(self.core.ask_length(user))).length

    def recommend_many(
        self,
        requests: "Iterable[str | tuple[str, Events]] | Any",
        *,
        k: int = DEFAULT_K,
        options: Options | None = None,
        batch_size: int = 256,
        in_flight: int = 4,
        progress: bool = False,
        errors: list[ServerError] | None = None,
    ) -> AsyncIterator[Prediction]:
        """As `Client.recommend_many`, as an async iterator."""
        chosen = self.core.check_many(k, options, batch_size, in_flight)
        return self._many(requests_of(requests), k, chosen, batch_size, in_flight, progress, errors)

    async def is_ready(self) -> bool:
        """As `Client.is_ready`."""
        seconds = self.core.timeout_seconds
        return any([await transport.is_ready(seconds) for transport in self.transports])

    async def model_info(self) -> ModelInfo:
        """As `Client.model_info`."""
        return await self.transports[self.core.fleet.pick("")].model_info(self.core.timeout_seconds)

    def stream(self, *, k: int = DEFAULT_K, options: Options | None = None, max_in_flight: int = 256) -> AsyncStream:
        """As `Client.stream`; an async context manager and an async iterator."""
        chosen = self.core.check_stream(k, max_in_flight, options)
        return AsyncStream(self, k=k, options=chosen, max_in_flight=max_in_flight)

    def unacknowledged(self, *, user: str) -> list[Event]:
        """As `Client.unacknowledged`."""
        return self.core.unacknowledged(user)

    async def flush(self) -> None:
        """As `Client.flush`."""
        for user in self.core.ledger.owed():
            await self._append(self.core.ask_length(user))

    def forget(self, *, user: str) -> None:
        """As `Client.forget`."""
        self.core.forget(user)

    async def close(self) -> None:
        """Close the connections; what is in flight is cancelled. Harmless when repeated."""
        if self._prober is not None:
            self._prober.cancel()
        for transport in self.transports:
            await transport.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def deliver(self, delivery: Delivery, deadline: float) -> Prediction | Appended:
        """See a delivery through (for streams).

        Raises:
            ServerError: it failed, and was told so.
        """
        outcome: Outcome = Next.SEND
        try:
            while isinstance(outcome, Next):
                if outcome is Next.SEND:
                    outcome = delivery.receive(await self._send(delivery.request(), deadline, delivery.repeatable))
                else:
                    history = self.core.history(delivery.user) if self.core.history else None
                    outcome = delivery.supply(await history if inspect.isawaitable(history) else history)
        except BaseException as error:
            delivery.fail(error)
            raise
        return outcome

    def note_down(self, server: int) -> None:
        """A server gave no answer: users go elsewhere until it does (for streams)."""
        if len(self.transports) == 1 or not self.core.fleet.mark(server, up=False):
            return
        logger.warning("%s is down; its users go elsewhere", self.core.fleet.urls[server])
        if self._prober is None or self._prober.done():
            self._prober = asyncio.ensure_future(self._probe())

    async def _predict(self, delivery: Delivery, deadline: float) -> Prediction:
        result = await self.deliver(delivery, deadline)
        assert isinstance(result, Prediction)
        return result

    async def _append(self, delivery: Delivery) -> Appended:
        result = await self.deliver(delivery, self.core.deadline())
        assert isinstance(result, Appended)
        return result

    async def _send(self, request: Request, deadline: float, repeatable: bool) -> Mapping[str, Tensor]:
        try:
            return await self._attempt(request, deadline)
        except ServerError as error:
            if not repeatable or not is_passing(error, 1, self.core.retry):
                raise
            failures = [error]

        async def attempt() -> Mapping[str, Tensor]:
            if failures:
                raise failures.pop()
            return await self._attempt(request, deadline)

        again = retry_arguments(self.core.retry, self.core.budget, deadline - time.monotonic())
        outputs: Mapping[str, Tensor] = await tenacity.AsyncRetrying(**again)(attempt)
        return outputs

    async def _attempt(self, request: Request, deadline: float) -> Mapping[str, Tensor]:
        seconds = self.core.attempt_seconds(deadline)
        server = self.core.fleet.pick(request.user)
        try:
            return await self.transports[server].infer(request, seconds)
        except (UnavailableError, DeadlineError):
            self.note_down(server)
            raise

    async def _probe(self) -> None:
        while self.core.fleet.down:
            await asyncio.sleep(PROBE_SECONDS)
            for server in self.core.fleet.down:
                try:
                    ready = await self.transports[server].is_ready(1.0)
                except ServerError:
                    ready = False
                if ready and self.core.fleet.mark(server, up=True):
                    logger.warning("%s is back", self.core.fleet.urls[server])

    async def _many(
        self,
        requests: Iterator[tuple[str, Events]],
        k: int,
        options: Options,
        batch_size: int,
        in_flight: int,
        progress: bool,
        errors: list[ServerError] | None,
    ) -> AsyncIterator[Prediction]:
        running: deque[asyncio.Task[list[Prediction | ServerError]]] = deque()
        more = batches(requests, batch_size)
        try:
            with showing(progress) as advance:
                while True:
                    while len(running) < in_flight and (batch := next(more, None)) is not None:
                        deliveries = [self.core.deliver(user, events, k=k, options=options) for user, events in batch]
                        running.append(asyncio.ensure_future(self._batch(deliveries)))
                    if not running:
                        return
                    for result in await running.popleft():
                        advance()
                        if not isinstance(result, ServerError):
                            yield result
                        elif errors is None:
                            raise result
                        else:
                            errors.append(result)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _batch(self, deliveries: list[Delivery]) -> list[Prediction | ServerError]:
        deadline = self.core.deadline()
        results: dict[Delivery, Prediction | ServerError] = {}
        try:
            while left := [delivery for delivery in deliveries if delivery not in results]:
                requests = [delivery.request() for delivery in left]
                for places in groups(requests, self.core.fleet.pick):
                    together = [left[place] for place in places]
                    repeatable = all(delivery.repeatable for delivery in together)
                    parts: Sequence[Mapping[str, Tensor] | None] = [None] * len(together)
                    if repeatable or len(together) > 1:
                        message = merge([requests[place] for place in places])
                        try:
                            parts = split(await self._send(message, deadline, repeatable), len(together))
                        except ServerError as error:
                            if not repeatable:
                                results |= {delivery: failed(delivery, error) for delivery in together}
                                continue
                    for delivery, part in zip(together, parts, strict=True):
                        result = await self._take(delivery, part, deadline)
                        if result is not None:
                            results[delivery] = result
        except BaseException as error:
            for delivery in deliveries:
                delivery.fail(error)
            raise
        return [results[delivery] for delivery in deliveries]

    async def _take(
        self, delivery: Delivery, part: Mapping[str, Tensor] | None, deadline: float
    ) -> Prediction | ServerError | None:
        try:
            outcome = Next.HISTORY if part is None else delivery.receive(part)
            if outcome is Next.SEND:
                return None
            if isinstance(outcome, Next):
                return await self._predict(delivery, deadline)
        except ServerError as error:
            return failed(delivery, error)
        assert isinstance(outcome, Prediction)
        return outcome
