"""Adversarial training on item embeddings: the step that makes a batch's embeddings worst for the loss, to first order
(Miyato et al., Adversarial Training Methods for Semi-Supervised Text Classification, 2017)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Adversary"]


class Adversary:
    """Sees the embeddings of a pass, and moves those of the next, which has to look up the same items.

    Args:
        embedding: whose rows are moved, each event's for itself.
        radius: length of the move, in mean lengths of a row.
    """

    def __init__(self, embedding: nn.Embedding, radius: float) -> None:
        self._embedding, self._radius = embedding, radius
        self._seen: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside the `with` is the first pass, forward and backward."""
        self._seen = []

        def remember(module: nn.Module, args: Any, output: Tensor) -> None:
            output.retain_grad()
            self._seen.append(output)

        with self._embedding.register_forward_hook(remember):
            yield

    @contextmanager
    def attacking(self) -> Iterator[None]:
        """Inside the `with` is the second pass."""
        length = self._radius * self._embedding.weight.detach().norm(dim=1).mean()
        moves = iter([length * _unit(output.grad) for output in self._seen if output.grad is not None])
        with self._embedding.register_forward_hook(lambda module, args, output: output + next(moves)):
            yield
        self._seen = []


def _unit(gradient: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    return gradient / length.clamp(min=1e-30)
