"""The kernel of `segment_attention`'s backward that stays with a tile of distances: Transformer-XL's dr, and the sum
of ds over all pairs at a distance, from which the position table's gradient is summed.

    dr_d = scale sum_i ds_{i, i-d} (q_i + v)                w_d = sum_i ds_{i, i-d}

A program has BLOCK_N distances of one head and every `num_parts`-th part of the batch's query tiles. For a tile of
queries it scores the two tiles of keys that lie these distances back, and shifts them into one tile by distance and
query, so that nothing is added to from two programs. It writes sums of its own part, which the host adds up:
deterministic. `ds` as in `attention_backward_query`, delta from `attention_backward_rows`; without targets' pairs with
themselves.
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
    tile_start,
    weight_and_slope,
    whole,
)
from longrec.kernels.attention_tiles import Table

__all__ = ["distance_gradient_kernel"]


@triton.jit
def distance_gradient_kernel(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    v_ptr,  # [T, Hkv, D]
    grad_out_ptr,  # [T, Hq, D]
    lse2_ptr,  # [T, Hq] float32
    delta_ptr,  # [T, Hq] float32
    grad_r_ptr,  # [parts, distances, Hq, D] float32, written; or None
    by_distance_ptr,  # [parts, distances, Hq] float32, written; or None
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
    num_tiles,  # of queries
    num_distances,
    window,
    scale,
    inverse_window,
    SILU: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    POSITION_BITS: tl.constexpr,
    TIME_BITS: tl.constexpr,
    KINDS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,  # dimensions at a time, see `products`
):
    RELATIVE: tl.constexpr = r_ptr is not None
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    head = tl.program_id(1)
    num_heads = tl.num_programs(1)
    first_distance = tl.program_id(0) * BLOCK_N
    line = tl.arange(0, BLOCK_N)
    dim = tl.arange(0, HEAD_DIM)
    distance = first_distance + line  # [N]
    kv_head = (head // GROUP).to(tl.int64)
    keys = Entries(k_ptr + kv_head * stride_kh, stride_kt, None, stride_kp, stride_ks)
    values = Entries(v_ptr + kv_head * stride_vh, stride_vt, None, stride_vp, stride_vs)
    times = Entries(key_seconds_ptr, 1, memory_seconds_ptr, PAGE_SIZE, 1)
    if k_pages_ptr is not None:
        keys = Entries(keys.new_ptr, stride_kt, k_pages_ptr + kv_head * stride_kph, stride_kp, stride_ks)
        values = Entries(values.new_ptr, stride_vt, v_pages_ptr + kv_head * stride_vph, stride_vp, stride_vs)
    positions_table = Table(
        None if position_ptr is None else position_ptr + head * position_buckets, position_buckets, POSITION_BITS
    )
    time_table = Table(None if time_ptr is None else time_ptr + head * time_buckets, time_buckets, TIME_BITS)
    by_distance = tl.zeros([BLOCK_N], tl.float32)
    if RELATIVE:
        relative = Relative(r_ptr + head.to(tl.int64) * stride_rh, stride_rr, num_relative)
        r = relative_rows(relative, first_distance, BLOCK_N, HEAD_DIM, BLOCK_D)
        grad_r = tl.zeros([BLOCK_N, HEAD_DIM], tl.float32)

    part_tiles = tl.cdiv(num_tiles, tl.num_programs(2))
    begin = tl.program_id(2) * part_tiles
    end = tl.minimum(begin + part_tiles, num_tiles)
    who = find_user(begin, num_users, cu_seqlens_ptr, None, PAGE_SIZE, BLOCK_N, KINDS)[0]
    for tile in range(begin, end):
        # a user has at least one number, so a tile is past this user's or the next one's
        later = tile_start(who + 1, who + 1 < num_users, cu_seqlens_ptr, None, PAGE_SIZE, BLOCK_N, KINDS)
        who += ((who + 1 < num_users) & (later <= tile)).to(tl.int32)
        number = tile - tile_start(who, True, cu_seqlens_ptr, None, PAGE_SIZE, BLOCK_N, KINDS)
        user = load_user(who, cu_seqlens_ptr, num_targets_ptr, lengths_ptr, page_indptr_ptr, page_indices_ptr)
        first, limit, is_target = query_tile(number, user, BLOCK_N)
        last_position = user.past + tl.where(is_target, user.events, tl.minimum(limit, first + BLOCK_N) - 1)
        if (first < limit) & (first_distance <= last_position):
            live = first + line < limit
            first_position = user.past + tl.where(is_target, user.events, first)
            step = tl.where(is_target, 0, line)
            first_row = user.first_row + first
            at = first_row * num_heads + head  # of the tile's first row, in [T, Hq]
            lines = line * num_heads
            q_ptrs = row_pointers(q_ptr + head.to(tl.int64) * stride_qh, first_row, line, stride_qt)
            content = make_rows(q_ptrs, live, None if u_ptr is None else u_ptr + head * HEAD_DIM, HEAD_DIM, BLOCK_D)
            grad_out = make_rows(grad_out_ptr + at * HEAD_DIM + lines * HEAD_DIM, live, None, HEAD_DIM, BLOCK_D)
            lse2 = tl.load(lse2_ptr + at + lines, mask=live, other=0.0)
            delta = tl.zeros([BLOCK_N], tl.float32)
            if not SILU:
                delta = tl.load(delta_ptr + at + lines, mask=live, other=0.0)

            # query m's key at distance n: `lower` is the first of the N keys up to that of (0, 0), `upper` of the N
            # after
            lower = first_position - first_distance - BLOCK_N + 1
            upper = lower + BLOCK_N
            newest = user.past + user.events
            in_lower = (lower + line >= 0) & (lower + line < newest)
            in_upper = (upper + line >= 0) & (upper + line < newest)
            lower_k = entry_pointers(keys, user, lower, BLOCK_N, in_lower, PAGE_SIZE)
            upper_k = entry_pointers(keys, user, upper, BLOCK_N, in_upper, PAGE_SIZE)
            lower_score = products(make_rows(lower_k, in_lower, None, HEAD_DIM, BLOCK_D), content, HEAD_DIM, BLOCK_D)
            upper_score = products(make_rows(upper_k, in_upper, None, HEAD_DIM, BLOCK_D), content, HEAD_DIM, BLOCK_D)
            score = shift(lower_score, upper_score, step, BLOCK_N, AXIS=0)  # [N, M]
            if RELATIVE:
                relative_q = make_rows(q_ptrs, live, v_relative_ptr + head * HEAD_DIM, HEAD_DIM, BLOCK_D)
                score += products(r, relative_q, HEAD_DIM, BLOCK_D)
            score *= scale
            lower_v = entry_pointers(values, user, lower, BLOCK_N, in_lower, PAGE_SIZE)
            upper_v = entry_pointers(values, user, upper, BLOCK_N, in_upper, PAGE_SIZE)
            lower_dp = products(make_rows(lower_v, in_lower, None, HEAD_DIM, BLOCK_D), grad_out, HEAD_DIM, BLOCK_D)
            upper_dp = products(make_rows(upper_v, in_upper, None, HEAD_DIM, BLOCK_D), grad_out, HEAD_DIM, BLOCK_D)
            grad_weight = shift(lower_dp, upper_dp, step, BLOCK_N, AXIS=0)
            place = (first_position + step)[None, :] - distance[:, None]  # [N, M]
            visible = (place >= 0) & (place < newest) & (distance < window)[:, None] & live[None, :]
            if position_ptr is not None:
                every = tl.broadcast_to(distance[:, None], [BLOCK_N, BLOCK_N])
                score = add_bias(score, every, positions_table)[0]
            if time_ptr is not None:
                seconds = tl.load(query_seconds_ptr + first_row + line, mask=live, other=0)
                lower_ptrs = entry_pointers(times, user, lower, BLOCK_N, in_lower, PAGE_SIZE)
                upper_ptrs = entry_pointers(times, user, upper, BLOCK_N, in_upper, PAGE_SIZE)
                lower_seconds = tl.load(lower_ptrs, mask=in_lower, other=0)
                upper_seconds = tl.load(upper_ptrs, mask=in_upper, other=0)
                key_seconds = shift(
                    tl.broadcast_to(lower_seconds[:, None], [BLOCK_N, BLOCK_N]),
                    tl.broadcast_to(upper_seconds[:, None], [BLOCK_N, BLOCK_N]),
                    step,
                    BLOCK_N,
                    AXIS=0,
                )
                score = add_bias(score, seconds[None, :] - key_seconds, time_table)[0]
            slope = weight_and_slope(score, lse2[None, :], visible, inverse_window, SILU)[1]
            grad_score = slope * (grad_weight - delta[None, :])
            if by_distance_ptr is not None:
                by_distance += tl.sum(grad_score, axis=1)
            if RELATIVE:
                whole_q = whole(relative_q, HEAD_DIM, BLOCK_D)
                grad_r = tl.dot(grad_score.to(dtype), whole_q, grad_r, input_precision="tf32x3")

    part = tl.program_id(2).to(tl.int64)
    to = (part * num_distances + distance) * num_heads + head
    known = distance < num_distances
    if by_distance_ptr is not None:
        tl.store(by_distance_ptr + to, by_distance, mask=known)
    if RELATIVE:
        tl.store(grad_r_ptr + to[:, None] * HEAD_DIM + dim[None, :], grad_r * scale, mask=known[:, None])
