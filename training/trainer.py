"""The training loop: epochs of packed batches, validation, and the choice of the best weights by the validation event.

Deterministic: the same data, config, seed, machine and number of threads give the same weights, as long as
`max_seconds` is not what ends the run (see `schedule.Budget`), and whether or not the run was stopped and resumed.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longrec.attributes import encode_attributes
from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, Split
from longrec.errors import ArgumentError, DataError
from longrec.modeling import Network, build_network, network_of
from longrec.modeling.attributes import attach
from longrec.training.distributed import ALONE, World
from longrec.training.examples import ExampleTable
from longrec.training.packing import Batch, pack, share
from longrec.training.recurrence import pack_lanes
from longrec.training.reporting import Observer
from longrec.training.schedule import Budget, learning_rate
from longrec.training.selection import Selection, validate
from longrec.training.state import Progress, fingerprint, restore, save
from longrec.training.stepping import Stepper

__all__ = ["Trained", "train"]


@dataclass(frozen=True)
class Trained:
    """What a run gives.

    Args:
        network: with the weights of the best validated epoch, in evaluation mode, on the CPU.
        best_epoch: from 1.
        history: a JSON-able record an epoch: epoch, loss, learning_rate, events_per_second, train_seconds and
            cpu_seconds of the epoch without its validation, seconds since the start, and where it was validated
            `validation` with the metrics.
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
    validated: bool = True,
    initial: Mapping[str, Tensor] | None = None,
    snapshot: Path | None = None,
    device: str | torch.device = "cpu",
    world: World = ALONE,
) -> Trained:
    """Train a network on the training part of `dataset`.

    Args:
        dataset, split: the data, and which rows of it are trained and validated on.
        model: shape; `num_items` is the catalogue's length.
        config: how.
        observers: told after each epoch.
        validated: whether the best weights by validation are kept; else the last ones.
        initial: weights to begin with, of `network.state_dict`; None: they are drawn.
        snapshot: a file that gets the run's state after each epoch. If there is one of this run, the run goes on from
            it, and ends with the bits of a run that was never stopped.
        device: where the network is trained.
        world: of a distributed run; every rank calls with the same arguments, and gets the same weights.

    Raises:
        ArgumentError: `model` has another number of items than the catalogue, features that the data lacks, repeats and
            a loss that samples, or a family that can't be trained on several steps.
        CheckpointError: `snapshot` is of another run.
        DataError: there is nothing to train or validate on, or the loss is no longer finite.
    """
    if model.num_items != len(dataset.catalogue):
        raise ArgumentError(f"num_items={model.num_items}", f"{len(dataset.catalogue)}, the length of the catalogue")
    if model.repeats and config.loss != "softmax":
        raise ArgumentError(f"loss={config.loss}", "softmax with repeats")
    if config.steps_ahead > 1 and model.family in ("bert4rec", "seq2seq"):
        raise ArgumentError(f"steps_ahead={config.steps_ahead}", f"1 for family {model.family}")
    lacking = [name for name, feature in model.features.event.items() if dataset.schema.event.get(name) != feature]
    if initial is None or dataset.attributes is not None:  # else a trained table of items is learnt on as it is
        lacking += [name for name, feature in model.features.item.items() if dataset.schema.item.get(name) != feature]
    if lacking:
        raise ArgumentError(f"features.{lacking[0]}", f"a feature of {dataset.name}, as its schema has it")
    if validated and not len(split.evaluated):
        raise DataError(f"{dataset.name}: expected at least one user with 3 events, to validate on")
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        network = build_network(model, dropout=config.dropout)
        if initial is not None:
            network.load_state_dict(initial)
        if dataset.attributes is not None and model.features.item:
            attributes = encode_attributes(model.features, dataset.attributes)
            attach(network, attributes, config.hide_own, merged=initial is not None)
        if world.rank:  # the same weights everywhere, but no two ranks drop out the same
            torch.manual_seed((config.seed << 16) + world.rank)
        return _Run(dataset, split, config, network.to(device), world, validated).run(observers, snapshot)


class _Run:
    def __init__(
        self, dataset: Dataset, split: Split, config: TrainConfig, network: Network, world: World, validated: bool
    ) -> None:
        self.dataset, self.split, self.config = dataset, split, config
        self.network, self.world, self.validated = network, world, validated
        self.stepper = Stepper(network, config, world)
        self.examples = ExampleTable(dataset, split, network.config, config, network.start.device)
        self.memory: Any = None  # of recurrent networks, a history in each lane

    def run(self, observers: Sequence[Observer], snapshot: Path | None) -> Trained:
        identity = fingerprint(self.dataset, self.network.config, self.config, self.world)
        if snapshot and snapshot.exists():
            progress = restore(snapshot, identity, self.stepper)
        else:
            progress = Progress(Budget(self.config.epochs, self.config.max_seconds), Selection(), [])
        budget, selection = progress.budget, progress.selection
        began = time.perf_counter() - progress.seconds
        while budget.left and not self.exhausted(selection):
            record = self.epoch(progress)
            budget.finish_epoch(self.world.from_first(time.perf_counter() - began))
            if not self.validated:
                selection.epoch = budget.done
            elif not budget.left or budget.done % self.config.validate_every == 0:
                weights = self.stepper.weights()
                record["validation"] = self.validate(weights)
                selection.offer(record["validation"]["ndcg@10"], budget.done, weights)
            record["seconds"] = progress.seconds = time.perf_counter() - began
            progress.history.append(record)
            if snapshot:
                save(snapshot, identity, self.stepper, progress)
            for observer in observers:
                observer.epoch(record, budget.epochs)
        best = network_of(self.network.config, selection.weights or self.stepper.weights()).cpu()
        rate = progress.events / progress.training_seconds
        return Trained(best, selection.epoch, progress.history, time.perf_counter() - began, rate)

    def exhausted(self, selection: Selection) -> bool:
        """Whether validations have not got better for too long."""
        return self.config.patience is not None and selection.misses >= self.config.patience

    def epoch(self, progress: Progress) -> dict[str, Any]:
        """One pass; its record."""
        began, cpu_began, budget = time.perf_counter(), time.process_time(), progress.budget
        batches = self.batches(np.random.default_rng([self.config.seed, budget.done]))
        self.network.train()
        total, rate = 0.0, 0.0
        for index, batch in enumerate(batches):
            done = budget.within(index / len(batches))
            rate = learning_rate(self.config.learning_rate, done, self.stepper.taken, self.config.warmup_steps)
            total += self.optimise(share(batch, self.world.rank, self.world.size), rate)
        total = self.world.sum(torch.tensor(total, dtype=torch.float64, device=self.network.start.device)).item()
        if not math.isfinite(total):
            raise DataError(
                f"training: the loss is no longer finite in epoch {budget.done + 1}; lower learning_rate "
                f"(now {self.config.learning_rate})"
            )
        events, seconds = sum(len(batch.rows) for batch in batches), time.perf_counter() - began
        progress.events += events
        progress.training_seconds += seconds
        return {
            "epoch": budget.done + 1,
            "loss": total / len(batches),
            "learning_rate": rate,
            "events_per_second": events / seconds,
            "train_seconds": seconds,
            "cpu_seconds": time.process_time() - cpu_began,
        }

    def batches(self, rng: np.random.Generator) -> list[Batch]:
        """An epoch's batches."""
        windowed = (
            self.network.memory == "window"
        )  # it knows no other places than those within a window: train them all
        length = self.network.config.window if windowed else self.config.sequence_length
        borders = (self.dataset.indptr[:-1], self.split.train_end)
        options: dict[str, Any] = {"sequence_length": length, "batch_events": self.config.batch_events, "rng": rng}
        return pack_lanes(*borders, **options) if self.network.recurrent else pack(*borders, **options)

    def optimise(self, batch: Batch, rate: float) -> float:
        """One step; the loss before it. A recurrent network's memory goes on."""
        examples = self.examples.of(batch, self.stepper.taken)
        if self.network.recurrent:
            if len(batch.fresh) == examples.events.num_users:  # an epoch begins
                self.memory = self.network.new_memory(examples.events.num_users)
            self.memory.reset(batch.fresh)
        loss, self.memory = self.stepper.step(examples, self.memory, rate)
        return loss

    def validate(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """Metrics of the weights on the validation events, the same on every rank."""
        first = self.world.rank == 0
        metrics = validate(self.network.config, weights, self.dataset, self.split) if first else None
        found: dict[str, float] = self.world.from_first(metrics)
        return found
