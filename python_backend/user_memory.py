"""What the engine asks of whoever keeps its users' pasts; one implementation for each way of keeping them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.errors import DataError
from longrec.python_backend.event_log import EventLog
from longrec.python_backend.observations import Observations
from longrec.python_backend.work import Entry, Work

__all__ = ["Caught", "UserMemory", "overtaken"]

Ints = NDArray[np.int64]


class Caught(NamedTuple):
    """What one step answered.

    Args:
        entries: whose answers are known now. hidden: [n, dim], a state for each; good until the next step.
        failed: whose user's log can't be read, and why.
        num_users, num_events: whose events ran through the network. num_read: events that were read back from the log;
            num_caught_up: those of them that a memory lacked which was there.
        seconds: of the network's pass.
    """

    entries: list[Entry]
    hidden: torch.Tensor
    failed: list[tuple[Entry, DataError]]
    num_users: int = 0
    num_events: int = 0
    num_read: int = 0
    num_caught_up: int = 0
    seconds: float = 0.0


class UserMemory(ABC):
    """The users' pasts, of one network.

    Attributes:
        capacity: users whose long work goes on side by side, at least 1.
        inline_events: a user of whom the network must see more is deferred.
        most_users: users who can have a memory at once; 0: nobody has one.
    """

    capacity: int
    inline_events: int
    most_users: int

    @abstractmethod
    def num_missing(self, work: Work) -> int:
        """Events that the network must see before all of the user's entries are answered."""

    @abstractmethod
    def run(self, works: Sequence[Work], *, each: int, room: int) -> Caught:
        """One step: at most `room` events in all and `each` of a user; entries that it answers leave their works.

        Where an entry that it answers needs the memory, `stands` afterwards.

        Users whom the step has no room for stay as they are.

        Raises:
            MachineError: the log can't be read; memories are as they were.
        """

    def run_warm(self, entries: Sequence[Entry]) -> Caught | None:
        """One step of those entries alone whose users' memories stand right before their new events, in less time than
        `run` takes for them, and in no `Work`.

        Args:
            entries: whose appends have an outcome, or none for those that aren't in the log.

        Returns:
            None: there are no such entries, or there is no shorter way.
        """
        return None

    def length_of(self, user: bytes) -> int:
        """Events of the user's log that the memory has seen; -1: there is no memory."""
        return -1

    @abstractmethod
    def __contains__(self, user: bytes) -> bool:
        """Whether the user has a memory."""

    @abstractmethod
    def stands(self, user: bytes, length: int) -> bool:
        """Whether what is known of the user is their first `length` events, from which more than a state can be had."""

    @abstractmethod
    def explain(self, users: Sequence[bytes], newest: Ints, ranked: Ints, count: int, ends: Ints) -> Ints:
        """Positions [B, k, count] of the events that weighed most for each item, as `Explainer.explain`; the users'
        memories must stand at `ends`."""

    @abstractmethod
    def pin(self, user: bytes, pinned: bool) -> None:
        """Keep a user's memory, if there is one, whatever others need; or no longer."""

    @abstractmethod
    def unpin_all(self) -> None:
        """Keep nobody's memory."""

    @abstractmethod
    def drop_all(self) -> None:
        """Forget every user."""

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """Whether one more user finds room for a whole memory without another losing theirs."""

    @abstractmethod
    def observe(self, seen: Observations) -> None:
        """Note what the memory is like now."""


def overtaken(log: EventLog, work: Work, first: int) -> bool:
    """Whether others have appended so much meanwhile that the log no longer holds event `first`; the user's entries
    are then to be answered after what it holds now, of which retention leaves enough."""
    try:
        extent = log.extent(work.user)
    except DataError:
        return False
    if extent.first <= first:
        return False
    for entry in work.entries:
        assert entry.outcome is not None
        entry.outcome = entry.outcome._replace(length=extent.length)
    return True
