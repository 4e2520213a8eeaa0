"""`segment_attention` on a GPU: checks, plan, launches. The formula and the kernels are in `attention_forward`."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import triton

from longrec.kernels.attention_checks import AttentionCall, check_attention, check_attention_values
from longrec.kernels.attention_forward import attend_kernel, merge_kernel
from longrec.kernels.attention_plan import AttentionPlan, AttentionShape, plan_attention
from longrec.kernels.shipped import MAX_REGISTERS, target_of
from longrec.kernels.types import AttentionKind, PagedMemory, PositionBias, RelativeTerms, TimeBias

__all__ = [
    "AttentionBuffers",
    "Launch",
    "allocate_attention",
    "call_of",
    "launches",
    "plan_of",
    "segment_attention",
]

LOG2_E = 1.0 / math.log(2.0)
MAX_WINDOW = 1 << 30  # a longer window sees no more, and would overflow int32
CPU_MULTIPROCESSORS = 132  # an H100's, so that the interpreter cuts work as an H100 would
MERGE_PARTS = 16  # parts that the merge reads at once
MERGE_WARPS = 2


class Launch(NamedTuple):
    """One launch of a kernel."""

    fn: Any
    grid: tuple[int, int, int]
    arguments: Mapping[str, Any]
    num_warps: int
    num_stages: int


class AttentionBuffers(NamedTuple):
    """What `segment_attention` writes; made once, a step allocates nothing, and a CUDA graph keeps its pointers.

    Args:
        out: [T, Hq, D] in q's dtype. lse2: [T, Hq] float32.
        part_out: [parts, B, short_rows, Hq, D] in q's dtype. part_lse2: [parts, B, short_rows, Hq] float32; both None
            where the plan cuts no memory.
    """

    out: torch.Tensor
    lse2: torch.Tensor
    part_out: torch.Tensor | None = None
    part_lse2: torch.Tensor | None = None


def allocate_attention(plan: AttentionPlan, num_tokens: int, num_users: int, q: torch.Tensor) -> AttentionBuffers:
    """Buffers for calls of num_tokens new events of num_users users under `plan`, with q's heads, dtype and device."""
    num_heads, head_dim = q.shape[1:]
    out = q.new_empty(num_tokens, num_heads, head_dim)
    lse2 = q.new_empty(num_tokens, num_heads, dtype=torch.float32)
    if plan.max_parts == 1:
        return AttentionBuffers(out, lse2)
    rows = (plan.max_parts, num_users, plan.short_rows, num_heads)
    return AttentionBuffers(out, lse2, q.new_empty(*rows, head_dim), q.new_empty(rows, dtype=torch.float32))


def segment_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
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
    max_new: int | None = None,
    max_memory: int | None = None,
    plan: AttentionPlan | None = None,
    buffers: AttentionBuffers | None = None,
    validate: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of ragged new events over their users' memory and themselves: see the reference for its meaning.

    Online softmax in tiles (Dao, FlashAttention-2, 2023), the memory cut into parts for short appends (Flash-Decoding,
    2023), Transformer-XL's relative shift (Dai et al., 2019, appendix B) in a tile. Scores, sums and lse2 are float32.

    Args:
        q: [T, Hq, D], D one of 16, 32, 64, 128, 256; bfloat16, float16 or float32, dense in D.
        k, v: [T, Hkv, D] like q; Hq a multiple of Hkv.
        cu_seqlens: [B + 1] int32.
        window: events that a query sees, itself included.
        scale: of the scores, above 0; 1 / sqrt(D) by default.
        memory: pages of 16, 32, 64 or 128 events in q's dtype, or int8 or float8_e4m3fn with scales; None: no past.
        kind: "softmax" or "silu". relative, position_bias, time_bias: as in the reference, tables in float32.
        num_targets: [B] int32, 0..1024 and at most the user's new events.
        max_new, max_memory: upper bounds, for every user, of new events and of events in memory. They size the grid and
            choose tiles; without them T and the page table's size stand in, which costs empty programs.
        plan, buffers: prepared ones, for a CUDA graph; `plan_attention` and `allocate_attention` by default.
        validate: also check values (offsets, lengths, page indices, targets), which makes the host wait for the device.

    Returns:
        out [T, Hq, D] in q's dtype and lse2 [T, Hq] float32, base 2: -inf where a row sees no key; 0 for "silu".

    Raises:
        ArgumentError: shapes, dtypes, devices or strides that don't fit; with `validate`, values too.
    """
    call = call_of(
        q,
        k,
        v,
        cu_seqlens,
        window=window,
        scale=scale,
        memory=memory,
        kind=kind,
        relative=relative,
        position_bias=position_bias,
        time_bias=time_bias,
        num_targets=num_targets,
        max_new=max_new,
        max_memory=max_memory,
    )
    check_attention(call)
    if validate:
        check_attention_values(call)
    if plan is None:
        plan = plan_of(call)
    if buffers is None:
        buffers = allocate_attention(plan, len(q), len(cu_seqlens) - 1, q)
    if len(q):
        for launch in launches(call, plan, buffers):
            launch.fn[launch.grid](
                **launch.arguments, num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=MAX_REGISTERS
            )
    return buffers.out, buffers.lse2


def call_of(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
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
    max_new: int | None = None,
    max_memory: int | None = None,
) -> AttentionCall:
    """The arguments of `segment_attention` with its defaults filled in; nothing is checked."""
    held = 0
    if memory is not None and memory.k_pages.ndim == 4:
        held = memory.page_indices.numel() * memory.k_pages.shape[1]
    return AttentionCall(
        q=q,
        k=k,
        v=v,
        cu_seqlens=cu_seqlens,
        window=min(window, MAX_WINDOW),
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        memory=memory,
        kind=kind,
        relative=relative,
        position_bias=position_bias,
        time_bias=time_bias,
        num_targets=num_targets,
        max_new=len(q) if max_new is None else min(max_new, len(q)),
        max_memory=held if max_memory is None else min(max_memory, held),
    )


def plan_of(call: AttentionCall, target: int | None = None) -> AttentionPlan:
    """The plan for a call's shapes and bounds on its device, or on a device of `target`."""
    num_heads, head_dim = call.q.shape[1:]
    shape = AttentionShape(
        num_users=len(call.cu_seqlens) - 1,
        max_new=call.max_new,
        max_memory=call.max_memory,
        num_heads=num_heads,
        num_kv_heads=call.k.shape[1],
        head_dim=head_dim,
        itemsize=call.q.itemsize,
        page_itemsize=call.q.itemsize if call.memory is None else call.memory.k_pages.itemsize,
        window=call.window,
        relative=call.relative is not None,
        biased=call.position_bias is not None or call.time_bias is not None,
    )
    multiprocessors = CPU_MULTIPROCESSORS
    if call.q.is_cuda:
        multiprocessors = torch.cuda.get_device_properties(call.q.device).multi_processor_count
    return plan_attention(shape, target or target_of(call.q.device), multiprocessors)


def launches(call: AttentionCall, plan: AttentionPlan, buffers: AttentionBuffers) -> Iterator[Launch]:
    """What a call launches, in order."""
    num_tokens, num_heads, head_dim = call.q.shape
    num_users = len(call.cu_seqlens) - 1
    heads = 1 if call.relative is not None else num_heads // call.k.shape[1]  # that share a tile
    arguments = _arguments(call, plan, buffers)
    for tile, split in ((plan.tiled, False), (plan.split, True)):
        if tile is None:
            continue
        queries = tile.block_m // heads
        tiles = num_users * triton.cdiv(plan.short_rows, queries) if split else num_tokens // queries + num_users
        constants = {
            "SPLIT": split,
            "HEADS": heads,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_D": tile.block_d or head_dim,
        }
        grid = (tiles, num_heads // heads, plan.max_parts if split else 1)
        yield Launch(attend_kernel, grid, {**arguments, **constants}, tile.num_warps, tile.num_stages)
    if plan.split is not None and plan.max_parts > 1 and call.memory is not None:
        merge = {
            "out_ptr": buffers.out,
            "lse2_ptr": buffers.lse2,
            "part_out_ptr": buffers.part_out,
            "part_lse2_ptr": buffers.part_lse2,
            "cu_seqlens_ptr": call.cu_seqlens,
            "num_targets_ptr": call.num_targets,
            "lengths_ptr": call.memory.lengths,
            "window": call.window,
            "num_users": num_users,
            "short_rows": plan.short_rows,
            "max_parts": plan.max_parts,
            "min_part_tiles": plan.min_part_tiles,
            "SILU": call.kind == "silu",
            "BLOCK_Q": plan.split.block_m // heads,
            "BLOCK_N": plan.split.block_n,
            "BLOCK_P": MERGE_PARTS,
            "HEAD_DIM": head_dim,
        }
        yield Launch(merge_kernel, (num_users * plan.short_rows, num_heads, 1), merge, MERGE_WARPS, 1)


def _arguments(call: AttentionCall, plan: AttentionPlan, buffers: AttentionBuffers) -> dict[str, Any]:
    """What both launches pass alike."""
    memory, relative, position, time = call.memory, call.relative, call.position_bias, call.time_bias
    k_pages, v_pages = (None, None) if memory is None else (_bits(memory.k_pages), _bits(memory.v_pages))
    k_page_strides = (0, 0, 0) if k_pages is None else k_pages.stride()[:3]
    v_page_strides = (0, 0, 0) if v_pages is None else v_pages.stride()[:3]
    silu = call.kind == "silu"
    return {
        "q_ptr": call.q,
        "k_ptr": call.k,
        "v_ptr": call.v,
        "out_ptr": buffers.out,
        "lse2_ptr": buffers.lse2,
        "part_out_ptr": buffers.part_out,
        "part_lse2_ptr": buffers.part_lse2,
        "cu_seqlens_ptr": call.cu_seqlens,
        "num_targets_ptr": call.num_targets,
        "k_pages_ptr": k_pages,
        "v_pages_ptr": v_pages,
        "k_scale_ptr": None if memory is None else memory.k_scale,
        "v_scale_ptr": None if memory is None else memory.v_scale,
        "page_indptr_ptr": None if memory is None else memory.page_indptr,
        "page_indices_ptr": None if memory is None else memory.page_indices,
        "lengths_ptr": None if memory is None else memory.lengths,
        "u_ptr": None if relative is None else relative.u,
        "v_relative_ptr": None if relative is None else relative.v,
        "r_ptr": None if relative is None else relative.r,
        "position_ptr": None if position is None else position.table,
        "time_ptr": None if time is None else time.table,
        "query_seconds_ptr": None if time is None else time.query_seconds,
        "key_seconds_ptr": None if time is None else time.key_seconds,
        "memory_seconds_ptr": None if time is None else time.memory_seconds,
        "stride_qt": call.q.stride(0),
        "stride_qh": call.q.stride(1),
        "stride_kt": call.k.stride(0),
        "stride_kh": call.k.stride(1),
        "stride_vt": call.v.stride(0),
        "stride_vh": call.v.stride(1),
        "stride_kp": k_page_strides[0],
        "stride_ks": k_page_strides[1],
        "stride_kph": k_page_strides[2],
        "stride_vp": v_page_strides[0],
        "stride_vs": v_page_strides[1],
        "stride_vph": v_page_strides[2],
        "stride_rr": 0 if relative is None else relative.r.stride(0),
        "stride_rh": 0 if relative is None else relative.r.stride(1),
        "scale": call.scale if silu else call.scale * LOG2_E,
        "window": call.window,
        "num_users": len(call.cu_seqlens) - 1,
        "num_kv_heads": call.k.shape[1],
        "num_relative": 0 if relative is None else len(relative.r),
        "position_buckets": 0 if position is None else position.table.shape[1],
        "time_buckets": 0 if time is None else time.table.shape[1],
        "short_rows": plan.short_rows,
        "max_parts": plan.max_parts,
        "min_part_tiles": plan.min_part_tiles,
        "SILU": silu,
        "GROUP": call.q.shape[1] // call.k.shape[1],
        "HEAD_DIM": call.q.shape[2],
        "PAGE_SIZE": 1 if memory is None else memory.k_pages.shape[1],
        "position_bits": 0 if position is None else position.fraction_bits,
        "time_bits": 0 if time is None else time.fraction_bits,
    }


def _bits(pages: torch.Tensor) -> torch.Tensor:
    """float8 as bytes, which the kernel decodes itself: not every target can load it."""
    return pages.view(torch.uint8) if pages.dtype == torch.float8_e4m3fn else pages
