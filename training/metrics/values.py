"""Errors of real-valued targets (rating, dwell time) and accuracy of classes (action type). A NaN among real-valued
targets means that there is none; so does -1 among classes. Such places are left out."""

import math

import numpy as np
from numpy.typing import NDArray

from longrec.errors import ArgumentError

__all__ = ["accuracy", "mean_absolute_error", "mean_squared_error", "root_mean_squared_error"]

Values = NDArray[np.float64]


def mean_squared_error(predicted: Values, targets: Values) -> float:
    """MSE = mean of (x^ - x)^2.

    Args:
        predicted, targets: of one shape.

    Raises:
        ArgumentError: shapes differ, no target is there, or a prediction of one isn't finite.
    """
    return float((_errors(predicted, targets) ** 2).mean())


def mean_absolute_error(predicted: Values, targets: Values) -> float:
    """MAE = mean of |x^ - x|; arguments and errors as `mean_squared_error`."""
    return float(np.abs(_errors(predicted, targets)).mean())


def root_mean_squared_error(predicted: Values, targets: Values) -> float:
    """RMSE = sqrt(MSE), in the unit of the targets; arguments and errors as `mean_squared_error`."""
    return math.sqrt(mean_squared_error(predicted, targets))


def accuracy(predicted: NDArray[np.int64], targets: NDArray[np.int64]) -> float:
    """Share of targets that were predicted exactly.

    Args:
        predicted, targets: classes, of one shape.

    Raises:
        ArgumentError: shapes differ, or no target is there.
    """
    there = _there(predicted.shape, targets.shape, targets >= 0)
    return float((predicted[there] == targets[there]).mean())


def _errors(predicted: Values, targets: Values) -> Values:
    there = _there(predicted.shape, targets.shape, ~np.isnan(targets))
    errors: Values = predicted[there] - targets[there]
    if not np.isfinite(errors).all():
        raise ArgumentError("predicted", "finite numbers", got="NaN or infinity")
    return errors


def _there(predicted: tuple[int, ...], targets: tuple[int, ...], there: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if predicted != targets:
        raise ArgumentError("predicted", f"the targets' shape {targets}", got=str(predicted))
    if not there.any():
        raise ArgumentError("targets", "at least one that is there", got="none")
    return there
