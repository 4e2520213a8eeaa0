"""A batch of appends within one LMDB write transaction: the least number of look-ups, checksums and copies a user.

Takes transactions and cursors of database `events` (see `lmdb_log.py`) as they come, and imports no LMDB.

Nearly every append goes on where the user's log ends, and says so: its position, or the hint of one that has none,
tells the key of the chunk to extend, and a chunk that has room left is the user's last one. That way takes one look-up
and one checksum. Appends with neither, to a new user or a full chunk, and retries take the general way, which searches
for the user's last chunk.
Retries alone are compared with what the log holds.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from longrec.errors import DataError
from longrec.protocol import UNCHECKED_POSITION, Status
from longrec.python_backend.event_log.log import Append, Appended, Extent, compare, conflict
from longrec.python_backend.event_log.records import (
    CHUNK_EVENTS,
    COLUMNS,
    Chunk,
    Rows,
    chunk_of,
    continue_chunk,
    extend_chunk,
    fit_columns,
    row_bytes,
    rows_of_chunk,
    verify_chunk,
)

__all__ = ["PLACE", "Transaction", "all_users", "append_batch", "extent_of", "peek", "prefix_of"]

# lmdb's own types leave open whether values are bytes or views of the map; ours are opened for bytes
Transaction = Any
Cursor = Any
PLACE: Final = struct.Struct(">Q")
LAST_PLACE: Final = b"\xff" * PLACE.size
LENGTH: Final = struct.Struct(">H")
OK: Final = Status.OK
LITTLE_ENDIAN: Final = np.dtype("<i8")


class _Tail(NamedTuple):
    """A user's last chunk: its first position, value and header; empty for a user never seen."""

    first: int
    value: bytes
    chunk: Chunk

    @property
    def length(self) -> int:
        """Of the user's log."""
        return self.first + self.chunk.events


def append_batch(
    transaction: Transaction, appends: Sequence[Append], max_user_events: int
) -> list[Appended | DataError]:
    """The appends, as `EventLog.append`; what they change is written when the caller commits."""
    outcomes: list[Appended | DataError] = []
    chunks: dict[bytes, bytes] = {}  # new values, by key, that the transaction doesn't know yet
    users: set[bytes] = set()  # whose chunks those are
    begun: dict[bytes, int] = {}  # by prefix, of users who began a chunk: their log's length before that
    get, pack_length, pack_place = transaction.get, LENGTH.pack, PLACE.pack
    with transaction.cursor() as cursor:
        for append in appends:
            user, position, events, hint = append
            prefix = pack_length(len(user)) + user
            try:
                end = hint if position == UNCHECKED_POSITION else position
                if end > 0:
                    first = chunk_of(end - 1)
                    key = prefix + pack_place(first)
                    value = chunks.get(key) or get(key)
                    if value and (extended := continue_chunk(user, first, value, end, _bytes(events), events.shape[1])):
                        chunks[key] = extended
                        users.add(user)
                        outcomes.append(Appended(OK, 0, end + len(events)))
                        continue
                if user in users:
                    cursor.putmulti(chunks.items())
                    chunks.clear()
                    users.clear()
                tail = _tail(cursor, prefix, user)
                length = tail.length
                outcome = compare(append, length)
                if (
                    outcome.skipped
                    and outcome.status is OK
                    and not _holds(cursor, prefix, user, position, events[: outcome.skipped])
                ):
                    outcome = conflict(append, length)
            except DataError as error:
                outcomes.append(error)
                continue
            if outcome.skipped < len(events):
                grown = _grow(user, prefix, tail, events[outcome.skipped :], chunks)
                users.add(user)
                if grown.first != tail.first or not tail.chunk.events:
                    begun.setdefault(prefix, length)
                outcome = Appended(OK, outcome.skipped, grown.length)
            outcomes.append(outcome)
        if chunks:
            cursor.putmulti(chunks.items())
        if max_user_events:
            for prefix, length in begun.items():
                _drop(cursor, prefix, length - max_user_events)
    return outcomes


def _bytes(rows: Rows) -> bytes:
    """Rows as chunks hold them."""
    return rows.tobytes() if rows.dtype == LITTLE_ENDIAN else rows.astype(LITTLE_ENDIAN).tobytes()


def _grow(user: bytes, prefix: bytes, tail: "_Tail", rows: Rows, chunks: dict[bytes, bytes]) -> "_Tail":
    """The user's tail with `rows` behind it, at least one; each chunk that this changes goes into `chunks`.

    A last chunk that has room and fewer columns is written anew with as many; one with more gets 0 in these.
    """
    first, value, chunk = tail
    columns = rows.shape[1]
    if chunk.events == CHUNK_EVENTS:
        first, value = first + CHUNK_EVENTS, b""
        chunk = verify_chunk(user, first, value)
    if value and chunk.columns < columns:
        held = fit_columns(rows_of_chunk(user, first, value), columns)
        value, chunk = extend_chunk(b"", verify_chunk(user, first, b"")._replace(columns=columns), _bytes(held))
    elif chunk.columns > columns:
        columns = chunk.columns
        rows = fit_columns(rows, columns)
    payload, row = _bytes(rows), row_bytes(columns)
    chunk = chunk._replace(columns=columns)
    while payload:
        if chunk.events == CHUNK_EVENTS:
            first, value = first + CHUNK_EVENTS, b""
            chunk = verify_chunk(user, first, value)._replace(columns=columns)
        room = (CHUNK_EVENTS - chunk.events) * row
        value, chunk = extend_chunk(value, chunk, payload[:room])
        chunks[prefix + PLACE.pack(first)] = value
        payload = payload[room:]
    return _Tail(first, value, chunk)


def _holds(cursor: Cursor, prefix: bytes, user: bytes, position: int, sent: Rows) -> bool:
    """Whether the events from `position` on, which the log has had, are `sent`, as far as retention has kept them.

    Raises:
        DataError: a chunk of them is damaged.
    """
    stop = position + len(sent)
    oldest = _first(cursor, prefix)
    for first in range(max(chunk_of(position), oldest), stop, CHUNK_EVENTS):
        start, end = max(first, position), min(first + CHUNK_EVENTS, stop)
        value = cursor.value() if cursor.set_key(prefix + PLACE.pack(first)) else b""
        rows = rows_of_chunk(user, first, value) if value else np.empty((0, COLUMNS), np.int64)
        if first + len(rows) < end:
            raise DataError(
                f"chunk at {first}: expected {end - first} events, got {len(rows)}; the log is damaged there"
            )
        if (rows[start - first : end - first, :COLUMNS] != sent[start - position : end - position, :COLUMNS]).any():
            return False
    return True


def peek(cursor: Cursor, append: Append) -> Appended | DataError:
    """What the append of no events says of the user's log."""
    try:
        tail = _tail(cursor, prefix_of(append.user), append.user)
    except DataError as error:
        return error
    return compare(append, tail.length)


def prefix_of(user: bytes) -> bytes:
    """What the keys of all of the user's chunks begin with."""
    return LENGTH.pack(len(user)) + user


def all_users(cursor: Cursor) -> Iterator[bytes]:
    """Every user who has events, in the order of their keys; two steps a user, however many chunks there are."""
    found = cursor.first()
    while found:
        key = cursor.key()
        prefix = key[: -PLACE.size]
        yield prefix[LENGTH.size :]
        found = cursor.set_range(prefix + LAST_PLACE)


def extent_of(cursor: Cursor, user: bytes) -> Extent:
    """The positions that the user's log holds. Raises `DataError` where its end is damaged."""
    prefix = prefix_of(user)
    tail = _tail(cursor, prefix, user)
    return Extent(_first(cursor, prefix), tail.length) if tail.chunk.events else Extent(0, 0)


def _tail(cursor: Cursor, prefix: bytes, user: bytes) -> _Tail:
    """The user's tail, searched for."""
    found = cursor.prev() if cursor.set_range(prefix + LAST_PLACE) else cursor.last()
    if not found:
        return _Tail(0, b"", verify_chunk(user, 0, b""))
    key, value = cursor.item()
    if not key.startswith(prefix):
        return _Tail(0, b"", verify_chunk(user, 0, b""))
    first = int(PLACE.unpack_from(key, len(prefix))[0])
    return _Tail(first, value, verify_chunk(user, first, value))


def _first(cursor: Cursor, prefix: bytes) -> int:
    """Place the cursor on the first chunk of a user who has one; its first position."""
    cursor.set_range(prefix + bytes(PLACE.size))
    return int(PLACE.unpack_from(cursor.key(), len(prefix))[0])


def _drop(cursor: Cursor, prefix: bytes, before: int) -> None:
    """Delete the user's chunks that end at or before position `before`."""
    while _first(cursor, prefix) + CHUNK_EVENTS <= before:
        cursor.delete()
