"""How `segment_attention` is cut into programs: tiles for each target, and how many parts a memory is cut into.

Plain Python over what the host knows: shapes and upper bounds, never lengths. Device code is in `attention_forward`.
"""

from functools import lru_cache
from typing import NamedTuple

from longrec.kernels.shipped import matrix_units

__all__ = [
    "FILL_KEYS",
    "SHORT_ROWS",
    "AttentionPlan",
    "AttentionShape",
    "Tile",
    "plan_attention",
    "split_tile",
    "tiled_tile",
]

SHORT_ROWS = 64  # a user with no more new events than this has its memory split among programs
FILL_KEYS = 256  # a part this short keeps a device busy whatever the grid: cutting finer only adds to the merge
PROGRAMS_PER_MULTIPROCESSOR = 2
SPLIT_OVERHEAD = (
    0.097  # most bytes of queries and partial results that a part may move for each byte of keys and values
)


class Tile(NamedTuple):
    """Shape of a program's tile, and how it is launched; block_d: dimensions that scores are summed over at a time, 0:
    all of them at once."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    block_d: int = 0


WIDE_HEADS = Tile(16, 16, 8, 2, block_d=64)  # float32 heads of 256 don't fit the registers as an operand
# float32 with relative terms, by head_dim: two operands a query and three tiles of scores; rows at most the keys
WIDE_RELATIVE = {
    16: Tile(16, 32, 4, 2),
    32: Tile(16, 32, 4, 2),
    64: Tile(16, 32, 4, 2),
    128: Tile(16, 16, 4, 2, block_d=32),
    256: Tile(16, 16, 8, 2, block_d=32),
}


class AttentionShape(NamedTuple):
    """What the plan depends on.

    Args:
        num_users: B. max_new: most new events of a user. max_memory: most events in a memory; 0: there is none.
        num_heads, num_kv_heads, head_dim: Hq, Hkv, D.
        itemsize: bytes of an element of q. page_itemsize: of k_pages; 1: int8 or float8, with scales.
        relative: Transformer-XL's terms, with which each head has a tile of its own. biased: bias tables.
    """

    num_users: int
    max_new: int
    max_memory: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    itemsize: int
    page_itemsize: int
    window: int
    relative: bool
    biased: bool

    @property
    def heads(self) -> int:
        """Heads that share a tile."""
        return 1 if self.relative else self.num_heads // self.num_kv_heads


class AttentionPlan(NamedTuple):
    """What is launched.

    Args:
        tiled: tile of the launch for long appends; None: no user has one.
        split: tile of the launch for short appends; None: they are left to the tiled one.
        short_rows: most new events of a user that the split launch takes.
        max_parts: that a memory is cut into. min_part_tiles: tiles of keys that a part has at least, on average.
    """

    tiled: Tile | None
    split: Tile | None
    short_rows: int
    max_parts: int
    min_part_tiles: int


@lru_cache(maxsize=1024)
def plan_attention(shape: AttentionShape, target: int, multiprocessors: int) -> AttentionPlan:
    """Tiles and parts for a call.

    The parts of a memory. A part reads its queries and writes and re-reads a partial result, which counts against the
    bytes of its own keys and values: with R rows (queries x heads) of D, a part of n keys moves

        R (D item + 2 (D item + 4))   on top of   n (2 D page_item + scales),

    so SPLIT_OVERHEAD gives the least n: for bfloat16 about 16 R keys. One query of 8 heads may be cut into parts of 128
    keys, 16 queries of 1 head into parts of 256; 16 queries of 8 heads on one kv head only into parts of 2,048, so that
    few such users can't fill a device within that limit: the bytes go first. Within it, parts are as many as give every
    multiprocessor two programs, and none is made shorter than FILL_KEYS.

    Args:
        shape: of the call.
        target: compute capability x 10, one of `shipped.TARGETS`.
        multiprocessors: of the device.
    """
    short_rows = min(shape.max_new, SHORT_ROWS)
    if shape.max_memory == 0 and shape.max_new > SHORT_ROWS:
        short_rows = 0
    tiled = tiled_tile(shape, target)
    if short_rows == 0:
        return AttentionPlan(tiled, None, 0, 1, 1)

    split = split_tile(shape, target)
    queries = min(split.block_m // shape.heads, short_rows)
    rows = queries * shape.heads
    part_bytes = rows * (3 * shape.head_dim * shape.itemsize + 8)
    key_bytes = 2 * shape.head_dim * shape.page_itemsize + (8 if shape.page_itemsize == 1 else 0)
    min_part_tiles = _ceil_div(int(part_bytes / SPLIT_OVERHEAD), key_bytes * split.block_n)
    programs = shape.num_users * _ceil_div(short_rows, queries) * (shape.num_heads // shape.heads)
    wanted = _ceil_div(PROGRAMS_PER_MULTIPROCESSOR * multiprocessors, max(programs, 1))
    tiles = _ceil_div(min(shape.max_memory, shape.window), split.block_n) + 1  # the window may cut a tile at its start
    parts = min(wanted, max(tiles // min_part_tiles, 1), _ceil_div(tiles * split.block_n, FILL_KEYS))
    return AttentionPlan(
        tiled if shape.max_new > SHORT_ROWS else None, split, short_rows, max(parts, 1), min_part_tiles
    )


def tiled_tile(shape: AttentionShape, target: int) -> Tile:
    """Tile of a long append.

    A causal append of n events issues (n + block_m) / (n + 1) times the FLOPs that it needs, where block_n divides
    block_m: 1.03 for 128 rows at 4,096, 1.12 for 64 at 512. Matrix units differ in what a tile costs in registers:
    mma.sync takes keys from registers, a whole tile of them in every warp; wgmma (sm_90) reads them from shared memory;
    tcgen05 (sm_100) also keeps its sums out of registers.
    """
    dim, wide = shape.head_dim, shape.itemsize == 4
    loaded = shape.biased or shape.page_itemsize == 1  # more addresses, or conversions, in registers
    if wide and shape.relative:
        return WIDE_RELATIVE[dim]
    if wide and dim == 256:
        return WIDE_HEADS
    if wide:  # three products of tf32 each, from twice the bytes
        if dim == 128:
            return Tile(16, 32, 8 if target == 100 else 4, 2)
        return Tile(64, 16, 8 if dim == 64 else 4, 2)
    small = shape.max_new < 1024 or dim == 16
    if target in (90, 100):
        if shape.relative:
            # 64 rows, the least that wgmma and tcgen05 take; q + u and q + v of 256 would spill as operands
            return Tile(64, 64, 8, 2, block_d=(32 if target == 90 else 64) if dim == 256 else 0)
        if dim == 256:
            return Tile(64, 32, 8, 2)
        if loaded and dim <= 32 and shape.max_new >= 1024:
            # 16 dimensions of 32 keys among 8 warps would be copies of 4 bytes
            return Tile(128, 32, 8, 2) if dim == 32 else Tile(64, 32, 4, 2)
        if small:
            return Tile(64, 64, 4, 2) if dim <= 64 else Tile(64, 64, 8, 2)
        if dim == 128:
            return Tile(128, 32, 8, 2) if loaded else Tile(128, 64, 8, 3)
        return Tile(128, 64 if loaded or target == 100 else 128, 8, 2)
    if shape.relative:
        return Tile(32, 32, 2, 2) if dim <= 64 else Tile(16, 32 if dim == 128 else 16, 4, 2)
    block_n = max(min(4096 // (dim * (2 if loaded else 1)), 32 if loaded else 64), 16)
    if dim == 256:
        return Tile(32, 32, 4, 2) if target == 80 and loaded else Tile(64, block_n, 8, 2)
    return Tile(64, block_n, 4, 2) if small or dim == 128 else Tile(128, block_n, 8, 2)


def split_tile(shape: AttentionShape, target: int) -> Tile:
    """Tile of a short append: rows for its queries and heads, to 128, and keys for three stages in flight.

    Few rows leave the warps to share the keys, not the rows, so that tiles of keys may be larger than in a long append.
    """
    dim, wide = shape.head_dim, shape.itemsize == 4
    if wide and shape.relative:
        return WIDE_RELATIVE[dim]
    if wide and dim == 256:
        return WIDE_HEADS
    rows = min(shape.max_new, SHORT_ROWS) * shape.heads
    block_m = 16
    while block_m < min(rows, 128):
        block_m *= 2
    if shape.relative:
        block_m = min(block_m, 32 if target in (90, 100) and dim <= 128 else 16)  # at most block_n
    if wide:
        block_m = min(block_m, 64 if dim <= 32 else 16)
    mma = matrix_units(target) == "mma"  # keys and sums are in registers
    if dim == 256 or (dim == 128 and mma and shape.biased):
        block_m = min(block_m, 64)
    block_n = max(min(8192 // (dim * shape.itemsize), 64), 16)
    if shape.relative and block_m == 32 and dim == 32:
        block_n = 32  # 64 spill on sm_100
    if block_m == 128 and (shape.biased or (mma and dim == 128)):
        block_n = max(min(block_n, 1024 // dim), 16)
    elif block_m == 64 and mma and dim >= 64:
        block_n = min(block_n, 16 if dim == 128 and shape.biased else 32)
    return Tile(
        block_m, block_n, 8 if block_m == 128 or dim == 256 else 4, 2 if dim == 256 and shape.biased and not mma else 3
    )


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
