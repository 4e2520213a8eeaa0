"""Families without a memory: the newest `window` events are run again for each answer. What they share: the raw window
as the thing that streams, and attention to all of a segment, before and after."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.config import ModelConfig
from longrec.modeling.events import Events, append, newest, no_events, windows
from longrec.modeling.layers import NORM_EPS, Dropout, FeedForward
from longrec.modeling.network import MemoryKind, Network

__all__ = ["EncoderBlock", "WindowMemory", "WindowNetwork", "attend_all", "from_end"]


class WindowMemory:
    """Each user's newest events, as the log has them.

    Args:
        events: at most `window` of each user.
    """

    def __init__(self, events: Events) -> None:
        self.events = events

    def reset(self, users: Sequence[int]) -> None:
        """As `Memory.reset`."""
        counts = self.events.counts
        kept = torch.ones_like(counts, dtype=torch.bool)
        kept[list(users)] = False
        self.events = self.events.take(kept[self.events.users].nonzero().flatten(), counts * kept)


class WindowNetwork(Network):
    """A network of the newest `window` events; it encodes both ways, so that each answer is a pass of its own."""

    memory: ClassVar[MemoryKind] = "window"

    @abstractmethod
    def summarise(self, events: Events) -> Tensor:
        """[B, dim], the state after the last event of users who have at least one and at most `window`."""

    def last_states(self, events: Events) -> Tensor:
        """As `Network.last_states`."""
        some = (events.counts > 0).nonzero().flatten()
        seen = newest(events, self.config.window)
        seen = seen._replace(cu_seqlens=seen.cu_seqlens[torch.cat((some.new_zeros(1), some + 1))])
        states = self.start.expand(events.num_users, -1)
        return states.index_copy(0, some, self.summarise(seen)) if len(some) else states

    def states(self, events: Events) -> Tensor:
        """As `Network.states`; a pass over the window of each event."""
        return self.step(events, self.new_memory(events.num_users))[0]

    def new_memory(self, num_users: int) -> WindowMemory:
        """As `Network.new_memory`."""
        return WindowMemory(no_events(num_users, self.start.device))

    def step(self, events: Events, memory: WindowMemory) -> tuple[Tensor, WindowMemory]:
        """As `Network.step`."""
        seen = append(memory.events, events)
        ending = windows(seen, events.counts, self.config.window)
        return self.last_states(ending), WindowMemory(newest(seen, self.config.window))


class EncoderBlock(nn.Module):
    """x + attention(norm(x)) to the whole segment, then the feed-forward."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.heads, self.head_dim = (heads, kv_heads, kv_heads), head_dim
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.qkv = nn.Linear(config.dim, sum(self.heads) * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, config.dim, bias=False)
        self.dropout = Dropout(dropout)
        self.feed_forward = FeedForward(config.dim, config.hidden_dim, dropout)

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """[T, dim] -> [T, dim], in segments of `lengths`."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (-1, self.head_dim)).split(self.heads, dim=1)
        out = attend_all(q, k, v, lengths, lengths)
        result: torch.Tensor = self.feed_forward(x + self.dropout(self.out(out.flatten(1))))
        return result


def attend_all(q: Tensor, k: Tensor, v: Tensor, q_lengths: Sequence[int], k_lengths: Sequence[int]) -> Tensor:
    """Softmax attention of each segment's queries to all of its keys, through PyTorch's fused kernel.

    Segments of equal lengths side by side go together, and none is padded: order a batch by length.

    Args:
        q: [T, Hq, D]. k, v: [M, Hkv, D], Hq a multiple of Hkv.
        q_lengths, k_lengths: of each segment, T and M in all, each at least 1.

    Returns:
        [T, Hq, D].
    """
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    runs = [(m, n, len(list(same))) for (m, n), same in groupby(zip(q_lengths, k_lengths, strict=True))]
    q_rows, k_rows = [m * users for m, _, users in runs], [n * users for _, n, users in runs]
    parts = []
    for (_, _, users), *rows in zip(
        runs, torch.split(q, q_rows), torch.split(k, k_rows), torch.split(v, k_rows), strict=True
    ):
        queries, keys, values = (
            torch.unflatten(x, 0, (users, -1)).transpose(1, 2) for x in rows
        )  # [users, H, rows, D]
        parts.append(F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


def from_end(lengths: Tensor) -> Tensor:
    """[T], the places of segments' rows counted from their ends, the last 0."""
    ends = lengths.cumsum(0)
    return torch.repeat_interleave(ends, lengths) - 1 - torch.arange(int(lengths.sum()), device=lengths.device)
