"""The kernel of `segment_attention`'s backward that runs first, row by row: delta, and all of a target's pair with
itself.

    delta_i = dout_i . out_i - log2(e) dlse2_i

(Dao, FlashAttention-2, 2023, section 3.1.2), 0 for SiLU, which has no sum to divide by. A target is a key of its own
row alone, so that its dk and dv are finished here; the gradient of its score is left for the sums that it belongs to.
"""

import triton
import triton.language as tl

from longrec.kernels.attention_backward_tiles import (
    add_bias,
    find_user,
    load_user,
    query_tile,
    weight_and_slope,
)
from longrec.kernels.attention_tiles import LOG2_E, Table

__all__ = ["row_gradient_kernel"]


@triton.jit
def row_gradient_kernel(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    v_ptr,  # [T, Hkv, D]
    out_ptr,  # [T, Hq, D]
    grad_out_ptr,  # [T, Hq, D]
    lse2_ptr,  # [T, Hq] float32
    grad_lse2_ptr,  # [T, Hq] float32, or None
    delta_ptr,  # [T, Hq] float32, written
    grad_own_ptr,  # [T, Hq] float32, written for targets; None without targets
    grad_k_ptr,  # [T, Hkv, D], written for targets
    grad_v_ptr,
    cu_seqlens_ptr,  # [B + 1]
    num_targets_ptr,  # [B], or None
    u_ptr,  # [Hq, D], or None
    v_relative_ptr,  # [Hq, D], or None
    r_ptr,  # [R, Hq, D], or None
    position_ptr,  # [Hq, buckets], or None
    time_ptr,  # [Hq, buckets], or None
    query_seconds_ptr,  # [T], or None
    key_seconds_ptr,  # [T], or None
    stride_qt,
    stride_qh,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    stride_rh,
    num_users,
    position_buckets,
    time_buckets,
    scale,
    inverse_window,
    SILU: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TIME_BITS: tl.constexpr,
    KINDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    kv_head = tl.program_id(1)
    num_kv_heads = tl.num_programs(1)
    num_heads = num_kv_heads * GROUP
    who, number = find_user(tl.program_id(0), num_users, cu_seqlens_ptr, None, 1, BLOCK_M, KINDS)
    user = load_user(who, cu_seqlens_ptr, num_targets_ptr, None, None, None)
    first, limit, is_target = query_tile(number, user, BLOCK_M)
    if first >= limit:
        return
    rows = user.first_row + first + tl.arange(0, BLOCK_M)
    live = rows < user.first_row + limit
    mask = live[:, None]
    dim = tl.arange(0, HEAD_DIM)

    if not is_target:
        for member in range(GROUP):
            at = rows * num_heads + kv_head * GROUP + member
            delta = _delta(out_ptr, grad_out_ptr, grad_lse2_ptr, at, live, SILU, HEAD_DIM)
            tl.store(delta_ptr + at, delta, mask=live)
        return

    if num_targets_ptr is not None:
        k_ptrs = k_ptr + (rows * stride_kt + kv_head * stride_kh)[:, None] + dim[None, :]
        v_ptrs = v_ptr + (rows * stride_vt + kv_head * stride_vh)[:, None] + dim[None, :]
        k = tl.load(k_ptrs, mask=mask, other=0.0).to(tl.float32)  # [M, D]
        v = tl.load(v_ptrs, mask=mask, other=0.0).to(tl.float32)
        grad_k = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
        grad_v = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
        for member in range(GROUP):
            head = kv_head * GROUP + member
            at = rows * num_heads + head
            delta = _delta(out_ptr, grad_out_ptr, grad_lse2_ptr, at, live, SILU, HEAD_DIM)
            tl.store(delta_ptr + at, delta, mask=live)
            q_ptrs = q_ptr + (rows * stride_qt + head * stride_qh)[:, None] + dim[None, :]
            q = tl.load(q_ptrs, mask=mask, other=0.0)
            do_ptrs = grad_out_ptr + at[:, None] * HEAD_DIM + dim[None, :]
            grad_out = tl.load(do_ptrs, mask=mask, other=0.0).to(tl.float32)
            content = q.to(tl.float32)
            if r_ptr is not None:  # in the queries' dtype, as where the other keys are scored
                content = (content + tl.load(u_ptr + head * HEAD_DIM + dim).to(tl.float32)).to(q.dtype).to(tl.float32)
            score = tl.sum(content * k, axis=1)
            if r_ptr is not None:
                v_relative = tl.load(v_relative_ptr + head * HEAD_DIM + dim).to(tl.float32)
                relative_q = (q.to(tl.float32) + v_relative).to(q.dtype).to(tl.float32)
                nearest = tl.load(r_ptr + head.to(tl.int64) * stride_rh + dim).to(tl.float32)  # of distance 0
                score += tl.sum(relative_q * nearest[None, :], axis=1)
            score *= scale
            if position_ptr is not None:
                score += tl.load(position_ptr + head * position_buckets)  # distance 0 has bucket 0
            if time_ptr is not None:
                table = Table(time_ptr + head * time_buckets, time_buckets, TIME_BITS)
                seconds = tl.load(query_seconds_ptr + rows, mask=live, other=0)
                elapsed = seconds - tl.load(key_seconds_ptr + rows, mask=live, other=0)
                score = add_bias(score, elapsed, table)[0]
            lse2 = tl.load(lse2_ptr + at, mask=live, other=0.0)
            weight, slope = weight_and_slope(score, lse2, live, inverse_window, SILU)
            grad_own = slope * (tl.sum(grad_out * v, axis=1) - delta)
            tl.store(grad_own_ptr + at, grad_own, mask=live)
            grad_v += weight[:, None] * grad_out
            grad_k += grad_own[:, None] * content
        to = (rows * num_kv_heads + kv_head)[:, None] * HEAD_DIM + dim[None, :]
        tl.store(grad_k_ptr + to, (grad_k * scale).to(grad_k_ptr.dtype.element_ty), mask=mask)
        tl.store(grad_v_ptr + to, grad_v.to(grad_v_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _delta(out_ptr, grad_out_ptr, grad_lse2_ptr, at, live, SILU: tl.constexpr, HEAD_DIM: tl.constexpr):
    """delta [M] of the rows `at` of [T * Hq, D]."""
    delta = tl.zeros(at.shape, tl.float32)
    if not SILU:
        dense = at[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
        out = tl.load(out_ptr + dense, mask=live[:, None], other=0.0).to(tl.float32)
        grad_out = tl.load(grad_out_ptr + dense, mask=live[:, None], other=0.0).to(tl.float32)
        delta = tl.sum(grad_out * out, axis=1)
        if grad_lse2_ptr is not None:
            delta -= tl.load(grad_lse2_ptr + at, mask=live, other=0.0) * LOG2_E
    return delta
