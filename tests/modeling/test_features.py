import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrec.modeling.features import gap_buckets, ragged_gap_buckets


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


@given(st.lists(st.tuples(st.integers(-1, 10**12), st.lists(st.integers(0, 10**12), min_size=1)), min_size=1))
def test_ragged_buckets_are_each_users_own(users: list[tuple[int, list[int]]]) -> None:
    times = np.concatenate([np.array(own, np.int64) for _, own in users])
    previous = np.array([before for before, _ in users], np.int64)
    cu_seqlens = np.cumsum([0, *(len(own) for _, own in users)], dtype=np.int32)
    expected = [
        gap_buckets(np.array(own, np.int64), None if before < 0 else before, num_buckets=9) for before, own in users
    ]
    np.testing.assert_array_equal(ragged_gap_buckets(times, cu_seqlens, previous, 9), np.concatenate(expected))
