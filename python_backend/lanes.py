"""Two lanes over one engine: requests in front, deferred work behind, never both at once.

Whoever works behind gives way after each turn to a request that waits; a request waits for one turn at most. Where
requests follow each other so closely that nothing is left in between, a turn that somebody waits for comes after every
`MAX_PASSING` of them.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["MAX_PASSING", "Lanes"]

MAX_PASSING = 8  # batches of a busy server; so a deferred answer is late, but comes


class Lanes:
    """The right to use an engine.

    Args:
        has_work: whether there is something to do behind. is_awaited: whether somebody waits for it. Both are asked
            only while nobody uses the engine.
    """

    def __init__(self, has_work: Callable[[], bool], is_awaited: Callable[[], bool]) -> None:
        self._has_work, self._is_awaited = has_work, is_awaited
        self._changed = threading.Condition()
        self._busy = self._closed = False
        self._in_front = 0  # requests that wait
        self._waits_behind = False  # a thread waits for work, or for its turn
        self._passed = 0  # requests that went while somebody waited for the next turn

    @contextmanager
    def front(self) -> Iterator[None]:
        """Hold the engine for a request."""
        with self._changed:
            self._in_front += 1
            while self._busy or self._is_turn_due:
                self._changed.wait()
            self._in_front -= 1
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._passed = self._passed + 1 if self._is_awaited() else 0
                # a thread is woken for a reason only: a wake-up costs more than a small request's share of a step
                if self._in_front or self._has_work():
                    self._changed.notify_all()

    @contextmanager
    def behind(self) -> Iterator[bool]:
        """Hold the engine for a turn, once there is work and no request waits; gives False when closed."""
        with self._changed:
            self._waits_behind = True
            while not self._closed and (
                self._busy or (self._in_front and not self._is_turn_due) or not self._has_work()
            ):
                self._changed.wait()
            closed = self._closed
            self._waits_behind, self._passed = False, 0
            self._busy = self._busy or not closed
        try:
            yield not closed
        finally:
            if not closed:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    @property
    def _is_turn_due(self) -> bool:
        return self._waits_behind and self._passed >= MAX_PASSING and not self._closed

    def close(self) -> None:
        """End the lane behind; its thread returns after the turn that it is at."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
