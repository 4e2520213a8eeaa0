"""What is handed to the operators beside plain tensors: paged memory, and how a score may depend on position or time.

Types only, and the one rule by which distances become buckets. Shapes: T new events of the batch, B users, Hq query and
Hkv key/value heads, D head_dim, P pages of S events.
"""

from typing import Literal, NamedTuple

import torch

__all__ = ["AttentionKind", "PagedMemory", "PositionBias", "RelativeTerms", "TimeBias", "bucket_of"]

AttentionKind = Literal["softmax", "silu"]

_FLOAT32_FRACTION_BITS = 23
_LARGEST_DISTANCE = 1 << 30  # distances are cut here, so that adding 2^fraction_bits can't overflow int32


class PagedMemory(NamedTuple):
    """One layer's cached keys and values of the B users of a batch.

    User b's memory is the `lengths[b]` events before its new ones, oldest first, in the pages
    `page_indices[page_indptr[b] : page_indptr[b + 1]]`, S events a page; only the last page may be part full.

    Args:
        k_pages, v_pages: [P, S, Hkv, D] in the queries' dtype, or int8 or float8_e4m3fn with scales; free pages may
            hold anything, NaN included.
        page_indptr: [B + 1] int32, rising, from 0.
        page_indices: [N] int32, each in 0..P-1.
        lengths: [B] int32.
        k_scale, v_scale: [P, S, Hkv] float32, a key or value is its page's entry times its scale; both or neither.
    """

    k_pages: torch.Tensor
    v_pages: torch.Tensor
    page_indptr: torch.Tensor
    page_indices: torch.Tensor
    lengths: torch.Tensor
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None


class RelativeTerms(NamedTuple):
    """Relative positions of Transformer-XL (Dai et al., 2019, section 3.3): the score of query i and key j becomes

        scale * ((q_i + u) . k_j + (q_i + v) . r[i - j])

    Args:
        u, v: [Hq, D] in the queries' dtype.
        r: [R, Hq, D], row d for distance d; R at least the window, or at least the longest memory + new events.
    """

    u: torch.Tensor
    v: torch.Tensor
    r: torch.Tensor


class PositionBias(NamedTuple):
    """A learned bias per head and bucket of distance, added to the scaled score: table[h, bucket_of(i - j)].

    Args:
        table: [Hq, num_buckets], float; the last bucket holds every longer distance.
        fraction_bits: of `bucket_of`. With 2^fraction_bits >= num_buckets each distance has a bucket of its own.
    """

    table: torch.Tensor
    fraction_bits: int


class TimeBias(NamedTuple):
    """A learned bias per head and bucket of elapsed time: table[h, bucket_of(max(query time - key time, 0))].

    Times are integers of one clock, seconds as a rule; int32, and only differences count, so that unix seconds past
    2038 may wrap. A query's time may differ from its event's, as in HSTU, where it is that of the next event.

    Args:
        table: [Hq, num_buckets], float; the last bucket holds every longer time.
        fraction_bits: of `bucket_of`.
        query_seconds, key_seconds: [T] int32, of the new events.
        memory_seconds: [P, S] int32, of the events in memory's pages; None without memory.
    """

    table: torch.Tensor
    fraction_bits: int
    query_seconds: torch.Tensor
    key_seconds: torch.Tensor
    memory_seconds: torch.Tensor | None = None


def bucket_of(distance: torch.Tensor, fraction_bits: int, num_buckets: int) -> torch.Tensor:
    """Log-linear bucket of a distance: the first 2^f have one each, then every octave is cut into 2^f equal parts.

    It is the exponent and the top f bits of the fraction of float32(distance + 2^f), so that kernels and PyTorch agree
    to the bit, which a rounded logarithm does not promise.

    Args:
        distance: int32 or int64, >= 0; more than 2^30 counts as 2^30.
        fraction_bits: f, 0..16.
        num_buckets: larger buckets become num_buckets - 1.

    Returns:
        int64, in distance's shape.
    """
    first = 1 << fraction_bits
    shift = _FLOAT32_FRACTION_BITS - fraction_bits
    bits = (distance.clamp(max=_LARGEST_DISTANCE) + first).to(torch.float32).view(torch.int32)
    bucket = (bits >> shift) - ((127 + fraction_bits) << fraction_bits)
    return bucket.clamp(max=num_buckets - 1).long()
