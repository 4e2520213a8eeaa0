"""What the kernels are counted on: each problem makes its inputs, launches its kernel, and knows the least it needs.

The least, for bytes: every input that the answer depends on read once, every output written once; workspaces of a
split, tables read twice and the like are above it. For FLOPs: the products of pairs that are visible, and no padding.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from longrec.kernels.append import append_memory_triton
from longrec.kernels.attention_cases import AttentionArguments, AttentionCase
from longrec.kernels.block_decode import BlockWeights, block_decode_triton
from longrec.kernels.segment_attention import segment_attention
from longrec.kernels.topk import catalogue_topk_triton
from longrec.kernels.types import PagedMemory

__all__ = ["Problem", "Work", "attention_least", "attention_work", "problems"]


class Work(NamedTuple):
    """A problem with its inputs made.

    Args:
        launch: runs the kernel on them.
        least_bytes, least_flops: that the problem needs.
    """

    launch: Callable[[], object]
    least_bytes: int
    least_flops: int


class Problem(NamedTuple):
    """One problem for one kernel.

    Args:
        kernel, case: what it is; the pair is unique.
        make: makes the inputs on a device.
        values: whether the kernel's control flow hangs on floating-point values, so that counting has to compute them.
        bytes_limit, flops_limit: most that it may move and multiply, in units of the least; None: not promised.
        subset: counted in CI.
    """

    kernel: str
    case: str
    make: Callable[[torch.device], Work]
    values: bool = False
    bytes_limit: float | None = None
    flops_limit: float | None = None
    subset: bool = False


def problems() -> Iterator[Problem]:
    """Every problem, in the order of the table."""
    yield from _decodes()
    yield from _appends()
    for num_tokens, page in ((1, "bf16"), (64, "int8"), (200, "bf16"), (200, "fp8")):
        yield Problem(
            "append_memory",
            f"T{num_tokens}-H8.2-D128-{page}",
            lambda device, t=num_tokens, p=page: _append_work(t, p, device),  # type: ignore[misc]
            bytes_limit=1.05 if num_tokens > 1 else None,
            subset=num_tokens == 64,
        )
    for rows, items in ((1, 1 << 17), (16, 1 << 17), (64, 1 << 17), (64, 1 << 18), (64, 1 << 19)):
        yield Problem(
            "catalogue_topk",
            f"B{rows}-N{items}-d128-k100",
            lambda device, r=rows, n=items: _topk_work(r, n, device),  # type: ignore[misc]
            values=True,
            bytes_limit=1.05,  # missed by 64 rows over 2^17 items: 132 programs move 1.064 at least, see `topk_plan`
        )
    for users, past in ((1, 256), (16, 511)):
        yield Problem(
            "block_decode",
            f"B{users}-mem{past}-d64-H2.2-D32-F128",
            lambda device, b=users, m=past: _block_work(b, m, device),  # type: ignore[misc]
            subset=users == 1,
        )


def _decodes() -> Iterator[Problem]:
    """1 to 16 new events over a memory."""
    for new in (1, 4, 16):
        for past in (512, 2048, 16384):
            for heads in ((1, 1), (4, 1), (8, 1)):
                yield _attention(
                    AttentionCase((new,), (past,), heads, 128, 64),
                    bytes_limit=1.10,
                    subset=new == 1 and past == 512,
                )
    more = (
        AttentionCase((1,), (4096,), (1, 1), 64, 32),
        AttentionCase((1,), (4096,), (8, 2), 64, 16),
        AttentionCase((1, 3, 0, 16), (700, 2048, 5, 1023), (4, 2), 64, 32),
        AttentionCase((1,), (16384,), (4, 1), 64, 64, window=2048),
        AttentionCase((1,), (4096,), (4, 1), 128, 64, memory_dtype="int8"),
        AttentionCase((1,), (4096,), (4, 1), 128, 64, memory_dtype="fp8"),
        AttentionCase((1,), (4096,), (4, 1), 64, 64, variant="hstu"),
    )
    for case in more:
        yield _attention(case, bytes_limit=1.10 if case.memory_dtype == "same" and len(case.new) == 1 else None)


def _appends() -> Iterator[Problem]:
    """Long appends, and candidates."""
    yield _attention(AttentionCase((4096,), None, (1, 1), 128), flops_limit=1.05)
    yield _attention(AttentionCase((2048,), (2048,), (1, 1), 128, 64), flops_limit=1.05)
    yield _attention(AttentionCase((512,), None, (1, 1), 128), flops_limit=1.25, subset=True)
    yield _attention(AttentionCase((256,), (4096,), (1, 1), 128, 64, targets=(256,)), flops_limit=1.30)
    yield _attention(AttentionCase((4096,), None, (4, 1), 64), flops_limit=1.05)
    yield _attention(AttentionCase((2048,), None, (1, 1), 64, variant="relative"))
    yield _attention(AttentionCase((2048,), None, (1, 1), 64, variant="hstu"))
    yield _attention(AttentionCase((2048,), (2048,), (1, 1), 64, 64, window=512))


def _attention(
    case: AttentionCase, *, bytes_limit: float | None = None, flops_limit: float | None = None, subset: bool = False
) -> Problem:
    return Problem(
        "segment_attention",
        case.id,
        lambda device: attention_work(case, torch.bfloat16, device),
        bytes_limit=bytes_limit,
        flops_limit=flops_limit,
        subset=subset,
    )


def attention_work(case: AttentionCase, dtype: torch.dtype, device: torch.device) -> Work:
    """A problem of `segment_attention`; the kernel is told the longest append and memory, as the engine tells it."""
    arguments = case.make(dtype, device)
    bounds = {"max_new": max(case.new), "max_memory": max(case.past or [0]), "validate": False}
    keywords: dict[str, Any] = {**arguments.keywords, **bounds}
    least_bytes, least_flops = attention_least(case, dtype, arguments)
    return Work(lambda: segment_attention(*arguments.tensors, **keywords), least_bytes, least_flops)


def attention_least(case: AttentionCase, dtype: torch.dtype, arguments: AttentionArguments) -> tuple[int, int]:
    """Bytes and FLOPs that a problem of `segment_attention` needs."""
    past = list(case.past or [0] * len(case.new))
    (num_heads, num_kv_heads), head_dim, item = case.heads, case.head_dim, dtype.itemsize
    page_item = item if case.memory_dtype == "same" else 1
    scales = 0 if case.memory_dtype == "same" else 2 * 4

    pairs = 0  # (query, key) pairs that are visible
    reached = 0  # events in memory that some query sees
    for new, held, targets in zip(case.new, past, case.targets or [0] * len(case.new), strict=True):
        events = new - targets
        pairs += sum(min(held + i + 1, case.window) for i in range(events))
        pairs += targets * min(held + events + 1, case.window)
        reached += min(held, case.window - 1) if new else 0
    num_tokens, num_users = sum(case.new), len(case.new)
    least = num_tokens * head_dim * item * 2 * (num_heads + num_kv_heads)  # q and out, k and v
    least += num_tokens * num_heads * 4  # lse2
    least += reached * num_kv_heads * (2 * head_dim * page_item + scales)
    least += 4 * (num_users + 1) + 4 * num_users * (case.targets is not None)
    if case.past is not None:
        least += 4 * (2 * num_users + 1) + 4 * -(-reached // case.page_size)  # lengths, page_indptr, page_indices
    if case.variant in ("time", "hstu"):
        least += 4 * (2 * num_tokens + reached)
    if case.variant in ("position", "time", "hstu"):
        tables = [arguments.keywords.get(name) for name in ("position_bias", "time_bias")]
        least += sum(bias.table.numel() * 4 for bias in tables if bias is not None)
    if case.variant == "relative":
        least += arguments.keywords["relative"].r.numel() * item + 2 * num_heads * head_dim * item
    products = 3 if case.variant == "relative" else 2  # q k, p v, and (q + v) r
    return least, 2 * products * head_dim * num_heads * pairs


def _append_work(num_tokens: int, page: str, device: torch.device) -> Work:
    num_heads, num_kv_heads, head_dim, page_size = 8, 2, 128, 64
    q = torch.randn(num_tokens, num_heads, head_dim).to(device, torch.bfloat16)
    k, v = torch.randn(2, num_tokens, num_kv_heads, head_dim).to(device, torch.bfloat16)
    num_pages = num_tokens // page_size + 1
    dtype = {"bf16": torch.bfloat16, "int8": torch.int8, "fp8": torch.float8_e4m3fn}[page]
    k_pages, v_pages = (
        torch.zeros(num_pages, page_size, num_kv_heads, head_dim, device=device).to(dtype) for _ in range(2)
    )
    scales = {}
    if page != "bf16":
        scales = {name: torch.zeros(k_pages.shape[:3], device=device) for name in ("k_scale", "v_scale")}
    positions = torch.arange(num_tokens, device=device) + 1000
    slots = torch.randperm(num_pages * page_size)[:num_tokens].to(device)
    least = num_tokens * head_dim * 2 * (num_heads + 2 * num_kv_heads)  # q, k, v
    least += num_tokens * head_dim * 2 * (num_heads + num_kv_heads)  # the rotated q and k
    least += num_tokens * num_kv_heads * 2 * (head_dim * dtype.itemsize + (4 if scales else 0))
    least += num_tokens * 16 + head_dim // 2 * 8
    return Work(
        lambda: append_memory_triton(q, k, v, positions, slots, k_pages, v_pages, rotary_base=10_000.0, **scales),
        least,
        0,
    )


def _topk_work(num_rows: int, num_items: int, device: torch.device) -> Work:
    dim, k = 128, 100
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_rows, dim, generator=generator).to(device, torch.bfloat16)
    items = torch.randn(num_items, dim, generator=generator).to(device, torch.bfloat16)
    least = (num_items + num_rows) * dim * 2 + num_rows * k * (4 + 8)
    return Work(lambda: catalogue_topk_triton(hidden, items, k), least, 2 * num_rows * num_items * dim)


def _block_work(num_users: int, past: int, device: torch.device) -> Work:
    dim, num_heads, head_dim, hidden_dim, page_size = 64, 2, 32, 128, 32
    dtype = torch.bfloat16
    shapes = ((dim,), (3 * num_heads * head_dim, dim), (dim, num_heads * head_dim), (dim,), (2 * hidden_dim, dim))
    weights = BlockWeights(*(torch.randn(shape).to(device, dtype) for shape in (*shapes, (dim, hidden_dim))))
    pages = past // page_size + 1
    held = torch.randn(2, num_users * pages, page_size, num_heads, head_dim).to(device, dtype)
    users = torch.arange(num_users, device=device)
    memory = PagedMemory(
        held[0],
        held[1],
        page_indptr=(torch.arange(num_users + 1, device=device) * pages).int(),
        page_indices=torch.arange(num_users * pages, device=device).int(),
        lengths=torch.full((num_users,), past, dtype=torch.int32, device=device),
    )
    slots = users * pages * page_size + past
    x = torch.randn(num_users, dim).to(device, dtype)
    weight_numbers = sum(weight.numel() for weight in weights)
    rows = (past + 1) * num_heads * head_dim * 2  # keys and values, the new ones written
    least = 2 * (weight_numbers + num_users * (2 * dim + rows)) + num_users * (8 + 8 + 4 + 4 + 4 * pages) + 4
    return Work(
        lambda: block_decode_triton(x, weights, users + past, slots, memory, window=1 << 20, rotary_base=10_000.0),
        least,
        2 * num_users * (weight_numbers - 2 * dim),  # attention multiplies on the plain cores
    )
