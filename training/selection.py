"""Validation, and the choice of the weights that did best in it."""

from dataclasses import dataclass, field

from torch import Tensor

from longrec.config import ModelConfig
from longrec.datasets import Dataset, Split
from longrec.modeling import network_of
from longrec.training.evaluation import evaluate, ranking_metrics

__all__ = ["Selection", "validate"]

Weights = dict[str, Tensor]


@dataclass
class Selection:
    """The best weights so far.

    Args:
        score: of the best validation; None: none yet.
        epoch: after which it was, from 1.
        misses: validations since then.
        weights: of that epoch.
    """

    score: float | None = None
    epoch: int = 0
    misses: int = 0
    weights: Weights = field(default_factory=dict)

    def offer(self, score: float, epoch: int, weights: Weights) -> None:
        """Take these weights if they did better."""
        if self.score is None or score > self.score:
            self.score, self.epoch, self.misses, self.weights = score, epoch, 0, weights
        else:
            self.misses += 1


def validate(model: ModelConfig, weights: Weights, dataset: Dataset, split: Split) -> dict[str, float]:
    """Metrics of weights on the validation events."""
    ranks = evaluate(network_of(model, weights), dataset, split.evaluated, split.validation)
    return ranking_metrics(ranks.numpy()).as_dict()
