"""One pass of a recurrent network over a batch: `step.py` for memories that are states."""

import torch

from longrec.modeling.events import Events
from longrec.modeling.recurrent import Recurrent, StateMemory
from longrec.python_backend.memory_pool import MemoryPool
from longrec.python_backend.step import StepInputs

__all__ = ["StateRunner"]


class StateRunner:
    """Runs steps of one network over one pool of states.

    Args:
        network: in evaluation mode.
        pool: whose states the network reads and writes.
    """

    def __init__(self, network: Recurrent, pool: MemoryPool) -> None:
        self._network, self._device = network, network.start.device
        self._states = pool.store.blocks[0][0]  # [P, num_layers, C]

    def run(self, inputs: StepInputs) -> torch.Tensor:
        """As `Steps.run`."""
        items, gaps, positions, _, cu_seqlens, _, pages, lengths, seconds = (
            torch.from_numpy(array).to(self._device) for array in inputs
        )
        rows = pages.long()  # [B]: each user has one
        # a page that is new to its user may hold anything
        past = torch.where(lengths[:, None, None] > 0, self._states[rows], 0.0)
        events = Events(items, gaps, seconds, positions, cu_seqlens)
        hidden, memory = self._network.step(events, StateMemory(past))
        self._states[rows] = memory.state
        return hidden
