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

__all__ = ["BlockStep", "fits_blocks", "prepare_blocks"]

Call = np.ndarray[Any, Any]
CPU = torch.device("cpu")
ROWS = 8  # of a jitted product: every width is a multiple of it
MIN_SHARED_EVENTS = 64  # of a thread: starting one takes 60 us


def fits_blocks(x: torch.Tensor, weights: BlockWeights, pages: torch.Tensor) -> bool:
    """Whether a `BlockStep` takes a network of such blocks over such pages [P, S, Hkv, D]: float32 weights, no
    gradient, widths that are multiples of 8, pages that the CPU's attention reads."""
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


class BlockStep:
    """New events through all blocks and the norm after them; their keys and values are written into pages.

    For what `fits_blocks` alone, on a CPU. `reference.block.block` says what a block is. What the jitted parts take is
    packed once: the tensors stay where they are, and steps run over what they hold then.

    Events attend to each other's keys and values as pages hold them, so that an answer doesn't depend on which events
    came together. Nothing is checked: offsets, slots and page indices become addresses.

    Uses up to `torch.get_num_threads()` threads, which share the users; the answer's bits don't depend on how many.

    Args:
        x: [T, d] float32; a step writes the states in place.
        weights, memory: one a block. final_norm: [d], contiguous.
        positions, slots: [T] int64; cu_seqlens: [B + 1] int32. As in `append_memory` and `segment_attention`. A step
            may have fewer events and users than these tensors.
    """

    def __init__(
        self,
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
    ) -> None:
        num_events, dim = x.shape
        num_kv_heads, head_dim = memory[0].k_pages.shape[2:]
        heads_dim, hidden_dim = weights[0].out.shape[1], weights[0].down.shape[1]
        num_heads = heads_dim // head_dim
        qkv = x.new_empty(num_events, num_heads + 2 * num_kv_heads, head_dim)
        attended, lse2 = x.new_empty(num_events, heads_dim), x.new_empty(num_events, num_heads)
        phases = rotary_phases(rotary_base, head_dim, CPU)
        self._floats = max(
            attention_floats(num_heads, head_dim),
            jitted("block_body").block_floats(dim, qkv.shape[1] * head_dim, heads_dim, head_dim, hidden_dim) + 64,
        )
        self._tensors = (x, qkv, attended, lse2, positions, slots, phases, final_norm)
        self._cu_seqlens = cu_seqlens
        self._weights, self._memory = weights, memory
        self._sizes = (dim, num_heads, num_kv_heads, head_dim, hidden_dim)
        self._window, self._eps = window, eps
        stored = memory[0].k_pages.dtype
        self._before, self._after = _parts(stored)
        self._attention = paged_body(head_dim, stored, "softmax")
        self._whole, self._scratch = self._calls(0, num_events, 0, len(cu_seqlens) - 1), torch.empty(self._floats)
        self._ends = [block["end"] for block, _ in self._whole]
        self._num_users = [attention["num_users"] for _, attention in self._whole]

    def run(self, num_events: int, num_users: int) -> None:
        """The first so many events, which are those of the first so many users."""
        if not num_events:
            return
        shares = _shares(self._cu_seqlens, num_events, num_users)
        if len(shares) == 1:
            for end, users in zip(self._ends, self._num_users, strict=True):
                end[0], users[0] = num_events, num_users
            self._run(self._whole, self._scratch)
            return
        parts = []
        for first_user, end_user in shares:
            begin, stop = self._cu_seqlens[[first_user, end_user]].tolist()
            parts.append((self._calls(begin, stop, first_user, end_user - first_user), torch.empty(self._floats)))
        helpers = [threading.Thread(target=self._run, args=part) for part in parts]
        for helper in helpers[1:]:
            helper.start()
        helpers[0].run()
        for helper in helpers[1:]:
            helper.join()

    def _run(self, calls: list[tuple[Call, Call]], scratch: torch.Tensor) -> None:
        """All blocks of one share of the users."""
        address = scratch.data_ptr()
        for block, attention in calls:
            self._before(block, address)
            self._attention(attention, address, 0, 1)
            self._after(block, address)

    def _calls(self, begin: int, end: int, first_user: int, num_users: int) -> list[tuple[Call, Call]]:
        """A `BLOCK_CALL` and the attention's `CALL` of each block, for events begin..end-1, those of these users."""
        x, qkv, attended, lse2, positions, slots, phases, final_norm = self._tensors
        num_heads, num_kv_heads, head_dim = self._sizes[1:4]
        q, k, v = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
        rows = (x.data_ptr(), qkv.data_ptr(), attended.data_ptr())
        events = (positions.data_ptr(), slots.data_ptr(), phases.data_ptr())
        scale, kind = head_dim**-0.5 * LOG2_E, jitted("block_body").BLOCK_CALL
        last = len(self._weights) - 1
        found = []
        for index, (block, past) in enumerate(zip(self._weights, self._memory, strict=True)):
            norm = final_norm.data_ptr() if index == last else 0
            pages = (*page_places(past), past.k_pages.shape[1])
            addresses = (weight.data_ptr() for weight in block)
            users = (first_user, num_users)
            found.append(
                (
                    pack(kind, *rows, *addresses, norm, *events, *pages, begin, end, *self._sizes, self._eps),
                    attention_call(q, k, v, self._cu_seqlens, attended, lse2, past, self._window, scale, *users),
                )
            )
        return found


@functools.cache
def _parts(dtype: torch.dtype) -> tuple[Any, Any]:
    module = jitted("block_body")
    return module.before_body(str(dtype).removeprefix("torch.")), module.after_body()


def _shares(cu_seqlens: torch.Tensor, num_events: int, num_users: int) -> list[tuple[int, int]]:
    """Users first to last of each thread, about as many events each."""
    count = min(torch.get_num_threads(), num_users, max(1, num_events // MIN_SHARED_EVENTS))
    if count == 1:
        return [(0, num_users)]
    wanted = torch.arange(1, count, dtype=torch.int32) * num_events // count
    cuts = [0, *torch.searchsorted(cu_seqlens[: num_users + 1], wanted.int()).tolist(), num_users]
    return [(first, last) for first, last in itertools.pairwise(cuts) if first < last]
