"""Training speed, ours and RecTools' SASRec an epoch each in turn, so that whatever else the machine does hits both."""

from typing import Any

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, Split
from longrec.training import train
from qualitybench.rivals import Rival

__all__ = ["alternate"]

LENGTH = 200  # what theirs sees of a history, and so the most that ours sees here


class _Turns:
    """An observer of our training that lets the rival train an epoch after each of ours."""

    def __init__(self, rival: Rival) -> None:
        self.rival = rival
        self.theirs: list[dict[str, Any]] = []
        self.ours: list[dict[str, Any]] = []

    def epoch(self, record: dict[str, Any], epochs: int) -> None:
        """As `Observer.epoch`."""
        self.ours.append(record)
        self.theirs.append(self.rival.epoch())


def alternate(dataset: Dataset, split: Split, rival: Rival, rounds: int) -> dict[str, dict[str, float]]:
    """Events a second of wall time and of CPU time, the first epoch of both left out.

    Both have the same width, depth and most events of a sequence; events are those that enter the loss.
    """
    turns = _Turns(rival)
    model = ModelConfig(num_items=len(dataset.catalogue), window=LENGTH)
    config = TrainConfig(sequence_length=LENGTH, epochs=rounds + 1, validate_every=rounds + 1)
    train(dataset, split, model, config, (turns,))
    ours = [
        {
            "seconds": record["train_seconds"],
            "cpu_seconds": record["cpu_seconds"],
            "events": record["train_seconds"] * record["events_per_second"],
        }
        for record in turns.ours
    ]
    return {"longrec": _rates(ours[1:]), "rectools": _rates(turns.theirs[1:])}


def _rates(epochs: list[dict[str, Any]]) -> dict[str, float]:
    events = sum(epoch["events"] for epoch in epochs)
    return {
        "events_per_second": events / sum(epoch["seconds"] for epoch in epochs),
        "events_per_cpu_second": events / sum(epoch["cpu_seconds"] for epoch in epochs),
    }
