"""The event log in LMDB: one folder, several processes of one machine. The only file that knows LMDB.

Two databases lie in the folder:

    meta    "format" -> ASCII decimal of `records.FORMAT`
    events  uint16 length of the user's key | the key | uint64 first position of the chunk (big-endian) -> chunk

Readers see what any process has committed, and never wait; writers wait for each other.
"""

import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lmdb
import numpy as np

from longrec.errors import DataError, LongrecError, MachineError
from longrec.python_backend.event_log.log import Append, Appended, EventLog, Extent, compare, missing
from longrec.python_backend.event_log.records import (
    CHUNK_EVENTS,
    COLUMNS,
    FORMAT,
    ROW_BYTES,
    Rows,
    chunk_length,
    chunk_of,
    extend_chunk,
    rows_of_chunk,
)

__all__ = ["LmdbLog"]

# lmdb's own types leave open whether values are bytes or views of the map; ours are opened for bytes
Transaction = Any
Cursor = Any
PLACE = struct.Struct(">Q")
LAST_PLACE = b"\xff" * PLACE.size


class LmdbLog(EventLog):
    """An LMDB folder of logs. A process may open a folder once.

    Args:
        path: folder, made if missing.
        durability: `commit`: `append` returns when the events are on disk (one sync a batch). `interval`: they are
            there at most `flush_milliseconds` later; a killed process loses nothing, a stopped machine that much, if
            its file system keeps the order of writes. `none`: the operating system decides.
        flush_milliseconds: of `interval`.
        max_bytes: size limit of the file.
        max_user_events: the newest events of a user that are kept whatever comes; older chunks are dropped by the next
            append that begins a chunk. 0: everything is kept.

    Raises:
        MachineError: the folder can't be opened or written.
        DataError: it holds a log of another format, or a damaged one.
    """

    def __init__(
        self,
        path: Path,
        *,
        durability: Literal["commit", "interval", "none"] = "interval",
        flush_milliseconds: int = 100,
        max_bytes: int = 16 << 30,
        max_user_events: int = 0,
    ) -> None:
        self.path, self._max_user_events = path, max_user_events
        try:
            path.mkdir(parents=True, exist_ok=True)
            # readahead off: a log larger than memory is read at random
            self._env = lmdb.open(
                str(path), map_size=max_bytes, sync=durability == "commit", readahead=False, max_dbs=2
            )
        except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError) as error:
            raise DataError(f"event_log={path}: expected an LMDB folder, got a damaged one: {error}") from None
        except (OSError, lmdb.Error) as error:
            raise MachineError(f"event_log={path}: expected a folder that can be written, got {error}") from None
        try:
            self._check_size()
            self._env.reader_check()  # frees the slots of readers that were killed
            self._events = self._open_databases()
        except lmdb.Error as error:
            self._env.close()
            raise MachineError(f"event_log={path}: expected a folder that can be written, got {error}") from None
        except LongrecError:
            self._env.close()
            raise
        self._dirty = threading.Event()
        self._closed = threading.Event()
        self._flush_error: lmdb.Error | None = None
        self._flusher: threading.Thread | None = None
        if durability == "interval":
            self._flusher = threading.Thread(
                target=self._flush_repeatedly, args=(flush_milliseconds / 1000,), name="event log flusher", daemon=True
            )
            self._flusher.start()

    def close(self) -> None:
        """Sync and close; a second call does nothing.

        Raises:
            MachineError: what was appended last may not be on disk.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        if self._flusher is not None:
            self._flusher.join()
        try:
            self._env.sync(True)
        except lmdb.Error as error:
            self._flush_error = error
        self._env.close()
        self._check_flusher()

    def append(self, appends: Sequence[Append]) -> list[Appended | DataError]:
        """As `EventLog.append`."""
        self._check_flusher()
        if not any(len(append.events) for append in appends):
            with self._reading() as transaction:
                return [self._peek(transaction, append) for append in appends]
        try:
            with self._env.begin(write=True, db=self._events) as transaction, transaction.cursor() as cursor:
                outcomes = [self._append(cursor, append) for append in appends]
        except lmdb.MapFullError:
            raise MachineError(
                f"event_log={self.path}: nothing was appended: its size limit is reached; "
                "raise log_bytes, or set max_user_events"
            ) from None
        except lmdb.Error as error:
            raise MachineError(f"event_log={self.path}: nothing was appended: {error}") from None
        self._dirty.set()
        return outcomes

    def extent(self, user: bytes) -> Extent:
        """As `EventLog.extent`."""
        try:
            with self._reading() as transaction, transaction.cursor() as cursor:
                return _extent(cursor, user)
        except DataError as error:
            raise self._damaged(error) from None

    def read(self, user: bytes, start: int, stop: int) -> Rows:
        """As `EventLog.read`."""
        if start >= stop:
            return np.empty((0, COLUMNS), np.int64)
        prefix, parts = _prefix(user), []
        try:
            with self._reading() as transaction:
                for first in range(chunk_of(start), stop, CHUNK_EVENTS):
                    value = transaction.get(prefix + PLACE.pack(first))
                    rows = rows_of_chunk(user, first, value) if value is not None else np.empty((0, COLUMNS), np.int64)
                    if first + len(rows) < min(stop, first + CHUNK_EVENTS):
                        with transaction.cursor() as cursor:
                            raise missing(str(self.path), start, stop, _extent(cursor, user))
                    parts.append(rows)
        except DataError as error:
            raise self._damaged(error) from None
        begin = start - chunk_of(start)
        return np.concatenate(parts)[begin : begin + stop - start]

    def _append(self, cursor: Cursor, append: Append) -> Appended | DataError:
        user = append.user
        try:
            tail, value, length = _tail(cursor, user)
        except DataError as error:
            return self._damaged(error)
        outcome = compare(append, length)
        rows = append.events[outcome.skipped :]
        if not len(rows):
            return outcome
        payload, prefix = np.ascontiguousarray(rows, dtype="<i8").tobytes(), _prefix(user)
        if length - tail == CHUNK_EVENTS:
            tail, value = length, b""
        room, at = (CHUNK_EVENTS - (length - tail)) * ROW_BYTES, 0
        begun = not value
        while at < len(payload):
            cursor.put(prefix + PLACE.pack(tail), extend_chunk(user, tail, value, payload[at : at + room]))
            begun = begun or at > 0
            at, room, tail, value = at + room, CHUNK_EVENTS * ROW_BYTES, tail + CHUNK_EVENTS, b""
        if begun and self._max_user_events:
            _drop(cursor, prefix, length - self._max_user_events)
        return outcome._replace(length=length + len(rows))

    def _peek(self, transaction: Transaction, append: Append) -> Appended | DataError:
        try:
            with transaction.cursor() as cursor:
                return compare(append, _tail(cursor, append.user)[2])
        except DataError as error:
            return self._damaged(error)

    def _reading(self) -> "_Reading":
        return _Reading(self._env, self._events, self.path)

    def _damaged(self, error: DataError) -> DataError:
        message = str(error)
        return error if message.startswith("event_log=") else DataError(f"event_log={self.path}: {message}")

    def _check_size(self) -> None:
        """A file that is shorter than its pages would end the process at the first touch of a missing one (SIGBUS)."""
        expected = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        size = (self.path / "data.mdb").stat().st_size
        if self._env.info()["last_txnid"] and size < expected:
            raise DataError(
                f"event_log={self.path}: expected {expected} bytes in data.mdb, got {size}; it was cut off: "
                "put back a copy, or move the folder away"
            )

    def _open_databases(self) -> Any:
        with self._env.begin(write=True) as transaction:
            names = {bytes(name) for name, _ in transaction.cursor()}
        if names - {b"meta", b"events"}:
            raise self._other_format("1")
        meta = self._env.open_db(b"meta")
        with self._env.begin(write=True, db=meta) as transaction:
            found = transaction.get(b"format")
            if found is None:
                transaction.put(b"format", str(FORMAT).encode())
            elif found != str(FORMAT).encode():
                raise self._other_format(found.decode(errors="replace"))
        return self._env.open_db(b"events")

    def _other_format(self, found: str) -> DataError:
        return DataError(
            f"event_log={self.path}: expected a log of format {FORMAT}, got {found}; "
            "serve it with the release that wrote it, or set event_log to a new folder"
        )

    def _check_flusher(self) -> None:
        if self._flush_error is not None:
            raise MachineError(
                f"event_log={self.path}: events acknowledged before may not be on disk, and no more are taken: the "
                f"sync failed: {self._flush_error}; restart the server when the disk is well"
            )

    def _flush_repeatedly(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            if self._dirty.is_set():
                self._dirty.clear()
                try:
                    self._env.sync(True)
                except lmdb.Error as error:
                    # not tried again: after a failed sync the kernel may call pages clean that never reached the disk
                    self._flush_error = error
                    return


class _Reading:
    """A read transaction whose LMDB errors are ours."""

    def __init__(self, env: Any, database: Any, path: Path) -> None:
        self._env, self._database, self._path = env, database, path

    def __enter__(self) -> Transaction:
        try:
            self._transaction = self._env.begin(db=self._database)
        except lmdb.Error as error:
            raise MachineError(f"event_log={self._path}: expected a log that can be read, got {error}") from None
        return self._transaction

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._transaction.abort()
        if isinstance(error, lmdb.Error):
            raise DataError(f"event_log={self._path}: a page of data.mdb is damaged: {error}") from None


def _prefix(user: bytes) -> bytes:
    return struct.pack(">H", len(user)) + user


def _tail(cursor: Cursor, user: bytes) -> tuple[int, bytes, int]:
    """(first position, value) of the user's last chunk, and the log's length; (0, b"", 0) for a user never seen."""
    prefix = _prefix(user)
    found = cursor.prev() if cursor.set_range(prefix + LAST_PLACE) else cursor.last()
    key = cursor.key() if found else b""
    if not key.startswith(prefix):
        return 0, b"", 0
    first = int(PLACE.unpack_from(key, len(prefix))[0])
    value = cursor.value()
    return first, value, first + chunk_length(user, first, value)


def _extent(cursor: Cursor, user: bytes) -> Extent:
    prefix, length = _prefix(user), _tail(cursor, user)[2]
    return Extent(_first(cursor, prefix), length) if length else Extent(0, 0)


def _first(cursor: Cursor, prefix: bytes) -> int:
    """Place the cursor on the first chunk of a user who has one; its first position."""
    cursor.set_range(prefix + bytes(PLACE.size))
    return int(PLACE.unpack_from(cursor.key(), len(prefix))[0])


def _drop(cursor: Cursor, prefix: bytes, before: int) -> None:
    """Delete the user's chunks that end at or before position `before`."""
    while _first(cursor, prefix) + CHUNK_EVENTS <= before:
        cursor.delete()
