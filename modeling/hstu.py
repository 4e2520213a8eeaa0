"""HSTU: pointwise SiLU attention with a bias by distance and by elapsed time, gated (Zhai et al., Actions Speak Louder
than Words, 2024, arXiv:2402.17152, section 3)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec import kernels
from longrec.config import ModelConfig
from longrec.kernels.types import bucket_of
from longrec.modeling.events import Events
from longrec.modeling.layers import NORM_EPS, Dropout
from longrec.modeling.paged import LastAttention, PagedNetwork, attend
from longrec.modeling.serving_memory import ServingMemory

__all__ = ["HSTU"]

# the shapes of the bias tables, and so of checkpoints, follow from these
POSITION_BITS = 3  # distances to 8 have a bucket each, then 8 an octave
TIME_BITS = 2
LONGEST_SECONDS = 1 << 30


class HSTU(PagedNetwork):
    """Blocks of attention alone: the gate stands for the feed-forward.

    The paper's attention sees the time of the event that is predicted; here an event's own, since a server answers
    before that one comes.
    """

    memory_has_seconds: ClassVar[bool] = True

    def __init__(self, config: ModelConfig, *, dropout: float = 0.0) -> None:
        super().__init__(config, dropout=dropout)
        self.blocks = nn.ModuleList(Block(config, dropout) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.reset_parameters()

    def run(self, events: Events, memory: ServingMemory | None) -> Tensor:
        """As `PagedNetwork.run`."""
        x = self.embed(events)
        for index, block in enumerate(self.blocks):
            x = block(x, events, memory, index)
        result: torch.Tensor = self.norm(x)
        return result

    def last_attention(self, events: Events, memory: ServingMemory) -> LastAttention:
        """As `PagedNetwork.last_attention`."""
        x = self.embed(events)
        for index, block in enumerate(self.blocks[:-1]):
            x = block(x, events, memory, index)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        u, q, k, v = last.uqkv_of(x)
        position, time = last.biases(events, memory)
        gate = u.flatten(1) * last.out_norm.weight
        return LastAttention(q, k, v, last.out.weight, gate, "silu", position_bias=position, time_bias=time)


class Block(nn.Module):
    """u, v, q, k = silu(W norm(x)); x + W' (norm(attention(q, k, v)) * u)."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.config, self.heads = config, (heads, heads, kv_heads, kv_heads)  # of u, q, k, v
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.uqkv = nn.Linear(config.dim, sum(self.heads) * head_dim, bias=False)
        self.out_norm = nn.RMSNorm(heads * head_dim, eps=NORM_EPS)
        self.out = nn.Linear(heads * head_dim, config.dim, bias=False)
        self.dropout = Dropout(dropout)
        self.position_table = nn.Parameter(torch.empty(heads, _num_buckets(config.window - 1, POSITION_BITS)))
        self.time_table = nn.Parameter(torch.empty(heads, _num_buckets(LONGEST_SECONDS, TIME_BITS)))

    def forward(self, x: Tensor, events: Events, memory: ServingMemory | None, index: int) -> Tensor:
        """[T, dim] -> [T, dim]; `index` is this block's layer in `memory`."""
        u, q, k, v = self.uqkv_of(x)
        position, time = self.biases(events, memory)
        window = self.config.window
        out = attend(q, k, v, events, memory, index, window, kind="silu", position_bias=position, time_bias=time)
        result: torch.Tensor = x + self.dropout(self.out(self.out_norm(out.flatten(1)) * u.flatten(1)))
        return result

    def uqkv_of(self, x: Tensor) -> tuple[Tensor, ...]:
        """[T, dim] -> u and q [T, Hq, D], k and v [T, Hkv, D]."""
        uqkv = torch.unflatten(F.silu(self.uqkv(self.norm(x))), -1, (-1, self.config.head_dim))
        return torch.split(uqkv, list(self.heads), dim=1)

    def biases(self, events: Events, memory: ServingMemory | None) -> tuple[kernels.PositionBias, kernels.TimeBias]:
        """By distance, and by elapsed time."""
        stored = None if memory is None else memory.seconds
        return (
            kernels.PositionBias(_exact(self.position_table), POSITION_BITS),
            kernels.TimeBias(_exact(self.time_table), TIME_BITS, events.seconds, events.seconds, stored),
        )


def _exact(table: Tensor) -> Tensor:
    """Of a network in half precision too, as kernels take bias tables."""
    return table.float() if table.dtype.itemsize < torch.float32.itemsize else table


def _num_buckets(longest: int, fraction_bits: int) -> int:
    with torch.device("cpu"):  # a network that is built on the meta device needs the number too
        return int(bucket_of(torch.tensor(longest), fraction_bits, 1 << 30)) + 1
