"""Exactly once, without I/O: what is sent until the server's log has a call's events and its answer is there.

    delivery = Delivery(ledger, query)
    outcome = Next.SEND
    while isinstance(outcome, Next):
        if outcome is Next.SEND:
            outcome = delivery.receive(send(delivery.request()))  # send: moves bytes; may repeat a request
        else:
            outcome = delivery.supply(history(user))

and `delivery.fail(error)` once nothing more is tried.

- Events without positions are numbered here. The first request about a user asks for the log's length alone.
- A gap, or a log that got shorter, is filled from the ledger's events, else from the caller's history.
- What was given up without an answer stays in the ledger and goes along with the user's next request.

Requests of one user may be under way at the same time and arrive in any order: a gap between them fills itself.
"""

import enum
from collections.abc import Mapping
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from longrec.client.codec import (
    NO_EVENTS,
    POSITION,
    Query,
    Request,
    Tensor,
    decode_appended,
    decode_prediction,
    decode_state,
    event_rows,
    stack_rows,
)
from longrec.client.ledger import Book, Ledger
from longrec.client.types import Appended, Events, Prediction
from longrec.errors import ArgumentError, ConflictError, GapError, RejectedError, ServerError
from longrec.protocol import UNCHECKED_POSITION, Status

__all__ = ["MOST_ROWS", "REFUSED", "Delivery", "Next", "Outcome"]

MOST_ROWS: Final = 2048  # of a request: the server's default of max_events_per_request
MOST_TURNS: Final = 32  # answers in a row that bring the log no further
REFUSED: Final = (RejectedError, ArgumentError)  # the events certainly weren't written, and are the caller's again


class Next(enum.Enum):
    """What to do about a delivery that has no outcome yet."""

    SEND = "send request() once more"
    HISTORY = "call supply()"


Outcome: TypeAlias = Prediction | Appended | Next


class Delivery:
    """One call on its way.

    Args:
        ledger: of the client.
        query: what is asked.
        number: whether events without positions get one; False: they are appended unchecked, wherever the log ends.

    Attributes:
        repeatable: whether sending a request twice does what sending it once does.
    """

    __slots__ = (
        "_answer",
        "_base",
        "_book",
        "_done",
        "_floor",
        "_ledger",
        "_missing",
        "_numbered",
        "_part",
        "_rows",
        "_seen",
        "_start",
        "_supplied",
        "_turns",
        "query",
        "repeatable",
    )

    def _begin(self, ledger: Ledger, query: Query, book: Book) -> None:
        self.query, self.repeatable = query, True
        self._ledger, self._book, self._rows = ledger, book, query.rows
        self._base: int | None = None  # position of the first event, once known
        self._start: int | None = None  # where the server's log ended, if that isn't where the next request begins
        self._floor = 0  # without events: the length that the log must have
        self._seen = 0  # what was acknowledged when the latest request was made
        self._turns = 0
        self._part = self._done = self._numbered = False
        self._missing: tuple[int, int] | None = None
        self._answer: Mapping[str, Tensor] = {}  # that said so
        self._supplied: NDArray[np.int64] = NO_EVENTS

    def __init__(self, ledger: Ledger, query: Query, *, number: bool = True) -> None:
        with ledger.lock:
            book = ledger.open(query.user)
            self._begin(ledger, query, book)
            if not len(self._rows):
                return
            if self._rows[0, POSITION] != UNCHECKED_POSITION:
                self._base = int(self._rows[0, POSITION])
                book.hold(self._base, self._rows.tolist())
            elif not number:
                self.repeatable = False
            else:
                self._numbered = True
                if book.acknowledged is None:
                    book.waiting.append(self._number)
                else:
                    self._number(book.next)

    @classmethod
    def resume(cls, ledger: Ledger, query: Query, book: Book, *, seen: int, number: bool) -> "Delivery":
        """Go on alone with a call whose request went out together with others.

        Args:
            ledger, query: as the class's; rows that were numbered have their positions.
            book: the user's, open.
            seen: what it had as acknowledged when the request went out.
            number: whether the client gave the positions.
        """
        self = cls.__new__(cls)
        self._begin(ledger, query, book)
        self._numbered, self._seen = number, seen
        if not len(query.rows):
            self._floor = seen
        elif query.rows[0, POSITION] == UNCHECKED_POSITION:
            self.repeatable = False
        else:
            self._base = int(query.rows[0, POSITION])
        return self

    @property
    def user(self) -> str:
        """Whose call it is."""
        return self.query.user

    def request(self) -> Request:
        """What to send now."""
        query, rows = self.query, self._rows
        if not self.repeatable:
            return query.request(rows)
        with self._ledger.lock:
            book = self._book
            self._seen = book.acknowledged or 0
            self._part = self._base is None and (self._numbered or bool(book.owed))
            if self._part:
                return query.state_request()
            if self._base is None:
                self._floor = max(self._floor, self._seen if book.failed_from is None else book.next)
            first = self._first
            start = first if self._start is None else self._start
            if book.failed_from is not None:
                start = min(start, book.failed_from)
            if start > first:
                rows = rows[start - first :]
            elif start < first and (before := self._find(start, first)) is not None:
                rows = stack_rows((before, rows))
        self._part = len(rows) > MOST_ROWS
        return query.state_request(rows[:MOST_ROWS]) if self._part else query.request(rows)

    def receive(self, outputs: Mapping[str, Tensor]) -> Outcome:
        """Take an answer: the call's outcome, or what to do next.

        Raises:
            GapError, ConflictError, ProtocolError: there is no outcome; the delivery has failed.
        """
        try:
            return self._receive(outputs)
        except ServerError as error:
            self.fail(error)
            raise

    def supply(self, history: Events | None) -> Outcome:
        """Take the user's past as the caller has it, whole or from some position on; None: there is none.

        Raises:
            ArgumentError: it isn't events. GapError: it lacks what is missing.
        """
        assert self._missing is not None, "supply() without Next.HISTORY"
        start, stop = self._missing
        try:
            rows = NO_EVENTS if history is None else event_rows(history, self.query.catalogue, self._ledger.schema)
            if len(rows) and rows[0, POSITION] == UNCHECKED_POSITION:
                rows = np.column_stack((np.arange(len(rows)), rows[:, 1:]))
            if len(rows) and rows[0, POSITION] <= start and rows[-1, POSITION] >= stop - 1:
                self._supplied, self._missing = rows, None
                return Next.SEND
            if not self._book.numbered:  # whoever gives positions is told of the gap, and closes it
                with self._ledger.lock:
                    self._book.withdraw(start if self._base is None else self._base, stop + len(self._rows))
                return self._finish(self._answer)
            raise self._gap(start, stop)
        except (ArgumentError, ServerError) as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Give up. What the server certainly didn't write is the caller's again; the rest is kept and sent again."""
        if self._done:
            return
        self._done = True
        with self._ledger.lock:
            book = self._book
            if isinstance(error, (GapError, ConflictError)):
                self._ledger.discard(self.user, book)
            elif self._base is None:
                book.put_off(self._number, None if isinstance(error, REFUSED) else self._rows.tolist())
            elif not self._numbered or isinstance(error, REFUSED):
                book.withdraw(self._base, self._base + len(self._rows))
            else:
                book.owe(self._base)
            self._ledger.release(book)

    def _receive(self, outputs: Mapping[str, Tensor]) -> Outcome:
        status, length = decode_state(outputs)
        if not self.repeatable:
            return self._finish(outputs, (status, length))
        with self._ledger.lock:
            book = self._book
            if self._numbered and self._base is None:
                self._note(book, length)
                return Next.SEND
            if status is Status.CONFLICT:
                return self._conflict(book, outputs, length)
            end = self._first + len(self._rows)
            if status is Status.GAP or (length < end and not self._part):
                return self._behind(book, outputs, length)
            self._note(book, length)
            if self._part:
                self._start = length
                return Next.SEND
        return self._finish(outputs, (status, length))

    def _conflict(self, book: Book, outputs: Mapping[str, Tensor], length: int) -> Outcome:
        """The log holds another event at one of these positions; nothing was written."""
        if not book.numbered:
            if self._base is not None:
                book.withdraw(self._base, self._base + len(self._rows))
            return self._finish(outputs, (Status.CONFLICT, length))
        error = ConflictError(
            f"user {self.user!r}: the log, of {length} events, holds others where these were to stand: somebody else "
            "writes to it; send the events again, and a user's events through one client, or use number=False"
        )
        error.user, error.length, error.events = self.user, length, self._others()
        raise error

    def _behind(self, book: Book, outputs: Mapping[str, Tensor], length: int) -> Outcome:
        """The server's log is shorter than this call's answer needs."""
        self._turns = 0 if self._start is None or length > self._start else self._turns + 1
        if length < self._seen:
            book.lose(length)
        else:
            self._note(book, length)
        first, self._start = self._first, length
        if self._turns > MOST_TURNS:
            raise self._gap(length, first)
        if length >= first or self._find(length, first) is not None:
            return Next.SEND
        self._missing, self._answer = (length, first), outputs
        return Next.HISTORY

    @property
    def _first(self) -> int:
        """Position of the first event; without events, of the first that may come."""
        return self._floor if self._base is None else self._base

    def _find(self, start: int, stop: int) -> NDArray[np.int64] | None:
        rows = self._book.find(start, stop)
        if rows is None and len(self._supplied):
            offset = start - int(self._supplied[0, POSITION])
            if offset >= 0 and int(self._supplied[-1, POSITION]) >= stop - 1:
                rows = self._supplied[offset : offset + stop - start]
        return rows

    def _note(self, book: Book, length: int) -> None:
        self._ledger.acknowledge(((self.user, book, length),))

    def _number(self, first: int) -> None:
        self._base = first
        rows = self._rows.copy()
        if len(rows) == 1:
            rows[0, POSITION] = first
        else:
            rows[:, POSITION] = np.arange(first, first + len(rows))
        self._rows = rows
        self._book.numbered = True
        self._book.hold(first, rows.tolist())

    def _finish(self, outputs: Mapping[str, Tensor], state: tuple[Status, int] | None = None) -> Prediction | Appended:
        query = self.query
        result = decode_appended(query, outputs) if query.k is None else decode_prediction(query, outputs, state)
        if not self._done:
            self._done = True
            with self._ledger.lock:
                self._ledger.release(self._book)
        return result

    def _gap(self, length: int, stop: int) -> GapError:
        error = GapError(
            f"user {self.user!r}: the server's log ends at {length}, and nobody has the events {length}..{stop - 1}; "
            "give the client a history, or send the events with their positions"
        )
        error.user, error.length = self.user, length
        error.events = self._others()
        return error

    def _others(self) -> tuple[tuple[int | str, int], ...]:
        """Items and times of the events of other calls that the server hasn't said it has."""
        own = range(self._base, self._base + len(self._rows)) if self._base is not None else range(0)
        others = [event for event in self._book.unacknowledged if event.position not in own]
        return tuple((event.item, event.time_ms) for event in self._ledger.events(others))
