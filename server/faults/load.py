"""Clients that write without pause, while something goes wrong: each event until it is acknowledged."""

import random
import threading
import time
from collections.abc import Sequence
from types import TracebackType

from longrec.errors import ServerError
from longrec.server.faults.ledger import Book
from longrec.server.faults.wire import Fate, Wire

__all__ = ["Load", "write_all"]

MOST_EVENTS = 3  # of a request
PATIENCE_SECONDS = 120.0


class Load:
    """Threads that write for users of their own, round and round; a context manager that ends them.

    A user with positions gets an event again until it is acknowledged. One without gets the next events after a
    failure, as to send the same ones again might append them twice.

    Args:
        url: of the server.
        books: the users.
        threads: how many clients.
        seconds: deadline of a request.
        k: items asked for with each request.
    """

    def __init__(self, url: str, books: Sequence[Book], *, threads: int = 2, seconds: float = 3.0, k: int = 5) -> None:
        self._url, self._seconds, self._k = url, seconds, k
        self._stop = threading.Event()
        self._books = books
        self.failures: list[str] = []  # what was said of requests that failed
        self._threads = [
            threading.Thread(target=self._run, args=(books[number::threads], number), daemon=True)
            for number in range(threads)
        ]

    def wait_for(self, events: int) -> None:
        """Wait until so many more events are acknowledged.

        Raises:
            ServerError: they aren't, after long.
        """
        goal, deadline = self._acknowledged() + events, time.monotonic() + PATIENCE_SECONDS
        while self._acknowledged() < goal:
            if time.monotonic() > deadline:
                raise ServerError(f"load: expected {events} events to be taken, got {self.failures[-1:] or 'too few'}")
            self._stop.wait(0.002)

    def wait_for_failure(self) -> str:
        """Wait until a request fails; what was said of it."""
        before, deadline = len(self.failures), time.monotonic() + PATIENCE_SECONDS
        while len(self.failures) == before:
            if time.monotonic() > deadline:
                raise ServerError("load: expected a request to fail, got none that did")
            self._stop.wait(0.002)
        return self.failures[-1]

    def _acknowledged(self) -> int:
        return sum(book.acknowledged for book in self._books)

    def _run(self, books: Sequence[Book], seed: int) -> None:
        rng = random.Random(seed)
        with Wire(self._url, self._seconds) as wire:
            while not self._stop.is_set():
                for book in books:
                    start = min(book.acknowledged, book.length) if book.checked else book.length
                    events = book.events(start, book.length)
                    if not len(events):
                        events = book.make(rng.randint(1, MOST_EVENTS))
                    outcome = wire.send(book.user, events, k=self._k).outcome()
                    if outcome.fate is Fate.OK:
                        book.acknowledge(events, outcome.length)
                    else:
                        self.failures.append(outcome.message or outcome.fate.value)
                    if self._stop.is_set():
                        return

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def write_all(wire: Wire, books: Sequence[Book], count: int, *, k: int = 0) -> list[str]:
    """Write `count` new events for each user at once, in one request each; what was said of those that failed."""
    events = [book.make(count) for book in books]
    pending = [wire.send(book.user, rows, k=k) for book, rows in zip(books, events, strict=True)]
    said = []
    for book, rows, one in zip(books, events, pending, strict=True):
        outcome = one.outcome()
        if outcome.fate is Fate.OK:
            book.acknowledge(rows, outcome.length)
        else:
            said.append(outcome.message or outcome.fate.value)
    return said
