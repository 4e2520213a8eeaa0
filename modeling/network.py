"""What every family is: a network over ragged events, with a kind of memory by which it streams.

The three kinds, each a base class beside this: paged keys and values (`paged.py`), a state of fixed size
(`recurrent.py`), none but the last window of events, which is run again (`windowed.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from longrec.config import ModelConfig
from longrec.modeling.attributes import AttributeTables
from longrec.modeling.events import Events
from longrec.modeling.layers import INIT_STD, ContextEmbedding, Dropout
from longrec.modeling.repeats import Repeats

__all__ = ["Memory", "MemoryKind", "Network", "Objective"]

MemoryKind = Literal["pages", "state", "window"]
Objective = Literal["next_item", "masked_item", "next_items"]


class Memory(Protocol):
    """The past of a batch's users, of the kind that the network names. It carries no gradient."""

    def reset(self, users: Sequence[int]) -> None:
        """Forget these users' past, in place."""


class Network(nn.Module, ABC):
    """Embeds events, and scores items by their inner product with a hidden state.

    Args:
        config: shape.
        dropout: probability; only while training.

    Attributes:
        memory: the kind of memory.
        objective: what it is trained for: the item after each event, masked items, or the next steps.
        memory_has_seconds: whether the memory must hold its events' times (`ServingMemory.seconds`).
        recurrent: whether training runs whole histories segment by segment, each over the memory of those before it.
        repeats: the term of repeated items in the scores; None: there is none.
        attributes: what the items' features weigh, for the vectors of new items; None: the schema has none.
        start: [dim], the hidden state that stands before a user's first event: `scores(start)` rank the first item.
    """

    memory: ClassVar[MemoryKind]
    objective: ClassVar[Objective] = "next_item"
    memory_has_seconds: ClassVar[bool] = False
    recurrent: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(config.num_items + 1, config.dim)  # the last row: an item that isn't in the catalogue
        self.gaps = ContextEmbedding(config.num_gap_buckets + config.features.num_event_values, config.dim)
        self.start = nn.Parameter(torch.empty(config.dim))
        self.attributes = AttributeTables(config.features, config.dim) if config.features.item else None
        self.dropout = Dropout(dropout)
        self.repeats = Repeats(config.dim, config.reach or config.window) if config.repeats else None

    def reset_parameters(self) -> None:
        """Draw the weights anew, from torch's default generator."""
        for name, weight in self.named_parameters():
            if weight.ndim > 1 or name == "start":
                nn.init.normal_(weight, std=INIT_STD)
            else:
                nn.init.ones_(weight)
        if self.repeats:
            nn.init.zeros_(self.repeats.table)

    @property
    def item_table(self) -> Tensor:
        """[num_items, dim]: the scores of a hidden state are its inner products with these rows."""
        return self.items.weight[:-1]

    @torch.no_grad()
    def add_items(self, vectors: Tensor) -> None:
        """Put M items behind those of the catalogue, in place.

        Args:
            vectors: [M, dim].
        """
        table = self.items.weight
        self.items.weight = nn.Parameter(torch.cat((table[:-1], vectors.to(table), table[-1:])))
        self.items.num_embeddings = len(self.items.weight)
        self.config = self.config.model_copy(update={"num_items": len(self.items.weight) - 1})

    def scores(self, hidden: Tensor) -> Tensor:
        """[..., dim] -> [..., num_items]: the logits of the next item."""
        return hidden @ self.item_table.T

    def scores_after(self, hidden: Tensor, events: Events) -> Tensor:
        """[B, dim], the states after each user's last event -> [B, num_items]: `scores`, and the term of repeats."""
        scores = self.scores(hidden)
        if self.repeats:
            users, items, terms = self.repeats.after(events, self.config.num_items)
            scores[users, items] += terms.to(scores.dtype)
        return scores

    def embed(self, events: Events) -> Tensor:
        """[T, dim]: item, gap and context of each event."""
        result: torch.Tensor = self.dropout(self.items(events.items) + self.gaps(events.gaps))
        return result

    @abstractmethod
    def states(self, events: Events) -> Tensor:
        """[T, dim], the state after each event, of users who have no past: what streaming has to reproduce."""

    @abstractmethod
    def new_memory(self, num_users: int) -> Any:
        """The memory of users who have no past, on the network's device and in its dtype."""

    @abstractmethod
    def step(self, events: Events, memory: Any) -> tuple[Tensor, Any]:
        """States [T, dim] after new events of the memory's users, and their memory after them.

        The memory that was passed is used up. In training, which only `recurrent` families do by steps, gradients reach
        the weights through the new events alone.
        """

    def last_states(self, events: Events) -> Tensor:
        """[B, dim], the state after each user's last event; `start` for users who have none."""
        rows = torch.where(events.counts > 0, events.cu_seqlens[1:].long(), 0)
        return torch.cat((self.start[None], self.states(events)))[rows]
