"""`AsyncStream`: `stream.py`'s twin with asyncio; both stand on `stream_core.py`."""

import asyncio
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from longrec.client.aio_transport import AsyncStreamCall
from longrec.client.codec import Request, prepare
from longrec.client.stream import BREAKING, CHECK_SECONDS, GOODBYE_SECONDS
from longrec.client.stream_core import StreamCore, Ticket
from longrec.client.types import Events, Options, Prediction
from longrec.errors import ArgumentError, DeadlineError, ServerError, UnavailableError

if TYPE_CHECKING:
    from longrec.client.aio_client import AsyncClient

__all__ = ["AsyncStream"]


class AsyncStream:
    """`Stream` for asyncio: the same promises and errors. Made by `AsyncClient.stream`.

        async with client.stream(k=10) as stream:
            async for prediction in stream.map(requests): ...

    One task may send and read in turn (`map`, `flush`), or one sends and another iterates.
    """

    def __init__(self, client: "AsyncClient", *, k: int, options: Options, max_in_flight: int) -> None:
        self.k, self.max_in_flight, self.timeout_seconds = k, max_in_flight, client.core.timeout_seconds
        self._client, self._options = client, options
        shared = client.core
        self._core = StreamCore(shared.ledger, shared.fleet, number=shared.number, history=shared.history is not None)
        self._news, self._clock = asyncio.Event(), asyncio.Event()
        self._calls: dict[int, AsyncStreamCall] = {}
        self._early: dict[int, list[tuple[str, Request]]] = {}
        self._blocked: dict[int, float] = {}
        self._tries = 0
        self._said = ""
        self._finished = self._closed = False
        self._failure: ServerError | None = None
        self._readers: set[asyncio.Task[None]] = set()
        self._others: set[asyncio.Task[None]] = set()
        self._start(self._others, self._keep())

    @property
    def in_flight(self) -> int:
        """Requests sent whose prediction hasn't been read."""
        return self._core.in_flight

    async def send(self, user: str, events: Events = ()) -> None:
        """As `Stream.send`."""
        query = prepare(user, events, k=self.k, options=self._options)
        try:
            await asyncio.wait_for(self._until(self._may_send), self.timeout_seconds)
        except (asyncio.TimeoutError, TimeoutError):
            raise DeadlineError(
                f"no room for {self.timeout_seconds} s: {self.max_in_flight} requests are in flight, of which "
                f"{len(self._core.results)} are answered and wait to be read; read them in another task, or use map"
            ) from None
        if self._failure is not None:
            raise self._failure
        if self._finished:
            raise ArgumentError("send", "an open stream", got="one that was finished or closed")
        self._core.submit(query, time.monotonic() + self.timeout_seconds)
        self._pump()
        self._clock.set()

    async def map(
        self, requests: "Iterable[tuple[str, Events]] | AsyncIterable[tuple[str, Events]]"
    ) -> AsyncIterator[Prediction]:
        """As `Stream.map`; of an iterable or an async one."""
        async for user, events in _each(requests):
            while self._core.results or self.in_flight >= self.max_in_flight:
                yield await self.__anext__()
            await self.send(user, events)
        while self.in_flight:
            yield await self.__anext__()

    async def flush(self) -> list[Prediction]:
        """As `Stream.flush`."""
        return [await self.__anext__() for _ in range(self.in_flight)]

    def finish(self) -> None:
        """Send no more. Iteration ends with the last prediction."""
        self._finished = True
        self._wake()

    async def close(self) -> None:
        """End the stream; what is in flight is cancelled. Harmless when repeated."""
        idle = not self._core.undelivered and self._failure is None
        self._finished = self._closed = True
        if self._core.undelivered:
            self._break(ServerError("the stream was closed"))
        calls, self._calls = self._calls, {}
        self._wake()
        for call in calls.values():
            call.finish() if idle else call.cancel()
        if self._readers:
            await asyncio.wait(self._readers, timeout=GOODBYE_SECONDS)
        for call in calls.values():
            call.cancel()
        tasks = (*self._readers, *self._others)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __aiter__(self) -> "AsyncStream":
        return self

    async def __anext__(self) -> Prediction:
        await self._until(lambda: bool(self._core.results) or self._ended())
        if not self._core.results:
            if self._failure is not None:
                raise self._failure
            raise StopAsyncIteration
        result = self._core.results.popleft()
        self._news.set()
        if isinstance(result, ServerError):
            raise result
        return result

    async def __aenter__(self) -> "AsyncStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._closed:
                self.finish()
                async for _ in self:
                    pass
        finally:
            await self.close()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()

    def _ended(self) -> bool:
        return self._failure is not None or (self._finished and not self._core.undelivered)

    def _may_send(self) -> bool:
        return self._core.in_flight < self.max_in_flight or self._finished or self._failure is not None

    def _wake(self) -> None:
        self._news.set()
        self._clock.set()

    def _start(self, tasks: set[asyncio.Task[None]], work: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _break(self, error: ServerError) -> None:
        """End everything for one reason; the first stays."""
        if self._failure is None:
            failed = self._core.fail_silently(error)
            self._failure = type(error)(f"{error}; {failed} requests of the stream went unanswered")
        self._wake()

    def _pump(self) -> None:
        """Send what can be sent."""
        if self._failure is not None:
            return
        now = time.monotonic()
        blocked = {server for server, moment in self._blocked.items() if moment > now} if self._blocked else ()
        for server, id, request in self._core.sends(blocked):
            call = self._calls.get(server)
            if call is not None:
                call.send(id, request)
                continue
            if server not in self._early:
                self._blocked.pop(server, None)
                self._early[server] = []
                self._start(self._readers, self._read(server))
            self._early[server].append((id, request))

    async def _read(self, server: int) -> None:
        call: AsyncStreamCall | None = None
        error: ServerError = UnavailableError(f"{self._client.core.fleet.urls[server]}: the server ended the stream")
        try:
            await self._client.run(self._client.core.check(server, min(self.timeout_seconds, CHECK_SECONDS)))
            if self._closed:
                return
            call = self._calls[server] = self._client.transports[server].open()
            for id, request in self._early.pop(server):
                call.send(id, request)
            async for answer in call.answers():
                trouble = self._core.receive(answer)
                if trouble is not None:
                    self._start(self._others, self._resolve(trouble))
                self._tries = 0
                self._pump()
                self._news.set()
        except ServerError as broken:
            error = broken
        if not self._closed:
            self._lose(server, error)
        if call is not None:
            call.cancel()

    def _lose(self, server: int, error: ServerError) -> None:
        self._calls.pop(server, None)
        self._early.pop(server, None)
        self._said = f"; {error}"
        if isinstance(error, BREAKING):
            self._break(error)
            return
        self._client.core.note_down(server)
        retry = self._client.core.retry
        most = min(retry.most_seconds, retry.first_seconds * 2 ** min(self._tries, 16))
        self._tries += 1
        self._blocked[server] = time.monotonic() + random.uniform(most / 2, most)
        self._core.lose(server, error)
        self._pump()
        self._wake()

    async def _resolve(self, ticket: Ticket) -> None:
        """Ask alone, and with the history: a stream's messages carry no status to decide by."""
        try:
            self._core.settle(
                ticket, await self._client.run(self._client.core.deliver(ticket.delivery, ticket.deadline))
            )
        except Exception as error:  # of the caller's history function too
            self._core.give_up(ticket, error)
        self._wake()

    async def _keep(self) -> None:
        """The task that minds the clock: connections to open again, tickets whose time is over."""
        while not self._closed:
            now = time.monotonic()
            moments = [moment for moment in self._blocked.values() if moment > now]
            deadline = self._core.next_deadline
            if deadline is not None:
                moments.append(deadline)
            self._clock.clear()
            try:
                await asyncio.wait_for(self._clock.wait(), max(0.0, min(moments) - now) if moments else None)
            except (asyncio.TimeoutError, TimeoutError):
                self._core.expire(time.monotonic(), self.timeout_seconds, self._said)
                self._pump()
                self._news.set()


async def _each(
    requests: "Iterable[tuple[str, Events]] | AsyncIterable[tuple[str, Events]]",
) -> AsyncIterator[tuple[str, Events]]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request
