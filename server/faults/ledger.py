"""The driver's own book: which events were sent for whom, and which of them the server acknowledged. No I/O.

Every event of a user has a time of its own, by which it is known again in the log.
"""

import threading
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Book", "Finding", "Ledger"]

Rows = NDArray[np.int64]  # [n, 2] item, unix ms
FIRST_MS = 1_700_000_000_000


class Finding(NamedTuple):
    """A user's log against the book."""

    acknowledged: int
    lost: int
    duplicated: int
    problems: tuple[str, ...] = ()


class Book:
    """One user's events.

    Args:
        user: the key.
        num_items: events are of items 0..num_items-1.
        seed: of the events.
        checked: whether they are sent with their positions. Then the log must be a beginning of what was made; else it
            may lack any event that wasn't acknowledged.
    """

    def __init__(self, user: str, num_items: int, seed: int, *, checked: bool = True) -> None:
        self.user, self.checked = user, checked
        self._rng = np.random.default_rng(seed)
        self._num_items = num_items
        self._made: list[tuple[int, int]] = []
        self._acknowledged: set[int] = set()  # times
        self._lock = threading.Lock()

    @property
    def length(self) -> int:
        """Events made so far."""
        return len(self._made)

    @property
    def acknowledged(self) -> int:
        """Events acknowledged so far."""
        return len(self._acknowledged)

    def make(self, count: int) -> Rows:
        """New events [count, 3]: position, item, unix ms; the position -1 where they are unchecked."""
        with self._lock:
            start = len(self._made)
            time_ms = self._made[-1][1] if self._made else FIRST_MS
            for _ in range(count):
                time_ms += int(self._rng.choice([1, 900, 70_000, 86_400_000]))
                self._made.append((int(self._rng.integers(self._num_items)), time_ms))
            return self.events(start, start + count)

    def events(self, start: int, stop: int) -> Rows:
        """Events made before, [stop - start, 3]."""
        rows = np.array(self._made[start:stop], np.int64).reshape(-1, 2)
        positions = np.arange(start, start + len(rows)) if self.checked else np.full(len(rows), -1)
        return np.column_stack((positions, rows))

    def acknowledge(self, events: Rows, length: int) -> None:
        """The server has said that it holds the events, and `length` events in all."""
        with self._lock:
            if self.checked:  # answers may be lost, so this one may be the first that tells of events before it
                self._acknowledged.update(time_ms for _, time_ms in self._made[:length])
            else:
                self._acknowledged.update(events[:, 2].tolist())

    def compare(self, log: Rows, first: int = 0) -> Finding:
        """The user's log as it is on the disk, from position `first` on, against what it should be."""
        counts, made = Counter(log[:, 1].tolist()), {time_ms: item for item, time_ms in self._made}
        forgotten = {time_ms for _, time_ms in self._made[:first]} if self.checked else set()
        lost = sum(time_ms not in counts for time_ms in self._acknowledged - forgotten)
        duplicated = sum(count - 1 for count in counts.values())
        problems = []
        if any(made.get(time_ms) != item for item, time_ms in log.tolist()):
            problems.append(f"{self.user}: an event that was never sent, or another item")
        if self.checked and not np.array_equal(log, self.events(first, first + len(log))[:, 1:]):
            problems.append(f"{self.user}: the log is no beginning of what was sent")
        return Finding(len(self._acknowledged), lost, duplicated, tuple(problems))


class Ledger:
    """The books of all users of a run."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items
        self.books: list[Book] = []

    def open(self, names: Iterable[str], *, checked: bool = True) -> list[Book]:
        """A book for each new user."""
        books = [
            Book(name, self.num_items, len(self.books) + number, checked=checked) for number, name in enumerate(names)
        ]
        self.books += books
        return books

    @property
    def acknowledged(self) -> int:
        """Events acknowledged so far, of all users."""
        return sum(book.acknowledged for book in self.books)
