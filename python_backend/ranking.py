"""Ranking: hidden states and queries to items and scores."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from longrec import kernels
from longrec.protocol import NO_ITEM
from longrec.python_backend.query import Query

__all__ = ["NO_ITEMS", "Ranked", "Ranker", "first_of"]

Ranked = tuple[NDArray[np.int64], NDArray[np.float32]]
NO_ITEMS: Ranked = (np.empty(0, np.int64), np.empty(0, np.float32))


class Ranker:
    """Ranks the catalogue, or the given candidates.

    Args:
        item_table: [num_items, dim], on the device that the states are on.
    """

    def __init__(self, item_table: torch.Tensor) -> None:
        self._table = item_table

    def rank(self, hidden: torch.Tensor, queries: Sequence[Query]) -> list[Ranked]:
        """Items [k] and scores [k] of each query, best first; equal scores: the lower index first.

        Args:
            hidden: [Q, dim].
        """
        num_items = len(self._table)
        ranked: dict[int, Ranked] = {}
        whole = [number for number, query in enumerate(queries) if query.candidates is None]
        if whole:
            most = min(max(queries[number].k for number in whole), num_items)
            rows = hidden if len(whole) == len(queries) else hidden[whole]
            scores, items = (found.cpu().numpy() for found in kernels.catalogue_topk(rows, self._table, most))
            for row, number in enumerate(whole):
                ranked[number] = first_of(items[row], scores[row], queries[number].k)
        for number, query in enumerate(queries):
            if query.candidates is not None:
                known = query.candidates[query.candidates < num_items]
                rows = self._table[torch.from_numpy(known).to(self._table.device)]
                logits = (rows @ hidden[number]).float().cpu().numpy()
                order = np.lexsort((known, -logits))
                ranked[number] = first_of(known[order], logits[order], query.k)
        return [ranked[number] for number in range(len(queries))]


def first_of(items: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> Ranked:
    """The first k, filled up with NO_ITEM at -inf."""
    missing = k - len(items)
    if missing > 0:
        items = np.append(items, np.full(missing, NO_ITEM))
        scores = np.append(scores, np.full(missing, -np.inf, np.float32))
    return items[:k], scores[:k]
