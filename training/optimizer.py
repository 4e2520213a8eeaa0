"""AdamW as this project sets it up."""

import torch
from torch import nn

from longrec.config import TrainConfig

__all__ = ["adamw"]

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
