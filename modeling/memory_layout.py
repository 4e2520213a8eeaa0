"""What a page of users' memory is: shapes, dtypes and bytes. Pages themselves are allocated by who serves.

A page of keys and values holds some events, and a user has as many as their window takes. A recurrent state stands for
all events of its user: it is a page that never fills, of which each user has one.
"""

from math import prod
from typing import Final, NamedTuple

import torch

from longrec.config import ModelConfig
from longrec.modeling.families import FAMILIES
from longrec.modeling.recurrent import Recurrent

__all__ = ["Block", "MemoryLayout", "StateLayout", "memory_layout"]

ENDLESS: Final = 1 << 40  # events: more than a user ever has, and its products with page numbers fit int64


class Block(NamedTuple):
    """Numbers of one kind in a page.

    Args:
        tensors: how many. shape: of each, in a page. dtype: of all.
        spare: pages of them behind the last, which are nobody's.
    """

    tensors: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    spare: int = 0

    @property
    def page_bytes(self) -> int:
        """Bytes in a page."""
        return self.tensors * prod(self.shape) * self.dtype.itemsize


class MemoryLayout(NamedTuple):
    """A page: keys and values of some events in all layers.

    Args:
        num_layers: of the network.
        shape: (S, Hkv, D) of a layer's keys, and of its values. dtype: of both; int8 entries have a float32 scale for
            each event and head.
        has_seconds: whether it holds the events' times, too (`ServingMemory.seconds`).
    """

    num_layers: int
    shape: tuple[int, int, int]
    dtype: torch.dtype
    has_seconds: bool = False

    @property
    def has_scales(self) -> bool:
        """Whether entries are quantised."""
        return self.dtype == torch.int8

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Keys, then values, of every layer; their scales; the seconds."""
        count = 2 * self.num_layers
        scales = (Block(count, self.shape[:2], torch.float32),) if self.has_scales else ()
        # the spare page is where slot -1 points, by which events that aren't kept are marked
        seconds = (Block(1, self.shape[:1], torch.int32, spare=1),) if self.has_seconds else ()
        return Block(count, self.shape, self.dtype), *scales, *seconds

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in all layers, keys, values, scales and seconds."""
        return sum(block.page_bytes for block in self.blocks)

    @property
    def page_size(self) -> int:
        """Events of a page."""
        return self.shape[0]

    def most_pages(self, num_events: int) -> int:
        """Pages of so many successive events, which begin anywhere in a page."""
        return -(-num_events // self.page_size) + 1


class StateLayout(NamedTuple):
    """A page: a recurrent state [num_layers, width]."""

    num_layers: int
    width: int
    dtype: torch.dtype

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The state."""
        return (Block(1, (self.num_layers, self.width), self.dtype),)

    @property
    def page_bytes(self) -> int:
        """Bytes of a state."""
        return self.blocks[0].page_bytes

    @property
    def page_size(self) -> int:
        """Events that it stands for at most."""
        return ENDLESS

    def most_pages(self, num_events: int) -> int:
        """1, of any number of events."""
        return 1


def memory_layout(
    model: ModelConfig, dtype: torch.dtype, memory_dtype: str, page_size: int
) -> MemoryLayout | StateLayout:
    """The layout of pages of `page_size` events, or of states.

    Args:
        model: of a family with such a memory.
        dtype: of the network's weights, and of states.
        memory_dtype: of keys and values, as in `EngineConfig`: "same" is `dtype`.
    """
    family = FAMILIES[model.family]
    if issubclass(family, Recurrent):
        return StateLayout(model.num_layers, family.num_states * model.hidden_dim, dtype)
    stored = dtype if memory_dtype == "same" else getattr(torch, memory_dtype)
    return MemoryLayout(
        model.num_layers, (page_size, model.num_kv_heads, model.head_dim), stored, family.memory_has_seconds
    )
