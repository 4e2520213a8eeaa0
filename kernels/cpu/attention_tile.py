"""A tile of `attention_body`: up to 16 rows (queries x heads of a group) of one kv head, a lane each.

Scores are K Q^T, keys down and rows across: keys enter as scalars that need no transposing, and maxima, exponentials
and sums run along the lanes. Blocks of `BLOCK` keys, from the window of the first query to the last query itself; only
blocks that the window or causality cuts are masked.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import numpy as np
from numba import float32, int32, int64, njit

from longrec.kernels.cpu.primitives import LOWEST, exp2, maximum, offset, pointer, silu
from longrec.kernels.cpu.vectors import LANES, multiply_add

__all__ = ["attend_tile", "tile_floats"]

BLOCK = 64  # keys between two rescalings
GROUP = 8  # rows of a product whose sums stay in registers


def tile_floats(head_dim: int) -> int:
    """Float32s of scratch."""
    return LANES * (2 * head_dim + BLOCK + 4)


@njit(inline="always")
def _score_keys(scores, keys, step, count, queries, head_dim):
    """scores [count, LANES] = products of `count` keys, `step` entries apart, with queries [D, LANES]."""
    n = int64(0)
    while n + GROUP <= count:
        multiply_add(
            offset(scores, n * LANES), LANES, offset(keys, n * step), step, 1, queries, LANES, head_dim, GROUP, LANES, 0
        )
        n += GROUP
    while n < count:
        multiply_add(offset(scores, n * LANES), 0, offset(keys, n * step), 0, 1, queries, LANES, head_dim, 1, LANES, 0)
        n += 1


@njit(inline="always")
def _add_values(sums, weights, values, step, count, head_dim, columns):
    """sums [LANES, D] += weights [count, LANES]^T and `count` values, `step` entries apart."""
    for lane in range(0, LANES, GROUP):
        for d in range(0, head_dim, columns):
            multiply_add(
                offset(sums, lane * head_dim + d), head_dim, offset(weights, lane), 1, LANES,
                offset(values, d), step, count, GROUP, columns, 1,
            )  # fmt: skip


@njit(inline="always")  # in the caller's IR, so that the constants stay constants
def attend_tile(c, scratch, user, first_row, kv_head, entry, head_dim, columns, scaled, pointwise):
    """Attend the heads of `kv_head` of new events `first_row` and after, as many as a tile holds, of `user`.

    Args:
        c: the `CALL`. scratch: pointer to `tile_floats` float32s.
        entry: numba type of the pages' entries; head_dim, columns (of a product), scaled (pages have scales),
            pointwise (SiLU): constants.
    """
    q, k, v = pointer(c.q, float32), pointer(c.k, float32), pointer(c.v, float32)
    out, lse2 = pointer(c.out, float32), pointer(c.lse2, float32)
    k_pages, v_pages = pointer(c.k_pages, entry), pointer(c.v_pages, entry)
    k_scale, v_scale = pointer(c.k_scale, float32), pointer(c.v_scale, float32)
    table = offset(pointer(c.page_indices, int32), int64(pointer(c.page_indptr, int32)[user]))
    cu_seqlens = pointer(c.cu_seqlens, int32)
    begin = int64(cu_seqlens[user])
    count = int64(cu_seqlens[user + 1]) - begin
    past = int64(pointer(c.lengths, int32)[user])
    group = c.num_heads // c.num_kv_heads
    scale, divisor = float32(c.scale), float32(c.window)
    rows = min(LANES // group, count - first_row)
    lanes = rows * group

    queries = scratch  # [D, LANES], scaled
    sums = offset(queries, head_dim * LANES)  # [LANES, D]
    weights = offset(sums, LANES * head_dim)  # [BLOCK, LANES]
    maxima = offset(weights, BLOCK * LANES)  # [LANES], as the next three
    totals = offset(maxima, LANES)
    shifts = offset(totals, LANES)
    rescales = offset(shifts, LANES)
    for lane in range(LANES):
        maxima[lane] = float32(-np.inf)
        totals[lane] = float32(0.0)
        source = offset(q, 0)
        if lane < lanes:
            token = begin + first_row + lane // group
            source = offset(q, token * c.q_token + (kv_head * group + lane % group) * c.q_head)
        for d in range(head_dim):
            queries[d * LANES + lane] = source[d] * scale if lane < lanes else float32(0.0)
            sums[lane * head_dim + d] = float32(0.0)
    earliest = past + first_row  # position of the tile's first query
    last = earliest + rows - 1
    start = max(int64(0), earliest - c.window + 1)
    while start <= last:
        stop = min(start + BLOCK, last + 1)

        j = start
        while j < min(stop, past):  # scores [keys, LANES]
            place = j % c.page_size
            page = int64(table[j // c.page_size])
            upto = min(j + c.page_size - place, stop, past)
            base = offset(k_pages, page * c.k_page + place * c.k_place + kv_head * c.k_page_head)
            target = offset(weights, (j - start) * LANES)
            _score_keys(target, base, c.k_place, upto - j, queries, head_dim)
            if scaled:
                for n in range(upto - j):
                    key_scale = k_scale[page * c.ks_page + (place + n) * c.ks_place + kv_head * c.ks_head]
                    for lane in range(LANES):
                        target[n * LANES + lane] *= key_scale
            j = upto
        if j < stop:
            base = offset(k, (begin + j - past) * c.k_token + kv_head * c.k_head)
            _score_keys(offset(weights, (j - start) * LANES), base, c.k_token, stop - j, queries, head_dim)

        # query t of the tile sees keys above earliest + t - window, up to earliest + t
        cut = stop - 1 > earliest or start <= last - c.window
        hidden = float32(-np.inf)
        if cut:
            for n in range(stop - start):
                ahead = start + n - earliest  # of the first query
                low = int32(max(ahead, 0) * group)  # lanes that see the key: no division for each
                high = int32(min(ahead + c.window, LANES) * group)
                scores = offset(weights, n * LANES)
                for lane in range(LANES):
                    scores[lane] = scores[lane] if (int32(lane) >= low) & (int32(lane) < high) else hidden

        if pointwise:
            for n in range((stop - start) * LANES):
                weights[n] = silu(weights[n]) / divisor  # 0 where hidden
        else:
            for lane in range(LANES):
                shifts[lane] = maxima[lane]
            for n in range(stop - start):
                for lane in range(LANES):
                    shifts[lane] = maximum(shifts[lane], weights[n * LANES + lane])
            for lane in range(LANES):
                highest = shifts[lane]
                shift = float32(LOWEST) if highest < float32(LOWEST) else highest
                rescales[lane] = exp2(maxima[lane] - shift)
                maxima[lane] = highest
                shifts[lane] = shift
                totals[lane] *= rescales[lane]
            for n in range(stop - start):
                for lane in range(LANES):
                    weights[n * LANES + lane] -= shifts[lane]
            for n in range((stop - start) * LANES):  # one array alone: nothing to prove before it vectorises
                weights[n] = exp2(weights[n])
            parts = shifts  # of the totals, a block each: one sum over a long memory loses bits
            for lane in range(LANES):
                parts[lane] = float32(0.0)
            for n in range(stop - start):
                for lane in range(LANES):
                    parts[lane] += weights[n * LANES + lane]
            for lane in range(LANES):
                totals[lane] += parts[lane]
            for lane in range(LANES):
                for d in range(head_dim):
                    sums[lane * head_dim + d] *= rescales[lane]

        j = start
        while j < min(stop, past):  # sums [LANES, D] += weights^T values
            place = j % c.page_size
            page = int64(table[j // c.page_size])
            upto = min(j + c.page_size - place, stop, past)
            base = offset(v_pages, page * c.v_page + place * c.v_place + kv_head * c.v_page_head)
            source = offset(weights, (j - start) * LANES)
            if scaled:
                for n in range(upto - j):
                    value_scale = v_scale[page * c.vs_page + (place + n) * c.vs_place + kv_head * c.vs_head]
                    for lane in range(LANES):
                        source[n * LANES + lane] *= value_scale
            _add_values(sums, source, base, c.v_place, upto - j, head_dim, columns)
            j = upto
        if j < stop:
            base = offset(v, (begin + j - past) * c.v_token + kv_head * c.v_head)
            _add_values(sums, offset(weights, (j - start) * LANES), base, c.v_token, stop - j, head_dim, columns)
        start = stop

    for lane in range(lanes):
        token = begin + first_row + lane // group
        at = token * c.num_heads + kv_head * group + lane % group
        inverse = float32(1.0) if pointwise else float32(1.0) / totals[lane]
        log = float32(0.0) if pointwise else maxima[lane] + float32(np.log2(totals[lane]))
        if not pointwise and maxima[lane] == float32(-np.inf):
            inverse = float32(0.0)
            log = float32(-np.inf)
        lse2[at] = log
        for d in range(head_dim):
            out[at * head_dim + d] = sums[lane * head_dim + d] * inverse
