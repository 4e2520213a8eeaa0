"""Calibration (Steck, RecSys 2018): whether a list keeps the proportions of what its user has met, by category."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["calibration_divergence", "mean_distributions"]

ALPHA = 0.01


def mean_distributions(
    memberships: NDArray[np.float64], items: NDArray[np.int64], indptr: NDArray[np.int64]
) -> NDArray[np.float64]:
    """p(g|u), the mean of p(g|i) over the items of each user.

    Args:
        memberships: [N, G] p(g|i), each row summing to 1, or to 0 for an item without categories (not counted).
        items: [n] catalogue indices, user after user; -1: no item, not counted.
        indptr: [E + 1]; user u's are items[indptr[u] : indptr[u + 1]].

    Returns:
        [E, G], each row summing to 1, or NaN for a user of whom no item has a category.
    """
    sums = np.empty((len(indptr) - 1, memberships.shape[1]))
    for user, (begin, end) in enumerate(zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True)):
        own = items[begin:end]
        # by unique items: a history of 100,000 events needs no [events, G]
        unique, times = np.unique(own[own >= 0], return_counts=True)
        sums[user] = times @ memberships[unique]
    total = sums.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = np.divide(sums, total, out=np.full_like(sums, np.nan), where=total > 0)
    return shares


def calibration_divergence(
    history: NDArray[np.float64], shown: NDArray[np.float64], alpha: float = ALPHA
) -> NDArray[np.float64]:
    """KL(p || q~) = sum over g of p(g|u) ln(p(g|u) / q~(g|u)), q~ = (1 - alpha) q + alpha p. 0: perfectly calibrated.

    Args:
        history, shown: [E, G] p and q, as `mean_distributions` makes them of histories and of lists.
        alpha: keeps the divergence finite where the list lacks a category (0.01 in the paper).

    Returns:
        [E] in nats; NaN where either side is NaN.
    """
    blended = (1.0 - alpha) * shown + alpha * history
    ratio = np.divide(history, blended, out=np.ones_like(history), where=history > 0)  # 0 ln 0 = 0; a NaN > 0 is false
    divergence: NDArray[np.float64] = (history * np.log(ratio)).sum(axis=1)
    divergence[np.isnan(shown).any(axis=1)] = np.nan
    return divergence
