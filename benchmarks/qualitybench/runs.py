"""One seed of one network, trained and ranked: what is chosen is chosen by the validation event, for ours and theirs
alike."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, Split
from longrec.training import evaluate, ranking_metrics, train
from qualitybench.rivals import Rival

__all__ = ["Record", "rows", "run_ours", "run_rival"]

CHOSEN_BY = "ndcg@10"
METRICS = ("ndcg@10", "hr@10", "mrr")


@dataclass(frozen=True)
class Record:
    """A finished run, JSON-able.

    Args:
        model, source, seed: what was trained, whose it is.
        test, validation: metrics at the epoch that the validation event chose.
        curve: NDCG@10 of the validation event at each epoch that was validated.
        best_epoch, epochs: from 1.
        train_seconds: training alone. events: trained on in them.
    """

    model: str
    source: str
    seed: int
    test: dict[str, float]
    validation: dict[str, float]
    curve: list[float]
    best_epoch: int
    epochs: int
    train_seconds: float
    events: int


def run_ours(dataset: Dataset, split: Split, name: str, model: ModelConfig, config: TrainConfig) -> Record:
    """Our network of that shape."""
    trained = train(dataset, split, model, config)
    seconds = sum(record["train_seconds"] for record in trained.history)
    curve = [record["validation"][CHOSEN_BY] for record in trained.history if "validation" in record]
    return Record(
        model=name,
        source="longrec",
        seed=config.seed,
        test=_metrics(evaluate(trained.network, dataset, split.evaluated, split.test).numpy()),
        validation=_metrics(evaluate(trained.network, dataset, split.evaluated, split.validation).numpy()),
        curve=curve,
        best_epoch=trained.best_epoch,
        epochs=len(trained.history),
        train_seconds=seconds,
        events=round(trained.events_per_second * seconds),
    )


def run_rival(rival: Rival, name: str, source: str, seed: int, *, epochs: int, validate_every: int) -> Record:
    """Their network for so many epochs."""
    seconds, events = 0.0, 0
    curve: list[float] = []
    best_epoch, validation, test = 0, {CHOSEN_BY: -1.0}, {}
    for epoch in range(1, epochs + 1):
        told = rival.epoch()
        seconds, events = seconds + told["seconds"], events + told["events"]
        if epoch % validate_every == 0 or epoch == epochs:
            found = _metrics(rival.ranks("validation"))
            curve.append(found[CHOSEN_BY])
            if found[CHOSEN_BY] > validation[CHOSEN_BY]:
                best_epoch, validation, test = epoch, found, _metrics(rival.ranks("test"))
    return Record(name, source, seed, test, validation, curve, best_epoch, epochs, seconds, events)


def rows(records: list[Record]) -> list[dict[str, Any]]:
    """A row a network: means over its seeds, best NDCG@10 first."""
    names = dict.fromkeys((record.source, record.model) for record in records)
    found = []
    for source, model in names:
        of = [record for record in records if (record.source, record.model) == (source, model)]
        found.append(
            {
                "model": model,
                "source": source,
                **{name: float(np.mean([record.test[name] for record in of])) for name in METRICS},
                "ndcg@10 by seed": [record.test["ndcg@10"] for record in of],
                "validation ndcg@10": float(np.mean([record.validation["ndcg@10"] for record in of])),
                "best_epochs": [record.best_epoch for record in of],
                "epochs": max(record.epochs for record in of),
                "seeds": len(of),
                "train_seconds": float(np.mean([record.train_seconds for record in of])),
                "events_per_second": sum(record.events for record in of) / sum(record.train_seconds for record in of),
            }
        )
    return sorted(found, key=lambda row: -row["ndcg@10"])


def _metrics(ranks: NDArray[np.int64]) -> dict[str, float]:
    figures = ranking_metrics(ranks).as_dict()
    return {name: figures[name] for name in METRICS}
