"""`catalogue_topk`: the k items of largest inner product for each hidden state, exactly, reading each item once.

    scores[b] = top k of { hidden[b] . items[n] : n allowed for b, not blocked, not seen by b },  ties by lower n

Scores accumulate in float32; no [B, N] tensor exists. Five launches, none of which waits for the host:

1. sample: one item drawn from each stratum of the catalogue; each program keeps the best of its share,
2. threshold: for each row a score that, but for a chance of 1e-6, lies below its k-th best; the sample's items that
   reach it start the row's list,
3. scan: every other item once for up to 64 rows; what reaches a row's threshold joins the row's list,
4. brute force: only for rows whose list does not hold their k best, which the list itself shows; others leave at once,
5. best: the k best of each list, sorted.

Small catalogues take 4 and 5 alone. Lists fill in any order, but hold the same set every time, and are sorted by score
and index: results are deterministic. `topk_plan` says how the work is cut and why, `topk_kernels` has the kernels.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton

from longrec.errors import ArgumentError
from longrec.kernels.checks import check_tensor, check_values
from longrec.kernels.cpu.topk import catalogue_topk_cpu
from longrec.kernels.reference.topk import catalogue_topk as catalogue_topk_reference
from longrec.kernels.shipped import MAX_REGISTERS, Shipped, target_of
from longrec.kernels.topk_kernels import best_kernel, brute_kernel, sample_kernel, scan_kernel, threshold_kernel
from longrec.kernels.topk_plan import (
    BRUTE_BLOCK,
    BRUTE_STEP,
    BRUTE_WARPS,
    CHUNK,
    KEPT,
    MAX_DIM,
    MAX_K,
    SAMPLE_WARPS,
    TopkPlan,
    TopkTile,
    plan_topk,
    topk_tile,
)

__all__ = [
    "TopkBuffers",
    "allocate_topk",
    "catalogue_topk",
    "catalogue_topk_reference",
    "catalogue_topk_triton",
    "shipped",
]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
CPU_MULTIPROCESSORS = 132  # an H100's, so that the interpreter cuts work as an H100 would


class TopkBuffers(NamedTuple):
    """What `catalogue_topk` writes, and the plan it was made for; made once, a step allocates nothing, and a CUDA graph
    keeps its pointers.

    Args:
        plan, tile: how a call is cut.
        scores: [B, k] float32. indices: [B, k] int64.
        kept: [B, shares of the sample, kept] int64. floor: [B, shares] int64.
        threshold: [B] int64. count: [B] int32. candidates: [B, capacity] int64.
    """

    plan: TopkPlan
    tile: TopkTile
    scores: torch.Tensor
    indices: torch.Tensor
    kept: torch.Tensor
    floor: torch.Tensor
    threshold: torch.Tensor
    count: torch.Tensor  # type: ignore[assignment]  # hides tuple.count, which nothing calls
    candidates: torch.Tensor


def allocate_topk(num_rows: int, items: torch.Tensor, k: int, multiprocessors: int | None = None) -> TopkBuffers:
    """Buffers for calls of `num_rows` hidden states over these items.

    Args:
        num_rows: B.
        items: [N, d].
        k: as in the calls.
        multiprocessors: that the scan is to fill; None: those of the items' device.
    """
    num_items, dim = items.shape
    device, size = items.device, items.element_size()
    if multiprocessors is None:
        multiprocessors = CPU_MULTIPROCESSORS
        if items.is_cuda:
            multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    tile = topk_tile(target_of(device), num_rows, dim, size)
    plan = plan_topk(num_rows, num_items, dim, size, k, tile, multiprocessors)
    return TopkBuffers(
        plan=plan,
        tile=tile,
        scores=torch.empty(num_rows, k, dtype=torch.float32, device=device),
        indices=torch.empty(num_rows, k, dtype=torch.int64, device=device),
        kept=torch.empty(num_rows, plan.num_shares, plan.kept, dtype=torch.int64, device=device),
        floor=torch.empty(num_rows, plan.num_shares, dtype=torch.int64, device=device),
        threshold=torch.empty(num_rows, dtype=torch.int64, device=device),
        count=torch.empty(num_rows, dtype=torch.int32, device=device),
        candidates=torch.empty(num_rows, plan.capacity, dtype=torch.int64, device=device),
    )


def catalogue_topk_triton(
    hidden: torch.Tensor,
    items: torch.Tensor,
    k: int,
    *,
    seen_indptr: torch.Tensor | None = None,
    seen_indices: torch.Tensor | None = None,
    blocked: torch.Tensor | None = None,
    categories: torch.Tensor | None = None,
    allowed: torch.Tensor | None = None,
    buffers: TopkBuffers | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The launches of `catalogue_topk`, whose checks have been made."""
    num_rows, dim = hidden.shape
    num_items = len(items)
    if buffers is None:
        buffers = allocate_topk(num_rows, items, k)
    if num_rows == 0 or num_items == 0:
        return buffers.scores.fill_(-torch.inf), buffers.indices.fill_(-1)
    plan, tile = buffers.plan, buffers.tile
    shared = {
        "hidden_ptr": hidden,
        "items_ptr": items,
        "seen_indptr_ptr": seen_indptr,
        "seen_indices_ptr": seen_indices,
        "blocked_ptr": blocked,
        "categories_ptr": categories,
        "allowed_ptr": allowed,
        "num_items": num_items,
        "hidden_stride": hidden.stride(0),
        "item_stride": items.stride(0),
        "DIM": dim,
        "BLOCK_D": max(16, triton.next_power_of_2(dim)),
    }
    row_tiles = triton.cdiv(num_rows, tile.rows)
    lists: dict[str, torch.Tensor | None] = {"threshold_ptr": None, "count_ptr": None}
    if not plan.brute:
        lists = {"threshold_ptr": buffers.threshold, "count_ptr": buffers.count}
        sample = {"kept_ptr": buffers.kept, "floor_ptr": buffers.floor}
        sample_kernel[(plan.num_shares, row_tiles)](
            **shared,
            **sample,
            num_rows=num_rows,
            shift=plan.shift,
            num_tiles=plan.num_tiles,
            ROWS=tile.rows,
            TILE=plan.sample_tile,
            KEPT=plan.kept,
            PRECISION=tile.precision,
            num_warps=SAMPLE_WARPS,
            num_stages=1,
            maxnreg=MAX_REGISTERS,
        )
        threshold_kernel[(num_rows,)](
            **sample,
            **lists,
            candidates_ptr=buffers.candidates,
            num_shares=plan.num_shares,
            rank=plan.rank,
            SHARES=triton.next_power_of_2(plan.num_shares),
            KEPT=plan.kept,
            TOP=plan.top_rank,
            CAPACITY=plan.capacity,
            num_warps=1,
            maxnreg=MAX_REGISTERS,
        )
        scan_kernel[(plan.num_programs, row_tiles)](
            **shared,
            **lists,
            candidates_ptr=buffers.candidates,
            num_rows=num_rows,
            shift=plan.shift,
            num_blocks=plan.num_blocks,
            ROWS=tile.rows,
            BLOCK_N=tile.block_n,
            CAPACITY=plan.capacity,
            PRECISION=tile.precision,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            maxnreg=MAX_REGISTERS,
        )
    brute_kernel[(num_rows, plan.brute_programs)](
        **shared,
        **lists,
        candidates_ptr=buffers.candidates,
        num_blocks=plan.brute_blocks,
        k=k,
        STEP_D=min(BRUTE_STEP, shared["BLOCK_D"]),
        BLOCK_N=BRUTE_BLOCK,
        TOP=plan.top,
        CAPACITY=plan.capacity,
        num_warps=BRUTE_WARPS,
        num_stages=1,
        maxnreg=MAX_REGISTERS,
    )
    best_kernel[(num_rows,)](
        **lists,
        candidates_ptr=buffers.candidates,
        scores_ptr=buffers.scores,
        indices_ptr=buffers.indices,
        k=k,
        num_brute=plan.brute_programs * plan.top,
        TOP=plan.top,
        CHUNK=CHUNK,
        CAPACITY=plan.capacity,
        num_warps=4,
        maxnreg=MAX_REGISTERS,
    )
    return buffers.scores, buffers.indices


def catalogue_topk(
    hidden: torch.Tensor,
    items: torch.Tensor,
    k: int,
    *,
    seen_indptr: torch.Tensor | None = None,
    seen_indices: torch.Tensor | None = None,
    blocked: torch.Tensor | None = None,
    categories: torch.Tensor | None = None,
    allowed: torch.Tensor | None = None,
    buffers: TopkBuffers | None = None,
    validate: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best items of each row by inner product; equal scores go to the lower index.

    Args:
        hidden: [B, d], d at most 256; float32, float16 or bfloat16 (on the CPU float64 too).
        items: [N, d] in hidden's dtype, N below 2^31. Rows of both may have any stride.
        k: 1..256. More than the items that are left gives -inf and -1 behind them.
        seen_indptr, seen_indices: items that each row must not get: row b's are
            seen_indices[seen_indptr[b] : seen_indptr[b + 1]], rising. int32 or int64, [B + 1] and [M].
        blocked: [ceil(N / 32)] int32, a bit for each item, lowest bit first: 1 is given to no row.
        categories, allowed: [N] and [B], int32 or int64: an item is given to a row if they have a bit in common.
        buffers: of `allocate_topk`, for the kernels; the results then stand in them.
        validate: also check values, for which the host waits for the device.

    Returns:
        scores [B, k] float32 (float64 for float64), falling, and indices [B, k] int64. A score that is NaN or -inf is
        no answer.

    Raises:
        ArgumentError: shape, dtype, stride, device, k, half of a pair of masks, or (with `validate`) seen items out of
            range or out of order.
    """
    _check(hidden, items, k, seen_indptr, seen_indices, blocked, categories, allowed)
    if buffers is not None and buffers.scores.shape != (len(hidden), k):
        raise ArgumentError("buffers", f"those of {len(hidden)} rows and k={k}", f"{list(buffers.scores.shape)}")
    if validate and seen_indptr is not None and seen_indices is not None:
        _check_seen(seen_indptr, seen_indices, len(items))
    masks = {"seen_indptr": seen_indptr, "seen_indices": seen_indices, "blocked": blocked}
    masks |= {"categories": categories, "allowed": allowed}
    if hidden.is_cuda:
        return catalogue_topk_triton(hidden, items, k, **masks, buffers=buffers)
    if hidden.dtype != torch.float64:
        return catalogue_topk_cpu(hidden, items, k, **masks)
    return catalogue_topk_reference(hidden, items, k, **masks)


def _check(
    hidden: torch.Tensor,
    items: torch.Tensor,
    k: int,
    seen_indptr: torch.Tensor | None,
    seen_indices: torch.Tensor | None,
    blocked: torch.Tensor | None,
    categories: torch.Tensor | None,
    allowed: torch.Tensor | None,
) -> None:
    floats = FLOATS if hidden.is_cuda else (*FLOATS, torch.float64)
    check_tensor("hidden", hidden, (("B", None), ("d", None)), floats, dense_from=1)
    num_rows, dim = hidden.shape
    check_tensor("items", items, (("N", None), ("d", dim)), (hidden.dtype,), like=hidden, dense_from=1)
    if not 1 <= dim <= MAX_DIM:
        raise ArgumentError("hidden", f"a width d of 1..{MAX_DIM}", str(dim))
    if len(items) >= 1 << 31:
        raise ArgumentError("items", "fewer than 2^31 items", str(len(items)))
    if not 1 <= k <= MAX_K:
        raise ArgumentError(f"k={k}", f"1..{MAX_K}")
    for (one, first), (other, second) in (
        (("seen_indptr", seen_indptr), ("seen_indices", seen_indices)),
        (("categories", categories), ("allowed", allowed)),
    ):
        if (first is None) != (second is None):
            missing, present = (one, other) if first is None else (other, one)
            raise ArgumentError(missing, f"a tensor, since {present} is one", "None")
    integers = (torch.int32, torch.int64)
    if seen_indptr is not None and seen_indices is not None:
        check_tensor("seen_indptr", seen_indptr, (("B + 1", num_rows + 1),), integers, like=hidden)
        check_tensor("seen_indices", seen_indices, (("M", None),), integers, like=hidden)
    if blocked is not None:
        words = triton.cdiv(len(items), 32)
        check_tensor("blocked", blocked, (("ceil(N / 32)", words),), (torch.int32,), like=hidden)
    if categories is not None and allowed is not None:
        check_tensor("categories", categories, (("N", len(items)),), integers, like=hidden)
        check_tensor("allowed", allowed, (("B", num_rows),), (categories.dtype,), like=hidden)


def _check_seen(indptr: torch.Tensor, indices: torch.Tensor, num_items: int) -> None:
    check_values("seen_indptr", indptr.diff() >= 0, "not below its predecessor")
    ends = torch.stack([indptr[0] == 0, indptr[-1] == len(indices)])
    if not bool(ends.all()):
        raise ArgumentError("seen_indptr", f"to start at 0 and end at {len(indices)}, the length of seen_indices")
    check_values("seen_indices", (indices >= 0) & (indices < num_items), f"0..{num_items - 1}")
    row = torch.repeat_interleave(indptr.diff().long())
    rising = torch.ones_like(indices, dtype=torch.bool)
    rising[1:] = (indices[1:] >= indices[:-1]) | (row[1:] != row[:-1])
    check_values("seen_indices", rising, "not below its predecessor in the same row", "sort each row's seen items")


def shipped(target: int) -> Iterator[Shipped]:
    """Every kernel over widths, rows and dtypes; with all masks, and in bfloat16 with none too."""
    for dim in (50, 64, 128, 256):
        for num_rows in (1, 64):
            yield from _shipped_scan(target, "bf16", dim, num_rows, masked=True)
            yield from _shipped_scan(target, "bf16", dim, num_rows, masked=False)
            if num_rows == 1 or dim < 256:  # tiles of float32 as wide as 256 have 16 rows however many there are
                yield from _shipped_scan(target, "fp32", dim, num_rows, masked=True)
    yield from _shipped_scan(target, "fp16", 128, 64, masked=True)
    for k in (10, 100, 256):
        yield from _shipped_lists(target, k)


def _shipped_scan(target: int, dtype: str, dim: int, num_rows: int, masked: bool) -> Iterator[Shipped]:
    size = 4 if dtype == "fp32" else 2
    tile = topk_tile(target, num_rows, dim, size)
    plan = plan_topk(num_rows, 1_000_000, dim, size, 100, tile, CPU_MULTIPROCESSORS)
    config = f"{dtype}-d{dim}-rows{tile.rows}-{'masked' if masked else 'plain'}"
    pointers = ("seen_indptr_ptr", "seen_indices_ptr", "blocked_ptr", "categories_ptr", "allowed_ptr")
    masks = dict.fromkeys(pointers, "*i32") if masked else {}
    signature = {"hidden_ptr": f"*{dtype}", "items_ptr": f"*{dtype}", **masks}
    signature |= dict.fromkeys(("num_items", "hidden_stride", "item_stride"), "i32")
    lists = {"threshold_ptr": "*i64", "count_ptr": "*i32", "candidates_ptr": "*i64"}
    width = max(16, triton.next_power_of_2(dim))
    constexprs = {**({} if masked else dict.fromkeys(pointers)), "DIM": dim, "BLOCK_D": width}
    # rows of 50 two-byte numbers are not aligned to 16 bytes, and copied through registers
    aligned = dim % 16 == 0
    common: dict[str, Any] = {
        "target": target,
        "num_warps": tile.num_warps,
        "maxnreg": MAX_REGISTERS,
        "divisible": ("hidden_stride", "item_stride") if aligned else (),
        "subset": (dtype, dim, num_rows, masked) == ("bf16", 128, 64, True),
    }
    yield Shipped(
        kernel="catalogue_topk.scan",
        config=config,
        fn=scan_kernel,
        signature={**signature, **lists, "num_rows": "i32", "shift": "i32", "num_blocks": "i32"},
        constexprs=constexprs
        | {"ROWS": tile.rows, "BLOCK_N": tile.block_n, "CAPACITY": plan.capacity, "PRECISION": tile.precision},
        num_stages=tile.num_stages,
        expects=(("matrix",) if size == 2 else ()) + (("wide_async_copy",) if aligned else ()),
        **common,
    )
    if not masked:
        return
    integers = dict.fromkeys(("num_rows", "shift", "num_tiles"), "i32")
    for kept in KEPT:
        sample = {"ROWS": tile.rows, "TILE": plan.sample_tile, "KEPT": kept, "PRECISION": tile.precision}
        yield Shipped(
            kernel="catalogue_topk.sample",
            config=f"{config}-kept{kept}",
            fn=sample_kernel,
            signature={**signature, "kept_ptr": "*i64", "floor_ptr": "*i64", **integers},
            constexprs=constexprs | sample,
            num_stages=1,
            **(common | {"num_warps": SAMPLE_WARPS}),
        )
    if num_rows == 1:
        brute = {"STEP_D": min(BRUTE_STEP, width), "BLOCK_N": BRUTE_BLOCK, "TOP": 256, "CAPACITY": plan.capacity}
        yield Shipped(
            kernel="catalogue_topk.brute",
            config=f"{dtype}-d{dim}-k256",
            fn=brute_kernel,
            signature={**signature, **lists, "num_blocks": "i32", "k": "i32"},
            constexprs=constexprs | brute,
            num_stages=1,
            **(common | {"num_warps": BRUTE_WARPS, "subset": (dtype, dim, masked) == ("bf16", 128, True)}),
        )


def _shipped_lists(target: int, k: int) -> Iterator[Shipped]:
    plan = plan_topk(64, 1_000_000, 128, 2, k, topk_tile(target, 64, 128, 2), CPU_MULTIPROCESSORS)
    yield Shipped(
        kernel="catalogue_topk.threshold",
        config=f"k{k}",
        fn=threshold_kernel,
        target=target,
        signature={
            "kept_ptr": "*i64",
            "floor_ptr": "*i64",
            "threshold_ptr": "*i64",
            "count_ptr": "*i32",
            "candidates_ptr": "*i64",
            "num_shares": "i32",
            "rank": "i32",
        },
        constexprs={
            "SHARES": triton.next_power_of_2(plan.num_shares),
            "KEPT": plan.kept,
            "TOP": plan.top_rank,
            "CAPACITY": plan.capacity,
        },
        num_warps=1,
        maxnreg=MAX_REGISTERS,
        num_stages=1,
        subset=k == 256,
    )
    yield Shipped(
        kernel="catalogue_topk.best",
        config=f"k{k}",
        fn=best_kernel,
        target=target,
        signature={
            "threshold_ptr": "*i64",
            "count_ptr": "*i32",
            "candidates_ptr": "*i64",
            "scores_ptr": "*fp32",
            "indices_ptr": "*i64",
            "k": "i32",
            "num_brute": "i32",
        },
        constexprs={"TOP": plan.top, "CHUNK": CHUNK, "CAPACITY": plan.capacity},
        num_warps=4,
        maxnreg=MAX_REGISTERS,
        num_stages=1,
        subset=k == 256,
    )
