"""A dataset's events as a network takes them: gaps and seconds computed once, any rows of it then a batch."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec.config import ModelConfig
from longrec.datasets import Dataset
from longrec.modeling import Events, gap_buckets
from longrec.modeling.features import in_context, seconds

__all__ = ["EventTable", "history_gaps"]


def history_gaps(dataset: Dataset, model: ModelConfig) -> NDArray[np.int64]:
    """`Events.gaps` of every event of the dataset, each user's history from its own beginning."""
    starts, ends = dataset.indptr[:-1].tolist(), dataset.indptr[1:].tolist()
    parts = [gap_buckets(dataset.times_ms[a:b], None, model.num_gap_buckets) for a, b in zip(starts, ends, strict=True)]
    gaps = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    return in_context(model, gaps, dataset.times_ms, dataset.context(model.features))


class EventTable:
    """Events by their row in the dataset.

    Args:
        dataset: whose events.
        model: of the network.

    Attributes:
        items: [n] int64, on the CPU.
    """

    def __init__(self, dataset: Dataset, model: ModelConfig) -> None:
        self.items = torch.from_numpy(dataset.items)
        self._gaps = torch.from_numpy(history_gaps(dataset, model))
        self._seconds = torch.from_numpy(seconds(dataset.times_ms))

    def at(self, rows: NDArray[np.int64], positions: NDArray[np.int64], cu_seqlens: NDArray[np.int32]) -> Events:
        """The events at `rows` [T], which stand at `positions` [T] of their users' logs, on the CPU."""
        index: Tensor = torch.from_numpy(rows)
        return Events(
            self.items[index],
            self._gaps[index],
            self._seconds[index],
            torch.from_numpy(positions),
            torch.from_numpy(cu_seqlens),
        )
