"""The gradients of `segment_attention` on a GPU: which kernels are launched on what, and the sums that they leave to the host.

Weights are computed again from the scores and lse2 (Dao, FlashAttention-2, 2023, section 3.1.2), never stored. Three kernels,
one file each: `attention_backward_query` (dq, delta, du, the time table), `attention_backward_key` (dk, dv),
`attention_backward_distance` (dr, dv of Transformer-XL, the position table). No atomics: every sum has a fixed order, so that two
runs agree to the bit. Nothing here reads a length back from the device.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton

from longrec.errors import ArgumentError
from longrec.kernels.attention_backward_distance import distance_gradient_kernel
from longrec.kernels.attention_backward_key import key_gradient_kernel
from longrec.kernels.attention_backward_plan import plan_backward, sum_parts
from longrec.kernels.attention_backward_query import query_gradient_kernel
from longrec.kernels.attention_plan import Tile
from longrec.kernels.shipped import Shipped, target_of
from longrec.kernels.types import AttentionKind, PagedMemory, PositionBias, RelativeTerms, TimeBias, bucket_of

__all__ = ["MAX_TIME_BUCKETS", "AttentionGradients", "segment_attention_backward", "shipped"]

MAX_TIME_BUCKETS = 4096  # sums that a program keeps in registers


class AttentionGradients(NamedTuple):
    """Gradients of `segment_attention`'s tensors, each in its tensor's shape and dtype; None where there is no such tensor.

    `k_pages` and `v_pages` are None too where memory enters without gradient.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    k_pages: torch.Tensor | None = None
    v_pages: torch.Tensor | None = None
    u: torch.Tensor | None = None
    v_relative: torch.Tensor | None = None
    r: torch.Tensor | None = None
    position_table: torch.Tensor | None = None
    time_table: torch.Tensor | None = None


def segment_attention_backward(
    grad_out: torch.Tensor,
    grad_lse2: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse2: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    window: int,
    scale: float | None = None,
    memory: PagedMemory | None = None,
    kind: AttentionKind = "softmax",
    relative: RelativeTerms | None = None,
    position_bias: PositionBias | None = None,
    time_bias: TimeBias | None = None,
    num_targets: torch.Tensor | None = None,
    memory_gradient: bool = False,
) -> AttentionGradients:
    """The gradients of `segment_attention`, whose arguments the others are; those are taken as checked by the forward.

    Products are accumulated in float32; weights and gradients of scores are rounded to q's dtype before a product.

    Args:
        grad_out: [T, Hq, D] in q's dtype, gradient of `out`.
        grad_lse2: [T, Hq] float32, gradient of `lse2`; None: zero. Not looked at for "silu".
        out, lse2: the forward's results.
        memory_gradient: whether memory's keys and values have gradients, or are constants as in Transformer-XL (Dai et
            al., 2019, section 3.2). Pages that several users list get the sum.

    Raises:
        ArgumentError: a gradient asked of quantised memory; more than MAX_TIME_BUCKETS time buckets.
    """
    if memory is not None and memory.k_pages.dtype != q.dtype:
        if memory_gradient:
            raise ArgumentError(
                "memory_gradient=True",
                f"memory in the queries' dtype {_name(q.dtype)}",
                _name(memory.k_pages.dtype),
                "quantised memory is a constant: pass memory_gradient=False",
            )
        memory = _dequantised(memory, q.dtype)
    if time_bias is not None and time_bias.table.shape[1] > MAX_TIME_BUCKETS:
        raise ArgumentError(
            "time_bias.table",
            f"at most {MAX_TIME_BUCKETS} buckets in training",
            str(time_bias.table.shape[1]),
            "lower fraction_bits",
        )
    memory_gradient = memory_gradient and memory is not None
    num_tokens, num_heads, head_dim = q.shape
    num_users, num_kv_heads = len(cu_seqlens) - 1, k.shape[1]
    listed, page_size = (len(memory.page_indices), memory.k_pages.shape[1]) if memory is not None else (0, 1)
    longest = max(num_tokens + listed * page_size, 1)  # no user has more events
    kinds = 1 if num_targets is None else 2
    plan = plan_backward(target_of(q.device), head_dim, q.itemsize, relative is not None)
    common = _arguments(
        q, k, v, cu_seqlens, window, longest, scale, memory, kind, relative, position_bias, time_bias, num_targets
    )
    grad_out = grad_out.contiguous()

    query_tiles = num_tokens // plan.query.block_m + kinds * num_users
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    delta = torch.empty_like(lse2)
    grad_u = _part(relative, q, query_tiles, num_heads, head_dim)
    lanes = 1 if time_bias is None else triton.next_power_of_2(time_bias.table.shape[1])
    grad_time = _part(time_bias, q, query_tiles, num_heads, lanes)
    query_gradient_kernel[(query_tiles, num_heads)](
        **common,
        out_ptr=out,
        grad_out_ptr=grad_out,
        lse2_ptr=lse2,
        grad_lse2_ptr=None if grad_lse2 is None else grad_lse2.contiguous(),
        grad_q_ptr=grad_q,
        delta_ptr=delta,
        grad_u_ptr=grad_u,
        grad_time_ptr=grad_time,
        TIME_LANES=lanes,
        **_launch(plan.query),
    )

    grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    listed_shape = (listed, page_size, num_kv_heads, head_dim)
    grad_k_listed, grad_v_listed = (q.new_zeros(listed_shape), q.new_zeros(listed_shape)) if memory_gradient else (None, None)
    keys = num_tokens + (listed * page_size if memory_gradient else 0)
    key_gradient_kernel[(keys // plan.key.block_n + kinds * num_users, num_kv_heads)](
        **common,
        grad_out_ptr=grad_out,
        lse2_ptr=lse2,
        delta_ptr=delta,
        grad_k_ptr=grad_k,
        grad_v_ptr=grad_v,
        grad_k_listed_ptr=grad_k_listed,
        grad_v_listed_ptr=grad_v_listed,
        **_launch(plan.key),
    )

    gradients = AttentionGradients(grad_q, grad_k, grad_v)
    if memory is not None and grad_k_listed is not None and grad_v_listed is not None:
        gradients = gradients._replace(
            k_pages=_by_page(memory.k_pages, memory.page_indices, grad_k_listed),
            v_pages=_by_page(memory.v_pages, memory.page_indices, grad_v_listed),
        )
    if time_bias is not None and grad_time is not None:
        table = grad_time.sum(0)[:, : time_bias.table.shape[1]]
        gradients = gradients._replace(time_table=table.to(time_bias.table.dtype))
    if relative is not None and grad_u is not None:
        gradients = gradients._replace(u=grad_u.sum(0).to(relative.u.dtype))
    if relative is None and position_bias is None:
        return gradients

    block = plan.distance.block_n
    num_tiles = num_tokens // block + kinds * num_users
    num_distances = min(window, longest)
    if relative is not None:
        num_distances = min(num_distances, len(relative.r))
    parts = sum_parts(num_distances, num_heads, num_tiles, block)
    blocks = triton.cdiv(num_distances, block)
    grad_r = _part(relative, q, parts, num_distances, num_heads, head_dim)
    grad_v_relative = _part(relative, q, parts, blocks, num_heads, head_dim)
    by_distance = _part(position_bias, q, parts, num_distances, num_heads)
    distance_gradient_kernel[(blocks, num_heads, parts)](
        **common,
        grad_out_ptr=grad_out,
        lse2_ptr=lse2,
        delta_ptr=delta,
        grad_r_ptr=grad_r,
        grad_v_relative_ptr=grad_v_relative,
        by_distance_ptr=by_distance,
        num_tiles=num_tiles,
        num_distances=num_distances,
        BLOCK=block,
        num_warps=plan.distance.num_warps,
        num_stages=plan.distance.num_stages,
    )
    if position_bias is not None and by_distance is not None:
        table = _by_bucket(by_distance.sum(0), position_bias)
        gradients = gradients._replace(position_table=table.to(position_bias.table.dtype))
    if relative is not None and grad_r is not None and grad_v_relative is not None:
        r = torch.zeros_like(relative.r, memory_format=torch.contiguous_format)
        r[:num_distances] = grad_r.sum(0)
        gradients = gradients._replace(
            r=r, v_relative=grad_v_relative.flatten(0, 1).sum(0).to(relative.v.dtype)
        )
    return gradients


def _arguments(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    window: int,
    longest: int,
    scale: float | None,
    memory: PagedMemory | None,
    kind: AttentionKind,
    relative: RelativeTerms | None,
    position_bias: PositionBias | None,
    time_bias: TimeBias | None,
    num_targets: torch.Tensor | None,
) -> dict[str, Any]:
    """What all three kernels take."""
    k_strides = memory.k_pages.stride() if memory is not None else (0, 0, 0, 1)
    v_strides = memory.v_pages.stride() if memory is not None else (0, 0, 0, 1)
    return {
        "q_ptr": q,
        "k_ptr": k,
        "v_ptr": v,
        "cu_seqlens_ptr": cu_seqlens,
        "num_targets_ptr": num_targets,
        "k_pages_ptr": memory.k_pages if memory is not None else None,
        "v_pages_ptr": memory.v_pages if memory is not None else None,
        "page_indptr_ptr": memory.page_indptr if memory is not None else None,
        "page_indices_ptr": memory.page_indices if memory is not None else None,
        "lengths_ptr": memory.lengths if memory is not None else None,
        "u_ptr": relative.u.contiguous() if relative is not None else None,
        "v_relative_ptr": relative.v.contiguous() if relative is not None else None,
        "r_ptr": relative.r if relative is not None else None,
        "position_ptr": position_bias.table.contiguous() if position_bias is not None else None,
        "time_ptr": time_bias.table.contiguous() if time_bias is not None else None,
        "query_seconds_ptr": time_bias.query_seconds if time_bias is not None else None,
        "key_seconds_ptr": time_bias.key_seconds if time_bias is not None else None,
        "memory_seconds_ptr": time_bias.memory_seconds if time_bias is not None and memory is not None else None,
        "stride_qt": q.stride(0),
        "stride_qh": q.stride(1),
        "stride_kt": k.stride(0),
        "stride_kh": k.stride(1),
        "stride_vt": v.stride(0),
        "stride_vh": v.stride(1),
        "stride_kp": k_strides[0],
        "stride_ks": k_strides[1],
        "stride_kph": k_strides[2],
        "stride_vp": v_strides[0],
        "stride_vs": v_strides[1],
        "stride_vph": v_strides[2],
        "stride_rr": relative.r.stride(0) if relative is not None else 0,
        "stride_rh": relative.r.stride(1) if relative is not None else 0,
        "num_users": len(cu_seqlens) - 1,
        "num_relative": len(relative.r) if relative is not None else 0,
        "position_buckets": position_bias.table.shape[1] if position_bias is not None else 0,
        "time_buckets": time_bias.table.shape[1] if time_bias is not None else 0,
        "window": min(window, longest),  # so that position + window stays within int32
        "scale": q.shape[2] ** -0.5 if scale is None else scale,
        "inverse_window": 1.0 / window,
        "SILU": kind == "silu",
        "GROUP": q.shape[1] // k.shape[1],
        "HEAD_DIM": q.shape[2],
        "PAGE_SIZE": memory.k_pages.shape[1] if memory is not None else 1,
        "POSITION_BITS": position_bias.fraction_bits if position_bias is not None else 0,
        "TIME_BITS": time_bias.fraction_bits if time_bias is not None else 0,
        "KINDS": 1 if num_targets is None else 2,
    }


def _launch(tile: Tile) -> dict[str, int]:
    return {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


def _part(of: object | None, like: torch.Tensor, *shape: int) -> torch.Tensor | None:
    """Zeros for the sums of programs, some of which find nothing to do; None where there is nothing to sum."""
    return None if of is None else like.new_zeros(shape, dtype=torch.float32)


def _by_page(pages: torch.Tensor, page_indices: torch.Tensor, listed: torch.Tensor) -> torch.Tensor:
    """Gradients of listed pages [N, S, Hkv, D] summed into pages [P, S, Hkv, D].

    By index_put_, which sorts the indices on a GPU; index_add_ would add the pages that users share in any order.
    """
    gradient = torch.zeros_like(pages, memory_format=torch.contiguous_format)
    return gradient.index_put_((page_indices.long(),), listed, accumulate=True)


def _by_bucket(by_distance: torch.Tensor, bias: PositionBias) -> torch.Tensor:
    """Sums by distance [distances, Hq] added up by bucket: [Hq, buckets] float32."""
    num_buckets = bias.table.shape[1]
    distance = torch.arange(len(by_distance), device=by_distance.device)
    buckets = bucket_of(distance, bias.fraction_bits, num_buckets)
    table = by_distance.new_zeros(num_buckets, by_distance.shape[1])
    return table.index_put_((buckets,), by_distance, accumulate=True).T.contiguous()


def _dequantised(memory: PagedMemory, dtype: torch.dtype) -> PagedMemory:
    """The listed pages in `dtype`, in the order in which they are listed. Takes memory, which inference never does."""
    indices = memory.page_indices.long()
    k_pages, v_pages = memory.k_pages[indices].to(torch.float32), memory.v_pages[indices].to(torch.float32)
    if memory.k_scale is not None and memory.v_scale is not None:
        k_pages, v_pages = k_pages * memory.k_scale[indices, ..., None], v_pages * memory.v_scale[indices, ..., None]
    order = torch.arange(len(indices), dtype=torch.int32, device=indices.device)
    return PagedMemory(k_pages.to(dtype), v_pages.to(dtype), memory.page_indptr, order, memory.lengths)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
