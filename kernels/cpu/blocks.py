"""A network's transformer blocks over paged memory on a CPU: what the jitted parts take, and how threads share it.

Eager PyTorch spends a decode step in its calls, some 40 a block of 1 to 70 us each. Here a block is three calls.
"""

import functools
import itertools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from longrec.kernels.cpu.attention import (
    LOG2_E,
    MAX_GROUP,
    attention_call,
    attention_floats,
    fits_pages,
    jitted,
    pack,
    page_places,
    paged_body,
)
from longrec.kernels.reference.block import BlockWeights
from longrec.kernels.rotary import rotary_phases
from longrec.kernels.types import PagedMemory

__all__ = ["fits_blocks", "prepare_blocks", "run_blocks"]

Call = np.ndarray[Any, Any]
CPU = torch.device("cpu")
ROWS = 8  # of a jitted product: every width is a multiple of it
MIN_SHARED_EVENTS = 64  # of a thread: starting one takes 60 us


def fits_blocks(x: torch.Tensor, weights: BlockWeights, pages: torch.Tensor) -> bool:
    """Whether `run_blocks` takes a network of such blocks over such pages [P, S, Hkv, D]: float32 weights, no gradient,
    widths that are multiples of 8, pages that the CPU's attention reads."""
    num_kv_heads, head_dim = pages.shape[2:]
    dim, heads_dim = weights.out.shape
    return (
        not x.is_cuda
        and fits_pages(pages)
        and dim % ROWS == 0
        and weights.down.shape[1] % ROWS == 0
        and heads_dim // head_dim <= MAX_GROUP * num_kv_heads
        and all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in (x, *weights))
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights)))
    )


def prepare_blocks(dtype: torch.dtype) -> None:
    """Compile the parts around attention for one page dtype, or load them from numba's cache on disk."""
    _parts(dtype)


def run_blocks(
    x: torch.Tensor,
    weights: Sequence[BlockWeights],
    positions: torch.Tensor,
    cu_seqlens: torch.Tensor,
    slots: torch.Tensor,
    memory: Sequence[PagedMemory],
    *,
    window: int,
    rotary_base: float,
    eps: float,
    final_norm: torch.Tensor,
) -> torch.Tensor:
    """New events through all blocks and the norm after them; their keys and values are written into pages.

    For what `fits_blocks` alone, on a CPU. `reference.block.block` says what a block is.

    Events attend to each other's keys and values as pages hold them, so that an answer doesn't depend on which events
    came together. Nothing is checked: offsets, slots and page indices become addresses.

    Uses up to `torch.get_num_threads()` threads, which share the users; the answer's bits don't depend on how many.

    Args:
        x: [T, d] float32. weights, memory: one a block. final_norm: [d], contiguous.
        positions, slots: [T] int64; cu_seqlens: [B + 1] int32. As in `append_memory` and `segment_attention`.

    Returns:
        [T, d].
    """
    x, (num_events, dim) = x.clone(), x.shape
    if not num_events:
        return x
    num_kv_heads, head_dim = memory[0].k_pages.shape[2:]
    heads_dim, hidden_dim = weights[0].out.shape[1], weights[0].down.shape[1]
    num_heads = heads_dim // head_dim
    qkv, attended = x.new_empty(num_events, num_heads + 2 * num_kv_heads, head_dim), x.new_empty(num_events, heads_dim)
    q, k, v = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    lse2 = x.new_empty(num_events, num_heads)
    phases = rotary_phases(rotary_base, head_dim, CPU)
    module = jitted("block_body")
    floats = max(
        attention_floats(num_heads, head_dim),
        module.block_floats(dim, qkv[0].numel(), heads_dim, head_dim, hidden_dim) + 64,
    )
    rows = (x.data_ptr(), qkv.data_ptr(), attended.data_ptr())
    events = (positions.data_ptr(), slots.data_ptr(), phases.data_ptr())
    sizes = (dim, num_heads, num_kv_heads, head_dim, hidden_dim)
    scale = head_dim**-0.5 * LOG2_E
    last = len(weights) - 1
    body = _Blocks(*_parts(memory[0].k_pages.dtype), paged_body(head_dim, memory[0].k_pages.dtype, "softmax"))
    shares = []
    for first_user, end_user in _shares(cu_seqlens, num_events):
        users = (first_user, end_user - first_user)
        begin, end = (0, num_events) if users[1] == len(cu_seqlens) - 1 else cu_seqlens[[first_user, end_user]].tolist()
        blocks = []
        for index, (block, past) in enumerate(zip(weights, memory, strict=True)):
            norm = final_norm.data_ptr() if index == last else 0
            pages = (*page_places(past), past.k_pages.shape[1])
            addresses = (weight.data_ptr() for weight in block)
            blocks.append(
                (
                    pack(module.BLOCK_CALL, *rows, *addresses, norm, *events, *pages, begin, end, *sizes, eps),
                    attention_call(q, k, v, cu_seqlens, attended, lse2, past, window, scale, *users),
                )
            )
        shares.append((blocks, x.new_empty(floats)))
    helpers = [threading.Thread(target=body.run, args=share) for share in shares[1:]]
    for helper in helpers:
        helper.start()
    body.run(*shares[0])
    for helper in helpers:
        helper.join()
    return x


class _Blocks:
    """The three jitted parts of a block."""

    def __init__(self, before: Any, after: Any, attention: Any) -> None:
        self._before, self._after, self._attention = before, after, attention

    def run(self, blocks: list[tuple[Call, Call]], scratch: torch.Tensor) -> None:
        """All blocks of one share of the users: a `BLOCK_CALL` and the attention's `CALL` each."""
        address = scratch.data_ptr()
        for block, attention in blocks:
            self._before(block, address)
            self._attention(attention, address, 0, 1)
            self._after(block, address)


@functools.cache
def _parts(dtype: torch.dtype) -> tuple[Any, Any]:
    module = jitted("block_body")
    return module.before_body(str(dtype).removeprefix("torch.")), module.after_body()


def _shares(cu_seqlens: torch.Tensor, num_events: int) -> list[tuple[int, int]]:
    """Users first to last of each thread, about as many events each."""
    num_users = len(cu_seqlens) - 1
    count = min(torch.get_num_threads(), num_users, max(1, num_events // MIN_SHARED_EVENTS))
    if count == 1:
        return [(0, num_users)]
    wanted = torch.arange(1, count, dtype=torch.int32) * num_events // count
    cuts = [0, *torch.searchsorted(cu_seqlens, wanted.int()).tolist(), num_users]
    return [(first, last) for first, last in itertools.pairwise(cuts) if first < last]
