"""A transformer block in PyTorch, composed of the other operators: for any new events, or for one of each user."""

from typing import NamedTuple

import torch
from torch.nn.functional import linear, rms_norm, silu

from longrec.kernels.reference.append import append_memory, as_stored
from longrec.kernels.reference.attention import segment_attention
from longrec.kernels.types import PagedMemory

__all__ = ["BlockWeights", "block", "block_decode"]


class BlockWeights(NamedTuple):
    """Weights of one block, as `nn.Linear` holds them ([out, in]). Hq * D need not be d.

    Args:
        attention_norm, feed_forward_norm: [d].
        qkv: [(Hq + 2 Hkv) * D, d], the heads of q, then of k, then of v.
        out: [d, Hq * D].
        gate_up: [2 F, d], the gate's rows, then those that it multiplies.
        down: [d, F].
    """

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    feed_forward_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


def block(
    x: torch.Tensor,
    weights: BlockWeights,
    positions: torch.Tensor,
    cu_seqlens: torch.Tensor,
    slots: torch.Tensor,
    memory: PagedMemory,
    *,
    window: int,
    rotary_base: float,
    eps: float = 1e-6,
) -> torch.Tensor:
    """New events through one block, whose keys and values are appended to the users' memories.

        y = x + attention(rms_norm(x)) out^T,  result = y + (silu(gate(rms_norm(y))) * up(rms_norm(y))) down^T

    Events attend to each other's keys and values as pages hold them.

    Args:
        x: [T, d]. positions, slots: [T] int64; cu_seqlens: [B + 1] int32.
        weights, memory, window, rotary_base, eps: as in `longrec.kernels.block_decode.block_decode`; pages may be
            narrower than x, int8 with scales among them.

    Returns:
        [T, d].
    """
    head_dim, num_kv_heads = memory.k_pages.shape[-1], memory.k_pages.shape[-2]
    num_heads = weights.out.shape[1] // head_dim
    dim = x.shape[1:]

    qkv = linear(rms_norm(x, dim, weights.attention_norm, eps), weights.qkv).unflatten(-1, (-1, head_dim))
    q, k, v = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    q, k = append_memory(
        q, k, v, positions, slots, memory.k_pages, memory.v_pages,
        rotary_base=rotary_base, k_scale=memory.k_scale, v_scale=memory.v_scale,
    )  # fmt: skip
    if memory.k_pages.dtype != x.dtype:
        k, v = as_stored(k, memory.k_pages.dtype), as_stored(v, memory.v_pages.dtype)
    attended, _ = segment_attention(q, k, v, cu_seqlens, window=window, memory=memory)  # [T, Hq, D]

    y = x + linear(attended.flatten(1), weights.out)
    gate, up = linear(rms_norm(y, dim, weights.feed_forward_norm, eps), weights.gate_up).chunk(2, dim=-1)
    return y + linear(silu(gate) * up, weights.down)


def block_decode(
    x: torch.Tensor,
    weights: BlockWeights,
    positions: torch.Tensor,
    slots: torch.Tensor,
    memory: PagedMemory,
    *,
    window: int,
    rotary_base: float,
    eps: float = 1e-6,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """One new event of each user through one block, whose keys and values are appended to the user's memory.

    Arguments are described at `longrec.kernels.block_decode.block_decode`.
    """
    cu_seqlens = torch.arange(len(x) + 1, dtype=torch.int32, device=x.device)
    result = block(x, weights, positions, cu_seqlens, slots, memory, window=window, rotary_base=rotary_base, eps=eps)
    return result if out is None else out.copy_(result)
