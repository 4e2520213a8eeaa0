"""The gradients of `segment_attention` on a GPU: which kernels are launched on what, and the sums that they leave to
the host.

Weights are computed again from the scores and lse2 (Dao, FlashAttention-2, 2023, section 3.1.2), never stored. Four
kernels, one file each, named by what a program stays with: `attention_backward_rows` (delta; dk and dv of targets),
`attention_backward_query` (dq, du, the time table), `attention_backward_key` (dk, dv), `attention_backward_distance`
(dr, dv of Transformer-XL, the position table). No atomics: every sum has a fixed order, so that two runs agree to the
bit. Nothing here reads a length back from the device.
"""

from typing import Any, NamedTuple

import torch
import triton

from longrec.errors import ArgumentError
from longrec.kernels.attention_backward_distance import distance_gradient_kernel
from longrec.kernels.attention_backward_key import key_gradient_kernel
from longrec.kernels.attention_backward_plan import BackwardPlan, BackwardTile, plan_backward, sum_parts
from longrec.kernels.attention_backward_query import query_gradient_kernel
from longrec.kernels.attention_backward_rows import row_gradient_kernel
from longrec.kernels.shipped import MAX_REGISTERS, target_of
from longrec.kernels.types import AttentionKind, PagedMemory, PositionBias, RelativeTerms, TimeBias, bucket_of

__all__ = ["MAX_TIME_BUCKETS", "AttentionGradients", "segment_attention_backward"]

MAX_TIME_BUCKETS = 4096  # sums that a program keeps in registers

Arguments = dict[str, Any]


class AttentionGradients(NamedTuple):
    """Gradients of `segment_attention`'s tensors, each in its tensor's shape and dtype; None where there is no such
    tensor.

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
    plan: BackwardPlan | None = None,
) -> AttentionGradients:
    """The gradients of `segment_attention`, whose arguments the others are; those are taken as checked by the forward.

    Products are accumulated in float32; weights and gradients of scores are rounded to q's dtype before a product.

    Args:
        grad_out: [T, Hq, D] in q's dtype, gradient of `out`.
        grad_lse2: [T, Hq] float32, gradient of `lse2`; None: zero. Not looked at for "silu".
        out, lse2: the forward's results.
        memory_gradient: whether memory's keys and values have gradients, or are constants as in Transformer-XL (Dai et
            al., 2019, section 3.2). Pages that several users list get the sum.
        plan: tiles; `plan_backward`'s by default.

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
        memory, time_bias = _dequantised(memory, time_bias, q.dtype)
    if time_bias is not None and time_bias.table.shape[1] > MAX_TIME_BUCKETS:
        raise ArgumentError(
            "time_bias.table",
            f"at most {MAX_TIME_BUCKETS} buckets in training",
            str(time_bias.table.shape[1]),
            "lower fraction_bits",
        )
    scale = q.shape[2] ** -0.5 if scale is None else scale
    if plan is None:
        biased = position_bias is not None or time_bias is not None
        plan = plan_backward(target_of(q.device), q.shape[2], q.itemsize, relative is not None, biased)
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    grad_own = None if num_targets is None else torch.zeros_like(lse2)
    arguments = {
        **_inputs(q, k, v, cu_seqlens, window, scale, kind, num_targets),
        **_memory_inputs(memory),
        **_score_inputs(relative, position_bias, time_bias),
        "out_ptr": out,
        "grad_out_ptr": grad_out.contiguous(),
        "lse2_ptr": lse2,
        "grad_lse2_ptr": None if grad_lse2 is None else grad_lse2.contiguous(),
        "delta_ptr": torch.empty_like(lse2),
        "grad_own_ptr": grad_own,
        "grad_q_ptr": grad_q,
        "grad_k_ptr": grad_k,
        "grad_v_ptr": grad_v,
    }
    # no user has more events than there are new ones and places in listed pages: positions + window stay within int32
    longest = max(len(q) + (0 if memory is None else len(memory.page_indices) * memory.k_pages.shape[1]), 1)
    arguments["window"] = min(window, longest)

    _launch(row_gradient_kernel, (_tiles(arguments, plan.rows.block_m), k.shape[1]), arguments, plan.rows)
    by_query = _launch_query(arguments, plan.query)
    by_page = _launch_key(arguments, plan.key, memory if memory_gradient else None)
    by_distance = _launch_distance(arguments, plan.distance)
    gradients = AttentionGradients(grad_q, grad_k, grad_v, *by_page)
    if relative is not None:
        u, v_relative, r = _relative_gradients(by_query, by_distance["grad_r_ptr"], grad_own, q, relative, scale)
        gradients = gradients._replace(u=u, v_relative=v_relative, r=r)
    if position_bias is not None:
        sums = by_distance["by_distance_ptr"].sum(0)  # [distances, Hq]
        if grad_own is not None:
            sums[0] += grad_own.sum(0)
        distance = torch.arange(len(sums), device=q.device)
        gradients = gradients._replace(position_table=_by_bucket(sums, distance, position_bias))
    if time_bias is not None:
        table = by_query["grad_time_ptr"].sum(0)[:, : time_bias.table.shape[1]].to(time_bias.table.dtype)
        if grad_own is not None:
            table += _by_bucket(grad_own, time_bias.query_seconds - time_bias.key_seconds, time_bias)
        gradients = gradients._replace(time_table=table)
    return gradients


def _inputs(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    window: int,
    scale: float,
    kind: AttentionKind,
    num_targets: torch.Tensor | None,
) -> Arguments:
    return {
        "q_ptr": q,
        "k_ptr": k,
        "v_ptr": v,
        "cu_seqlens_ptr": cu_seqlens,
        "num_targets_ptr": num_targets,
        "stride_qt": q.stride(0),
        "stride_qh": q.stride(1),
        "stride_kt": k.stride(0),
        "stride_kh": k.stride(1),
        "stride_vt": v.stride(0),
        "stride_vh": v.stride(1),
        "num_users": len(cu_seqlens) - 1,
        "scale": scale,
        "inverse_window": 1.0 / window,
        "SILU": kind == "silu",
        "GROUP": q.shape[1] // k.shape[1],
        "HEAD_DIM": q.shape[2],
        "KINDS": 1 if num_targets is None else 2,
    }


def _memory_inputs(memory: PagedMemory | None) -> Arguments:
    k_strides, v_strides = (
        ((0, 0, 0), (0, 0, 0)) if memory is None else (memory.k_pages.stride(), memory.v_pages.stride())
    )
    return {
        "k_pages_ptr": None if memory is None else memory.k_pages,
        "v_pages_ptr": None if memory is None else memory.v_pages,
        "page_indptr_ptr": None if memory is None else memory.page_indptr,
        "page_indices_ptr": None if memory is None else memory.page_indices,
        "lengths_ptr": None if memory is None else memory.lengths,
        "stride_kp": k_strides[0],
        "stride_ks": k_strides[1],
        "stride_kph": k_strides[2],
        "stride_vp": v_strides[0],
        "stride_vs": v_strides[1],
        "stride_vph": v_strides[2],
        "PAGE_SIZE": 1 if memory is None else memory.k_pages.shape[1],
    }


def _score_inputs(
    relative: RelativeTerms | None, position_bias: PositionBias | None, time_bias: TimeBias | None
) -> Arguments:
    return {
        "u_ptr": None if relative is None else relative.u.contiguous(),
        "v_relative_ptr": None if relative is None else relative.v.contiguous(),
        "r_ptr": None if relative is None else relative.r,
        "stride_rr": 0 if relative is None else relative.r.stride(0),
        "stride_rh": 0 if relative is None else relative.r.stride(1),
        "num_relative": 0 if relative is None else len(relative.r),
        "position_ptr": None if position_bias is None else position_bias.table.contiguous(),
        "position_buckets": 0 if position_bias is None else position_bias.table.shape[1],
        "POSITION_BITS": 0 if position_bias is None else position_bias.fraction_bits,
        "time_ptr": None if time_bias is None else time_bias.table.contiguous(),
        "time_buckets": 0 if time_bias is None else time_bias.table.shape[1],
        "TIME_BITS": 0 if time_bias is None else time_bias.fraction_bits,
        "query_seconds_ptr": None if time_bias is None else time_bias.query_seconds,
        "key_seconds_ptr": None if time_bias is None else time_bias.key_seconds,
        "memory_seconds_ptr": None if time_bias is None else time_bias.memory_seconds,
    }


def _tiles(arguments: Arguments, block: int) -> int:
    """Numbers that tiles of query rows may have: see `attention_backward_tiles`."""
    return len(arguments["q_ptr"]) // block + int(arguments["KINDS"]) * int(arguments["num_users"])


def _launch(kernel: Any, grid: tuple[int, ...], arguments: Arguments, tile: BackwardTile) -> None:
    """Launch a kernel with those of `arguments` that it takes."""
    arguments = arguments | {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_D": tile.block_d}
    if 0 not in grid:
        taken = {name: arguments[name] for name in kernel.arg_names}
        kernel[grid](**taken, num_warps=tile.num_warps, num_stages=tile.num_stages, maxnreg=MAX_REGISTERS)


def _launch_query(arguments: Arguments, tile: BackwardTile) -> Arguments:
    """Write dq; returns the parts of du, of dv and of the time table."""
    q = arguments["q_ptr"]
    tiles, num_heads, head_dim = _tiles(arguments, tile.block_m), q.shape[1], q.shape[2]
    lanes = triton.next_power_of_2(max(arguments["time_buckets"], 1))
    parts = {  # zeros: some programs find nothing to do
        "grad_u_ptr": _zeros(arguments["r_ptr"], tiles, num_heads, head_dim),
        "grad_v_relative_ptr": _zeros(arguments["r_ptr"], tiles, num_heads, head_dim),
        "grad_time_ptr": _zeros(arguments["time_ptr"], tiles, num_heads, lanes),
    }
    _launch(query_gradient_kernel, (tiles, num_heads), arguments | parts | {"TIME_LANES": lanes}, tile)
    return parts


def _launch_key(
    arguments: Arguments, tile: BackwardTile, memory: PagedMemory | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Write dk and dv; returns the gradients of k_pages and v_pages, if `memory` is given.

    Pages are summed by index_put_, which sorts the indices on a GPU; index_add_ would add shared pages in any order.
    """
    k, num_users = arguments["k_ptr"], int(arguments["num_users"])
    outputs: Arguments = {"grad_k_listed_ptr": None, "grad_v_listed_ptr": None}
    keys = len(k)
    if memory is not None:
        listed = (len(memory.page_indices), *memory.k_pages.shape[1:])
        outputs = {name: k.new_zeros(listed) for name in outputs}
        keys += listed[0] * listed[1]
    _launch(key_gradient_kernel, (keys // tile.block_n + num_users, k.shape[1]), arguments | outputs, tile)
    if memory is None:
        return None, None
    indices = (memory.page_indices.long(),)
    k_pages, v_pages = (
        k.new_zeros(memory.k_pages.shape).index_put_(indices, part, accumulate=True) for part in outputs.values()
    )
    return k_pages, v_pages


def _launch_distance(arguments: Arguments, tile: BackwardTile | None) -> Arguments:
    """Returns the parts of dr and of the sums by distance; nothing without relative terms and position table."""
    relative, position = arguments["r_ptr"], arguments["position_ptr"]
    if tile is None or (relative is None and position is None):
        return {}
    num_heads, head_dim = arguments["q_ptr"].shape[1:]
    distances = int(arguments["window"])
    if relative is not None:
        distances = min(distances, len(relative))
    blocks, tiles = triton.cdiv(distances, tile.block_n), _tiles(arguments, tile.block_n)
    parts = sum_parts(blocks * num_heads, tiles)
    outputs = {
        "grad_r_ptr": _zeros(relative, parts, distances, num_heads, head_dim),
        "by_distance_ptr": _zeros(position, parts, distances, num_heads),
    }
    sizes = {"num_tiles": tiles, "num_distances": distances}
    _launch(distance_gradient_kernel, (blocks, num_heads, parts), arguments | outputs | sizes, tile)
    return outputs


def _relative_gradients(
    by_query: Arguments,
    grad_r: torch.Tensor,
    grad_own: torch.Tensor | None,
    q: torch.Tensor,
    relative: RelativeTerms,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """du, dv and dr: the kernels' parts, and in dr the pairs of targets with themselves, which stand at distance 0."""
    u, v = by_query["grad_u_ptr"].sum(0), by_query["grad_v_relative_ptr"].sum(0)  # [Hq, D]
    r = torch.zeros(relative.r.shape, dtype=torch.float32, device=q.device)  # [R, Hq, D]
    r[: grad_r.shape[1]] = grad_r.sum(0)
    if grad_own is not None:
        r[0] += torch.einsum("th,thd->hd", grad_own * scale, q.float() + relative.v.float())
    return u.to(relative.u.dtype), v.to(relative.v.dtype), r.to(relative.r.dtype)


def _by_bucket(values: torch.Tensor, distance: torch.Tensor, bias: PositionBias | TimeBias) -> torch.Tensor:
    """Values [n, Hq] float32 summed by bucket of their distances [n]: [Hq, num_buckets]; see `_launch_key` on the
    order."""
    num_buckets = bias.table.shape[1]
    buckets = bucket_of(distance.clamp(min=0), bias.fraction_bits, num_buckets)
    table = values.new_zeros(num_buckets, values.shape[1])
    return table.index_put_((buckets,), values, accumulate=True).T.to(bias.table.dtype)


def _zeros(of: torch.Tensor | None, *shape: int) -> torch.Tensor | None:
    return None if of is None else torch.zeros(shape, dtype=torch.float32, device=of.device)


def _dequantised(
    memory: PagedMemory, time_bias: TimeBias | None, dtype: torch.dtype
) -> tuple[PagedMemory, TimeBias | None]:
    """The listed pages in `dtype`, in the order in which they are listed, which takes room that a forward doesn't."""
    indices = memory.page_indices.long()
    k_pages, v_pages = memory.k_pages[indices].to(torch.float32), memory.v_pages[indices].to(torch.float32)
    if memory.k_scale is not None and memory.v_scale is not None:
        k_pages, v_pages = k_pages * memory.k_scale[indices, ..., None], v_pages * memory.v_scale[indices, ..., None]
    order = torch.arange(len(indices), dtype=torch.int32, device=indices.device)
    if time_bias is not None and time_bias.memory_seconds is not None:
        time_bias = time_bias._replace(memory_seconds=time_bias.memory_seconds[indices])
    return PagedMemory(k_pages.to(dtype), v_pages.to(dtype), memory.page_indptr, order, memory.lengths), time_bias


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
