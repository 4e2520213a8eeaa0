"""Catching up: memories are brought up to their logs, one ragged step of the network at a time.

A user without memory, or with one that is too far behind, begins anew at the receptive field: nothing older can reach
the answer.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.config import ModelConfig
from longrec.errors import DataError
from longrec.modeling import features
from longrec.modeling.transformer import Transformer
from longrec.python_backend.event_log import EventLog, Span
from longrec.python_backend.host_tier import Saved
from longrec.python_backend.memory_pool import NO_ROW, NO_TIME, MemoryPool
from longrec.python_backend.step import StepInputs, StepRunner
from longrec.python_backend.work import Entry, Rows, Work

__all__ = ["CatchUp", "Caught", "step_inputs"]

NO_LENGTH = -1  # of a user without memory: goes on nowhere
EXPERIENCE_EVENTS = 64  # a step of fewer says little of what a rebuild costs


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


class _Part(NamedTuple):
    """One user's share of a step: the events at positions start, start + 1 … of the log."""

    work: Work
    row: int
    start: int
    rows: Rows


class _Wanted(NamedTuple):
    """A user's events start..stop-1, which may be had from the log.

    Args:
        row: NO_ROW where there is no memory. goes_on: whether they follow the memory's end.
    """

    work: Work
    row: int
    start: int
    stop: int
    goes_on: bool


class CatchUp:
    """Runs users' missing events through the network.

    Args:
        network: in evaluation mode.
        log: where missing events are read.
        pool: the memories.
        steps: runs the network over `pool`.
    """

    def __init__(self, network: Transformer, log: EventLog, pool: MemoryPool, steps: StepRunner) -> None:
        self.log = log
        self._pool, self._steps, self._model = pool, steps, network.config
        self._start = network.start.detach()
        self._seconds_per_event = 0.0  # of the last steps of many events, a moving mean

    def num_missing(self, work: Work) -> int:
        """Events that the network must see before all of the user's entries are answered."""
        first_after, last_after = work.entries[0].after, work.entries[-1].after
        row = self._pool.row(work.user)
        if row != NO_ROW:
            return last_after - self._usable(self._pool.length.item(row), first_after)
        saved = self._saved(work)
        return last_after - (self._begin(first_after) if saved is None else saved.length)

    def run(self, works: Sequence[Work], *, each: int, room: int) -> Caught:
        """One step: at most `room` events in all and `each` of a user; entries that it answers leave their works.

        Where an entry that it answers needs the memory, the memory stands at that entry afterwards.

        Users whom neither room nor pool hold this time stay as they are.

        Raises:
            MachineError: the log can't be read; memories are as they were.
        """
        pool = self._pool
        pool.begin_step()
        entries: list[Entry] = []  # answered before the step, from where the user stands
        from_start = [entry for work in works for entry in _pop_until(work, 0)]
        works = [work for work in works if work.entries]
        rows = [pool.row(work.user) for work in works]
        pool.touch([row for row in rows if row != NO_ROW])
        wanted: list[_Wanted] = []
        parts: list[_Part] = []
        failed: list[tuple[Entry, DataError]] = []
        standing: list[int] = []  # rows that `entries` are answered from
        num_read = num_caught_up = 0
        for work, row in zip(works, rows, strict=True):
            after = work.entries[0].after
            if row == NO_ROW and self._saved(work) is not None:
                row = pool.restore(work.user)
            length = pool.length.item(row) if row != NO_ROW else NO_LENGTH
            start = self._begin(after) if row == NO_ROW else self._usable(length, after)
            goes_on = start == length  # where the memory ends
            if start == after:
                found = _pop_until(work, after)
                entries += found
                standing += [row] * len(found)
                if not work.entries or any(entry.query.needs_memory for entry in found):
                    continue
            stop = next((entry.after for entry in work.entries if entry.query.needs_memory), work.entries[-1].after)
            count = min(stop - start, each, room)
            if count <= 0:
                continue
            wanted.append(_Wanted(work, row, start, start + count, goes_on))
            room -= count
        for want, found_rows in zip(wanted, self._read(wanted), strict=True):
            work, row, start, stop, goes_on = want
            if isinstance(found_rows, DataError):
                if self._overtaken(work, start if goes_on or not start else start - 1):
                    continue
                failed += [(entry, found_rows) for entry in work.entries]
                work.entries.clear()
                pool.drop(work.user)
                continue
            part_rows, time_before = found_rows
            if not work.holds(start, stop):
                num_read += stop - start
                num_caught_up += stop - start if goes_on else 0
            if not goes_on:
                row = pool.open(work.user, start, time_before)
            if row != NO_ROW:
                parts.append(_Part(work, row, start, part_rows))
        states = [self._start.expand(len(from_start), -1)] if from_start else []
        if standing:  # before the step, which replaces them
            states.append(pool.hidden[standing])
        began = time.perf_counter()
        output, found = self._advance(parts)
        seconds = time.perf_counter() - began
        num_events = sum(len(part.rows) for part in parts)
        if num_events >= EXPERIENCE_EVENTS:
            self._seconds_per_event += (seconds / num_events - self._seconds_per_event) * 0.25
        hidden = torch.cat([*states, output]) if states else output
        answered = [*from_start, *entries, *found]
        return Caught(answered, hidden, failed, len(parts), num_events, num_read, num_caught_up, seconds)

    def _advance(self, parts: list[_Part]) -> tuple[torch.Tensor, list[Entry]]:
        """Run the parts that the pool can hold (and leave only those in `parts`); the entries that this answers."""
        pool = self._pool
        rows = np.array([part.row for part in parts], np.int64)
        counts = np.array([len(part.rows) for part in parts], np.int64)
        fitting = pool.num_fitting(rows, counts) if parts else 0
        for part in parts[fitting:]:
            if pool.length[part.row] == pool.first[part.row]:
                pool.drop(part.work.user)
        del parts[fitting:]
        if not parts:
            return self._start.new_empty(0, len(self._start)), []
        rows, counts = rows[:fitting], counts[:fitting]
        pool.reserve(rows, counts)
        events = np.concatenate([part.rows for part in parts])  # [T, 2]
        try:
            hidden = self._steps.run(step_inputs(pool, self._model, rows, counts, events))
        except BaseException:
            pool.unreserve(rows, counts)
            raise
        ends = np.cumsum(counts)
        found: list[Entry] = []
        places: list[int] = []
        for part, end in zip(parts, ends.tolist(), strict=True):
            stop = part.start + len(part.rows)
            for entry in _pop_until(part.work, stop):
                found.append(entry)
                places.append(end - stop + entry.after - 1)
        pool.advance(rows, counts, events[ends - 1, 1], _states(hidden, (ends - 1).tolist()))
        return _states(hidden, places), found

    def _begin(self, after: int) -> int:
        """Where a memory begins that shall answer after so many events."""
        return max(0, after - self._model.receptive_field)

    def _usable(self, length: int, after: int) -> int:
        """Where to go on from: the end of a memory of so many events, or of none if that one doesn't help."""
        begin = self._begin(after)
        # a memory that is ahead has outlived its log: the folder was replaced
        return length if begin <= length <= after else begin

    def _saved(self, work: Work) -> Saved | None:
        """The user's memory in the tier, if it helps and beats a rebuild."""
        tier = self._pool.tier
        saved = None if tier is None else tier.get(work.user)
        if tier is None or saved is None:
            return None
        first, last = work.entries[0].after, work.entries[-1].after
        helps = self._usable(saved.length, first) == saved.length
        missing, rebuilt = last - saved.length, last - self._begin(first)
        return saved if helps and tier.saves_time(saved, missing, rebuilt, self._seconds_per_event) else None

    def _overtaken(self, work: Work, first: int) -> bool:
        """Whether others have appended so much meanwhile that the log no longer holds event `first`; the user's entries
        are then answered after what it holds now, of which retention leaves enough."""
        try:
            extent = self.log.extent(work.user)
        except DataError:
            return False
        if extent.first <= first:
            return False
        for entry in work.entries:
            assert entry.outcome is not None
            entry.outcome = entry.outcome._replace(length=extent.length)
        return True

    def _read(self, wanted: Sequence[_Wanted]) -> list[tuple[Rows, int] | DataError]:
        """The events that are wanted, and the time of the one before where a memory begins anew; the log is asked once.

        Raises:
            MachineError: the log can't be read.
        """
        spans: dict[int, Span] = {}
        for at, (work, _, start, stop, goes_on) in enumerate(wanted):
            first = start if goes_on or not start else start - 1
            if not work.holds(first, stop):
                spans[at] = Span(work.user, first, start if work.holds(start, stop) else stop)
        answers = dict(zip(spans, self.log.read_many(list(spans.values())) if spans else [], strict=True))
        found: list[tuple[Rows, int] | DataError] = []
        for at, (work, _, start, stop, goes_on) in enumerate(wanted):
            rows = answers.get(at)
            if isinstance(rows, DataError):
                found.append(rows)
                continue
            begins = start > 0 and not goes_on
            own = work.rows_between(start, stop) if work.holds(start, stop) else None
            if rows is None:
                rows = work.rows_between(start - begins, stop)
            found.append((rows[int(begins) :] if own is None else own, int(rows[0, 1]) if begins else NO_TIME))
        return found


def step_inputs(
    pool: MemoryPool, model: ModelConfig, rows: NDArray[np.int64], counts: NDArray[np.int64], events: Rows
) -> StepInputs:
    """The next `counts` [B] events of the pool's `rows` [B], as the network takes them; their pages are reserved.

    Args:
        events: [T, 2] item and unix ms, user after user; an item outside the catalogue is the unknown item.
    """
    total = len(events)
    cu_seqlens = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(counts, out=cu_seqlens[1:])
    event_rows, positions = rows, pool.length[rows]
    if total > len(rows):  # else one each
        event_rows = np.repeat(rows, counts)
        positions = np.repeat(positions - cu_seqlens[:-1], counts) + np.arange(total)
    pages = pool.pages(rows, counts)
    return StepInputs(
        items=np.minimum(events[:, 0], model.num_items),
        gaps=features.ragged_gap_buckets(events[:, 1], cu_seqlens, pool.time[rows], model.num_gap_buckets),
        positions=positions,
        slots=pool.places(event_rows, positions),
        cu_seqlens=cu_seqlens,
        page_indptr=pages.indptr,
        page_indices=pages.indices,
        lengths=(pool.length[rows] - pool.first[rows]).astype(np.int32),
    )


def _states(hidden: torch.Tensor, places: list[int]) -> torch.Tensor:
    """The states at these places; no copy where they are all of them, as in nearly every step."""
    if places == list(range(len(hidden))):
        return hidden
    return hidden.index_select(0, torch.tensor(places, dtype=torch.int64, device=hidden.device))


def _pop_until(work: Work, length: int) -> list[Entry]:
    """Take the entries that stand after `length` events or fewer."""
    found = []
    while work.entries and work.entries[0].after <= length:
        found.append(work.entries.popleft())
    return found
