"""Pages of keys and values, all layers: where they lie and how they are copied. Who holds which is not known here."""

import torch

from longrec.modeling.memory_layout import MemoryLayout

__all__ = ["PageStore"]


class PageStore:
    """Pages on one device.

    Args:
        layout: what each is made of.
        num_pages: how many.
        device: where they lie.

    Attributes:
        k_pages, v_pages: a tensor [P, S, Hkv, D] a layer.
        k_scales, v_scales: a tensor [P, S, Hkv] a layer; None: entries aren't quantised.
    """

    def __init__(self, layout: MemoryLayout, num_pages: int, device: torch.device) -> None:
        self.num_pages = num_pages
        shape = (2, layout.num_layers, num_pages, *layout.shape)
        entries = torch.zeros(shape, dtype=layout.dtype, device=device)
        self.k_pages, self.v_pages = list(entries[0]), list(entries[1])
        self.k_scales: list[torch.Tensor] | None = None
        self.v_scales: list[torch.Tensor] | None = None
        if layout.has_scales:
            scales = torch.zeros(shape[:-1], dtype=torch.float32, device=device)
            self.k_scales, self.v_scales = list(scales[0]), list(scales[1])

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All of them; the first dimension counts the pages."""
        return [*self.k_pages, *self.v_pages, *(self.k_scales or ()), *(self.v_scales or ())]

    def copy_within(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy pages `sources` [n] int64 to `targets` [n]."""
        for tensor in self.tensors:
            tensor[targets] = tensor[sources]
