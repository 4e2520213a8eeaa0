"""Pages of keys and values, all layers: where they lie and how they are copied. Who holds which is not known here."""

from typing import NamedTuple

import torch

from longrec.config import ModelConfig

__all__ = ["PageFormat", "PageStore"]


class PageFormat(NamedTuple):
    """What a page is made of.

    Args:
        num_layers, page_size, num_kv_heads, head_dim: its shape.
        dtype: of the entries; int8 entries have a float32 scale for each event and head.
    """

    num_layers: int
    page_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, model: ModelConfig, page_size: int, dtype: torch.dtype) -> "PageFormat":
        """The pages of a network's memory."""
        return cls(model.num_layers, page_size, model.num_kv_heads, model.head_dim, dtype)

    @property
    def has_scales(self) -> bool:
        """Whether entries are quantised."""
        return self.dtype == torch.int8

    @property
    def num_bytes(self) -> int:
        """Of one page: keys and values of all layers."""
        head_bytes = self.head_dim * self.dtype.itemsize + (torch.float32.itemsize if self.has_scales else 0)
        return 2 * self.num_layers * self.page_size * self.num_kv_heads * head_bytes


class PageStore:
    """Pages on one device.

    Args:
        page: what each is made of.
        num_pages: how many.
        device: where they lie.
        pinned: whether a GPU may copy from and to them while the host goes on; on the CPU alone.

    Attributes:
        k_pages, v_pages: a tensor [P, S, Hkv, D] a layer.
        k_scales, v_scales: a tensor [P, S, Hkv] a layer; None: entries aren't quantised.
    """

    def __init__(self, page: PageFormat, num_pages: int, device: torch.device, *, pinned: bool = False) -> None:
        self.page, self.num_pages = page, num_pages
        shape = (2, page.num_layers, num_pages, page.page_size, page.num_kv_heads)
        entries = torch.zeros(*shape, page.head_dim, dtype=page.dtype, device=device, pin_memory=pinned)
        self.k_pages, self.v_pages = list(entries[0]), list(entries[1])
        self.k_scales: list[torch.Tensor] | None = None
        self.v_scales: list[torch.Tensor] | None = None
        if page.has_scales:
            scales = torch.zeros(*shape, dtype=torch.float32, device=device, pin_memory=pinned)
            self.k_scales, self.v_scales = list(scales[0]), list(scales[1])

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All of them; the first dimension counts the pages."""
        return [*self.k_pages, *self.v_pages, *(self.k_scales or ()), *(self.v_scales or ())]

    def copy_within(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy pages `sources` [n] int64 to `targets` [n]."""
        for tensor in self.tensors:
            tensor[targets] = tensor[sources]
