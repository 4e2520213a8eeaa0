import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrec.modeling import gap_buckets


@pytest.mark.parametrize(
    ("gap_ms", "bucket"),
    [(0, 1), (999, 1), (1_000, 2), (2_999, 2), (3_000, 3), (-5_000, 1), (1_023_000, 11), (2**60, 31)],
)
def test_buckets_are_logarithmic_in_seconds(gap_ms: int, bucket: int) -> None:
    assert gap_buckets(np.array([7 + gap_ms]), 7, 32).tolist() == [bucket]


def test_the_first_event_has_a_bucket_of_its_own() -> None:
    assert gap_buckets(np.array([5_000, 5_000]), None, 32).tolist() == [0, 1]
    assert gap_buckets(np.array([], dtype=np.int64), None, 32).tolist() == []


def test_the_last_bucket_takes_all_longer_gaps() -> None:
    assert gap_buckets(np.array([0, 10**9, 10**15]), None, 4).tolist() == [0, 3, 3]
    assert gap_buckets(np.array([10**9]), 0, 2).tolist() == [1]


@given(st.lists(st.integers(-(10**12), 10**13), min_size=1, max_size=30), st.data())
def test_events_in_pieces_get_the_buckets_of_the_whole(times: list[int], data: st.DataObject) -> None:
    """A server that sees a history in pieces must compute what training computed at once."""
    whole = gap_buckets(np.array(times), None, 32)
    at = data.draw(st.integers(0, len(times)))
    first = gap_buckets(np.array(times[:at], dtype=np.int64), None, 32)
    second = gap_buckets(np.array(times[at:], dtype=np.int64), times[at - 1] if at else None, 32)
    assert np.concatenate((first, second)).tolist() == whole.tolist()
