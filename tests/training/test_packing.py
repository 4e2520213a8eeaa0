import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from longrec.training import pack


def borders(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    ends = np.cumsum(lengths).astype(np.int64)
    return ends - lengths, ends


cases = st.tuples(
    st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 12), st.integers(1, 60), st.integers(0, 5)
)


@given(cases)
def test_each_event_is_an_input_once_save_the_last_of_a_history(case: tuple[list[int], int, int, int]) -> None:
    lengths, sequence_length, batch_events, seed = case
    starts, ends = borders(lengths)
    rng = np.random.default_rng(seed)
    batches = pack(starts, ends, sequence_length=sequence_length, batch_events=batch_events, rng=rng)
    inputs = np.concatenate([batch.rows for batch in batches])
    expected = np.concatenate([np.arange(a, b - 1) for a, b in zip(starts, ends, strict=True)])
    assert sorted(inputs.tolist()) == expected.tolist()
    assert sorted(np.concatenate([batch.first for batch in batches]).tolist()) == starts.tolist()


@given(cases)
def test_pieces_are_successive_rows_of_one_history_and_keep_their_places(
    case: tuple[list[int], int, int, int],
) -> None:
    lengths, sequence_length, batch_events, seed = case
    starts, ends = borders(lengths)
    user = np.repeat(np.arange(len(lengths)), lengths)
    rng = np.random.default_rng(seed)
    for batch in pack(starts, ends, sequence_length=sequence_length, batch_events=batch_events, rng=rng):
        assert (batch.cu_seqlens[0], batch.cu_seqlens[-1]) == (0, len(batch.rows))
        assert len(batch.rows) < batch_events + sequence_length
        sizes = np.diff(batch.cu_seqlens)
        assert (sizes <= sequence_length).all()
        assert (np.diff(sizes) <= 0).all()  # longest first
        for a, b in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            rows = batch.rows[a:b]
            assert (np.diff(rows) == 1).all()
            assert len(set(user[rows])) <= 1
            assert (batch.positions[a:b] == rows - starts[user[rows]]).all()


def test_histories_that_fit_stay_whole_and_longer_ones_are_cut_at_other_places_each_epoch() -> None:
    starts, ends = borders([8, 100])
    places = set()
    for epoch in range(20):
        rng = np.random.default_rng([0, epoch])
        (batch,) = pack(starts, ends, sequence_length=16, batch_events=1000, rng=rng)
        pieces = [batch.rows[a:b].tolist() for a, b in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)]
        assert list(range(7)) in pieces
        places |= {piece[0] for piece in pieces if piece and piece[0] > 8}
    assert len(places) > 40


def test_a_seed_gives_the_same_batches() -> None:
    starts, ends = borders([30, 4, 17, 60])

    def batches(seed: int) -> list[list[int]]:
        rng = np.random.default_rng(seed)
        return [batch.rows.tolist() for batch in pack(starts, ends, sequence_length=9, batch_events=20, rng=rng)]

    assert batches(1) == batches(1)
    assert batches(1) != batches(2)
