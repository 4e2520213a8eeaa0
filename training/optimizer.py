"""The optimisers as this project sets them up, and the running mean of what they reach."""

import torch
from torch import nn

from longrec.config import TrainConfig

__all__ = ["Average", "build_optimizer"]

BETAS = (0.9, 0.98)


def build_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, 2019) or SGD; vectors (norm gains, the start state) don't decay."""
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    vectors = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        nesterov = config.momentum > 0
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=BETAS, fused=True)


class Average:
    """Exponential moving average of a network's weights (Polyak & Juditsky, 1992).

    Args:
        network: whose weights.
        decay: d; early on min(d, (1 + step) / (10 + step)), so that the first weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay = network, decay
        self.weights = [weight.detach().clone() for weight in network.parameters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        share = 1.0 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.weights, list(self._network.parameters()), share)
