"""An interaction log like a shop's: Zipf popularity, interests that drift, items consumed again."""

import numpy as np
from numpy.typing import NDArray

from longrec.datasets.dataset import Dataset
from longrec.datasets.synthetic.assemble import BEGAN_MS, assemble, borders
from longrec.errors import ArgumentError

__all__ = ["make_drift"]

INTERESTS = 3  # categories that a user likes at a time
DRIFT = 0.02  # probability that an event replaces one of them
REPEAT, REPEAT_MEAN = 0.15, 20  # of consuming again what came about so many events ago
FOLLOW = 0.3  # of the item that goes with the one before, in its category
NEIGHBOURS = 8
SPREAD = 0.8  # sigma of the log of a user's activity
GAP_SECONDS = 3600.0
Array = NDArray[np.int64]


def make_drift(
    users: int, events: int, *, num_items: int = 3000, num_categories: int = 20, zipf: float = 1.0, seed: int = 0
) -> Dataset:
    """`events` events of `users` users (3 each at least, log-normal activity).

    An event repeats an earlier one of its user (geometric recency), or is the item that goes with the one before, or is
    drawn by Zipf's law, p(rank) ~ rank^-zipf, from a category that the user likes; the liked categories drift. Memory
    is a few arrays of `events` numbers; time grows with the longest history, a vector operation a step over all users.

    Args:
        users, events: sizes; events at least 3 * users.
        num_items: a category has num_items / num_categories of them, item i standing in category i % num_categories.
        zipf: exponent.
        seed: the same seed gives the same data.
    """
    if users < 1 or events < 3 * users or not INTERESTS <= num_categories <= num_items:
        raise ArgumentError(
            "users, events, num_items, num_categories",
            f"events >= 3 * users, {INTERESTS} <= num_categories <= num_items",
            got=f"{users}, {events}, {num_items}, {num_categories}",
        )
    rng = np.random.default_rng(seed)
    activity = rng.lognormal(sigma=SPREAD, size=users)
    lengths = 3 + rng.multinomial(events - 3 * users, activity / activity.sum())
    lengths = -np.sort(-lengths)  # the active users of a step are the first
    indptr = borders(lengths)
    places = num_items // num_categories  # items of a category; the rest of the division never occurs in it
    popularity = np.arange(1, places + 1, dtype=np.float64) ** -zipf
    cumulative = popularity.cumsum() / popularity.sum()
    # shuffled among neighbours in popularity: a follower of any popularity would flatten Zipf's law
    follower = np.argsort(np.arange(places) // NEIGHBOURS + rng.random(places))
    interests = rng.integers(num_categories, size=(users, INTERESTS))
    items = np.empty(events, dtype=np.int64)
    for step in range(lengths[0]):
        active = int(np.searchsorted(-lengths, -step, side="left"))  # users with more than `step` events
        rows = indptr[:active] + step
        drifting = np.flatnonzero(rng.random(active) < DRIFT)
        interests[drifting, rng.integers(INTERESTS, size=len(drifting))] = rng.integers(
            num_categories, size=len(drifting)
        )
        category = interests[np.arange(active), rng.integers(INTERESTS, size=active)]
        chosen = category + num_categories * np.searchsorted(cumulative, rng.random(active))
        if step:
            kind, before = rng.random(active), items[rows - 1]
            back = np.minimum(rng.geometric(1 / REPEAT_MEAN, size=active), step)
            followed = before % num_categories + num_categories * follower[before // num_categories]
            chosen = np.where(kind < REPEAT, items[rows - back], np.where(kind < REPEAT + FOLLOW, followed, chosen))
        items[rows] = chosen
    categories = [[f"category {item % num_categories}"] for item in range(num_items)]
    return assemble("drift", items, indptr, num_items, _times(indptr, rng), categories)


def _times(indptr: Array, rng: np.random.Generator) -> Array:
    """[n] unix ms: exponential gaps, of mean an hour, in each user's history."""
    gaps = (1000 * rng.exponential(GAP_SECONDS, size=indptr[-1])).astype(np.int64)
    total = np.concatenate(([0], gaps.cumsum()))[:-1]
    times: Array = BEGAN_MS + total - np.repeat(total[indptr[:-1]], np.diff(indptr))
    return times
