"""The jitted parts of a warm step on a CPU, around the network's blocks: `MemoryPool`'s bookkeeping, and the embedding.

    begin: pages for the new events, page tables and places, gap buckets, x = items[item] + gaps[bucket]
    finish: the users' lengths, times and states, and the pages that leave the window

They do what `catch_up.step_inputs` and the pool's `reserve` and `advance` do, which take some 40 array operations for
it: 120 us for 16 users, where these take 4.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numba import float32, from_dtype, int32, int64, njit

from longrec.kernels.cpu.block_body import OPTIONS, source_version
from longrec.kernels.cpu.primitives import offset, pointer

__all__ = ["begin_body", "finish_body", "gap_bucket", "warm_call"]

MILLISECONDS = 1000
LONGEST_GAP = 1 << 62  # ms: what is added to it stays within int64, and 1000 * 2^53 above it

# addresses and sizes. Of the batch: rows [B] int64, cu_seqlens [B + 1] int32, events [T, 2] int64, and what `begin`
# makes of them; of the pool: `MemoryPool.step_arrays`
_INTEGERS = (
    "rows", "cu_seqlens", "events", "x", "positions", "slots", "page_indptr", "page_indices", "lengths", "states",
    "first", "length", "time", "used", "hidden", "tables", "free",
    "item_table", "gap_table", "num_rows", "page_size", "window", "dim", "num_items", "num_gap_buckets",
)  # fmt: skip
WARM_CALL = np.dtype([(name, np.int64) for name in _INTEGERS])


def warm_call(fields: Mapping[str, int]) -> np.ndarray[Any, Any]:
    """[1] record of `WARM_CALL`."""
    return np.array([tuple(fields[name] for name in _INTEGERS)], WARM_CALL)


@njit
def gap_bucket(gap_ms, num_buckets):
    """`features.gap_buckets` of a gap: 1 + min(floor(log2(1 + seconds)), num_buckets - 2), in integers. Floats
    round otherwise above 8,000 years only."""
    scaled = MILLISECONDS + min(max(gap_ms, int64(0)), int64(LONGEST_GAP))
    exponent = int64(0)
    while exponent < num_buckets - 2 and int64(MILLISECONDS) << (exponent + 1) <= scaled:
        exponent += 1
    return exponent + 1


@njit
def _num_pages(events, page_size):
    return (events + page_size - 1) // page_size


@functools.cache
def begin_body() -> Callable[..., int]:
    """calls: one `WARM_CALL`; num_users: B; num_free: pages in `free` that are nobody's; clock: of the pool.

    Returns:
        How many pages it took, from the end of `free` on; -1: there are too few, and nothing has been changed. They are
        the users' once `finish` has run.
    """
    version = source_version()

    def begin(calls, num_users, num_free, clock):
        assert version >= 0  # a constant of this function, which makes it part of the cache's key
        c = calls[0]
        rows, cu_seqlens, events = pointer(c.rows, int64), pointer(c.cu_seqlens, int32), pointer(c.events, int64)
        x, positions, slots = pointer(c.x, float32), pointer(c.positions, int64), pointer(c.slots, int64)
        page_indptr, page_indices = pointer(c.page_indptr, int32), pointer(c.page_indices, int32)
        lengths, tables, free = pointer(c.lengths, int32), pointer(c.tables, int32), pointer(c.free, int32)
        first, length, time = pointer(c.first, int64), pointer(c.length, int64), pointer(c.time, int64)
        used = pointer(c.used, int64)
        item_table, gap_table = pointer(c.item_table, float32), pointer(c.gap_table, float32)

        needed = int64(0)
        for user in range(num_users):
            past = length[rows[user]] - first[rows[user]]
            count = int64(cu_seqlens[user + 1]) - int64(cu_seqlens[user])
            needed += _num_pages(past + count, c.page_size) - _num_pages(past, c.page_size)
        if needed > num_free:
            return int64(-1)

        taken, page = int64(0), int64(0)
        page_indptr[0] = int32(0)
        for user in range(num_users):
            row = rows[user]
            table = offset(tables, row)
            past, start = length[row] - first[row], int64(cu_seqlens[user])
            count = int64(cu_seqlens[user + 1]) - start
            used[row] = clock
            lengths[user] = int32(past)
            held = _num_pages(past, c.page_size)
            for place in range(_num_pages(past + count, c.page_size)):
                if place >= held:
                    taken += 1
                    table[place * c.num_rows] = free[num_free - taken]
                page_indices[page] = table[place * c.num_rows]
                page += 1
            page_indptr[user + 1] = int32(page)
            before = time[row]
            for n in range(count):
                event, place = start + n, past + n
                positions[event] = length[row] + n
                slots[event] = int64(table[place // c.page_size * c.num_rows]) * c.page_size + place % c.page_size
                item, now = min(events[2 * event], c.num_items), events[2 * event + 1]
                bucket = int64(0) if before < 0 else gap_bucket(now - before, c.num_gap_buckets)
                before = now
                target = offset(x, event * c.dim)
                of_item, of_gap = offset(item_table, item * c.dim), offset(gap_table, bucket * c.dim)
                for d in range(c.dim):
                    target[d] = of_item[d] + of_gap[d]
        return taken

    jitted: Callable[..., int] = njit(int64(from_dtype(WARM_CALL)[::1], int64, int64, int64), **OPTIONS)(begin)
    return jitted


@functools.cache
def finish_body() -> Callable[..., int]:
    """calls, num_users: as `begin_body`, after which the network has run; num_free: pages that `begin` left.

    Writes the users' `states`. Returns:
        How many pages in `free` are nobody's now.
    """
    version = source_version()

    def finish(calls, num_users, num_free):
        assert version >= 0
        c = calls[0]
        rows, cu_seqlens, events = pointer(c.rows, int64), pointer(c.cu_seqlens, int32), pointer(c.events, int64)
        x, states, hidden = pointer(c.x, float32), pointer(c.states, float32), pointer(c.hidden, float32)
        tables, free = pointer(c.tables, int32), pointer(c.free, int32)
        first, length, time = pointer(c.first, int64), pointer(c.length, int64), pointer(c.time, int64)
        for user in range(num_users):
            row, start, stop = rows[user], int64(cu_seqlens[user]), int64(cu_seqlens[user + 1])
            state, kept = offset(states, user * c.dim), offset(hidden, row * c.dim)
            if start == stop:
                for d in range(c.dim):
                    state[d] = kept[d]
                continue
            newest = offset(x, (stop - 1) * c.dim)
            for d in range(c.dim):
                state[d] = newest[d]
                kept[d] = newest[d]
            length[row] += stop - start
            time[row] = events[2 * (stop - 1) + 1]
            expired = (length[row] - c.window - first[row]) // c.page_size
            if expired > 0:
                table = offset(tables, row)
                for place in range(_num_pages(length[row] - first[row], c.page_size)):
                    page = table[place * c.num_rows]
                    if place < expired:
                        free[num_free + expired - 1 - place] = page
                    else:
                        table[(place - expired) * c.num_rows] = page
                num_free += expired
                first[row] += expired * c.page_size
        return num_free

    jitted: Callable[..., int] = njit(int64(from_dtype(WARM_CALL)[::1], int64, int64), **OPTIONS)(finish)
    return jitted
