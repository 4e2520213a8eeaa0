"""`segment_attention` over paged memory on a CPU: what `attention_body` takes, and how threads share it.

Imports numba when it is first used, not before: whoever has no use for this body needs no numba.
"""

import functools
import importlib
import struct
import threading
from typing import Any

import numpy as np
import torch

from longrec.errors import MachineError
from longrec.kernels.types import AttentionKind, PagedMemory

__all__ = [
    "LOG2_E",
    "MAX_GROUP",
    "attend_paged",
    "attention_call",
    "attention_floats",
    "fits_paged",
    "fits_pages",
    "jitted",
    "pack",
    "page_places",
    "paged_body",
    "prepare_paged",
]

PAGE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
MAX_HEAD_DIM = 256
MAX_GROUP = 16  # query heads of a kv head: a tile's lanes
LOG2_E = 1.4426950408889634
# multiply-adds below which a second thread costs more than it saves: starting one takes 60 us
MIN_SHARED_WORK = 4_000_000


def fits_pages(pages: torch.Tensor) -> bool:
    """Whether there is a body for pages of this dtype and head_dim (a multiple of 8 up to 256)."""
    return pages.dtype in PAGE_DTYPES and pages.shape[-1] % 8 == 0 and 0 < pages.shape[-1] <= MAX_HEAD_DIM


def fits_paged(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, memory: PagedMemory) -> bool:
    """Whether `attend_paged` takes these: float32 events, no gradient, at most 16 query heads to a kv head, pages in
    float32, bfloat16, float16, or int8 with scales, everything dense in D."""
    rows, pages = (q, k, v), (memory.k_pages, memory.v_pages)
    scaled = memory.k_scale is not None and memory.v_scale is not None
    return (
        fits_pages(memory.k_pages)
        and (memory.k_pages.dtype == torch.int8) == scaled
        and q.shape[1] <= MAX_GROUP * k.shape[1]
        and all(x.dtype == torch.float32 for x in rows)
        and all(x.stride(-1) == 1 for x in (*rows, *pages))
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in (*rows, *pages)))
    )


def prepare_paged(head_dim: int, dtype: torch.dtype, kind: AttentionKind = "softmax") -> None:
    """Compile the body for one head_dim, page dtype and kind (3 s), or load it from numba's cache on disk."""
    paged_body(head_dim, dtype, kind)


def attend_paged(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    window: int,
    scale: float,
    memory: PagedMemory,
    kind: AttentionKind,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`segment_attention` with memory, without targets, biases or relative terms, where `fits_paged`.

    Nothing is checked here: offsets, lengths and page indices become addresses, for which dispatcher and caller vouch.

    Uses up to `torch.get_num_threads()` threads, the calling one among them; the answer's bits don't depend on how
    many. They are plain threads of this call, since the body releases the GIL: numba's own pool would need a second,
    parallel body, and its fallback (workqueue) can't be entered from two threads at once.

    Args:
        q: [T, Hq, D]. k, v: [T, Hkv, D].
        cu_seqlens: [B + 1] int32.
        window, scale, memory, kind: as in the reference.

    Returns:
        out [T, Hq, D], lse2 [T, Hq].
    """
    num_tokens, num_heads, head_dim = q.shape
    out, lse2 = q.new_empty(q.shape), q.new_empty(num_tokens, num_heads)
    if not num_tokens:
        return out, lse2
    body = paged_body(head_dim, memory.k_pages.dtype, kind)
    shares = _num_shares(q, cu_seqlens, memory, window)
    scratch = q.new_empty(shares, attention_floats(num_heads, head_dim))
    call = attention_call(q, k, v, cu_seqlens, out, lse2, memory, window, scale if kind == "silu" else scale * LOG2_E)
    helpers = [
        threading.Thread(target=body, args=(call, scratch[share].data_ptr(), share, shares))
        for share in range(1, shares)
    ]
    for helper in helpers:
        helper.start()
    body(call, scratch.data_ptr(), 0, shares)
    for helper in helpers:
        helper.join()
    return out, lse2


def jitted(name: str) -> Any:
    """The module of `longrec.kernels.cpu` of that name, which needs numba.

    Raises:
        MachineError: numba is missing.
    """
    try:
        return importlib.import_module(f"longrec.kernels.cpu.{name}")
    except ModuleNotFoundError as error:
        if error.name not in ("numba", "llvmlite"):
            raise
        raise MachineError("longrec's kernels on a CPU need numba: pip install 'longrec[server]'") from error


def attention_floats(num_heads: int, head_dim: int) -> int:
    """Float32s that a thread works in, and a cache line or more between threads."""
    return int(jitted("attention_body").scratch_floats(num_heads, head_dim) + 64) // 16 * 16


@functools.cache
def paged_body(head_dim: int, dtype: torch.dtype, kind: AttentionKind) -> Any:
    """`attention_body.attention_body` for such pages.

    Raises:
        MachineError: numba is missing.
    """
    return jitted("attention_body").attention_body(head_dim, str(dtype).removeprefix("torch."), kind == "silu")


def _num_shares(q: torch.Tensor, cu_seqlens: torch.Tensor, memory: PagedMemory, window: int) -> int:
    threads = torch.get_num_threads()
    if threads == 1:
        return 1
    keys = (memory.lengths + cu_seqlens.diff()).clamp(max=window).double()
    work = float((keys * cu_seqlens.diff()).sum()) * q.shape[1] * q.shape[2] * 2
    return max(1, min(threads, int(work / MIN_SHARED_WORK) + 1))


def attention_call(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    out: torch.Tensor,
    lse2: torch.Tensor,
    memory: PagedMemory,
    window: int,
    scale: float,
    first_user: int = 0,
    num_users: int | None = None,
) -> np.ndarray[Any, Any]:
    """One `CALL`, over the users from `first_user` on. Holds addresses: the tensors must outlive it."""
    num_users = len(cu_seqlens) - 1 - first_user if num_users is None else num_users

    def rows(x: torch.Tensor) -> tuple[int, int, int]:
        return x.data_ptr(), x.stride(0), x.stride(1)

    def of_user(x: torch.Tensor) -> int:
        return x.data_ptr() + first_user * x.itemsize

    return pack(
        jitted("attention_body").CALL,
        *rows(q), *rows(k), *rows(v), out.data_ptr(), lse2.data_ptr(), of_user(cu_seqlens),
        *page_places(memory),
        of_user(memory.page_indptr), memory.page_indices.data_ptr(), of_user(memory.lengths),
        memory.k_pages.shape[1], num_users, q.shape[1], k.shape[1], min(window, 1 << 30), scale,
    )  # fmt: skip


def pack(kind: np.dtype[Any], *fields: int | float) -> np.ndarray[Any, Any]:
    """[1] record of int64s and a float64 behind them, in 2 us; numpy takes 15 for one from a tuple."""
    return np.frombuffer(bytearray(struct.pack(f"{len(fields) - 1}qd", *fields)), kind)


def page_places(memory: PagedMemory) -> tuple[int, ...]:
    """Address and strides of keys, values and their scales; zeros for scales that aren't there."""

    def places(x: torch.Tensor | None) -> tuple[int, ...]:
        return (0, 0, 0, 0) if x is None else (x.data_ptr(), *x.stride()[:3])

    return (*places(memory.k_pages), *places(memory.v_pages), *places(memory.k_scale), *places(memory.v_scale))
