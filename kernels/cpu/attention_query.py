"""A single query of `attention_body`: all heads of it, over the keys that it sees, spans of `SPAN` keys at a time.

Reads each key and value once. A dot product a key, then the softmax of the span, then the weighted values. Pages lie
anywhere in memory, and the hardware's prefetcher starts anew at each 4 KiB: so while a page's keys are scored, the
page's values and the next page's keys are fetched into the second cache (256 users x 512 events in random pages:
4.8 ms, 7.5 into the first, 8.4 with no fetches). Keys of a page that lies right behind are left to the hardware,
which is faster at them: 4.1 ms where all pages are in order, 4.8 with fetches.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import numpy as np
from numba import float32, int32, int64, njit
from numba.extending import register_jitable

from longrec.kernels.cpu.primitives import LOWEST, exp2, maximum, offset, pointer, prefetch, silu
from longrec.kernels.cpu.vectors import dot, multiply_add

__all__ = ["SPAN", "attend_query", "no_terms", "query_floats"]

SPAN = 256  # keys between two rescalings


@register_jitable
def query_floats(num_heads: int, head_dim: int) -> int:
    """Float32s of scratch."""
    return num_heads * (2 * head_dim + SPAN + 2)


@njit(inline="always")
def no_terms(c, terms, terms_scratch, scores, user, token, start, stop):
    """Scores as they are."""


@njit(inline="always")
def _add_values(sums, weights, values, step, count, head_dim, columns):
    """sums [D] += the weighted sum of `count` values, `step` entries apart."""
    for d in range(0, head_dim, columns):
        multiply_add(offset(sums, d), 0, weights, 0, 1, offset(values, d), step, count, 1, columns, 1)


@njit(inline="always")  # in the caller's IR, so that the constants stay constants
def attend_query(
    c, scratch, user, row, entry, head_dim, columns, line, scaled, pointwise, add_terms, terms, terms_scratch
):
    """Attend new event `row` of `user`.

    Args:
        c: the `CALL`. scratch: pointer to `query_floats` float32s.
        entry: numba type of the pages' entries; head_dim, columns (of a product), line (entries of a cache line),
            scaled (pages have scales), pointwise (SiLU): constants.
        add_terms: adds to a span's scores; it gets `terms` and `terms_scratch`.
    """
    q, k, v = pointer(c.q, float32), pointer(c.k, float32), pointer(c.v, float32)
    out, lse2 = pointer(c.out, float32), pointer(c.lse2, float32)
    k_pages, v_pages = pointer(c.k_pages, entry), pointer(c.v_pages, entry)
    k_scale, v_scale = pointer(c.k_scale, float32), pointer(c.v_scale, float32)
    table = offset(pointer(c.page_indices, int32), int64(pointer(c.page_indptr, int32)[user]))
    begin = int64(pointer(c.cu_seqlens, int32)[user])
    past = int64(pointer(c.lengths, int32)[user])
    group = c.num_heads // c.num_kv_heads
    scale, divisor = float32(c.scale), float32(c.window)

    queries = scratch  # [Hq, D], scaled
    sums = offset(queries, c.num_heads * head_dim)  # [Hq, D]
    scores = offset(sums, c.num_heads * head_dim)  # [Hq, SPAN]
    maxima = offset(scores, c.num_heads * SPAN)  # [Hq]
    totals = offset(maxima, c.num_heads)  # [Hq]
    token = begin + row
    for head in range(c.num_heads):
        for d in range(head_dim):
            queries[head * head_dim + d] = q[token * c.q_token + head * c.q_head + d] * scale
            sums[head * head_dim + d] = float32(0.0)
        maxima[head] = float32(-np.inf)
        totals[head] = float32(0.0)
    last = past + row
    start = max(int64(0), last - c.window + 1)
    while start <= last:
        stop = min(start + SPAN, last + 1)

        j = start
        while j < min(stop, past):  # scores, page by page
            place = j % c.page_size
            page = int64(table[j // c.page_size])
            upto = min(j + c.page_size - place, stop, past)
            base = offset(k_pages, page * c.k_page + place * c.k_place)
            values = offset(v_pages, page * c.v_page + place * c.v_place)
            following = int64(table[min(j // c.page_size + 1, (past - 1) // c.page_size)])
            next_keys = offset(k_pages, following * c.k_page)
            for n in range(upto - j):
                for kv_head in range(c.num_kv_heads):
                    if following != page + 1:
                        for d in range(0, head_dim, line):
                            prefetch(offset(next_keys, n * c.k_place + kv_head * c.k_page_head + d))
                    for d in range(0, head_dim, line):
                        prefetch(offset(values, n * c.v_place + kv_head * c.v_page_head + d))
                    key = offset(base, n * c.k_place + kv_head * c.k_page_head)
                    for g in range(group):
                        head = kv_head * group + g
                        score = dot(offset(queries, head * head_dim), key, head_dim)
                        if scaled:
                            score *= k_scale[page * c.ks_page + (place + n) * c.ks_place + kv_head * c.ks_head]
                        scores[head * SPAN + j - start + n] = score
            j = upto
        while j < stop:
            for head in range(c.num_heads):
                key = offset(k, (begin + j - past) * c.k_token + head // group * c.k_head)
                scores[head * SPAN + j - start] = dot(offset(queries, head * head_dim), key, head_dim)
            j += 1
        add_terms(c, terms, terms_scratch, scores, user, token, start, stop)

        for head in range(c.num_heads):
            weights = offset(scores, head * SPAN)
            if pointwise:
                for n in range(stop - start):
                    weights[n] = silu(weights[n]) / divisor
            else:
                highest = maxima[head]
                for n in range(stop - start):
                    highest = maximum(highest, weights[n])
                shift = float32(LOWEST) if highest < float32(LOWEST) else highest
                rescale = exp2(maxima[head] - shift)
                total = float32(0.0)
                for n in range(stop - start):
                    weight = exp2(weights[n] - shift)
                    weights[n] = weight
                    total += weight
                totals[head] = totals[head] * rescale + total
                maxima[head] = highest
                for d in range(head_dim):
                    sums[head * head_dim + d] *= rescale

        j = start
        while j < min(stop, past):  # weighted values, page by page
            place = j % c.page_size
            page = int64(table[j // c.page_size])
            upto = min(j + c.page_size - place, stop, past)
            for head in range(c.num_heads):
                kv_head = head // group
                base = offset(v_pages, page * c.v_page + place * c.v_place + kv_head * c.v_page_head)
                weights = offset(scores, head * SPAN + j - start)
                if scaled:
                    for n in range(upto - j):
                        weights[n] *= v_scale[page * c.vs_page + (place + n) * c.vs_place + kv_head * c.vs_head]
                _add_values(offset(sums, head * head_dim), weights, base, c.v_place, upto - j, head_dim, columns)
            j = upto
        if j < stop:
            for head in range(c.num_heads):
                base = offset(v, (begin + j - past) * c.v_token + head // group * c.v_head)
                weights = offset(scores, head * SPAN + j - start)
                _add_values(offset(sums, head * head_dim), weights, base, c.v_token, stop - j, head_dim, columns)
        start = stop

    for head in range(c.num_heads):
        row_out = offset(out, (token * c.num_heads + head) * head_dim)
        inverse = float32(1.0) if pointwise else float32(1.0) / totals[head]
        log = float32(0.0) if pointwise else maxima[head] + float32(np.log2(totals[head]))
        if not pointwise and maxima[head] == float32(-np.inf):
            inverse = float32(0.0)
            log = float32(-np.inf)
        lse2[token * c.num_heads + head] = log
        for d in range(head_dim):
            row_out[d] = sums[head * head_dim + d] * inverse
