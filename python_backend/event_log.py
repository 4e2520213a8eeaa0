"""The event log: every user's events, durable and append-only, in LMDB. The truth that memories are a cache of.

Position p of a user's log names an event for ever. An append is compare-and-append: it states the position of its first
event, and what the log already holds is skipped, so that a retry changes nothing.

A record holds the events of one append:

    key    uint16 length of the user's key | the user's key | uint64 position of the first event       (big-endian)
    value  uint8 format | uint8 columns | uint16 0 | uint32 crc32 of the rows | int64 rows [n, columns] (little-endian)

Holds no networks and no K/V. The only file that knows LMDB.
"""

import struct
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import lmdb
import numpy as np
from numpy.typing import NDArray

from longrec.errors import DataError, MachineError
from longrec.protocol import UNCHECKED_POSITION, Status

__all__ = ["Append", "Appended", "EventLog"]

FORMAT = 1
COLUMNS = 2  # item, time
HEADER = struct.Struct("<BBHI")
Rows = NDArray[np.int64]


class Append(NamedTuple):
    """Events [n, 2] (item, unix ms) for the log of `user`, the first at `position` (-1: at the end, unchecked)."""

    user: bytes
    position: int
    events: Rows


class Appended(NamedTuple):
    """What became of an append: its status, how many leading events the log held already, the log's length after it."""

    status: Status
    skipped: int
    length: int


class EventLog:
    """An LMDB folder of logs. Several processes of one machine may hold it open; appends are serialised by LMDB.

    Args:
        path: folder, made if missing.
        durability: `commit`: `append` returns when the events are on disk. `interval`: they are there at most
            `flush_milliseconds` later; a killed process loses nothing, a stopped machine that much. `none`: the
            operating system decides.
        max_bytes: size limit.

    Raises:
        MachineError: the folder can't be opened or written.
    """

    def __init__(
        self,
        path: Path,
        *,
        durability: Literal["commit", "interval", "none"] = "interval",
        flush_milliseconds: int = 100,
        max_bytes: int = 16 << 30,
    ) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            # readahead off: a log larger than memory is read at random
            self._env = lmdb.open(str(path), map_size=max_bytes, sync=durability == "commit", readahead=False)
        except (OSError, lmdb.Error) as error:
            raise MachineError(f"event_log={path}: expected a folder that can be written, got {error}") from None
        self._dirty = threading.Event()
        self._closed = threading.Event()
        self._flusher: threading.Thread | None = None
        if durability == "interval":
            arguments = (flush_milliseconds / 1000,)
            self._flusher = threading.Thread(target=self._flush_repeatedly, args=arguments, daemon=True)
            self._flusher.start()

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._flusher is not None:
            self._flusher.join()
        self._env.sync(True)
        self._env.close()

    def append(self, appends: Sequence[Append]) -> list[Appended]:
        """Apply the appends in order, in one transaction: all of them are in the log afterwards, or none.

        Raises:
            MachineError: the disk or the log's size limit is full; nothing was appended.
        """
        if not any(len(append.events) for append in appends):
            with self._env.begin() as transaction, transaction.cursor() as cursor:
                return [_check(append, _length(cursor, append.user)) for append in appends]
        try:
            with self._env.begin(write=True) as transaction, transaction.cursor() as cursor:
                outcomes = [_append(cursor, append) for append in appends]
        except lmdb.Error as error:
            raise MachineError(f"event_log={self.path}: nothing was appended: {error}") from None
        self._dirty.set()
        return outcomes

    def length(self, user: bytes) -> int:
        """Number of events in the user's log; 0 for a user never seen."""
        with self._env.begin() as transaction, transaction.cursor() as cursor:
            return _length(cursor, user)

    def read(self, user: bytes, start: int, stop: int) -> Rows:
        """Events [stop - start, 2] at positions start..stop-1, which the log must hold.

        Raises:
            DataError: a record is damaged, or events are missing.
        """
        prefix = _prefix(user)
        found, expected = [], stop
        with self._env.begin() as transaction, transaction.cursor() as cursor:
            valid = _seek_last(cursor, prefix, stop - 1)
            while valid and expected > start:  # from the last record that begins before `stop` backwards
                first, rows = _decode(cursor.key(), cursor.value(), len(prefix))
                if first + len(rows) < expected:
                    break
                found.append(rows[max(0, start - first) : expected - first])
                expected = first
                valid = cursor.prev() and bytes(cursor.key()).startswith(prefix)
        if expected > start:
            raise DataError(
                f"event_log={self.path}: expected events {start}..{stop - 1} of a user, got none at {expected - 1}"
            )
        return np.concatenate(found[::-1]) if found else np.empty((0, COLUMNS), np.int64)

    def _flush_repeatedly(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            if self._dirty.is_set():
                self._dirty.clear()
                self._env.sync(True)


def _prefix(user: bytes) -> bytes:
    return struct.pack(">H", len(user)) + user


def _seek_last(cursor: lmdb.Cursor, prefix: bytes, position: int) -> bool:
    """Place the cursor on the user's last record whose first event is at or before `position`."""
    key = prefix + struct.pack(">Q", position)
    if cursor.set_range(key):
        if cursor.key() == key:
            return True
        if not cursor.prev():
            return False
    elif not cursor.last():
        return False
    return bytes(cursor.key()).startswith(prefix)


def _length(cursor: lmdb.Cursor, user: bytes) -> int:
    prefix = _prefix(user)
    if not _seek_last(cursor, prefix, (1 << 64) - 1):
        return 0
    first = struct.unpack_from(">Q", cursor.key(), len(prefix))[0]
    return int(first + (len(cursor.value()) - HEADER.size) // (8 * COLUMNS))


def _check(append: Append, length: int) -> Appended:
    """What an append to a log of `length` events will do; `length` in the result is the one before it."""
    if append.position == UNCHECKED_POSITION:
        return Appended(Status.OK, 0, length)
    if append.position > length:
        return Appended(Status.GAP, len(append.events), length)
    return Appended(Status.OK, min(length - append.position, len(append.events)), length)


def _append(cursor: lmdb.Cursor, append: Append) -> Appended:
    outcome = _check(append, _length(cursor, append.user))
    rows = append.events[outcome.skipped :]
    if not len(rows):
        return outcome
    payload = np.ascontiguousarray(rows, dtype="<i8").tobytes()
    key = _prefix(append.user) + struct.pack(">Q", outcome.length)
    cursor.put(key, HEADER.pack(FORMAT, COLUMNS, 0, zlib.crc32(payload)) + payload)
    return outcome._replace(length=outcome.length + len(rows))


def _decode(key: bytes, value: bytes, prefix_bytes: int) -> tuple[int, Rows]:
    """(position of the first event, rows) of a record; the rows are a copy."""
    first = int(struct.unpack_from(">Q", key, prefix_bytes)[0])
    version, columns, _, checksum = HEADER.unpack_from(value)
    payload = value[HEADER.size :]
    if version != FORMAT or columns != COLUMNS:
        raise DataError(
            f"record at {first}: expected format {FORMAT} with {COLUMNS} columns, got {version} with {columns}"
        )
    if zlib.crc32(payload) != checksum:
        raise DataError(f"record at {first}: its checksum doesn't fit; the log is damaged there")
    return first, np.frombuffer(payload, "<i8").reshape(-1, COLUMNS)
