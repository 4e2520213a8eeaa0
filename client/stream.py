"""`Stream`: many users' events over one connection, with a bounded number in flight. Tensors are the codec's business,
gRPC the transport's; here is who waits for whom."""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple

from longrec.client.codec import Request, decode_prediction, encode
from longrec.client.transport import Answer, Transport
from longrec.client.types import Events, Prediction
from longrec.errors import ArgumentError, ServerError

__all__ = ["Stream"]


class _Sent(NamedTuple):
    request: Request
    deadline: float  # of time.monotonic()


class Stream:
    """One bidirectional stream for many users. Made by `Client.stream`.

    Send and iterate. A request is in flight from `send` until its prediction is read, and there are never more than
    `max_in_flight`: `send` waits for room then, so neither side can queue without bound. Predictions come in the order
    of their requests.

    One thread may do both: `map` sends and reads in turn, `flush` reads what is in flight. Or one thread sends and
    another iterates; iteration goes on, idle or not, until `finish` was called and the last prediction read.

    - A gap is a `Prediction` whose status is `GAP`: send that user's events again, from its `position` on.
    - A request that the server failed raises `ServerError` from `next()`, with `.user` set; the stream goes on and the
      next `next()` yields the next prediction. (A stream's messages carry no status, so a refused request isn't told
      from a failed one; `Client.recommend` does that.)
    - A broken stream raises `ServerError` with `.user` None, from every later call.

    Leaving its `with` block waits for what is in flight; an exception that leaves it cancels that.

    Args:
        transport: the channel.
        k: items wanted of each prediction.
        max_in_flight: requests sent and not yet read, at most.
        timeout_seconds: longest wait for an answer, and for room in `send`.
    """

    def __init__(self, transport: Transport, *, k: int, max_in_flight: int, timeout_seconds: float) -> None:
        self.k, self.max_in_flight, self.timeout_seconds = k, max_in_flight, timeout_seconds
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)  # a request left the flight, or the stream failed
        self._news = threading.Condition(self._lock)  # an answer, a first request in flight, the end
        self._sent: dict[str, _Sent] = {}  # by request id, oldest first
        self._arrived: deque[tuple[Request, Answer]] = deque()
        self._count = 0
        self._finished = self._closed = False
        self._failure: ServerError | None = None
        self._call = transport.open()
        self._reader = threading.Thread(target=self._read, name="longrec-stream", daemon=True)
        self._reader.start()

    @property
    def in_flight(self) -> int:
        """Requests sent whose prediction hasn't been read."""
        with self._lock:
            return self._in_flight()

    def send(self, user: str, events: Events = ()) -> None:
        """Send a user's new events, oldest first (none: only ask); waits while `max_in_flight` are in flight.

        Raises:
            ArgumentError: an argument doesn't fit, or the stream was finished; nothing was sent.
            ServerError: the stream is broken, or there was no room for `timeout_seconds`; nothing was sent.
        """
        request = encode(user, events, k=self.k)
        with self._lock:
            if not self._room.wait_for(self._may_send, self.timeout_seconds):
                raise ServerError(
                    f"no room for {self.timeout_seconds} s: {self.max_in_flight} requests are in flight, of which "
                    f"{len(self._arrived)} are answered and wait to be read; read them in another thread, or use map"
                )
            if self._failure is not None:
                raise self._failure
            if self._finished:
                raise ArgumentError("send", "an open stream", got="one that was finished or closed")
            self._count += 1
            id = str(self._count)
            self._sent[id] = _Sent(request, time.monotonic() + self.timeout_seconds)
            self._call.send(id, request)  # under the lock: the order on the wire is the order of ids
            if len(self._sent) == 1:
                self._news.notify_all()  # who waits for an answer has a deadline from now on

    def map(self, requests: Iterable[tuple[str, Events]]) -> Iterator[Prediction]:
        """Send each (user, events) and yield predictions as they come, until all have been; in this thread alone.

        Raises:
            ArgumentError, ServerError: as `send` and iteration; a generator that raised can't go on.
        """
        for user, events in requests:
            while self._arrived or self.in_flight >= self.max_in_flight:
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
            if not self._finished:
                self._finished = True
                self._call.finish()
                self._wake()

    def close(self) -> None:
        """End the stream; what is in flight is cancelled. Harmless when repeated."""
        self.finish()
        self._closed = True
        with self._lock:
            if self._sent:
                self._fail(ServerError("the stream was closed"))
        if self._failure is None:
            self._reader.join(self.timeout_seconds)  # the server ends it
        self._call.cancel()
        self._reader.join()

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Prediction:
        with self._lock:
            while not self._arrived:
                if self._failure is not None:
                    raise self._failure
                if self._finished and not self._sent:
                    raise StopIteration
                wait = next(iter(self._sent.values())).deadline - time.monotonic() if self._sent else None
                if wait is None or wait > 0:
                    self._news.wait(wait)
                else:
                    self._fail(ServerError(f"no answer for {self.timeout_seconds} s"))
                    self._call.cancel()
            request, answer = self._arrived.popleft()
            self._room.notify()
        try:
            if answer.error:
                raise ServerError(f"the server failed one request of the stream: {answer.error}")
            return decode_prediction(request, answer.outputs)
        except ServerError as error:
            error.user = request.user
            raise

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

    def _in_flight(self) -> int:
        return len(self._sent) + len(self._arrived)

    def _may_send(self) -> bool:
        return self._in_flight() < self.max_in_flight or self._finished or self._failure is not None

    def _fail(self, failure: ServerError) -> None:
        """Break the stream, under the lock; the first reason stays."""
        if self._failure is None:
            self._failure = type(failure)(f"{failure}; {len(self._sent)} requests of the stream went unanswered")
            self._sent.clear()
        self._wake()

    def _wake(self) -> None:
        self._news.notify_all()
        self._room.notify_all()

    def _read(self) -> None:
        failure = ServerError("the server ended the stream")
        try:
            for answer in self._call.answers():
                with self._lock:
                    sent = self._sent.pop(answer.id, None)
                    if sent is None:
                        failure = ServerError(f"the server answered request {answer.id!r}, which isn't in flight")
                        break
                    self._arrived.append((sent.request, answer))
                    self._news.notify()
        except ServerError as error:
            failure = error
        with self._lock:
            if self._sent or not self._finished:
                self._fail(failure)
            self._wake()
        self._call.cancel()
