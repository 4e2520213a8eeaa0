"""`Stream`: many users' events over one connection a server, with a bounded number in flight. Which request goes where
is the core's business; here is who waits for whom, with threads."""

import random
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Final

from longrec.client.codec import Request, prepare
from longrec.client.stream_core import StreamCore, Ticket
from longrec.client.transport import StreamCall
from longrec.client.types import Events, Options, Prediction
from longrec.errors import AccessError, ArgumentError, DeadlineError, ProtocolError, ServerError, UnavailableError

if TYPE_CHECKING:
    from longrec.client.client import Client

__all__ = ["BREAKING", "CHECK_SECONDS", "Stream"]

BREAKING: Final = (ProtocolError, AccessError)  # what connecting again can't mend
RESOLVERS: Final = 4  # threads that ask again alone, where a stream's answer doesn't say enough
CHECK_SECONDS: Final = 5.0  # for a server to say what it speaks, before the next attempt
GOODBYE_SECONDS: Final = 5.0  # for the server to end a stream that was half-closed


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
        self._client, self._options = client, options
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)  # a request left the flight, or the stream failed
        self._news = threading.Condition(self._lock)  # a result, the end
        self._clock = threading.Condition(self._lock)  # the keeper's next moment moved forward
        shared = client.core
        self._core = StreamCore(shared.ledger, shared.fleet, number=shared.number, history=shared.history is not None)
        self._calls: dict[int, StreamCall] = {}
        self._early: dict[int, list[tuple[str, Request]]] = {}  # for servers that are asked first what they speak
        self._readers: list[threading.Thread] = []
        self._blocked: dict[int, float] = {}  # servers that aren't called before a moment
        self._tries = 0
        self._said = ""  # why the latest connection broke
        self._finished = self._closed = False
        self._failure: ServerError | None = None
        self._resolvers = ThreadPoolExecutor(RESOLVERS, "longrec-stream-ask")
        self._keeper = threading.Thread(target=self._keep, name="longrec-stream-keeper", daemon=True)
        self._keeper.start()

    @property
    def in_flight(self) -> int:
        """Requests sent whose prediction hasn't been read."""
        with self._lock:
            return self._core.in_flight

    def send(self, user: str, events: Events = ()) -> None:
        """Send a user's new events, oldest first (none: only ask); waits while `max_in_flight` are in flight.

        Raises:
            ArgumentError: an argument doesn't fit, or the stream was finished; nothing was sent.
            ServerError: the stream is broken, or there was no room for `timeout_seconds`; nothing was sent.
        """
        query = prepare(user, events, k=self.k, options=self._options)
        with self._lock:
            if not self._room.wait_for(self._may_send, self.timeout_seconds):
                raise DeadlineError(
                    f"no room for {self.timeout_seconds} s: {self.max_in_flight} requests are in flight, of which "
                    f"{len(self._core.results)} are answered and wait to be read; read them in another thread, or use "
                    "map"
                )
            if self._failure is not None:
                raise self._failure
            if self._finished:
                raise ArgumentError("send", "an open stream", got="one that was finished or closed")
            idle = self._core.next_deadline is None
            self._core.submit(query, time.monotonic() + self.timeout_seconds)
            self._pump()
            if idle:
                self._clock.notify()

    def map(self, requests: Iterable[tuple[str, Events]]) -> Iterator[Prediction]:
        """Send each (user, events) and yield predictions as they come, until all have been; in this thread alone.

        Raises:
            ArgumentError, ServerError: as `send` and iteration; a generator that raised can't go on.
        """
        for user, events in requests:
            while self._core.results or self.in_flight >= self.max_in_flight:
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
            self._finished = True
            self._wake()

    def close(self) -> None:
        """End the stream; what is in flight is cancelled. Harmless when repeated."""
        with self._lock:
            idle = not self._core.undelivered and self._failure is None
            self._finished = self._closed = True
            if self._core.undelivered:
                self._break(ServerError("the stream was closed"))
            calls, self._calls = self._calls, {}
            self._wake()
        for call in calls.values():
            call.finish() if idle else call.cancel()
        until = time.monotonic() + GOODBYE_SECONDS
        for reader in self._readers:
            reader.join(max(0.0, until - time.monotonic()))
        for call in calls.values():
            call.cancel()
        self._resolvers.shutdown(wait=False, cancel_futures=True)
        for thread in (*self._readers, self._keeper):
            thread.join()

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Prediction:
        with self._lock:
            while not self._core.results:
                if self._failure is not None:
                    raise self._failure
                if self._finished and not self._core.undelivered:
                    raise StopIteration
                self._news.wait()
            result = self._core.results.popleft()
            self._room.notify()
        if isinstance(result, ServerError):
            raise result
        return result

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None and not self._closed:
                self.finish()
                for _ in self:
                    pass
        finally:
            self.close()

    def _may_send(self) -> bool:
        return self._core.in_flight < self.max_in_flight or self._finished or self._failure is not None

    def _wake(self) -> None:
        for condition in (self._news, self._room, self._clock):
            condition.notify_all()

    def _break(self, error: ServerError) -> None:
        """End everything for one reason; the first stays."""
        if self._failure is None:
            failed = self._core.fail_silently(error)
            self._failure = type(error)(f"{error}; {failed} requests of the stream went unanswered")
        self._wake()

    def _pump(self) -> None:
        """Send what can be sent, under the lock: the order on the wire is the order of ids."""
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
                reader = threading.Thread(target=self._read, args=(server,), name="longrec-stream", daemon=True)
                self._readers = [thread for thread in self._readers if thread.is_alive()] + [reader]
                reader.start()
            self._early[server].append((id, request))

    def _read(self, server: int) -> None:
        call: StreamCall | None = None
        error: ServerError = UnavailableError(f"{self._client.core.fleet.urls[server]}: the server ended the stream")
        try:
            self._client.run(self._client.core.check(server, min(self.timeout_seconds, CHECK_SECONDS)))
            with self._lock:
                if self._closed:
                    return
                call = self._calls[server] = self._client.transports[server].open()
                for id, request in self._early.pop(server):
                    call.send(id, request)
            for answer in call.answers():
                with self._lock:
                    if self._closed:
                        return
                    ready = len(self._core.results)
                    trouble = self._core.receive(answer)
                    if trouble is not None:
                        self._resolvers.submit(self._resolve, trouble)
                    self._tries = 0
                    self._pump()
                    if len(self._core.results) > ready or not self._core.undelivered:
                        self._news.notify_all()
        except ServerError as broken:
            error = broken
        with self._lock:
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

    def _resolve(self, ticket: Ticket) -> None:
        """Ask alone, and with the history: a stream's messages carry no status to decide by."""
        try:
            result = self._client.run(self._client.core.deliver(ticket.delivery, ticket.deadline))
        except Exception as error:  # of the caller's history function too
            with self._lock:
                self._core.give_up(ticket, error)
                self._wake()
            return
        with self._lock:
            self._core.settle(ticket, result)
            self._wake()

    def _keep(self) -> None:
        """The thread that minds the clock: connections to open again, tickets whose time is over."""
        with self._lock:
            while not self._closed:
                now = time.monotonic()
                moments = [moment for moment in self._blocked.values() if moment > now]
                deadline = self._core.next_deadline
                if deadline is not None:
                    moments.append(deadline)
                self._clock.wait(max(0.0, min(moments) - now) if moments else None)
                if self._closed:
                    return
                ready = len(self._core.results)
                self._core.expire(time.monotonic(), self.timeout_seconds, self._said)
                self._pump()
                if len(self._core.results) > ready:
                    self._wake()
