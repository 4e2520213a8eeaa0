"""The kernel of `segment_attention`'s backward that stays with a tile of queries: dq, and sums over its keys.

    ds_ij = slope_ij (dp_ij - delta_i)        dp_ij = dout_i . v_j        slope = p, or d(silu(s) / window) / ds
    dq_i  = scale sum_j ds_ij (k_j + r_{i-j})        du, dv = the same two terms, summed over i        dtable[b] =
    sum_{ij in b} ds_ij

(Dao, FlashAttention-2, 2023, algorithm 2; delta from `attention_backward_rows`; the table without targets' pairs with
themselves.) A program takes BLOCK_M queries of one user and head over the keys they see. du, dv and the time table are
sums over programs: each writes its own part, so that no two runs differ in a bit.
"""

import triton
import triton.language as tl

from longrec.kernels.attention_backward_tiles import (
    Entries,
    Relative,
    add_bias,
    entry_pointers,
    find_user,
    load_user,
    make_rows,
    products,
    query_tile,
    relative_rows,
    row_pointers,
    shift,
    weight_and_slope,
    whole,
)
from longrec.kernels.attention_tiles import Table

__all__ = ["query_gradient_kernel"]


@triton.jit
def _add_to_buckets(totals, values, bucket, visible, NUM_BUCKETS: tl.constexpr):
    """totals [NUM_BUCKETS] plus the sum of `values` [M, N] by bucket; 0 must stand where not visible.

    A pass over the tile for each bucket between its lowest and its highest: times rise with positions, so that a tile
    away from the diagonal holds one or two. Adding by atomics would be no shorter and differ from run to run.
    """
    lowest = tl.min(tl.where(visible, bucket, NUM_BUCKETS))
    highest = tl.max(tl.where(visible, bucket, -1))
    lane = tl.arange(0, NUM_BUCKETS)
    for b in range(lowest, highest + 1):
        total = tl.sum(tl.where(bucket == b, values, 0.0))
        totals += tl.where(lane == b, total, 0.0)
    return totals


@triton.jit
def query_gradient_kernel(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    v_ptr,  # [T, Hkv, D]
    grad_out_ptr,  # [T, Hq, D]
    lse2_ptr,  # [T, Hq] float32
    delta_ptr,  # [T, Hq] float32
    grad_own_ptr,  # [T, Hq] float32, of targets; or None
    grad_q_ptr,  # [T, Hq, D], written
    grad_u_ptr,  # [tiles, Hq, D] float32, written; or None
    grad_v_relative_ptr,  # [tiles, Hq, D] float32, written; or None
    grad_time_ptr,  # [tiles, Hq, TIME_LANES] float32, written; or None
    cu_seqlens_ptr,  # [B + 1]
    num_targets_ptr,  # [B], or None
    k_pages_ptr,  # [P, S, Hkv, D], or None
    v_pages_ptr,
    page_indptr_ptr,  # [B + 1], or None
    page_indices_ptr,
    lengths_ptr,
    u_ptr,  # [Hq, D], or None
    v_relative_ptr,  # [Hq, D], or None
    r_ptr,  # [R, Hq, D], or None
    position_ptr,  # [Hq, buckets], or None
    time_ptr,  # [Hq, buckets], or None
    query_seconds_ptr,  # [T], or None
    key_seconds_ptr,  # [T], or None
    memory_seconds_ptr,  # [P, S], or None
    stride_qt,
    stride_qh,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    stride_kp,
    stride_ks,
    stride_kph,
    stride_vp,
    stride_vs,
    stride_vph,
    stride_rr,
    stride_rh,
    num_users,
    num_relative,
    position_buckets,
    time_buckets,
    window,
    scale,
    inverse_window,
    SILU: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    POSITION_BITS: tl.constexpr,
    TIME_BITS: tl.constexpr,
    TIME_LANES: tl.constexpr,
    KINDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,  # dimensions at a time, see `products`
):
    RELATIVE: tl.constexpr = r_ptr is not None
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    tile = tl.program_id(0)
    head = tl.program_id(1)
    num_heads = tl.num_programs(1)
    who, number = find_user(tile, num_users, cu_seqlens_ptr, None, PAGE_SIZE, BLOCK_M, KINDS)
    user = load_user(who, cu_seqlens_ptr, num_targets_ptr, lengths_ptr, page_indptr_ptr, page_indices_ptr)
    first, limit, is_target = query_tile(number, user, BLOCK_M)
    if first >= limit:
        return

    line = tl.arange(0, BLOCK_M)
    live = first + line < limit
    first_position = user.past + tl.where(is_target, user.events, first)
    step = tl.where(is_target, 0, line)  # positions past the tile's first
    position = first_position + step
    dim = tl.arange(0, HEAD_DIM)
    first_row = user.first_row + first
    q_ptrs = row_pointers(q_ptr + head.to(tl.int64) * stride_qh, first_row, line, stride_qt)
    at = first_row * num_heads + head  # of the tile's first row, in [T, Hq]
    lines = line * num_heads
    dense = lines[:, None] * HEAD_DIM + dim[None, :]
    grad_out = make_rows(grad_out_ptr + at * HEAD_DIM + lines * HEAD_DIM, live, None, HEAD_DIM, BLOCK_D)
    lse2 = tl.load(lse2_ptr + at + lines, mask=live, other=0.0)
    delta = tl.zeros([BLOCK_M], tl.float32)
    if not SILU:
        delta = tl.load(delta_ptr + at + lines, mask=live, other=0.0)

    kv_head = (head // GROUP).to(tl.int64)
    keys = Entries(k_ptr + kv_head * stride_kh, stride_kt, None, stride_kp, stride_ks)
    values = Entries(v_ptr + kv_head * stride_vh, stride_vt, None, stride_vp, stride_vs)
    if k_pages_ptr is not None:
        keys = Entries(keys.new_ptr, stride_kt, k_pages_ptr + kv_head * stride_kph, stride_kp, stride_ks)
        values = Entries(values.new_ptr, stride_vt, v_pages_ptr + kv_head * stride_vph, stride_vp, stride_vs)
    positions_table = Table(
        None if position_ptr is None else position_ptr + head * position_buckets, position_buckets, POSITION_BITS
    )
    time_table = Table(None if time_ptr is None else time_ptr + head * time_buckets, time_buckets, TIME_BITS)
    seconds = line
    totals = None
    if time_ptr is not None:
        seconds = tl.load(query_seconds_ptr + first_row + line, mask=live, other=0)
        totals = tl.zeros([TIME_LANES], tl.float32)

    content = make_rows(q_ptrs, live, None if u_ptr is None else u_ptr + head * HEAD_DIM, HEAD_DIM, BLOCK_D)
    begin = tl.maximum(first_position - window + 1, 0)
    end = user.past + tl.where(is_target, user.events, tl.minimum(limit, first + BLOCK_M))
    if RELATIVE:
        relative_q = make_rows(q_ptrs, live, v_relative_ptr + head * HEAD_DIM, HEAD_DIM, BLOCK_D)
        relative = Relative(r_ptr + head.to(tl.int64) * stride_rh, stride_rr, num_relative)
        r_above = relative_rows(relative, first_position - begin + 1, BLOCK_N, HEAD_DIM, BLOCK_D)
        upper = products(relative_q, r_above, HEAD_DIM, BLOCK_D)  # [M, N]
        above = tl.zeros([BLOCK_M, BLOCK_N], dtype)  # the last tile's ds, by distance
        grad_relative = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)  # the part of dq that comes by r

    grad_q = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    if num_targets_ptr is not None:  # noqa: SIM102 - the outer one is decided at compile time
        if is_target:
            own_ptrs = row_pointers(keys.new_ptr, first_row, line, stride_kt)[:, None] + dim[None, :]
            own = tl.load(own_ptrs, mask=live[:, None], other=0.0).to(tl.float32)
            grad_own = tl.load(grad_own_ptr + at + lines, mask=live, other=0.0)
            grad_q += grad_own[:, None] * own
            if RELATIVE:
                grad_relative += grad_own[:, None] * tl.load(relative.ptr + dim).to(tl.float32)[None, :]
    for start in range(begin, end, BLOCK_N):
        place = start + tl.arange(0, BLOCK_N)
        held = place < end
        k_ptrs = entry_pointers(keys, user, start, BLOCK_N, held, PAGE_SIZE)
        k = make_rows(k_ptrs, held, None, HEAD_DIM, BLOCK_D)
        v = make_rows(entry_pointers(values, user, start, BLOCK_N, held, PAGE_SIZE), held, None, HEAD_DIM, BLOCK_D)
        distance = position[:, None] - place[None, :]  # [M, N]
        visible = (distance >= 0) & (distance < window) & held[None, :] & live[:, None]

        score = products(content, k, HEAD_DIM, BLOCK_D)
        if RELATIVE:
            r = relative_rows(relative, first_position - start - BLOCK_N + 1, BLOCK_N, HEAD_DIM, BLOCK_D)
            lower = products(relative_q, r, HEAD_DIM, BLOCK_D)
            score += shift(lower, upper, step, BLOCK_N, AXIS=1)
            upper = lower
        score *= scale
        if position_ptr is not None:
            score = add_bias(score, distance, positions_table)[0]
        if time_ptr is not None:
            times = Entries(key_seconds_ptr, 1, memory_seconds_ptr, PAGE_SIZE, 1)
            time_ptrs = entry_pointers(times, user, start, BLOCK_N, held, PAGE_SIZE)
            key_seconds = tl.load(time_ptrs, mask=held, other=0)
            score, bucket = add_bias(score, seconds[:, None] - key_seconds[None, :], time_table)
        slope = weight_and_slope(score, lse2[:, None], visible, inverse_window, SILU)[1]
        grad_score = slope * (products(grad_out, v, HEAD_DIM, BLOCK_D) - delta[:, None])

        if time_ptr is not None:
            totals = _add_to_buckets(totals, grad_score, bucket, visible, TIME_LANES)
        grad_q = tl.dot(grad_score.to(dtype), whole(k, HEAD_DIM, BLOCK_D), grad_q, input_precision="tf32x3")
        if RELATIVE:
            # the distances from first_position - start + 1 on: this tile's and the last one's keys share them, no
            # query both
            by_distance = shift(grad_score, grad_score, step, BLOCK_N, AXIS=1).to(dtype)
            both = tl.where(tl.arange(0, BLOCK_N)[None, :] < step[:, None], by_distance, above)
            r_whole = relative_rows(relative, first_position - start + 1, BLOCK_N, HEAD_DIM, HEAD_DIM)
            grad_relative = tl.dot(both, r_whole.tile, grad_relative, input_precision="tf32x3")
            above = by_distance

    if RELATIVE:
        last = begin + tl.cdiv(tl.maximum(end - begin, 0), BLOCK_N) * BLOCK_N
        both = tl.where(tl.arange(0, BLOCK_N)[None, :] < step[:, None], tl.zeros_like(above), above)
        r_last = relative_rows(relative, first_position - last + 1, BLOCK_N, HEAD_DIM, HEAD_DIM)
        grad_relative = tl.dot(both, r_last.tile, grad_relative, input_precision="tf32x3")

    part = tile.to(tl.int64) * num_heads + head
    if RELATIVE:
        tl.store(grad_u_ptr + part * HEAD_DIM + dim, tl.sum(grad_q, axis=0) * scale)
        tl.store(grad_v_relative_ptr + part * HEAD_DIM + dim, tl.sum(grad_relative, axis=0) * scale)
        grad_q += grad_relative
    if time_ptr is not None:
        tl.store(grad_time_ptr + part * TIME_LANES + tl.arange(0, TIME_LANES), totals)
    grad_q_ptrs = grad_q_ptr + at * HEAD_DIM + dense
    tl.store(grad_q_ptrs, (grad_q * scale).to(grad_q_ptr.dtype.element_ty), mask=live[:, None])
