"""A whole transformer block for one new event a user, in one launch.

    y = x + attention(rms_norm(x)) out^T,  result = y + (silu(gate(rms_norm(y))) * up(rms_norm(y))) down^T

Small recommenders (d <= 128, two to four layers) spend a decode step in launches: norm, qkv, rotary and append,
attention, projection, norm, gate and up, down make eight a layer where this makes one. A program takes a tile of users
through the block, so each weight is read once by it; the tile is one user as long as users are fewer than the device
wants programs, and grows with the batch.

Holds the operator, its checks and its launch; the kernel is in `block_decode_kernel`. Not for quantised memory.
"""

import math

import torch
import triton

from longrec.errors import ArgumentError
from longrec.kernels.block_decode_kernel import (
    NUM_STAGES,
    TYPES,
    block_decode_kernel,
    choose_block_b,
    choose_tile,
    constexprs,
)
from longrec.kernels.checks import check_tensor, check_values
from longrec.kernels.reference.block import BlockWeights
from longrec.kernels.reference.block import block_decode as block_decode_reference
from longrec.kernels.types import PagedMemory

__all__ = [
    "BlockWeights",
    "block_decode",
    "block_decode_fits",
    "block_decode_reference",
    "block_decode_triton",
]

LOG2_E = 1.0 / math.log(2.0)
HEAD_DIMS, GROUPS, PAGE_SIZES = (16, 32, 64), (1, 2, 4, 8), (16, 32, 64, 128)
MAX_DIM, MAX_DIM_FLOAT32 = 128, 32  # float32's products go through the matrix unit in three parts, and spill beyond
MAX_WINDOW = 1 << 30  # a longer window sees no more, and would overflow int32
CPU_MULTIPROCESSORS = 132  # an H100's, so that the interpreter cuts work as an H100 would


def block_decode_fits(
    dim: int, num_heads: int, num_kv_heads: int, head_dim: int, page_size: int, dtype: torch.dtype
) -> bool:
    """Whether the kernel takes this shape."""
    return (
        dtype in TYPES
        and dim <= (MAX_DIM_FLOAT32 if dtype == torch.float32 else MAX_DIM)
        and head_dim in HEAD_DIMS
        and num_heads % num_kv_heads == 0
        and num_heads // num_kv_heads in GROUPS
        and num_heads // num_kv_heads * head_dim <= MAX_DIM
        and page_size in PAGE_SIZES
    )


def block_decode_triton(
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
    """The launch of `block_decode`, whose checks have been made."""
    num_users, dim = x.shape
    _, page_size, num_kv_heads, head_dim = memory.k_pages.shape
    group = weights.out.shape[1] // (num_kv_heads * head_dim)
    out = torch.empty_like(x) if out is None else out
    if num_users == 0:
        return out
    multiprocessors = CPU_MULTIPROCESSORS
    if x.is_cuda:
        multiprocessors = torch.cuda.get_device_properties(x.device).multi_processor_count
    block_b = choose_block_b(num_users, multiprocessors)
    tile = choose_tile(block_b, dim, group, head_dim, x.element_size())
    block_decode_kernel[(triton.cdiv(num_users, block_b),)](
        x_ptr=x,
        out_ptr=out,
        attention_norm_ptr=weights.attention_norm,
        qkv_ptr=weights.qkv,
        projection_ptr=weights.out,
        feed_forward_norm_ptr=weights.feed_forward_norm,
        gate_up_ptr=weights.gate_up,
        down_ptr=weights.down,
        positions_ptr=positions,
        slots_ptr=slots,
        k_pages_ptr=memory.k_pages,
        v_pages_ptr=memory.v_pages,
        page_indptr_ptr=memory.page_indptr,
        page_indices_ptr=memory.page_indices,
        lengths_ptr=memory.lengths,
        num_users=num_users,
        num_kv_heads=num_kv_heads,
        hidden_dim=weights.down.shape[1],
        k_page_stride=memory.k_pages.stride(0),
        v_page_stride=memory.v_pages.stride(0),
        window=min(window, MAX_WINDOW),
        eps=eps,
        scale_log2=head_dim**-0.5 * LOG2_E,
        **constexprs(tile, dim, group, head_dim, page_size, rotary_base),
        num_warps=tile.num_warps,
        num_stages=NUM_STAGES,
        maxnreg=tile.max_registers,
    )
    return out


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
    validate: bool = True,
) -> torch.Tensor:
    """One new event of each user through one block, whose keys and values are appended to the user's memory.

    Llama's block (Touvron et al., LLaMA, 2023): pre-norm, rotary halves paired, grouped-query attention, SwiGLU. On a
    GPU it is one launch, allocates nothing if `out` is given, and has no backward. Sums are float32; the new event
    attends to its key and value as rounded into the pages, so that its answer is that of a later rebuild.

    Args:
        x: [B, d], the new event of each user; bfloat16, float16 or float32 (on the CPU float64 too).
        weights: in x's dtype, contiguous.
        positions: [B] int64, absolute places of the events in their users' logs, >= 0.
        slots: [B] int64, page * S + place where each event's key and value go, each at most once; -1: not written.
            Never a place that another user of the batch reads.
        memory: the users' past, before these events; its pages are written in place. In x's dtype, without scales.
        window: events that a query sees, itself included.
        rotary_base: base of the rotary frequencies.
        eps: of the norms.
        out: [B, d], written if given; may be x.
        validate: also check values, for which the host waits for the device.

    Returns:
        [B, d] in x's dtype: `out`, if given.

    Raises:
        ArgumentError: a shape, dtype, device or stride that doesn't fit, or a shape that `block_decode_fits` refuses;
            with `validate`, values too.
    """
    _check(x, weights, positions, slots, memory, window, rotary_base, out)
    if validate:
        _check_values(positions, slots, memory)
    body = block_decode_triton if x.is_cuda else block_decode_reference
    return body(x, weights, positions, slots, memory, window=window, rotary_base=rotary_base, eps=eps, out=out)


def _check(
    x: torch.Tensor,
    weights: BlockWeights,
    positions: torch.Tensor,
    slots: torch.Tensor,
    memory: PagedMemory,
    window: int,
    rotary_base: float,
    out: torch.Tensor | None,
) -> None:
    dtypes = tuple(TYPES) if x.is_cuda else (*TYPES, torch.float64)
    check_tensor("x", x, (("B", None), ("d", None)), dtypes)
    (num_users, dim), like, own = x.shape, x, (x.dtype,)
    if memory.k_scale is not None or memory.v_scale is not None:
        raise ArgumentError("memory", "pages without scales", "quantised pages", "call the operators one by one")
    pages: tuple[tuple[str, int | None], ...] = (("P", None), ("S", None), ("Hkv", None), ("D", None))
    check_tensor("memory.k_pages", memory.k_pages, pages, own, like, dense_from=1)
    num_pages, page_size, num_kv_heads, head_dim = memory.k_pages.shape
    pages = (("P", num_pages), ("S", page_size), ("Hkv", num_kv_heads), ("D", head_dim))
    check_tensor("memory.v_pages", memory.v_pages, pages, own, like, dense_from=1)
    check_tensor("weights.out", weights.out, (("d", dim), ("Hq * D", None)), own, like)
    check_tensor("weights.down", weights.down, (("d", dim), ("F", None)), own, like)
    heads_dim, hidden_dim = weights.out.shape[1], weights.down.shape[1]
    num_heads = heads_dim // head_dim
    fits = block_decode_fits(dim, num_heads, num_kv_heads, head_dim, page_size, x.dtype)
    if heads_dim % head_dim or (x.is_cuda and not fits):
        raise ArgumentError(
            "weights and memory",
            f"d <= {MAX_DIM} ({MAX_DIM_FLOAT32} in float32), head_dim in {HEAD_DIMS}, Hq / Hkv in {GROUPS}, "
            f"page size in {PAGE_SIZES}",
            f"d {dim}, Hq * D {heads_dim}, head_dim {head_dim}, Hkv {num_kv_heads}, page size {page_size}",
            "call the operators one by one",
        )
    qkv_dim = heads_dim + 2 * num_kv_heads * head_dim
    for name, weight, shape in (
        ("attention_norm", weights.attention_norm, (("d", dim),)),
        ("qkv", weights.qkv, (("(Hq + 2 Hkv) * D", qkv_dim), ("d", dim))),
        ("feed_forward_norm", weights.feed_forward_norm, (("d", dim),)),
        ("gate_up", weights.gate_up, (("2 F", 2 * hidden_dim), ("d", dim))),
    ):
        check_tensor(f"weights.{name}", weight, shape, own, like)
    for name, rows in (("positions", positions), ("slots", slots)):
        check_tensor(name, rows, (("B", num_users),), (torch.int64,), like)
    check_tensor("memory.page_indptr", memory.page_indptr, (("B + 1", num_users + 1),), (torch.int32,), like)
    check_tensor("memory.page_indices", memory.page_indices, (("N", None),), (torch.int32,), like)
    check_tensor("memory.lengths", memory.lengths, (("B", num_users),), (torch.int32,), like)
    if window < 1:
        raise ArgumentError(f"window={window}", "at least 1: a query sees itself")
    if not rotary_base > 1.0:
        raise ArgumentError(f"rotary_base={rotary_base}", "above 1")
    if out is not None:
        check_tensor("out", out, (("B", num_users), ("d", dim)), own, like)


def _check_values(positions: torch.Tensor, slots: torch.Tensor, memory: PagedMemory) -> None:
    num_pages, page_size = memory.k_pages.shape[:2]
    listed = memory.page_indptr.diff()
    check_values("positions", positions >= 0, "0 or more")
    check_values("slots", (slots >= -1) & (slots < num_pages * page_size), "-1, or a place in the pages")
    check_values("memory.page_indptr", memory.page_indptr[:1] == 0, "0 at the start")
    check_values("memory.page_indptr", listed >= 0, "offsets that don't fall")
    check_values("memory.page_indptr", memory.page_indptr <= len(memory.page_indices), "offsets within page_indices")
    used = memory.page_indices[: int(memory.page_indptr[-1])]
    check_values("memory.page_indices", (used >= 0) & (used < num_pages), f"0..{num_pages - 1}, the pages there are")
    fits = (memory.lengths >= 0) & (memory.lengths <= listed * page_size)
    check_values("memory.lengths", fits, "0 or more, and no more events than the user's pages hold")
