"""Families whose memory is paged keys and values: one pass over given pages, and pages of one's own to stream with.

A server keeps pages of its own (budgeted, shared, quantised) and calls `run`; `PageMemory` is the plain form for
training, evaluation and tests.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from longrec import kernels
from longrec.config import ModelConfig
from longrec.modeling.events import Events
from longrec.modeling.network import MemoryKind, Network
from longrec.modeling.serving_memory import ServingMemory

__all__ = ["LastAttention", "PageMemory", "PagedNetwork", "attend"]

PAGE_SIZE = 32


class LastAttention(NamedTuple):
    """The last layer's attention of B new events, one of each user, and what becomes of its output.

    Args:
        q: [B, Hq, D]. k, v: [B, Hkv, D]; as the attention takes them.
        out: [dim, Hq * D], the projection of its output onto the state before the final norm.
        gate: [B, Hq * D], by which its output is multiplied before; None: 1.
        kind, relative, position_bias, time_bias: as in `kernels.segment_attention`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    gate: Tensor | None = None
    kind: Literal["softmax", "silu"] = "softmax"
    relative: kernels.RelativeTerms | None = None
    position_bias: kernels.PositionBias | None = None
    time_bias: kernels.TimeBias | None = None


class PagedNetwork(Network):
    """A network of attention layers with `num_kv_heads` keys and values an event and layer.

    Attributes:
        norm: the final one.
    """

    memory: ClassVar[MemoryKind] = "pages"
    norm: nn.RMSNorm

    @abstractmethod
    def run(self, events: Events, memory: ServingMemory | None) -> Tensor:
        """[T, dim], the state after each event, over the past in `memory`; None: there is none, nothing is written."""

    @abstractmethod
    def last_attention(self, events: Events, memory: ServingMemory) -> LastAttention:
        """What explanations need: `events` is one event of each user, over a past whose `slots` are -1."""

    def states(self, events: Events) -> Tensor:
        """As `Network.states`."""
        return self.run(events, None)

    def new_memory(self, num_users: int) -> "PageMemory":
        """As `Network.new_memory`."""
        return PageMemory(self.config, num_users, self.start)

    def step(self, events: Events, memory: "PageMemory") -> tuple[Tensor, "PageMemory"]:
        """As `Network.step`."""
        hidden = self.run(events, memory.reserve(events))
        memory.advance(events)
        return hidden, memory


class PageMemory:
    """Pages of B users, as many as they need: the whole window, and the new events of a step.

    Args:
        config: shape of the network.
        num_users: B.
        like: whose dtype and device pages have.
    """

    def __init__(self, config: ModelConfig, num_users: int, like: Tensor) -> None:
        self._window = config.window
        self._tables: list[list[int]] = [[] for _ in range(num_users)]
        self._lengths = np.zeros(num_users, np.int64)  # events in a user's pages
        self._free: list[int] = []
        pages = like.new_zeros(2 * config.num_layers, 0, PAGE_SIZE, config.num_kv_heads, config.head_dim)
        self._pages = pages.detach()  # keys, then values, of every layer
        self._seconds = torch.zeros(0, PAGE_SIZE, dtype=torch.int32, device=like.device)

    def reset(self, users: Sequence[int]) -> None:
        """As `Memory.reset`."""
        for user in users:
            self._free += self._tables[user]
            self._tables[user], self._lengths[user] = [], 0

    def reserve(self, events: Events) -> ServingMemory:
        """Room for new events, and what the network needs to attend to the past and to write them."""
        cu_seqlens = events.cu_seqlens.cpu().numpy().astype(np.int64)
        counts, device = np.diff(cu_seqlens), self._pages.device
        for table, needed in zip(self._tables, -(-(self._lengths + counts) // PAGE_SIZE), strict=True):
            self._grow(int(needed) - len(table) - len(self._free))
            while len(table) < needed:
                table.append(self._free.pop())
        page_indptr = np.cumsum([0, *map(len, self._tables)], dtype=np.int32)
        page_indices = np.fromiter((page for table in self._tables for page in table), np.int32)
        place = np.arange(cu_seqlens[-1]) + np.repeat(self._lengths - cu_seqlens[:-1], counts)
        page = page_indices[np.repeat(page_indptr[:-1].astype(np.int64), counts) + place // PAGE_SIZE]
        slots = torch.from_numpy(page.astype(np.int64) * PAGE_SIZE + place % PAGE_SIZE).to(device)
        self._seconds.view(-1)[slots] = events.seconds
        k_pages, v_pages = self._pages.chunk(2)
        return ServingMemory(
            k_pages.unbind(),
            v_pages.unbind(),
            torch.from_numpy(page_indptr).to(device),
            torch.from_numpy(page_indices).to(device),
            torch.from_numpy(self._lengths.astype(np.int32)).to(device),
            slots,
            max_new=int(counts.max(initial=0)),
            max_memory=int(self._lengths.max(initial=0)),
            seconds=self._seconds,
        )

    def advance(self, events: Events) -> None:
        """The new events are in their pages; whole pages that no later event sees are free."""
        self._lengths += events.counts.cpu().numpy()
        for user, table in enumerate(self._tables):
            passed = max(0, int(self._lengths[user]) - self._window + 1) // PAGE_SIZE
            self._free += table[:passed]
            del table[:passed]
            self._lengths[user] -= passed * PAGE_SIZE

    def _grow(self, missing: int) -> None:
        if missing <= 0:
            return
        held = self._pages.shape[1]
        added = max(missing, held)  # twice as many: pages are copied a few times in all
        new = self._pages.new_zeros(self._pages.shape[0], added, *self._pages.shape[2:])
        self._pages = torch.cat((self._pages, new), dim=1)
        self._seconds = torch.cat((self._seconds, self._seconds.new_zeros(added, PAGE_SIZE)))
        self._free += range(held, held + added)


def attend(
    q: Tensor, k: Tensor, v: Tensor, events: Events, memory: ServingMemory | None, index: int, window: int, **terms: Any
) -> Tensor:
    """Attention of a layer without rotary embedding: new keys and values are written, the past is a constant.

    Args:
        q: [T, Hq, D]. k, v: [T, Hkv, D].
        memory: as `PagedNetwork.run`; index: the layer in it.
        window, terms: of `kernels.segment_attention`.

    Returns:
        [T, Hq, D].
    """
    past: kernels.PagedMemory | None = None
    bounds: dict[str, Any] = {}
    if memory is not None:
        past = memory.layer(index)
        with torch.no_grad():
            memory.append(index, q.detach(), k.detach(), v.detach(), events.positions, rotary_base=None)
        stored = past.k_pages.dtype
        if stored != q.dtype:  # seen as a later event sees them: an answer doesn't depend on what came together
            k, v = kernels.as_stored(k, stored), kernels.as_stored(v, stored)
        bounds = {"max_new": memory.max_new, "max_memory": memory.max_memory}
    # values aren't checked: who packs batches and pages vouches for them, and on a GPU the host would wait
    out, _ = kernels.segment_attention(
        q, k, v, events.cu_seqlens, window=window, memory=past, validate=False, **bounds, **terms
    )
    return out
