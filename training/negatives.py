"""Items drawn as negatives, and how likely each was to be drawn. NumPy only; a step's draw depends on the seed and the
step alone, so that a resumed run, and every rank of a distributed one, draws the same."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Negatives", "Sampler"]


class Negatives(NamedTuple):
    """What was drawn, repeats among it.

    Args:
        items: [M] int64.
        log_expected: [M] float64, natural log of how often each was to be expected in the draw.
    """

    items: NDArray[np.int64]
    log_expected: NDArray[np.float64]


class Sampler:
    """Draws `num_negatives` items in proportion to (count + 1) ** power.

    Args:
        counts: [N] training events of each item.
        power: 0 draws uniformly, 1 as the items occur.
        num_negatives: M.
        seed: of all draws.
    """

    def __init__(self, counts: NDArray[np.int64], *, power: float, num_negatives: int, seed: int) -> None:
        weights = (counts + 1.0) ** power
        probabilities = weights / weights.sum()
        self._log_expected = np.log(probabilities * num_negatives)
        self._cumulative = probabilities.cumsum()
        self._num_negatives, self._seed = num_negatives, seed

    def draw(self, step: int) -> Negatives:
        """The negatives of a step."""
        rng = np.random.default_rng([self._seed, step, 1])  # an epoch's order is drawn from [seed, epoch]
        places = np.searchsorted(self._cumulative, rng.random(self._num_negatives), side="right")
        items = np.minimum(places, len(self._cumulative) - 1).astype(np.int64)  # the sum may end a rounding below 1
        return Negatives(items, self._log_expected[items])
