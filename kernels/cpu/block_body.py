"""The jitted parts of a transformer block on a CPU, before and after its attention.

    before: q, k, v = rms_norm(x) qkv^T, rotary on q and k, and the write of k and v into pages
    after: y = x + attended out^T, x = y + (silu(gate(rms_norm(y))) * up(rms_norm(y))) down^T, the last one's normed

Events go through in blocks of 16, a lane of a vector each: weights are read as `nn.Linear` holds them, [out, in], and
enter as scalars, so that nothing is packed, and norms and products need no sum across lanes. An event's bits depend on
nothing else in the batch. One event costs as much as sixteen, 30 us a block at width 64.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numba import float32, from_dtype, int64, njit, types, void

from longrec.kernels.cpu.narrow import write_entries
from longrec.kernels.cpu.primitives import BFLOAT16, FLOAT16, offset, pointer, silu
from longrec.kernels.cpu.vectors import LANES, multiply_add

__all__ = ["BLOCK_CALL", "OPTIONS", "PAGE_TYPES", "ROWS", "after_body", "before_body", "block_floats", "source_version"]

ROWS = 8  # of a product, whose sums stay in registers; divides every width
DEPTH = 64  # terms of a sum that are added one by one; longer sums go in parts, or they lose bits that PyTorch's keep
PAGE_TYPES = {"float32": types.float32, "bfloat16": BFLOAT16, "float16": FLOAT16, "int8": types.int8}

# addresses, strides (in elements) and scalars of one block; rows of x, qkv and attended are dense
_INTEGERS = (
    "x", "qkv", "attended", "attention_norm", "qkv_weight", "out_weight", "feed_forward_norm", "gate_up_weight",
    "down_weight", "final_norm", "positions", "slots", "phases",
    "k_pages", "k_page", "k_place", "k_page_head", "v_pages", "v_page", "v_place", "v_page_head",
    "k_scale", "ks_page", "ks_place", "ks_head", "v_scale", "vs_page", "vs_place", "vs_head",
    "page_size", "begin", "end", "dim", "num_heads", "num_kv_heads", "head_dim", "hidden_dim",
)  # fmt: skip
BLOCK_CALL = np.dtype([*((name, np.int64) for name in _INTEGERS), ("eps", np.float64)])
OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
FAST = {"reassoc", "contract", "nsz"}  # infinities and NaN keep their meaning


def block_floats(dim: int, qkv_dim: int, heads_dim: int, head_dim: int, hidden_dim: int) -> int:
    """Float32s that one thread works in."""
    return LANES * (2 * dim + 2 + max(qkv_dim + head_dim, heads_dim + 2 * hidden_dim))


@njit(fastmath=FAST)
def _add_product(out, weight, stride, x, rows, depth):
    """out [rows, LANES] += weight [rows, depth] x [depth, LANES], a weight's rows `stride` apart."""
    for row in range(0, rows, ROWS):
        for d in range(0, depth, DEPTH):
            multiply_add(
                offset(out, row * LANES), LANES, offset(weight, row * stride + d), stride, 1,
                offset(x, d * LANES), LANES, min(DEPTH, depth - d), ROWS, LANES, 1,
            )  # fmt: skip


@njit(fastmath=FAST)
def _product(out, weight, x, rows, depth):
    """out [rows, LANES] = weight [rows, depth] x [depth, LANES]."""
    first = min(DEPTH, depth)
    for row in range(0, rows, ROWS):
        multiply_add(
            offset(out, row * LANES), LANES, offset(weight, row * depth), depth, 1, x, LANES, first, ROWS, LANES, 0
        )
    if first < depth:
        _add_product(out, offset(weight, first), depth, offset(x, first * LANES), rows, depth - first)


@njit(fastmath=FAST)
def _norm(out, x, weight, sums, dim, eps):
    """out [dim, LANES] = x / sqrt(mean of squares + eps) * weight; sums: scratch [2, LANES]."""
    for lane in range(LANES):
        sums[lane] = float32(0.0)
    parts = offset(sums, LANES)
    for begin in range(0, dim, DEPTH):
        for lane in range(LANES):
            parts[lane] = float32(0.0)
        for d in range(begin, min(begin + DEPTH, dim)):
            for lane in range(LANES):
                parts[lane] += x[d * LANES + lane] * x[d * LANES + lane]
        for lane in range(LANES):
            sums[lane] += parts[lane]
    for lane in range(LANES):
        sums[lane] = float32(1.0) / np.sqrt(sums[lane] / float32(dim) + eps)
    for d in range(dim):
        scale = weight[d]
        for lane in range(LANES):
            out[d * LANES + lane] = x[d * LANES + lane] * sums[lane] * scale


@njit(fastmath=FAST)
def _load_lanes(out, rows, live, width):
    """Rows [live, width] as columns of out [width, LANES], zeros behind."""
    for lane in range(LANES):
        for d in range(width):
            out[d * LANES + lane] = rows[lane * width + d] if lane < live else float32(0.0)


@njit(fastmath=FAST)
def _store_lanes(rows, x, live, width):
    """The first `live` columns of x [width, LANES] as rows."""
    for lane in range(live):
        for d in range(width):
            rows[lane * width + d] = x[d * LANES + lane]


@njit(fastmath=FAST)
def _turn(cos, sin, positions, phases, live, half):
    """Cosine and sine [half, LANES] of the rotary angles, float32 to within 2^-22, as `rotary.phase_cos_sin`."""
    for i in range(half):
        for lane in range(LANES):
            position = positions[lane] if lane < live else int64(0)
            phase = position * phases[i]  # wraps: whole turns are of no interest
            turn = ((phase >> int64(61)) + int64(1)) >> int64(1)  # nearest quarter turn
            rest = (phase - (turn << int64(62))) >> int64(32)
            x = float32(rest) * float32(6.283185307179586 / 4294967296.0)
            z = x * x
            # minimax on [-pi / 4, pi / 4], Cephes' sinf and cosf (Moshier, 1984)
            s = x + x * z * (float32(-1.6666654611e-1) + z * (float32(8.3321608736e-3) - z * float32(1.9515295891e-4)))
            c = (
                float32(1.0)
                - float32(0.5) * z
                + z
                * z
                * (
                    float32(4.166664568298827e-2)
                    + z * (float32(-1.388731625493765e-3) + z * float32(2.443315711809948e-5))
                )
            )
            odd = (turn & int64(1)) == int64(1)
            swapped_c, swapped_s = (s, c) if odd else (c, s)
            quarter = turn & int64(3)
            cos[i * LANES + lane] = -swapped_c if (quarter == int64(1)) | (quarter == int64(2)) else swapped_c
            sin[i * LANES + lane] = -swapped_s if quarter >= int64(2) else swapped_s


@njit(fastmath=FAST)
def _rotate(x, cos, sin, half):
    """A head [2 half, LANES], in place."""
    for n in range(half * LANES):
        first, second = x[n], x[half * LANES + n]
        x[n] = first * cos[n] - second * sin[n]
        x[half * LANES + n] = second * cos[n] + first * sin[n]


@njit(fastmath=FAST)
def _gate(gate, up, count):
    for n in range(count):
        gate[n] = silu(gate[n])
    for n in range(count):
        gate[n] *= up[n]


def source_version() -> int:
    """Hash of the sources, for the key of numba's cache, which looks at the jitted function's file alone."""
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))
    return int(sources.hexdigest()[:8], 16)


@functools.cache
def before_body(pages: str) -> Callable[..., None]:
    """The part before attention for one page dtype: calls: one `BLOCK_CALL`; scratch: address of `block_floats`
    float32s. Releases the GIL."""
    version, entry, scaled = source_version(), PAGE_TYPES[pages], pages == "int8"

    def before(calls, scratch_address):
        assert version >= 0  # a constant of this function, which makes it part of the cache's key
        c = calls[0]
        x = pointer(scratch_address, types.float32)  # [dim, LANES], as the next
        normed = offset(x, c.dim * LANES)
        sums = offset(normed, c.dim * LANES)
        qkv = offset(sums, 2 * LANES)  # [qkv_dim, LANES]
        qkv_dim = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
        half = c.head_dim // 2
        cos = offset(qkv, qkv_dim * LANES)
        sin = offset(cos, half * LANES)
        unwritten = pointer(scratch_address, entry)  # in the place of x, which has been read by then
        slots = pointer(c.slots, int64)
        k_pages, v_pages = pointer(c.k_pages, entry), pointer(c.v_pages, entry)
        k_scale, v_scale = pointer(c.k_scale, float32), pointer(c.v_scale, float32)
        for begin in range(c.begin, c.end, LANES):
            live = min(LANES, c.end - begin)
            rows = offset(pointer(c.qkv, float32), begin * qkv_dim)
            _load_lanes(x, offset(pointer(c.x, float32), begin * c.dim), live, c.dim)
            _norm(normed, x, pointer(c.attention_norm, float32), sums, c.dim, float32(c.eps))
            _product(qkv, pointer(c.qkv_weight, float32), normed, qkv_dim, c.dim)
            _turn(cos, sin, offset(pointer(c.positions, int64), begin), pointer(c.phases, int64), live, half)
            for head in range(c.num_heads + c.num_kv_heads):
                _rotate(offset(qkv, head * c.head_dim * LANES), cos, sin, half)
            _store_lanes(rows, qkv, live, qkv_dim)
            for lane in range(live):
                slot = slots[begin + lane]
                page, place = slot // c.page_size, slot % c.page_size
                for head in range(c.num_kv_heads):
                    key = offset(rows, lane * qkv_dim + (c.num_heads + head) * c.head_dim)
                    value = offset(key, c.num_kv_heads * c.head_dim)
                    at_k = page * c.k_page + place * c.k_place + head * c.k_page_head
                    at_v = page * c.v_page + place * c.v_place + head * c.v_page_head
                    if slot < 0:  # not written, but seen as if it were
                        write_entries(key, unwritten, c.head_dim)
                        write_entries(value, unwritten, c.head_dim)
                        continue
                    key_scale = write_entries(key, offset(k_pages, at_k), c.head_dim)
                    value_scale = write_entries(value, offset(v_pages, at_v), c.head_dim)
                    if scaled:
                        k_scale[page * c.ks_page + place * c.ks_place + head * c.ks_head] = key_scale
                        v_scale[page * c.vs_page + place * c.vs_place + head * c.vs_head] = value_scale

    return njit(void(from_dtype(BLOCK_CALL)[::1], int64), fastmath=FAST, **OPTIONS)(before)


@functools.cache
def after_body() -> Callable[..., None]:
    """The part after attention; arguments as `before_body`. Writes x in place."""
    version = source_version()

    def after(calls, scratch_address):
        assert version >= 0
        c = calls[0]
        x = pointer(scratch_address, types.float32)  # [dim, LANES], as the next
        normed = offset(x, c.dim * LANES)
        sums = offset(normed, c.dim * LANES)
        attended = offset(sums, 2 * LANES)  # [heads_dim, LANES]
        heads_dim = c.num_heads * c.head_dim
        gate = offset(attended, heads_dim * LANES)  # [hidden_dim, LANES], as the next
        up = offset(gate, c.hidden_dim * LANES)
        for begin in range(c.begin, c.end, LANES):
            live = min(LANES, c.end - begin)
            rows = offset(pointer(c.x, float32), begin * c.dim)
            _load_lanes(x, rows, live, c.dim)
            _load_lanes(attended, offset(pointer(c.attended, float32), begin * heads_dim), live, heads_dim)
            _add_product(x, pointer(c.out_weight, float32), heads_dim, attended, c.dim, heads_dim)
            _norm(normed, x, pointer(c.feed_forward_norm, float32), sums, c.dim, float32(c.eps))
            _product(gate, pointer(c.gate_up_weight, float32), normed, 2 * c.hidden_dim, c.dim)
            _gate(gate, up, c.hidden_dim * LANES)
            _add_product(x, pointer(c.down_weight, float32), c.hidden_dim, gate, c.dim, c.hidden_dim)
            if c.final_norm != 0:
                _norm(x, x, pointer(c.final_norm, float32), sums, c.dim, float32(c.eps))
            _store_lanes(rows, x, live, c.dim)

    return njit(void(from_dtype(BLOCK_CALL)[::1], int64), fastmath=FAST, **OPTIONS)(after)
