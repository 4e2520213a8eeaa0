"""What the attention kernels do to one tile of keys: load it from pages or from the new events, score it, weigh it.

Device functions only; which tiles a program visits is decided in `attention_forward`. Names: M rows of a tile (a row is
one query of one head), N keys of a tile, D head_dim. A place is a position of a user's events with the first new event
at 0, so that memory stands at -lengths[b] to -1. Scores are in base 2: exp2(score - peak); SiLU's are natural.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

__all__ = [
    "LOG2_E",
    "Keys",
    "NewEvents",
    "Pages",
    "Query",
    "Relative",
    "Rules",
    "State",
    "Table",
    "attend",
    "attend_itself",
    "bucket_of",
    "decode",
    "distance_scores",
    "load_memory",
    "load_new",
    "look_ahead",
]

LOG2_E = tl.constexpr(1.4426950408889634)
FP8_EXPONENT_GAP = tl.constexpr(256.0)  # 2^(15 - 7): float16's exponent bias over float8_e4m3's


class Query(NamedTuple):
    """A tile of queries: `q` [M, D], u included, `place`, `head` and `seconds` [M].

    Where heads are loaded piece by piece: `rows` [M] say where q stands without u, `live` [M] which are there, `u_ptr`
    where u stands (None: there is none).
    """

    q: Any
    place: Any
    head: Any
    seconds: Any
    rows: Any
    live: Any
    u_ptr: Any


class Keys(NamedTuple):
    """A tile of keys: `k` and `v` [N, D]; `k_scale`, `v_scale`, `place` and `seconds` [N].

    `k` is None where heads are loaded piece by piece: `rows` [N] say where keys stand, `held` [N] which are there.
    """

    k: Any
    v: Any
    k_scale: Any
    v_scale: Any
    place: Any
    seconds: Any
    rows: Any
    held: Any


class Pages(NamedTuple):
    """A user's memory: `past` events; pointers to its page indices and to the kv head of pages, scales and seconds."""

    past: Any
    indices_ptr: Any
    k_ptr: Any
    v_ptr: Any
    stride_kp: Any
    stride_ks: Any
    stride_vp: Any
    stride_vs: Any
    k_scale_ptr: Any
    v_scale_ptr: Any
    num_kv_heads: Any
    seconds_ptr: Any


class NewEvents(NamedTuple):
    """A user's new events that are no targets; pointers stand at the first of them, and the kv head."""

    events: Any
    k_ptr: Any
    v_ptr: Any
    stride_kt: Any
    stride_vt: Any
    seconds_ptr: Any


class Table(NamedTuple):
    """A bias table [Hq, buckets] float32 with its bucket rule; `ptr` None: no such bias."""

    ptr: Any
    buckets: Any
    fraction_bits: Any


class Relative(NamedTuple):
    """Transformer-XL's terms for queries of one head: `q`, v included, [M, D]; r [count, D]; `r_ptr` None: no terms.

    `v_ptr`: where v stands, for heads that are loaded piece by piece.
    """

    q: Any
    v_ptr: Any
    r_ptr: Any
    stride: Any
    count: Any
    first_place: Any


class Rules(NamedTuple):
    """How a score comes about: `scale` (times log2 e for softmax), window, biases."""

    scale: Any
    window: Any
    position: Table
    time: Table


class State(NamedTuple):
    """The running attention of a tile of queries: acc [M, D], peak and total [M] (base 2), all float32.

    `upper` [M, N], or None: with relative terms, the scores by distance that the next tile of keys needs again.
    """

    acc: Any
    peak: Any
    total: Any
    upper: Any


@triton.jit
def bucket_of(distance, buckets, fraction_bits):
    """`longrec.kernels.types.bucket_of`, bit for bit; negative distances count as 0."""
    shift = 23 - fraction_bits
    smallest = (127 + fraction_bits) << fraction_bits
    cut = tl.minimum(tl.maximum(distance, 0), 1 << 30) + (1 << fraction_bits)
    bits = cut.to(tl.float32).to(tl.int32, bitcast=True)
    return tl.minimum((bits >> shift) - smallest, buckets - 1)


@triton.jit
def decode(stored, dtype: tl.constexpr):
    """A tile of pages in the queries' dtype; float8_e4m3, held as uint8, comes out 256 times too small.

    Ampere has no float8 conversion; moving the bits into a float16 is exact on every target, subnormals included.
    """
    if stored.dtype == tl.uint8:
        wide = stored.to(tl.uint16)
        bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
        return bits.to(tl.float16, bitcast=True).to(dtype)
    return stored.to(dtype)


@triton.jit
def load_memory(
    tile,
    pages,
    dtype: tl.constexpr,
    MASKED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Events tile * N to tile * N + N - 1 of a user's memory.

    MASKED: the tile may reach past the memory's end; what stands there is not read, since a recycled page may hold NaN.
    """
    offset = tl.arange(0, BLOCK_N)
    dim = tl.arange(0, HEAD_DIM)
    event = tile * BLOCK_N + offset
    held = event < pages.past
    if PAGE_SIZE % BLOCK_N == 0:
        page = tl.load(pages.indices_ptr + tile * BLOCK_N // PAGE_SIZE).to(tl.int64)
        slot = tile * BLOCK_N % PAGE_SIZE + offset
    elif MASKED:
        page = tl.load(pages.indices_ptr + event // PAGE_SIZE, mask=held, other=0).to(tl.int64)
        slot = event % PAGE_SIZE
    else:
        page = tl.load(pages.indices_ptr + event // PAGE_SIZE).to(tl.int64)
        slot = event % PAGE_SIZE
    k_rows = pages.k_ptr + page * pages.stride_kp + slot * pages.stride_ks
    v_ptrs = pages.v_ptr + (page * pages.stride_vp + slot * pages.stride_vs)[:, None] + dim
    entry = page * PAGE_SIZE + slot
    k = None
    k_scale = None
    v_scale = None
    seconds = None
    if MASKED:
        if BLOCK_D == HEAD_DIM:
            k = tl.load(k_rows[:, None] + dim, mask=held[:, None], other=0)
        v = tl.load(v_ptrs, mask=held[:, None], other=0)
        if pages.k_scale_ptr is not None:
            k_scale = tl.load(pages.k_scale_ptr + entry * pages.num_kv_heads, mask=held, other=0.0)
            v_scale = tl.load(pages.v_scale_ptr + entry * pages.num_kv_heads, mask=held, other=0.0)
        if pages.seconds_ptr is not None:
            seconds = tl.load(pages.seconds_ptr + entry, mask=held, other=0)
    else:
        if BLOCK_D == HEAD_DIM:
            k = tl.load(k_rows[:, None] + dim)
        v = tl.load(v_ptrs)
        if pages.k_scale_ptr is not None:
            k_scale = tl.load(pages.k_scale_ptr + entry * pages.num_kv_heads)
            v_scale = tl.load(pages.v_scale_ptr + entry * pages.num_kv_heads)
        if pages.seconds_ptr is not None:
            seconds = tl.load(pages.seconds_ptr + entry)
    if v.dtype == tl.uint8:
        k_scale *= FP8_EXPONENT_GAP
        v_scale *= FP8_EXPONENT_GAP
    if BLOCK_D == HEAD_DIM:
        k = decode(k, dtype)
    return Keys(k, decode(v, dtype), k_scale, v_scale, event - pages.past, seconds, k_rows, held)


@triton.jit
def load_new(tile, new, MASKED: tl.constexpr, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """New events tile * N to tile * N + N - 1 of a user; MASKED: the tile may reach past the last that is no target."""
    dim = tl.arange(0, HEAD_DIM)
    place = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    row = place.to(tl.int64)
    k_rows = new.k_ptr + row * new.stride_kt
    v_ptrs = new.v_ptr + (row * new.stride_vt)[:, None] + dim
    held = place < new.events
    k = None
    seconds = None
    if MASKED:
        if BLOCK_D == HEAD_DIM:
            k = tl.load(k_rows[:, None] + dim, mask=held[:, None], other=0.0)
        v = tl.load(v_ptrs, mask=held[:, None], other=0.0)
        if new.seconds_ptr is not None:
            seconds = tl.load(new.seconds_ptr + place, mask=held, other=0)
    else:
        if BLOCK_D == HEAD_DIM:
            k = tl.load(k_rows[:, None] + dim)
        v = tl.load(v_ptrs)
        if new.seconds_ptr is not None:
            seconds = tl.load(new.seconds_ptr + place)
    return Keys(k, v, None, None, place, seconds, k_rows, held)


@triton.jit
def _products(query, keys, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """q . k, [M, N].

    BLOCK_D dimensions at a time, queries and all loaded again for every tile of keys, where registers can't hold the
    whole heads of queries as an operand: every warp has a copy of it.
    """
    if BLOCK_D == HEAD_DIM:
        scores = tl.dot(query.q, tl.trans(keys.k), input_precision="tf32x3")
    else:
        scores = tl.zeros([query.rows.shape[0], keys.rows.shape[0]], tl.float32)
        for first_dim in range(0, HEAD_DIM, BLOCK_D):
            q = _query_piece(query, query.u_ptr, first_dim, BLOCK_D)
            dim = first_dim + tl.arange(0, BLOCK_D)
            k = decode(tl.load(keys.rows[:, None] + dim, mask=keys.held[:, None], other=0), q.dtype)
            scores = tl.dot(q, tl.trans(k), scores, input_precision="tf32x3")
    return scores


@triton.jit
def _query_piece(query, added_ptr, first_dim, BLOCK_D: tl.constexpr):
    """BLOCK_D dimensions of a tile of queries from `first_dim` on, with u or v added."""
    dim = first_dim + tl.arange(0, BLOCK_D)
    q = tl.load(query.rows[:, None] + dim, mask=query.live[:, None], other=0.0)
    if added_ptr is not None:
        q = (q.to(tl.float32) + tl.load(added_ptr + dim).to(tl.float32)).to(q.dtype)
    return q


@triton.jit
def distance_scores(query, relative, shortest, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(q + v) . r[d] for N distances d from `shortest` on: [M, N]; 0 where there is no such distance."""
    distance = shortest + tl.arange(0, BLOCK_N)
    held = (distance >= 0) & (distance < relative.count)
    r_rows = relative.r_ptr + distance.to(tl.int64) * relative.stride
    if BLOCK_D == HEAD_DIM:
        r = tl.load(r_rows[:, None] + tl.arange(0, HEAD_DIM), mask=held[:, None], other=0.0)  # [N, D]
        scores = tl.dot(relative.q, tl.trans(r), input_precision="tf32x3")
    else:
        scores = tl.zeros([query.rows.shape[0], BLOCK_N], tl.float32)
        for first_dim in range(0, HEAD_DIM, BLOCK_D):
            q = _query_piece(query, relative.v_ptr, first_dim, BLOCK_D)
            r = tl.load(r_rows[:, None] + first_dim + tl.arange(0, BLOCK_D), mask=held[:, None], other=0.0)
            scores = tl.dot(q, tl.trans(r), scores, input_precision="tf32x3")
    return scores


@triton.jit
def look_ahead(
    state, query, relative, first_place, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """`state` with the `upper` that a tile of keys at `first_place` needs from the tile before it."""
    shortest = relative.first_place - first_place + 1
    upper = distance_scores(query, relative, shortest, BLOCK_N, HEAD_DIM, BLOCK_D)
    return State(state.acc, state.peak, state.total, upper)


@triton.jit
def _shift_relative(lower, upper, step, gap, shortest, BLOCK_N: tl.constexpr):
    """Transformer-XL's relative shift in a tile: scores by distance [M, N] become scores by key [M, N].

    Row m and key n stand step[m] - n + N - 1 columns into `lower` followed by `upper`. So a row needs N consecutive
    columns: from step[m] on in `lower`, and the first step[m] of `upper`. Laid over each other these fill one [M, N]
    tile without a gap, and one gather turns each row the right way round.

    Args:
        lower, upper: [M, N] from `distance_scores`, for N distances from `shortest` on, and for the N that follow.
        step: [M], 0..N - 1, places of the queries past the tile's first.
        gap: [M, N], distances between queries and keys. (The index could be had from step alone, but the compiler would
            then keep it in registers from tile to tile.)
    """
    by_distance = tl.where(tl.arange(0, BLOCK_N)[None, :] >= step[:, None], lower, upper)
    return tl.gather(by_distance, (gap - shortest) & (BLOCK_N - 1), axis=1)


@triton.jit
def _bias(rules, query, key_place, key_seconds):
    """Bias of the scores in natural units, [M, N], by place and by time; both tables may be given, one must be."""
    bias = 0.0
    if rules.position.ptr is not None:
        bucket = bucket_of(
            query.place[:, None] - key_place[None, :], rules.position.buckets, rules.position.fraction_bits
        )
        bias += tl.load(rules.position.ptr + query.head[:, None] * rules.position.buckets + bucket)
    if rules.time.ptr is not None:
        bucket = bucket_of(query.seconds[:, None] - key_seconds[None, :], rules.time.buckets, rules.time.fraction_bits)
        bias += tl.load(rules.time.ptr + query.head[:, None] * rules.time.buckets + bucket)
    return bias


@triton.jit
def weigh(state, scores, visible, query, keys, rules, SILU: tl.constexpr):
    """`state` scaled for a new tile of keys, and the keys' weights [M, N].

    Args:
        scores: [M, N], q . k with the relative terms.
        visible: [M, N], or None where every row sees every key.
    """
    biased: tl.constexpr = rules.position.ptr is not None or rules.time.ptr is not None
    if SILU:
        scores *= rules.scale
        if biased:
            scores += _bias(rules, query, keys.place, keys.seconds)
        weights = scores / (1.0 + tl.exp2(-scores * LOG2_E))
        if visible is not None:
            weights = tl.where(visible, weights, 0.0)
    else:
        factor = rules.scale
        if biased:
            scores = scores * rules.scale + _bias(rules, query, keys.place, keys.seconds) * LOG2_E
            factor = 1.0
        if visible is not None:
            scores = tl.where(visible, scores, float("-inf"))
        # the scale is positive, so that it may follow the maximum and join the subtraction in one fused multiply-add
        peak = tl.maximum(state.peak, tl.max(scores, 1) * factor)
        base = peak
        if visible is not None:  # a row that has seen nothing yet: -inf - -inf is NaN
            base = tl.where(peak == float("-inf"), 0.0, peak)
        weights = tl.exp2(scores * factor - base[:, None])
        faded = tl.exp2(state.peak - base)
        total = state.total * faded + tl.sum(weights, 1)
        state = State(state.acc * faded[:, None], peak, total, state.upper)
    return state, weights


@triton.jit
def attend(
    state,
    query,
    keys,
    first_place,
    limit,
    rules,
    relative,
    SILU: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`state` after one more tile of keys; with relative terms, tiles come in order, the first after `look_ahead`.

    Args:
        first_place: of the tile's keys.
        limit: keys at this place and after are not seen. Only with MASKED, as are window and causality.
    """
    gap = query.place[:, None] - keys.place[None, :]  # [M, N]
    scores = _products(query, keys, HEAD_DIM, BLOCK_D)  # [M, N]
    if keys.k_scale is not None:
        scores *= keys.k_scale[None, :]
    if relative.r_ptr is not None:
        shortest = relative.first_place - first_place - (BLOCK_N - 1)
        lower = distance_scores(query, relative, shortest, BLOCK_N, HEAD_DIM, BLOCK_D)
        step = query.place - relative.first_place
        scores += _shift_relative(lower, state.upper, step, gap, shortest, BLOCK_N)
        state = State(state.acc, state.peak, state.total, lower)
    visible = None
    if MASKED:
        visible = (gap >= 0) & (gap < rules.window) & (keys.place < limit)[None, :]
    state, weights = weigh(state, scores, visible, query, keys, rules, SILU)
    if keys.v_scale is not None:
        weights *= keys.v_scale[None, :]
    acc = tl.dot(weights.to(keys.v.dtype), keys.v, state.acc, input_precision="tf32x3")
    return State(acc, state.peak, state.total, state.upper)


@triton.jit
def attend_itself(state, query, new, rules, relative, row, targets, SILU: tl.constexpr, HEAD_DIM: tl.constexpr):
    """`state` of rows that have seen nothing yet, after each of those that `targets` [M] marks has seen its own key."""
    dim = tl.arange(0, HEAD_DIM)
    k = tl.load(new.k_ptr + (row.to(tl.int64) * new.stride_kt)[:, None] + dim, mask=targets[:, None], other=0.0)
    v = tl.load(new.v_ptr + (row.to(tl.int64) * new.stride_vt)[:, None] + dim, mask=targets[:, None], other=0.0)
    scores = tl.sum(query.q.to(tl.float32) * k.to(tl.float32), 1)  # [M]
    if relative.r_ptr is not None:
        r = tl.load(relative.r_ptr + dim).to(tl.float32)  # of distance 0
        scores += tl.sum(relative.q.to(tl.float32) * r[None, :], 1)
    scores *= rules.scale
    bias = 0.0
    if rules.position.ptr is not None:
        bias += tl.load(rules.position.ptr + query.head * rules.position.buckets)
    if rules.time.ptr is not None:
        seconds = tl.load(new.seconds_ptr + row, mask=targets, other=0)
        bucket = bucket_of(query.seconds - seconds, rules.time.buckets, rules.time.fraction_bits)
        bias += tl.load(rules.time.ptr + query.head * rules.time.buckets + bucket)
    if SILU:
        scores += bias
        weights = scores / (1.0 + tl.exp2(-scores * LOG2_E))
        acc = tl.where(targets, weights, 0.0)[:, None] * v.to(tl.float32)
        state = State(acc, state.peak, state.total, state.upper)
    else:
        peak = tl.where(targets, scores + bias * LOG2_E, float("-inf"))
        state = State(v.to(tl.float32), peak, tl.where(targets, 1.0, 0.0), state.upper)
    return state
