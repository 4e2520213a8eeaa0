"""Metrics as pure functions of ranks, lists and values: no network, no dataset, NumPy alone. One file a kind.

Ranks count from 0 (best). A list holds catalogue indices, best first; -1 pads a list that is shorter than the others.
What was relevant to a user is one item (ranks) or several (`relevant`: an array of unique indices a user).
"""

from longrec.training.metrics.bootstrap import Interval, bootstrap_means
from longrec.training.metrics.calibration import calibration_divergence, mean_distributions
from longrec.training.metrics.catalogue import (
    average_popularity,
    catalogue_coverage,
    item_probabilities,
    novelty,
)
from longrec.training.metrics.groups import (
    Grouping,
    cold_items,
    cold_users,
    history_bands,
    popularity_bands,
    popularity_of_items,
)
from longrec.training.metrics.horizon import horizon_metrics, per_step
from longrec.training.metrics.ranking import Metrics, gains, ranking_metrics
from longrec.training.metrics.relevance import hit, match, ndcg, precision, recall, reciprocal_rank
from longrec.training.metrics.values import accuracy, mean_absolute_error, mean_squared_error, root_mean_squared_error

__all__ = [
    "Grouping",
    "Interval",
    "Metrics",
    "accuracy",
    "average_popularity",
    "bootstrap_means",
    "calibration_divergence",
    "catalogue_coverage",
    "cold_items",
    "cold_users",
    "gains",
    "history_bands",
    "hit",
    "horizon_metrics",
    "item_probabilities",
    "match",
    "mean_absolute_error",
    "mean_distributions",
    "mean_squared_error",
    "ndcg",
    "novelty",
    "per_step",
    "popularity_bands",
    "popularity_of_items",
    "precision",
    "ranking_metrics",
    "recall",
    "reciprocal_rank",
    "root_mean_squared_error",
]
