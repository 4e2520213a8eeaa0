"""The kernels of `catalogue_topk`; `topk` says how they make one operator.

A candidate is one int64 key: the score's float32 bits, made to order as integers, above the complement of the index,
so that the larger key is the higher score and, among equal scores, the lower index. `EMPTY` is below every key.

Shapes: B rows of hidden states (ROWS a tile, a power of two), N items of width d (BLOCK_D, a power of two that holds
it).
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

__all__ = ["EMPTY", "best_kernel", "brute_kernel", "sample_kernel", "scan_kernel", "threshold_kernel"]

EMPTY = tl.constexpr(-0x7FFFFFFFFFFFFFFF)


@triton.jit
def _pack(score, index):
    """Keys of float32 scores and int64 indices; NaN and -inf are EMPTY: they are never answers."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # -0.0 + 0.0 is 0.0: the two are one score
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - index)
    return tl.where(score > float("-inf"), key, EMPTY)


@triton.jit
def _score_of(key):
    """float32 score of a key; -inf of EMPTY."""
    ordered = (key >> 32).to(tl.int32)
    score = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.where(key == EMPTY, float("-inf"), score)


@triton.jit
def _index_of(key):
    """int64 index of a key; -1 of EMPTY."""
    return tl.where(key == EMPTY, -1, 0xFFFFFFFF - (key & 0xFFFFFFFF))


@triton.jit
def _first_not_below(values_ptr, low, high, wanted):
    """Lower bound of `wanted` in the rising values at [low, high), element by element."""
    longest = tl.max(tl.ravel(high - low), axis=0)
    while longest > 0:
        middle = (low + high) >> 1
        open_ = low < high
        value = tl.load(values_ptr + middle, mask=open_, other=0)
        below = open_ & (value < wanted)
        low = tl.where(below, middle + 1, low)
        high = tl.where(open_ & (value >= wanted), middle, high)
        longest = longest >> 1
    return low


@triton.jit
def _is_seen(indptr_ptr, indices_ptr, rows, live, wanted):
    """Whether item `wanted` is among those that its row has seen; rows and live broadcast with wanted."""
    low = tl.load(indptr_ptr + rows, mask=live, other=0).to(tl.int64) + tl.zeros_like(wanted)
    high = tl.load(indptr_ptr + rows + 1, mask=live, other=0).to(tl.int64) + tl.zeros_like(wanted)
    place = _first_not_below(indices_ptr, low, high, wanted)
    return tl.load(indices_ptr + place, mask=place < high, other=-1) == wanted


@triton.jit
def _load_hidden(hidden_ptr, hidden_stride, rows, live, dim: tl.constexpr, BLOCK_D: tl.constexpr):
    """[ROWS, BLOCK_D]."""
    dims = tl.arange(0, BLOCK_D)
    offsets = rows[:, None].to(tl.int64) * hidden_stride + dims[None, :]
    return tl.load(hidden_ptr + offsets, mask=live[:, None] & (dims < dim)[None, :], other=0.0)


@triton.jit
def _load_items(items_ptr, item_stride, index, fits, dim: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK_N, BLOCK_D]."""
    dims = tl.arange(0, BLOCK_D)
    offsets = index[:, None] * item_stride + dims[None, :]
    return tl.load(items_ptr + offsets, mask=fits[:, None] & (dims < dim)[None, :], other=0.0)


@triton.jit
def _drawn_from(stratum, shift):
    """The item that the sample draws from a stratum of 2^shift items; int64, as the stratum."""
    # multiplicative hashing (Knuth): no period of the catalogue lines up with it
    return (stratum << shift) + (((stratum * 2654435761) >> 9) & ((1 << shift) - 1))


@triton.jit
def sample_kernel(
    hidden_ptr,  # [B, d]
    items_ptr,  # [N, d]
    seen_indptr_ptr,  # [B + 1], or None
    seen_indices_ptr,  # rising within a row, or None
    blocked_ptr,  # [N / 32] int32, or None
    categories_ptr,  # [N], or None
    allowed_ptr,  # [B], or None
    kept_ptr,  # out: [B, num_programs, KEPT] int64, in any order
    floor_ptr,  # out: [B, num_programs] int64
    num_rows,
    num_items,
    hidden_stride,
    item_stride,
    shift,  # a stratum has 2^shift items
    num_tiles,  # of TILE strata
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    KEPT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The KEPT best keys of each program's share of a sample, and a floor that every other key of the share is below.

    Lane l of tile t draws from stratum l * num_tiles + t, and tiles go round the programs, so that every share spans
    the whole catalogue: the best items may sit in one stretch of it. Seen items leave what is kept, but not the floor.
    """
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    live = rows < num_rows
    hidden = _load_hidden(hidden_ptr, hidden_stride, rows, live, DIM, BLOCK_D)
    slots = tl.arange(0, KEPT)
    # empty slots' keys differ, so that the lowest is always one slot, and are below every score's
    kept = tl.zeros([ROWS, 1], tl.int64) + (slots.to(tl.int64) + EMPTY)[None, :]  # [ROWS, KEPT]
    floor = tl.min(kept, axis=1)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        stratum = tl.arange(0, TILE).to(tl.int64) * num_tiles + tile
        index = _drawn_from(stratum, shift)  # [TILE]
        fits = stratum < (num_items >> shift)
        items = _load_items(items_ptr, item_stride, index, fits, DIM, BLOCK_D)
        scores = tl.dot(hidden, items.T, input_precision=PRECISION)  # [ROWS, TILE]
        if blocked_ptr is not None:
            word = tl.load(blocked_ptr + (index >> 5), mask=fits, other=0)
            fits = fits & (((word >> (index & 31).to(tl.int32)) & 1) == 0)
        scores = tl.where(fits[None, :], scores, float("-inf"))
        if categories_ptr is not None:
            category = tl.load(categories_ptr + index, mask=fits, other=0)
            mask = tl.load(allowed_ptr + rows, mask=live, other=0)
            scores = tl.where((category[None, :] & mask[:, None]) != 0, scores, float("-inf"))
        keys = _pack(scores, index[None, :])
        peak = tl.max(keys, axis=1)  # [ROWS]
        while tl.max((peak > floor).to(tl.int32), axis=0) > 0:
            lowest = (kept == floor[:, None]) & (peak > floor)[:, None]
            kept = tl.where(lowest, peak[:, None], kept)
            floor = tl.min(kept, axis=1)
            keys = tl.where(keys == peak[:, None], EMPTY, keys)
            peak = tl.max(keys, axis=1)
    kept = tl.where(kept < EMPTY + KEPT, EMPTY, kept)
    share = rows.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.store(floor_ptr + share, tl.min(kept, axis=1), mask=live)
    if seen_indptr_ptr is not None:
        seen = _is_seen(seen_indptr_ptr, seen_indices_ptr, rows[:, None], live[:, None], _index_of(kept))
        kept = tl.where(seen, EMPTY, kept)
    tl.store(kept_ptr + share[:, None] * KEPT + slots[None, :], kept, mask=live[:, None])


@triton.jit
def threshold_kernel(
    kept_ptr,  # [B, num_shares, KEPT] int64
    floor_ptr,  # [B, num_shares] int64
    threshold_ptr,  # out: [B] int64
    count_ptr,  # out: [B] int32
    candidates_ptr,  # out: [B, CAPACITY] int64
    num_shares,  # of the sample: its programs
    rank,  # 1..TOP
    SHARES: tl.constexpr,  # power of two that holds them
    KEPT: tl.constexpr,
    TOP: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """A row's threshold: the `rank`-th best of the sample, but nothing that was not kept; what reaches it starts the
    row's list."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, SHARES * KEPT)
    kept = tl.load(kept_ptr + row * num_shares * KEPT + places, mask=places < num_shares * KEPT, other=EMPTY)
    shares = tl.arange(0, SHARES)
    floor = tl.load(floor_ptr + row * num_shares + shares, mask=shares < num_shares, other=EMPTY)
    chosen = tl.max(tl.where(tl.arange(0, TOP) == rank - 1, tl.topk(kept, TOP), EMPTY), axis=0)
    chosen = tl.maximum(chosen, tl.max(floor, axis=0))
    reach = ((kept >= chosen) & (kept > EMPTY)).to(tl.int32)
    tl.store(candidates_ptr + row * CAPACITY + tl.cumsum(reach, axis=0) - 1, kept, mask=reach != 0)
    tl.store(threshold_ptr + row, chosen)
    tl.store(count_ptr + row, tl.sum(reach, axis=0))


@triton.jit
def scan_kernel(
    hidden_ptr,  # [B, d]
    items_ptr,  # [N, d]
    seen_indptr_ptr,  # [B + 1], or None
    seen_indices_ptr,  # rising within a row, or None
    blocked_ptr,  # [N / 32] int32, or None
    categories_ptr,  # [N], or None
    allowed_ptr,  # [B], or None
    threshold_ptr,  # [B] int64
    count_ptr,  # in and out: [B] int32
    candidates_ptr,  # out: [B, CAPACITY] int64
    num_rows,
    num_items,
    hidden_stride,
    item_stride,
    shift,  # of the sample
    num_blocks,  # of BLOCK_N items, for each program
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAPACITY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Every item but those of the sample, for all rows of the tile: keys at or above the row's threshold join its list,
    in any order."""
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    live = rows < num_rows
    begin = tl.program_id(0).to(tl.int64) * num_blocks * BLOCK_N
    hidden = _load_hidden(hidden_ptr, hidden_stride, rows, live, DIM, BLOCK_D)
    threshold = tl.load(threshold_ptr + rows, mask=live, other=0x7FFFFFFFFFFFFFFF)
    # [ROWS]; NaN for rows that aren't there, and nothing is above that; without a threshold every finite score is
    lowest = tl.where(threshold == EMPTY, -3.4028234663852886e38, _score_of(threshold))
    last = tl.where(threshold == EMPTY, 0x7FFFFFFF, _index_of(threshold))  # a tie with the lowest counts up to here
    if categories_ptr is not None:
        mask = tl.load(allowed_ptr + rows, mask=live, other=0)
    if seen_indptr_ptr is not None:
        cursor = tl.load(seen_indptr_ptr + rows, mask=live, other=0).to(tl.int64)
        stop = tl.load(seen_indptr_ptr + rows + 1, mask=live, other=0).to(tl.int64)
        cursor = _first_not_below(seen_indices_ptr, cursor, stop, begin)
        next_seen = tl.load(seen_indices_ptr + cursor, mask=cursor < stop, other=0x7FFFFFFF).to(tl.int64)

    lanes = tl.arange(0, BLOCK_N)
    for block in range(num_blocks):
        first = begin + block * BLOCK_N  # int64: items and their bytes pass 2^31
        fits = lanes < num_items - first
        stratum = (first + lanes) >> shift
        fits = fits & ((stratum >= (num_items >> shift)) | (first + lanes != _drawn_from(stratum, shift)))
        items = _load_items(items_ptr + first * item_stride, item_stride, lanes, fits, DIM, BLOCK_D)
        scores = tl.dot(hidden, items.T, input_precision=PRECISION)  # [ROWS, BLOCK_N]
        if blocked_ptr is not None:
            words = (first >> 5) + tl.arange(0, BLOCK_N // 32)
            word = tl.load(blocked_ptr + words, mask=words * 32 < num_items, other=0)
            free = ((word[:, None] >> tl.arange(0, 32)[None, :]) & 1) == 0
            fits = fits & tl.reshape(free, [BLOCK_N])
        scores = tl.where(fits[None, :], scores, float("-inf"))
        if categories_ptr is not None:
            category = tl.load(categories_ptr + first + lanes, mask=fits, other=0)
            scores = tl.where((category[None, :] & mask[:, None]) != 0, scores, float("-inf"))

        if seen_indptr_ptr is not None:
            # each row's next seen item waits in a register, so that every seen item is read once
            due = next_seen < first + BLOCK_N
            if tl.max(due.to(tl.int32), axis=0) > 0:
                while tl.max(due.to(tl.int32), axis=0) > 0:
                    lane = tl.where(due, (next_seen - first).to(tl.int32), -1)
                    scores = tl.where(lanes[None, :] == lane[:, None], float("-inf"), scores)
                    cursor += due.to(tl.int64)
                    following = tl.load(seen_indices_ptr + cursor, mask=due & (cursor < stop), other=0x7FFFFFFF)
                    next_seen = tl.where(due, following.to(tl.int64), next_seen)
                    due = next_seen < first + BLOCK_N

        # one reduction of the whole tile: reducing rows and then their flags breaks triton 3.7's compiler on sm_100
        if tl.max((scores >= lowest[:, None]).to(tl.int32)) > 0:
            # a row has an item above its threshold in one tile of eight or so: taken one by one
            peak = tl.max(scores, axis=1)  # [ROWS]
            hit = peak >= lowest
            while tl.max(hit.to(tl.int32), axis=0) > 0:
                lane = tl.min(tl.where(scores == peak[:, None], lanes[None, :], BLOCK_N), axis=1)  # [ROWS]
                at = first + lane
                hit = hit & ((peak > lowest) | (at <= last))
                place = tl.atomic_add(count_ptr + rows, 1, mask=hit, sem="relaxed")
                tl.store(
                    candidates_ptr + rows.to(tl.int64) * CAPACITY + place,
                    _pack(peak, at),
                    mask=hit & (place < CAPACITY),
                )
                scores = tl.where(lanes[None, :] == lane[:, None], float("-inf"), scores)
                peak = tl.max(scores, axis=1)
                hit = hit & (peak >= lowest)


@triton.jit
def _wanting(threshold_ptr, count_ptr, row, k, CAPACITY: tl.constexpr):
    """Whether a row's list does not hold its k best: it ran over, or the threshold was above the k-th best."""
    count = tl.load(count_ptr + row)
    return (count > CAPACITY) | ((count < k) & (tl.load(threshold_ptr + row) > EMPTY))


@triton.jit
def _merge_best(best, keys, TOP: tl.constexpr):
    """The TOP largest of best [TOP], falling, and keys; falling."""
    # two falling lists, one turned round: the larger of each pair are the TOP largest of both
    return tl.sort(tl.maximum(best, tl.flip(tl.topk(keys, TOP), 0)), descending=True)


@triton.jit
def brute_kernel(
    hidden_ptr,  # [B, d]
    items_ptr,  # [N, d]
    seen_indptr_ptr,  # [B + 1], or None
    seen_indices_ptr,  # rising within a row, or None
    blocked_ptr,  # [N / 32] int32, or None
    categories_ptr,  # [N], or None
    allowed_ptr,  # [B], or None
    threshold_ptr,  # [B] int64, or None: every row is wanting
    count_ptr,  # [B] int32, or None
    candidates_ptr,  # out: [B, CAPACITY] int64
    num_items,
    hidden_stride,
    item_stride,
    num_blocks,  # of BLOCK_N items, for each program
    k,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEP_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TOP: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """The TOP best of one row in a stretch of the items, kept sorted in registers: for the rows that need it."""
    row = tl.program_id(0).to(tl.int64)
    if threshold_ptr is not None:  # noqa: SIM102  (a constexpr, then a value)
        if not _wanting(threshold_ptr, count_ptr, row, k, CAPACITY):
            return
    begin = tl.program_id(1).to(tl.int64) * num_blocks * BLOCK_N
    best = tl.full([TOP], EMPTY, tl.int64)
    for block in range(num_blocks):
        index = begin + block * BLOCK_N + tl.arange(0, BLOCK_N)  # int64
        fits = index < num_items
        if blocked_ptr is not None:
            word = tl.load(blocked_ptr + (index >> 5), mask=fits, other=0)
            fits = fits & (((word >> (index & 31).to(tl.int32)) & 1) == 0)
        if categories_ptr is not None:
            category = tl.load(categories_ptr + index, mask=fits, other=0)
            fits = fits & ((category & tl.load(allowed_ptr + row)) != 0)
        if seen_indptr_ptr is not None:
            fits = fits & (_is_seen(seen_indptr_ptr, seen_indices_ptr, row, True, index) == 0)
        scores = tl.zeros([BLOCK_N], tl.float32)
        for begin_d in range(0, BLOCK_D, STEP_D):
            dims = begin_d + tl.arange(0, STEP_D)
            hidden = tl.load(hidden_ptr + row * hidden_stride + dims, mask=dims < DIM, other=0.0).to(tl.float32)
            items = tl.load(
                items_ptr + index[:, None] * item_stride + dims[None, :],
                mask=fits[:, None] & (dims < DIM)[None, :],
                other=0.0,
            ).to(tl.float32)  # [BLOCK_N, STEP_D]
            scores += tl.sum(items * hidden[None, :], axis=1)
        scores = tl.where(fits, scores, float("-inf"))
        keys = _pack(scores, index)
        if tl.max(keys, axis=0) > tl.min(best, axis=0):
            best = _merge_best(best, keys, TOP)
    tl.store(candidates_ptr + row * CAPACITY + tl.program_id(1) * TOP + tl.arange(0, TOP), best)


@triton.jit
def best_kernel(
    threshold_ptr,  # [B] int64, or None: every row went through brute_kernel
    count_ptr,  # [B] int32, or None
    candidates_ptr,  # [B, CAPACITY] int64
    scores_ptr,  # out: [B, k] float32
    indices_ptr,  # out: [B, k] int64
    k,
    num_brute,  # candidates that brute_kernel left for a row
    TOP: tl.constexpr,
    CHUNK: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """The k best of each row's candidates, falling."""
    row = tl.program_id(0).to(tl.int64)
    count = num_brute
    if threshold_ptr is not None:  # noqa: SIM102  (a constexpr, then a value)
        if not _wanting(threshold_ptr, count_ptr, row, k, CAPACITY):
            count = tl.load(count_ptr + row)
    places = tl.arange(0, CHUNK)
    best = tl.topk(tl.load(candidates_ptr + row * CAPACITY + places, mask=places < count, other=EMPTY), TOP)
    for start in range(CHUNK, count, CHUNK):
        places = start + tl.arange(0, CHUNK)
        keys = tl.load(candidates_ptr + row * CAPACITY + places, mask=places < count, other=EMPTY)
        best = _merge_best(best, keys, TOP)
    places = tl.arange(0, TOP)
    tl.store(scores_ptr + row * k + places, _score_of(best), mask=places < k)
    tl.store(indices_ptr + row * k + places, _index_of(best), mask=places < k)
