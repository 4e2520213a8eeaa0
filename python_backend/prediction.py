"""Prediction: from users' states to their answers. Reads what a query needs beside its state (what its user has seen,
their newest event) out of the log, and ranks, explains or rolls out. Changes neither the log nor any user's memory."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.config import EngineConfig
from longrec.errors import LongrecError
from longrec.modeling.features import USUAL_GAPS, gap_buckets, in_context, usual_gap_ms
from longrec.modeling.network import Network
from longrec.protocol import Status
from longrec.python_backend.event_log import EventLog
from longrec.python_backend.explain import NO_POSITION
from longrec.python_backend.query import Answer, Query
from longrec.python_backend.ranking import NO_ITEMS, Ranker, first_of
from longrec.python_backend.rollout import RolledOut, Rollouts, Root
from longrec.python_backend.settings import DEFAULTS
from longrec.python_backend.user_memory import UserMemory
from longrec.python_backend.work import Entry, Rows

__all__ = ["Predictor"]

MAX_EXPLAINED = 16  # users explained in one call: 5 ms on a core at a window of 256, for which everybody waits


class Predictor:
    """Answers entries whose states are known.

    Args:
        network: in evaluation mode.
        log: the users' events.
        memory: their pasts. rollouts: from these.
        ranker: of the catalogue.
        config: limits.
    """

    def __init__(
        self,
        network: Network,
        log: EventLog,
        memory: UserMemory,
        rollouts: Rollouts,
        ranker: Ranker,
        config: EngineConfig,
    ) -> None:
        self._log, self._memory, self._config = log, memory, config
        self._model = network.config
        self._no_event = np.zeros(2 + len(network.config.features.event), np.int64)
        self._ranker, self._rollouts = ranker, rollouts

    def answer(self, entries: Sequence[Entry], hidden: torch.Tensor) -> list[Answer | None]:
        """The answers, one an entry; one that can't be given holds its error.

        None stands for one that would keep everybody waiting for too long, so for every rollout: ask again, unless its
        user is among `rolling`: then `go_on` gives the answer. Unless one is, at least one entry is answered.

        Args:
            entries: each with k > 0; where one needs the memory, its user's stands at `after`.
            hidden: [n, dim], the states at `after`; overwritten by the next step.
        """
        queries = [entry.query for entry in entries]
        left_out: dict[int, NDArray[np.int64]] = {}
        seen: dict[int, NDArray[np.int64]] = {}
        explained: list[int] = []
        rolled: list[int] = []
        failed: dict[int, LongrecError] = {}
        for number, query in enumerate(queries):
            settings = query.settings
            if self._ranker.num_seen:
                try:
                    seen[number] = self._newest(query, entries[number].after, self._ranker.num_seen)[:, 0]
                except LongrecError as error:
                    failed[number] = error
            if settings is DEFAULTS:
                continue
            if settings.exclude_seen or settings.exclude:
                try:
                    left_out[number] = self._left_out(entries[number])
                except LongrecError as error:
                    failed[number] = error
            if settings.horizon > 1:
                rolled.append(number)
            elif settings.explain:
                explained.append(number)
        if not rolled and not failed:
            ranked = self._ranker.rank(hidden, queries, left_out, seen)
        else:
            ranked = [NO_ITEMS] * len(queries)
            plain = [number for number in range(len(queries)) if number not in failed and number not in rolled]
            if plain:
                own, met = (
                    {at: items[number] for at, number in enumerate(plain) if number in items}
                    for items in (left_out, seen)
                )
                found = self._ranker.rank(hidden[plain], [queries[number] for number in plain], own, met)
                for number, each in zip(plain, found, strict=True):
                    ranked[number] = each
        answers = [
            Answer(Status.OK, entry.after, items, scores)
            for entry, (items, scores) in zip(entries, ranked, strict=True)
        ]
        explained = [number for number in explained if number not in failed]
        # whoever stood there before the step may have made room for it since
        waiting = [number for number in explained if not self._stands(entries[number])]
        explained = [number for number in explained if number not in waiting]
        waiting += explained[MAX_EXPLAINED:]
        if explained:
            self._explain(explained[:MAX_EXPLAINED], entries, answers, failed)
        rolled = [number for number in rolled if number not in failed]
        if rolled:
            self._begin_rollouts(rolled, entries, left_out, seen, waiting, failed)
        for number, reason in failed.items():
            answers[number] = Answer.failed(reason)
        return (
            [None if number in waiting else answer for number, answer in enumerate(answers)] if waiting else [*answers]
        )

    @property
    def rolling(self) -> Collection[bytes]:
        """Users whose rollouts are under way; their memories must stay pinned and as they are."""
        return self._rollouts.users

    def go_on(self) -> dict[bytes, Answer]:
        """A step of all rollouts; the answers of those that have ended, by user. One of a user who is `rolling` no
        longer and has no answer had no room beside the others: ask again."""
        return {user: _rolled_out(found) for user, found in self._rollouts.step().items()}

    def stop_rollouts(self) -> None:
        """Give up all rollouts: ask again."""
        self._rollouts.stop()

    def _stands(self, entry: Entry) -> bool:
        """Whether the user's memory stands where the answer stands."""
        return self._memory.stands(entry.query.user, entry.after)

    def _left_out(self, entry: Entry) -> NDArray[np.int64]:
        settings = entry.query.settings
        excluded = np.array(settings.exclude, np.int64)
        if not settings.exclude_seen:
            return excluded
        return np.concatenate((excluded, self._newest(entry.query, entry.after, self._config.max_seen)[:, 0]))

    def _newest(self, query: Query, after: int, count: int) -> Rows:
        """The last `count` events before `after`, or as many as the log still has."""
        start = max(self._log.extent(query.user).first, after - count)
        return self._log.read(query.user, start, after) if start < after else query.events[:0]

    def _newest_event(self, entry: Entry) -> NDArray[np.int64]:
        """[2 + F], item and `Events.gaps` of the event before `after`."""
        after = entry.after
        rows = self._newest(entry.query, after, 2)
        before = int(rows[-2, 1]) if len(rows) > 1 else None
        gaps = gap_buckets(rows[-1:, 1], before, self._model.num_gap_buckets)
        gaps = in_context(self._model, gaps, rows[-1:, 1], rows[-1:, 2:])
        newest: NDArray[np.int64] = np.column_stack((rows[-1:, 0], gaps))[0]
        return newest

    def _explain(
        self,
        numbers: list[int],
        entries: Sequence[Entry],
        answers: list[Answer],
        failed: dict[int, LongrecError],
    ) -> None:
        newest: dict[int, NDArray[np.int64]] = {}
        for number in numbers:
            entry, answer = entries[number], answers[number]
            nothing = np.full((len(answer.items), entry.query.settings.explain), NO_POSITION)
            answers[number] = answer._replace(because=nothing)
            if entry.after:
                try:
                    newest[number] = self._newest_event(entry)
                except LongrecError as error:
                    failed[number] = error
        if not newest:
            return
        width = max(len(answers[number].items) for number in newest)
        ranked = np.stack([first_of(*answers[number][2:4], width)[0] for number in newest])
        users = [entries[number].query.user for number in newest]
        ends = np.array([entries[number].after for number in newest])
        count = max(entries[number].query.settings.explain for number in newest)
        because = self._memory.explain(users, np.stack(list(newest.values())), ranked, count, ends)
        for number, found in zip(newest, because, strict=True):
            k, explain = len(answers[number].items), entries[number].query.settings.explain
            answers[number] = answers[number]._replace(because=found[:k, :explain])

    def _begin_rollouts(
        self,
        numbers: list[int],
        entries: Sequence[Entry],
        left_out: dict[int, NDArray[np.int64]],
        seen: dict[int, NDArray[np.int64]],
        waiting: list[int],
        failed: dict[int, LongrecError],
    ) -> None:
        """Begin those for which it is time, a user's first one; none is answered now, so all are `waiting`."""
        held_up = {entries[number].query.user for number in waiting}
        for number in numbers:
            entry = entries[number]
            waiting.append(number)
            if entry.query.user in held_up or not self._stands(entry) or not self._rollouts.admits(entry.query):
                held_up.add(entry.query.user)
                continue
            try:
                gap_ms = usual_gap_ms(self._newest(entry.query, entry.after, USUAL_GAPS + 1)[:, 1])
                asks_why = entry.query.settings.explain > 0 and entry.after > 0
                newest = self._newest_event(entry) if asks_why else self._no_event
            except LongrecError as error:
                failed[number] = error
                waiting.pop()
            else:
                self._rollouts.begin(
                    Root(entry.query, entry.after, gap_ms, left_out.get(number), newest, seen.get(number))
                )


def _rolled_out(found: RolledOut | LongrecError) -> Answer:
    if isinstance(found, LongrecError):
        return Answer.failed(found)
    return Answer(Status.OK, found.length, found.items, found.scores, None, found.because)
