"""The jitted body of `segment_attention` on a CPU: one function that attends a share of a batch's queries.

Pages are read in place, in whatever dtype they are, up to each user's length and within the window, and nothing else
is: no gather, no padding, no temporary that grows with the memory. Two ways through it:

- a user with few query rows (new events x heads of a group): query by query, each over the keys that it sees, spans of
  `SPAN` keys at a time with an online softmax. It reads each key and value once, all kv heads of an event together.
- more rows: tiles of 16 (queries x heads of a group), a lane each. Scores are K Q^T, keys down and rows across, so that
  keys are scalars that need no transposing, and maxima, exponentials and sums run along the lanes.

Scores are in units of log 2: the scale holds log2(e). Sums are float32 in an order that depends on a query's place in
its user's memory and append alone: not on the batch, nor on how many threads share it.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numba import float32, from_dtype, int32, int64, njit, types, void

from longrec.kernels.cpu.primitives import BFLOAT16, FLOAT16, exp2, maximum, offset, pointer, prefetch
from longrec.kernels.cpu.vectors import dot, multiply_add

__all__ = ["CALL", "LANES", "SPAN", "attention_body", "scratch_floats"]

LANES = 16
SPAN = 256  # keys between two rescalings of a single query
BLOCK = 64  # keys between two rescalings of a tile
GROUP = 8  # rows of a product whose sums stay in registers
FEW_ROWS = 4  # up to so many, query by query is faster
PAGE_TYPES = {"float32": types.float32, "bfloat16": BFLOAT16, "float16": FLOAT16, "int8": types.int8}

# addresses and strides (in elements) of the operator's tensors, and its scalars
_INTEGERS = (
    "q", "q_token", "q_head", "k", "k_token", "k_head", "v", "v_token", "v_head", "out", "lse2", "cu_seqlens",
    "k_pages", "k_page", "k_place", "k_page_head", "v_pages", "v_page", "v_place", "v_page_head",
    "k_scale", "ks_page", "ks_place", "ks_head", "v_scale", "vs_page", "vs_place", "vs_head",
    "page_indptr", "page_indices", "lengths", "page_size",
    "num_users", "num_heads", "num_kv_heads", "window",
)  # fmt: skip
CALL = np.dtype([*((name, np.int64) for name in _INTEGERS), ("scale", np.float64)])

LOG2_E = 1.0 / np.log(2.0)
LOWEST = float(np.finfo(np.float32).min)


def scratch_floats(num_heads: int, head_dim: int) -> int:
    """Float32s that one share works in."""
    single = num_heads * (2 * head_dim + SPAN + 2)
    tile = LANES * (2 * head_dim + BLOCK + 4)
    return max(single, tile)


@functools.cache
def attention_body(head_dim: int, pages: str, silu: bool) -> Callable[..., None]:
    """The body for one head_dim (a multiple of 8), one page dtype and softmax or SiLU: `body(calls, scratch, share, shares)`.

    Compiled here, if no earlier process left it in numba's cache on disk: beside this file where that can be written,
    else in the user's cache folder. The sources' hash is part of the cache's key, since numba itself looks at this file
    alone.

    Returns:
        body: calls: one `CALL`; scratch: the address of `scratch_floats` float32s; share, shares: queries are dealt
            out to `shares` callers in turn, this one is number `share`. Releases the GIL.
    """
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))
    version = int(sources.hexdigest()[:8], 16)
    entry = PAGE_TYPES[pages]
    line = 64 * 8 // entry.bitwidth  # entries
    scaled = pages == "int8"
    columns = next(width for width in (64, 32, 16, 8) if head_dim % width == 0)
    tile_columns = min(columns, LANES)

    def body(calls, scratch_address, share, shares):
        assert version >= 0
        c = calls[0]
        q, k, v = pointer(c.q, float32), pointer(c.k, float32), pointer(c.v, float32)
        out, lse2 = pointer(c.out, float32), pointer(c.lse2, float32)
        cu_seqlens, lengths = pointer(c.cu_seqlens, int32), pointer(c.lengths, int32)
        page_indptr, page_indices = pointer(c.page_indptr, int32), pointer(c.page_indices, int32)
        k_pages, v_pages = pointer(c.k_pages, entry), pointer(c.v_pages, entry)
        k_scale, v_scale = pointer(c.k_scale, float32), pointer(c.v_scale, float32)
        scratch = pointer(scratch_address, float32)
        group = c.num_heads // c.num_kv_heads
        scale = float32(c.scale)
        silu_divisor = float32(c.window)
        unit = int64(0)
        for user in range(c.num_users):
            begin = int64(cu_seqlens[user])
            count = int64(cu_seqlens[user + 1]) - begin
            past = int64(lengths[user])
            table = offset(page_indices, int64(page_indptr[user]))

            if count * group <= FEW_ROWS:
                # scratch: scaled queries [Hq, D], sums [Hq, D], scores [Hq, SPAN], maxima [Hq], totals [Hq]
                queries = scratch
                sums = offset(queries, c.num_heads * head_dim)
                scores = offset(sums, c.num_heads * head_dim)
                maxima = offset(scores, c.num_heads * SPAN)
                totals = offset(maxima, c.num_heads)
                for row in range(count):
                    unit += 1
                    if unit % shares != share:
                        continue
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
                            ahead = offset(k_pages, following * c.k_page)
                            for n in range(upto - j):
                                for kv_head in range(c.num_kv_heads):
                                    for d in range(0, head_dim, line):
                                        prefetch(offset(ahead, n * c.k_place + kv_head * c.k_page_head + d))
                                        prefetch(offset(values, n * c.v_place + kv_head * c.v_page_head + d))
                                    key = offset(base, n * c.k_place + kv_head * c.k_page_head)
                                    for g in range(group):
                                        head = kv_head * group + g
                                        score = dot(offset(queries, head * head_dim), key, head_dim)
                                        if scaled:
                                            score *= k_scale[
                                                page * c.ks_page + (place + n) * c.ks_place + kv_head * c.ks_head
                                            ]
                                        scores[head * SPAN + j - start + n] = score
                            j = upto
                        while j < stop:
                            for head in range(c.num_heads):
                                key = offset(k, (begin + j - past) * c.k_token + head // group * c.k_head)
                                scores[head * SPAN + j - start] = dot(offset(queries, head * head_dim), key, head_dim)
                            j += 1

                        for head in range(c.num_heads):
                            weights = offset(scores, head * SPAN)
                            if silu:
                                for n in range(stop - start):
                                    x = weights[n]
                                    weights[n] = x / (float32(1.0) + exp2(-x * float32(LOG2_E))) / silu_divisor
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
                                        weights[n] *= v_scale[
                                            page * c.vs_page + (place + n) * c.vs_place + kv_head * c.vs_head
                                        ]
                                for d in range(0, head_dim, columns):
                                    multiply_add(
                                        offset(sums, head * head_dim + d), 0, weights, 0, 1,
                                        offset(base, d), c.v_place, upto - j, 1, columns, 1,
                                    )  # fmt: skip
                            j = upto
                        if j < stop:
                            for head in range(c.num_heads):
                                base = offset(v, (begin + j - past) * c.v_token + head // group * c.v_head)
                                weights = offset(scores, head * SPAN + j - start)
                                for d in range(0, head_dim, columns):
                                    multiply_add(
                                        offset(sums, head * head_dim + d), 0, weights, 0, 1,
                                        offset(base, d), c.v_token, stop - j, 1, columns, 1,
                                    )  # fmt: skip
                        start = stop

                    for head in range(c.num_heads):
                        row_out = offset(out, (token * c.num_heads + head) * head_dim)
                        inverse = float32(1.0) if silu else float32(1.0) / totals[head]
                        log = float32(0.0) if silu else maxima[head] + float32(np.log2(totals[head]))
                        if not silu and maxima[head] == float32(-np.inf):
                            inverse = float32(0.0)
                            log = float32(-np.inf)
                        lse2[token * c.num_heads + head] = log
                        for d in range(head_dim):
                            row_out[d] = sums[head * head_dim + d] * inverse
                continue

            # scratch: scaled queries [D, LANES], sums [LANES, D], weights [BLOCK, LANES], then [LANES] each
            queries = scratch
            sums = offset(queries, head_dim * LANES)
            weights = offset(sums, LANES * head_dim)
            maxima = offset(weights, BLOCK * LANES)
            totals = offset(maxima, LANES)
            shifts = offset(totals, LANES)
            rescales = offset(shifts, LANES)
            tile_rows = LANES // group  # queries of a tile
            for first_row in range(0, count, tile_rows):
                rows = min(tile_rows, count - first_row)
                lanes = rows * group
                for kv_head in range(c.num_kv_heads):
                    unit += 1
                    if unit % shares != share:
                        continue
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
                            n = int64(0)
                            while n + GROUP <= upto - j:
                                multiply_add(
                                    offset(target, n * LANES), LANES, offset(base, n * c.k_place), c.k_place, 1,
                                    queries, LANES, head_dim, GROUP, LANES, 0,
                                )  # fmt: skip
                                n += GROUP
                            while n < upto - j:
                                multiply_add(
                                    offset(target, n * LANES), 0, offset(base, n * c.k_place), 0, 1,
                                    queries, LANES, head_dim, 1, LANES, 0,
                                )  # fmt: skip
                                n += 1
                            if scaled:
                                for n in range(upto - j):
                                    key_scale = k_scale[
                                        page * c.ks_page + (place + n) * c.ks_place + kv_head * c.ks_head
                                    ]
                                    for lane in range(LANES):
                                        target[n * LANES + lane] *= key_scale
                            j = upto
                        base = offset(k, (begin - past) * c.k_token + kv_head * c.k_head)  # of position 0
                        while j + GROUP <= stop:
                            multiply_add(
                                offset(weights, (j - start) * LANES), LANES, offset(base, j * c.k_token), c.k_token, 1,
                                queries, LANES, head_dim, GROUP, LANES, 0,
                            )  # fmt: skip
                            j += GROUP
                        while j < stop:
                            multiply_add(
                                offset(weights, (j - start) * LANES), 0, offset(base, j * c.k_token), 0, 1,
                                queries, LANES, head_dim, 1, LANES, 0,
                            )  # fmt: skip
                            j += 1

                        # lane r sees keys above earliest + r // group - window, up to earliest + r // group
                        cut = stop - 1 > earliest or start <= last - c.window
                        hidden = float32(-np.inf)
                        if cut:
                            for n in range(stop - start):
                                ahead = int32(start + n - earliest)  # of the first query
                                for lane in range(LANES):
                                    own = int32(lane // group)
                                    seen = (ahead <= own) & (int64(ahead) > int64(own) - c.window)
                                    weights[n * LANES + lane] = weights[n * LANES + lane] if seen else hidden

                        if silu:
                            for n in range((stop - start) * LANES):
                                x = weights[n]
                                weight = x / (float32(1.0) + exp2(-x * float32(LOG2_E))) / silu_divisor
                                weights[n] = float32(0.0) if x == hidden else weight
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
                                    weight = exp2(weights[n * LANES + lane] - shifts[lane])
                                    weights[n * LANES + lane] = weight
                                    totals[lane] += weight
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
                                    value_scale = v_scale[
                                        page * c.vs_page + (place + n) * c.vs_place + kv_head * c.vs_head
                                    ]
                                    for lane in range(LANES):
                                        source[n * LANES + lane] *= value_scale
                            for lane in range(0, LANES, GROUP):
                                for d in range(0, head_dim, tile_columns):
                                    multiply_add(
                                        offset(sums, lane * head_dim + d), head_dim, offset(source, lane), 1, LANES,
                                        offset(base, d), c.v_place, upto - j, GROUP, tile_columns, 1,
                                    )  # fmt: skip
                            j = upto
                        if j < stop:
                            base = offset(v, (begin + j - past) * c.v_token + kv_head * c.v_head)
                            source = offset(weights, (j - start) * LANES)
                            for lane in range(0, LANES, GROUP):
                                for d in range(0, head_dim, tile_columns):
                                    multiply_add(
                                        offset(sums, lane * head_dim + d), head_dim, offset(source, lane), 1, LANES,
                                        offset(base, d), c.v_token, stop - j, GROUP, tile_columns, 1,
                                    )  # fmt: skip
                        start = stop

                    for lane in range(lanes):
                        token = begin + first_row + lane // group
                        at = token * c.num_heads + kv_head * group + lane % group
                        inverse = float32(1.0) if silu else float32(1.0) / totals[lane]
                        log = float32(0.0) if silu else maxima[lane] + float32(np.log2(totals[lane]))
                        if not silu and maxima[lane] == float32(-np.inf):
                            inverse = float32(0.0)
                            log = float32(-np.inf)
                        lse2[at] = log
                        for d in range(head_dim):
                            out[at * head_dim + d] = sums[lane * head_dim + d] * inverse

    signature = void(from_dtype(CALL)[::1], int64, int64, int64)
    # reassoc: totals in vectors; contract: multiply-adds in one rounding. Infinities and NaN keep their meaning.
    options = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    return njit(signature, **options)(body)
