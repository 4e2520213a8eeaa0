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
from longrec.modeling.network import Network
from longrec.python_backend.event_log import EventLog, Span
from longrec.python_backend.explain import Explainer
from longrec.python_backend.host_tier import Saved
from longrec.python_backend.memory_pool import NO_ROW, NO_TIME, MemoryPool
from longrec.python_backend.observations import Observations
from longrec.python_backend.snapshots import LEAST_EVENTS, Snapshot, Snapshots
from longrec.python_backend.step import StepInputs, Steps
from longrec.python_backend.user_memory import Caught, UserMemory, overtaken
from longrec.python_backend.warm import WarmLane
from longrec.python_backend.work import Entry, Rows, Work

__all__ = ["CatchUp", "step_inputs"]

Ints = NDArray[np.int64]

NO_LENGTH = -1  # of a user without memory: goes on nowhere
EXPERIENCE_EVENTS = 64  # a step of fewer says little of what a rebuild costs


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


class CatchUp(UserMemory):
    """Memories in a pool, behind their logs or not: runs users' missing events through the network.

    Args:
        network: in evaluation mode.
        log: where missing events are read.
        pool: the memories.
        steps: runs the network over `pool`.
        inline_events: as `UserMemory`.
        explainer: of items, from memories; None: nobody may ask.
        snapshots: of states, from which rebuilds go on; None: there are none.
        warm: the short way over `pool`; None: there is none.
    """

    def __init__(
        self,
        network: Network,
        log: EventLog,
        pool: MemoryPool,
        steps: Steps,
        inline_events: int,
        explainer: Explainer | None = None,
        snapshots: Snapshots | None = None,
        warm: WarmLane | None = None,
    ) -> None:
        self.log, self.pool, self._warm = log, pool, warm
        self._pool, self._steps, self._model = pool, steps, network.config
        self._explainer, self._snapshots = explainer, snapshots
        self._start, self._reach = network.start.detach(), network.config.reach
        self._seconds_per_event = 0.0  # of the last steps of many events, a moving mean
        half = pool.num_pages // 2 // pool.pages_per_user  # the other half is for those who are warm
        self.capacity, self.inline_events, self.most_users = max(1, half), inline_events, pool.num_pages

    def num_missing(self, work: Work) -> int:
        """As `UserMemory.num_missing`."""
        first_after, last_after = work.entries[0].after, work.entries[-1].after
        row = self._pool.row(work.user)
        if row != NO_ROW:
            return last_after - self._usable(self._pool.length.item(row), first_after)
        saved = self._saved(work)
        return last_after - (self._begin(first_after) if saved is None else saved.length)

    def run(self, works: Sequence[Work], *, each: int, room: int) -> Caught:
        """As `UserMemory.run`; neither room nor the pool need hold everybody."""
        pool = self._pool
        pool.begin_step()
        entries: list[Entry] = []  # answered before the step, from where the user stands
        from_start = [entry for work in works for entry in _pop_until(work, 0)]
        works = [work for work in works if work.entries]
        rows = [pool.row(work.user) for work in works]
        pool.touch([row for row in rows if row != NO_ROW])
        snapshots = self._read_snapshots(works, rows)
        wanted: list[_Wanted] = []
        parts: list[_Part] = []
        failed: list[tuple[Entry, DataError]] = []
        standing: list[int] = []  # rows that `entries` are answered from
        num_read = num_caught_up = 0
        for work, row in zip(works, rows, strict=True):
            after = work.entries[0].after
            if row == NO_ROW and self._saved(work) is not None:
                row = pool.restore(work.user)
            if row == NO_ROW and work.user in snapshots:
                assert self._snapshots is not None
                row = self._snapshots.restore(work.user, snapshots[work.user])
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
                if overtaken(self.log, work, start if goes_on or not start else start - 1):
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

    def run_warm(self, entries: Sequence[Entry]) -> Caught | None:
        """As `UserMemory.run_warm`."""
        return None if self._warm is None else self._warm.run(entries)

    def length_of(self, user: bytes) -> int:
        """As `UserMemory.length_of`."""
        row = self._pool.row(user)
        return NO_LENGTH if row == NO_ROW else self._pool.length.item(row)

    def __contains__(self, user: bytes) -> bool:
        """As `UserMemory.__contains__`."""
        return user in self._pool

    def stands(self, user: bytes, length: int) -> bool:
        """As `UserMemory.stands`; nobody needs a memory of no events."""
        row = self._pool.row(user)
        return not length or (row != NO_ROW and bool(self._pool.length[row] == length))

    def explain(self, users: Sequence[bytes], newest: Ints, ranked: Ints, count: int, ends: Ints) -> Ints:
        """As `UserMemory.explain`."""
        assert self._explainer is not None, "the settings allow explanations"
        rows = np.array([self._pool.row(user) for user in users])
        assert (self._pool.length[rows] == ends).all()
        return self._explainer.explain(rows, newest, ranked, count, ends)

    def pin(self, user: bytes, pinned: bool) -> None:
        """As `UserMemory.pin`."""
        row = self._pool.row(user)
        if row != NO_ROW:
            self._pool.pinned[row] = pinned

    def unpin_all(self) -> None:
        """As `UserMemory.unpin_all`."""
        self._pool.pinned[:] = False

    def drop_all(self) -> None:
        """As `UserMemory.drop_all`."""
        self._pool.drop_all()

    @property
    def has_room(self) -> bool:
        """As `UserMemory.has_room`."""
        return self._pool.num_free_pages >= self._pool.pages_per_user

    def observe(self, seen: Observations) -> None:
        """As `UserMemory.observe`."""
        pool = self._pool
        seen.evictions, seen.pages_restored = pool.evictions, pool.pages_restored
        seen.users, seen.pages, seen.pages_free = float(len(pool)), float(pool.num_pages), float(pool.num_free_pages)

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
        events = np.concatenate([part.rows for part in parts])  # [T, 2 + C]
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
        if self._snapshots is not None:
            self._snapshots.advanced([part.work.user for part in parts], rows)
        return _states(hidden, places), found

    def _read_snapshots(self, works: Sequence[Work], rows: Sequence[int]) -> dict[bytes, Snapshot]:
        """The snapshots of the users who have no memory, and a history that is worth one."""
        if self._snapshots is None:
            return {}
        cold = [work for work, row in zip(works, rows, strict=True) if row == NO_ROW]
        return self._snapshots.read([work.user for work in cold if work.entries[0].after >= LEAST_EVENTS])

    def _begin(self, after: int) -> int:
        """Where a memory begins that shall answer after so many events."""
        return 0 if self._reach is None else max(0, after - self._reach)

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
        events: [T, 2 + C] item, unix ms, features, user after user; an item outside the catalogue is the unknown item.
    """
    total = len(events)
    cu_seqlens = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(counts, out=cu_seqlens[1:])
    event_rows, positions = rows, pool.length[rows]
    if total > len(rows):  # else one each
        event_rows = np.repeat(rows, counts)
        positions = np.repeat(positions - cu_seqlens[:-1], counts) + np.arange(total)
    pages = pool.pages(rows, counts)
    gaps = features.ragged_gap_buckets(events[:, 1], cu_seqlens, pool.time[rows], model.num_gap_buckets)
    return StepInputs(
        items=np.minimum(events[:, 0], model.num_items),
        gaps=features.in_context(model, gaps, events[:, 1], events[:, 2:]),
        positions=positions,
        slots=pool.places(event_rows, positions),
        cu_seqlens=cu_seqlens,
        page_indptr=pages.indptr,
        page_indices=pages.indices,
        lengths=(pool.length[rows] - pool.first[rows]).astype(np.int32),
        seconds=features.seconds(events[:, 1]),
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
