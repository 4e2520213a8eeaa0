"""No memory: an answer is computed from the user's newest events in the log, all that can reach it."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.errors import DataError
from longrec.modeling.events import Events
from longrec.modeling.features import in_context, ragged_gap_buckets, seconds
from longrec.modeling.network import Network
from longrec.python_backend.event_log import EventLog, Span
from longrec.python_backend.memory_pool import NO_TIME
from longrec.python_backend.observations import Observations
from longrec.python_backend.user_memory import Caught, UserMemory, overtaken
from longrec.python_backend.work import Entry, Rows, Work

__all__ = ["Field", "FieldReader", "LastStatesOf", "Windows", "events_of"]

Ints = NDArray[np.int64]
LastStatesOf = Callable[[Events], torch.Tensor]  # as `Network.last_states`
CAPACITY = 64  # users whose long work goes on side by side
PASS_EVENTS = 4096  # of more histories at once, activations leave the caches: 242 ms for 16 of 2,048 so, 330 together


class Field(NamedTuple):
    """Events [n, 2 + C] that can reach an answer, the first at position `start`; the time before them, or NO_TIME."""

    start: int
    rows: Rows
    time_before: int


class FieldReader:
    """Reads what can reach answers.

    Args:
        log: where it is read.
        reach: newest events that can; None: all.
    """

    def __init__(self, log: EventLog, reach: int | None) -> None:
        self.log, self._reach = log, reach

    def first(self, after: int) -> int:
        """Position of the first event that can reach an answer after so many."""
        return 0 if self._reach is None else max(0, after - self._reach)

    def read(self, places: Sequence[tuple[bytes, int]]) -> list[Field | DataError]:
        """What can reach each answer: of a user, after so many of their events; the log is asked once.

        Raises:
            MachineError: the log can't be read.
        """
        starts = [self.first(after) for _, after in places]
        spans = [
            Span(user, max(0, start - 1), after) for (user, after), start in zip(places, starts, strict=True)
        ]  # with one event more, whose time counts
        fields: list[Field | DataError] = []
        for start, rows in zip(starts, self.log.read_many(spans), strict=True):
            if isinstance(rows, DataError):
                fields.append(rows)
            elif start:
                fields.append(Field(start, rows[1:], int(rows[0, 1])))
            else:
                fields.append(Field(0, rows, NO_TIME))
        return fields


class Windows(UserMemory):
    """Runs the newest events again for each answer.

    Args:
        network: in evaluation mode.
        log: where they are read.
        inline_events: as `UserMemory`.
        last_states: of the network, in place of `Network.last_states`.
    """

    capacity = CAPACITY
    most_users = 0

    def __init__(
        self, network: Network, log: EventLog, inline_events: int, last_states: LastStatesOf | None = None
    ) -> None:
        self.inline_events = inline_events
        self._network, self._start = network, network.start.detach()
        self._fields = FieldReader(log, network.config.reach)
        self._last_states = network.last_states if last_states is None else last_states

    def num_missing(self, work: Work) -> int:
        """As `UserMemory.num_missing`: for each entry all that can reach it."""
        return sum(entry.after - self._fields.first(entry.after) for entry in work.entries)

    def run(self, works: Sequence[Work], *, each: int, room: int) -> Caught:
        """As `UserMemory.run`, but entries are answered whole, and one at least; `each` says nothing here."""
        taken = [(work, count) for work, count in zip(works, self._fitting(works, room), strict=True) if count]
        entries = [work.entries[at] for work, count in taken for at in range(count)]
        owners = [work for work, count in taken for _ in range(count)]
        found: list[tuple[Entry, Field]] = []
        failed: list[tuple[Entry, DataError]] = []
        put_off: set[bytes] = set()  # the log has lost their events meanwhile: as of now, next time
        fields = self._fields.read([(entry.query.user, entry.after) for entry in entries])
        for work, entry, field in zip(owners, entries, fields, strict=True):
            if work.user in put_off:
                continue
            if isinstance(field, Field):
                found.append((entry, field))
            elif overtaken(self._fields.log, work, max(0, self._fields.first(entry.after) - 1)):
                put_off.add(work.user)
                continue
            else:
                failed.append((entry, field))
            work.entries.popleft()
        began = time.perf_counter()
        found.sort(key=lambda pair: len(pair[1].rows))  # a user's stay in order
        num_events = sum(len(field.rows) for _, field in found)
        hidden = self._states([field for _, field in found])
        return Caught(
            [entry for entry, _ in found],
            hidden,
            failed,
            num_users=len(taken),
            num_events=num_events,
            num_read=num_events,
            seconds=time.perf_counter() - began,
        )

    def __contains__(self, user: bytes) -> bool:
        """False."""
        return False

    def stands(self, user: bytes, length: int) -> bool:
        """True: the log has it."""
        return True

    def explain(self, users: Sequence[bytes], newest: Ints, ranked: Ints, count: int, ends: Ints) -> Ints:
        """Nobody may ask."""
        raise AssertionError("the settings allow no explanations")

    def pin(self, user: bytes, pinned: bool) -> None:
        """There is nothing to keep."""

    def unpin_all(self) -> None:
        """There is nothing to keep."""

    def drop_all(self) -> None:
        """There is nothing to forget."""

    @property
    def has_room(self) -> bool:
        """False: nobody gets a memory."""
        return False

    def observe(self, seen: Observations) -> None:
        """There is nothing to see."""

    def _fitting(self, works: Sequence[Work], room: int) -> Iterator[int]:
        """How many of each work's entries are answered now."""
        none_yet = True
        for work in works:
            count = 0
            for entry in work.entries:
                room -= entry.after - self._fields.first(entry.after)
                if room < 0 and not none_yet:
                    break
                none_yet = False
                count += 1
            yield count

    def _states(self, fields: Sequence[Field]) -> torch.Tensor:
        """States [B, dim] after fields, the shortest first; in passes of what a cache holds."""
        passes: list[list[Field]] = []
        total = 0  # events of the last pass
        for field in fields:
            total += len(field.rows)
            if not passes or total > PASS_EVENTS:
                passes.append([])
                total = len(field.rows)
            passes[-1].append(field)
        hidden = [self._last_states(events_of(self._network, fields)) for fields in passes]
        return torch.cat([self._start.expand(0, -1), *hidden])


def events_of(network: Network, fields: Sequence[Field]) -> Events:
    """The users' events as the network takes them, on its device; an item outside the catalogue is the unknown item."""
    config, device = network.config, network.start.device
    counts = np.array([len(field.rows) for field in fields], np.int64)
    rows = np.concatenate([field.rows for field in fields])  # [T, 2 + C]
    some = counts > 0
    cu_seqlens = np.cumsum([0, *counts], dtype=np.int32)
    previous = np.array([field.time_before for field in fields], np.int64)[some]
    gaps = ragged_gap_buckets(
        rows[:, 1], np.append(cu_seqlens[:-1][some], cu_seqlens[-1]), previous, config.num_gap_buckets
    )
    starts = np.array([field.start for field in fields], np.int64) - cu_seqlens[:-1]
    arrays = (
        np.minimum(rows[:, 0], config.num_items),
        in_context(config, gaps, rows[:, 1], rows[:, 2:]),
        seconds(rows[:, 1]),
        np.repeat(starts, counts) + np.arange(len(rows)),
        cu_seqlens,
    )
    return Events(*(torch.from_numpy(array).to(device) for array in arrays))
