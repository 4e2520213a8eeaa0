"""The users' pages as one pass of a network takes them. Who keeps and hands out pages is not known here."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from longrec import kernels

__all__ = ["ServingMemory"]


class ServingMemory(NamedTuple):
    """The users' cached past in every layer, and where the new events are written.

    Args:
        k_pages, v_pages: one [P, S, Hkv, D] a layer; the forward pass writes the new events' rows in place.
        page_indptr: [B + 1] int32; page_indices: [N] int32; lengths: [B] int32, as in `kernels.PagedMemory`: the
            events before the new ones.
        slots: [T] int64, page * S + place of each new event; -1: not written.
        max_new, max_memory: upper bounds, for every user, of new events and of events in memory, which size a GPU's
            launches; None: T and the page table's size stand in.
        k_scales, v_scales: one [P, S, Hkv] float32 a layer, for int8 pages (`memory_layout`); else None.
        seconds: [P, S] int32, unix seconds of the events in the pages, the new ones' too; for families with a time
            bias, which read them only; else None.
    """

    k_pages: Sequence[Tensor]
    v_pages: Sequence[Tensor]
    page_indptr: Tensor
    page_indices: Tensor
    lengths: Tensor
    slots: Tensor
    max_new: int | None = None
    max_memory: int | None = None
    k_scales: Sequence[Tensor] | None = None
    v_scales: Sequence[Tensor] | None = None
    seconds: Tensor | None = None

    def layer(self, index: int) -> kernels.PagedMemory:
        """The past as layer `index` sees it."""
        scales = (self.k_scales, self.v_scales)
        return kernels.PagedMemory(
            self.k_pages[index],
            self.v_pages[index],
            self.page_indptr,
            self.page_indices,
            self.lengths,
            *(None if scale is None else scale[index] for scale in scales),
        )
