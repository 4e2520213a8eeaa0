"""Where the paths of a rollout are kept: forks of the users' memories in the pool, each advanced on its own."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.errors import MachineError
from longrec.modeling.network import Network
from longrec.python_backend.catch_up import step_inputs
from longrec.python_backend.memory_pool import NO_ROW, NO_TIME, MemoryPool
from longrec.python_backend.step import Steps

__all__ = ["Paths", "PoolPaths", "next_times"]

Ints = NDArray[np.int64]
MAX_TIME = np.iinfo(np.int64).max


class Paths(ABC):
    """Users' pasts, each with predicted events behind it. A path is named by its row, a number from 0."""

    @abstractmethod
    def begin_step(self) -> None:
        """A step of the rollouts begins."""

    @abstractmethod
    def open(self, user: bytes, length: int) -> int:
        """The path of no predicted event, after the first `length` events of a user.

        Raises:
            MachineError: there is no room, or the log can't be read. DataError: the user's log is damaged.
        """

    @abstractmethod
    def close(self, row: int) -> None:
        """End a path of `open`; its forks are released."""

    @abstractmethod
    def hidden(self, rows: list[int]) -> torch.Tensor:
        """States [P, dim] after the paths' last events."""

    @abstractmethod
    def fork(self, rows: list[int]) -> list[int]:
        """A copy of each path, to be advanced on its own; the one that is copied stays as it is.

        Raises:
            MachineError: there is no room.
        """

    @abstractmethod
    def release(self, rows: list[int]) -> None:
        """End forks."""

    @abstractmethod
    def advance(self, rows: list[int], items: list[int], gaps_ms: Ints) -> Ints:
        """Let an item follow each path, so many milliseconds [P] after the event before.

        Returns:
            [P, 2 + F], item and `Events.gaps` of these events; their features are unknown.

        Raises:
            MachineError: there is no room.
        """


def next_times(times: Ints, gaps_ms: Ints) -> Ints:
    """Unix ms of events that follow those at `times` (or NO_TIME)."""
    since = np.maximum(times, 0)
    following: Ints = since + np.minimum(gaps_ms, MAX_TIME - since)
    return following


class PoolPaths(Paths):
    """Copy-on-write forks of the users' memories. The users must stay pinned and as they are.

    Args:
        network: in evaluation mode.
        pool: the memories. steps: runs the network over it.
    """

    def __init__(self, network: Network, pool: MemoryPool, steps: Steps) -> None:
        self._model, self._start = network.config, network.start.detach()
        self._pool, self._steps = pool, steps
        self._fresh: dict[int, bytes] = {}  # users without events get a memory, which goes when the path ends

    def begin_step(self) -> None:
        """As `Paths.begin_step`."""
        self._pool.begin_step()

    def open(self, user: bytes, length: int) -> int:
        """As `Paths.open`."""
        pool = self._pool
        row = pool.row(user)
        if row == NO_ROW and length == 0:
            row = pool.open(user, 0, NO_TIME)
            if row != NO_ROW:
                self._fresh[row] = user
        if row == NO_ROW:
            raise MachineError("memory_bytes: expected room for a rollout's user, got none: raise it")
        if length == 0:
            pool.hidden[row] = self._start
        pool.pinned[row] = True
        return row

    def close(self, row: int) -> None:
        """As `Paths.close`."""
        user = self._fresh.pop(row, None)
        if user is not None:
            self._pool.drop(user)

    def hidden(self, rows: list[int]) -> torch.Tensor:
        """As `Paths.hidden`."""
        return self._pool.hidden[rows]

    def fork(self, rows: list[int]) -> list[int]:
        """As `Paths.fork`."""
        made: list[int] = self._pool.fork(np.array(rows, np.int64)).tolist()
        return made

    def release(self, rows: list[int]) -> None:
        """As `Paths.release`."""
        self._pool.release(np.array(rows, np.int64))

    def advance(self, rows: list[int], items: list[int], gaps_ms: Ints) -> Ints:
        """As `Paths.advance`."""
        pool, own = self._pool, np.array(rows, np.int64)
        counts = np.ones(len(rows), np.int64)
        events = np.zeros((len(rows), 2 + len(self._model.features.columns)), np.int64)
        events[:, 0], events[:, 1] = items, next_times(pool.time[own], gaps_ms)
        if pool.num_fitting(own, counts) < len(rows):
            raise MachineError("memory_bytes: expected room for a rollout's events, got none: raise it")
        pool.reserve(own, counts)
        try:
            inputs = step_inputs(pool, self._model, own, counts, events)
            hidden = self._steps.run(inputs)
        except BaseException:
            pool.unreserve(own, counts)
            raise
        pool.advance(own, counts, events[:, 1], hidden)
        return np.column_stack([inputs.items, inputs.gaps])
