"""The training loop: epochs of packed batches, validation, and the choice of the best weights by the validation event.

Deterministic: the same data, config, seed, machine and number of threads give the same weights, as long as
`max_seconds` is not what ends the run (see `schedule.Budget`).
"""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, Split
from longrec.errors import ArgumentError, DataError
from longrec.modeling import Network, build_network
from longrec.training.evaluation import evaluate, ranking_metrics
from longrec.training.inputs import EventTable
from longrec.training.objectives import OBJECTIVES, recurrent_loss
from longrec.training.optimizer import adamw
from longrec.training.packing import Batch, pack
from longrec.training.recurrence import pack_lanes
from longrec.training.reporting import Observer
from longrec.training.schedule import Budget, learning_rate

__all__ = ["Trained", "train"]


@dataclass(frozen=True)
class Trained:
    """What a run gives.

    Args:
        network: with the weights of the best validated epoch, in evaluation mode.
        best_epoch: from 1.
        history: a JSON-able record an epoch: epoch, loss, learning_rate, events_per_second, seconds since the start,
            and where it was validated `validation` with the metrics.
        seconds: the whole run, validation included.
        events_per_second: events through forward and backward per second of training alone.
    """

    network: Network
    best_epoch: int
    history: Sequence[dict[str, Any]]
    seconds: float
    events_per_second: float


def train(
    dataset: Dataset,
    split: Split,
    model: ModelConfig,
    config: TrainConfig,
    observers: Sequence[Observer] = (),
    *,
    initial: Mapping[str, Tensor] | None = None,
) -> Trained:
    """Train a network on the training part of `dataset`.

    Args:
        dataset, split: the data, and which rows of it are trained and validated on.
        model: shape; `num_items` is the catalogue's length.
        config: how.
        observers: told after each epoch.
        initial: weights to begin with, of `network.state_dict`; None: they are drawn.

    Raises:
        ArgumentError: `model` has another number of items than the catalogue.
        DataError: there is nothing to train or validate on, or the loss is no longer finite.
    """
    if model.num_items != len(dataset.catalogue):
        raise ArgumentError(f"num_items={model.num_items}", f"{len(dataset.catalogue)}, the length of the catalogue")
    if not len(split.evaluated):
        raise DataError(f"{dataset.name}: expected at least one user with 3 events, to validate on")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        run = _Run(dataset, split, model, config)
        if initial is not None:
            run.network.load_state_dict(initial)
        return run.run(observers)


class _Run:
    def __init__(self, dataset: Dataset, split: Split, model: ModelConfig, config: TrainConfig) -> None:
        self.dataset, self.split, self.config = dataset, split, config
        self.network = build_network(model, dropout=config.dropout)
        self.optimizer = adamw(self.network, config)
        self.table = EventTable(dataset, model.num_gap_buckets)
        self.memory: Any = None  # of recurrent networks, a history in each lane
        self.unknown = model.num_items
        self.step = 0

    def run(self, observers: Sequence[Observer]) -> Trained:
        began = time.perf_counter()
        budget = Budget(self.config.epochs, self.config.max_seconds)
        history: list[dict[str, Any]] = []
        best, best_epoch, best_weights = -math.inf, 0, {}
        events, training_seconds = 0, 0.0
        while budget.left:
            epoch_began = time.perf_counter()
            loss, rate, count = self.epoch(budget)
            seconds = time.perf_counter() - epoch_began
            events, training_seconds = events + count, training_seconds + seconds
            record: dict[str, Any] = {
                "epoch": budget.done + 1,
                "loss": loss,
                "learning_rate": rate,
                "events_per_second": count / seconds,
            }
            budget.finish_epoch(time.perf_counter() - began)
            if not budget.left or budget.done % self.config.validate_every == 0:
                record["validation"] = self.validate()
                if record["validation"]["ndcg@10"] > best:
                    best, best_epoch = record["validation"]["ndcg@10"], budget.done
                    best_weights = copy.deepcopy(self.network.state_dict())
            record["seconds"] = time.perf_counter() - began
            history.append(record)
            for observer in observers:
                observer.epoch(record, budget.epochs)
        self.network.load_state_dict(best_weights)
        seconds = time.perf_counter() - began
        return Trained(self.network.eval(), best_epoch, history, seconds, events / training_seconds)

    def epoch(self, budget: Budget) -> tuple[float, float, int]:
        """One pass; the mean loss, the last learning rate and the number of input events."""
        batches = self.batches(np.random.default_rng([self.config.seed, budget.done]))
        self.network.train()
        total, events, rate = 0.0, 0, 0.0
        for index, batch in enumerate(batches):
            progress = budget.within(index / len(batches))
            rate = learning_rate(self.config.learning_rate, progress, self.step, self.config.warmup_steps)
            total += self.optimise(batch, rate)
            events += len(batch.rows)
            self.step += 1
        if not math.isfinite(total):
            raise DataError(
                f"training: the loss is no longer finite in epoch {budget.done + 1}; lower learning_rate "
                f"(now {self.config.learning_rate})"
            )
        return total / len(batches), rate, events

    def batches(self, rng: np.random.Generator) -> list[Batch]:
        """An epoch's batches."""
        windowed = (
            self.network.memory == "window"
        )  # it knows no other places than those within a window: train them all
        length = self.network.config.window if windowed else self.config.sequence_length
        borders = (self.dataset.indptr[:-1], self.split.train_end)
        options: dict[str, Any] = {"sequence_length": length, "batch_events": self.config.batch_events, "rng": rng}
        return pack_lanes(*borders, **options) if self.network.recurrent else pack(*borders, **options)

    def loss(self, batch: Batch) -> Tensor:
        """Of a batch; a recurrent network's memory goes on."""
        events = self.table.at(batch.rows, batch.positions, batch.cu_seqlens)
        inputs = events._replace(items=self.hide(events.items))
        targets = self.table.items[torch.from_numpy(batch.rows) + 1]
        first = self.table.items[torch.from_numpy(batch.first)]
        if not self.network.recurrent:
            return OBJECTIVES[self.network.objective](self.network, inputs, targets, first, self.config)
        if len(batch.fresh) == inputs.num_users:  # an epoch begins
            self.memory = self.network.new_memory(inputs.num_users)
        self.memory.reset(batch.fresh)
        loss, self.memory = recurrent_loss(self.network, inputs, targets, first, self.config, self.memory)
        return loss

    def optimise(self, batch: Batch, rate: float) -> float:
        """One step; the loss before it."""
        loss = self.loss(batch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return loss.item()

    def hide(self, items: Tensor) -> Tensor:
        """Put the unknown item in place of a share of the input: its row is trained, and no single event relied on."""
        if self.config.item_dropout == 0.0:
            return items
        return torch.where(torch.rand(items.shape) < self.config.item_dropout, self.unknown, items)

    def validate(self) -> dict[str, float]:
        """Metrics of the weights as they are on the validation events."""
        ranks = evaluate(self.network.eval(), self.dataset, self.split.evaluated, self.split.validation)
        return ranking_metrics(ranks.numpy()).as_dict()
