"""Which events of a dataset are trained on, validated on and tested on. Protocol only, no metrics."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from longrec.datasets.dataset import Dataset

__all__ = ["HELD_OUT", "Split", "everything", "leave_one_out"]

MIN_EVENTS = 3
HELD_OUT: Final = 2  # of a user: the test and the validation event


@dataclass(frozen=True)
class Split:
    """Rows of a dataset's flat arrays.

    Args:
        train_end: [U]; user u is trained on rows indptr[u] to train_end[u].
        evaluated: [E] the users that are evaluated, rising.
        validation, test: [E] the row of each evaluated user's validation and test event. Each is predicted from all of
            the user's events before it.
    """

    train_end: NDArray[np.int64]
    evaluated: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def leave_one_out(dataset: Dataset, held_out: int = HELD_OUT) -> Split:
    """A user's last event is the test event, the one before it the validation event.

    Users of fewer than 3 events are trained on with all they have, and not evaluated.

    Args:
        dataset: to split.
        held_out: newest events that are not trained on, of users who have more; of the other evaluated users the two.
    """
    end, counts = dataset.indptr[1:], np.diff(dataset.indptr)
    evaluated = np.flatnonzero(counts >= MIN_EVENTS)
    train_end = end.copy()
    train_end[evaluated] -= np.where(counts[evaluated] > held_out, held_out, HELD_OUT)
    return Split(train_end, evaluated, end[evaluated] - 2, end[evaluated] - 1)


def everything(dataset: Dataset) -> Split:
    """Every event is trained on, and no user evaluated: for pretraining."""
    none = np.zeros(0, dtype=np.int64)
    return Split(dataset.indptr[1:].copy(), none, none, none)
