"""Metrics of one relevant item a user, from its rank: HR, NDCG, MRR at several k. Recall@k of one item is HR@k, and
precision@k is HR@k / k; `relevance` has them for several items."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longrec.errors import ArgumentError

__all__ = ["Metrics", "gains", "ranking_metrics"]


@dataclass(frozen=True)
class Metrics:
    """Means over users.

    Args:
        hr, ndcg: cutoff k -> share of users whose item is among the k best; -> 1 / log2(rank + 1) there, else 0.
        mrr: 1 / rank over the whole catalogue.
        users: how many.
    """

    hr: dict[int, float]
    ndcg: dict[int, float]
    mrr: float
    users: int

    def as_dict(self) -> dict[str, float]:
        """Flat, with keys such as `hr@10`."""
        named = {f"hr@{k}": value for k, value in self.hr.items()}
        named |= {f"ndcg@{k}": value for k, value in self.ndcg.items()}
        return {**named, "mrr": self.mrr, "users": self.users}


def gains(ranks: NDArray[np.int64], cutoffs: tuple[int, ...] = (5, 10, 20)) -> dict[str, NDArray[np.float64]]:
    """What each user adds to the means of `ranking_metrics`, under the same names.

    HR@k = [r < k]; NDCG@k = [r < k] / log2(r + 2), the ideal being 1 (Järvelin & Kekäläinen, 2002); MRR = 1 / (r + 1),
    not cut off (Voorhees, TREC-8, 1999).

    Args:
        ranks: [E] r from 0 (best).
        cutoffs: the k.

    Returns:
        name -> [E].
    """
    discount = np.asarray(1.0 / np.log2(ranks + 2.0), dtype=np.float64)
    named = {f"hr@{k}": (ranks < k).astype(np.float64) for k in cutoffs}
    named |= {f"ndcg@{k}": named[f"hr@{k}"] * discount for k in cutoffs}
    return {**named, "mrr": np.asarray(1.0 / (ranks + 1.0), dtype=np.float64)}


def ranking_metrics(ranks: NDArray[np.int64], cutoffs: tuple[int, ...] = (5, 10, 20)) -> Metrics:
    """Metrics of one relevant item a user.

    Args:
        ranks: [E] from 0 (best).
        cutoffs: the k of HR@k and NDCG@k.

    Raises:
        ArgumentError: there is no user.
    """
    if not len(ranks):
        raise ArgumentError("ranks", "at least one evaluated user", got="none")
    means = {name: float(values.mean()) for name, values in gains(ranks, cutoffs).items()}
    return Metrics(
        {k: means[f"hr@{k}"] for k in cutoffs}, {k: means[f"ndcg@{k}"] for k in cutoffs}, means["mrr"], len(ranks)
    )
