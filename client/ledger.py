"""What the client knows of each user's log: how long the server says it is, and the events that it may have to send
again. No I/O, no waiting; `delivery.py` decides what is sent.

One writer a user: positions are given here, one after the other, so that whoever else appends to the same log at the
same time would take the same ones.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec.catalogue import Catalogue
from longrec.client.types import Event
from longrec.protocol import UNCHECKED_POSITION

if TYPE_CHECKING:
    from longrec.schema import Schema

__all__ = ["Book", "Held", "Ledger", "Owed"]

MOST_USERS: Final = 100_000  # whose books are kept; a user beyond them is asked for anew


class Held(NamedTuple):
    """An event that may be sent again, as it travels."""

    position: int
    item: int
    time_ms: int
    features: tuple[int, ...] = ()


class Book:
    """One user's log, as far as this client knows it.

    Attributes:
        acknowledged: events that the server said it has; None: it wasn't asked yet.
        next: the position that the next event gets.
        held: events from the oldest that may be sent again up to `next`, without a hole.
        failed_from: the first event of a request that was given up without an answer; None: there is none. It, and all
            after it, go along with the user's next request.
        numbered: whether this client gave a position.
        waiting: what to call with the log's length, once it is known, in order.
            What was given up before its turn came is an `Owed`.
        users_of: deliveries that refer to this book.
    """

    __slots__ = (
        "acknowledged",
        "acknowledged_at",
        "failed_from",
        "held",
        "next",
        "numbered",
        "users_of",
        "waiting",
    )

    def __init__(self) -> None:
        self.acknowledged: int | None = None
        self.acknowledged_at: deque[tuple[float, int]] = deque()  # when, up to which position
        self.next = 0
        self.held: deque[Held] = deque()
        self.failed_from: int | None = None
        self.numbered = False
        self.waiting: list[Callable[[int], None]] = []
        self.users_of = 0

    @property
    def unacknowledged(self) -> list[Held]:
        """Held events that the server hasn't said it has."""
        return [event for event in self.held if event.position >= (self.acknowledged or 0)]

    @property
    def owed(self) -> "list[Owed]":
        """Calls that were given up before the log's length was known."""
        return [one for one in self.waiting if isinstance(one, Owed)]

    def put_off(self, number: Callable[[int], None], rows: Sequence[Sequence[int]] | None) -> None:
        """A call that waits is given up; its events (…, item, time, …), if any are to be kept, go with the next one."""
        if number in self.waiting:
            place = self.waiting.index(number)
            self.waiting[place : place + 1] = [] if rows is None else [Owed(self, rows)]

    def owe(self, first: int) -> None:
        """The events from a position on were given up, and go along with the user's next request."""
        self.failed_from = first if self.failed_from is None else min(first, self.failed_from)

    def hold(self, first: int, rows: Sequence[Sequence[int]]) -> None:
        """Keep events (…, item, time, features) from position `first` on; those that are held already stay."""
        held = self.held
        if self.acknowledged is not None and first > self.next:
            return  # the caller's own positions, past the log's end
        past = held[-1].position + 1 if held else first
        if first > past:
            if self.unacknowledged:
                return  # those are worth more
            held.clear()
            past = first
        held.extend(
            [
                Held(first + place, row[1], row[2], tuple(row[3:]))
                for place, row in enumerate(rows)
                if first + place >= past
            ]
        )
        self.next = max(self.next, first + len(rows))

    def find(self, start: int, stop: int) -> NDArray[np.int64] | None:
        """Rows [stop - start, 3 + c] of the held events in [start, stop), or None if one of them isn't held."""
        if start >= stop:
            return np.empty((0, 3), np.int64)
        if not self.held or start < self.held[0].position or stop > self.held[-1].position + 1:
            return None
        offset = start - self.held[0].position
        found = [self.held[i] for i in range(offset, offset + stop - start)]
        rows = np.zeros((len(found), 3 + max(len(event.features) for event in found)), np.int64)
        for row, (position, item, time_ms, features) in zip(rows, found, strict=True):
            row[:3] = position, item, time_ms
            row[3 : 3 + len(features)] = features
        return rows

    def withdraw(self, first: int, stop: int) -> None:
        """Forget events that the server didn't write. Later ones, numbered already, have a gap before them then."""
        first = max(first, self.acknowledged or 0)
        while self.held and self.held[-1].position >= first:
            self.held.pop()
        if self.next == stop:
            self.next = max(self.acknowledged or 0, self.held[-1].position + 1 if self.held else 0)

    def acknowledge(self, length: int, now: float) -> None:
        """The server's log has `length` events."""
        self.acknowledged = length = max(length, self.acknowledged or 0)  # answers may overtake each other
        self.next = max(self.next, length)
        if self.failed_from is not None and length > self.failed_from:
            self.failed_from = None if length >= self.next else length
        if self.held and (not self.acknowledged_at or self.acknowledged_at[-1][1] < length):
            self.acknowledged_at.append((now, length))

    def lose(self, length: int) -> None:
        """The server's log has only `length` events, of which it had more."""
        self.acknowledged = length
        self.acknowledged_at.clear()

    def expire(self, before: float) -> None:
        """Drop what was acknowledged before a moment."""
        while self.acknowledged_at and self.acknowledged_at[0][0] <= before:
            _, upto = self.acknowledged_at.popleft()
            while self.held and self.held[0].position < min(upto, self.acknowledged or 0):
                self.held.popleft()


class Owed:
    """Events of a call that was given up before the log's length was known: they get numbers as others who wait do.

    Args:
        book: the user's.
        rows: (…, item, time, features) of each.
    """

    __slots__ = ("book", "rows")

    def __init__(self, book: Book, rows: Sequence[Sequence[int]]) -> None:
        self.book, self.rows = book, rows

    def __call__(self, first: int) -> None:
        """The first of them stands at `first`."""
        self.book.numbered = True
        self.book.hold(first, self.rows)
        self.book.owe(first)


class Ledger:
    """All users' books; safe to share between threads.

    Args:
        resend_seconds: how long an acknowledged event may have to be sent again.
        most_users: books kept.
        clock: seconds, monotonic.
        catalogue: of the client: events go back to the caller with ids then.

    Attributes:
        schema: of the model's events, once it is known: they go back with their features then.
    """

    def __init__(
        self,
        resend_seconds: float,
        *,
        most_users: int = MOST_USERS,
        clock: Callable[[], float] = time.monotonic,
        catalogue: Catalogue | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self.clock = clock
        self._catalogue = catalogue
        self.schema: Schema | None = None
        self._resend_seconds, self._most_users = resend_seconds, most_users
        self._books: OrderedDict[str, Book] = OrderedDict()  # the latest used last
        self._warm: OrderedDict[str, None] = OrderedDict()  # users with held events, the latest acknowledged last

    def __len__(self) -> int:
        return len(self._books)

    def open(self, user: str) -> Book:
        """The user's book, which stays until it is released; under the lock."""
        book = self._books.get(user)
        if book is None:
            book = self._books[user] = Book()
            self._evict()
        else:
            self._books.move_to_end(user)
        book.users_of += 1
        return book

    def release(self, book: Book) -> None:
        """The end of `open`."""
        book.users_of -= 1

    def peek(self, user: str) -> Book | None:
        """The user's book if there is one, under the lock."""
        return self._books.get(user)

    def acknowledge(self, answers: Iterable[tuple[str, Book, int]]) -> None:
        """Note logs' lengths as a server gave them, under the lock: (user, book, length). Who has waited for one gets
        numbers, in order. Drops what is old, of all users."""
        now = self.clock()
        for user, book, length in answers:
            book.acknowledge(length, now)
            if book.waiting:
                waiting, book.waiting = book.waiting, []
                for number in waiting:
                    number(book.next)
            if book.held:
                self._warm[user] = None
                self._warm.move_to_end(user)
        self._drop(now - self._resend_seconds)

    def _drop(self, before: float) -> None:
        """Drop events that were acknowledged before a moment."""
        while self._warm:
            oldest = next(iter(self._warm))
            other = self._books.get(oldest)
            if other is not None and other.acknowledged_at:
                if other.acknowledged_at[0][0] > before:
                    break
                other.expire(before)
                if other.acknowledged_at:
                    self._warm.move_to_end(oldest)
                    continue
            del self._warm[oldest]

    def discard(self, user: str, book: Book) -> None:
        """Drop a book that turned out wrong, under the lock; the user's next delivery gets a new one."""
        if self._books.get(user) is book:
            del self._books[user]
            self._warm.pop(user, None)

    def forget(self, user: str) -> None:
        """Drop what is known of a user; deliveries under way keep the book they have."""
        with self.lock:
            self._books.pop(user, None)
            self._warm.pop(user, None)

    def unacknowledged(self, user: str) -> list[Event]:
        """The user's events that the server hasn't said it has."""
        with self.lock:
            book = self._books.get(user)
            if book is None:
                return []
            rows = [row for owed in book.owed for row in owed.rows]
            unplaced = [Held(UNCHECKED_POSITION, row[1], row[2], tuple(row[3:])) for row in rows]
            return self.events([*book.unacknowledged, *unplaced])

    def events(self, held: Iterable[Held]) -> list[Event]:
        """Events as the caller spells them."""
        ids = None if self._catalogue is None else self._catalogue.ids
        return [
            Event(
                event.item if ids is None else ids[event.item],
                event.time_ms,
                None if event.position == UNCHECKED_POSITION else event.position,
                None if self.schema is None or not any(event.features) else self.schema.values(event.features),
            )
            for event in held
        ]

    def owed(self) -> list[str]:
        """Users with events of requests that were given up."""
        with self.lock:
            return [user for user, book in self._books.items() if book.failed_from is not None or book.owed]

    def _evict(self) -> None:
        for user in list(self._oldest(len(self._books) - self._most_users)):
            book = self._books[user]
            if book.users_of or book.unacknowledged or book.owed:
                self._books.move_to_end(user)  # it holds what nobody else has
            else:
                del self._books[user]
                self._warm.pop(user, None)

    def _oldest(self, count: int) -> Iterable[str]:
        users = iter(self._books)
        return (next(users) for _ in range(max(0, count)))
