"""Metrics of the next k steps, each step by itself: step 0 is the next event."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import ArgumentError
from longrec.training.metrics.ranking import Metrics, ranking_metrics

__all__ = ["horizon_metrics", "per_step"]

Array = NDArray[Any]


def horizon_metrics(ranks: NDArray[np.int64], cutoffs: tuple[int, ...] = (5, 10, 20)) -> list[Metrics]:
    """`ranking_metrics` of each step.

    Args:
        ranks: [E, H] rank of each step's item, from 0; -1: the user has no such event. Each step has a user.
        cutoffs: the k.
    """
    return [ranking_metrics(step[step >= 0], cutoffs) for step in ranks.T]


def per_step(metric: Callable[[Array, Array], float], predicted: Array, targets: Array) -> list[float]:
    """A metric of `values` for each step.

    Args:
        metric: `accuracy`, `mean_squared_error` …
        predicted, targets: [E, H].

    Raises:
        ArgumentError: shapes differ, or what `metric` refuses.
    """
    if predicted.shape != targets.shape:
        raise ArgumentError("predicted", f"the targets' shape {targets.shape}", got=str(predicted.shape))
    return [metric(predicted[:, step], targets[:, step]) for step in range(targets.shape[1])]
