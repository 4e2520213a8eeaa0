"""Which group each evaluated user belongs to: by length of history, popularity of the target, cold start. A grouping is
a list of names and [E] the place of each user's group in it."""

from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grouping", "cold_items", "cold_users", "history_bands", "popularity_bands", "popularity_of_items"]

HISTORY_BORDERS: Final = (10, 20, 50, 100, 200, 500, 1000)
HEAD, MID = 0.5, 0.8  # of the training events, from the most popular item on


class Grouping(NamedTuple):
    """Names of the groups, in the order to show, and [E] which of them each user is in."""

    names: tuple[str, ...]
    group: NDArray[np.int64]


def history_bands(lengths: NDArray[np.int64], borders: tuple[int, ...] = HISTORY_BORDERS) -> Grouping:
    """By the number of events before the target.

    Args:
        lengths: [E]. borders: rising; a band holds its lower border and not its upper one.
    """
    inner = [f"{low}-{high - 1}" for low, high in pairwise(borders)]
    names = (f"0-{borders[0] - 1}", *inner, f"{borders[-1]}+")
    return Grouping(names, np.searchsorted(borders, lengths, side="right").astype(np.int64))


def popularity_of_items(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N] 0 head, 1 mid, 2 tail: the most popular items which together have half of the training events, those up to
    80%, the rest. An item belongs to the band in which its first event falls; equal counts go by catalogue index.

    Args:
        counts: [N] training events of each item.
    """
    order = np.argsort(-counts, kind="stable")
    before = counts[order].cumsum() - counts[order]
    share = before / max(counts.sum(), 1)
    bands = np.empty(len(counts), dtype=np.int64)
    bands[order] = np.where(counts[order] == 0, 2, np.searchsorted((HEAD, MID), share, side="right"))
    return bands


def popularity_bands(targets: NDArray[np.int64], counts: NDArray[np.int64]) -> Grouping:
    """By the popularity of the target, as `popularity_of_items` has it.

    Args:
        targets: [E] catalogue indices. counts: [N] training events of each item.
    """
    return Grouping(("head", "mid", "tail"), popularity_of_items(counts)[targets])


def cold_users(lengths: NDArray[np.int64], most: int) -> Grouping:
    """Users of at most `most` events before the target, and the others."""
    return Grouping((f"users, <= {most} events", "other users"), (lengths > most).astype(np.int64))


def cold_items(targets: NDArray[np.int64], counts: NDArray[np.int64]) -> Grouping:
    """Targets that no training event has, and the others; arguments as in `popularity_bands`."""
    return Grouping(("unseen items", "seen items"), (counts[targets] > 0).astype(np.int64))
