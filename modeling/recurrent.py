"""GRU and LSTM over events, as in GRU4Rec (Hidasi et al., 2016); the state is the memory, and nothing bounds how far
back it reaches."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from longrec.config import ModelConfig
from longrec.modeling.events import Events
from longrec.modeling.layers import NORM_EPS
from longrec.modeling.network import MemoryKind, Network

__all__ = ["GRU", "LSTM", "Recurrent", "StateMemory"]


class StateMemory:
    """One state of fixed size a user.

    Args:
        state: [B, num_layers, C], C the numbers of a layer's state; zeros for users who have no past.
    """

    def __init__(self, state: Tensor) -> None:
        self.state = state

    def reset(self, users: Sequence[int]) -> None:
        """As `Memory.reset`."""
        self.state[list(users)] = 0.0


class Recurrent(Network):
    """Embedding, `num_layers` recurrent layers of width `hidden_dim`, a projection to `dim`."""

    memory: ClassVar[MemoryKind] = "state"
    recurrent: ClassVar[bool] = True
    cell: ClassVar[type[nn.GRU] | type[nn.LSTM]]
    num_states: ClassVar[int]  # of width hidden_dim, that a layer keeps

    def __init__(self, config: ModelConfig, *, dropout: float = 0.0) -> None:
        super().__init__(config, dropout=dropout)
        self.layers = self.cell(config.dim, config.hidden_dim, config.num_layers)
        self.out = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `Network.reset_parameters`, but the layers as torch draws them: small weights would forget at once."""
        super().reset_parameters()
        self.layers.reset_parameters()

    def states(self, events: Events) -> Tensor:
        """As `Network.states`."""
        return self.step(events, self.new_memory(events.num_users))[0]

    def new_memory(self, num_users: int) -> StateMemory:
        """As `Network.new_memory`."""
        width = self.num_states * self.config.hidden_dim
        return StateMemory(self.start.detach().new_zeros(num_users, self.config.num_layers, width))

    def step(self, events: Events, memory: StateMemory) -> tuple[Tensor, StateMemory]:
        """As `Network.step`."""
        if not len(events.items):
            return self.embed(events), memory
        rows, batch_sizes, users = _by_time(events)
        packed = PackedSequence(self.embed(events)[rows], batch_sizes)
        past = memory.state[users].transpose(0, 1).chunk(self.num_states, dim=-1)  # [num_layers, B', hidden_dim] each
        before = tuple(part.contiguous() for part in past)
        output, after = self.layers(packed, before if self.num_states > 1 else before[0])
        hidden = torch.empty_like(output.data).index_copy(0, rows, output.data)
        state = torch.cat(after if self.num_states > 1 else (after,), dim=-1).detach()
        kept = memory.state.index_copy(0, users, state.transpose(0, 1))
        return self.norm(self.dropout(self.out(hidden))), StateMemory(kept)


class GRU(Recurrent):
    """Gated recurrent units (Cho et al., 2014); a layer's state is its output."""

    cell = nn.GRU
    num_states = 1


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997); a layer's state is its output and its cell."""

    cell = nn.LSTM
    num_states = 2


def _by_time(events: Events) -> tuple[Tensor, Tensor, Tensor]:
    """The rows [T] of the users' first events, then of their second ones and so on, the longest user first; how many
    rows each of these has, on the CPU as torch wants it; and the users [B'] in that order, without those of none."""
    counts = events.counts
    order = counts.argsort(descending=True, stable=True)
    users = order[: int((counts > 0).sum())]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    user = events.users
    step = torch.arange(len(user), device=user.device) - events.cu_seqlens[:-1].long()[user]
    rows = (step * len(order) + rank[user]).argsort()
    return rows, torch.bincount(step).cpu(), users
