"""Paths of a rollout without memories: the window of the log's newest and the predicted events is run again, or, of an
encoder-decoder, the window is encoded once and the predicted items are decoded."""

from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.errors import DataError
from longrec.modeling.features import gap_buckets, in_context
from longrec.modeling.network import Network
from longrec.modeling.seq2seq import Seq2Seq
from longrec.python_backend.memory_pool import NO_TIME
from longrec.python_backend.paths import Paths, next_times
from longrec.python_backend.windows import Field, FieldReader, events_of

__all__ = ["DecodedPaths", "WindowPaths"]

Ints = NDArray[np.int64]


class WindowPaths(Paths):
    """Each path is its window.

    Args:
        network: in evaluation mode.
        fields: reads windows.
    """

    def __init__(self, network: Network, fields: FieldReader) -> None:
        self._network, self._fields = network, fields
        self._kept: dict[int, Field] = {}
        self._rows = count()

    def begin_step(self) -> None:
        """Nothing to do."""

    def open(self, user: bytes, length: int) -> int:
        """As `Paths.open`."""
        (field,) = self._fields.read([(user, length)])
        if isinstance(field, DataError):
            raise field
        return self._keep(field)

    def close(self, row: int) -> None:
        """As `Paths.close`."""
        self.release([row])

    def hidden(self, rows: list[int]) -> torch.Tensor:
        """As `Paths.hidden`."""
        return self._network.last_states(events_of(self._network, [self._kept[row] for row in rows]))

    def fork(self, rows: list[int]) -> list[int]:
        """As `Paths.fork`."""
        return [self._keep(self._kept[row]) for row in rows]

    def release(self, rows: list[int]) -> None:
        """As `Paths.release`."""
        for row in rows:
            del self._kept[row]

    def advance(self, rows: list[int], items: list[int], gaps_ms: Ints) -> Ints:
        """As `Paths.advance`."""
        config = self._network.config
        fields = [self._kept[row] for row in rows]
        before = np.array([field.rows[-1, 1] if len(field.rows) else field.time_before for field in fields], np.int64)
        times = next_times(before, gaps_ms)
        newest = []
        for row, field, item, time, last in zip(rows, fields, items, times.tolist(), before.tolist(), strict=True):
            event = np.zeros((1, field.rows.shape[1]), np.int64)
            event[0, :2] = item, time
            events = np.concatenate((field.rows, event))
            self._kept[row] = field._replace(rows=events)  # what leaves the window the network leaves out
            previous = None if last == NO_TIME else last
            gaps = gap_buckets(events[-1:, 1], previous, config.num_gap_buckets)
            newest.append(np.append(item, in_context(config, gaps, events[-1:, 1], events[-1:, 2:])))
        return np.stack(newest)

    def _keep(self, field: Field) -> int:
        row = next(self._rows)
        self._kept[row] = field
        return row


class DecodedPaths(WindowPaths):
    """Each path is what its user's encoded window emits; of a user without events, a window as ever.

    Args:
        network: in evaluation mode.
        fields: reads windows.
    """

    def __init__(self, network: Seq2Seq, fields: FieldReader) -> None:
        super().__init__(network, fields)
        self._decoder = network
        self._emitted: dict[int, tuple[torch.Tensor | None, list[int]]] = {}  # encoded [n, dim], items

    def open(self, user: bytes, length: int) -> int:
        """As `Paths.open`."""
        row = super().open(user, length)
        field = self._kept[row]
        encoded = self._decoder.encode(events_of(self._decoder, [field])) if len(field.rows) else None
        self._emitted[row] = encoded, []
        return row

    def hidden(self, rows: list[int]) -> torch.Tensor:
        """As `Paths.hidden`."""
        states: dict[int, torch.Tensor] = {}
        undecoded = [row for row in rows if self._emitted[row][0] is None]
        if undecoded:
            states |= zip(undecoded, super().hidden(undecoded), strict=True)
        decoded = [row for row in rows if self._emitted[row][0] is not None]
        depth = {row: len(self._emitted[row][1]) for row in decoded}
        for num_steps in set(depth.values()):
            some = [row for row in decoded if depth[row] == num_steps]
            states |= zip(some, self._decode(some), strict=True)
        return torch.stack([states[row] for row in rows])

    def fork(self, rows: list[int]) -> list[int]:
        """As `Paths.fork`."""
        forks = super().fork(rows)
        for row, fork in zip(rows, forks, strict=True):
            encoded, items = self._emitted[row]
            self._emitted[fork] = encoded, [*items]
        return forks

    def release(self, rows: list[int]) -> None:
        """As `Paths.release`."""
        super().release(rows)
        for row in rows:
            del self._emitted[row]

    def advance(self, rows: list[int], items: list[int], gaps_ms: Ints) -> Ints:
        """As `Paths.advance`."""
        for row, item in zip(rows, items, strict=True):
            self._emitted[row][1].append(item)
        return super().advance(rows, items, gaps_ms)

    def _decode(self, rows: list[int]) -> torch.Tensor:
        """States [P, dim] of the next step of paths that have emitted equally many items."""
        encoded = [part for part, _ in (self._emitted[row] for row in rows) if part is not None]
        device = encoded[0].device
        counts = torch.tensor([len(part) for part in encoded], device=device)
        emitted = torch.tensor([self._emitted[row][1] for row in rows], dtype=torch.int64, device=device)
        return self._decoder.decode(torch.cat(encoded), counts, emitted.view(len(rows), -1))[:, -1]
