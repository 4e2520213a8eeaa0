"""`AsyncClient`: `client.py`'s twin with asyncio. What both share is `core.py`."""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from longrec.client.aio_stream import AsyncStream
from longrec.client.aio_transport import AsyncGrpcTransport, AsyncTransport
from longrec.client.base import BaseClient
from longrec.client.connection import Connection
from longrec.client.progress import showing
from longrec.client.steps import Steps
from longrec.client.types import Appended, Events, Items, ModelInfo, Options, Prediction, Scored
from longrec.errors import DeadlineError, ServerError
from longrec.protocol import DEFAULT_K

if TYPE_CHECKING:
    from longrec.schema import Schema

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient(BaseClient[AsyncTransport, Events | Awaitable[Events]]):
    """`Client` for asyncio: the same arguments, calls, results and errors; made and used in one event loop.

        async with AsyncClient("127.0.0.1:8001") as client:
            prediction = await client.recommend(user="u1", events=[Event(item=3, time_ms=1_700_000_000_000)], k=10)

    A call that is cancelled counts as one without an answer: its events go along with the user's next request.

    Args:
        history: as `Client`'s, or a coroutine function.
        transport: (url, model, connection) -> what carries requests, in place of gRPC.
        url, model, timeout_seconds, number, resend_seconds, retry, tls, headers, compression, catalogue, telemetry: as
            `Client`.

    Raises:
        ArgumentError, CheckpointError: as `Client`.
    """

    async def recommend(
        self,
        *,
        user: str,
        events: Events = (),
        k: int = DEFAULT_K,
        horizon: int | None = None,
        exclude: Items | None = None,
        explain: int | None = None,
        candidates: Items | None = None,
        options: Options | None = None,
    ) -> Prediction:
        """As `Client.recommend`."""
        return await self.run(self.core.recommend(user, events, k, horizon, exclude, explain, candidates, options))

    async def score(
        self, *, user: str, candidates: Items, events: Events = (), options: Options | None = None
    ) -> Scored:
        """As `Client.score`."""
        return await self.run(self.core.score(user, candidates, events, options))

    async def append(self, *, user: str, events: Events) -> Appended:
        """As `Client.append`."""
        return await self.run(self.core.append(user, events))

    async def history_length(self, *, user: str) -> int:
        """As `Client.history_length`."""
        return await self.run(self.core.history_length(user))

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
        calls = self.core.recommend_many(requests, k, options, batch_size, in_flight)
        return self._many(calls, in_flight, progress, errors)

    async def is_ready(self) -> bool:
        """As `Client.is_ready`."""
        return await self.run(self.core.is_ready())

    async def model_info(self) -> ModelInfo:
        """As `Client.model_info`."""
        return await self.run(self.core.model_info())

    async def schema(self) -> "Schema":
        """As `Client.schema`."""
        return await self.run(self.core.schema())

    def stream(self, *, k: int = DEFAULT_K, options: Options | None = None, max_in_flight: int = 256) -> AsyncStream:
        """As `Client.stream`; an async context manager and an async iterator."""
        chosen = self.core.check_stream(k, max_in_flight, options)
        return AsyncStream(self, k=k, options=chosen, max_in_flight=max_in_flight)

    async def flush(self) -> None:
        """As `Client.flush`."""
        await self.run(self.core.flush())

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

    async def run(self, steps: Steps[T]) -> T:
        """See a call through (for streams)."""
        try:
            step = next(steps)
            while True:
                try:
                    value = self.start(step)
                    if inspect.isawaitable(value):
                        value = await value
                except BaseException as error:  # noqa: PERF203
                    step = steps.throw(error)
                else:
                    step = steps.send(value)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _many(
        self,
        calls: Iterator[Steps[list[Prediction | ServerError]]],
        in_flight: int,
        progress: bool,
        errors: list[ServerError] | None,
    ) -> AsyncIterator[Prediction]:
        running: deque[tuple[Steps[Any], asyncio.Task[list[Prediction | ServerError]]]] = deque()
        try:
            with showing(progress) as advance:
                while True:
                    while len(running) < in_flight and (steps := next(calls, None)) is not None:
                        running.append((steps, asyncio.ensure_future(self.run(steps))))
                    if not running:
                        return
                    _, task = running[0]
                    results = await task
                    running.popleft()
                    for result in results:
                        advance()
                        if not isinstance(result, ServerError):
                            yield result
                        elif errors is None:
                            raise result
                        else:
                            errors.append(result)
        finally:
            for _, task in running:
                task.cancel()
            await asyncio.gather(*(task for _, task in running), return_exceptions=True)
            for steps, _ in running:
                steps.close()  # of a task that was cancelled before its first step

    def _prepare(self) -> None:
        self._prober: asyncio.Task[None] | None = None

    def _grpc(self, url: str, model: str, connection: Connection) -> AsyncTransport:
        return AsyncGrpcTransport(url, model, connection)

    def _sleep(self, seconds: float) -> Awaitable[None]:
        return asyncio.sleep(seconds)

    async def _wait(self, future: Future[Any], seconds: float) -> Any:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
        except (asyncio.TimeoutError, TimeoutError):
            raise DeadlineError(f"no answer in time ({self.core.timeout_seconds} s)") from None

    def _watch(self) -> None:
        if self._prober is None or self._prober.done():
            self._prober = asyncio.ensure_future(self.run(self.core.probe()))
