"""The short way for users whose memories stand right before their new events, on a CPU: what nearly every request is.

A step is two jitted calls and three a block, over buffers of its own, and what they take is packed once. Whoever isn't
warm, asks for what needs the memory itself, or comes twice goes through `CatchUp`, whose answers are the same.
"""

import time
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from longrec.modeling.network import Network
from longrec.modeling.transformer import Transformer
from longrec.python_backend.memory_pool import NO_ROW, MemoryPool
from longrec.python_backend.pages import KeyValueStore
from longrec.python_backend.user_memory import Caught
from longrec.python_backend.work import Entry, Rows

__all__ = ["WarmLane"]

MAX_USERS = 256  # of a step
MAX_EVENTS = 512


class _Chosen(NamedTuple):
    """Entries of different users, their rows in the pool, and their new events; what `begin` takes beside."""

    entries: list[Entry]
    rows: list[int]
    parts: list[Rows]
    counts: list[int]


class WarmLane:
    """Steps of warm users over one pool.

    Args:
        network: in evaluation mode, whose `block_step` there is.
        pool: the memories. pages: of `pool`, which the network reads and writes.
        max_events: of a step.
    """

    def __init__(self, network: Transformer, pool: MemoryPool, pages: KeyValueStore, max_events: int) -> None:
        from longrec.python_backend import warm_body  # needs numba, which a server on a GPU may lack

        self._pool, self._max_events = pool, min(max_events, MAX_EVENTS)
        self._events, self._rows = np.zeros((MAX_EVENTS, 2), np.int64), np.zeros(MAX_USERS, np.int64)
        self._states, x = torch.zeros(MAX_USERS, network.config.dim), torch.zeros(MAX_EVENTS, network.config.dim)
        positions, slots = torch.zeros(2, MAX_EVENTS, dtype=torch.int64)
        cu_seqlens, page_indptr, lengths = torch.zeros(3, MAX_USERS + 1, dtype=torch.int32)
        page_indices = torch.zeros(MAX_USERS * pool.pages_per_user, dtype=torch.int32)
        self._cu_seqlens = cu_seqlens.numpy()
        memory = pages.memory(
            page_indptr,
            page_indices,
            lengths[:MAX_USERS],
            slots,
            max_new=MAX_EVENTS,
            max_memory=pool.pages_per_user * pool.page_size,
        )
        self._blocks = network.block_step(x, positions, cu_seqlens, memory)
        self._begin, self._finish = warm_body.begin_body(), warm_body.finish_body()
        arrays = {"rows": self._rows, "events": self._events, **pool.step_arrays}
        tensors = {"x": x, "positions": positions, "slots": slots, "states": self._states, "cu_seqlens": cu_seqlens}
        tensors |= {"page_indptr": page_indptr, "page_indices": page_indices, "lengths": lengths}
        tensors |= {"item_table": network.items.weight, "gap_table": network.gaps.weight}
        self._kept = tensors  # for their addresses are kept, too
        model = network.config
        fields = {"num_rows": len(pool.length), "page_size": pool.page_size, "window": model.window, "dim": model.dim}
        fields |= {"num_items": model.num_items, "num_gap_buckets": model.num_gap_buckets}
        fields |= {name: array.ctypes.data for name, array in arrays.items()}
        fields |= {name: tensor.data_ptr() for name, tensor in tensors.items()}
        self._call = warm_body.warm_call(fields)

    @classmethod
    @torch.inference_mode()
    def over(cls, network: Network, pool: MemoryPool, max_events: int) -> "WarmLane | None":
        """A lane, its parts compiled now; None where the CPU has no body for the network as a whole, or where events
        have features beside item and time."""
        pages = pool.store
        if (
            not isinstance(network, Transformer)
            or not isinstance(pages, KeyValueStore)
            or network.config.features.event
        ):
            return None
        return cls(network, pool, pages, max_events) if network.fits_block_step(pages.k_pages[0]) else None

    def run(self, entries: Sequence[Entry]) -> Caught | None:
        """One step of those entries whose users are warm, as `CatchUp.run`; None: none is, or they need an eviction.

        Args:
            entries: what their queries sent is in the log, if they have an outcome.
        """
        chosen = self._choose(entries)
        if not chosen.entries:
            return None
        pool, num_users, num_events = self._pool, len(chosen.entries), sum(chosen.counts)
        self._rows[:num_users] = chosen.rows
        self._cu_seqlens[1 : num_users + 1] = list(accumulate(chosen.counts))
        np.concatenate(chosen.parts, out=self._events[:num_events])
        began = time.perf_counter()
        pool.begin_step()
        taken = self._begin(self._call, num_users, pool.num_free_pages, pool.clock)
        if taken < 0:
            return None
        self._blocks.run(num_events, num_users)
        pool.set_free(self._finish(self._call, num_users, pool.num_free_pages - taken))
        seconds = time.perf_counter() - began
        stepped = num_users - chosen.counts.count(0)
        return Caught(chosen.entries, self._states[:num_users], [], stepped, num_events, seconds=seconds)

    def _choose(self, entries: Sequence[Entry]) -> _Chosen:
        """The warm ones, as many as the buffers hold."""
        chosen = _Chosen([], [], [], [])
        room, length_of, row_of = self._max_events, self._pool.length.item, self._pool.row
        times = Counter(entry.query.user for entry in entries)
        for entry in entries:
            query, outcome = entry.query, entry.outcome
            if outcome is None or not query.k or query.needs_memory or times[query.user] > 1:
                continue
            row, rows = row_of(query.user), entry.new_rows
            count = len(rows)
            if row == NO_ROW or length_of(row) + count != outcome.length or count > room:
                continue
            room -= count
            chosen.entries.append(entry)
            chosen.rows.append(row)
            chosen.parts.append(rows)
            chosen.counts.append(count)
            if len(chosen.rows) == MAX_USERS:
                break
        return chosen
