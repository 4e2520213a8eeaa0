"""The kernel of `block_decode`: a whole transformer block for one new event a user, in one launch.

Attention here multiplies on the plain cores: every user has keys of its own, so there is no matrix to make of one
query, and at one product a byte the loads are what takes the time. Each of BLOCK_N keys' lanes keeps a softmax of its
own (running maximum, sum and weighted values); they merge once, behind the loop, so that the loop has no reduction
across threads but that over the head's dimension.

Holds the kernel, its tiles and what ships; checks and launch are in `block_decode`. Shapes: B users, d width, Hq query
and Hkv key/value heads (G = Hq / Hkv to a group), D head_dim, F width of the feed-forward, P pages of S events.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from longrec.kernels.rotary import rotary_cos_sin
from longrec.kernels.shipped import Shipped

__all__ = [
    "NUM_STAGES",
    "TYPES",
    "Tile",
    "block_decode_kernel",
    "choose_block_b",
    "choose_tile",
    "constexprs",
    "shipped",
]

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
MAX_REGISTERS = (
    255  # said, since ptxas otherwise spills a little where that lets another program onto the multiprocessor
)
NUM_STAGES = 2  # of the feed-forward's weights; keys and values have a depth of their own
BLOCKS_B = (8, 4, 1)


class Tile(NamedTuple):
    """How a launch is cut.

    Args:
        block_b: users of a program.
        block_n: keys of a user at a time.
        block_f: columns of the feed-forward at a time.
        key_stages: depth of the copies of keys and values.
        num_warps: of a program.
        max_registers: of a thread; said for 4 warps, since ptxas otherwise spills a little where that lets one program
            more onto a multiprocessor.
    """

    block_b: int
    block_n: int
    block_f: int
    key_stages: int
    num_warps: int
    max_registers: int | None


def choose_tile(block_b: int, dim: int, group: int, head_dim: int, item_bytes: int) -> Tile:
    """The tile of a launch, the same on every target.

    A program's running sums, BLOCK_B x G x BLOCK_N x D, take 8 registers of a thread, or 16 where one narrow user
    leaves room. With twice as many, or 4 warps for a width of 128, ptxas spills: tiles of weights need the rest.
    """
    num_warps = 4 if dim <= 64 else 8
    registers = 16 if block_b == 1 and dim <= 64 and item_bytes < 4 else 8
    block_n = max(1, min(64, 32 * num_warps * registers // (block_b * group * head_dim)))
    return Tile(
        block_b=block_b,
        block_n=block_n,
        block_f=32 if item_bytes == 4 else 64,
        key_stages=4 if block_b == 1 else 3,
        num_warps=num_warps,
        max_registers=255 if num_warps == 4 else None,
    )


def choose_block_b(num_users: int, multiprocessors: int) -> int:
    """Users of a program: as many as leave two programs to a multiprocessor."""
    return next(b for b in BLOCKS_B if b == 1 or num_users >= 2 * b * multiprocessors)


@triton.jit
def _rms_norm(x, weight_ptr, dims, inside, eps, DIM: tl.constexpr):
    weight = tl.load(weight_ptr + dims, mask=inside, other=0.0).to(tl.float32)
    return x * tl.rsqrt(tl.sum(x * x, axis=1) / DIM + eps)[:, None] * weight[None, :]


@triton.jit
def _linear(x, weight_ptr, rows, columns, row_stride, mask):
    """x [M, K] times the transpose of weight[rows, columns] ([N, K] in memory) -> [M, N] float32."""
    weight = tl.load(weight_ptr + rows[None, :] * row_stride + columns[:, None], mask=mask, other=0.0)  # [K, N]
    return tl.dot(x.to(weight.dtype), weight, input_precision="tf32x3")


@triton.jit
def _rotate(x, cos, sin, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Halves x[0], x[1], each [M, G * D / 2], of heads -> the rotated heads [M, G, D]."""
    HALF: tl.constexpr = HEAD_DIM // 2
    first = tl.reshape(x[0], [x[0].shape[0], GROUP, HALF])
    second = tl.reshape(x[1], [x[0].shape[0], GROUP, HALF])
    cos, sin = cos[:, None, :], sin[:, None, :]
    both = tl.join(first * cos - second * sin, second * cos + first * sin)  # [M, G, D / 2, 2]
    return tl.reshape(tl.permute(both, (0, 1, 3, 2)), [x[0].shape[0], GROUP, HEAD_DIM])


@triton.jit
def _attend_memory(
    q,  # [BLOCK_B, G, D] float32, scaled by scale * log2(e)
    k_pages_ptr,  # at this key/value head
    v_pages_ptr,
    page_indices_ptr,
    first_page,  # [BLOCK_B]
    oldest,  # [BLOCK_B], the first event in the window
    lengths,  # [BLOCK_B]
    k_page_stride,
    v_page_stride,
    event_stride,
    PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KEY_STAGES: tl.constexpr,
):
    """Softmax state of each of N lanes: maximum and sum [BLOCK_B, G, N], weighted values [BLOCK_B, G, N, D]."""
    BLOCK_B: tl.constexpr = q.shape[0]
    GROUP: tl.constexpr = q.shape[1]
    HEAD_DIM: tl.constexpr = q.shape[2]
    lanes, dims = tl.arange(0, BLOCK_N), tl.arange(0, HEAD_DIM)
    peak = tl.full([BLOCK_B, GROUP, BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_B, GROUP, BLOCK_N], tl.float32)
    acc = tl.zeros([BLOCK_B, GROUP, BLOCK_N, HEAD_DIM], tl.float32)
    for start in tl.range(0, tl.max(lengths - oldest, axis=0), BLOCK_N, num_stages=KEY_STAGES):
        event = oldest[:, None] + start + lanes[None, :]  # [BLOCK_B, BLOCK_N]
        held = event < lengths[:, None]
        page = tl.load(page_indices_ptr + first_page[:, None] + event // PAGE_SIZE, mask=held, other=0)
        page, place = page.to(tl.int64), event % PAGE_SIZE * event_stride
        k_ptrs = k_pages_ptr + (page * k_page_stride + place)[:, :, None] + dims[None, None, :]  # [BLOCK_B, BLOCK_N, D]
        v_ptrs = v_pages_ptr + (page * v_page_stride + place)[:, :, None] + dims[None, None, :]
        # zero-filled: what stands in a page behind its last event may be NaN
        k = tl.load(k_ptrs, mask=held[:, :, None], other=0.0).to(tl.float32)
        v = tl.load(v_ptrs, mask=held[:, :, None], other=0.0).to(tl.float32)
        score = tl.sum(q[:, :, None, :] * k[:, None, :, :], axis=3)  # [BLOCK_B, G, BLOCK_N]
        score = tl.where(held[:, None, :], score, float("-inf"))
        new_peak = tl.maximum(peak, score)
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        decay, weight = tl.exp2(peak - base), tl.exp2(score - base)
        total = total * decay + weight
        acc = acc * decay[:, :, :, None] + weight[:, :, :, None] * v[:, None, :, :]
        peak = new_peak
    return peak, total, acc


@triton.jit
def block_decode_kernel(
    x_ptr,  # [B, d]
    out_ptr,  # [B, d]
    attention_norm_ptr,  # [d]
    qkv_ptr,  # [(Hq + 2 Hkv) * D, d]
    projection_ptr,  # [d, Hq * D]
    feed_forward_norm_ptr,  # [d]
    gate_up_ptr,  # [2 F, d]
    down_ptr,  # [d, F]
    positions_ptr,  # [B] int64
    slots_ptr,  # [B] int64
    k_pages_ptr,  # [P, S, Hkv, D]
    v_pages_ptr,
    page_indptr_ptr,  # [B + 1] int32
    page_indices_ptr,  # [N] int32
    lengths_ptr,  # [B] int32
    num_users,
    num_kv_heads,
    hidden_dim,
    k_page_stride,
    v_page_stride,
    window,
    eps,
    scale_log2,  # scale of the scores * log2(e)
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    LOG2_BASE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_F: tl.constexpr,
    KEY_STAGES: tl.constexpr,
):
    """BLOCK_B users through the block; a program reads each weight once."""
    HALF: tl.constexpr = HEAD_DIM // 2
    users = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    live = users < num_users
    dims = tl.arange(0, BLOCK_D)
    inside = dims < DIM
    rows = users.to(tl.int64)[:, None] * DIM + dims[None, :]  # [BLOCK_B, BLOCK_D]
    row_mask = live[:, None] & inside[None, :]
    x = tl.load(x_ptr + rows, mask=row_mask, other=0.0).to(tl.float32)
    slots = tl.load(slots_ptr + users, mask=live, other=-1)
    lengths = tl.load(lengths_ptr + users, mask=live, other=0)
    oldest = tl.maximum(lengths + 1 - window, 0)
    first_page = tl.load(page_indptr_ptr + users, mask=live, other=0)
    cos, sin = rotary_cos_sin(tl.load(positions_ptr + users, mask=live, other=0), LOG2_BASE, HALF)

    h = _rms_norm(x, attention_norm_ptr, dims, inside, eps, DIM)
    halves, group_halves = tl.arange(0, HALF), tl.arange(0, GROUP * HALF)
    head_dims, group_dims = tl.arange(0, HEAD_DIM), tl.arange(0, GROUP * HEAD_DIM)
    event_stride = num_kv_heads * HEAD_DIM
    column_mask = inside[:, None]
    for kv in tl.range(0, num_kv_heads, num_stages=1):
        q_rows = (kv * GROUP + group_halves // HALF) * HEAD_DIM + group_halves % HALF
        q = _rotate(
            (
                _linear(h, qkv_ptr, q_rows, dims, DIM, column_mask),
                _linear(h, qkv_ptr, q_rows + HALF, dims, DIM, column_mask),
            ),
            cos,
            sin,
            GROUP,
            HEAD_DIM,
        )  # [BLOCK_B, G, D]
        k_rows = (num_kv_heads * GROUP + kv) * HEAD_DIM + halves
        k = _rotate(
            (
                _linear(h, qkv_ptr, k_rows, dims, DIM, column_mask),
                _linear(h, qkv_ptr, k_rows + HALF, dims, DIM, column_mask),
            ),
            cos,
            sin,
            1,
            HEAD_DIM,
        )
        k = tl.reshape(k, [BLOCK_B, HEAD_DIM]).to(k_pages_ptr.dtype.element_ty)
        v_rows = (num_kv_heads * (GROUP + 1) + kv) * HEAD_DIM + head_dims
        v = _linear(h, qkv_ptr, v_rows, dims, DIM, column_mask).to(v_pages_ptr.dtype.element_ty)
        place = slots % PAGE_SIZE * event_stride + kv * HEAD_DIM
        k_ptrs = k_pages_ptr + (slots // PAGE_SIZE * k_page_stride + place)[:, None] + head_dims[None, :]
        v_ptrs = v_pages_ptr + (slots // PAGE_SIZE * v_page_stride + place)[:, None] + head_dims[None, :]
        tl.store(k_ptrs, k, mask=(slots >= 0)[:, None])
        tl.store(v_ptrs, v, mask=(slots >= 0)[:, None])

        q = q * scale_log2
        peak, total, acc = _attend_memory(
            q,
            k_pages_ptr + kv * HEAD_DIM,
            v_pages_ptr + kv * HEAD_DIM,
            page_indices_ptr,
            first_page,
            oldest,
            lengths,
            k_page_stride,
            v_page_stride,
            event_stride,
            PAGE_SIZE,
            BLOCK_N,
            KEY_STAGES,
        )
        # merge the lanes and the event itself, which is as it stands in its page: rounded
        own = tl.sum(q * k.to(tl.float32)[:, None, :], axis=2)  # [BLOCK_B, G]
        base = tl.maximum(tl.max(peak, axis=2), own)
        lane_weight, own_weight = tl.exp2(peak - base[:, :, None]), tl.exp2(own - base)
        denominator = tl.sum(total * lane_weight, axis=2) + own_weight
        attended = tl.sum(acc * lane_weight[:, :, :, None], axis=2)  # [BLOCK_B, G, D]
        attended += own_weight[:, :, None] * v.to(tl.float32)[:, None, :]
        attended = tl.reshape(attended / denominator[:, :, None], [BLOCK_B, GROUP * HEAD_DIM])
        heads = kv * (GROUP * HEAD_DIM) + group_dims
        x += _linear(attended, projection_ptr, dims, heads, event_stride * GROUP, inside[None, :])

    h = _rms_norm(x, feed_forward_norm_ptr, dims, inside, eps, DIM)
    for start in tl.range(0, hidden_dim, BLOCK_F):
        hidden = start + tl.arange(0, BLOCK_F)
        mask = column_mask & (hidden < hidden_dim)[None, :]
        gate = _linear(h, gate_up_ptr, hidden, dims, DIM, mask)  # [BLOCK_B, BLOCK_F]
        up = _linear(h, gate_up_ptr, hidden_dim + hidden, dims, DIM, mask)
        act = gate / (1.0 + tl.exp2(gate * -1.4426950408889634)) * up
        x += _linear(act, down_ptr, dims, hidden, hidden_dim, inside[None, :] & (hidden < hidden_dim)[:, None])
    tl.store(out_ptr + rows, x, mask=row_mask)


def constexprs(
    tile: Tile, dim: int, group: int, head_dim: int, page_size: int, rotary_base: float
) -> dict[str, int | float]:
    """The kernel's compile-time arguments."""
    return {
        "DIM": dim,
        "BLOCK_D": max(16, triton.next_power_of_2(dim)),
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "PAGE_SIZE": page_size,
        "LOG2_BASE": math.log2(rotary_base),
        "BLOCK_B": tile.block_b,
        "BLOCK_N": tile.block_n,
        "BLOCK_F": tile.block_f,
        "KEY_STAGES": tile.key_stages,
    }


def shipped(target: int) -> Iterator[Shipped]:
    """Every tile of the launcher, at the widths of small recommenders (see `longrec.kernels.shipped`)."""
    pointers = (
        *("x_ptr", "out_ptr", "attention_norm_ptr", "qkv_ptr", "projection_ptr", "feed_forward_norm_ptr"),
        *("gate_up_ptr", "down_ptr", "k_pages_ptr", "v_pages_ptr"),
    )
    scalars = {
        **dict.fromkeys(("positions_ptr", "slots_ptr"), "*i64"),
        **dict.fromkeys(("page_indptr_ptr", "page_indices_ptr", "lengths_ptr"), "*i32"),
        **dict.fromkeys(("num_users", "num_kv_heads", "hidden_dim", "window", "k_page_stride", "v_page_stride"), "i32"),
        **dict.fromkeys(("eps", "scale_log2"), "fp32"),
    }
    shapes = [(32, 1, 16), (64, 1, 32), (64, 2, 32), (128, 1, 64), (128, 2, 64), (128, 4, 32), (128, 8, 16)]
    counts = {torch.bfloat16: len(shapes), torch.float16: 3, torch.float32: 1}  # of shapes that are compiled
    for dtype, name in TYPES.items():
        for dim, group, head_dim in shapes[: counts[dtype]]:
            for block_b in BLOCKS_B:
                tile = choose_tile(block_b, dim, group, head_dim, dtype.itemsize)
                yield Shipped(
                    kernel="block_decode",
                    config=f"{name}-d{dim}-G{group}-D{head_dim}-users{block_b}",
                    fn=block_decode_kernel,
                    target=target,
                    signature={**dict.fromkeys(pointers, f"*{name}"), **scalars},
                    constexprs=constexprs(tile, dim, group, head_dim, 32, 10_000.0),
                    num_warps=tile.num_warps,
                    num_stages=NUM_STAGES,
                    maxnreg=tile.max_registers,
                    expects=("matrix", "wide_async_copy"),
                    divisible=("hidden_dim", "k_page_stride", "v_page_stride"),
                    subset=dtype == torch.bfloat16 and (dim, group, block_b) in ((64, 1, 1), (64, 1, 4)),
                )
