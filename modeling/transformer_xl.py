"""Transformer-XL: attention by content and by learned relative position, trained segment by segment over the memory of
the segments before (Dai et al., 2019, section 3)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from longrec import kernels
from longrec.config import ModelConfig
from longrec.modeling.events import Events
from longrec.modeling.layers import NORM_EPS, Dropout, FeedForward
from longrec.modeling.paged import LastAttention, PagedNetwork, attend
from longrec.modeling.serving_memory import ServingMemory

__all__ = ["TransformerXL"]


class TransformerXL(PagedNetwork):
    """Pre-norm, with a gated feed-forward; u, v and R belong to each layer.

    In training the memory holds the keys and values that earlier segments had, as in serving, where the paper keeps
    hidden states and projects them again.
    """

    recurrent: ClassVar[bool] = True

    def __init__(self, config: ModelConfig, *, dropout: float = 0.0) -> None:
        super().__init__(config, dropout=dropout)
        self.blocks = nn.ModuleList(Block(config, dropout) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.reset_parameters()

    def run(self, events: Events, memory: ServingMemory | None) -> Tensor:
        """As `PagedNetwork.run`."""
        x = self.embed(events)
        distances = self._distances(x)
        for index, block in enumerate(self.blocks):
            x = block(x, distances, events, memory, index)
        result: torch.Tensor = self.norm(x)
        return result

    def last_attention(self, events: Events, memory: ServingMemory) -> LastAttention:
        """As `PagedNetwork.last_attention`."""
        x = self.embed(events)
        distances = self._distances(x)
        for index, block in enumerate(self.blocks[:-1]):
            x = block(x, distances, events, memory, index)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        return LastAttention(*last.qkv_of(x), last.out.weight, relative=last.terms(distances))

    def _distances(self, like: Tensor) -> Tensor:
        """[window, dim], sinusoids of each distance that is seen."""
        half = self.config.dim // 2
        frequency = self.config.rotary_base ** (-torch.arange(half, dtype=torch.float64, device=like.device) / half)
        angle = torch.arange(self.config.window, dtype=torch.float64, device=like.device)[:, None] * frequency
        return torch.cat((angle.sin(), angle.cos()), dim=1).to(like.dtype)


class Block(nn.Module):
    """x + attention(norm(x)), then the feed-forward."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.config, self.heads = config, (heads, kv_heads, kv_heads)
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.qkv = nn.Linear(config.dim, sum(self.heads) * head_dim, bias=False)
        self.relative = nn.Linear(config.dim, heads * head_dim, bias=False)
        self.u = nn.Parameter(torch.empty(heads, head_dim))
        self.v = nn.Parameter(torch.empty(heads, head_dim))
        self.out = nn.Linear(heads * head_dim, config.dim, bias=False)
        self.dropout = Dropout(dropout)
        self.feed_forward = FeedForward(config.dim, config.hidden_dim, dropout)

    def forward(self, x: Tensor, distances: Tensor, events: Events, memory: ServingMemory | None, index: int) -> Tensor:
        """[T, dim] -> [T, dim]; `index` is this block's layer in `memory`."""
        q, k, v = self.qkv_of(x)
        out = attend(q, k, v, events, memory, index, self.config.window, relative=self.terms(distances))
        result: torch.Tensor = self.feed_forward(x + self.dropout(self.out(out.flatten(1))))
        return result

    def qkv_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[T, dim] -> q [T, Hq, D], k and v [T, Hkv, D]."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (-1, self.config.head_dim)).split(self.heads, dim=1)
        return q, k, v

    def terms(self, distances: Tensor) -> kernels.RelativeTerms:
        """u, v and R of [window, dim] sinusoids."""
        r = self.relative(distances).unflatten(-1, (-1, self.config.head_dim))  # [window, Hq, D]
        return kernels.RelativeTerms(self.u, self.v, r)
