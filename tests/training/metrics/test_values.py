import math

import numpy as np
import pytest

from longrec.errors import ArgumentError
from longrec.training.metrics import (
    accuracy,
    mean_absolute_error,
    mean_squared_error,
    per_step,
    root_mean_squared_error,
)

PREDICTED, TARGETS = np.array([[1.0, 2.0], [3.0, 9.0]]), np.array([[1.0, 4.0], [2.0, np.nan]])


def test_errors_leave_out_targets_that_are_not_there() -> None:
    assert mean_squared_error(PREDICTED, TARGETS) == pytest.approx(5 / 3)
    assert mean_absolute_error(PREDICTED, TARGETS) == pytest.approx(1)
    assert root_mean_squared_error(PREDICTED, TARGETS) == pytest.approx(math.sqrt(5 / 3))
    assert per_step(mean_squared_error, PREDICTED, TARGETS) == [0.5, 4.0]


def test_accuracy_leaves_out_classes_that_are_not_there() -> None:
    predicted, targets = np.array([[0, 1], [1, 1]]), np.array([[0, 0], [1, -1]])
    assert accuracy(predicted, targets) == pytest.approx(2 / 3)
    assert per_step(accuracy, predicted, targets) == [1.0, 0.0]


def test_misfits_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"predicted: expected the targets' shape \(2,\)"):
        mean_squared_error(np.zeros(3), np.zeros(2))
    with pytest.raises(ArgumentError, match=r"predicted: expected the targets' shape"):
        per_step(accuracy, np.zeros((2, 3)), np.zeros((2, 2)))
    with pytest.raises(ArgumentError, match="targets: expected at least one"):
        accuracy(np.array([1]), np.array([-1]))
    with pytest.raises(ArgumentError, match="predicted: expected finite numbers"):
        mean_absolute_error(np.array([np.nan]), np.array([1.0]))
