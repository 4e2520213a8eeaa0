"""`AsyncStream`: `stream.py`'s twin with asyncio; both stand on `switchboard.py`."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from longrec.client.aio_transport import AsyncStreamCall
from longrec.client.stream_core import Ticket
from longrec.client.switchboard import GOODBYE_SECONDS, Switchboard
from longrec.client.types import Appended, Events, Options, Prediction
from longrec.errors import ServerError

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
        self._client = client
        self._news, self._clock = asyncio.Event(), asyncio.Event()
        self._readers: set[asyncio.Task[None]] = set()
        self._others: set[asyncio.Task[None]] = set()
        self._board: Switchboard[AsyncStreamCall] = Switchboard(
            client.core, k, options, max_in_flight, lambda server: self._start(self._readers, self._read(server))
        )
        self._start(self._others, self._keep())

    @property
    def in_flight(self) -> int:
        """Requests sent whose prediction hasn't been read."""
        return self._board.in_flight

    async def send(self, user: str, events: Events = ()) -> None:
        """As `Stream.send`."""
        query = self._board.query(user, events)
        try:
            await asyncio.wait_for(self._until(lambda: self._board.may_send), self.timeout_seconds)
        except (asyncio.TimeoutError, TimeoutError):
            raise self._board.full("task") from None
        self._board.send(query)
        self._clock.set()

    async def map(
        self, requests: "Iterable[tuple[str, Events]] | AsyncIterable[tuple[str, Events]]"
    ) -> AsyncIterator[Prediction]:
        """As `Stream.map`; of an iterable or an async one."""
        async for user, events in _each(requests):
            while self._board.ready or self.in_flight >= self.max_in_flight:
                yield await self.__anext__()
            await self.send(user, events)
        while self.in_flight:
            yield await self.__anext__()

    async def flush(self) -> list[Prediction]:
        """As `Stream.flush`."""
        return [await self.__anext__() for _ in range(self.in_flight)]

    def finish(self) -> None:
        """Send no more. Iteration ends with the last prediction."""
        self._board.finished = True
        self._wake()

    async def close(self) -> None:
        """End the stream; what is in flight is cancelled. Harmless when repeated."""
        calls, idle = self._board.close()
        self._wake()
        for call in calls:
            call.finish() if idle else call.cancel()
        if self._readers:
            await asyncio.wait(self._readers, timeout=GOODBYE_SECONDS)
        for call in calls:
            call.cancel()
        tasks = (*self._readers, *self._others)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __aiter__(self) -> "AsyncStream":
        return self

    async def __anext__(self) -> Prediction:
        await self._until(lambda: bool(self._board.ready) or self._board.over)
        self._news.set()
        result = self._board.take()
        if result is None:
            raise StopAsyncIteration
        return result

    async def __aenter__(self) -> "AsyncStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._board.closed:
                self.finish()
                async for _ in self:
                    pass
        finally:
            await self.close()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._clock.set()

    def _start(self, tasks: set[asyncio.Task[None]], work: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _read(self, server: int) -> None:
        board, error, call = self._board, None, None
        try:
            await self._client.run(self._client.core.check(server, board.check_seconds))
            if board.closed:
                return
            call = self._client.transports[server].open()
            board.connected(server, call)
            async for answer in call.answers():
                trouble = board.receive(answer)
                if trouble is not None:
                    self._start(self._others, self._resolve(trouble))
                self._news.set()
        except ServerError as broken:
            error = broken
        board.lose(server, error)
        self._wake()
        if call is not None:
            call.cancel()

    async def _resolve(self, ticket: Ticket) -> None:
        result: Prediction | Appended | Exception
        try:
            result = await self._client.run(self._client.core.deliver(ticket.delivery, ticket.deadline))
        except Exception as error:  # of the caller's history function too
            result = error
        self._board.settle(ticket, result)
        self._wake()

    async def _keep(self) -> None:
        """The task that minds the clock."""
        while not self._board.closed:
            self._clock.clear()
            try:
                await asyncio.wait_for(self._clock.wait(), self._board.wait_seconds())
            except (asyncio.TimeoutError, TimeoutError):
                self._board.tick()
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
