import numpy as np
import pytest

from longrec.errors import ArgumentError
from longrec.training.metrics import (
    bootstrap_means,
    cold_items,
    cold_users,
    history_bands,
    popularity_bands,
    popularity_of_items,
)


def test_a_band_of_histories_holds_its_lower_border() -> None:
    names, group = history_bands(np.array([0, 9, 10, 49, 50, 10**6]), (10, 50))
    assert names == ("0-9", "10-49", "50+")
    assert group.tolist() == [0, 0, 1, 1, 2, 2]


def test_head_has_half_of_the_events_and_unseen_items_are_tail() -> None:
    counts = np.array([1, 40, 0, 30, 20, 5, 4])  # shares from the top: 0.4, 0.7, 0.9, …
    assert popularity_of_items(counts).tolist() == [2, 0, 2, 0, 1, 2, 2]
    assert popularity_of_items(np.zeros(3, dtype=np.int64)).tolist() == [2, 2, 2]
    names, group = popularity_bands(np.array([1, 4, 0, 1]), counts)
    assert [names[place] for place in group] == ["head", "mid", "tail", "head"]


def test_cold_users_and_cold_items() -> None:
    assert cold_users(np.array([5, 6, 0]), 5).group.tolist() == [0, 1, 0]
    assert cold_items(np.array([0, 1]), np.array([0, 3])).group.tolist() == [0, 1]


def test_intervals_hold_the_mean_and_shrink_with_the_users() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((400, 2)) * [1, 0]
    few, many = bootstrap_means(values[:40])[0], bootstrap_means(values)
    assert few.low < few.mean < few.high
    assert many[0].high - many[0].low < 0.6 * (few.high - few.low)
    assert many[0].high - many[0].low == pytest.approx(2 * 1.96 * values[:, 0].std() / 20, rel=0.15)  # normal theory
    assert many[1] == (0, 0, 0)
    assert bootstrap_means(values) == many
    with pytest.raises(ArgumentError, match="values: expected at least one user"):
        bootstrap_means(values[:0])


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    intervals = [bootstrap_means(rng.random((60, 1)), confidence=0.9, resamples=300)[0] for _ in range(200)]
    assert 0.84 <= np.mean([low <= 0.5 <= high for _, low, high in intervals]) <= 0.96
