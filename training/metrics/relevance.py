"""Metrics of lists when several items are relevant to a user (the next k steps, say): HR, recall, precision, NDCG, MRR.
They agree with ranx; each gives a value a user, whose mean is the metric.

Lists and relevant items meet once, in `match`; the metrics read its answer. A user to whom nothing is relevant scores 0
in each; leave such users out before, as `leave_one_out` does.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longrec.errors import ArgumentError

__all__ = ["hit", "match", "ndcg", "precision", "recall", "reciprocal_rank"]

Values = NDArray[np.float64]
Matches = NDArray[np.bool_]


def match(lists: NDArray[np.int64], relevant: Sequence[NDArray[np.int64]]) -> tuple[Matches, NDArray[np.int64]]:
    """Which places of the lists hold a relevant item.

    Args:
        lists: [E, K] catalogue indices, best first, no item twice; -1: no item (matches nothing).
        relevant: E arrays of unique catalogue indices.

    Returns:
        [E, K] whether the place matches, and [E] how many items are relevant.

    Raises:
        ArgumentError: another number of users in `relevant` than in `lists`.
    """
    if len(lists) != len(relevant):
        raise ArgumentError("relevant", f"the items of {len(lists)} users, as in lists", got=str(len(relevant)))
    pairs = zip(lists, relevant, strict=True)
    matches = np.array([np.isin(row, wanted[wanted >= 0]) for row, wanted in pairs], dtype=np.bool_)
    return matches.reshape(lists.shape), np.array([len(wanted) for wanted in relevant], dtype=np.int64)


def hit(matches: Matches, k: int) -> Values:
    """[E] HR@k: 1 if any of the k best is relevant."""
    return np.asarray(matches[:, :k].any(axis=1), dtype=np.float64)


def recall(matches: Matches, counts: NDArray[np.int64], k: int) -> Values:
    """[E] recall@k = relevant items among the k best / relevant items; not capped by k (`counts` is of `match`)."""
    found: NDArray[np.int64] = matches[:, :k].sum(axis=1)
    return found / np.maximum(counts, 1)


def precision(matches: Matches, k: int) -> Values:
    """[E] precision@k = relevant items among the k best / k; a list shorter than k still divides by k."""
    share: Values = matches[:, :k].sum(axis=1) / k
    return share


def ndcg(matches: Matches, counts: NDArray[np.int64], k: int) -> Values:
    """[E] NDCG@k with gains of 0 and 1: sum of 1 / log2(place + 2), over that of an ideal list, whose first
    min(k, relevant items) places match (Järvelin & Kekäläinen, 2002)."""
    discount = 1.0 / np.log2(np.arange(k) + 2.0)
    ideal = np.concatenate(([1.0], discount.cumsum()))[np.minimum(counts, k)]  # 1 where nothing is relevant: 0 / 1
    found: Values = matches[:, :k] @ discount[: matches.shape[1]]
    return found / ideal


def reciprocal_rank(matches: Matches, k: int | None = None) -> Values:
    """[E] 1 / (place of the first match + 1) among the k best (None: the whole list), 0 without one."""
    cut = matches[:, :k]
    first: Values = 1.0 / (cut.argmax(axis=1) + 1.0)
    return np.where(cut.any(axis=1), first, 0.0)
