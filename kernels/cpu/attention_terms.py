"""`segment_attention` over paged memory on a CPU with extra terms in the scores: by distance, elapsed time, or
Transformer-XL's. What `attention_terms_body` takes.

What depends on a query, a head and a distance (the position bias, and the relative term, which PyTorch multiplies out)
is laid out by distance and added; elapsed time is looked up key by key.
"""

import functools
from typing import Any

import torch

from longrec.kernels.cpu.attention import LOG2_E, attention_call, jitted, pack
from longrec.kernels.types import AttentionKind, PagedMemory, PositionBias, RelativeTerms, TimeBias, bucket_of

__all__ = ["attend_with_terms", "fits_terms"]


def fits_terms(
    q: torch.Tensor, relative: RelativeTerms | None, position_bias: PositionBias | None, time_bias: TimeBias | None
) -> bool:
    """Whether `attend_with_terms` takes these, where `fits_paged` takes the rest: float32, no gradient."""
    tables = [bias.table for bias in (position_bias, time_bias) if bias is not None]
    terms = [*(() if relative is None else relative), *tables]
    return all(term.dtype == torch.float32 for term in terms) and not (
        torch.is_grad_enabled() and any(term.requires_grad for term in (q, *terms))
    )


def attend_with_terms(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    window: int,
    scale: float,
    memory: PagedMemory,
    kind: AttentionKind,
    relative: RelativeTerms | None = None,
    position_bias: PositionBias | None = None,
    time_bias: TimeBias | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`segment_attention` with memory, without targets, where `fits_paged` and `fits_terms`; on the calling thread.

    Nothing is checked here, as in `attend_paged`.

    Args:
        q: [T, Hq, D]. k, v: [T, Hkv, D].
        cu_seqlens: [B + 1] int32.
        window, scale, memory, kind, relative, position_bias, time_bias: as in the reference.

    Returns:
        out [T, Hq, D], lse2 [T, Hq].
    """
    num_tokens, num_heads, head_dim = q.shape
    out, lse2 = q.new_empty(q.shape), q.new_empty(num_tokens, num_heads)
    if not num_tokens:
        return out, lse2
    unit = 1.0 if kind == "silu" else LOG2_E  # of the body's scores
    longest = min(window, int((memory.lengths + cu_seqlens.diff()).max()))  # distances that occur
    # what is made here must live until the body has run
    added = _by_distance(q, longest, scale, unit, relative, position_bias)
    places = (0, 0, 0, 0) if added is None else (added.data_ptr(), *added.stride())
    times: tuple[int, ...] = (0,) * 7
    if time_bias is not None:
        table = (time_bias.table * unit).contiguous()
        seconds = (time_bias.query_seconds, time_bias.key_seconds)
        assert all(part.is_contiguous() for part in seconds), "events are packed"
        stored = time_bias.memory_seconds
        assert stored is not None, "the memory is checked"
        times = (
            *(table.data_ptr(), table.shape[1], time_bias.fraction_bits),
            *(part.data_ptr() for part in seconds),
            *(stored.data_ptr(), stored.stride(0)),
        )
    if relative is not None:
        q = q + relative.u
    body, module = _body(head_dim, memory.k_pages.dtype, kind), jitted("attention_terms_body")
    call = attention_call(q, k, v, cu_seqlens, out, lse2, memory, window, scale * unit)
    scratch = q.new_empty(int(module.terms_floats(num_heads, head_dim)))
    body(call, pack(module.TERMS, *places, *times, 0.0), scratch.data_ptr())
    return out, lse2


def _by_distance(
    q: torch.Tensor,
    longest: int,
    scale: float,
    unit: float,
    relative: RelativeTerms | None,
    position_bias: PositionBias | None,
) -> torch.Tensor | None:
    """[T, Hq, longest], what is added to a query's scores of the key at each distance, in `unit`s; None: nothing."""
    added: torch.Tensor | None = None
    if relative is not None:
        r = relative.r[:longest].permute(1, 2, 0)  # [Hq, D, longest]
        added = ((q + relative.v).transpose(0, 1) @ r).transpose(0, 1) * (scale * unit)
    if position_bias is not None:
        table = position_bias.table
        bias = table[:, bucket_of(torch.arange(longest), position_bias.fraction_bits, table.shape[1])] * unit
        added = bias.expand(len(q), -1, -1) if added is None else added + bias
    return added


@functools.cache
def _body(head_dim: int, dtype: torch.dtype, kind: AttentionKind) -> Any:
    """`attention_terms_body.terms_body` for such pages.

    Raises:
        MachineError: numba is missing.
    """
    name = str(dtype).removeprefix("torch.")
    return jitted("attention_terms_body").terms_body(head_dim, name, kind == "silu")
