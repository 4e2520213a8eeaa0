"""Purchase sequences over {0, 1}: bought or not, step after step, each user with a rhythm of their own."""

import numpy as np

from longrec.datasets.dataset import Dataset
from longrec.datasets.synthetic.assemble import assemble, borders
from longrec.errors import ArgumentError

__all__ = ["make_purchases"]

PERIODS = (3, 8)  # lengths of rhythms: 3 to 7 steps


def make_purchases(users: int, length: int, *, noise: float = 0.1, seed: int = 0) -> Dataset:
    """A user repeats a random word of 3 to 7 purchases and non-purchases; each step is flipped with probability
    `noise`.

    So no model predicts more than 1 - noise of the steps rightly, and one that has found the rhythm gets there. The
    next k = 2 steps are those of the seed's task: a user's last two events.

    Args:
        users, length: histories, and events of each (at least 3).
        noise: 0 to 0.5.
        seed: the same seed gives the same data.
    """
    if users < 1 or length < 3 or not 0.0 <= noise <= 0.5:
        raise ArgumentError("users, length, noise", "at least 1, at least 3, 0 to 0.5", f"{users}, {length}, {noise}")
    rng = np.random.default_rng(seed)
    words = rng.integers(2, size=(users, PERIODS[1] - 1), dtype=np.int8)
    periods = rng.integers(*PERIODS, size=(users, 1))
    steps = np.take_along_axis(words, np.arange(length) % periods, axis=1)  # [U, length]
    flipped = rng.random((users, length), dtype=np.float32) < noise
    items = (steps ^ flipped).astype(np.int64).ravel()
    return assemble("purchases", items, borders(np.full(users, length)), 2)
