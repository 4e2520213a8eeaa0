import math

import numpy as np
import pytest

from longrec.errors import ArgumentError
from longrec.training.metrics import (
    average_popularity,
    calibration_divergence,
    catalogue_coverage,
    item_probabilities,
    mean_distributions,
    novelty,
)

LISTS = np.array([[0, 1], [1, -1]])


def test_coverage_counts_items_once_and_padding_never() -> None:
    assert catalogue_coverage(LISTS, 4) == 0.5
    assert catalogue_coverage(np.array([[-1]]), 4) == 0.0


def test_novelty_is_self_information_in_bits_and_finite_for_unseen_items() -> None:
    probabilities = item_probabilities(np.array([2, 0, 0, 2]))
    assert probabilities.sum() == pytest.approx(1.0)
    assert probabilities.tolist() == [3 / 8, 1 / 8, 1 / 8, 3 / 8]
    assert novelty(LISTS, probabilities).tolist() == pytest.approx([(math.log2(8 / 3) + 3) / 2, 3])


def test_average_popularity_is_the_mean_count() -> None:
    assert average_popularity(LISTS, np.array([10, 4, 1, 0])).tolist() == [7, 4]
    with pytest.raises(ArgumentError, match="at least one item a user"):
        average_popularity(np.array([[-1, -1]]), np.array([1]))


def test_calibration_is_that_of_the_formula() -> None:
    memberships = np.array([[1, 0], [0, 1], [0.5, 0.5], [0, 0]])  # the last item has no category
    history = mean_distributions(memberships, np.array([0, 0, 1, 3, 2, 3]), np.array([0, 4, 5, 6]))
    np.testing.assert_allclose(history, [[2 / 3, 1 / 3], [0.5, 0.5], [np.nan, np.nan]])
    shown = mean_distributions(memberships, np.array([0, -1, 2, 0, 1, 1]), np.array([0, 2, 4, 6]))
    np.testing.assert_allclose(shown, [[1, 0], [0.75, 0.25], [0, 1]])
    expected = [
        2 / 3 * math.log((2 / 3) / (0.99 + 0.01 * 2 / 3)) + 1 / 3 * math.log(1 / 0.01),
        0.5 * math.log(0.5 / (0.99 * 0.75 + 0.005)) + 0.5 * math.log(0.5 / (0.99 * 0.25 + 0.005)),
        np.nan,
    ]
    np.testing.assert_allclose(calibration_divergence(history, shown), expected)
    np.testing.assert_allclose(calibration_divergence(shown, shown), 0, atol=1e-15)
    assert np.isnan(calibration_divergence(shown, history)[2])
