"""The engine: queries in, answers out. Ties the event log (the truth), the memory pool (its cache) and the network.

`answer` appends the queries' events to the log, in one transaction, and answers at once what is small: users whose
memory is at most `inline_events` behind. The rest is deferred: `turn` does a bounded piece of it, fair between users,
and is called again and again in between, so that a user who needs thousands of events holds up nobody for longer than
a turn. A user's answers come in the order of their queries.

A failure leaves memories behind their logs at worst, and the next call catches up. Knows no server. Not for two
threads at once.
"""

import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from longrec.config import EngineConfig
from longrec.errors import LongrecError, MachineError
from longrec.modeling.network import Network
from longrec.protocol import UNCHECKED_POSITION, Status
from longrec.python_backend.catch_up import CatchUp
from longrec.python_backend.deferred import DeferredWork
from longrec.python_backend.event_log import Appended, EventLog
from longrec.python_backend.kinds import Kind, make_kind
from longrec.python_backend.memory_pool import MemoryPool
from longrec.python_backend.observations import Observations
from longrec.python_backend.prediction import Predictor
from longrec.python_backend.query import Answer, Query
from longrec.python_backend.ranking import Ranker
from longrec.python_backend.rules import Rules
from longrec.python_backend.user_memory import Caught
from longrec.python_backend.work import Entry, Work

__all__ = ["Engine", "Ticket"]

MAX_SERVED = 64
WARM_LOOKUPS = 32  # cold users looked up in a turn, for which everybody waits: a round trip each to a remote log
TURN_EVENTS = 64  # a turn is cut among as many users as get this many events each
NO_EVENTS = np.empty((0, 2), np.int64)


class Ticket(NamedTuple):
    """Stands in the place of an answer that a later `turn` gives."""

    number: int


class Engine:
    """Answers queries from one network.

    Args:
        network: in evaluation mode, on the device that it shall run on.
        log: the users' events; may be shared with other engines.
        config: limits and sizes.
        decode_batches: as in `StepRunner`.
        rules: blocked items and categories; None: there are none.

    Attributes:
        observations: what it has done, for metrics.

    Raises:
        ArgumentError: `config.memory_bytes` is too small for the network's window.
    """

    def __init__(
        self,
        network: Network,
        log: EventLog,
        config: EngineConfig,
        decode_batches: Sequence[int] | None = None,
        rules: Rules | None = None,
    ) -> None:
        self.network, self.log, self.config, self.rules = network, log, config, rules
        ranker = Ranker(network.item_table.detach(), rules, network.repeats)
        self._memory, rollouts = self._make_kind(ranker, decode_batches)
        self._predictor = Predictor(network, log, self._memory, rollouts, ranker, config)
        self._deferred = DeferredWork(min(MAX_SERVED, self._memory.capacity))
        self._num_tickets = 0
        self._generation = log.generation
        self._cold: deque[bytes] = deque()  # users to give a memory when there is nothing else to do
        self.observations = Observations()

    @property
    def pool(self) -> MemoryPool:
        """The pages, of a network that has any."""
        assert isinstance(self._memory, CatchUp)
        return self._memory.pool

    @property
    def has_work(self) -> bool:
        """Whether `turn` has something to do."""
        return bool(self._deferred or self._cold)

    @property
    def owes_answers(self) -> bool:
        """Whether somebody waits for a `turn`."""
        return bool(self._deferred)

    @torch.inference_mode()
    def answer(self, queries: Sequence[Query]) -> list[Answer | Ticket]:
        """Answer the queries, or promise to; of one user's, the earlier come first in the log.

        A query with k = 0 only appends: its events run through the network when an answer needs them.

        Raises:
            MachineError: the log can't take the events; nothing has been changed then. Or it can't be read: appended
                events stay appended.
        """
        self.observations.batch_queries.observe(len(queries))
        now, later = self._split(queries)
        answers: dict[int, Answer | Ticket] = {}
        appended = self._append(now)
        self._check_generation()
        for entry, outcome in zip(now, appended, strict=True):
            answer = self._accept(entry, outcome)
            if answer is not None:
                answers[entry.number] = answer
        self._count_events(now)
        warm = self._answer_warm(now)
        answers |= warm
        works: dict[bytes, Work] = {}
        for entry in now if len(warm) < len(now) else ():
            if entry.outcome is not None and entry.number not in warm:
                user = entry.query.user
                work = works.get(user)
                if work is None:
                    work = works[user] = Work(user)
                work.add_rows(entry)
                if entry.number not in answers:
                    work.entries.append(entry)
        inline, slow = self._small([work for work in works.values() if work.entries])
        if inline:
            caught = self._memory.run(inline, each=self._memory.inline_events, room=self.config.max_step_events)
            for entry, answer in self._answers(caught, inline):
                answers[entry.number] = answer
        # of a user's entries, those that were appended come before those that were not
        left = [entry for work in (*inline, *slow) for entry in work.entries]
        for entry in (*left, *later):
            number = entry.number
            answers[number] = self._defer(entry)
        return [answers[number] for number in range(len(queries))]

    @torch.inference_mode()
    def turn(self) -> list[tuple[Ticket, Answer]]:
        """Do a piece of the deferred work: at most `chunk_events` events of the network, a step of the rollouts under
        way, or the append of a long entry. Never raises for the log's sake: whoever is concerned gets the error as
        their answer."""
        if not self._deferred:
            self._warm_one()
            return []
        began = time.monotonic()
        done: list[tuple[Entry, Answer]] = []
        appended = self._append_next(done)
        chunk = self.config.chunk_events
        # thousands of events take the log nearly as long as a chunk takes the network: a turn is the one or the other
        works: Sequence[Work] = ()
        if appended <= chunk:
            works = self._deferred.next_works(max(1, chunk // TURN_EVENTS), self._predictor.rolling)
        if works and works[0].user in self._predictor.rolling:
            rolled_out = self._predictor.go_on()
            done += [(work.entries.popleft(), rolled_out[work.user]) for work in works if work.user in rolled_out]
        elif works:
            try:
                caught = self._memory.run(
                    works, each=min(-(-chunk // len(works)), self.config.max_user_step_events), room=chunk
                )
                done += self._answers(caught, works)
            except MachineError as error:
                done += [(entry, Answer.failed(error)) for work in works for entry in work.entries]
                for work in works:
                    work.entries.clear()
            for work in works:
                self._memory.pin(work.user, True)
        for user in self._deferred.end_idle():
            self._memory.pin(user, False)
        now = time.monotonic()
        for entry, _ in done:
            self.observations.queue_seconds.observe(now - entry.seconds)
        self._deferred.answered(len(done))
        self.observations.turn_seconds.observe(now - began)
        return [(Ticket(entry.number), answer) for entry, answer in done]

    def observe(self) -> Observations:
        """`observations`, with what the pool, the queue and the log are like now.

        Raises:
            MachineError: the log can't be read; the rest is up to date.
        """
        seen = self.observations
        self._memory.observe(seen)
        seen.deferred_depth, seen.deferred_oldest_seconds = float(self._deferred.depth), self._deferred.oldest_seconds
        if self.rules is not None:
            seen.rules_failures, seen.rules_unknown = self.rules.failures, float(self.rules.unknown)
        seen.log_lag_seconds = self.log.lag_seconds()
        used, limit = self.log.size()
        seen.log_bytes, seen.log_bytes_limit = float(used), float(limit)
        return seen

    def answer_all(self, queries: Sequence[Query]) -> list[Answer]:
        """`answer`, then turns until none of its answers is left out. Raises as `answer`.

        For those who use an engine without a server; answers that others wait for must not be pending.
        """
        answers = self.answer(queries)
        late: dict[Ticket, Answer] = {}
        while any(isinstance(answer, Ticket) and answer not in late for answer in answers):
            late.update(self.turn())
        return [late[answer] if isinstance(answer, Ticket) else answer for answer in answers]

    def give_up(self) -> None:
        """Forget all deferred work, after a `turn` that raised; its tickets get no answers."""
        self._predictor.stop_rollouts()
        self._memory.unpin_all()
        self._deferred.clear()

    def warm_up(self, users: Iterable[bytes]) -> None:
        """Give these users memories, in this order, while there is nothing else to do and there is room."""
        self._cold = deque(users)

    @property
    def most_users(self) -> int:
        """Users who can have a memory at once; 0: nobody has one."""
        return self._memory.most_users

    def _make_kind(self, ranker: Ranker, decode_batches: Sequence[int] | None) -> Kind:
        return make_kind(self.network, self.log, self.config, ranker, decode_batches)

    def _split(self, queries: Sequence[Query]) -> tuple[list[Entry], list[Entry]]:
        """Entries that go into the log now, and those that wait: behind others of their user, or for being long."""
        now: list[Entry] = []
        later: list[Entry] = []
        waiting: set[bytes] = set()
        most, seconds = self.config.inline_events, time.monotonic()
        for number, query in enumerate(queries):
            entry = Entry(number, query, None, seconds)
            slow = len(query.events) > most or (query.k and query.settings.horizon > 1)
            if slow or query.user in waiting or query.user in self._deferred:
                waiting.add(query.user)
                later.append(entry)
            else:
                now.append(entry)
        return now, later

    def _append(self, entries: Sequence[Entry]) -> list[Appended | LongrecError]:
        """Bring the entries' events into the log. Raises as `EventLog.append`."""
        length_of = self._memory.length_of
        return self.log.append([entry.append(length_of(entry.query.user)) for entry in entries])

    def _answer_warm(self, entries: Sequence[Entry]) -> dict[int, Answer]:
        """Answers of those who go the short way, by number."""
        caught = self._memory.run_warm(entries)
        if caught is None:
            return {}
        self.observations.memory_hits += len(caught.entries)
        return {entry.number: answer for entry, answer in self._answers(caught, ())}

    def _accept(self, entry: Entry, outcome: Appended | LongrecError) -> Answer | None:
        """Take what became of an entry's append; the answer, where that is all that was wanted."""
        seen, query = self.observations, entry.query
        seen.queries += 1
        if isinstance(outcome, LongrecError):
            return Answer.failed(outcome)
        status, skipped, length = outcome
        if status is not Status.OK:
            if status is Status.CONFLICT:
                seen.conflicts += 1
            else:
                seen.gaps += 1
            return Answer.without_items(query, status, length)
        entry.outcome = outcome
        seen.events_skipped += skipped
        return None if query.k else Answer.without_items(query, status, length)

    def _check_generation(self) -> None:
        """Forget all memories if the log may have lost events that they stand for."""
        if self.log.generation != self._generation:
            self._generation = self.log.generation
            self._predictor.stop_rollouts()
            self._memory.drop_all()
            self._deferred.drop_rows()

    def _count_events(self, entries: Sequence[Entry]) -> None:
        """Count what the entries' appends brought into the log."""
        rows = [entry.new_rows for entry in entries if entry.outcome is not None]
        if rows:
            items = np.concatenate([row[:, 0] for row in rows])
            self.observations.events_appended += len(items)
            self.observations.events_unknown += int(np.count_nonzero(items >= self.network.config.num_items))

    def _small(self, works: list[Work]) -> tuple[list[Work], list[Work]]:
        """Users who are answered at once, and the others."""
        inline: list[Work] = []
        slow: list[Work] = []
        room = self.config.max_step_events
        for work in works:
            self._count_memory(work.entries)
            missing = self._memory.num_missing(work)
            if missing > min(self._memory.inline_events, room):
                slow.append(work)
            else:
                inline.append(work)
                room -= missing
        return inline, slow

    def _answers(self, caught: Caught, works: Iterable[Work]) -> list[tuple[Entry, Answer]]:
        """What can be answered now; entries for which there was no room go back to their works."""
        seen = self.observations
        seen.events_computed += caught.num_events
        seen.events_rebuilt += caught.num_read
        seen.events_caught_up += caught.num_caught_up
        if caught.num_events:
            seen.waves += 1
            seen.step_seconds.observe(caught.seconds)
            seen.step_events.observe(caught.num_events)
            seen.step_users.observe(caught.num_users)
        answers = [(entry, Answer.failed(error)) for entry, error in caught.failed]
        wanted = [at for at, entry in enumerate(caught.entries) if entry.query.k]
        if wanted:
            hidden = caught.hidden if len(wanted) == len(caught.entries) else caught.hidden[wanted]
            entries = [caught.entries[at] for at in wanted]
            put_off: dict[bytes, list[Entry]] = {}  # with those behind them: a user's answers keep their order
            for entry, answer in zip(entries, self._predictor.answer(entries, hidden), strict=True):
                user = entry.query.user
                if answer is None or user in put_off:
                    put_off.setdefault(user, []).append(entry)
                else:
                    answers.append((entry, answer))
            for work in works if put_off else ():
                work.entries.extendleft(reversed(put_off.get(work.user, ())))
        return answers

    def _defer(self, entry: Entry) -> Ticket:
        self.observations.deferred_total += 1
        entry.number = self._num_tickets
        self._num_tickets += 1
        self._deferred.add(entry)
        return Ticket(entry.number)

    def _append_next(self, done: list[tuple[Entry, Answer]]) -> int:
        """Put the next entries of the served users into the log, and into work; how many events they bring."""
        taken = self._deferred.take(self.config.max_step_events)
        fresh = [entry for _, entry in taken if entry.outcome is None]
        outcomes: Iterable[Appended | LongrecError]
        try:
            outcomes = self._append(fresh) if fresh else []
        except LongrecError as error:
            outcomes = [error] * len(fresh)
        self._check_generation()
        answers: dict[int, Answer] = {}
        for entry, outcome in zip(fresh, outcomes, strict=True):
            answer = self._accept(entry, outcome)
            if answer is None:
                self._count_memory([entry])
            else:
                answers[entry.number] = answer
        self._count_events(fresh)
        for work, entry in taken:
            work.drop_rows()  # its entries before are answered
            if entry.outcome is not None:
                work.add_rows(entry)
            if entry.number in answers:
                done.append((entry, answers[entry.number]))
            else:
                work.entries.append(entry)
        return sum(len(entry.query.events) for entry in fresh)

    def _count_memory(self, entries: Collection[Entry]) -> None:
        """Count whether one user's entries find a memory; a user without events needs none."""
        first = next(iter(entries))
        if first.query.user in self._memory:
            self.observations.memory_hits += len(entries)
        elif first.after:
            self.observations.memory_misses += len(entries)

    def _warm_one(self) -> None:
        """A chunk for the first of the cold users who lacks a memory."""
        memory, chunk = self._memory, self.config.chunk_events
        if not memory.has_room:
            self._cold.clear()
        for _ in range(min(WARM_LOOKUPS, len(self._cold))):
            user = self._cold[0]
            try:
                length = self.log.length(user)
                if length and not memory.stands(user, length):
                    query = Query(user, NO_EVENTS, UNCHECKED_POSITION, None, 0)
                    work = Work(user, deque([Entry(-1, query, Appended(Status.OK, 0, length))]))
                    caught = memory.run([work], each=self.config.max_user_step_events, room=chunk)
                    self._answers(caught, [work])
                    self.observations.background_rebuilds += len(caught.entries)
                    if not work.entries or user not in memory:  # done, damaged, or there is no room after all
                        self._cold.popleft()
                    return
            except LongrecError:  # whoever asks for this user will be told
                pass
            self._cold.popleft()
