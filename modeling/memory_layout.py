"""What a page of a network's memory is: shapes, dtypes and bytes. Pages themselves are allocated by who serves."""

from typing import NamedTuple

import torch

from longrec.config import ModelConfig

__all__ = ["MemoryLayout", "memory_layout"]


class MemoryLayout(NamedTuple):
    """A page: keys and values of some events in all layers.

    Args:
        num_layers: of the network.
        shape: (S, Hkv, D) of a layer's keys, and of its values. dtype: of both; int8 entries have a float32 scale for
            each event and head.
    """

    num_layers: int
    shape: tuple[int, int, int]
    dtype: torch.dtype

    @property
    def has_scales(self) -> bool:
        """Whether entries are quantised."""
        return self.dtype == torch.int8

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in all layers, keys, values and scales."""
        events, heads, dim = self.shape
        scale = torch.float32.itemsize if self.has_scales else 0
        return 2 * self.num_layers * events * heads * (dim * self.dtype.itemsize + scale)


def memory_layout(model: ModelConfig, dtype: torch.dtype, memory_dtype: str, page_size: int) -> MemoryLayout:
    """The layout of pages of `page_size` events.

    Args:
        dtype: of the network's weights.
        memory_dtype: as in `EngineConfig`: "same" is `dtype`.
    """
    stored = dtype if memory_dtype == "same" else getattr(torch, memory_dtype)
    return MemoryLayout(model.num_layers, (page_size, model.num_kv_heads, model.head_dim), stored)
