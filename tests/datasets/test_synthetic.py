import tracemalloc

import numpy as np
import pytest

from longrec.datasets import Dataset, leave_one_out
from longrec.datasets.synthetic import make_drift, make_long_range, make_purchases, make_recall
from longrec.errors import ArgumentError


def histories(data: Dataset) -> list[np.ndarray]:
    return np.split(data.items, data.indptr[1:-1])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_seed_gives_the_same_data(seed: int, tmp_path) -> None:
    makers = (
        lambda s: make_long_range(5, 16, seed=s),
        lambda s: make_purchases(5, 9, seed=s),
        lambda s: make_drift(20, 500, num_items=60, num_categories=6, seed=s),
        lambda s: make_recall(np.array([4, 9, 30]), seed=s),
    )
    for number, make in enumerate(makers):
        first, again, other = make(seed), make(seed), make(seed + 7)
        assert np.array_equal(first.items, again.items)
        assert np.array_equal(first.times_ms, again.times_ms)
        assert not np.array_equal(first.items, other.items)
        first.save(tmp_path / str(number))
        assert np.array_equal(Dataset.load(tmp_path / str(number)).items, first.items)


def test_one_event_far_back_decides_and_what_is_nearer_does_not() -> None:
    distance, num_items = 20, 4
    data = make_long_range(4000, distance, num_items=num_items)
    split = leave_one_out(data)
    pairs = {(int(data.items[row - distance]), int(data.items[row])) for row in split.test}
    assert len(pairs) == num_items  # a function of that event
    assert all(before != after for before, after in pairs)
    for back in (1, 2, 7, distance - 1):
        table = np.zeros((num_items, num_items))
        np.add.at(table, (data.items[split.test - back], data.items[split.test]), 1)
        best = table.max(axis=1).sum() / len(split.test)
        assert best < 1 / num_items + 0.04, back
    lengths = np.diff(data.indptr)
    assert 1.5 * distance < lengths.min() < lengths.max() < 2 * distance


def test_what_is_asked_for_was_shown_once_and_at_its_distance() -> None:
    distances = np.repeat([2, 5, 40], 300)
    data = make_recall(distances, num_values=4, num_fillers=3)
    question, values = 7, set[int]()
    for distance, history in zip(distances, histories(data), strict=True):
        assert history[-2] == question
        shown = np.flatnonzero(history < 4)
        assert shown.tolist() == [len(history) - 1 - distance, len(history) - 1]
        assert history[shown[0]] == history[-1]
        values.add(int(history[-1]))
    assert values == {0, 1, 2, 3}
    assert len({len(history) for history in histories(data)[:300]}) == 17  # the place in the history tells nothing


def test_purchases_have_a_rhythm_under_the_noise() -> None:
    clean, noisy = make_purchases(50, 40, noise=0.0), make_purchases(50, 40, noise=0.2)
    for history in histories(clean):
        assert any((history[period:] == history[:-period]).all() for period in range(3, 8))
    assert (clean.items != noisy.items).mean() == pytest.approx(0.2, abs=0.03)
    assert len(clean.catalogue) == 2


def test_drift_has_popular_items_repeats_and_exactly_as_many_events() -> None:
    tracemalloc.start()
    data = make_drift(300, 50_000, num_items=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(data), len(data.users)) == (50_000, 300)
    assert peak < 12 * data.items.nbytes
    assert np.diff(data.indptr).min() >= 3
    counts = -np.sort(-np.bincount(data.items, minlength=1000))
    assert counts[:100].sum() > 0.4 * len(data)
    repeated = np.mean([1 - len(np.unique(items)) / len(items) for items in histories(data)])
    assert repeated > 0.15
    near, far = [], []  # categories of the nearest events agree more often than those of distant ones: interests drift
    for items in histories(data):
        kinds = items % 20
        near.append((kinds[5:100] == kinds[:95]).mean() if len(kinds) > 200 else np.nan)
        far.append((kinds[150:] == kinds[:-150]).mean() if len(kinds) > 200 else np.nan)
    assert np.nanmean(near) > np.nanmean(far) + 0.1


def test_sizes_that_can_not_be_made_are_refused() -> None:
    with pytest.raises(ArgumentError, match="at least 1, 8 and 2"):
        make_long_range(1, 7)
    with pytest.raises(ArgumentError, match="of 2 or more each"):
        make_recall(np.array([5, 1]))
    with pytest.raises(ArgumentError, match="at least 3, 0 to"):
        make_purchases(1, 5, noise=0.7)
    with pytest.raises(ArgumentError, match=r"events >= 3 \* users"):
        make_drift(10, 29)
