"""From a batch's rows to what a network is trained on: events in, items to come out, negatives. Tensors on the device
of the network."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, Split
from longrec.modeling import Events
from longrec.modeling.features import unknown_context
from longrec.training.evaluation_report import training_counts
from longrec.training.inputs import EventTable
from longrec.training.losses import SampledItems
from longrec.training.negatives import Sampler
from longrec.training.packing import Batch

__all__ = ["ExampleTable", "Examples", "Later"]


class Later(NamedTuple):
    """The items some steps after events, where the histories go on so far.

    Args:
        places: [M] int64, of the events in the batch. items: [M] int64.
    """

    places: Tensor
    items: Tensor


class Examples(NamedTuple):
    """A batch, ready for an objective.

    Args:
        events: T input events of B pieces.
        targets: [T] int64, the item after each.
        first: [F] int64, first items of histories; the start state predicts them.
        negatives: of a loss that samples.
        later: of steps 2, 3 … after each event, as many as are trained on.
    """

    events: Events
    targets: Tensor
    first: Tensor
    negatives: SampledItems | None
    later: Sequence[Later] = ()


class ExampleTable:
    """Examples of the training part of a dataset.

    Args:
        dataset, split: the data. model, config: what they are for.
        device: of the network.
    """

    def __init__(
        self, dataset: Dataset, split: Split, model: ModelConfig, config: TrainConfig, device: torch.device
    ) -> None:
        self._table = EventTable(dataset, model)
        self._unknown_context = torch.from_numpy(unknown_context(model))
        self._indptr, self._ends, self._steps = dataset.indptr, split.train_end, config.steps_ahead
        self._unknown, self._item_dropout, self._device = model.num_items, config.item_dropout, device
        self._sampler: Sampler | None = None
        if config.loss != "softmax":
            self._sampler = Sampler(
                training_counts(dataset, split),
                power=config.negative_power,
                num_negatives=config.num_negatives,
                seed=config.seed,
            )

    def of(self, batch: Batch, step: int) -> Examples:
        """Of a batch, which is the run's `step`-th from 0."""
        events = self._table.at(batch.rows, batch.positions, batch.cu_seqlens)
        events = self._hide(events)
        return Examples(
            Events(*(field.to(self._device) for field in events)),
            self._items(batch.rows + 1),
            self._items(batch.first),
            self._negatives(step),
            self._later(batch.rows),
        )

    def _items(self, rows: NDArray[np.int64]) -> Tensor:
        return self._table.items[torch.from_numpy(rows)].to(self._device)

    def _later(self, rows: NDArray[np.int64]) -> Sequence[Later]:
        """The targets of steps 2 to `steps_ahead`; they may lie behind the piece, not behind the training part."""
        if self._steps == 1:
            return ()
        ends = self._ends[np.searchsorted(self._indptr, rows, side="right") - 1]
        places = [np.flatnonzero(rows + step < ends) for step in range(2, self._steps + 1)]
        return [
            Later(torch.from_numpy(known).to(self._device), self._items(rows[known] + step))
            for step, known in enumerate(places, start=2)
        ]

    def _hide(self, events: Events) -> Events:
        """Put the unknown in place of a share of the input: its row is trained, and no single event relied on."""
        if self._item_dropout == 0.0:
            return events
        items = torch.where(torch.rand(events.items.shape) < self._item_dropout, self._unknown, events.items)
        if events.gaps.ndim == 1:
            return events._replace(items=items)
        hidden = (torch.rand(events.gaps.shape) < self._item_dropout) & (self._unknown_context > 0)
        return events._replace(items=items, gaps=torch.where(hidden, self._unknown_context, events.gaps))

    def _negatives(self, step: int) -> SampledItems | None:
        if self._sampler is None:
            return None
        items, log_expected = map(torch.from_numpy, self._sampler.draw(step))
        return items.to(self._device), log_expected.to(self._device)
