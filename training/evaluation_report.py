"""The figures of an evaluation: means, what the lists say beyond accuracy, and groups of users with intervals. Numbers
only; `longrec evaluate` prints them, `evaluation_plots` draws them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec.datasets import Dataset, Split
from longrec.errors import ArgumentError
from longrec.training import metrics
from longrec.training.evaluation import Answers
from longrec.training.metrics import Grouping, Interval

__all__ = ["GROUPINGS", "GROUP_METRICS", "Group", "group_figures", "list_figures", "training_counts"]

GROUP_METRICS: Final = ("hr@10", "ndcg@10", "mrr")


class Group(NamedTuple):
    """A group of users.

    Args:
        name: of the group. users: how many.
        metrics: name -> mean and interval; empty for a group without users.
    """

    name: str
    users: int
    metrics: Mapping[str, Interval]


class _Targets(NamedTuple):
    """What a grouping may look at: [E] events before each target, [E] its item, [N] training events of each item."""

    lengths: NDArray[np.int64]
    items: NDArray[np.int64]
    counts: NDArray[np.int64]
    cold_events: int


GROUPINGS: Final[Mapping[str, Callable[[_Targets], Sequence[Grouping]]]] = {
    "history": lambda of: (metrics.history_bands(of.lengths),),
    "popularity": lambda of: (metrics.popularity_bands(of.items, of.counts),),
    "cold": lambda of: (metrics.cold_users(of.lengths, of.cold_events), metrics.cold_items(of.items, of.counts)),
}


def training_counts(dataset: Dataset, split: Split) -> NDArray[np.int64]:
    """[N] training events of each item."""
    begins, ends = dataset.indptr[:-1], split.train_end
    edges = np.zeros(len(dataset) + 1, dtype=np.int64)
    np.add.at(edges, begins, 1)
    np.add.at(edges, ends, -1)
    trained = edges.cumsum()[:-1] > 0
    return np.bincount(dataset.items[trained], minlength=len(dataset.catalogue)).astype(np.int64)


def list_figures(
    answers: Answers, dataset: Dataset, users: NDArray[np.int64], rows: NDArray[np.int64], counts: NDArray[np.int64]
) -> dict[str, float]:
    """Coverage, novelty, popularity and calibration of the lists, with keys such as `coverage@10`.

    Args:
        answers: with lists of k items. users, rows: [E] whose they are and before which row.
        counts: of `training_counts`.
    """
    lists = answers.lists
    k = lists.shape[1]
    memberships = _memberships(dataset, counts)
    pasts = np.concatenate([dataset.items[a:b] for a, b in zip(dataset.indptr[users], rows, strict=True)])
    borders = np.concatenate(([0], (rows - dataset.indptr[users]).cumsum()))
    divergence = metrics.calibration_divergence(
        metrics.mean_distributions(memberships, pasts, borders),
        metrics.mean_distributions(memberships, lists.ravel(), np.arange(len(lists) + 1) * k),
    )
    known = divergence[~np.isnan(divergence)]  # users of whose past, or list, no item has a category say nothing
    return {
        f"coverage@{k}": metrics.catalogue_coverage(lists, len(dataset.catalogue)),
        f"novelty@{k}": float(metrics.novelty(lists, metrics.item_probabilities(counts)).mean()),
        f"popularity@{k}": float(metrics.average_popularity(lists, counts).mean()),
        f"calibration@{k}": float(known.mean()) if len(known) else float("nan"),
    }


def group_figures(
    answers: Answers,
    dataset: Dataset,
    users: NDArray[np.int64],
    rows: NDArray[np.int64],
    counts: NDArray[np.int64],
    by: Sequence[str],
    *,
    cold_events: int = 5,
) -> dict[str, list[Group]]:
    """Means and intervals of each group.

    Args:
        answers, users, rows, counts: as in `list_figures`.
        by: names of `GROUPINGS`.
        cold_events: most events before the target of a cold user.

    Returns:
        grouping -> its groups, empty ones too.

    Raises:
        ArgumentError: a name that is none.
    """
    for name in by:
        if name not in GROUPINGS:
            raise ArgumentError(f"by={name}", f"one of {', '.join(GROUPINGS)}")
    targets = _Targets(rows - dataset.indptr[users], dataset.items[rows], counts, cold_events)
    gains = metrics.gains(answers.ranks, (10,))
    values = np.stack([gains[name] for name in GROUP_METRICS], axis=1)  # [E, M]
    return {
        name: [group for grouping in GROUPINGS[name](targets) for group in _groups(grouping, values)] for name in by
    }


def _groups(grouping: Grouping, values: NDArray[np.float64]) -> list[Group]:
    groups = []
    for place, name in enumerate(grouping.names):
        own = values[grouping.group == place]
        means = metrics.bootstrap_means(own) if len(own) else []
        groups.append(Group(name, len(own), dict(zip(GROUP_METRICS, means, strict=bool(means)))))
    return groups


def _memberships(dataset: Dataset, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[N, G] p(g|i): an item's categories in equal parts; popularity bands where the catalogue has no categories."""
    categories = dataset.catalogue.categories
    if not any(categories):
        return np.eye(3)[metrics.popularity_of_items(counts)]
    place = {name: g for g, name in enumerate(dict.fromkeys(name for names in categories for name in names))}
    table = np.zeros((len(categories), len(place)))
    for item, names in enumerate(categories):
        for name in names:
            table[item, place[name]] = 1.0 / len(names)
    return table
