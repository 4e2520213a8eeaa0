"""What the engine owes its callers, user by user: which answers, after which events. No arrays of the network here."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from longrec.python_backend.event_log import Append, Appended
from longrec.python_backend.query import Query

__all__ = ["Entry", "Rows", "Work"]

Rows = NDArray[np.int64]  # [n, 2 + C] item, unix ms, features


@dataclass(slots=True, eq=False)
class Entry:
    """One query on its way.

    Args:
        number: of the query in its call, or its ticket once it is deferred.
        query: what was asked.
        outcome: of its append; None: not in the log yet.
        seconds: when it came, `time.monotonic`.
    """

    number: int
    query: Query
    outcome: Appended | None = None
    seconds: float = 0.0

    def append(self, hint: int) -> Append:
        """Its events, for the log; `hint` as there."""
        return Append(self.query.user, self.query.position, self.query.events, hint)

    @property
    def new_rows(self) -> Rows:
        """The events that its append brought into the log."""
        assert self.outcome is not None
        skipped, events = self.outcome.skipped, self.query.events
        return events[skipped:] if skipped else events

    @property
    def after(self) -> int:
        """Its answer stands after so many events of the log."""
        assert self.outcome is not None
        return self.outcome.length


@dataclass(slots=True, eq=False)
class Work:
    """One user's entries that the network must answer, oldest first, and the newest rows of the log.

    Args:
        user: the key.
        entries: waiting for an answer; `after` never falls.
        rows_start: position of the first of `rows`. rows: events that their appends brought, without a gap.
    """

    user: bytes
    entries: deque[Entry] = field(default_factory=deque)
    rows_start: int = 0
    rows: list[Rows] = field(default_factory=list)
    _rows_stop: int = 0

    def add_rows(self, entry: Entry) -> None:
        """Keep what the entry's append brought, so that the log needn't be read for it."""
        rows = entry.new_rows
        if len(rows):
            start = entry.after - len(rows)
            if start != self._rows_stop:
                self.rows, self.rows_start = [], start
            self.rows.append(rows)
            self._rows_stop = entry.after

    def drop_rows(self) -> None:
        """Forget the rows: whoever needs them reads the log."""
        self.rows, self.rows_start, self._rows_stop = [], 0, 0

    def holds(self, start: int, stop: int) -> bool:
        """Whether `rows` reach from position `start` to `stop`; another engine may have appended behind them."""
        return self.rows_start <= start and stop <= self._rows_stop

    def rows_between(self, start: int, stop: int) -> Rows:
        """Events [stop - start, 2 + C] at positions start..stop-1, which `rows` hold."""
        rows = self.rows[0] if len(self.rows) == 1 else np.concatenate(self.rows)
        if start == self.rows_start and stop - start == len(rows):
            return rows
        return rows[start - self.rows_start : stop - self.rows_start]
