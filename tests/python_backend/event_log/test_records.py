"""Every flipped bit of a stored chunk is found, in either encoding, and a chunk in another's place too."""

import numpy as np
import pytest

from longrec.errors import DataError
from longrec.python_backend.event_log import records


def chunk(user, first, events):
    payload = np.ascontiguousarray(events, "<i8").tobytes()
    header = records.verify_chunk(user, first, b"")._replace(columns=events.shape[1])
    return records.extend_chunk(b"", header, payload)[0]


@pytest.mark.parametrize(
    ("encode", "decode"),
    [
        (chunk, records.rows_of_chunk),
        (lambda user, _, events: records.seal_rows(user, events), lambda *value: records.unseal_rows(*value, 2)),
    ],
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
        records.continue_chunk(b"u", 0, bytes(value), 2, rows(3).tobytes(), 2)


def test_a_chunk_is_continued_as_it_is_extended_where_it_ends_there(rows):
    value, payload = chunk(b"u", 64, rows(*range(60))), rows(60, 61, 62, 63).tobytes()
    extended, header = records.extend_chunk(value, records.verify_chunk(b"u", 64, value), payload)
    assert records.continue_chunk(b"u", 64, value, 124, payload, 2) == extended
    assert records.verify_chunk(b"u", 64, extended) == header
    assert records.continue_chunk(b"u", 64, value, 124, bytes(96), 3) is None  # rows of other columns
    for position, more in ((123, payload), (125, payload), (124, payload + payload), (124, b"")):
        assert records.continue_chunk(b"u", 64, value, position, more, 2) is None
