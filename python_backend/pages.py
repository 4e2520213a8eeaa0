"""Pages of users' memory: where they lie and how they are copied. Who holds which is not known here."""

import torch

from longrec.modeling.memory_layout import MemoryLayout, StateLayout
from longrec.modeling.serving_memory import ServingMemory

__all__ = ["KeyValueStore", "PageStore", "make_store"]


class PageStore:
    """Pages on one device.

    Args:
        layout: what each is made of.
        num_pages: how many.
        device: where they lie.

    Attributes:
        blocks: a tensor [count, P, *shape] for each of the layout's, with the spare pages behind the P.
    """

    def __init__(self, layout: MemoryLayout | StateLayout, num_pages: int, device: torch.device) -> None:
        self.num_pages = num_pages
        self.blocks = [
            torch.zeros((block.tensors, num_pages + block.spare, *block.shape), dtype=block.dtype, device=device)
            for block in layout.blocks
        ]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All of them; the first dimension counts the pages."""
        return [tensor for block in self.blocks for tensor in block]

    def copy_within(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy pages `sources` [n] int64 to `targets` [n]."""
        for tensor in self.tensors:
            tensor[targets] = tensor[sources]


class KeyValueStore(PageStore):
    """Pages of keys and values, all layers.

    Attributes:
        k_pages, v_pages: a tensor [P, S, Hkv, D] a layer.
        k_scales, v_scales: a tensor [P, S, Hkv] a layer; None: entries aren't quantised.
        seconds: [P, S] int32, the events' times; None: nobody asks for them.
    """

    def __init__(self, layout: MemoryLayout, num_pages: int, device: torch.device) -> None:
        super().__init__(layout, num_pages, device)
        blocks, layers = iter(self.blocks), layout.num_layers
        entries = list(next(blocks))
        self.k_pages, self.v_pages = entries[:layers], entries[layers:]
        scales = list(next(blocks)) if layout.has_scales else None
        self.k_scales = None if scales is None else scales[:layers]
        self.v_scales = None if scales is None else scales[layers:]
        self._all_seconds = next(blocks)[0] if layout.has_seconds else None  # with the spare page
        self.seconds = None if self._all_seconds is None else self._all_seconds[:num_pages]

    def memory(
        self,
        page_indptr: torch.Tensor,
        page_indices: torch.Tensor,
        lengths: torch.Tensor,
        slots: torch.Tensor,
        *,
        max_new: int,
        max_memory: int,
    ) -> ServingMemory:
        """The pages as a pass of the network takes them; arguments as `ServingMemory`."""
        return ServingMemory(
            self.k_pages,
            self.v_pages,
            page_indptr,
            page_indices,
            lengths,
            slots,
            max_new=max_new,
            max_memory=max_memory,
            k_scales=self.k_scales,
            v_scales=self.v_scales,
            seconds=self.seconds,
        )

    def write_seconds(self, slots: torch.Tensor, seconds: torch.Tensor) -> None:
        """Put the times [T] int32 of new events at `slots` [T], if they are asked for; the network reads them there."""
        if self._all_seconds is not None:
            self._all_seconds.view(-1)[slots] = seconds


def make_store(layout: MemoryLayout | StateLayout, num_pages: int, device: torch.device) -> PageStore:
    """Pages of a layout, empty."""
    if isinstance(layout, MemoryLayout):
        return KeyValueStore(layout, num_pages, device)
    return PageStore(layout, num_pages, device)
