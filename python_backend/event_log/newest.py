"""What every user of a log has done since positions that a reader remembers: for training, while servers write."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec.errors import DataError
from longrec.python_backend.event_log.log import EventLog, Span
from longrec.python_backend.event_log.records import Rows

__all__ = ["Logged", "holds", "read_new"]

EVERYONE = (1 << 31) - 1
USERS_AT_ONCE = 256  # of a read: one transaction, or one round trip


class Logged(NamedTuple):
    """Users who have new events, each with these and what came before them.

    Args:
        users: [U] their keys.
        rows: a [n, columns] array a user: item, unix ms; oldest first.
        fresh: [U] int64, how many of a user's rows, the last ones, are new.
        lengths: [U] int64, of the users' logs.
        damaged: users left out, as their logs can't be read.
    """

    users: list[bytes]
    rows: list[Rows]
    fresh: NDArray[np.int64]
    lengths: NDArray[np.int64]
    damaged: int


def read_new(log: EventLog, known: Mapping[bytes, int], context: int | None) -> Logged:
    """Read the log as it is now; what is appended meanwhile is in it or not, a user's events always as a prefix.

    Args:
        log: any store's.
        known: a user's events that aren't new; none of a user who isn't named.
        context: events wanted before a user's first new one, as far as there are any; None: all.

    Raises:
        MachineError: the store can't be read.
    """
    spans, damaged = [], 0
    for user in log.recent_users(EVERYONE):
        try:
            first, length = log.extent(user)
        except DataError:
            damaged += 1
            continue
        begin = max(first, min(known.get(user, 0), length))
        if begin < length:
            start = first if context is None else max(first, begin - context)
            spans.append((Span(user, start, length), length - begin))
    users, rows, fresh, lengths = [], [], [], []
    for at in range(0, len(spans), USERS_AT_ONCE):
        part = spans[at : at + USERS_AT_ONCE]
        for (span, new), found in zip(part, log.read_many([span for span, _ in part]), strict=True):
            if isinstance(found, DataError):
                damaged += 1  # or retention has dropped the oldest in this very moment: they are new at the next time
                continue
            users.append(span.user)
            rows.append(found)
            fresh.append(new)
            lengths.append(span.stop)
    return Logged(users, rows, np.array(fresh, np.int64), np.array(lengths, np.int64), damaged)


def holds(log: EventLog, newest: Mapping[bytes, tuple[int, Rows]]) -> dict[bytes, int]:
    """Histories that were put into the log before it went on.

    Args:
        log: any store's.
        newest: user -> a history's length, and its last event [columns].

    Returns:
        user -> that length, of those whose logs have that event in that place.

    Raises:
        MachineError: the store can't be read.
    """
    spans = [Span(user, length - 1, length) for user, (length, _) in newest.items()]
    found: dict[bytes, int] = {}
    for at in range(0, len(spans), USERS_AT_ONCE):
        part = spans[at : at + USERS_AT_ONCE]
        for span, rows in zip(part, log.read_many(part), strict=True):
            if not isinstance(rows, DataError) and np.array_equal(rows[0], newest[span.user][1]):
                found[span.user] = span.stop
    return found
