"""Two lanes over one engine: requests in front, deferred work behind, never both at once.

Whoever works behind gives way after each turn to a request that waits; a request waits for one turn at most.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Lanes"]


class Lanes:
    """The right to use an engine.

    Args:
        has_work: whether there is something to do behind; asked only while nobody uses the engine.
    """

    def __init__(self, has_work: Callable[[], bool]) -> None:
        self._has_work = has_work
        self._changed = threading.Condition()
        self._busy = self._closed = False
        self._in_front = 0  # requests that wait

    @contextmanager
    def front(self) -> Iterator[None]:
        """Hold the engine for a request."""
        with self._changed:
            self._in_front += 1
            while self._busy:
                self._changed.wait()
            self._in_front -= 1
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                # a thread is woken for a reason only: a wake-up costs more than a small request's share of a step
                if self._in_front or self._has_work():
                    self._changed.notify_all()

    @contextmanager
    def behind(self) -> Iterator[bool]:
        """Hold the engine for a turn, once there is work and no request waits; gives False when closed."""
        with self._changed:
            while not self._closed and (self._busy or self._in_front or not self._has_work()):
                self._changed.wait()
            closed = self._closed
            self._busy = self._busy or not closed
        try:
            yield not closed
        finally:
            if not closed:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def close(self) -> None:
        """End the lane behind; its thread returns after the turn that it is at."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
