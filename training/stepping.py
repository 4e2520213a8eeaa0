"""One step of a training: the losses' sums and counts to a loss, its gradients, and the weights after it."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from longrec.config import TrainConfig
from longrec.modeling import Network
from longrec.modeling.attributes import merged
from longrec.training.adversarial import Adversary
from longrec.training.distributed import ALONE, World
from longrec.training.examples import Examples
from longrec.training.objectives import Objective
from longrec.training.optimizer import Average, build_optimizer

__all__ = ["Stepper"]


class Stepper:
    """Moves a network's weights, batch after batch.

    Args:
        network: on its device.
        config: how.
        world: ranks that have other parts of each batch.

    Attributes:
        objective: the network, and what else is trained with it.
        taken: steps so far.
        average: of the weights, if there is to be one.
    """

    def __init__(self, network: Network, config: TrainConfig, world: World = ALONE) -> None:
        self.network, self.config, self.world = network, config, world
        self.objective = Objective(network, config)
        self.optimizer = build_optimizer(self.objective, config)
        self.average = Average(network, config.ema_decay) if config.ema_decay else None
        self.taken = 0
        self._adversary = Adversary(network.items, config.adversarial) if config.adversarial else None

    def step(self, examples: Examples, memory: Any, rate: float) -> tuple[float, Any]:
        """Learn a batch, or this rank's part of it.

        Args:
            examples: of the batch.
            memory: of a recurrent network, which is used up; None for others.
            rate: of learning.

        Returns:
            The loss before the step (summed over the ranks: that of the whole batch), and the memory after the batch.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss, memory = self._backward(examples, memory)
        self.world.sum_gradients(self.objective)
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.clip_norm)
        self.optimizer.step()
        if self.average:
            self.average.update(self.taken)
        self.taken += 1
        return loss, memory

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that are to be judged: their average, if there is one."""
        state = self.network.state_dict()
        if self.average:
            names = (name for name, _ in self.network.named_parameters())
            state.update(zip(names, self.average.weights, strict=True))
        return merged(self.network, {name: weight.detach().clone() for name, weight in state.items()})

    def _backward(self, examples: Examples, memory: Any) -> tuple[float, Any]:
        if not self._adversary:
            loss, memory = self._loss(examples, memory)
            torch.autograd.backward(loss)
            return loss.item(), memory
        before = copy.deepcopy(memory)
        devices = [examples.targets.device] if examples.targets.is_cuda else []
        with torch.random.fork_rng(devices=devices), self._adversary.watching():  # both passes draw the same
            loss, _ = self._loss(examples, before)
            torch.autograd.backward(loss)
        with self._adversary.attacking():
            worst, memory = self._loss(examples, memory)
            torch.autograd.backward(worst)
        return loss.item(), memory

    def _loss(self, examples: Examples, memory: Any) -> tuple[Tensor, Any]:
        kind = examples.targets.device.type
        # a table of items that is computed is computed once
        with torch.autocast(kind, torch.bfloat16, enabled=self.config.precision == "bfloat16"), parametrize.cached():
            terms, memory = self.objective(examples, memory)
        own = torch.tensor([term.predictions for term in terms.values()], dtype=torch.float64)
        counts = self.world.sum(own.to(examples.targets.device)).clamp(min=1).tolist()
        parts = [term.total / count for term, count in zip(terms.values(), counts, strict=True)]
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0], memory
