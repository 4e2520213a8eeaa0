"""`append_memory`: rotary position on q and k, and the write of k and v into pages, quantised or not, in one launch.

With theta = position * base^(-2 i / D), the pair (x_i, x_(i + D / 2)) of each head of q and k becomes

    (x_i cos theta - x_(i + D / 2) sin theta,  x_(i + D / 2) cos theta + x_i sin theta)

and k (rotated) and v go to page `slot // S`, place `slot % S`. Quantised pages hold, for each event and kv head, codes
and a float32 scale: scale = max |x| / 127 (int8) or / 448 (float8 e4m3), code = round(x / scale), halves to even.

Shapes: T new events, Hq query and Hkv key/value heads, D head_dim, P pages of S events. Positions count events. No
logarithm is taken. Every byte of q, k, v and of what is written is touched once.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from longrec.errors import ArgumentError
from longrec.kernels.checks import check_tensor, check_values
from longrec.kernels.reference.append import QUANTISED_PEAK
from longrec.kernels.reference.append import append_memory as append_memory_reference
from longrec.kernels.rotary import phase_cos_sin, rotary_phases
from longrec.kernels.shipped import Shipped

__all__ = ["append_memory", "append_memory_reference", "append_memory_triton", "shipped"]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
NUM_WARPS = 4
STRIDES = (
    "q_stride", "k_stride", "v_stride", "out_q_stride", "out_k_stride",
    "k_page_stride", "v_page_stride", "k_scale_stride", "v_scale_stride",
)  # fmt: skip


def block_tokens(num_tokens: int, num_heads: int, head_dim: int, item_bytes: int) -> int:
    """Events a program: one each while events are few, then 32 bytes of q a thread, so that few read the phases."""
    if num_tokens <= 32:
        return 1
    elements = 32 // item_bytes * 32 * NUM_WARPS
    return max(1, min(8, elements // (1 << (num_heads * head_dim - 1).bit_length())))


@triton.jit
def _load_halves(ptr, rows, stride, heads, pairs, live, NUM_HEADS: tl.constexpr, HALF: tl.constexpr):
    """Both halves of the rows of one tensor, [BLOCK_T, HEADS, PAIRS] float32."""
    offsets = rows[:, None, None] * stride + heads[None, :, None] * (2 * HALF) + pairs[None, None, :]
    mask = live[:, None, None] & (heads < NUM_HEADS)[None, :, None] & (pairs < HALF)[None, None, :]
    first = tl.load(ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(ptr + offsets + HALF, mask=mask, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _store_halves(ptr, first, second, rows, stride, heads, pairs, live, NUM_HEADS: tl.constexpr, HALF: tl.constexpr):
    offsets = rows[:, None, None] * stride + heads[None, :, None] * (2 * HALF) + pairs[None, None, :]
    mask = live[:, None, None] & (heads < NUM_HEADS)[None, :, None] & (pairs < HALF)[None, None, :]
    tl.store(ptr + offsets, first.to(ptr.dtype.element_ty), mask=mask)
    tl.store(ptr + offsets + HALF, second.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _e4m3_bits(x):
    """float8 e4m3 code of |x| <= 448, rounded to nearest even, as uint8: sm_80 and sm_86 have no conversion of it."""
    size = tl.minimum(tl.abs(x), 448.0)
    bits = size.to(tl.int32, bitcast=True)
    # drop 20 of 23 fraction bits, then move the exponent's bias from 127 to 7
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # below 2^-6 codes are multiples of 2^-9, which is float32's unit at 2^14
    small = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(size < 0.015625, small, normal)
    return (code | tl.where(x < 0.0, 128, 0)).to(tl.uint8)


@triton.jit
def _codes(x, PEAK: tl.constexpr):
    # 1.5 * 2^23 has unit 1: the sum is rounded to nearest even
    return _e4m3_bits(x) if PEAK == 448.0 else ((x + 12582912.0) - 12582912.0).to(tl.int8)


@triton.jit
def _write_pages(
    pages_ptr,
    scale_ptr,
    first,
    second,
    slots,
    page_stride,
    scale_stride,
    heads,
    pairs,
    NUM_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PEAK: tl.constexpr,
):
    """Write rows [BLOCK_T, HEADS, PAIRS] x 2 at their slots, quantised where PEAK isn't None."""
    live = slots >= 0
    page, place = slots // PAGE_SIZE, slots % PAGE_SIZE
    rows = page * page_stride + place * (NUM_HEADS * 2 * HALF)
    if PEAK is not None:
        larger = tl.maximum(tl.abs(first), tl.abs(second))
        # maxima drop NaN: an infinite scale keeps such a row from reading back as numbers
        larger = tl.where((first == first) & (second == second), larger, float("inf"))
        peak = tl.max(larger, axis=2)  # [BLOCK_T, HEADS]
        peak = tl.where(peak < 1e-30, 0.0, peak)
        usable = (peak > 0.0) & (peak < float("inf"))
        inverse = tl.div_rn(PEAK + tl.zeros_like(peak), tl.where(usable, peak, 1.0))[:, :, None]
        usable = usable[:, :, None]
        first = _codes(tl.where(usable, first, 0.0) * inverse, PEAK)
        second = _codes(tl.where(usable, second, 0.0) * inverse, PEAK)
        offsets = (page * scale_stride + place * NUM_HEADS)[:, None] + heads[None, :]
        tl.store(
            scale_ptr + offsets,
            tl.div_rn(peak, PEAK + tl.zeros_like(peak)),
            mask=live[:, None] & (heads < NUM_HEADS)[None, :],
        )
    _store_halves(pages_ptr, first, second, rows, 1, heads, pairs, live, NUM_HEADS, HALF)


@triton.jit
def _append_memory_kernel(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    v_ptr,  # [T, Hkv, D]
    positions_ptr,  # [T] int64
    slots_ptr,  # [T] int64
    phases_ptr,  # [D / 2] int64, or None: no rotation
    out_q_ptr,  # [T, Hq, D], or None: q stays as it is
    out_k_ptr,  # [T, Hkv, D], or None
    k_pages_ptr,  # [P, S, Hkv, D]; uint8 for float8
    v_pages_ptr,
    k_scale_ptr,  # [P, S, Hkv] float32, or None
    v_scale_ptr,
    num_tokens,
    q_stride,  # of a row
    k_stride,
    v_stride,
    out_q_stride,
    out_k_stride,
    k_page_stride,  # of a page
    v_page_stride,
    k_scale_stride,
    v_scale_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,  # D / 2
    PAGE_SIZE: tl.constexpr,
    PEAK: tl.constexpr,  # largest code, or None: not quantised
    BLOCK_T: tl.constexpr,
    HEADS: tl.constexpr,  # powers of two that hold the three
    KV_HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)  # int64: T * Hq * D passes 2^31
    live = rows < num_tokens
    heads, kv_heads, pairs = tl.arange(0, HEADS), tl.arange(0, KV_HEADS), tl.arange(0, PAIRS)
    slots = tl.load(slots_ptr + rows, mask=live, other=-1)

    k_first, k_second = _load_halves(k_ptr, rows, k_stride, kv_heads, pairs, live, NUM_KV_HEADS, HALF)
    v_first, v_second = _load_halves(v_ptr, rows, v_stride, kv_heads, pairs, live, NUM_KV_HEADS, HALF)
    if phases_ptr is not None or out_q_ptr is not None:
        q_first, q_second = _load_halves(q_ptr, rows, q_stride, heads, pairs, live, NUM_HEADS, HALF)
    if phases_ptr is not None:
        positions = tl.load(positions_ptr + rows, mask=live, other=0)
        phases = tl.load(phases_ptr + pairs, mask=pairs < HALF, other=0)
        cos, sin = phase_cos_sin(positions[:, None, None], phases[None, None, :])  # [BLOCK_T, 1, PAIRS]
        q_first, q_second = q_first * cos - q_second * sin, q_second * cos + q_first * sin
        k_first, k_second = k_first * cos - k_second * sin, k_second * cos + k_first * sin
    if out_q_ptr is not None:
        _store_halves(out_q_ptr, q_first, q_second, rows, out_q_stride, heads, pairs, live, NUM_HEADS, HALF)
    if out_k_ptr is not None:
        _store_halves(out_k_ptr, k_first, k_second, rows, out_k_stride, kv_heads, pairs, live, NUM_KV_HEADS, HALF)

    _write_pages(
        k_pages_ptr, k_scale_ptr, k_first, k_second, slots, k_page_stride, k_scale_stride, kv_heads, pairs,
        NUM_KV_HEADS, HALF, PAGE_SIZE, PEAK,
    )  # fmt: skip
    _write_pages(
        v_pages_ptr, v_scale_ptr, v_first, v_second, slots, v_page_stride, v_scale_stride, kv_heads, pairs,
        NUM_KV_HEADS, HALF, PAGE_SIZE, PEAK,
    )  # fmt: skip


def append_memory_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    *,
    rotary_base: float | None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    out_q: torch.Tensor | None = None,
    out_k: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The launch of `append_memory`, whose checks have been made."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    phases = None
    if rotary_base is not None:
        phases = rotary_phases(rotary_base, head_dim, q.device)
        out_q = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out_q is None else out_q
        out_k = torch.empty(k.shape, dtype=k.dtype, device=k.device) if out_k is None else out_k
    block = block_tokens(num_tokens, num_heads, head_dim, q.element_size())
    as_bits = torch.uint8 if k_pages.dtype == torch.float8_e4m3fn else k_pages.dtype
    if num_tokens:
        _append_memory_kernel[(triton.cdiv(num_tokens, block),)](
            q_ptr=q,
            k_ptr=k,
            v_ptr=v,
            positions_ptr=positions,
            slots_ptr=slots,
            phases_ptr=phases,
            out_q_ptr=out_q,
            out_k_ptr=out_k,
            k_pages_ptr=k_pages.view(as_bits),
            v_pages_ptr=v_pages.view(as_bits),
            k_scale_ptr=k_scale,
            v_scale_ptr=v_scale,
            num_tokens=num_tokens,
            q_stride=q.stride(0),
            k_stride=k.stride(0),
            v_stride=v.stride(0),
            out_q_stride=0 if out_q is None else out_q.stride(0),
            out_k_stride=0 if out_k is None else out_k.stride(0),
            k_page_stride=k_pages.stride(0),
            v_page_stride=v_pages.stride(0),
            k_scale_stride=0 if k_scale is None else k_scale.stride(0),
            v_scale_stride=0 if v_scale is None else v_scale.stride(0),
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            HALF=head_dim // 2,
            PAGE_SIZE=k_pages.shape[1],
            PEAK=QUANTISED_PEAK.get(k_pages.dtype),
            BLOCK_T=block,
            HEADS=triton.next_power_of_2(num_heads),
            KV_HEADS=triton.next_power_of_2(num_kv_heads),
            PAIRS=triton.next_power_of_2(head_dim // 2),
            num_warps=NUM_WARPS,
        )
    return q if out_q is None else out_q, k if out_k is None else out_k


def append_memory(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    *,
    rotary_base: float | None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    out_q: torch.Tensor | None = None,
    out_k: torch.Tensor | None = None,
    validate: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate q and k, and write the rotated k and v into pages.

    Rotary embedding pairs a head's halves (Su et al., RoFormer, 2021). Angles are exact to 1e-6 rad up to position
    1e9. On a GPU it is one launch, allocates nothing if `out_q` and `out_k` are given, and has no backward.

    Args:
        q: [T, Hq, D], D even. k, v: [T, Hkv, D]. float32, float16 or bfloat16 (on the CPU float64 too); rows may have
            any stride.
        positions: [T] int64, absolute places of the events in their users' logs, >= 0.
        slots: [T] int64, page * S + place within the page, each at most once; -1: not written.
        k_pages, v_pages: [P, S, Hkv, D], written in place: a floating-point dtype, or int8 or float8_e4m3fn with
            scales. Pages may have any stride.
        rotary_base: base of the frequencies base^(-2 i / D), > 1; None: no rotation.
        k_scale, v_scale: [P, S, Hkv] float32, written in place; needed by quantised pages and by no others.
        out_q, out_k: where to put the results, in the shapes and dtypes of q and k; may be q and k themselves.
        validate: also check values, for which the host waits for the device.

    Returns:
        The rotated q and k: `out_q` and `out_k`, or new tensors, or q and k themselves where nothing is rotated.

    Raises:
        ArgumentError: shape, dtype, stride, device, base, a gradient asked of the kernel, or (with `validate`) a
            negative position, a slot outside of the pages or taken twice.
    """
    _check(q, k, v, positions, slots, k_pages, v_pages, rotary_base, k_scale, v_scale, out_q, out_k)
    if validate:
        _check_values(positions, slots, k_pages.shape[0] * k_pages.shape[1])
    body = append_memory_triton if q.is_cuda else append_memory_reference
    return body(
        q, k, v, positions, slots, k_pages, v_pages,
        rotary_base=rotary_base, k_scale=k_scale, v_scale=v_scale, out_q=out_q, out_k=out_k,
    )  # fmt: skip


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    rotary_base: float | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    out_q: torch.Tensor | None,
    out_k: torch.Tensor | None,
) -> None:
    floats = FLOATS if q.is_cuda else (*FLOATS, torch.float64)
    check_tensor("q", q, (("T", None), ("Hq", None), ("D", None)), floats, dense_from=1)
    num_tokens, _, head_dim = q.shape
    if head_dim % 2 or not 0 < head_dim <= 256:
        raise ArgumentError("q", "an even head_dim of 2..256", str(head_dim))
    check_tensor("k", k, (("T", num_tokens), ("Hkv", None), ("D", head_dim)), (q.dtype,), like=q, dense_from=1)
    num_kv_heads = k.shape[1]
    check_tensor("v", v, (("T", num_tokens), ("Hkv", num_kv_heads), ("D", head_dim)), (q.dtype,), like=q, dense_from=1)
    for name, rows in (("positions", positions), ("slots", slots)):
        check_tensor(name, rows, (("T", num_tokens),), (torch.int64,), like=q)
    quantised = k_pages.dtype in QUANTISED_PEAK
    page_dtypes = (*floats, *QUANTISED_PEAK)
    page: tuple[tuple[str, int | None], ...] = (("P", None), ("S", None), ("Hkv", num_kv_heads), ("D", head_dim))
    check_tensor("k_pages", k_pages, page, page_dtypes, like=q, dense_from=1)
    num_pages, page_size = k_pages.shape[:2]
    page = (("P", num_pages), ("S", page_size), *page[2:])
    check_tensor("v_pages", v_pages, page, (k_pages.dtype,), like=q, dense_from=1)
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if quantised != (scale is not None):
            wanted = "a tensor, since pages are quantised" if quantised else "None, since pages are not quantised"
            raise ArgumentError(name, wanted, "None" if scale is None else "a tensor")
        if scale is not None:
            check_tensor(name, scale, page[:3], (torch.float32,), like=q, dense_from=1)
    for name, out, source in (("out_q", out_q, q), ("out_k", out_k, k)):
        if out is not None:
            shape = tuple(zip("THD", source.shape, strict=True))
            check_tensor(name, out, shape, (q.dtype,), like=q, dense_from=1)
    if rotary_base is not None and not rotary_base > 1.0:
        raise ArgumentError(f"rotary_base={rotary_base}", "a number above 1, or None for no rotation")
    if q.is_cuda and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise ArgumentError("q, k, v", "no gradient", remedy="serve under torch.no_grad(); train with `rotate`")


def _check_values(positions: torch.Tensor, slots: torch.Tensor, num_slots: int) -> None:
    check_values("positions", positions >= 0, "at least 0")
    check_values("slots", (slots >= -1) & (slots < num_slots), f"-1..{num_slots - 1} (pages x page size - 1)")
    kept, order = slots.sort(stable=True)
    once = torch.ones_like(slots, dtype=torch.bool)
    once[order[1:]] = (kept[1:] != kept[:-1]) | (kept[1:] < 0)
    check_values("slots", once, "each slot at most once")


def shipped(target: int) -> Iterator[Shipped]:
    """Every kind of configuration that the launcher picks, over the usual heads, dtypes and page dtypes."""
    heads = ((8, 8, 64), (8, 1, 128), (4, 4, 16), (4, 2, 256))
    for dtype, size in (("bf16", 2), ("fp16", 2), ("fp32", 4)):
        for page in (dtype, "i8", "u8"):
            for num_heads, num_kv_heads, head_dim in heads if dtype != "fp16" else heads[:1]:
                for block in sorted({block_tokens(n, num_heads, head_dim, size) for n in (64, 4096)}):
                    yield _shipped(target, dtype, page, (num_heads, num_kv_heads, head_dim), block)


def _shipped(target: int, dtype: str, page: str, heads: tuple[int, int, int], block: int) -> Shipped:
    num_heads, num_kv_heads, head_dim = heads
    peak = {"i8": 127.0, "u8": 448.0}.get(page)
    scales = ("k_scale_ptr", "v_scale_ptr")
    return Shipped(
        kernel="append_memory",
        config=f"{dtype}-{page}-H{num_heads}-{num_kv_heads}-D{head_dim}-block{block}",
        fn=_append_memory_kernel,
        target=target,
        signature={
            **dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_q_ptr", "out_k_ptr"), f"*{dtype}"),
            **dict.fromkeys(("positions_ptr", "slots_ptr", "phases_ptr"), "*i64"),
            **dict.fromkeys(("k_pages_ptr", "v_pages_ptr"), f"*{page}"),
            **(dict.fromkeys(scales, "*fp32") if peak else {}),
            **dict.fromkeys(("num_tokens", *STRIDES), "i32"),
        },
        constexprs={
            **({} if peak else dict.fromkeys(scales)),
            "NUM_HEADS": num_heads,
            "NUM_KV_HEADS": num_kv_heads,
            "HALF": head_dim // 2,
            "PAGE_SIZE": 32,
            "PEAK": peak,
            "BLOCK_T": block,
            "HEADS": triton.next_power_of_2(num_heads),
            "KV_HEADS": triton.next_power_of_2(num_kv_heads),
            "PAIRS": triton.next_power_of_2(head_dim // 2),
        },
        num_warps=NUM_WARPS,
        num_stages=1,
        divisible=STRIDES,
        subset=(dtype, page, head_dim) == ("bf16", "i8", 64),
    )
