"""The engine without a memory: each answer is computed from the user's newest events in the log, all that can reach it.
The baseline against which the memory must be worth its pages; everything else is the engine's own."""

import time
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from longrec.config import EngineConfig
from longrec.errors import ArgumentError, DataError
from longrec.modeling.features import ragged_gap_buckets
from longrec.modeling.last_states import LastStates
from longrec.modeling.transformer import Transformer
from longrec.python_backend.catch_up import CatchUp, Caught
from longrec.python_backend.engine import Engine
from longrec.python_backend.event_log import EventLog
from longrec.python_backend.memory_pool import NO_TIME
from longrec.python_backend.rules import Rules
from longrec.python_backend.work import Entry, Rows, Work

__all__ = ["RecomputeEngine"]

PASS_EVENTS = 4096  # of more histories at once, activations leave the caches: 242 ms for 16 of 2,048 so, 330 together


class RecomputeEngine(Engine):
    """Answers as `Engine` does, and takes longer; but neither rollouts nor explanations, which go through memory.

    Args:
        As `Engine`; `config` must allow horizon 1 and explain 0 alone.
    """

    def __init__(
        self,
        network: Transformer,
        log: EventLog,
        config: EngineConfig,
        decode_batches: Sequence[int] | None = (),
        rules: Rules | None = None,
    ) -> None:
        if config.max_horizon > 1 or config.max_explain:
            got = f"max_horizon={config.max_horizon}, max_explain={config.max_explain}"
            raise ArgumentError("config", "max_horizon=1 and max_explain=0: there is no memory", got)
        super().__init__(network, log, config, decode_batches, rules)
        self._catch_up = Recompute(network, log)

    def warm_up(self, users: Iterable[bytes]) -> None:
        """Do nothing: there are no memories to fill."""


class Recompute(CatchUp):
    """Runs whole receptive fields through the network, and keeps nothing.

    Args:
        network: in evaluation mode.
        log: where the events are read.
    """

    def __init__(self, network: Transformer, log: EventLog) -> None:
        self.log = log
        self._model, self._start = network.config, network.start.detach()
        self._states = LastStates(network)

    def num_missing(self, work: Work) -> int:
        """0: nothing is put off."""
        return 0

    def run(self, works: Sequence[Work], *, each: int, room: int) -> Caught:
        """Answer all entries of the works, whatever `each` and `room` are. Raises as `CatchUp.run`."""
        fields: list[tuple[Entry, Rows, int]] = []  # events in reach of the answer, and the time before them
        failed: list[tuple[Entry, DataError]] = []
        num_read = 0
        for work in works:
            try:
                fields += (found := self._fields(work))
                num_read += sum(len(rows) for _, rows, _ in found)
            except DataError as error:
                failed += [(entry, error) for entry in work.entries]
            work.entries.clear()
        began = time.perf_counter()
        fields.sort(key=lambda field: len(field[1]))
        hidden = [self._start.expand(sum(not len(rows) for _, rows, _ in fields), -1)]
        batch: list[tuple[Rows, int]] = []
        for _, rows, before in fields:
            if not len(rows):
                continue
            if batch and (len(batch) + 1) * len(rows) > PASS_EVENTS:
                hidden.append(self._compute(batch))
                batch = []
            batch.append((rows, before))
        if batch:
            hidden.append(self._compute(batch))
        return Caught(
            [entry for entry, _, _ in fields],
            torch.cat(hidden),
            failed,
            num_users=len(works),
            num_events=num_read,
            num_read=num_read,
            seconds=time.perf_counter() - began,
        )

    def _fields(self, work: Work) -> list[tuple[Entry, Rows, int]]:
        reach = self._model.receptive_field
        first = max(0, work.entries[0].after - reach - 1)  # with one event more, whose time counts
        events = self.log.read(work.user, first, work.entries[-1].after)
        fields = []
        for entry in work.entries:
            stop = entry.after - first
            start = max(0, stop - reach)
            fields.append((entry, events[start:stop], int(events[start - 1, 1]) if start else NO_TIME))
        return fields

    def _compute(self, batch: Sequence[tuple[Rows, int]]) -> torch.Tensor:
        """States [B, dim] after the last events of histories, their lengths rising."""
        lengths = [len(rows) for rows, _ in batch]
        cu_seqlens = np.cumsum([0, *lengths], dtype=np.int32)
        events = np.concatenate([rows for rows, _ in batch])  # [T, 2]
        previous = np.array([before for _, before in batch], np.int64)
        gaps = ragged_gap_buckets(events[:, 1], cu_seqlens, previous, self._model.num_gap_buckets)
        items = np.minimum(events[:, 0], self._model.num_items)
        device = self._start.device
        return self._states(torch.from_numpy(items).to(device), torch.from_numpy(gaps).to(device), lengths)
