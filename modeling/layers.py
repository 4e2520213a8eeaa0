"""What several families are made of: dropout, the gated feed-forward, how weights are drawn."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["INIT_STD", "NORM_EPS", "ContextEmbedding", "Dropout", "FeedForward"]

INIT_STD = 0.02
NORM_EPS = 1e-6


class Dropout(nn.Module):
    """`nn.Dropout`, but the mask is a comparison with uniform numbers: torch draws Bernoulli numbers one by one on the
    CPU, 3.7 ms for [4096, 64] where this takes 1.1, and a step of two layers has five of them."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Zero each element with the probability, and scale the others so that the mean stays."""
        if not self.training or self.probability == 0.0:
            return x
        kept = torch.rand_like(x) >= self.probability
        return x * kept.to(x.dtype).mul_(1.0 / (1.0 - self.probability))


class ContextEmbedding(nn.Embedding):
    """Rows of a table: one an event, or the sum of several."""

    def forward(self, input: Tensor) -> Tensor:
        """[T] or [T, n] -> [T, dim]."""
        if input.ndim == 1:
            return F.embedding(input, self.weight)
        return F.embedding_bag(input, self.weight, mode="sum")


class FeedForward(nn.Module):
    """x + down(silu(gate(norm(x))) * up(norm(x))) (Shazeer, GLU variants, 2020)."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=NORM_EPS)
        self.gate_up = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        gate, up = self.gate_up(self.norm(x)).chunk(2, dim=-1)  # [..., hidden_dim] each
        result: torch.Tensor = x + self.dropout(self.down(F.silu(gate) * up))
        return result
