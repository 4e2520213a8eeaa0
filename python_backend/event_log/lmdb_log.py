"""The event log in LMDB: one folder, several processes of one machine. The only file that knows LMDB.

Two databases lie in the folder, and a third one where states are kept:

    meta    "format" -> ASCII decimal of `records.FORMAT`
            "recent" | uint64 unix nanoseconds (big-endian) -> a page of the order of users (see `recency.py`)
    events  uint16 length of the user's key | the key | uint64 first position of the chunk (big-endian) -> chunk
    states  the user's key -> what `write_states` kept

Readers see what any process has committed, and never wait; writers wait for each other.
"""

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import lmdb
import numpy as np

from longrec.errors import DataError, LongrecError, MachineError
from longrec.python_backend.event_log.lmdb_batch import (
    PLACE,
    Transaction,
    all_users,
    append_batch,
    extent_of,
    peek,
    prefix_of,
)
from longrec.python_backend.event_log.log import Append, Appended, EventLog, Extent, Span, missing
from longrec.python_backend.event_log.recency import PAGES_KEPT, Page, RecentUsers, users_of_page
from longrec.python_backend.event_log.records import (
    CHUNK_EVENTS,
    COLUMNS,
    FORMAT,
    Rows,
    chunk_of,
    fit_columns,
    rows_of_chunk,
)

__all__ = ["LmdbLog"]

STATES: Final = b"states"
RECENT: Final = b"recent"
RECENT_END: Final = RECENT + b"\xff" * PLACE.size
LOCK_BYTES: Final = 8192  # of lock.mdb, for LMDB's 126 readers
# what LMDB says of a page that isn't what it should be (of no kind, not in the file, in a tree deeper than can be), and
# of the transaction that met one
DAMAGE: Final = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.CursorFullError, lmdb.BadTxnError)

Request = TypeVar("Request")
Result = TypeVar("Result")


class LmdbLog(EventLog):
    """An LMDB folder of logs. A process may open a folder once.

    Args:
        path: folder, made if missing.
        durability: `commit`: `append` returns when the events are on disk (one sync a batch). `interval`: they are
            there at most `flush_milliseconds` later; a killed process loses nothing, a stopped machine that much, if
            its file system keeps the order of writes. `none`: the operating system decides.
        flush_milliseconds: of `interval`.
        max_bytes: size limit of the file.
        num_features: columns that reads give behind item and time: 0, unknown, where an event was written without.
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
        num_features: int = 0,
    ) -> None:
        self.path, self._durability = path, durability
        self._columns = COLUMNS + num_features
        self._max_user_events, self._max_bytes = max_user_events, max_bytes
        try:
            path.mkdir(parents=True, exist_ok=True)
            _allocate(path / "lock.mdb")
            # readahead off: a log larger than memory is read at random
            self._env = lmdb.open(
                str(path), map_size=max_bytes, sync=durability == "commit", readahead=False, max_dbs=3
            )
        except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError) as error:
            raise DataError(f"event_log={path}: expected an LMDB folder, got a damaged one: {error}") from None
        except (OSError, lmdb.Error) as error:
            raise MachineError(f"event_log={path}: expected a folder that can be written, got {error}") from None
        try:
            self._check_size()
            self._env.reader_check()  # frees the slots of readers that were killed
            self._meta, self._events = self._open_databases()
        except lmdb.Error as error:
            self._env.close()
            raise MachineError(f"event_log={path}: expected a folder that can be written, got {error}") from None
        except LongrecError:
            self._env.close()
            raise
        self._states: Any = None  # until it is asked for: most logs have none
        self._recent = RecentUsers()
        self._closed = threading.Event()
        # monotonic seconds of the oldest append that no sync has covered, and of the oldest that a running one covers
        self._appended_at: float | None = None
        self._syncing_since: float | None = None
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
        self._write_order()
        try:
            self._env.sync(True)
        except lmdb.Error as error:
            self._flush_error = error
        self._env.close()
        self._check_flusher()

    def append(self, appends: Sequence[Append]) -> list[Appended | LongrecError]:
        """As `EventLog.append`."""
        self._check_flusher()
        if not any(len(append.events) for append in appends):
            return self._peek(appends)
        try:
            page = self._recent.page() if self._recent.is_due else None
            try:
                outcomes: Sequence[Appended | LongrecError] = self._append(appends, page)
            except lmdb.MapFullError:
                if page is None:
                    raise
                page, outcomes = None, self._append(appends, None)
        except DAMAGE:
            page, outcomes = None, self._append_in_parts(appends)
        except lmdb.Error as error:
            if all(len(append.events) for append in appends):
                raise self._refusal(error) from None
            return self._refused(appends, error)
        if self._appended_at is None:
            self._appended_at = time.monotonic()
        if page is not None:
            self._recent.written(page)
        self._recent.note([append.user for append in appends])
        return self._named(outcomes)

    def _append_in_parts(self, appends: Sequence[Append]) -> list[Appended | LongrecError]:
        """Half by half, each a transaction: what a damaged page is in the way of is found, and the rest appended."""
        parts, outcomes = [appends], list[Appended | LongrecError]()
        while parts:
            part = parts.pop()
            try:
                outcomes += self._append(part, None)
            except DAMAGE as error:
                if len(part) == 1:
                    outcomes.append(_damaged_page(self.path, error))
                else:
                    parts += part[len(part) // 2 :], part[: len(part) // 2]
            except lmdb.Error as error:
                outcomes += self._refused(part, error)
        return outcomes

    def _refused(self, appends: Sequence[Append], error: lmdb.Error) -> list[Appended | LongrecError]:
        """What becomes of appends that can't be written: those of no events are told what the log holds."""
        refusal, held = self._refusal(error), iter(self._peek([append for append in appends if not len(append.events)]))
        return [refusal if len(append.events) else next(held) for append in appends]

    def _refusal(self, error: lmdb.Error) -> MachineError:
        reason = f"{error}; is there room on its disk?"  # a write that a full disk cut short is an "Input/output error"
        if isinstance(error, lmdb.MapFullError):
            reason = "its size limit is reached; raise log_bytes, or set max_user_events"
        return MachineError(f"event_log={self.path}: nothing was appended: {reason}")

    def _peek(self, appends: Sequence[Append]) -> list[Appended | LongrecError]:
        """What appends of no events say of the log."""

        def look(transaction: Transaction, append: Append) -> Appended | DataError:
            with transaction.cursor() as cursor:
                return peek(cursor, append)

        return self._named(self._each(look, appends))

    def extent(self, user: bytes) -> Extent:
        """As `EventLog.extent`."""
        try:
            with self._reading() as transaction, transaction.cursor() as cursor:
                return extent_of(cursor, user)
        except DataError as error:
            raise self._damaged(error) from None

    def read_many(self, spans: Sequence[Span]) -> list[Rows | DataError]:
        """As `EventLog.read_many`."""
        return self._each(self._read, spans)

    def write_states(self, states: Mapping[bytes, bytes]) -> None:
        """As `EventLog.write_states`."""
        try:
            self._states = self._env.open_db(STATES)
            with self._env.begin(write=True, db=self._states) as transaction:
                for user, state in states.items():
                    transaction.put(user, state)
        except lmdb.Error as error:
            raise self._refusal(error) from None

    def read_states(self, users: Sequence[bytes]) -> list[bytes | None]:
        """As `EventLog.read_states`."""
        try:
            self._states = self._env.open_db(STATES, create=False)
            with self._env.begin(db=self._states) as transaction:
                return [transaction.get(user) for user in users]
        except (lmdb.NotFoundError, *DAMAGE):
            return [None] * len(users)
        except lmdb.Error as error:
            raise MachineError(f"event_log={self.path}: expected a log that can be read, got {error}") from None

    def recent_users(self, limit: int) -> list[bytes]:
        """As `EventLog.recent_users`: from the order that appends keep; where that ends, in no order."""
        users = dict.fromkeys(islice(self._recent.latest_first(), limit))
        # a hint: whoever comes behind a damaged page is left out, and told of the damage when they ask
        with contextlib.suppress(DataError), self._reading() as transaction, transaction.cursor(self._meta) as cursor:
            found = cursor.prev() if cursor.set_range(RECENT_END) else cursor.last()
            while found and len(users) < limit and cursor.key().startswith(RECENT):
                users.update(dict.fromkeys(users_of_page(cursor.value())))
                found = cursor.prev()
        with contextlib.suppress(DataError), self._reading() as transaction, transaction.cursor() as cursor:
            everyone = all_users(cursor)
            while len(users) < limit and (user := next(everyone, None)) is not None:
                users[user] = None
        return list(islice(users, limit))

    def lag_seconds(self) -> float:
        """As `EventLog.lag_seconds`."""
        if self._durability == "none":
            return math.nan
        since = [at for at in (self._syncing_since, self._appended_at) if at is not None]
        return time.monotonic() - min(since) if since and self._durability == "interval" else 0.0

    def size(self) -> tuple[int, int]:
        """As `EventLog.size`: the file's pages in use."""
        with self._reading() as transaction:
            databases = [each for each in (self._meta, self._events, self._states) if each is not None]
            stats = [transaction.stat(database) for database in databases]
        pages = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        return pages * stats[0]["psize"], self._max_bytes

    def _append(self, appends: Sequence[Append], page: Page | None) -> list[Appended | DataError]:
        """One transaction."""
        with self._env.begin(write=True, db=self._events) as transaction:
            outcomes = append_batch(transaction, appends, self._max_user_events)
            if page is not None:
                self._write_page(transaction, page)
        return outcomes

    def _write_order(self) -> None:
        """Keep what isn't kept yet of the users' order, if there is room; a log that failed stays as it is."""
        if self._recent.is_unwritten and self._flush_error is None:
            with contextlib.suppress(lmdb.Error), self._env.begin(write=True) as transaction:
                self._write_page(transaction, self._recent.page())

    def _write_page(self, transaction: Transaction, page: Page) -> None:
        """Keep a page of the users' order, and not too many of them."""
        if page.replaces is not None:
            transaction.delete(RECENT + PLACE.pack(page.replaces), db=self._meta)
        transaction.put(RECENT + PLACE.pack(page.place), page.users, db=self._meta)
        if page.replaces is None:
            with transaction.cursor(self._meta) as cursor:
                cursor.set_range(RECENT)
                places = [key for key in cursor.iternext(values=False) if key.startswith(RECENT)]
            for place in places[:-PAGES_KEPT]:
                transaction.delete(place, db=self._meta)

    def _read(self, transaction: Transaction, span: Span) -> Rows | DataError:
        user, start, stop = span
        if start >= stop:
            return np.empty((0, self._columns), np.int64)
        prefix, parts = prefix_of(user), []
        try:
            for first in range(chunk_of(start), stop, CHUNK_EVENTS):
                value = transaction.get(prefix + PLACE.pack(first))
                rows = rows_of_chunk(user, first, value) if value else np.empty((0, COLUMNS), np.int64)
                rows = fit_columns(rows, self._columns)
                if first + len(rows) < min(stop, first + CHUNK_EVENTS):
                    with transaction.cursor() as cursor:
                        return missing(str(self.path), start, stop, extent_of(cursor, user))
                parts.append(rows)
        except DataError as error:
            return self._damaged(error)
        begin = start - chunk_of(start)
        return np.concatenate(parts)[begin : begin + stop - start]

    def _each(
        self, answer: Callable[[Transaction, Request], Result | DataError], requests: Sequence[Request]
    ) -> list[Result | DataError]:
        """An answer each, of one transaction; of one each where that meets a damaged page, which no transaction
        survives: it fails those alone whom it is in the way of."""
        try:
            with self._reading() as transaction:
                return [answer(transaction, request) for request in requests]
        except DataError as error:
            if len(requests) == 1:
                return [DataError(str(error))]  # without its traceback, which holds the transaction and a reader's slot
            return [result for request in requests for result in self._each(answer, [request])]

    def _named(self, outcomes: Sequence[Appended | LongrecError]) -> list[Appended | LongrecError]:
        """The outcomes, with the log's name in errors."""
        return [self._damaged(outcome) if isinstance(outcome, DataError) else outcome for outcome in outcomes]

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

    def _open_databases(self) -> tuple[Any, Any]:
        with self._env.begin(write=True) as transaction:
            names = {bytes(name) for name, _ in transaction.cursor()}
        if names - {b"meta", b"events", STATES}:
            raise self._other_format("1")
        meta = self._env.open_db(b"meta")
        with self._env.begin(write=True, db=meta) as transaction:
            found = transaction.get(b"format")
            if found is None:
                transaction.put(b"format", str(FORMAT).encode())
            elif found != str(FORMAT).encode():
                raise self._other_format(found.decode(errors="replace"))
        return meta, self._env.open_db(b"events")

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
            if self._appended_at is not None:
                self._syncing_since, self._appended_at = self._appended_at, None
                try:
                    self._env.sync(True)
                    self._syncing_since = None
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
            raise _damaged_page(self._path, error) from None


def _damaged_page(path: Path, error: lmdb.Error) -> DataError:
    return DataError(f"event_log={path}: a page of data.mdb is damaged: {error}")


def _allocate(lock_file: Path) -> None:
    """Give the lock file its blocks now: LMDB writes to it through a map, and a full disk would end the process there
    (SIGBUS). Not touched again once it has them: closing it drops what locks this process holds on it."""
    if not lock_file.exists() or lock_file.stat().st_blocks * 512 < LOCK_BYTES:
        with lock_file.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, LOCK_BYTES)
