"""AdamW as this project sets it up, and the running mean of the weights."""

from collections.abc import Iterator

import torch
from torch import nn

from longrec.config import TrainConfig

__all__ = ["WeightAverage", "adamw"]

BETAS = (0.9, 0.98)


def adamw(network: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019); vectors (norm gains, the start state) don't decay."""
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    vectors = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=BETAS, fused=True)


class WeightAverage:
    """Exponential moving average of weights (Polyak & Juditsky, 1992), with a shorter memory at the beginning.

    Args:
        network: whose weights are followed.
        decay: 0: the mean is the weights themselves.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.mean = {name: weight.detach().clone() for name, weight in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weights = dict(network.named_parameters())
        if self.decay == 0.0:
            decay = 0.0
        torch._foreach_lerp_(list(self.mean.values()), [weights[name] for name in self.mean], 1.0 - decay)

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and mean of each weight."""
        yield from self.mean.items()
