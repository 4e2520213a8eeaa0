"""The engine: queries in, answers out. Ties the event log (the truth), the memory pool (its cache) and the network.

One call of `answer` does, for all its queries together:

1. append their events to the log, in one transaction;
2. bring the users' memories up to their logs: waves of ragged batches run the missing events through the network. A
   warm user misses the new events only; a user without memory misses at most the network's receptive field;
3. rank the catalogue, or the given candidates, for each query from the hidden state after its last event.

A failure leaves memories behind their logs at worst, and the next call catches up. Knows no server.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from longrec import kernels
from longrec.config import EngineConfig
from longrec.errors import DataError
from longrec.modeling import features
from longrec.modeling.transformer import Transformer
from longrec.protocol import NO_ITEM, Status
from longrec.python_backend.event_log import Append, Appended, EventLog
from longrec.python_backend.memory_pool import MemoryPool, UserMemory
from longrec.python_backend.query import Answer, Query
from longrec.python_backend.step import StepInputs, StepRunner

__all__ = ["Counters", "Engine"]

Rows = NDArray[np.int64]  # [n, 2] item, unix ms
Hidden = NDArray[np.float32]  # [Q, dim]
Ranked = tuple[NDArray[np.int64], NDArray[np.float32]]
NO_ITEMS: Ranked = (np.empty(0, np.int64), np.empty(0, np.float32))


@dataclass(slots=True)
class Counters:
    """What the engine has done since it began; each only grows.

    Attributes:
        queries: answered, gaps included. gaps: refused for a gap.
        events_appended: new in the log. events_skipped: sent again by a retry, already in the log.
        events_unknown: among the appended, those whose item isn't in the catalogue.
        events_computed: run through the network; events_rebuilt: those of them that came from the log.
        waves: passes through the network.
    """

    queries: int = 0
    gaps: int = 0
    events_appended: int = 0
    events_skipped: int = 0
    events_unknown: int = 0
    events_computed: int = 0
    events_rebuilt: int = 0
    waves: int = 0


@dataclass(slots=True)
class _UserWork:
    """One user's wanted answers of a call, and the log's rows that the call itself brought."""

    user: bytes
    rows_start: int = 0  # position of the first of `rows`
    rows: list[Rows] = field(default_factory=list)
    wanted: deque[tuple[int, int]] = field(
        default_factory=deque
    )  # (answer after so many events, query's number), rising

    @property
    def length(self) -> int:
        """Events that the memory must stand for in the end."""
        return self.wanted[-1][0]

    def take(self, log: EventLog, start: int, stop: int) -> tuple[Rows, bool]:
        """Events [start, stop), and whether the log had to be read for them."""
        if self.rows and self.rows_start <= start:
            return np.concatenate(self.rows)[start - self.rows_start : stop - self.rows_start], False
        return log.read(self.user, start, stop), True


class Engine:
    """Answers queries from one network.

    Args:
        network: in evaluation mode, on the device that it shall run on.
        log: the users' events; may be shared with other engines.
        config: limits and sizes.
        decode_batches: as in `StepRunner`.

    Raises:
        ArgumentError: `config.memory_bytes` is too small for the network's window.
    """

    def __init__(
        self,
        network: Transformer,
        log: EventLog,
        config: EngineConfig,
        decode_batches: Sequence[int] | None = None,
    ) -> None:
        self.network, self.log, self.config = network, log, config
        self.device = network.start.device
        self.pool = MemoryPool(network.config, config, self.device, network.start.dtype)
        kernels.prepare_attention(self.pool.k_pages[0], network.start.dtype)  # compiled now, not during a request
        self._steps = StepRunner(network, self.pool, decode_batches)
        self.counters = Counters()
        self._start = network.start.detach().float().cpu().numpy()
        self._item_table = network.item_table.detach()

    @torch.inference_mode()
    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer the queries; of one user's, the earlier come first in the log.

        A query with k = 0 only appends: its events run through the network when an answer needs them.

        Raises:
            MachineError: the log can't take the events; nothing has been changed then. Or it can't be read: appended
                events stay appended.
        """
        appended = self.log.append([Append(query.user, query.position, query.events) for query in queries])
        works: dict[bytes, _UserWork] = {}
        errors: dict[bytes, DataError] = {}  # of users whose log is damaged
        for number, (query, outcome) in enumerate(zip(queries, appended, strict=True)):
            if isinstance(outcome, DataError):
                errors[query.user] = outcome
                continue
            self._count(query, outcome)
            if outcome.status is not Status.OK:
                continue
            work = works.setdefault(query.user, _UserWork(query.user))
            rows = query.events[outcome.skipped :]
            if len(rows):
                if not work.rows:
                    work.rows_start = outcome.length - len(rows)
                work.rows.append(rows)
            if query.k:
                work.wanted.append((outcome.length, number))

        wanted = {user: [number for _, number in work.wanted] for user, work in works.items()}
        hidden = np.empty((len(queries), self.network.config.dim), np.float32)
        errors |= self._compute([work for work in works.values() if work.wanted], hidden)
        ranked = self._rank(
            queries, hidden, [number for user, numbers in wanted.items() if user not in errors for number in numbers]
        )
        answers = []
        for number, (query, outcome) in enumerate(zip(queries, appended, strict=True)):
            error = errors.get(query.user) if query.k or isinstance(outcome, DataError) else None
            status, length = (Status.OK, 0) if isinstance(outcome, DataError) else (outcome.status, outcome.length)
            answers.append(Answer(status, length, *(ranked.get(number) or _first(*NO_ITEMS, query.k)), error))
        return answers

    def _count(self, query: Query, outcome: Appended) -> None:
        counters, rows = self.counters, query.events[outcome.skipped :]
        counters.queries += 1
        if outcome.status is not Status.OK:
            counters.gaps += 1
            return
        counters.events_appended += len(rows)
        counters.events_skipped += outcome.skipped
        counters.events_unknown += int(np.count_nonzero(rows[:, 0] >= self.network.config.num_items))

    def _compute(self, works: list[_UserWork], hidden: Hidden) -> dict[bytes, DataError]:
        """Fill row q of `hidden` for each wanted query q, bringing memories up to date wave by wave.

        Returns:
            Of each user whose log can't be read, the reason; their rows are left as they are.
        """
        errors: dict[bytes, DataError] = {}
        while works := [work for work in works if work.user not in errors and self._is_pending(work, hidden)]:
            wave: list[_Row] = []
            room, users = self.config.max_step_events, set[bytes]()
            for work in works:
                users.add(work.user)
                try:
                    memory = self._memory(work)
                    count = min(work.length - memory.length, room)
                    if not count or not self.pool.reserve(memory, count, keep=users):
                        break  # the first user always fits
                    rows, from_log = work.take(self.log, memory.length, memory.length + count)
                except DataError as error:
                    errors[work.user] = error
                    self.pool.drop(work.user)
                    continue
                self.counters.events_rebuilt += count * from_log
                wave.append(_Row(work, memory, count, rows))
                room -= count
            if wave:
                self._run(wave, hidden)
        return errors

    def _is_pending(self, work: _UserWork, hidden: Hidden) -> bool:
        """Whether the user still needs the network; what the state as it stands answers is filled in."""
        memory = self.pool.get(work.user)
        length, state = (0, self._start) if memory is None else (memory.length, memory.hidden)
        while work.wanted and work.wanted[0][0] == length and state is not None:
            hidden[work.wanted.popleft()[1]] = state
        return bool(work.wanted)

    def _memory(self, work: _UserWork) -> UserMemory:
        """The user's memory, begun anew where there is none, or none that helps: the receptive field is enough."""
        first = max(0, work.wanted[0][0] - self.network.config.receptive_field)
        memory = self.pool.get(work.user)
        # a memory that is ahead has outlived its log: the folder was replaced
        if memory is None or memory.length < first or memory.length > work.wanted[0][0]:
            time = int(self.log.read(work.user, first - 1, first)[0, 1]) if first else None
            memory = UserMemory(first, time)
            self.pool.put(work.user, memory)
        return memory

    def _run(self, wave: Sequence["_Row"], hidden: Hidden) -> None:
        """Run the next `count` events of each user of the wave through the network."""
        model, total = self.network.config, sum(row.num_events for row in wave)
        items, gaps, positions, slots = (np.empty(total, np.int64) for _ in range(4))
        cu_seqlens, page_indptr = (np.zeros(len(wave) + 1, np.int32) for _ in range(2))
        lengths = np.empty(len(wave), np.int32)
        pages: list[int] = []
        times: list[int] = []
        for b, (_, memory, count, rows) in enumerate(wave):
            new = slice(cu_seqlens[b], cu_seqlens[b] + count)
            items[new] = np.minimum(rows[:, 0], model.num_items)
            gaps[new] = features.gap_buckets(rows[:, 1], memory.time, model.num_gap_buckets)
            positions[new] = np.arange(memory.length, memory.length + count)
            slots[new] = self.pool.slots(memory, count)
            pages += memory.pages
            cu_seqlens[b + 1], page_indptr[b + 1] = new.stop, len(pages)
            lengths[b] = memory.length - memory.first
            times.append(int(rows[-1, 1]))
        page_indices = np.array(pages, np.int32)
        output = self._steps.run(  # [total, dim]
            StepInputs(items, gaps, positions, slots, cu_seqlens, page_indptr, page_indices, lengths)
        )
        for b, (work, memory, count, _) in enumerate(wave):
            rows_before = cu_seqlens[b] - memory.length - 1  # output row of "after n events" is rows_before + n
            self.pool.advance(memory, count)
            memory.time, memory.hidden = times[b], output[cu_seqlens[b + 1] - 1].copy()
            while work.wanted and work.wanted[0][0] <= memory.length:
                after, number = work.wanted.popleft()
                hidden[number] = output[rows_before + after]
        self.counters.events_computed += total
        self.counters.waves += 1

    def _rank(self, queries: Sequence[Query], hidden: Hidden, wanted: Sequence[int]) -> dict[int, Ranked]:
        """Items and scores of the wanted queries, by number."""
        num_items = self.network.config.num_items
        ranked = {}
        whole = [number for number in wanted if queries[number].candidates is None]
        if whole:
            most = min(max(queries[number].k for number in whole), num_items)
            rows = torch.from_numpy(hidden[whole]).to(self._item_table)
            scores, items = (found.cpu().numpy() for found in kernels.catalogue_topk(rows, self._item_table, most))
            for row, number in enumerate(whole):
                ranked[number] = _first(items[row], scores[row], queries[number].k)
        for number in wanted:
            candidates = queries[number].candidates
            if candidates is not None:
                known = candidates[candidates < num_items]
                state = torch.from_numpy(hidden[number]).to(self._item_table)
                logits = (self._item_table[torch.from_numpy(known).to(self.device)] @ state).float().cpu().numpy()
                order = np.lexsort((known, -logits))  # equal scores: the lower index first
                ranked[number] = _first(known[order], logits[order], queries[number].k)
        return ranked


class _Row(NamedTuple):
    """One user's part of a wave: the next `num_events` of what the memory lacks."""

    work: _UserWork
    memory: UserMemory
    num_events: int
    rows: Rows


def _first(items: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> Ranked:
    """The first k, filled up with NO_ITEM at -inf."""
    missing = k - len(items)
    if missing > 0:
        items = np.append(items, np.full(missing, NO_ITEM))
        scores = np.append(scores, np.full(missing, -np.inf, np.float32))
    return items[:k], scores[:k]
