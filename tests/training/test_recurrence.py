import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from longrec.training.recurrence import pack_lanes

cases = st.tuples(
    st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 12), st.integers(1, 60), st.integers(0, 5)
)


@given(cases)
def test_a_lane_runs_through_whole_histories_in_their_order(case: tuple[list[int], int, int, int]) -> None:
    lengths, sequence_length, batch_events, seed = case
    ends = np.cumsum(lengths).astype(np.int64)
    starts = ends - lengths
    user = np.repeat(np.arange(len(lengths)), lengths)
    rng = np.random.default_rng(seed)
    batches = pack_lanes(starts, ends, sequence_length=sequence_length, batch_events=batch_events, rng=rng)
    num_lanes = {len(batch.cu_seqlens) - 1 for batch in batches}
    assert len(num_lanes) == 1
    assert list(batches[0].fresh) == list(range(num_lanes.pop()))
    following: dict[int, int] = {}  # lane -> the row that must come next
    inputs: list[int] = []
    for batch in batches:
        for lane in batch.fresh:
            following.pop(lane, None)
        for lane, (a, b) in enumerate(zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)):
            rows = batch.rows[a:b].tolist()
            assert len(rows) <= sequence_length
            if not rows:
                continue
            assert rows == list(range(rows[0], rows[0] + len(rows)))
            assert rows[0] == following.get(lane, starts[user[rows[0]]])
            following[lane] = rows[-1] + 1
            assert (batch.positions[a:b] == batch.rows[a:b] - starts[user[rows]]).all()
        inputs += batch.rows.tolist()
    expected = np.concatenate([np.arange(a, b - 1) for a, b in zip(starts, ends, strict=True)])
    assert sorted(inputs) == expected.tolist()
    assert sorted(np.concatenate([batch.first for batch in batches]).tolist()) == starts.tolist()
