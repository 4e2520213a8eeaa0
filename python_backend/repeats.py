"""What a served score gets for an item's having been seen lately (`longrec.modeling.repeats`): NumPy, by user."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec.modeling.repeats import Repeats

__all__ = ["RepeatTerms", "Terms"]

Ints = NDArray[np.int64]


class Terms(NamedTuple):
    """Items [n], rising, and what their scores get on top [n] float32."""

    items: Ints
    terms: NDArray[np.float32]

    def of(self, items: Ints) -> NDArray[np.float32]:
        """What each of `items` gets; 0 where it isn't among these."""
        if not len(self.items):
            return np.zeros(len(items), np.float32)
        place = np.searchsorted(self.items, items).clip(max=len(self.items) - 1)
        found: NDArray[np.float32] = np.where(self.items[place] == items, self.terms[place], np.float32(0.0))
        return found

    def only(self, kept: NDArray[np.bool_]) -> "Terms":
        """Those of the items that are kept."""
        return Terms(self.items[kept], self.terms[kept])


class RepeatTerms:
    """A network's terms.

    Args:
        repeats: of the network. num_items: of its catalogue.

    Attributes:
        reach: newest events that count.
    """

    def __init__(self, repeats: Repeats, num_items: int) -> None:
        self.reach, self._num_items = repeats.reach, num_items
        self._by_age: NDArray[np.float32] = repeats.by_age(repeats.reach).detach().float().cpu().numpy()

    def after(self, items: Ints) -> Terms:
        """After a user's events with these items [n], oldest first."""
        newest_first = items[: -self.reach - 1 : -1]
        found, age = np.unique(newest_first, return_index=True)
        known = np.searchsorted(found, self._num_items)
        return Terms(found[:known], self._by_age[age[:known]])
