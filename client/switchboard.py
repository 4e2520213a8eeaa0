"""A stream's decisions without I/O: connections to servers, which break and come back, over `stream_core.py`'s tickets.
`stream.py` and `aio_stream.py` move the bytes and do the waiting."""

import random
import time
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from longrec.client.codec import Query, Request
from longrec.client.core import Core
from longrec.client.stream_core import StreamCore, Ticket
from longrec.client.transport import Answer
from longrec.client.types import Appended, Events, Options, Prediction
from longrec.errors import AccessError, ArgumentError, DeadlineError, ProtocolError, ServerError, UnavailableError

__all__ = ["GOODBYE_SECONDS", "Switchboard"]

BREAKING: Final = (ProtocolError, AccessError)  # what connecting again can't mend
CHECK_SECONDS: Final = 5.0  # for a server to say what it speaks, before the next attempt
GOODBYE_SECONDS: Final = 5.0  # for the server to end a stream that was half-closed


class Line(Protocol):
    """What both kinds of stream calls can do."""

    def send(self, id: str, request: Request) -> None:
        """Queue a request."""


LineT = TypeVar("LineT", bound=Line)


class Switchboard(Generic[LineT]):
    """The state of one stream. The caller's lock guards every call.

    Args:
        core: of the client.
        k, options, max_in_flight: of the stream.
        connect: begins to connect a server: `check_seconds` for the core's check, then `connected` or `lose`.

    Attributes:
        failure: why the stream can't go on.
        finished: nothing more is sent.
        closed: nothing more is received.
    """

    def __init__(
        self, core: Core, k: int, options: Options, max_in_flight: int, connect: Callable[[int], None]
    ) -> None:
        self.max_in_flight, self.timeout_seconds = max_in_flight, core.timeout_seconds
        self.check_seconds = min(core.timeout_seconds, CHECK_SECONDS)
        self.failure: ServerError | None = None
        self.finished = self.closed = False
        self._core, self._k, self._options, self._connect = core, k, options, connect
        self._tickets = StreamCore(core.ledger, core.fleet, number=core.number, history=core.history is not None)
        self._lines: dict[int, LineT] = {}
        self._early: dict[int, list[tuple[str, Request]]] = {}  # for servers that aren't connected yet
        self._blocked: dict[int, float] = {}  # servers that aren't called before a moment
        self._tries = 0
        self._said = ""  # why the latest connection broke

    @property
    def in_flight(self) -> int:
        """Requests sent whose prediction hasn't been read."""
        return self._tickets.in_flight

    @property
    def ready(self) -> int:
        """Results that wait to be read."""
        return len(self._tickets.results)

    @property
    def over(self) -> bool:
        """Whether no result will come any more."""
        return self.failure is not None or (self.finished and not self._tickets.undelivered)

    @property
    def may_send(self) -> bool:
        """Whether `send` needn't wait."""
        return self.in_flight < self.max_in_flight or self.finished or self.failure is not None

    def full(self, reader: str) -> DeadlineError:
        """There was no room in time."""
        return DeadlineError(
            f"no room for {self.timeout_seconds} s: {self.max_in_flight} requests are in flight, of which "
            f"{self.ready} are answered and wait to be read; read them in another {reader}, or use map"
        )

    def query(self, user: str, events: Events) -> Query:
        """A request, checked before anybody waits; needs no lock.

        Raises:
            ArgumentError: an argument doesn't fit.
        """
        return self._core.prepare(user, events, k=self._k, options=self._options)

    def send(self, query: Query) -> None:
        """Take a request and send what can be sent.

        Raises:
            ArgumentError, ServerError: as `Stream.send`.
        """
        if self.failure is not None:
            raise self.failure
        if self.finished:
            raise ArgumentError("send", "an open stream", got="one that was finished or closed")
        self._tickets.submit(query, time.monotonic() + self.timeout_seconds)
        self._pump()

    def take(self) -> Prediction | None:
        """The next result; None: the stream has ended.

        Raises:
            ServerError: the result is one, or the stream is broken.
        """
        if not self._tickets.results:
            if self.failure is not None:
                raise self.failure
            return None
        result = self._tickets.results.popleft()
        if isinstance(result, ServerError):
            raise result
        return result

    def connected(self, server: int, line: LineT) -> None:
        """A server is there; what waits for it is sent."""
        self._lines[server] = line
        for id, request in self._early.pop(server):
            line.send(id, request)

    def receive(self, answer: Answer) -> Ticket | None:
        """Take an answer; a ticket that is to be asked alone (`deliver`), as a stream's messages carry no status."""
        trouble = self._tickets.receive(answer)
        self._tries = 0
        self._pump()
        return trouble

    def lose(self, server: int, error: ServerError | None) -> None:
        """A server's connection broke, or didn't come about; None: the server ended it."""
        if self.closed:
            return
        error = error or UnavailableError(f"{self._core.fleet.urls[server]}: the server ended the stream")
        self._lines.pop(server, None)
        self._early.pop(server, None)
        self._said = f"; {error}"
        if isinstance(error, BREAKING):
            self._break(error)
            return
        self._core.note_down(server)
        retry = self._core.retry
        most = min(retry.most_seconds, retry.first_seconds * 2 ** min(self._tries, 16))
        self._tries += 1
        self._blocked[server] = time.monotonic() + random.uniform(most / 2, most)
        self._tickets.lose(server, error)
        self._pump()

    def settle(self, ticket: Ticket, result: Prediction | Appended | Exception) -> None:
        """What came of a ticket that was asked alone; an exception may be the caller's history's."""
        if isinstance(result, Exception):
            self._tickets.give_up(ticket, result)
        else:
            self._tickets.settle(ticket, result)

    def wait_seconds(self) -> float | None:
        """Until `tick` has something to do; None: it has nothing."""
        now = time.monotonic()
        moments = [moment for moment in self._blocked.values() if moment > now]
        if self._tickets.next_deadline is not None:
            moments.append(self._tickets.next_deadline)
        return max(0.0, min(moments) - now) if moments else None

    def tick(self) -> None:
        """Mind the clock: connections to open again, tickets whose time is over."""
        self._tickets.expire(time.monotonic(), self.timeout_seconds, self._said)
        self._pump()

    def close(self) -> tuple[list[LineT], bool]:
        """End it: the connections, and whether they may end in peace as nothing is in flight."""
        idle = not self._tickets.undelivered and self.failure is None
        self.finished = self.closed = True
        if self._tickets.undelivered:
            self._break(ServerError("the stream was closed"))
        lines, self._lines = list(self._lines.values()), {}
        return lines, idle

    def _break(self, error: ServerError) -> None:
        """End everything for one reason; the first stays."""
        if self.failure is None:
            failed = self._tickets.fail_silently(error)
            self.failure = type(error)(f"{error}; {failed} requests of the stream went unanswered")

    def _pump(self) -> None:
        """Send what can be sent: the order on the wire is the order of ids."""
        if self.failure is not None:
            return
        now = time.monotonic()
        blocked = {server for server, moment in self._blocked.items() if moment > now} if self._blocked else ()
        for server, id, request in self._tickets.sends(blocked):
            line = self._lines.get(server)
            if line is not None:
                line.send(id, request)
                continue
            if server not in self._early:
                self._blocked.pop(server, None)
                self._early[server] = []
                self._connect(server)
            self._early[server].append((id, request))
