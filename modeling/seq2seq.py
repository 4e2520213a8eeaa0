"""Encoder-decoder: the last window of events in, the next `horizon` steps out (Vaswani et al., 2017)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.config import ModelConfig
from longrec.modeling.events import Events
from longrec.modeling.layers import NORM_EPS, Dropout, FeedForward
from longrec.modeling.network import Objective
from longrec.modeling.windowed import EncoderBlock, WindowNetwork, attend_all, from_end

__all__ = ["Seq2Seq"]


class Seq2Seq(WindowNetwork):
    """`num_layers` encoder blocks that see both ways, and as many decoder blocks over the items emitted so far."""

    objective: ClassVar[Objective] = "next_items"

    def __init__(self, config: ModelConfig, *, dropout: float = 0.0) -> None:
        super().__init__(config, dropout=dropout)
        self.places = nn.Embedding(config.window, config.dim)
        self.encoder = nn.ModuleList(EncoderBlock(config, dropout) for _ in range(config.num_layers))
        self.steps = nn.Embedding(config.horizon, config.dim)
        self.decoder = nn.ModuleList(DecoderBlock(config, dropout) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.reset_parameters()

    def encode(self, events: Events) -> Tensor:
        """[T, dim], of users with 1 to `window` events; `decode` attends to it."""
        lengths = events.counts
        x: Tensor = self.dropout(self.items(events.items) + self.gaps(events.gaps) + self.places(from_end(lengths)))
        for block in self.encoder:
            x = block(x, lengths.tolist())
        return x

    def decode(self, encoded: Tensor, counts: Tensor, emitted: Tensor) -> Tensor:
        """States of the steps after the last event.

        Args:
            encoded: [T, dim], of `encode`. counts: [B] events of each user.
            emitted: [B, n] int64, the items of the first n steps, n below `horizon`.

        Returns:
            [B, n + 1, dim]: state s gives the scores of step s, having seen the steps before it.
        """
        steps = self.steps.weight[: emitted.shape[1] + 1]
        x = self.dropout(F.pad(self.items(emitted), (0, 0, 1, 0)) + steps)  # [B, n + 1, dim]
        for block in self.decoder:
            x = block(x, encoded, counts.tolist())
        result: torch.Tensor = self.norm(x)
        return result

    def emit(self, events: Events) -> Tensor:
        """[B, horizon] int64, the best item of each step given those before it; as `summarise` of events."""
        encoded, counts = self.encode(events), events.counts
        emitted = counts.new_zeros(len(counts), 0)
        for _ in range(self.config.horizon):
            best = self.scores(self.decode(encoded, counts, emitted)[:, -1]).argmax(-1)
            emitted = torch.cat((emitted, best[:, None]), dim=1)
        return emitted

    def summarise(self, events: Events) -> Tensor:
        """As `WindowNetwork.summarise`: the state of the first step."""
        counts = events.counts
        return self.decode(self.encode(events), counts, counts.new_zeros(len(counts), 0))[:, 0]


class DecoderBlock(nn.Module):
    """x + attention to the steps up to its own, x + attention to the encoded events, then the feed-forward."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.heads, self.head_dim = (heads, kv_heads, kv_heads), head_dim
        self.own_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.own_qkv = nn.Linear(config.dim, sum(self.heads) * head_dim, bias=False)
        self.own_out = nn.Linear(heads * head_dim, config.dim, bias=False)
        self.past_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.encoded_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.past_q = nn.Linear(config.dim, heads * head_dim, bias=False)
        self.past_kv = nn.Linear(config.dim, 2 * kv_heads * head_dim, bias=False)
        self.past_out = nn.Linear(heads * head_dim, config.dim, bias=False)
        self.dropout = Dropout(dropout)
        self.feed_forward = FeedForward(config.dim, config.hidden_dim, dropout)

    def forward(self, x: Tensor, encoded: Tensor, counts: list[int]) -> Tensor:
        """[B, n, dim] -> [B, n, dim], over `encoded` [T, dim] of `counts` events a user."""
        num_users, num_steps, _ = x.shape
        qkv = self.own_qkv(self.own_norm(x)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, heads, n, D]
        q, k, v = qkv.split(self.heads, dim=1)
        group = self.heads[0] // self.heads[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        own = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.own_out(own.transpose(1, 2).flatten(2)))
        q = self.past_q(self.past_norm(x)).view(num_users * num_steps, -1, self.head_dim)
        k, v = self.past_kv(self.encoded_norm(encoded)).unflatten(-1, (-1, self.head_dim)).chunk(2, dim=1)
        past = attend_all(q, k, v, [num_steps] * num_users, counts)
        result: torch.Tensor = self.feed_forward(x + self.dropout(self.past_out(past.view(num_users, num_steps, -1))))
        return result
