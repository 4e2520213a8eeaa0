"""The kernel of `segment_attention`'s backward that stays with a tile of keys: dk and dv.

    dv_j = sum_i w_ij dout_i            dk_j = scale sum_i ds_ij (q_i + u)

summed over the queries that see key j and over the query heads of its group; w, ds as in `attention_backward_query`,
delta from `attention_backward_rows`, which has written dk and dv of targets. Scores are held key by query, so that
both sums are products without a transposition. A program has BLOCK_N keys of one user and kv head: new events, and
memory's if they have gradients.
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
    relative_rows,
    row_pointers,
    shift,
    weight_and_slope,
    whole,
)
from longrec.kernels.attention_tiles import Table

__all__ = ["key_gradient_kernel"]


@triton.jit
def key_gradient_kernel(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    v_ptr,  # [T, Hkv, D]
    grad_out_ptr,  # [T, Hq, D]
    lse2_ptr,  # [T, Hq] float32
    delta_ptr,  # [T, Hq] float32
    grad_k_ptr,  # [T, Hkv, D], written
    grad_v_ptr,  # [T, Hkv, D], written
    grad_k_listed_ptr,  # [N, S, Hkv, D], written up to each user's length; None: memory has no gradient
    grad_v_listed_ptr,
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,  # dimensions at a time, see `products`
):
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    MEMORY_GRADIENT: tl.constexpr = grad_k_listed_ptr is not None
    counted_pages = page_indptr_ptr if MEMORY_GRADIENT else None
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    num_kv_heads = tl.num_programs(1)
    who, number = find_user(tile, num_users, cu_seqlens_ptr, counted_pages, PAGE_SIZE, BLOCK_N, 1)
    user = load_user(who, cu_seqlens_ptr, num_targets_ptr, lengths_ptr, page_indptr_ptr, page_indices_ptr)
    oldest = 0 if MEMORY_GRADIENT else user.past  # the first key with a gradient
    begin = oldest + number * BLOCK_N
    end = user.past + user.events
    if begin >= end:
        return

    dim = tl.arange(0, HEAD_DIM)
    head_of_keys = kv_head.to(tl.int64)
    keys = Entries(k_ptr + head_of_keys * stride_kh, stride_kt, None, stride_kp, stride_ks)
    values = Entries(v_ptr + head_of_keys * stride_vh, stride_vt, None, stride_vp, stride_vs)
    times = Entries(key_seconds_ptr, 1, memory_seconds_ptr, PAGE_SIZE, 1)
    if MEMORY_GRADIENT:  # else no tile holds a key of memory
        keys = Entries(keys.new_ptr, stride_kt, k_pages_ptr + head_of_keys * stride_kph, stride_kp, stride_ks)
        values = Entries(values.new_ptr, stride_vt, v_pages_ptr + head_of_keys * stride_vph, stride_vp, stride_vs)
    line = tl.arange(0, BLOCK_M)
    place = begin + tl.arange(0, BLOCK_N)
    held = place < end
    k = make_rows(entry_pointers(keys, user, begin, BLOCK_N, held, PAGE_SIZE), held, None, HEAD_DIM, BLOCK_D)
    v = make_rows(entry_pointers(values, user, begin, BLOCK_N, held, PAGE_SIZE), held, None, HEAD_DIM, BLOCK_D)
    key_seconds = place
    if time_ptr is not None:
        key_seconds = tl.load(entry_pointers(times, user, begin, BLOCK_N, held, PAGE_SIZE), mask=held, other=0)

    # seen by these events, then by all targets or none
    first_event = tl.maximum(begin, user.past) - user.past
    last_event = tl.minimum(user.events, begin + BLOCK_N - 1 + window - user.past)
    event_rows = tl.maximum(last_event - first_event, 0)
    query_tiles = tl.cdiv(event_rows, BLOCK_M)
    all_tiles = query_tiles
    if num_targets_ptr is not None:
        seen_by_targets = end - (begin + BLOCK_N - 1) < window
        all_tiles += tl.where(seen_by_targets, tl.cdiv(user.rows - user.events, BLOCK_M), 0)

    grad_k = tl.zeros([BLOCK_N, HEAD_DIM], tl.float32)
    grad_v = tl.zeros([BLOCK_N, HEAD_DIM], tl.float32)
    num_heads = num_kv_heads * GROUP
    for i in range(GROUP * all_tiles):  # one loop over heads and tiles, which is pipelined from end to end
        head = kv_head * GROUP + i // all_tiles
        tile = i % all_tiles
        to_targets = tile >= query_tiles
        first = tl.where(to_targets, user.events + (tile - query_tiles) * BLOCK_M, first_event + tile * BLOCK_M)
        live = first + line < tl.where(to_targets, user.rows, last_event)
        first_position = user.past + tl.where(to_targets, user.events, first)
        step = tl.where(to_targets, 0, line)
        first_row = user.first_row + first
        at = first_row * num_heads + head  # of the tile's first row, in [T, Hq]
        lines = line * num_heads
        q_ptrs = row_pointers(q_ptr + head.to(tl.int64) * stride_qh, first_row, line, stride_qt)
        u = None if u_ptr is None else u_ptr + head * HEAD_DIM
        content = make_rows(q_ptrs, live, u, HEAD_DIM, BLOCK_D)
        grad_out = make_rows(grad_out_ptr + at * HEAD_DIM + lines * HEAD_DIM, live, None, HEAD_DIM, BLOCK_D)
        lse2 = tl.load(lse2_ptr + at + lines, mask=live, other=0.0)
        distance = (first_position + step)[None, :] - place[:, None]  # [N, M]
        visible = (distance >= 0) & (distance < window) & held[:, None] & live[None, :]

        score = products(k, content, HEAD_DIM, BLOCK_D)  # [N, M]
        if r_ptr is not None:
            relative_q = make_rows(q_ptrs, live, v_relative_ptr + head * HEAD_DIM, HEAD_DIM, BLOCK_D)
            relative = Relative(r_ptr + head.to(tl.int64) * stride_rh, stride_rr, num_relative)
            nearest = first_position - begin - BLOCK_N + 1
            lower_r = relative_rows(relative, nearest, BLOCK_N, HEAD_DIM, BLOCK_D)
            upper_r = relative_rows(relative, nearest + BLOCK_N, BLOCK_N, HEAD_DIM, BLOCK_D)
            lower = products(lower_r, relative_q, HEAD_DIM, BLOCK_D)
            score += shift(lower, products(upper_r, relative_q, HEAD_DIM, BLOCK_D), step, BLOCK_N, AXIS=0)
        score *= scale
        if position_ptr is not None:
            table = Table(position_ptr + head * position_buckets, position_buckets, POSITION_BITS)
            score = add_bias(score, distance, table)[0]
        if time_ptr is not None:
            table = Table(time_ptr + head * time_buckets, time_buckets, TIME_BITS)
            seconds = tl.load(query_seconds_ptr + first_row + line, mask=live, other=0)
            score = add_bias(score, seconds[None, :] - key_seconds[:, None], table)[0]
        weight, slope = weight_and_slope(score, lse2[None, :], visible, inverse_window, SILU)
        whole_grad_out = whole(grad_out, HEAD_DIM, BLOCK_D)
        grad_v = tl.dot(weight.to(dtype), whole_grad_out, grad_v, input_precision="tf32x3")
        grad_weight = products(v, grad_out, HEAD_DIM, BLOCK_D)
        if not SILU:
            grad_weight -= tl.load(delta_ptr + at + lines, mask=live, other=0.0)[None, :]
        grad_score = (slope * grad_weight).to(dtype)
        grad_k = tl.dot(grad_score, whole(content, HEAD_DIM, BLOCK_D), grad_k, input_precision="tf32x3")

    to_k = grad_k_ptr + kv_head * HEAD_DIM
    to_v = grad_v_ptr + kv_head * HEAD_DIM
    width = num_kv_heads * HEAD_DIM
    place_in_rows = (user.first_row + place - user.past) * width
    to_rows = place_in_rows[:, None] + dim[None, :]
    new = (held & (place >= user.past))[:, None]
    grad_k *= scale
    tl.store(to_k + to_rows, grad_k.to(grad_k_ptr.dtype.element_ty), mask=new)
    tl.store(to_v + to_rows, grad_v.to(grad_v_ptr.dtype.element_ty), mask=new)
    if MEMORY_GRADIENT:
        first_place = tl.load(page_indptr_ptr + who).to(tl.int64) * PAGE_SIZE
        to_pages = (kv_head * HEAD_DIM + (first_place + place) * width)[:, None] + dim[None, :]
        old = (held & (place < user.past))[:, None]
        tl.store(grad_k_listed_ptr + to_pages, grad_k.to(grad_k_listed_ptr.dtype.element_ty), mask=old)
        tl.store(grad_v_listed_ptr + to_pages, grad_v.to(grad_v_listed_ptr.dtype.element_ty), mask=old)
