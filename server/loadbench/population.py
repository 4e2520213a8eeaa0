"""Who asks, and with which event: returning users by a Zipf law and cold ones, with the histories of a data set."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec.datasets import Dataset
from longrec.errors import ArgumentError, DataError

__all__ = ["Arrivals", "Population"]

SECOND_MS = 1000


class Arrivals(NamedTuple):
    """n requests, a user and an event each, in the order in which they are sent.

    Args:
        users: [n] int64 numbers of users. cold: [n] bool, whether the user has no memory yet.
        positions: [n] int64, of the event in the user's log.
    """

    users: NDArray[np.int64]
    cold: NDArray[np.bool_]
    positions: NDArray[np.int64]


class Population:
    """Users in the likeness of a data set's: number n has the recorded history of user n modulo their number.

    A user's log begins with the first half of the recorded history; requests go on with the second. When it is through
    it begins anew, later in time: the items and the gaps between them are always recorded ones.

    Args:
        dataset: with at least one event.
        users: returning users; a request is of the one of rank r with probability proportional to r ** -zipf.
        zipf: 0: all are alike; 1: the usual law.
        prefix: of keys; a fresh one for a server that knows other populations.
        seed: of all that is drawn.

    Raises:
        ArgumentError, DataError: an argument doesn't fit.
    """

    def __init__(self, dataset: Dataset, users: int, *, zipf: float, prefix: str, seed: int = 0) -> None:
        if users < 1:
            raise ArgumentError(f"users={users}", "at least 1")
        if not 0 <= zipf < np.inf:
            raise ArgumentError(f"zipf={zipf}", "an exponent >= 0")
        if not len(dataset):
            raise DataError(f"{dataset.name}: expected a data set with events, got none")
        self.users = users
        self._dataset, self._prefix = dataset, prefix
        self._rng = np.random.default_rng(seed)
        self._by_rank = self._rng.permutation(users)  # so that the heavy users aren't the data set's first
        self._cumulative = np.cumsum(np.arange(1, users + 1, dtype=np.float64) ** -zipf)
        self._counts = np.diff(dataset.indptr)
        first, last = dataset.indptr[:-1], dataset.indptr[1:] - 1
        self._spans = dataset.times_ms[last] - dataset.times_ms[first] + SECOND_MS  # [U] from one round to the next
        self._lengths = np.maximum(1, self._counts[np.arange(users) % len(self._counts)] // 2)  # [users] of the logs
        self._next_cold = users

    def key(self, user: int) -> str:
        """The user's key on the server."""
        return f"{self._prefix}{user}"

    def history(self, user: int, length: int) -> NDArray[np.int64]:
        """[length, 2] int64 item, unix ms: the first events of a user's log."""
        return self.events(np.full(length, user), np.arange(length))[:, 1:]

    def beginning(self, user: int) -> NDArray[np.int64]:
        """The events with which the user's log begins, as `history`."""
        return self.history(user, max(1, int(self._counts[user % len(self._counts)]) // 2))

    def events(self, users: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n, 3] int64 position, item, unix ms: an event of each user."""
        own = users % len(self._counts)
        rounds, places = np.divmod(positions, self._counts[own])
        rows = self._dataset.indptr[own] + places
        return np.column_stack(
            (positions, self._dataset.items[rows], self._dataset.times_ms[rows] + rounds * self._spans[own])
        )

    def draw(self, count: int, cold: float) -> Arrivals:
        """The next requests; `commit` those that were sent.

        Args:
            count: how many.
            cold: share of them, 0..1, that are the first of a user who has a log but no memory.
        """
        if not 0 <= cold <= 1:
            raise ArgumentError(f"cold={cold}", "a share, 0..1")
        is_cold = self._rng.random(count) < cold
        ranks = np.searchsorted(self._cumulative, self._rng.random(count) * self._cumulative[-1], side="right")
        users = self._by_rank[np.minimum(ranks, self.users - 1)]
        num_cold = int(is_cold.sum())
        users[is_cold] = self._next_cold + np.arange(num_cold)
        self._next_cold += num_cold
        positions = _occurrence(users)
        positions[~is_cold] += self._lengths[users[~is_cold]]
        positions[is_cold] += np.maximum(1, self._counts[users[is_cold] % len(self._counts)] // 2)
        return Arrivals(users, is_cold, positions)

    def commit(self, users: NDArray[np.int64]) -> None:
        """Users of the requests whose events are in their logs now."""
        self._lengths += np.bincount(users[users < self.users], minlength=self.users)

    def keys(self, users: Sequence[int]) -> list[str]:
        """Keys of users."""
        return [self.key(user) for user in users]


def _occurrence(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n] how often each value stood before in the array."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    counts = np.diff(starts, append=len(values))
    found = np.empty(len(values), np.int64)
    found[order] = np.arange(len(values)) - np.repeat(starts, counts)
    return found
