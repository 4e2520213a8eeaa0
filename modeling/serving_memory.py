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

    def append(
        self, index: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, rotary_base: float | None
    ) -> tuple[Tensor, Tensor]:
        """Write the new events' keys and values into layer `index`; q and k, rotated where there is a base.

        Args:
            q: [T, Hq, D]. k, v: [T, Hkv, D]. positions: [T].
            rotary_base: of `kernels.append_memory`.
        """
        past = self.layer(index)
        # values aren't checked: who packs batches and pages vouches for them, and on a GPU the host would wait
        return kernels.append_memory(
            q,
            k,
            v,
            positions,
            self.slots,
            past.k_pages,
            past.v_pages,
            rotary_base=rotary_base,
            k_scale=past.k_scale,
            v_scale=past.v_scale,
            validate=False,
        )
