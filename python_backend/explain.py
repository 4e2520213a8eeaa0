"""Explanations: for each recommended item, the events of the user's log that weighed most. The newest event is asked
again, over the pages that the user holds; `modeling.explanation` has the formula."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.modeling.events import Events
from longrec.modeling.explanation import attention_contributions
from longrec.modeling.features import seconds
from longrec.modeling.paged import PagedNetwork
from longrec.protocol import NO_ITEM
from longrec.python_backend.memory_pool import MemoryPool
from longrec.python_backend.pages import KeyValueStore

__all__ = ["NO_POSITION", "Explainer"]

Ints = NDArray[np.int64]
NO_POSITION = -1  # in place of a position: there are fewer events, or no item to explain


class Explainer:
    """Explains items from memories.

    Args:
        network: in evaluation mode.
        pool: the memories.
    """

    def __init__(self, network: PagedNetwork, pool: MemoryPool) -> None:
        self._network, self._pool = network, pool

    def explain(self, rows: Ints, newest: Ints, ranked: Ints, count: int, ends: Ints) -> Ints:
        """Positions [B, k, count] of the events that weighed most for each item, heaviest first.

        Args:
            rows: [B] of the pool; the newest event is the last of each memory.
            newest: [B, 2 + F], item and `Events.gaps` of the newest event.
            ranked: [B, k] items, or NO_ITEM.
            ends: [B], only positions below are given: what comes after is predicted, and not in the log.
        """
        pool, network = self._pool, self._network
        device = pool.hidden.device
        before = pool.pages(rows, np.full(len(rows), -1))
        positions = pool.length[rows] - 1

        def tensor(array: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        lengths = positions - pool.first[rows]
        assert isinstance(pool.store, KeyValueStore)
        memory = pool.store.memory(
            tensor(before.indptr),
            tensor(before.indices),
            tensor(lengths.astype(np.int32)),
            torch.full((len(rows),), -1, device=device),
            max_new=1,
            max_memory=int(lengths.max()),
        )
        events = Events(
            tensor(np.minimum(newest[:, 0], network.config.num_items)),
            tensor(newest[:, 1] if newest.shape[1] == 2 else newest[:, 1:]),
            tensor(seconds(pool.time[rows])),
            tensor(positions),
            torch.arange(len(rows) + 1, dtype=torch.int32, device=device),
        )
        vectors = network.item_table[tensor(np.maximum(ranked, 0))]  # [B, k, dim]
        weights = attention_contributions(network, events, memory, vectors)
        most = weights.shape[-1] - 1
        columns = np.append(np.arange(most), 0) + pool.first[rows][:, None]  # [B, M + 1]
        columns[:, most] = positions
        weights = weights.masked_fill(tensor(columns >= ends[:, None])[:, None], -torch.inf)
        best = weights.topk(min(count, most + 1), dim=-1)
        found = np.take_along_axis(columns[:, None], best.indices.cpu().numpy(), axis=-1)
        known = (best.values > -torch.inf).cpu().numpy() & (ranked[..., None] != NO_ITEM)
        result = np.full((*ranked.shape, count), NO_POSITION)
        result[..., : found.shape[-1]] = np.where(known, found, NO_POSITION)
        return result
