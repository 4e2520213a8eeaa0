"""The jitted body of `attention_terms`: query by query, as `attention_body` does for users with few rows.

A chunk of a long history goes the same way.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import functools
import math
from collections.abc import Callable

import numpy as np
from numba import float32, from_dtype, int32, int64, njit, types, void
from numba.extending import register_jitable

from longrec.kernels.cpu.attention_body import CACHE_LINE, CALL, PAGE_TYPES
from longrec.kernels.cpu.attention_query import SPAN, attend_query, query_floats
from longrec.kernels.cpu.block_body import source_version
from longrec.kernels.cpu.primitives import bits, offset, pointer
from longrec.kernels.cpu.vectors import LANES

__all__ = ["TERMS", "terms_body", "terms_floats"]

# addresses and strides (in elements): what is added by query, head and distance, in the units of scores; the bias by
# elapsed time [Hq, buckets] in the same, and the times. An address of 0: there is none.
_INTEGERS = (
    "added", "added_token", "added_head", "added_distance",
    "time_table", "time_buckets", "time_bits", "query_seconds", "key_seconds", "memory_seconds", "seconds_page",
)  # fmt: skip
TERMS = np.dtype([*((name, np.int64) for name in _INTEGERS), ("_", np.float64)])

FRACTION_BITS = 23  # of float32
LARGEST_DISTANCE = 1 << 30  # as `types.bucket_of`


@register_jitable
def terms_floats(num_heads: int, head_dim: int) -> int:
    """Float32s that the body works in."""
    return query_floats(num_heads, head_dim) + SPAN


@njit
def _bucket(distance, fraction_bits, num_buckets):
    """`types.bucket_of` of an int32."""
    shifted = float32(min(int64(distance), LARGEST_DISTANCE) + (int64(1) << fraction_bits))
    bucket = (int64(bits(shifted)) >> (FRACTION_BITS - fraction_bits)) - ((127 + fraction_bits) << fraction_bits)
    return min(bucket, num_buckets - 1)


@njit(fastmath={"contract"})
def _add_terms(c, t, buckets, scores, user, token, start, stop):
    """Add to scores [Hq, SPAN] of keys start..stop-1 of `user` what the terms give the query `token`.

    Args:
        c: the `CALL`. t: the `TERMS`. buckets: pointer to SPAN int32s.
    """
    begin = int64(pointer(c.cu_seqlens, int32)[user])
    past = int64(pointer(c.lengths, int32)[user])
    last = past + token - begin
    if t.added != 0:
        for head in range(c.num_heads):
            weights = offset(scores, head * SPAN)
            added = offset(
                pointer(t.added, float32),
                token * t.added_token + head * t.added_head + (last - start) * t.added_distance,
            )
            for n in range(stop - start):
                weights[n] += added[-n * t.added_distance]
    if t.time_table != 0:
        table = offset(pointer(c.page_indices, int32), int64(pointer(c.page_indptr, int32)[user]))
        now = int32(pointer(t.query_seconds, int32)[token])
        for j in range(start, stop):
            if j < past:
                page = int64(table[j // c.page_size])
                then = int32(pointer(t.memory_seconds, int32)[page * t.seconds_page + j % c.page_size])
            else:
                then = int32(pointer(t.key_seconds, int32)[begin + j - past])
            elapsed = max(int32(now - then), int32(0))  # seconds may wrap
            buckets[j - start] = int32(_bucket(elapsed, t.time_bits, t.time_buckets))
        for head in range(c.num_heads):
            weights = offset(scores, head * SPAN)
            biases = offset(pointer(t.time_table, float32), head * t.time_buckets)
            for n in range(stop - start):
                weights[n] += biases[int64(buckets[n])]


@functools.cache
def terms_body(head_dim: int, pages: str, pointwise: bool) -> Callable[..., None]:
    """The body for one head_dim (a multiple of 8), one page dtype, and softmax or (pointwise) SiLU.

    Returns:
        body: calls: one `CALL`; terms: one `TERMS`; scratch: the address of `terms_floats` float32s. Releases the GIL.
    """
    version, entry = source_version(), PAGE_TYPES[pages]
    line, columns = CACHE_LINE * 8 // entry.bitwidth, math.gcd(head_dim, 4 * LANES)
    scaled = pages == "int8"

    def body(calls, terms, scratch_address):
        assert version >= 0  # a constant of this function, which makes it part of the cache's key
        c, t = calls[0], terms[0]
        scratch = pointer(scratch_address, types.float32)
        buckets = pointer(scratch_address + 4 * (terms_floats(c.num_heads, head_dim) - SPAN), int32)
        cu_seqlens = pointer(c.cu_seqlens, int32)
        for user in range(c.num_users):
            for row in range(int64(cu_seqlens[user + 1]) - int64(cu_seqlens[user])):
                attend_query(
                    c, scratch, user, row, entry, head_dim, columns, line, scaled, pointwise, _add_terms, t, buckets
                )

    signature = void(from_dtype(CALL)[::1], from_dtype(TERMS)[::1], int64)
    options = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    return njit(signature, **options)(body)
