"""The jitted body of `segment_attention` on a CPU: one function that attends a share of a batch's queries.

Pages are read in place, in whatever dtype they are, up to each user's length and within the window, and nothing else
is: no gather, no padding, no temporary that grows with the memory. Users with few rows (new events x heads of a group)
go query by query (`attention_query`), others in tiles of 16 rows (`attention_tile`), where a key is used 16 times.

Scores are in units of log 2: the scale holds log2(e). Sums are float32 in an order that depends on a query's place in
its user's memory and append alone: not on the batch, nor on how many threads share it.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numba import from_dtype, int32, int64, njit, types, void

from longrec.kernels.cpu.attention_query import attend_query, no_terms, query_floats
from longrec.kernels.cpu.attention_tile import attend_tile, tile_floats
from longrec.kernels.cpu.primitives import BFLOAT16, FLOAT16, pointer
from longrec.kernels.cpu.vectors import LANES

__all__ = ["CALL", "attention_body", "scratch_floats"]

# up to so many, query by query is faster: 32 users x 255 past, heads of 32: 0.06 ms + 0.09 a row against 0.9 a tile
FEW_ROWS = 8
CACHE_LINE = 64
PAGE_TYPES = {"float32": types.float32, "bfloat16": BFLOAT16, "float16": FLOAT16, "int8": types.int8}

# addresses and strides (in elements) of the operator's tensors, and its scalars
_INTEGERS = (
    "q", "q_token", "q_head", "k", "k_token", "k_head", "v", "v_token", "v_head", "out", "lse2", "cu_seqlens",
    "k_pages", "k_page", "k_place", "k_page_head", "v_pages", "v_page", "v_place", "v_page_head",
    "k_scale", "ks_page", "ks_place", "ks_head", "v_scale", "vs_page", "vs_place", "vs_head",
    "page_indptr", "page_indices", "lengths", "page_size",
    "num_users", "num_heads", "num_kv_heads", "window",
)  # fmt: skip
CALL = np.dtype([*((name, np.int64) for name in _INTEGERS), ("scale", np.float64)])


def scratch_floats(num_heads: int, head_dim: int) -> int:
    """Float32s that one share works in."""
    return max(query_floats(num_heads, head_dim), tile_floats(head_dim))


@functools.cache
def attention_body(head_dim: int, pages: str, pointwise: bool) -> Callable[..., None]:
    """The body for one head_dim (a multiple of 8), one page dtype, and softmax or (pointwise) SiLU.

    Compiled here, if no earlier process left it in numba's cache on disk: beside this file where that can be written,
    else in the user's cache folder. The sources' hash is part of the cache's key, since numba itself looks at this file
    alone.

    Returns:
        body: calls: one `CALL`; scratch: the address of `scratch_floats` float32s; share, shares: queries are dealt
            out to `shares` callers in turn, this one is number `share`. Releases the GIL.
    """
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))
    version = int(sources.hexdigest()[:8], 16)
    entry = PAGE_TYPES[pages]
    line = CACHE_LINE * 8 // entry.bitwidth
    scaled = pages == "int8"
    query_columns, tile_columns = math.gcd(head_dim, 4 * LANES), math.gcd(head_dim, LANES)

    def body(calls, scratch_address, share, shares):
        assert version >= 0  # a constant of this function, which makes it part of the cache's key
        c = calls[0]
        scratch = pointer(scratch_address, types.float32)
        cu_seqlens = pointer(c.cu_seqlens, int32)
        group = c.num_heads // c.num_kv_heads
        unit = int64(0)
        for user in range(c.num_users):
            count = int64(cu_seqlens[user + 1]) - int64(cu_seqlens[user])
            if count * group <= FEW_ROWS:
                for row in range(count):
                    if unit % shares == share:
                        attend_query(
                            c, scratch, user, row, entry, head_dim, query_columns, line, scaled, pointwise,
                            no_terms, c, scratch,
                        )  # fmt: skip
                    unit += 1
            else:
                for first_row in range(0, count, LANES // group):
                    for kv_head in range(c.num_kv_heads):
                        if unit % shares == share:
                            attend_tile(
                                c, scratch, user, first_row, kv_head, entry, head_dim, tile_columns, scaled, pointwise
                            )
                        unit += 1

    signature = void(from_dtype(CALL)[::1], int64, int64, int64)
    # reassoc: totals in vectors; contract: multiply-adds in one rounding. Infinities and NaN keep their meaning.
    options = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    return njit(signature, **options)(body)
