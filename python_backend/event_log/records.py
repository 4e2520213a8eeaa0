"""What the bytes of a stored log mean. numpy and zlib only; no I/O.

A user's log is cut into chunks of `CHUNK_EVENTS` events: chunk c holds the positions from c * CHUNK_EVENTS up to the
next chunk's first. So an append rewrites one chunk, not the history, and a read of n events touches about
n / CHUNK_EVENTS of them.

Two encodings of a chunk, both little-endian, both of format `FORMAT`:

    chunk        uint8 format | uint8 columns | uint16 events | uint32 crc32 | int64 rows [events, columns]
                 LMDB. The checksum covers the user's key, the chunk's first position, and the rows.
                 Chunks of one log may have different numbers of columns: a feature that an event was written without
                 reads as 0, unknown.
    sealed rows  (int64 row [columns] | uint32 crc32) [events]
                 Redis, where a script cuts and joins rows and can't compute checksums. Each row's covers the user's
                 key and the row; the script keeps count and place.

A value that lies in another user's place fails its checksum as flipped bytes do.

The first two columns, item and time, say which event it is; those behind are its features, as the wire has them.
"""

import struct
import zlib
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec.errors import DataError

__all__ = [
    "CHUNK_EVENTS",
    "COLUMNS",
    "FORMAT",
    "Chunk",
    "Rows",
    "chunk_of",
    "continue_chunk",
    "extend_chunk",
    "fit_columns",
    "row_bytes",
    "rows_of_chunk",
    "seal_rows",
    "sealed_row_bytes",
    "unseal_rows",
    "verify_chunk",
]

Rows = NDArray[np.int64]  # [n, COLUMNS + C] item, unix ms, features

FORMAT: Final = 2
COLUMNS: Final = 2  # item, time: the least
CHUNK_EVENTS: Final = (
    64  # a chunk of 1 KiB stays inside a 4 KiB page of LMDB; above 2 KiB it would take pages of its own
)

_HEADER: Final = struct.Struct("<BBHI")
_PLACE: Final = struct.Struct("<Q")


class Chunk(NamedTuple):
    """What a stored chunk's header says: its number of events, checksum, and columns of a row."""

    events: int
    crc: int
    columns: int


def row_bytes(columns: int) -> int:
    """Of a row in a chunk."""
    return 8 * columns


def sealed_row_bytes(columns: int) -> int:
    """Of a sealed row."""
    return 8 * columns + 4


def fit_columns(rows: Rows, columns: int) -> Rows:
    """Rows [n, m] with so many columns: the last left out, or 0 in further ones."""
    if rows.shape[1] >= columns:
        return rows[:, :columns]
    return np.pad(rows, ((0, 0), (0, columns - rows.shape[1])))


def chunk_of(position: int) -> int:
    """First position of the chunk that holds `position`."""
    return position - position % CHUNK_EVENTS


def rows_of_chunk(user: bytes, first: int, value: bytes) -> Rows:
    """The rows [n, columns of the chunk] of a stored chunk, n >= 1; a read-only view of `value`.

    Raises:
        DataError: it isn't what `extend_chunk` made for this user and place.
    """
    columns = verify_chunk(user, first, value).columns
    return np.frombuffer(value, "<i8", offset=_HEADER.size).reshape(-1, columns)


def verify_chunk(user: bytes, first: int, value: bytes) -> Chunk:
    """The header of a stored chunk that is as it was written; of an empty one, where it is begun.

    Raises:
        DataError: as `rows_of_chunk`.
    """
    seed = zlib.crc32(user + _PLACE.pack(first))
    if not value:
        return Chunk(0, seed, COLUMNS)
    if len(value) < _HEADER.size:
        raise DataError(f"chunk at {first}: expected a header of {_HEADER.size} bytes, got {len(value)}")
    version, columns, count, crc = _HEADER.unpack_from(value)
    if version != FORMAT or columns < COLUMNS:
        raise DataError(
            f"chunk at {first}: expected format {FORMAT} with {COLUMNS} columns or more, got {version} with {columns}"
        )
    if not 1 <= count <= CHUNK_EVENTS or len(value) != _HEADER.size + count * row_bytes(columns):
        raise DataError(
            f"chunk at {first}: expected {count} events, got {len(value) - _HEADER.size} bytes; it is damaged"
        )
    if zlib.crc32(value[_HEADER.size :], seed) != crc:
        raise DataError(f"chunk at {first}: its checksum doesn't fit; the log is damaged there")
    return Chunk(count, crc, columns)


def extend_chunk(value: bytes, chunk: Chunk, payload: bytes) -> tuple[bytes, Chunk]:
    """A chunk with the rows `payload`, of its columns, behind those it has.

    The checksum goes on from the old one, so that what was damaged before never becomes valid.

    Args:
        value: of the chunk, empty for a new one.
        chunk: what `verify_chunk` says of it.

    Returns:
        The new chunk's value and header.
    """
    columns = chunk.columns
    chunk = Chunk(chunk.events + len(payload) // row_bytes(columns), zlib.crc32(payload, chunk.crc), columns)
    return _HEADER.pack(FORMAT, columns, chunk.events, chunk.crc) + value[_HEADER.size :] + payload, chunk


def continue_chunk(user: bytes, first: int, value: bytes, position: int, payload: bytes, columns: int) -> bytes | None:
    """The stored chunk `value` with the rows `payload`, of so many columns, behind those it has, as `verify_chunk` and
    `extend_chunk` would make it; None if it doesn't end right before `position`, has other columns or no room for them,
    or there are none.

    Raises:
        DataError: as `rows_of_chunk`.
    """
    held = position - first
    row = 8 * columns
    size = _HEADER.size + held * row + len(payload)
    too_long = size > _HEADER.size + CHUNK_EVENTS * row
    if len(value) + len(payload) != size or too_long or not payload or value[1] != columns:
        return None
    rows = value[_HEADER.size :]
    crc = zlib.crc32(rows, zlib.crc32(user + _PLACE.pack(first)))
    if value[: _HEADER.size] != _HEADER.pack(FORMAT, columns, held, crc):
        verify_chunk(user, first, value)  # tells what is wrong
    header = _HEADER.pack(FORMAT, columns, held + len(payload) // row, zlib.crc32(payload, crc))
    return header + rows + payload


def seal_rows(user: bytes, events: Rows) -> bytes:
    """Rows [n, columns], each with its checksum."""
    columns = events.shape[1]
    sealed, row = np.empty(len(events), _sealed(columns)), row_bytes(columns)
    sealed["row"] = events
    payload, seed = np.ascontiguousarray(events, "<i8").tobytes(), zlib.crc32(user)
    sealed["crc"] = [zlib.crc32(payload[at : at + row], seed) for at in range(0, len(payload), row)]
    return sealed.tobytes()


def unseal_rows(user: bytes, first: int, value: bytes, columns: int) -> Rows:
    """The rows [n, columns] of sealed rows, the first of which stands at `first`.

    Raises:
        DataError: a row isn't what `seal_rows` made for this user.
    """
    if len(value) % sealed_row_bytes(columns):
        expected = f"rows of {sealed_row_bytes(columns)} bytes"
        raise DataError(f"chunk at {first}: expected {expected}, got {len(value)} bytes in all")
    sealed, row = np.frombuffer(value, _sealed(columns)), row_bytes(columns)
    rows = np.ascontiguousarray(sealed["row"], np.int64)
    payload, seed = rows.astype("<i8", copy=False).tobytes(), zlib.crc32(user)
    for n, crc in enumerate(sealed["crc"].tolist()):
        if zlib.crc32(payload[n * row : (n + 1) * row], seed) != crc:
            raise DataError(f"event at {first + n}: its checksum doesn't fit; the log is damaged there")
    return rows


@lru_cache
def _sealed(columns: int) -> np.dtype[Any]:
    return np.dtype([("row", "<i8", columns), ("crc", "<u4")])
