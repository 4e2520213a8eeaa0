"""The long-range task: the next item is decided by one event n steps back, and by nothing else."""

import numpy as np

from longrec.datasets.dataset import Dataset
from longrec.datasets.synthetic.assemble import assemble, borders
from longrec.errors import ArgumentError

__all__ = ["make_long_range"]


def make_long_range(users: int, distance: int, *, num_items: int = 32, seed: int = 0) -> Dataset:
    """A user's first n = `distance` items are independent and uniform; from then on item t is P(item t - n), with P one
    fixed permutation without fixed points for all users.

    Chance is 1 / num_items: any n - 1 successive items are independent, so a model that sees fewer than n events back
    can do no better, whatever it learns. Shortcuts that don't work: each item is equally frequent; no item is copied as
    it is; an item's context doesn't return (P of it does); a history ends somewhere in (1.5 n, 2 n), so neither the
    position nor the items still missing from the second half tell the next one.

    Args:
        users: histories. distance: n, at least 8, so that both held-out events are decided ones.
        num_items: at least 2.
        seed: the same seed gives the same data.
    """
    if users < 1 or distance < 8 or num_items < 2:
        raise ArgumentError(
            "users, distance, num_items", "at least 1, 8 and 2", got=f"{users}, {distance} and {num_items}"
        )
    rng = np.random.default_rng(seed)
    cycle = rng.permutation(num_items)  # one cycle through all items has no fixed point
    successor = np.empty(num_items, dtype=np.int64)
    successor[cycle] = np.roll(cycle, -1)
    indptr = borders(rng.integers(distance + distance // 2 + 1, 2 * distance, size=users))
    items = np.empty(indptr[-1], dtype=np.int64)
    for begin, end in zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True):
        items[begin : begin + distance] = rng.integers(num_items, size=distance)
        items[begin + distance : end] = successor[items[begin : end - distance]]
    return assemble(f"long-range-{distance}", items, indptr, num_items)
