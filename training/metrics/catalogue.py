"""What the lists say beyond accuracy: how much of the catalogue is shown, how novel and how popular it is."""

import numpy as np
from numpy.typing import NDArray

from longrec.errors import ArgumentError

__all__ = ["average_popularity", "catalogue_coverage", "item_probabilities", "novelty"]


def catalogue_coverage(lists: NDArray[np.int64], num_items: int) -> float:
    """Share of the catalogue that stands in at least one list (Ge et al., RecSys 2010, "catalog coverage").

    Args:
        lists: [E, K] catalogue indices; -1: no item.
        num_items: size of the catalogue.
    """
    shown = np.zeros(num_items, dtype=np.bool_)
    shown[lists[lists >= 0]] = True
    return float(shown.mean())


def item_probabilities(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """p(i) = (n_i + 1) / (sum of n + N): each item's share of the training events, smoothed after Laplace so that an
    item without any has a finite self-information.

    Args:
        counts: [N] training events of each item.
    """
    shares: NDArray[np.float64] = (counts + 1.0) / (counts.sum() + len(counts))
    return shares


def novelty(lists: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """[E] mean self-information -log2 p(i), in bits, of the items of each list (Zhou et al., PNAS 2010).

    Args:
        lists: [E, K] catalogue indices; -1: no item, not counted; each list has one item at least.
        probabilities: [N], all positive.
    """
    return _mean_of(lists, -np.log2(probabilities))


def average_popularity(lists: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[E] mean number of training events of the items of each list (ARP; Yin et al., VLDB 2012).

    Args:
        lists: as in `novelty`.
        counts: [N] training events of each item.
    """
    return _mean_of(lists, counts.astype(np.float64))


def _mean_of(lists: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    present = lists >= 0
    if not present.any(axis=1).all():
        raise ArgumentError("lists", "at least one item a user", got="a list of padding alone")
    mean: NDArray[np.float64] = np.where(present, values[lists], 0.0).sum(axis=1) / present.sum(axis=1)
    return mean
