"""A stream's bookkeeping without I/O: which request waits where, whose turn a result is. `switchboard.py`
knows the connections.

A ticket is a request that the caller sent. Tickets of a user are delivered in the order in which they were sent; those
of different users as their answers come. What was on a server that went away is sent again, to it or to another.
"""

from collections import deque
from collections.abc import Container
from typing import TypeAlias

from longrec.client.codec import Query, Request
from longrec.client.delivery import Delivery, Next
from longrec.client.fleet import Fleet
from longrec.client.ledger import Ledger
from longrec.client.transport import Answer
from longrec.client.types import Appended, Prediction
from longrec.errors import DeadlineError, MissingModelError, ProtocolError, ServerError

__all__ = ["Result", "StreamCore", "Ticket"]

Result: TypeAlias = Prediction | ServerError


class Ticket:
    """One request on its way.

    Attributes:
        delivery: what it sends.
        deadline: when it fails, by `time.monotonic()`.
        result: what came of it.
    """

    __slots__ = ("deadline", "delivery", "id", "result", "server")

    def __init__(self, delivery: Delivery, deadline: float) -> None:
        self.delivery, self.deadline = delivery, deadline
        self.id, self.server = 0, -1
        self.result: Result | None = None


class StreamCore:
    """The tickets of one stream. The caller's lock guards every call.

    Args:
        ledger, number: of the client.
        fleet: which servers there are.
        history: whether the caller has a history to be asked for.
    """

    def __init__(self, ledger: Ledger, fleet: Fleet, *, number: bool, history: bool) -> None:
        self._ledger, self._fleet, self._number, self._history = ledger, fleet, number, history
        self._lanes: dict[str, deque[Ticket]] = {}
        self._open: dict[Ticket, None] = {}  # without a result, oldest first
        self._unsent: deque[Ticket] = deque()
        self._sent: dict[str, Ticket] = {}  # by the id of the request on the wire
        self._count = 0
        self.results: deque[Result] = deque()
        self.undelivered = 0  # tickets whose result isn't in `results` yet

    @property
    def in_flight(self) -> int:
        """Tickets whose result hasn't been read."""
        return self.undelivered + len(self.results)

    @property
    def next_deadline(self) -> float | None:
        """When the oldest ticket fails; None: there is none."""
        return next(iter(self._open)).deadline if self._open else None

    def submit(self, query: Query, deadline: float) -> None:
        """Take a request."""
        ticket = Ticket(Delivery(self._ledger, query, number=self._number), deadline)
        self._lanes.setdefault(query.user, deque()).append(ticket)
        self._open[ticket] = None
        self._unsent.append(ticket)
        self.undelivered += 1

    def sends(self, blocked: Container[int]) -> list[tuple[int, str, Request]]:
        """(server, id, request) of what is to be sent now; what belongs to a blocked server stays."""
        out, rest = [], []
        while self._unsent:
            ticket = self._unsent.popleft()
            if ticket.result is not None:
                continue
            server = self._fleet.pick(ticket.delivery.user)
            if server in blocked:
                rest.append(ticket)
                continue
            self._count += 1
            ticket.id, ticket.server = self._count, server
            self._sent[str(self._count)] = ticket
            out.append((server, str(self._count), ticket.delivery.request()))
        self._unsent.extend(rest)
        return out

    def receive(self, answer: Answer) -> Ticket | None:
        """Take an answer; a ticket that is to be resolved otherwise: its request failed, or it needs the history.

        Raises:
            ProtocolError: the answer is to nothing that was sent.
        """
        ticket = self._sent.pop(answer.id, None)
        if ticket is None:
            if answer.id.isdecimal() and 0 < int(answer.id) <= self._count:
                return None  # given up meanwhile
            raise ProtocolError(f"the server answered request {answer.id!r}, which isn't in flight")
        if ticket.result is not None:
            return None
        if answer.error:
            if ticket.delivery.repeatable:
                return ticket
            self.settle(ticket, ServerError(f"the server failed one request of the stream: {answer.error}"))
            return None
        try:
            outcome = ticket.delivery.receive(answer.outputs)
            if outcome is Next.HISTORY and not self._history:
                outcome = ticket.delivery.supply(None)
        except ServerError as error:
            self.settle(ticket, error)
            return None
        if outcome is Next.SEND:
            self._unsent.append(ticket)
        elif isinstance(outcome, Next):
            return ticket
        else:
            self.settle(ticket, outcome)
        return None

    def lose(self, server: int, error: ServerError) -> None:
        """A server's connection is gone: what was on it is sent again, or fails where that might append twice, or
        can't help as the server lacks the model."""
        lost = [(id, ticket) for id, ticket in self._sent.items() if ticket.server == server]
        for id, _ in lost:
            del self._sent[id]
        hopeless = isinstance(error, MissingModelError)
        for _, ticket in reversed(lost):
            if ticket.delivery.repeatable and not hopeless:
                self._unsent.appendleft(ticket)
        for _, ticket in lost:
            if hopeless or not ticket.delivery.repeatable:
                self.settle(ticket, type(error)(str(error)))

    def expire(self, now: float, seconds: float, why: str) -> None:
        """Fail the tickets whose deadline has come."""
        while self._open:
            ticket = next(iter(self._open))
            if ticket.deadline > now:
                return
            self.settle(ticket, DeadlineError(f"no answer for {seconds} s{why}"))

    def fail_all(self, error: ServerError) -> int:
        """Fail every ticket; how many."""
        failed = list(self._open)
        for ticket in failed:
            self.settle(ticket, type(error)(str(error)))
        return len(failed)

    def fail_silently(self, error: ServerError) -> int:
        """`fail_all`, without a result for each: one error tells of them all."""
        results = len(self.results)
        failed = self.fail_all(error)
        while len(self.results) > results:
            self.results.pop()
        return failed

    def give_up(self, ticket: Ticket, error: Exception) -> None:
        """A ticket failed: at the server, or in the caller's history."""
        user = ticket.delivery.user
        self.settle(ticket, error if isinstance(error, ServerError) else ServerError(f"user {user!r}: {error}"))

    def settle(self, ticket: Ticket, result: Prediction | Appended | ServerError) -> None:
        """A ticket's end; the first counts."""
        if ticket.result is not None:
            return
        assert not isinstance(result, Appended), "a stream's requests ask for items"
        if isinstance(result, ServerError):
            ticket.delivery.fail(result)
            result.user = ticket.delivery.user
        ticket.result = result
        del self._open[ticket]
        lane = self._lanes[ticket.delivery.user]
        while lane and (ready := lane[0].result) is not None:
            lane.popleft()
            self.results.append(ready)
            self.undelivered -= 1
        if not lane:
            del self._lanes[ticket.delivery.user]
