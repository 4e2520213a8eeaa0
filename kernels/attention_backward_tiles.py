"""What the kernels of `segment_attention`'s backward share: whose a tile is, where a key lies, what its weight's slope
is.

Device functions only; no kernel and no launch. Names: M queries and N keys (or distances) of a tile, D head_dim. A
position counts a user's events from 0 through memory and new events; every target stands at the position after the
last event.

Tiles are numbered on the host's side, which knows upper bounds and never lengths: user b's begin at tokens_before(b)
// BLOCK + KINDS * b, which leaves room for a part-full tile of each kind (events; targets), so that a tile's user is
the last one that begins at or before it.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from longrec.kernels.attention_tiles import LOG2_E, bucket_of

__all__ = [
    "Entries",
    "Relative",
    "Rows",
    "User",
    "add_bias",
    "entry_pointers",
    "find_user",
    "load_user",
    "make_rows",
    "products",
    "query_tile",
    "relative_rows",
    "row_pointers",
    "shift",
    "tile_start",
    "weight_and_slope",
    "whole",
]

USERS_A_STEP = tl.constexpr(128)


class User(NamedTuple):
    """One user of the batch.

    Args:
        first_row: of its new events, int64.
        events: new events that are no targets. rows: targets too.
        past: events in memory.
        pages_ptr: to its first page index, or None.
    """

    first_row: Any
    events: Any
    rows: Any
    past: Any
    pages_ptr: Any


class Entries(NamedTuple):
    """Keys, values or times of one head: pointers to row 0 of the new events, and to place 0 of page 0 (or None)."""

    new_ptr: Any
    stride_row: Any
    pages_ptr: Any
    stride_page: Any
    stride_place: Any


class Rows(NamedTuple):
    """N rows of D of queries, keys, values, gradients or relative terms.

    Args:
        tile: [N, D], or None where only some dimensions are to be loaded at a time.
        pointers, live: [N]; rows that aren't live are 0.
        added_ptr: [D], what each row has added (u or v); None: nothing.
    """

    tile: Any
    pointers: Any
    live: Any
    added_ptr: Any


class Relative(NamedTuple):
    """Transformer-XL's r of one head: a pointer to distance 0, the stride of distances, and their count."""

    ptr: Any
    stride: Any
    count: Any


@triton.jit
def tile_start(
    user,
    live,
    cu_seqlens_ptr,
    page_indptr_ptr,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    KINDS: tl.constexpr,
):
    """The number of a user's first tile. Places in pages are counted where `page_indptr_ptr` isn't None."""
    tokens = tl.load(cu_seqlens_ptr + user, mask=live, other=0)
    if page_indptr_ptr is not None:
        tokens += tl.load(page_indptr_ptr + user, mask=live, other=0) * PAGE_SIZE
    return tokens // BLOCK + KINDS * user


@triton.jit
def find_user(
    tile,
    num_users,
    cu_seqlens_ptr,
    page_indptr_ptr,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    KINDS: tl.constexpr,
):
    """The user of a tile, and the tile's number among that user's."""
    found = 0
    for first in range(0, num_users, USERS_A_STEP):
        users = first + tl.arange(0, USERS_A_STEP)
        live = users < num_users
        starts = tile_start(users, live, cu_seqlens_ptr, page_indptr_ptr, PAGE_SIZE, BLOCK, KINDS)
        found += tl.sum((live & (starts <= tile)).to(tl.int32))
    user = found - 1
    return user, tile - tile_start(user, True, cu_seqlens_ptr, page_indptr_ptr, PAGE_SIZE, BLOCK, KINDS)


@triton.jit
def load_user(user, cu_seqlens_ptr, num_targets_ptr, lengths_ptr, page_indptr_ptr, page_indices_ptr):
    """What the device knows of a user: see `User`."""
    first_row = tl.load(cu_seqlens_ptr + user)
    rows = tl.load(cu_seqlens_ptr + user + 1) - first_row
    events = rows
    if num_targets_ptr is not None:
        events -= tl.load(num_targets_ptr + user)
    past = 0
    pages_ptr = None
    if lengths_ptr is not None:
        past = tl.load(lengths_ptr + user)
        pages_ptr = page_indices_ptr + tl.load(page_indptr_ptr + user)
    return User(first_row.to(tl.int64), events, rows, past, pages_ptr)


@triton.jit
def query_tile(number, user, BLOCK: tl.constexpr):
    """Tile `number` of a user's rows: its first row, the row that ends its kind, and whether it holds targets.

    Past the last tile, the first row is not below the end.
    """
    event_tiles = tl.cdiv(user.events, BLOCK)
    is_target = number >= event_tiles
    first = tl.where(is_target, user.events + (number - event_tiles) * BLOCK, number * BLOCK)
    return first, tl.where(is_target, user.rows, user.events), is_target


@triton.jit
def entry_pointers(entries, user, first, BLOCK: tl.constexpr, live, PAGE_SIZE: tl.constexpr):
    """[N] pointers to the entries at positions `first` + 0..N-1; where not `live`, pointers that mustn't be
    followed."""
    line = tl.arange(0, BLOCK)
    pointers = row_pointers(entries.new_ptr, user.first_row + (first - user.past), line, entries.stride_row)
    if entries.pages_ptr is not None:
        positions = first + line
        in_pages = positions < user.past
        page = tl.load(user.pages_ptr + positions // PAGE_SIZE, mask=live & in_pages, other=0).to(tl.int64)
        old = entries.pages_ptr + page * entries.stride_page + positions % PAGE_SIZE * entries.stride_place
        pointers = tl.where(in_pages, old, pointers)
    return pointers


@triton.jit
def row_pointers(ptr, first_row, line, stride):
    """[N] pointers to rows `first_row` (int64) + `line`; 64 bits for the tile's base alone, since vectors of them are
    dear."""
    return (ptr + first_row * stride) + line * stride


@triton.jit
def make_rows(pointers, live, added_ptr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """`Rows` at `pointers` [N] where `live`, loaded at once if BLOCK_D is all of HEAD_DIM."""
    rows = Rows(None, pointers, live, added_ptr)
    if BLOCK_D == HEAD_DIM:
        rows = Rows(_load(rows, 0, HEAD_DIM), pointers, live, added_ptr)
    return rows


@triton.jit
def whole(rows, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """All dimensions of `rows`: [N, D]."""
    if BLOCK_D == HEAD_DIM:
        tile = rows.tile
    else:
        tile = _load(rows, 0, HEAD_DIM)
    return tile


@triton.jit
def products(a, b, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """[A, B] float32 inner products of two `Rows`.

    BLOCK_D dimensions at a time, read again for each pair of tiles: rows that stay with a program would otherwise be
    kept in registers as operands, of which wide heads, float32 and relative terms leave too few.
    """
    if BLOCK_D == HEAD_DIM:
        out = tl.dot(a.tile, tl.trans(b.tile), input_precision="tf32x3")
    else:
        out = tl.zeros([a.pointers.shape[0], b.pointers.shape[0]], tl.float32)
        for first_dim in range(0, HEAD_DIM, BLOCK_D):
            a_part = _load(a, first_dim, BLOCK_D)
            out = tl.dot(a_part, tl.trans(_load(b, first_dim, BLOCK_D)), out, input_precision="tf32x3")
    return out


@triton.jit
def _load(rows, first_dim, BLOCK_D: tl.constexpr):
    """[N, BLOCK_D] in the rows' dtype."""
    dim = first_dim + tl.arange(0, BLOCK_D)
    tile = tl.load(rows.pointers[:, None] + dim[None, :], mask=rows.live[:, None], other=0.0)
    if rows.added_ptr is not None:
        tile = (tile.to(tl.float32) + tl.load(rows.added_ptr + dim).to(tl.float32)[None, :]).to(tile.dtype)
    return tile


@triton.jit
def relative_rows(relative, first_distance, BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """r of the N distances from `first_distance` on; 0 where there is no such distance."""
    line = tl.arange(0, BLOCK_N)
    distance = first_distance + line
    pointers = row_pointers(relative.ptr, first_distance.to(tl.int64), line, relative.stride)
    return make_rows(pointers, (distance >= 0) & (distance < relative.count), None, HEAD_DIM, BLOCK_D)


@triton.jit
def shift(lower, upper, step, BLOCK: tl.constexpr, AXIS: tl.constexpr):
    """Transformer-XL's relative shift in a tile, along keys n (AXIS), for queries m with `step` [M], 0..N: out[m, n] is
    the value at step[m] - n + N - 1 of `lower` and `upper` laid end to end.

    Each query needs N neighbours of the 2 N, so that what it takes from both fits into one tile, which a gather turns.
    """
    line = tl.arange(0, BLOCK)
    if AXIS == 0:
        line = line[:, None]
        step = step[None, :]
    else:
        line = line[None, :]
        step = step[:, None]
    return tl.gather(tl.where(line >= step, lower, upper), (step - line + BLOCK - 1) & (BLOCK - 1), axis=AXIS)


@triton.jit
def add_bias(score, distance, table):
    """Scores plus a head's table entries at the buckets of distances (or elapsed times), and those buckets.

    Every bucket lies within the table, also that of a pair that isn't visible, so that the loads need no mask.
    """
    bucket = bucket_of(distance, table.buckets, table.fraction_bits)
    return score + tl.load(table.ptr + bucket).to(tl.float32), bucket


@triton.jit
def weight_and_slope(score, lse2, visible, inverse_window, SILU: tl.constexpr):
    """A key's weight, and the factor of (dp - delta) in the gradient of its score; both 0 where not visible."""
    if SILU:
        gate = tl.sigmoid(score)
        weight = tl.where(visible, score * gate * inverse_window, 0.0)
        slope = tl.where(visible, gate * (1.0 + score * (1.0 - gate)) * inverse_window, 0.0)
    else:
        # masked before the power: the score of a zero-filled key may lie far above a row's lse2
        weight = tl.exp2(tl.where(visible, score * LOG2_E - lse2, float("-inf")))
        slope = weight
    return weight, slope
