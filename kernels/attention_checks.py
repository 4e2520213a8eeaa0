"""What `segment_attention` checks of its arguments before any launch. Nothing is launched here, forward or backward."""

from collections.abc import Collection
from typing import NamedTuple, get_args

import torch

from longrec.errors import ArgumentError
from longrec.kernels.checks import check_tensor, check_values
from longrec.kernels.types import AttentionKind, PagedMemory, PositionBias, RelativeTerms, TimeBias

__all__ = [
    "DTYPES",
    "HEAD_DIMS",
    "MAX_TARGETS",
    "PAGE_SIZES",
    "SCALED_DTYPES",
    "AttentionCall",
    "check_attention",
    "check_attention_values",
    "check_memory",
]

HEAD_DIMS = (16, 32, 64, 128, 256)
PAGE_SIZES = (16, 32, 64, 128)
MAX_TARGETS = 1024
MAX_FRACTION_BITS = 16
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SCALED_DTYPES = (torch.int8, torch.float8_e4m3fn)


class AttentionCall(NamedTuple):
    """The arguments of `segment_attention`, defaults filled in; its docstring says what they are."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cu_seqlens: torch.Tensor
    window: int
    scale: float
    memory: PagedMemory | None
    kind: AttentionKind
    relative: RelativeTerms | None
    position_bias: PositionBias | None
    time_bias: TimeBias | None
    num_targets: torch.Tensor | None
    max_new: int
    max_memory: int


def check_attention(call: AttentionCall) -> None:
    """Check what the host knows: ranks, sizes, dtypes, devices, strides, scalars.

    Raises:
        ArgumentError: naming argument, expected and got.
    """
    q, k = call.q, call.k
    check_tensor("q", q, [("T", None), ("Hq", None), ("D", None)], DTYPES, dense_from=2)
    num_tokens, num_heads, head_dim = q.shape
    if head_dim not in HEAD_DIMS:
        raise ArgumentError(f"q: head_dim={head_dim}", f"one of {HEAD_DIMS}", remedy="pad the heads with zeros")
    check_tensor("k", k, [("T", num_tokens), ("Hkv", None), ("D", head_dim)], (q.dtype,), q, 2)
    num_kv_heads = k.shape[1]
    check_tensor("v", call.v, [("T", num_tokens), ("Hkv", num_kv_heads), ("D", head_dim)], (q.dtype,), q, 2)
    if num_kv_heads == 0 or num_heads % num_kv_heads:
        raise ArgumentError("q: Hq", f"a multiple of Hkv={num_kv_heads}", str(num_heads))
    for name, tensor in (("q", q), ("k", k), ("v", call.v)):
        _check_strides(name, tensor)
    check_tensor("cu_seqlens", call.cu_seqlens, [("B + 1", None)], (torch.int32,), q, 0)
    num_users = len(call.cu_seqlens) - 1
    if num_users < 0:
        raise ArgumentError("cu_seqlens", "B + 1 offsets, the first 0", "none")
    if call.window < 1:
        raise ArgumentError(f"window={call.window}", "at least 1: a query sees itself")
    if not call.scale > 0:
        raise ArgumentError(f"scale={call.scale}", "above 0", remedy="flip the sign of q instead")
    if call.kind not in get_args(AttentionKind):
        raise ArgumentError(f"kind={call.kind!r}", f"one of {get_args(AttentionKind)}")
    if call.num_targets is not None:
        check_tensor("num_targets", call.num_targets, [("B", num_users)], (torch.int32,), q, 0)
    if call.memory is not None:
        check_memory(call.memory, q, num_users, num_kv_heads, (q.dtype, *SCALED_DTYPES))
        page_size = call.memory.k_pages.shape[1]
        if page_size not in PAGE_SIZES:
            raise ArgumentError(f"memory.k_pages: page size {page_size}", f"one of {PAGE_SIZES}")
        _check_strides("memory.k_pages", call.memory.k_pages)
        _check_strides("memory.v_pages", call.memory.v_pages)
    _check_terms(call)


def check_memory(
    memory: PagedMemory, q: torch.Tensor, num_users: int, num_kv_heads: int, dtypes: Collection[torch.dtype]
) -> None:
    """Check what the host knows of paged memory, but for what only kernels ask of it.

    Args:
        q: [T, Hq, D], whose device is expected.
        num_users, num_kv_heads: B, Hkv.
        dtypes: that pages may have.

    Raises:
        ArgumentError: naming argument, expected and got.
    """
    shape = [("P", None), ("S", None), ("Hkv", num_kv_heads), ("D", q.shape[2])]
    check_tensor("memory.k_pages", memory.k_pages, shape, dtypes, q, 3)
    num_pages, page_size = memory.k_pages.shape[:2]
    shape = [("P", num_pages), ("S", page_size), ("Hkv", num_kv_heads)]
    check_tensor("memory.v_pages", memory.v_pages, [*shape, ("D", q.shape[2])], (memory.k_pages.dtype,), q, 3)
    scaled = memory.k_pages.dtype in SCALED_DTYPES
    for name, scale in (("memory.k_scale", memory.k_scale), ("memory.v_scale", memory.v_scale)):
        if scaled != (scale is not None):
            wanted = "scales [P, S, Hkv]" if scaled else "None"
            raise ArgumentError(
                name, f"{wanted} with pages in {memory.k_pages.dtype}", "None" if scaled else "a tensor"
            )
        if scale is not None:
            check_tensor(name, scale, shape, (torch.float32,), q, 0)
    check_tensor("memory.page_indptr", memory.page_indptr, [("B + 1", num_users + 1)], (torch.int32,), q, 0)
    check_tensor("memory.page_indices", memory.page_indices, [("N", None)], (torch.int32,), q, 0)
    check_tensor("memory.lengths", memory.lengths, [("B", num_users)], (torch.int32,), q, 0)


def _check_terms(call: AttentionCall) -> None:
    num_tokens, num_heads, head_dim = call.q.shape
    if call.relative is not None:
        for name in ("u", "v"):
            shape = [("Hq", num_heads), ("D", head_dim)]
            check_tensor(f"relative.{name}", getattr(call.relative, name), shape, (call.q.dtype,), call.q, 0)
        r = call.relative.r
        check_tensor("relative.r", r, [("R", None), ("Hq", num_heads), ("D", head_dim)], (call.q.dtype,), call.q, 2)
        _check_strides("relative.r", r)
    for name, bias in (("position_bias", call.position_bias), ("time_bias", call.time_bias)):
        if bias is None:
            continue
        table = [("Hq", num_heads), ("num_buckets", None)]
        check_tensor(f"{name}.table", bias.table, table, (torch.float32,), call.q, 0)
        if bias.table.shape[1] == 0:
            raise ArgumentError(f"{name}.table", "at least one bucket", "none")
        if not 0 <= bias.fraction_bits <= MAX_FRACTION_BITS:
            raise ArgumentError(f"{name}.fraction_bits={bias.fraction_bits}", f"0..{MAX_FRACTION_BITS}")
    if call.time_bias is not None:
        times = call.time_bias
        for name in ("query_seconds", "key_seconds"):
            check_tensor(f"time_bias.{name}", getattr(times, name), [("T", num_tokens)], (torch.int32,), call.q, 0)
        if (times.memory_seconds is None) != (call.memory is None):
            wanted = "None without memory" if call.memory is None else "times of the events in memory"
            raise ArgumentError("time_bias.memory_seconds", wanted, "None" if call.memory is not None else "a tensor")
        if times.memory_seconds is not None and call.memory is not None:
            num_pages, page_size = call.memory.k_pages.shape[:2]
            shape = [("P", num_pages), ("S", page_size)]
            check_tensor("time_bias.memory_seconds", times.memory_seconds, shape, (torch.int32,), call.q, 0)


def check_attention_values(call: AttentionCall) -> None:
    """Check what only the device knows: offsets, lengths, page indices, targets. Makes the host wait for it.

    Raises:
        ArgumentError: naming the argument and the first bad place.
    """
    counts = call.cu_seqlens.diff()
    check_values("cu_seqlens", call.cu_seqlens[:1] == 0, "0 at the start")
    check_values("cu_seqlens", counts >= 0, "offsets that don't fall")
    check_values("cu_seqlens", call.cu_seqlens[-1:] == len(call.q), f"{len(call.q)} at the end, the rows of q")
    check_values("cu_seqlens", counts <= call.max_new, f"at most max_new={call.max_new} new events a user")
    if call.num_targets is not None:
        targets = call.num_targets
        check_values("num_targets", (targets >= 0) & (targets <= counts), "0 to the user's new events")
        check_values("num_targets", targets <= MAX_TARGETS, f"at most {MAX_TARGETS}", "score in several calls")
    if call.relative is not None and len(call.relative.r) < call.window:
        events = counts if call.memory is None else counts + call.memory.lengths
        wanted = f"at most {len(call.relative.r)} past and new events, one for each row of relative.r"
        check_values("cu_seqlens", events <= len(call.relative.r), wanted, "make r as long as the window")
    if call.memory is None:
        return
    memory = call.memory
    num_pages, page_size = memory.k_pages.shape[:2]
    pages = memory.page_indptr.diff()
    check_values("memory.page_indptr", memory.page_indptr[:1] == 0, "0 at the start")
    check_values("memory.page_indptr", pages >= 0, "offsets that don't fall")
    check_values("memory.page_indptr", memory.page_indptr <= len(memory.page_indices), "offsets within page_indices")
    used = memory.page_indices[: int(memory.page_indptr[-1])]
    check_values("memory.page_indices", (used >= 0) & (used < num_pages), f"0..{num_pages - 1}, the pages there are")
    check_values("memory.lengths", memory.lengths >= 0, "0 or more")
    check_values("memory.lengths", memory.lengths <= pages * page_size, "no more events than the user's pages hold")
    check_values("memory.lengths", memory.lengths <= call.max_memory, f"at most max_memory={call.max_memory}")


def _check_strides(name: str, tensor: torch.Tensor) -> None:
    """16 elements, so that each row of D can be read in 16-byte pieces whatever the dtype."""
    if any(stride % 16 for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True) if size > 1):
        raise ArgumentError(name, "strides that are multiples of 16 elements", f"{tensor.stride()}")
    if tensor.data_ptr() % 16:
        raise ArgumentError(name, "16-byte alignment", "a view that starts in between")
