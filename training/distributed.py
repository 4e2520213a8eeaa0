"""The processes that train one network together, as torchrun starts them: who they are, and the sums they make. A run
alone is a world of one, for which all of this is nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ALONE", "World", "open_world"]


@dataclass(frozen=True)
class World:
    """A process group that is open; collectives of torch's default group.

    Args:
        rank: of this process, from 0. size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def sum_gradients(self, network: nn.Module) -> None:
        """Put the sums of the ranks' gradients in their place, in one message."""
        if self.size == 1:
            return
        weights = list(network.parameters())
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        sums = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, total in zip(gradients, torch.split(sums, sizes), strict=True):
            gradient.copy_(total.view_as(gradient))

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, a JSON-able one, on every rank."""
        if self.size == 1:
            return value
        holder = [value]
        torch.distributed.broadcast_object_list(holder, src=0)
        return holder[0]

    def rows(self, tensor: Tensor) -> Tensor:
        """[size, ...], every rank's tensor, in the order of the ranks."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        torch.distributed.all_gather(parts, tensor)
        return torch.stack(parts)


ALONE = World()


@contextmanager
def open_world(rank: int, size: int, device: str) -> Iterator[World]:
    """The world of torchrun's processes, by torch's default group: gloo on a CPU, NCCL on GPUs.

    Args:
        rank, size: of the environment. device: cpu or cuda.
    """
    if size == 1:
        yield ALONE
        return
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", rank=rank, world_size=size)
    try:
        yield World(rank, size)
    finally:
        torch.distributed.destroy_process_group()
