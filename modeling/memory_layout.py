"""What a page of a network's memory is: shapes, dtypes and bytes. Pages themselves are allocated by who serves."""

from typing import NamedTuple

import torch

from longrec.config import ModelConfig

__all__ = ["MemoryLayout", "memory_layout"]


class MemoryLayout(NamedTuple):
    """One page in one layer: keys and values alike.

    Args:
        shape: (S, Hkv, D) of a page's keys, and of its values. dtype: of both.
        scale_shape: (S, Hkv) of the float32 scales of each; None: there are none.
    """

    shape: tuple[int, int, int]
    dtype: torch.dtype
    scale_shape: tuple[int, int] | None

    def page_bytes(self, num_layers: int) -> int:
        """Bytes of a page in all layers, keys, values and scales."""
        events, heads, dim = self.shape
        scale = 0 if self.scale_shape is None else torch.float32.itemsize
        return 2 * num_layers * events * heads * (dim * self.dtype.itemsize + scale)


def memory_layout(model: ModelConfig, dtype: torch.dtype, memory_dtype: str, page_size: int) -> MemoryLayout:
    """The layout of pages of `page_size` events.

    Args:
        dtype: of the network's weights.
        memory_dtype: as in `EngineConfig`: "same" is `dtype`.
    """
    stored = dtype if memory_dtype == "same" else getattr(torch, memory_dtype)
    heads = (page_size, model.num_kv_heads)
    return MemoryLayout((*heads, model.head_dim), stored, heads if stored == torch.int8 else None)
