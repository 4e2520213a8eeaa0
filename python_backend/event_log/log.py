"""What an event log promises, whatever stores it. Holds no I/O.

Position p of a user's log names an event for ever. An append is compare-and-append: it states the position of its first
event, and what the log already holds is skipped, so that a retry changes nothing. What is skipped must be what the log
holds there, item and time; if one event differs the append is a conflict, and nothing of it is written. An event's
features aren't compared: what was written first stays.

A log with a retention limit forgets a user's oldest events, a whole chunk (`records.CHUNK_EVENTS`) at a time. Positions
stay true: such a log begins at a position above 0, and ends where it would have ended without the limit. What was
dropped can't be compared, and counts as equal.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from longrec.errors import DataError, LongrecError
from longrec.protocol import UNCHECKED_POSITION, Status
from longrec.python_backend.event_log.records import Rows

__all__ = ["Append", "Appended", "EventLog", "Extent", "Span", "compare", "conflict", "missing"]


class Append(NamedTuple):
    """Events [n, 2 + C] (item, unix ms, features) for the log of `user`, the first at `position` (-1: at the end).

    Args:
        hint: where the log ended when the caller last knew, which may spare a search for its end; -1: no idea.
    """

    user: bytes
    position: int
    events: Rows
    hint: int = -1


class Appended(NamedTuple):
    """What became of an append: its status, how many leading events were skipped, and the log's length after it.

    Under OK the log held those that were skipped; under GAP and CONFLICT all of them were.
    """

    status: Status
    skipped: int
    length: int


class Extent(NamedTuple):
    """Positions that a user's log holds: `first` <= p < `length`. Both 0 for a user never seen."""

    first: int
    length: int


class Span(NamedTuple):
    """Events of a user to read: positions `start` <= p < `stop`."""

    user: bytes
    start: int
    stop: int


class EventLog(ABC):
    """A durable log for each user. Several processes may hold the same store open.

    Any thread may call an object's methods, one call at a time: callers hold a lock. `lag_seconds` and `size` alone may
    be called beside another call.

    Attributes:
        generation: rises when a call finds that acknowledged events may be gone from the store: what was derived from
            what it held is void.
    """

    generation: int = 0

    @abstractmethod
    def append(self, appends: Sequence[Append]) -> list[Appended | LongrecError]:
        """Apply the appends in order, as one transaction: all of them are in the log afterwards, or none; in a store
        whose own structure is damaged as many as can be.

        Returns:
            One outcome an append. A `DataError` stands in the place of an append whose user's log is damaged: nothing
            of it was written, and the other users' appends are applied. So it is with a gap or a conflict. A
            `MachineError` stands in the place of each append with events if the store can be read and not written,
            and others of the batch have none: those are told what their logs hold.

        Raises:
            MachineError: the store is full, gone or can't be written. Nothing was appended, except where the message
                says that this is unknown.
        """

    @abstractmethod
    def extent(self, user: bytes) -> Extent:
        """First position and length of the user's log.

        Raises:
            DataError: the log is damaged at its end.
            MachineError: the store can't be read.
        """

    @abstractmethod
    def read_many(self, spans: Sequence[Span]) -> list[Rows | DataError]:
        """Events [stop - start, 2 + C] of each span, which the user's log must hold; in one transaction or round trip.

        Only the chunks that hold them are touched.

        Returns:
            One result a span. A `DataError` stands in the place of events that are damaged, were dropped by the
            retention limit, or were never there.

        Raises:
            MachineError: the store can't be read.
        """

    def read(self, user: bytes, start: int, stop: int) -> Rows:
        """Events [stop - start, 2 + C] at positions start..stop-1, which the log must hold.

        Raises:
            DataError: events are damaged, dropped by the retention limit, or were never there.
            MachineError: the store can't be read.
        """
        (rows,) = self.read_many([Span(user, start, stop)])
        if isinstance(rows, DataError):
            raise rows
        return rows

    @abstractmethod
    def write_states(self, states: Mapping[bytes, bytes]) -> None:
        """Keep a value for each user beside their events, in place of the one before. A cache: none need survive, but
        none survives the events that were appended before it.

        Raises:
            MachineError: the store is full, gone or can't be written.
        """

    @abstractmethod
    def read_states(self, users: Sequence[bytes]) -> list[bytes | None]:
        """The values that `write_states` kept, None for users who have none, or whose can't be read.

        Raises:
            MachineError: the store can't be read.
        """

    @abstractmethod
    def recent_users(self, limit: int) -> list[bytes]:
        """At most `limit` users by their last append, the latest first. A hint: what it says of the last second before
        a kill, and of users who appended long ago, may be missing or out of order.

        Raises:
            MachineError: the store can't be read.
        """

    @abstractmethod
    def lag_seconds(self) -> float:
        """Age of the oldest event that was acknowledged through this object and isn't known to be on disk; 0 when all
        are; nan under durability `none`, where nobody knows. Asks nobody.
        """

    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Bytes that the log takes now, and the most that it may. Cheap enough for every scrape.

        Raises:
            MachineError: the store can't be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Make what was appended durable, as far as the setting says, and close; a second call does nothing."""

    def length(self, user: bytes) -> int:
        """Number of events ever appended to the user's log; 0 for a user never seen. Raises as `extent`."""
        return self.extent(user).length


def compare(append: Append, length: int) -> Appended:
    """What an append to a log of `length` events will do, if the log holds what it skips; `length` in the result is the
    one before it."""
    if append.position == UNCHECKED_POSITION:
        return Appended(Status.OK, 0, length)
    if append.position > length:
        return Appended(Status.GAP, len(append.events), length)
    return Appended(Status.OK, min(length - append.position, len(append.events)), length)


def conflict(append: Append, length: int) -> Appended:
    """What an append does that skips an event which the log, of `length` events, doesn't hold there."""
    return Appended(Status.CONFLICT, len(append.events), length)


def missing(store: str, start: int, stop: int, extent: Extent) -> DataError:
    """The error for a read of events that the log doesn't hold."""
    reason = "older ones were dropped by max_user_events" if start < extent.first else "it is shorter than expected"
    return DataError(
        f"event_log={store}: expected events {start}..{stop - 1} of a user, got a log of {extent.first}.."
        f"{extent.length - 1}; {reason}"
    )
