"""`Stream`: many users' events over one connection a server, with a bounded number in flight. What is done is the
switchboard's business; here is who waits for whom, with threads."""

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Final

from longrec.client.stream_core import Ticket
from longrec.client.switchboard import GOODBYE_SECONDS, Switchboard
from longrec.client.transport import StreamCall
from longrec.client.types import Appended, Events, Options, Prediction
from longrec.errors import ServerError

if TYPE_CHECKING:
    from longrec.client.client import Client

__all__ = ["Stream"]

RESOLVERS: Final = 4  # threads that ask again alone, where a stream's answer doesn't say enough


class Stream:
    """One stream for many users, exactly once. Made by `Client.stream`.

    Send and iterate. A request is in flight from `send` until its prediction is read, and there are never more than
    `max_in_flight`: `send` waits for room then, so neither side can queue without bound. A user's predictions come in
    the order of that user's requests.

    One thread may do both: `map` sends and reads in turn, `flush` reads what is in flight. Or one thread sends and
    another iterates; iteration goes on, idle or not, until `finish` was called and the last prediction read.

    - A connection that breaks is opened again, and what was in flight is sent again: by position, so that nothing is
      appended twice. A prediction that comes late may know later events of its user; `position` says which.
    - Where events carry positions of the caller's own, a gap that the client can't fill is a `Prediction` whose status
      is `GAP`: send that user's events again, from its `position` on.
    - A request that failed for good raises `ServerError` from `next()`, with `.user` set; the stream goes on and the
      next `next()` yields the next prediction.
    - A stream that can't go on (wrong credentials, no Triton server) raises with `.user` None, from every later call.

    Leaving its `with` block waits for what is in flight; an exception that leaves it cancels that.

    Args:
        client: whose servers and log book it uses.
        k, options: of each prediction.
        max_in_flight: requests sent and not yet read, at most.
    """

    def __init__(self, client: "Client", *, k: int, options: Options, max_in_flight: int) -> None:
        self.k, self.max_in_flight, self.timeout_seconds = k, max_in_flight, client.core.timeout_seconds
        self._client = client
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)  # a request left the flight, or the stream failed
        self._news = threading.Condition(self._lock)  # a result, the end
        self._clock = threading.Condition(self._lock)  # the keeper's next moment moved forward
        self._board: Switchboard[StreamCall] = Switchboard(client.core, k, options, max_in_flight, self._connect)
        self._readers: list[threading.Thread] = []
        self._resolvers = ThreadPoolExecutor(RESOLVERS, "longrec-stream-ask")
        self._keeper = threading.Thread(target=self._keep, name="longrec-stream-keeper", daemon=True)
        self._keeper.start()

    @property
    def in_flight(self) -> int:
        """Requests sent whose prediction hasn't been read."""
        with self._lock:
            return self._board.in_flight

    def send(self, user: str, events: Events = ()) -> None:
        """Send a user's new events, oldest first (none: only ask); waits while `max_in_flight` are in flight.

        Raises:
            ArgumentError: an argument doesn't fit, or the stream was finished; nothing was sent.
            ServerError: the stream is broken, or there was no room for `timeout_seconds`; nothing was sent.
        """
        query = self._board.query(user, events)
        with self._lock:
            if not self._room.wait_for(lambda: self._board.may_send, self.timeout_seconds):
                raise self._board.full("thread")
            idle = self._board.wait_seconds() is None
            self._board.send(query)
            if idle:
                self._clock.notify()

    def map(self, requests: Iterable[tuple[str, Events]]) -> Iterator[Prediction]:
        """Send each (user, events) and yield predictions as they come, until all have been; in this thread alone.

        Raises:
            ArgumentError, ServerError: as `send` and iteration; a generator that raised can't go on.
        """
        for user, events in requests:
            while self._board.ready or self.in_flight >= self.max_in_flight:
                yield next(self)
            self.send(user, events)
        while self.in_flight:
            yield next(self)

    def flush(self) -> list[Prediction]:
        """Wait for what is in flight and read it; for the thread that sends, when no other reads.

        Raises:
            ServerError: as iteration; what came before it in this call is lost to the caller.
        """
        return [next(self) for _ in range(self.in_flight)]

    def finish(self) -> None:
        """Send no more. Iteration ends with the last prediction."""
        with self._lock:
            self._board.finished = True
            self._wake()

    def close(self) -> None:
        """End the stream; what is in flight is cancelled. Harmless when repeated."""
        with self._lock:
            calls, idle = self._board.close()
            self._wake()
        for call in calls:
            call.finish() if idle else call.cancel()
        until = time.monotonic() + GOODBYE_SECONDS
        for reader in self._readers:
            reader.join(max(0.0, until - time.monotonic()))
        for call in calls:
            call.cancel()
        self._resolvers.shutdown(wait=False, cancel_futures=True)
        for thread in (*self._readers, self._keeper):
            thread.join()

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Prediction:
        with self._lock:
            self._news.wait_for(lambda: self._board.ready or self._board.over)
            self._room.notify()
            result = self._board.take()
        if result is None:
            raise StopIteration
        return result

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None and not self._board.closed:
                self.finish()
                for _ in self:
                    pass
        finally:
            self.close()

    def _wake(self) -> None:
        for condition in (self._news, self._room, self._clock):
            condition.notify_all()

    def _connect(self, server: int) -> None:
        reader = threading.Thread(target=self._read, args=(server,), name="longrec-stream", daemon=True)
        self._readers = [thread for thread in self._readers if thread.is_alive()] + [reader]
        reader.start()

    def _read(self, server: int) -> None:
        board, error, call = self._board, None, None
        try:
            self._client.run(self._client.core.check(server, board.check_seconds))
            with self._lock:
                if board.closed:
                    return
                call = self._client.transports[server].open()
                board.connected(server, call)
            for answer in call.answers():
                with self._lock:
                    if board.closed:
                        return
                    ready = board.ready
                    trouble = board.receive(answer)
                    if trouble is not None:
                        self._resolvers.submit(self._resolve, trouble)
                    if board.ready > ready or board.over:
                        self._news.notify_all()
        except ServerError as broken:
            error = broken
        with self._lock:
            board.lose(server, error)
            self._wake()
        if call is not None:
            call.cancel()

    def _resolve(self, ticket: Ticket) -> None:
        result: Prediction | Appended | Exception
        try:
            result = self._client.run(self._client.core.deliver(ticket.delivery, ticket.deadline))
        except Exception as error:  # of the caller's history function too
            result = error
        with self._lock:
            self._board.settle(ticket, result)
            self._wake()

    def _keep(self) -> None:
        """The thread that minds the clock."""
        with self._lock:
            while not self._board.closed:
                self._clock.wait(self._board.wait_seconds())
                if self._board.closed:
                    return
                ready = self._board.ready
                self._board.tick()
                if self._board.ready > ready:
                    self._wake()
