"""The recall task: what a user showed once, n events ago, is asked for; everything between is noise."""

import numpy as np
from numpy.typing import NDArray

from longrec.datasets.dataset import Dataset
from longrec.datasets.synthetic.assemble import assemble, borders
from longrec.errors import ArgumentError

__all__ = ["make_recall"]

LEAD = 16  # most events before the value, so that its place in the history tells nothing


def make_recall(distances: NDArray[np.int64], *, num_values: int = 16, num_fillers: int = 16, seed: int = 0) -> Dataset:
    """Each history is fillers, one value, fillers, the question, and the value again, n = `distances[u]` events after
    it stood first.

    Items 0 to num_values - 1 are values, then come the fillers, uniform and independent, and the question is the last.
    Only one event tells the answer: chance is 1 / num_values for whoever doesn't see n events back.

    Args:
        distances: [U] n of each user, at least 2.
        num_values: at least 2. num_fillers: at least 1.
        seed: the same seed gives the same data.
    """
    if not len(distances) or distances.min() < 2 or num_values < 2 or num_fillers < 1:
        raise ArgumentError(
            "distances, num_values, num_fillers",
            "one at least, of 2 or more each; at least 2 and 1",
            got=f"{list(distances[:4])} …, {num_values} and {num_fillers}",
        )
    rng = np.random.default_rng(seed)
    before = rng.integers(LEAD, size=len(distances), endpoint=True)
    indptr = borders(before + distances + 1)
    items = num_values + rng.integers(num_fillers, size=indptr[-1])
    values, answers = indptr[:-1] + before, indptr[1:] - 1
    items[values] = items[answers] = rng.integers(num_values, size=len(distances))
    items[answers - 1] = num_values + num_fillers
    return assemble("recall", items, indptr, num_values + num_fillers + 1)
