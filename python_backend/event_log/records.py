"""What the bytes of a stored log mean. numpy and zlib only; no I/O.

A user's log is cut into chunks of `CHUNK_EVENTS` events: chunk c holds the positions from c * CHUNK_EVENTS up to the
next chunk's first. So an append rewrites one chunk, not the history, and a read of n events touches about
n / CHUNK_EVENTS of them.

Two encodings of a chunk, both little-endian, both of format `FORMAT`:

    chunk        uint8 format | uint8 columns | uint16 events | uint32 crc32 | int64 rows [events, columns]
                 LMDB. The checksum covers the user's key, the chunk's first position, and the rows.
    sealed rows  (int64 row [columns] | uint32 crc32) [events]
                 Redis, where a script cuts and joins rows and can't compute checksums. Each row's covers the user's
                 key and the row; the script keeps count and place.

A value that lies in another user's place fails its checksum as flipped bytes do.
"""

import struct
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from longrec.errors import DataError

__all__ = [
    "CHUNK_EVENTS",
    "COLUMNS",
    "FORMAT",
    "ROW_BYTES",
    "SEALED_ROW_BYTES",
    "Rows",
    "chunk_of",
    "continue_chunk",
    "cut_chunk",
    "extend_chunk",
    "rows_of_chunk",
    "seal_rows",
    "unseal_rows",
    "verify_chunk",
]

Rows = NDArray[np.int64]  # [n, COLUMNS] item, unix ms

FORMAT: Final = 2
COLUMNS: Final = 2  # item, time
CHUNK_EVENTS: Final = (
    64  # a chunk of 1 KiB stays inside a 4 KiB page of LMDB; above 2 KiB it would take pages of its own
)
ROW_BYTES: Final = 8 * COLUMNS
SEALED_ROW_BYTES: Final = ROW_BYTES + 4

_HEADER: Final = struct.Struct("<BBHI")
CHUNK_BYTES: Final = _HEADER.size + CHUNK_EVENTS * ROW_BYTES  # the most that a chunk takes
_PLACE: Final = struct.Struct("<Q")
_SEALED: Final = np.dtype([("row", "<i8", COLUMNS), ("crc", "<u4")])


def chunk_of(position: int) -> int:
    """First position of the chunk that holds `position`."""
    return position - position % CHUNK_EVENTS


def rows_of_chunk(user: bytes, first: int, value: bytes) -> Rows:
    """The rows [n, COLUMNS] of a stored chunk, n >= 1; a read-only view of `value`.

    Raises:
        DataError: it isn't what `extend_chunk` made for this user and place.
    """
    verify_chunk(user, first, value)
    return np.frombuffer(value, "<i8", offset=_HEADER.size).reshape(-1, COLUMNS)


def cut_chunk(user: bytes, first: int, value: bytes, start: int, stop: int) -> bytes:
    """The bytes of the rows at positions start..stop-1, which the stored chunk must hold.

    Raises:
        DataError: as `rows_of_chunk`; or it holds fewer.
    """
    count, _ = verify_chunk(user, first, value)
    if first + count < stop:
        raise DataError(f"chunk at {first}: expected {stop - first} events, got {count}; the log is damaged there")
    return value[_HEADER.size + (start - first) * ROW_BYTES : _HEADER.size + (stop - first) * ROW_BYTES]


def verify_chunk(user: bytes, first: int, value: bytes) -> tuple[int, int]:
    """(number of events, checksum) of a stored chunk that is as it was written; of an empty one, where it is begun.

    Raises:
        DataError: as `rows_of_chunk`.
    """
    seed = zlib.crc32(user + _PLACE.pack(first))
    if not value:
        return 0, seed
    if len(value) < _HEADER.size:
        raise DataError(f"chunk at {first}: expected a header of {_HEADER.size} bytes, got {len(value)}")
    version, columns, count, crc = _HEADER.unpack_from(value)
    if version != FORMAT or columns != COLUMNS:
        raise DataError(
            f"chunk at {first}: expected format {FORMAT} with {COLUMNS} columns, got {version} with {columns}"
        )
    if not 1 <= count <= CHUNK_EVENTS or len(value) != _HEADER.size + count * ROW_BYTES:
        raise DataError(
            f"chunk at {first}: expected {count} events, got {len(value) - _HEADER.size} bytes; it is damaged"
        )
    if zlib.crc32(value[_HEADER.size :], seed) != crc:
        raise DataError(f"chunk at {first}: its checksum doesn't fit; the log is damaged there")
    return count, crc


def extend_chunk(value: bytes, count: int, crc: int, payload: bytes) -> tuple[bytes, int, int]:
    """A chunk with the rows `payload` behind those it has.

    The checksum goes on from the old one, so that what was damaged before never becomes valid.

    Args:
        value: of the chunk, empty for a new one.
        count, crc: what `verify_chunk` says of it.

    Returns:
        The new chunk's value, number of events and checksum.
    """
    count, crc = count + len(payload) // ROW_BYTES, zlib.crc32(payload, crc)
    return _HEADER.pack(FORMAT, COLUMNS, count, crc) + value[_HEADER.size :] + payload, count, crc


def continue_chunk(user: bytes, first: int, value: bytes, position: int, payload: bytes) -> bytes | None:
    """The stored chunk `value` with the rows `payload` behind those it has, as `verify_chunk` and `extend_chunk` would
    make it; None if it doesn't end right before `position`, has no room for them, or there are none.

    Raises:
        DataError: as `rows_of_chunk`.
    """
    held = position - first
    size = _HEADER.size + held * ROW_BYTES + len(payload)
    if len(value) + len(payload) != size or size > CHUNK_BYTES or not payload:
        return None
    rows = value[_HEADER.size :]
    crc = zlib.crc32(rows, zlib.crc32(user + _PLACE.pack(first)))
    if value[: _HEADER.size] != _HEADER.pack(FORMAT, COLUMNS, held, crc):
        verify_chunk(user, first, value)  # tells what is wrong
    header = _HEADER.pack(FORMAT, COLUMNS, held + len(payload) // ROW_BYTES, zlib.crc32(payload, crc))
    return header + rows + payload


def seal_rows(user: bytes, events: Rows) -> bytes:
    """Rows [n, COLUMNS], each with its checksum."""
    sealed = np.empty(len(events), _SEALED)
    sealed["row"] = events
    payload, seed = np.ascontiguousarray(events, "<i8").tobytes(), zlib.crc32(user)
    sealed["crc"] = [zlib.crc32(payload[at : at + ROW_BYTES], seed) for at in range(0, len(payload), ROW_BYTES)]
    return sealed.tobytes()


def unseal_rows(user: bytes, first: int, value: bytes) -> Rows:
    """The rows [n, COLUMNS] of sealed rows, the first of which stands at `first`.

    Raises:
        DataError: a row isn't what `seal_rows` made for this user.
    """
    if len(value) % SEALED_ROW_BYTES:
        raise DataError(f"chunk at {first}: expected rows of {SEALED_ROW_BYTES} bytes, got {len(value)} bytes in all")
    sealed = np.frombuffer(value, _SEALED)
    rows = np.ascontiguousarray(sealed["row"], np.int64)
    payload, seed = rows.astype("<i8", copy=False).tobytes(), zlib.crc32(user)
    for n, crc in enumerate(sealed["crc"].tolist()):
        if zlib.crc32(payload[n * ROW_BYTES : (n + 1) * ROW_BYTES], seed) != crc:
            raise DataError(f"event at {first + n}: its checksum doesn't fit; the log is damaged there")
    return rows
