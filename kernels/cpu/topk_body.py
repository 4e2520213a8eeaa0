"""The jitted body of `catalogue_topk` on a CPU.

Rows go in tiles of 16 (8 where there are no more), a lane each, over blocks of `BLOCK` items: an item enters the
product as scalars, so the table is read as it is, once for all rows. Then a block's scores are compared with each
row's worst of its k best so far, and what is better goes into that row's heap, if the masks let it. The masks are asked
for those few alone.

A heap holds 64-bit keys, ordered as (score, lower index): the score's bits as a rising int32, then the index inverted.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import functools
from collections.abc import Callable

import numpy as np
from numba import float32, from_dtype, int32, int64, njit, types, void

from longrec.kernels.cpu.block_body import OPTIONS, PAGE_TYPES, source_version
from longrec.kernels.cpu.primitives import as_float, bits, offset, pointer
from longrec.kernels.cpu.vectors import LANES, multiply_add, rise

__all__ = ["TOPK_CALL", "topk_body", "topk_floats"]

BLOCK = 64  # items whose scores of 16 rows stay in the first cache
ROWS = 8  # items of a product
NO_KEY = -9187343239835811841  # of a score of -inf and no item: any key of a score is above
LOW = 0xFFFFFFFF

# hidden: [B, d] float32; heaps: [B, k] int64; addresses of masks that aren't there are 0
_INTEGERS = (
    "hidden", "hidden_stride", "items", "item_stride", "num_rows", "num_items", "dim", "k",
    "heaps", "scores", "indices", "seen_indptr", "seen_indices", "blocked", "categories", "allowed",
)  # fmt: skip
TOPK_CALL = np.dtype([*((name, np.int64) for name in _INTEGERS), ("_", np.float64)])


def topk_floats(num_rows: int, dim: int) -> int:
    """Float32s that one thread works in, for so many rows."""
    return LANES * (BLOCK + 1 + -(-num_rows // LANES) * (dim + 1))


@njit
def _load_lanes(lanes, rows, stride, num_rows, dim):
    """Rows [num_rows, dim] as [tiles, dim, LANES], zeros behind."""
    for first in range(0, num_rows, LANES):
        tile = offset(lanes, first * dim)
        for lane in range(LANES):
            for d in range(dim):
                tile[d * LANES + lane] = rows[(first + lane) * stride + d] if first + lane < num_rows else float32(0.0)


@njit
def _key(score, item):
    code = bits(score + float32(0.0))  # -0 becomes 0
    code = code ^ ((code >> int32(31)) & int32(0x7FFFFFFF))
    return (int64(code) << int64(32)) | (int64(LOW) - item)


@njit
def _score(key):
    code = int32(key >> int64(32))
    return as_float(code ^ ((code >> int32(31)) & int32(0x7FFFFFFF)))


@njit
def _sink(heap, key, size):
    """Put `key` in the place of the smallest."""
    at = int64(0)
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = key


@njit
def _is_masked(c, row, item):
    if c.seen_indptr != 0:
        indptr, seen = pointer(c.seen_indptr, int64), pointer(c.seen_indices, int64)
        low, high = indptr[row], indptr[row + 1]
        end = high
        while low < high:
            middle = (low + high) // 2
            if seen[middle] < item:
                low = middle + 1
            else:
                high = middle
        if low < end and seen[low] == item:
            return True
    if c.blocked != 0 and (pointer(c.blocked, int32)[item // 32] >> int32(item % 32)) & int32(1):
        return True
    return c.categories != 0 and (pointer(c.categories, int64)[item] & pointer(c.allowed, int64)[row]) == 0


@functools.cache
def topk_body(table: str) -> Callable[..., None]:
    """The body for one dtype of the item table: calls: one `TOPK_CALL`; scratch: address of `topk_floats` float32s.
    Releases the GIL."""
    version, entry = source_version(), PAGE_TYPES[table]

    def body(calls, scratch_address):
        assert version >= 0  # a constant of this function, which makes it part of the cache's key
        c = calls[0]
        scores = pointer(scratch_address, types.float32)  # [BLOCK, LANES]
        peaks = offset(scores, BLOCK * LANES)  # [LANES]
        worst = offset(peaks, LANES)  # [B, up to a multiple of LANES]: the worst of each row's k best so far
        lanes = offset(worst, -(-c.num_rows // LANES) * LANES)
        _load_lanes(lanes, pointer(c.hidden, float32), c.hidden_stride, c.num_rows, c.dim)
        heaps = pointer(c.heaps, int64)
        for n in range(c.num_rows * c.k):
            heaps[n] = NO_KEY
        for row in range(-(-c.num_rows // LANES) * LANES):
            worst[row] = float32(-np.inf)
        for begin in range(0, c.num_items, BLOCK):
            count = min(BLOCK, c.num_items - begin)
            items = offset(pointer(c.items, entry), begin * c.item_stride)
            for first_row in range(0, c.num_rows, LANES):
                live = min(LANES, c.num_rows - first_row)
                hidden = offset(lanes, first_row * c.dim)
                n = int64(0)
                while n + ROWS <= count:
                    source, target = offset(items, n * c.item_stride), offset(scores, n * LANES)
                    if live <= 8:
                        multiply_add(target, LANES, source, c.item_stride, 1, hidden, LANES, c.dim, ROWS, 8, 0)
                    else:
                        multiply_add(target, LANES, source, c.item_stride, 1, hidden, LANES, c.dim, ROWS, LANES, 0)
                    n += ROWS
                while n < count:
                    source, target = offset(items, n * c.item_stride), offset(scores, n * LANES)
                    multiply_add(target, 0, source, 0, 1, hidden, LANES, c.dim, 1, LANES, 0)
                    n += 1
                floor = offset(worst, first_row)
                if rise(peaks, scores, count, floor):
                    for lane in range(live):
                        if peaks[lane] > floor[lane]:
                            row = first_row + lane
                            heap = offset(heaps, row * c.k)
                            for n in range(count):
                                score = scores[n * LANES + lane]
                                if score > floor[lane] and not _is_masked(c, row, begin + n):
                                    _sink(heap, _key(score, begin + n), c.k)
                                    floor[lane] = _score(heap[0])
        out, indices = pointer(c.scores, float32), pointer(c.indices, int64)
        for row in range(c.num_rows):
            heap = offset(heaps, row * c.k)
            for rank in range(c.k - 1, -1, -1):  # the smallest first, from the end on
                key = heap[0]
                _sink(heap, heap[rank], rank)
                out[row * c.k + rank] = _score(key)
                indices[row * c.k + rank] = -1 if key == NO_KEY else int64(LOW) - (key & int64(LOW))

    return njit(void(from_dtype(TOPK_CALL)[::1], int64), **OPTIONS)(body)
