"""Every flipped bit of a stored chunk is found, in either encoding, and a chunk in another's place too."""

import numpy as np
import pytest

from longrec.errors import DataError
from longrec.python_backend.event_log import records


def chunk(user, first, events):
    return records.extend_chunk(user, first, b"", np.ascontiguousarray(events, "<i8").tobytes())


@pytest.mark.parametrize(
    ("encode", "decode"),
    [(chunk, records.rows_of_chunk), (lambda user, _, events: records.seal_rows(user, events), records.unseal_rows)],
    ids=["chunk", "sealed"],
)
def test_damage_is_found(encode, decode, rows):
    events = rows(3, 1, 4)
    value = encode(b"u", 64, events)
    np.testing.assert_array_equal(decode(b"u", 64, value), events)
    for bit in range(8 * len(value)):
        damaged = bytearray(value)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DataError):
            decode(b"u", 64, bytes(damaged))
    with pytest.raises(DataError):
        decode(b"u", 64, value[:-1])
    with pytest.raises(DataError, match="checksum"):
        decode(b"v", 64, value)


def test_a_chunk_knows_its_place(rows):
    with pytest.raises(DataError, match="chunk at 128: its checksum"):
        records.rows_of_chunk(b"u", 128, chunk(b"u", 64, rows(1)))


def test_a_damaged_chunk_can_not_be_extended(rows):
    value = bytearray(chunk(b"u", 0, rows(1, 2)))
    value[-1] ^= 1
    with pytest.raises(DataError, match="checksum"):
        records.extend_chunk(b"u", 0, bytes(value), rows(3).tobytes())
