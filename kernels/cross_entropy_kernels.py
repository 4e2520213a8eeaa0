"""The kernels of `catalogue_cross_entropy`. `cross_entropy.py` launches them, `cross_entropy_plan` cuts the work.

Columns are all items, or the negatives where `negatives_ptr` is given. Logits and log-sum-exps are base 2 here (logits
times log2 e), since the hardware has exp2; losses are natural. No kernel has atomics: each element of a result has one
program, or one program a part, and parts are added in order.

Slopes, the gradient of a logit over the row's incoming gradient, are multiplied by `SLOPE_SCALE` before they
become float16: with a million items most probabilities lie below float16's least.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any, NamedTuple

import triton
import triton.language as tl

__all__ = [
    "SLOPE_SCALE",
    "gather_kernel",
    "hidden_gradient_kernel",
    "item_gradient_kernel",
    "loss_kernel",
    "lse_kernel",
]

SLOPE_SCALE = 16384.0  # 2^14: slopes lie within -1..1, so that the products' float16 operand stays finite

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _rows_at(ptr, rows, stride, live, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """Rows [n, DIM] by their int64 numbers; zero where not live and beyond WIDTH."""
    dim = tl.arange(0, DIM)
    mask = live[:, None] if WIDTH == DIM else live[:, None] & (dim < WIDTH)[None, :]
    return tl.load(ptr + rows[:, None] * stride + dim[None, :], mask=mask, other=0.0)


@triton.jit
def _rows_from(ptr, first, stride, live, BLOCK: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """BLOCK rows from `first` on; the one 64-bit product is a scalar's."""
    line = tl.arange(0, BLOCK)
    dim = tl.arange(0, DIM)
    mask = live[:, None] if WIDTH == DIM else live[:, None] & (dim < WIDTH)[None, :]
    base = ptr + tl.cast(first, tl.int64) * stride
    return tl.load(base + line[:, None] * stride + dim[None, :], mask=mask, other=0.0)


@triton.jit
def _columns(
    items_ptr, negatives_ptr, log_q_ptr, first, end, stride, BLOCK: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr
):
    """Item numbers of BLOCK columns from `first` on, their rows of the table, and log2 q."""
    column = first + tl.arange(0, BLOCK)
    held = column < end
    log2_q = tl.zeros([BLOCK], tl.float32)
    if negatives_ptr is None:
        item = column
        w = _rows_from(items_ptr, first, stride, held, BLOCK, WIDTH, DIM)
    else:
        item = tl.load(negatives_ptr + column, mask=held, other=0)
        w = _rows_at(items_ptr, item, stride, held, WIDTH, DIM)
        if log_q_ptr is not None:
            log2_q = tl.load(log_q_ptr + column, mask=held, other=0.0) * LOG2_E
    return item, held, w, log2_q


class Rows(NamedTuple):
    """n rows of WIDTH: `tile` [n, DIM], and where they stand: row number `rows` [n] at `ptr`, those that are `live`."""

    tile: Any
    ptr: Any
    rows: Any
    stride: Any
    live: Any


@triton.jit
def _piece(rows, first_dim, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """BLOCK_D dimensions of `rows` from `first_dim` on, loaded again."""
    dim = first_dim + tl.arange(0, BLOCK_D)
    mask = rows.live[:, None] & (dim < WIDTH)[None, :]
    return tl.load(rows.ptr + rows.rows.to(tl.int64)[:, None] * rows.stride + dim[None, :], mask=mask, other=0.0)


@triton.jit
def _products(a, b, there, WIDTH: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """[A, B] inner products of two `Rows`; in pieces of BLOCK_D where rows that stay don't fit the registers.

    `there` is true. The rows b are multiplied twice, across and along. In float32 the two operands want shared memory
    swizzled differently, and triton 3.7 takes the layouts of both up to the load, which it then doesn't copy
    asynchronously. A choice by a scalar holds one of them back; LLVM drops it.
    """
    if BLOCK_D == DIM:
        b_tile = b.tile
        if b_tile.dtype == tl.float32:
            b_tile = tl.where(there, b_tile, 0.0)
        out = tl.dot(a.tile, tl.trans(b_tile), input_precision="tf32x3")
    else:
        out = tl.zeros([a.rows.shape[0], b.rows.shape[0]], tl.float32)
        for first_dim in range(0, DIM, BLOCK_D):
            a_piece = _piece(a, first_dim, WIDTH, BLOCK_D)
            b_piece = _piece(b, first_dim, WIDTH, BLOCK_D)
            out = tl.dot(a_piece, tl.trans(b_piece), out, input_precision="tf32x3")
    return out


@triton.jit
def lse_kernel(
    hidden_ptr,  # [T, WIDTH]
    items_ptr,  # [N, WIDTH]
    targets_ptr,  # [T] int64
    negatives_ptr,  # [M] int64, or None
    log_q_ptr,  # [M] float32, or None
    parts_ptr,  # [parts, T] float32, written: base-2 log-sum-exp over the part's columns
    num_rows,
    num_columns,
    part_columns,  # columns a part
    hidden_stride,
    items_stride,
    ignore_index,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,  # power of two, >= 16, that holds WIDTH
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    first_row = tl.program_id(0) * BLOCK_M
    part = tl.program_id(1)
    row = first_row + tl.arange(0, BLOCK_M)
    live = row < num_rows
    target = tl.load(targets_ptr + row, mask=live, other=ignore_index)
    if tl.max((target != ignore_index).to(tl.int32), axis=0) == 0:
        return
    h = _rows_from(hidden_ptr, first_row, hidden_stride, live, BLOCK_M, WIDTH, DIM)  # [M, D]
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    begin = part * part_columns
    end = tl.minimum(begin + part_columns, num_columns)
    for first in range(begin, end, BLOCK_N):
        item, held, w, log2_q = _columns(
            items_ptr, negatives_ptr, log_q_ptr, first, end, items_stride, BLOCK_N, WIDTH, DIM
        )
        logit = tl.dot(h, tl.trans(w), input_precision="tf32x3") * LOG2_E  # [M, N]
        counted = held[None, :]
        if negatives_ptr is not None:
            logit -= log2_q[None, :]
            counted = counted & (item[None, :] != target[:, None])
        logit = tl.where(counted, logit, float("-inf"))
        higher = tl.maximum(peak, tl.max(logit, axis=1))
        base = higher
        if negatives_ptr is not None:  # a tile of the row's own target alone
            base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(peak - base) + tl.sum(tl.exp2(logit - base[:, None]), axis=1)
        peak = higher
    base = tl.where(total > 0.0, peak, 0.0)
    tl.store(parts_ptr + tl.cast(part, tl.int64) * num_rows + row, base + tl.log2(total), mask=live)


@triton.jit
def loss_kernel(
    hidden_ptr,  # [T, WIDTH]
    items_ptr,  # [N, WIDTH]
    targets_ptr,  # [T] int64
    mean_ptr,  # [WIDTH] float32, mean of the items; None: no label smoothing
    target_log_q_ptr,  # [T] float32, or None
    parts_ptr,  # [parts, T] float32, from lse_kernel
    lse2_ptr,  # [T] float32, written; infinite where ignored: every probability is then 0
    loss_ptr,  # [T] float32, written
    num_rows,
    num_parts,
    hidden_stride,
    items_stride,
    ignore_index,
    label_smoothing,
    SAMPLED: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    first_row = tl.program_id(0) * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    live = row < num_rows
    target = tl.load(targets_ptr + row, mask=live, other=ignore_index)
    counts = live & (target != ignore_index)
    h = _rows_from(hidden_ptr, first_row, hidden_stride, counts, BLOCK_M, WIDTH, DIM).to(tl.float32)
    w = _rows_at(items_ptr, target, items_stride, counts, WIDTH, DIM).to(tl.float32)
    own = tl.sum(h * w, axis=1) * LOG2_E
    if target_log_q_ptr is not None:
        own -= tl.load(target_log_q_ptr + row, mask=counts, other=0.0) * LOG2_E
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if SAMPLED:
        peak = own
        total += 1.0
    for part in range(num_parts):
        lse2 = tl.load(parts_ptr + tl.cast(part, tl.int64) * num_rows + row, mask=counts, other=0.0)
        higher = tl.maximum(peak, lse2)
        total = total * tl.exp2(peak - higher) + tl.exp2(lse2 - higher)
        peak = higher
    lse2 = peak + tl.log2(total)
    loss = lse2 - own
    if mean_ptr is not None:
        dim = tl.arange(0, DIM)
        mean = tl.load(mean_ptr + dim, mask=dim < WIDTH, other=0.0)
        loss += label_smoothing * (own - tl.sum(h * mean[None, :], axis=1) * LOG2_E)
    tl.store(lse2_ptr + row, tl.where(counts, lse2, float("inf")), mask=live)
    tl.store(loss_ptr + row, tl.where(counts, loss * LN_2, 0.0), mask=live)


@triton.jit
def hidden_gradient_kernel(
    hidden_ptr,  # [T, WIDTH]
    items_ptr,  # [N, WIDTH]
    targets_ptr,  # [T] int64
    negatives_ptr,  # [M] int64, or None
    log_q_ptr,  # [M] float32, or None
    lse2_ptr,  # [T] float32
    grad_ptr,  # [T] float32: of the loss; 0 where ignored
    own_slope_ptr,  # [T] float32: of the target's logit, which is no column of a sample; None: full softmax
    parts_ptr,  # [parts, T, WIDTH], written: the part's columns' share of the gradient
    num_rows,
    num_columns,
    part_columns,
    hidden_stride,
    items_stride,
    certain,  # (1 - label smoothing) SLOPE_SCALE
    spread,  # label smoothing / N SLOPE_SCALE
    shift,  # log2 SLOPE_SCALE
    unscale,  # 1 / SLOPE_SCALE
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,  # DIM, or dimensions that logits are summed over at a time
):
    first_row = tl.program_id(0) * BLOCK_M
    part = tl.program_id(1)
    row = first_row + tl.arange(0, BLOCK_M)
    live = row < num_rows
    target = tl.load(targets_ptr + row, mask=live, other=-1)
    h = _rows_from(hidden_ptr, first_row, hidden_stride, live, BLOCK_M, WIDTH, DIM)  # [M, D]
    lse2 = tl.load(lse2_ptr + row, mask=live, other=float("inf")) - shift
    grad_h = tl.zeros([BLOCK_M, DIM], tl.float32)
    begin = part * part_columns
    end = tl.minimum(begin + part_columns, num_columns)
    for first in range(begin, end, BLOCK_N):
        item, held, w, log2_q = _columns(
            items_ptr, negatives_ptr, log_q_ptr, first, end, items_stride, BLOCK_N, WIDTH, DIM
        )
        columns = Rows(w, items_ptr, item, items_stride, held)
        rows = Rows(h, hidden_ptr, row, hidden_stride, live)
        logit = _products(rows, columns, first < end, WIDTH, DIM, BLOCK_D) * LOG2_E
        is_target = item[None, :] == target[:, None]
        if negatives_ptr is None:
            slope = tl.exp2(logit - lse2[:, None]) - spread - tl.where(is_target, certain, 0.0)
        else:
            slope = tl.where(is_target, 0.0, tl.exp2(logit - log2_q[None, :] - lse2[:, None]))
        slope = tl.where(held[None, :], slope, 0.0)  # rows beyond the end are 0, but their exponentials may overflow
        grad_h = tl.dot(slope.to(w.dtype), w, grad_h, input_precision="tf32x3")
    grad_h *= unscale
    if own_slope_ptr is not None and part == 0:
        own_slope = tl.load(own_slope_ptr + row, mask=live, other=0.0)
        w = _rows_at(items_ptr, target, items_stride, own_slope != 0.0, WIDTH, DIM)
        grad_h += own_slope[:, None] * w.to(tl.float32)
    grad_h *= tl.load(grad_ptr + row, mask=live, other=0.0)[:, None]
    dim = tl.arange(0, DIM)
    base = parts_ptr + (tl.cast(part, tl.int64) * num_rows + first_row) * WIDTH
    offsets = tl.arange(0, BLOCK_M)[:, None] * WIDTH + dim[None, :]
    tl.store(base + offsets, grad_h.to(parts_ptr.dtype.element_ty), mask=live[:, None] & (dim < WIDTH)[None, :])


@triton.jit
def item_gradient_kernel(
    hidden_ptr,  # [T, WIDTH]
    items_ptr,  # [N, WIDTH]
    targets_ptr,  # [T] int64
    negatives_ptr,  # [M] int64, or None
    log_q_ptr,  # [M] float32, or None
    lse2_ptr,  # [T] float32
    weight_ptr,  # [T] float32: gradient of the loss over its largest magnitude, times SLOPE_SCALE
    unscale_ptr,  # [1] float32: the largest magnitude over SLOPE_SCALE
    parts_ptr,  # [parts, N or M, WIDTH], written: the part's rows' share of the columns' gradients
    num_rows,
    num_columns,
    part_rows,  # rows a part
    hidden_stride,
    items_stride,
    certain,  # 1 - label smoothing
    spread,  # label smoothing / N
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,  # DIM, or dimensions that logits are summed over at a time
):
    first = tl.program_id(0) * BLOCK_N
    part = tl.program_id(1)
    item, held, w, log2_q = _columns(
        items_ptr, negatives_ptr, log_q_ptr, first, num_columns, items_stride, BLOCK_N, WIDTH, DIM
    )
    grad_w = tl.zeros([BLOCK_N, DIM], tl.float32)
    begin = part * part_rows
    end = tl.minimum(begin + part_rows, num_rows)
    for first_row in range(begin, end, BLOCK_M):
        row = first_row + tl.arange(0, BLOCK_M)
        live = row < end
        h = _rows_from(hidden_ptr, first_row, hidden_stride, live, BLOCK_M, WIDTH, DIM)  # [M, D]
        target = tl.load(targets_ptr + row, mask=live, other=-1)
        lse2 = tl.load(lse2_ptr + row, mask=live, other=float("inf"))
        weight = tl.load(weight_ptr + row, mask=live, other=0.0)
        columns = Rows(w, items_ptr, item, items_stride, held)
        rows = Rows(h, hidden_ptr, row, hidden_stride, live)
        logit = _products(columns, rows, first_row < end, WIDTH, DIM, BLOCK_D) * LOG2_E
        is_target = item[:, None] == target[None, :]
        if negatives_ptr is None:
            slope = tl.exp2(logit - lse2[None, :]) - spread - tl.where(is_target, certain, 0.0)
        else:
            slope = tl.where(is_target, 0.0, tl.exp2(logit - log2_q[:, None] - lse2[None, :]))
        grad_w = tl.dot((slope * weight[None, :]).to(h.dtype), h, grad_w, input_precision="tf32x3")
    grad_w *= tl.load(unscale_ptr)
    dim = tl.arange(0, DIM)
    base = parts_ptr + (tl.cast(part, tl.int64) * num_columns + first) * WIDTH
    offsets = tl.arange(0, BLOCK_N)[:, None] * WIDTH + dim[None, :]
    tl.store(base + offsets, grad_w.to(parts_ptr.dtype.element_ty), mask=held[:, None] & (dim < WIDTH)[None, :])


@triton.jit
def gather_kernel(
    hidden_ptr,  # [T, WIDTH]
    own_weight_ptr,  # [T] float32: gradient of the target's logit
    negatives_gradient_ptr,  # [M, WIDTH] float32
    item_ptr,  # [T + M] int64, rising: the targets, -1 where ignored, and the negatives
    source_ptr,  # [T + M] int64: row t, or T + m
    grad_items_ptr,  # [N, WIDTH], zero; written where an item occurs
    num_rows,
    num_negatives,
    hidden_stride,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The program of an item's first entry adds up all of its entries in order; the others leave."""
    entry = tl.program_id(0)
    item = tl.load(item_ptr + entry)
    before = tl.load(item_ptr + entry - 1, mask=entry > 0, other=-1)
    if (item < 0) | (item == before):  # an ignored row, or not the first
        return
    num_entries = num_rows + num_negatives
    dim = tl.arange(0, DIM)
    total = tl.zeros([DIM], tl.float32)
    more = 1
    while more > 0:
        place = entry + tl.arange(0, BLOCK)
        same = (place < num_entries) & (tl.load(item_ptr + place, mask=place < num_entries, other=-1) == item)
        source = tl.load(source_ptr + place, mask=same, other=0)
        of_row = same & (source < num_rows)
        h = _rows_at(hidden_ptr, source, hidden_stride, of_row, WIDTH, DIM).to(tl.float32)
        total += tl.sum(h * tl.load(own_weight_ptr + source, mask=of_row, other=0.0)[:, None], axis=0)
        of_negative = same & (source >= num_rows)
        total += tl.sum(_rows_at(negatives_gradient_ptr, source - num_rows, WIDTH, of_negative, WIDTH, DIM), axis=0)
        entry += BLOCK
        more = tl.min(same.to(tl.int32), axis=0)
    at = item * WIDTH + dim
    tl.store(grad_items_ptr + at, total.to(grad_items_ptr.dtype.element_ty), mask=dim < WIDTH)
