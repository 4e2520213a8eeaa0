"""The forward kernels of `segment_attention`: attention of a tile of queries over a range of keys, and the merge.

    s_ij = scale q_i . k_j + bias            w = softmax(s) or silu(s) / window            out_i = sum_j w_ij v_j

One kernel does all: a program takes a tile of queries of one user (BLOCK_M rows; the heads of a kv group share a tile,
since they share keys) over the pages of its memory, then over its new events. Two launches differ in how work is cut:

- tiled, for long appends: a program a tile of queries. Tiles of keys that no query sees are skipped, tiles that all
  see go through a loop without masks, and only those that the diagonal or the window cuts are masked.
- split, for short appends (up to `short_rows` new events) over a long memory: a tile of queries is shared by several
  programs, each with a part of the memory, the last with the new events too; each writes its `(out, lse2)`, and
  `merge_kernel` combines them. A tile whose memory is too short to cut writes its result at once.

No launch depends on lengths: grids are upper bounds, and a program finds its user (by bisection of cu_seqlens), its
tile and its part in the device's own tensors, or that there is nothing to do. Scores are in base 2; see
`attention_tiles`.
"""

import triton
import triton.language as tl

from longrec.kernels.attention_tiles import (
    NewEvents,
    Pages,
    Query,
    Relative,
    Rules,
    State,
    Table,
    attend,
    attend_itself,
    load_memory,
    load_new,
    look_ahead,
)

__all__ = ["attend_kernel", "merge_kernel"]


@triton.jit
def _user_of_tile(tile, cu_seqlens_ptr, num_users, BLOCK_Q: tl.constexpr):
    """Whose tile this is, and which; user b's start at cu_seqlens[b] // BLOCK_Q + b, with room for a broken one."""
    low = 0
    high = num_users
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(cu_seqlens_ptr + middle) // BLOCK_Q + middle <= tile:
            low = middle
        else:
            high = middle
    return low, tile - (tl.load(cu_seqlens_ptr + low) // BLOCK_Q + low)


@triton.jit
def _memory_tiles(first_place, past, window, BLOCK_N: tl.constexpr):
    """Tiles of memory, from and up to, of which the query at `first_place`, or one after it, sees a key."""
    oldest = tl.maximum(first_place - window + 1 + past, 0)
    begin = tl.minimum(oldest, past) // BLOCK_N
    return begin, tl.where(oldest < past, tl.cdiv(past, BLOCK_N), begin)


@triton.jit
def _full_tiles(begin, end, see_from, see_to, MASK_ALL: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of tiles begin..end, those without a mask: every query sees all of their keys, being seen from and to by all."""
    full_begin = begin
    full_end = begin
    if not MASK_ALL:
        full_begin = tl.minimum(tl.maximum(tl.cdiv(see_from, BLOCK_N), begin), end)
        full_end = tl.maximum(tl.minimum(see_to // BLOCK_N, end), full_begin)
    return full_begin, full_end


@triton.jit
def _parts(num_tiles, max_parts, min_tiles):
    """Into how many parts these tiles of memory are cut, and how many tiles a part has; at least one part."""
    part_tiles = tl.maximum(tl.cdiv(num_tiles, max_parts), min_tiles)
    return tl.maximum(tl.cdiv(num_tiles, part_tiles), 1), part_tiles


@triton.jit
def attend_kernel(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    v_ptr,  # [T, Hkv, D]
    out_ptr,  # [T, Hq, D]
    lse2_ptr,  # [T, Hq] float32
    part_out_ptr,  # [parts, B, short_rows, Hq, D], or None: no memory is cut
    part_lse2_ptr,  # [parts, B, short_rows, Hq] float32, or None
    cu_seqlens_ptr,  # [B + 1]
    num_targets_ptr,  # [B], or None
    k_pages_ptr,  # [P, S, Hkv, D], or None: no memory
    v_pages_ptr,
    k_scale_ptr,  # [P, S, Hkv] float32, or None
    v_scale_ptr,
    page_indptr_ptr,  # [B + 1]
    page_indices_ptr,  # [N]
    lengths_ptr,  # [B]
    u_ptr,  # [Hq, D], or None
    v_relative_ptr,  # [Hq, D]
    r_ptr,  # [R, Hq, D]
    position_ptr,  # [Hq, buckets] float32, or None
    time_ptr,  # [Hq, buckets] float32, or None
    query_seconds_ptr,  # [T]
    key_seconds_ptr,  # [T]
    memory_seconds_ptr,  # [P, S]
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
    scale,  # times log2 e for softmax
    window,
    num_users,
    num_kv_heads,
    num_relative,
    position_buckets,
    time_buckets,
    position_bits,
    time_bits,
    short_rows,  # users with no more new events are for the split launch, the others for the tiled one
    max_parts,
    min_part_tiles,
    SPLIT: tl.constexpr,
    SILU: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,  # of a tile: GROUP, or 1 with relative terms, whose r differs by head
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,  # HEAD_DIM, or dimensions that scores are summed over at a time
):
    """A tile of queries of one user against all its keys, or with SPLIT against a part of its memory."""
    BLOCK_Q: tl.constexpr = BLOCK_M // HEADS
    RELATIVE: tl.constexpr = u_ptr is not None
    # masks cost little beside the wait for memory, a gather from a bias table or the relative shift: then one loop does
    MASK_ALL: tl.constexpr = SPLIT or RELATIVE or position_ptr is not None or time_ptr is not None
    EDGE_STAGES: tl.constexpr = None if MASK_ALL else 1
    tl.static_assert(not RELATIVE or BLOCK_M <= BLOCK_N, "the relative shift needs BLOCK_M <= BLOCK_N")
    if SPLIT:
        tiles_per_user = tl.cdiv(short_rows, BLOCK_Q)
        user = tl.program_id(0) // tiles_per_user
        tile = tl.program_id(0) % tiles_per_user
    else:  # last tiles first: they are the longest
        user, tile = _user_of_tile(tl.num_programs(0) - 1 - tl.program_id(0), cu_seqlens_ptr, num_users, BLOCK_Q)
    start = tl.load(cu_seqlens_ptr + user).to(tl.int64)
    count = (tl.load(cu_seqlens_ptr + user + 1) - start).to(tl.int32)
    if (count <= short_rows) != SPLIT:
        return
    first = tile * BLOCK_Q
    if first >= count:
        return

    events = count
    if num_targets_ptr is not None:
        events -= tl.load(num_targets_ptr + user)
    past = 0
    if k_pages_ptr is not None:
        past = tl.load(lengths_ptr + user)
    last = tl.minimum(first + BLOCK_Q, count) - 1
    first_place = tl.minimum(first, events)
    last_place = tl.minimum(last, events)
    all_see_from = last_place - window + 1  # the first place that the window hides from none of the queries

    memory_begin, memory_end = _memory_tiles(first_place, past, window, BLOCK_N)
    new_begin = tl.maximum(first_place - window + 1, 0) // BLOCK_N
    new_end = tl.cdiv(tl.minimum(last_place + 1, events), BLOCK_N)
    part = 0
    parts = 1
    if SPLIT:
        part = tl.program_id(2)
        parts, part_tiles = _parts(memory_end - memory_begin, max_parts, min_part_tiles)
        if part >= parts:
            return
        memory_begin += part * part_tiles
        memory_end = tl.minimum(memory_begin + part_tiles, memory_end)
        if part < parts - 1:
            new_end = new_begin
    new_end = tl.maximum(new_end, new_begin)

    m = tl.arange(0, BLOCK_M)
    dim = tl.arange(0, HEAD_DIM)
    row = first + m // HEADS
    head = tl.program_id(1) * HEADS + m % HEADS
    kv_head = (tl.program_id(1) * HEADS // GROUP).to(tl.int64)
    live = (m < BLOCK_Q * HEADS) & (row < count)
    q_rows = q_ptr + (start + row) * stride_qt + head * stride_qh
    q = tl.load(q_rows[:, None] + dim, mask=live[:, None], other=0.0)  # [BLOCK_M, D]
    relative = Relative(None, None, None, None, None, first_place)
    u_row = None
    if RELATIVE:
        u_row = u_ptr + tl.program_id(1) * HEAD_DIM  # a tile has one head
        v_row = v_relative_ptr + tl.program_id(1) * HEAD_DIM
        q_relative = (q.to(tl.float32) + tl.load(v_row + dim).to(tl.float32)).to(q.dtype)
        q = (q.to(tl.float32) + tl.load(u_row + dim).to(tl.float32)).to(q.dtype)
        r_ptr += tl.program_id(1).to(tl.int64) * stride_rh
        relative = Relative(q_relative, v_row, r_ptr, stride_rr, num_relative, first_place)
    seconds = None
    if time_ptr is not None:
        seconds = tl.load(query_seconds_ptr + start + row, mask=live, other=0)
    query = Query(q, tl.minimum(row, events), head, seconds, q_rows, live, u_row)
    position = Table(position_ptr, position_buckets, position_bits)
    rules = Rules(scale, window, position, Table(time_ptr, time_buckets, time_bits))
    new = NewEvents(
        events,
        k_ptr + start * stride_kt + kv_head * stride_kh,
        v_ptr + start * stride_vt + kv_head * stride_vh,
        stride_kt,
        stride_vt,
        None if key_seconds_ptr is None else key_seconds_ptr + start,
    )
    state = State(
        tl.zeros([BLOCK_M, HEAD_DIM], tl.float32),
        tl.full([BLOCK_M], float("-inf"), tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
        tl.zeros([BLOCK_M, BLOCK_N], tl.float32) if RELATIVE else None,
    )
    if num_targets_ptr is not None and part == parts - 1:
        state = attend_itself(state, query, new, rules, relative, row, live & (row >= events), SILU, HEAD_DIM)

    if k_pages_ptr is not None:
        pages = Pages(
            past,
            page_indices_ptr + tl.load(page_indptr_ptr + user),
            k_pages_ptr + kv_head * stride_kph,
            v_pages_ptr + kv_head * stride_vph,
            stride_kp,
            stride_ks,
            stride_vp,
            stride_vs,
            None if k_scale_ptr is None else k_scale_ptr + kv_head,
            None if v_scale_ptr is None else v_scale_ptr + kv_head,
            num_kv_heads,
            memory_seconds_ptr,
        )
        full_begin, full_end = _full_tiles(memory_begin, memory_end, all_see_from + past, past, MASK_ALL, BLOCK_N)
        if not MASK_ALL:
            for tile in range(full_begin, full_end):
                keys = load_memory(tile, pages, q.dtype, False, PAGE_SIZE, BLOCK_N, HEAD_DIM, BLOCK_D)
                place = tile * BLOCK_N - past
                state = attend(state, query, keys, place, 0, rules, relative, SILU, False, BLOCK_N, HEAD_DIM, BLOCK_D)
        if RELATIVE and memory_begin < memory_end:
            state = look_ahead(state, query, relative, memory_begin * BLOCK_N - past, BLOCK_N, HEAD_DIM, BLOCK_D)
        for edge in tl.range(memory_begin, memory_end - (full_end - full_begin), num_stages=EDGE_STAGES):
            tile = edge + tl.where(edge >= full_begin, full_end - full_begin, 0)
            keys = load_memory(tile, pages, q.dtype, True, PAGE_SIZE, BLOCK_N, HEAD_DIM, BLOCK_D)
            place = tile * BLOCK_N - past
            state = attend(state, query, keys, place, 0, rules, relative, SILU, True, BLOCK_N, HEAD_DIM, BLOCK_D)

    all_see_to = tl.minimum(first_place + 1, events)
    full_begin, full_end = _full_tiles(new_begin, new_end, all_see_from, all_see_to, MASK_ALL, BLOCK_N)
    if not MASK_ALL:
        for tile in range(full_begin, full_end):
            keys = load_new(tile, new, False, BLOCK_N, HEAD_DIM, BLOCK_D)
            state = attend(
                state, query, keys, tile * BLOCK_N, events, rules, relative, SILU, False, BLOCK_N, HEAD_DIM, BLOCK_D
            )
    if RELATIVE and new_begin < new_end:
        state = look_ahead(state, query, relative, new_begin * BLOCK_N, BLOCK_N, HEAD_DIM, BLOCK_D)
    for edge in tl.range(new_begin, new_end - (full_end - full_begin), num_stages=EDGE_STAGES):
        tile = edge + tl.where(edge >= full_begin, full_end - full_begin, 0)
        keys = load_new(tile, new, True, BLOCK_N, HEAD_DIM, BLOCK_D)
        state = attend(
            state, query, keys, tile * BLOCK_N, events, rules, relative, SILU, True, BLOCK_N, HEAD_DIM, BLOCK_D
        )

    num_heads = tl.num_programs(1) * HEADS
    if SILU:
        out = state.acc * (1.0 / window)
        lse2 = state.total
    else:
        # a row that saw nothing has total 0, lse2 -inf and out 0; 1e-30, since a smaller constant would be a float64
        total = tl.maximum(state.total, 1e-30)
        out = state.acc / total[:, None]
        lse2 = tl.where(state.total > 0.0, state.peak + tl.log2(total), float("-inf"))
    entry = (start + row) * num_heads + head
    if part_out_ptr is not None and SPLIT:  # noqa: SIM102, with `and` all three would be asked at run time
        if parts > 1:
            out_ptr = part_out_ptr
            lse2_ptr = part_lse2_ptr
            entry = ((part * num_users + user).to(tl.int64) * short_rows + row) * num_heads + head
    tl.store(out_ptr + (entry * HEAD_DIM)[:, None] + dim, out.to(q.dtype), mask=live[:, None])
    tl.store(lse2_ptr + entry, lse2, mask=live)


@triton.jit
def merge_kernel(
    out_ptr,  # [T, Hq, D]
    lse2_ptr,  # [T, Hq] float32
    part_out_ptr,  # [parts, B, short_rows, Hq, D]
    part_lse2_ptr,  # [parts, B, short_rows, Hq] float32
    cu_seqlens_ptr,  # [B + 1]
    num_targets_ptr,  # [B], or None
    lengths_ptr,  # [B]
    window,
    num_users,
    short_rows,
    max_parts,
    min_part_tiles,
    SILU: tl.constexpr,
    BLOCK_Q: tl.constexpr,  # queries of a tile of the split launch
    BLOCK_N: tl.constexpr,  # keys of a tile of the split launch
    BLOCK_P: tl.constexpr,  # parts that are read at once
    HEAD_DIM: tl.constexpr,
):
    """One row (query, head) from its parts; a row whose tile was not cut stands in `out` already.

    lse2 = log2(sum_p 2^lse2_p)            out = sum_p out_p 2^(lse2_p - lse2)            SiLU: out = sum_p out_p
    """
    user = tl.program_id(0) // short_rows
    row = tl.program_id(0) % short_rows
    start = tl.load(cu_seqlens_ptr + user).to(tl.int64)
    count = (tl.load(cu_seqlens_ptr + user + 1) - start).to(tl.int32)
    if (row >= count) or (count > short_rows):
        return
    events = count
    if num_targets_ptr is not None:
        events -= tl.load(num_targets_ptr + user)
    first_place = tl.minimum(row // BLOCK_Q * BLOCK_Q, events)
    begin, end = _memory_tiles(first_place, tl.load(lengths_ptr + user), window, BLOCK_N)
    parts, _ = _parts(end - begin, max_parts, min_part_tiles)
    if parts == 1:
        return

    dim = tl.arange(0, HEAD_DIM)
    head = tl.program_id(1)
    num_heads = tl.num_programs(1)
    acc = tl.zeros([HEAD_DIM], tl.float32)
    peak = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for first in range(0, parts, BLOCK_P):
        part = first + tl.arange(0, BLOCK_P)
        entry = ((part.to(tl.int64) * num_users + user) * short_rows + row) * num_heads + head
        if SILU:
            weights = tl.where(part < parts, 1.0, 0.0)  # [BLOCK_P]
        else:
            lse2 = tl.load(part_lse2_ptr + entry, mask=part < parts, other=float("-inf"))
            old = peak
            peak = tl.maximum(peak, tl.max(lse2, 0))
            base = tl.where(peak == float("-inf"), 0.0, peak)
            weights = tl.exp2(lse2 - base)
            faded = tl.exp2(old - base)
            total = total * faded + tl.sum(weights, 0)
            acc *= faded
        # parts that hold no key of this row are not read
        out = tl.load(part_out_ptr + (entry * HEAD_DIM)[:, None] + dim, mask=(weights > 0.0)[:, None], other=0.0)
        acc += tl.sum(out.to(tl.float32) * weights[:, None], 0)
    entry = (start + row) * num_heads + head
    if not SILU:
        lse2 = tl.where(total > 0.0, peak + tl.log2(tl.maximum(total, 1e-30)), float("-inf"))
        acc /= tl.maximum(total, 1e-30)
        tl.store(lse2_ptr + entry, lse2)
    else:
        tl.store(lse2_ptr + entry, 0.0)
    tl.store(out_ptr + entry * HEAD_DIM + dim, acc.to(out_ptr.dtype.element_ty))
