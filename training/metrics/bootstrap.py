"""Confidence intervals of means over users by the bootstrap (Efron & Tibshirani, 1993, percentile intervals)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec.errors import ArgumentError

__all__ = ["Interval", "bootstrap_means"]


class Interval(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


def bootstrap_means(
    values: NDArray[np.float64], *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> list[Interval]:
    """Intervals of M means over E users; users are drawn with all their values, so metrics stay paired.

    Args:
        values: [E, M].
        confidence: share of the resampled means between the ends.
        resamples: draws of E users with replacement.
        seed: the same seed gives the same intervals.

    Raises:
        ArgumentError: there is no user.
    """
    if not len(values):
        raise ArgumentError("values", "at least one user", got="none")
    rng = np.random.default_rng(seed)
    users = len(values)
    means = np.empty((resamples, values.shape[1]))
    for sample in means:  # one draw at a time: memory of E counts, not of resamples x E
        sample[:] = np.bincount(rng.integers(users, size=users), minlength=users) @ values / users
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, (tail, 1.0 - tail), axis=0)
    return [Interval(*map(float, triple)) for triple in zip(values.mean(axis=0), low, high, strict=True)]
