"""The host tier: memories of users who were evicted, kept in the host's memory until they come back or others need it.

Copies are enqueued on the stream that the network runs on, to and from pinned memory: the host waits for none of them,
and no page is read or written too early. Whether a copy beats running the events anew is decided by `saves_time`.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch

from longrec.modeling.memory_layout import MemoryLayout, StateLayout
from longrec.python_backend.pages import PageStore

__all__ = ["HostTier", "Saved"]

TRIAL_SECONDS = 0.02  # of copying, to learn the bandwidth


class Saved(NamedTuple):
    """A memory in the tier.

    Args:
        first, length, time: as the pool's arrays of these names.
        slots: where its pages lie, oldest first, at least one.
    """

    first: int
    length: int
    time: int
    slots: tuple[int, ...]


class HostTier:
    """Memories within `num_bytes` of host memory; the one saved first goes first.

    Args:
        layout: what pages are made of.
        hidden: [rows, dim], the pool's states; its dtype and device count.
        num_bytes: size of the tier.

    Attributes:
        bytes_per_second: measured between the tier and the device.
    """

    def __init__(self, layout: MemoryLayout | StateLayout, hidden: torch.Tensor, num_bytes: int) -> None:
        self._layout, self._device, self._pinned = layout, hidden.device, hidden.is_cuda
        num_slots = num_bytes // layout.page_bytes
        self._num_slots = num_slots
        self._blocks = [self._on_host((num_slots, block.tensors, *block.shape), block.dtype) for block in layout.blocks]
        self._hidden = self._on_host((num_slots, hidden.shape[1]), hidden.dtype)  # in the row of a user's first slot
        self._free = list(range(num_slots - 1, -1, -1))
        self._saved: OrderedDict[bytes, Saved] = OrderedDict()
        self.bytes_per_second = self._measure() if num_slots else 0.0

    def __len__(self) -> int:
        return len(self._saved)

    def get(self, user: bytes) -> Saved | None:
        """The user's saved memory, or None."""
        return self._saved.get(user)

    def drop(self, user: bytes) -> None:
        """Forget a user."""
        saved = self._saved.pop(user, None)
        if saved is not None:
            self._free += saved.slots

    def drop_all(self) -> None:
        """Forget every user."""
        for user in list(self._saved):
            self.drop(user)

    def save(
        self, user: bytes, memory: tuple[int, int, int], store: PageStore, pages: torch.Tensor, hidden: torch.Tensor
    ) -> None:
        """Keep a memory, if the tier can hold it at all.

        Args:
            memory: first, length and time.
            store: holds the pages. pages: [n] int64, the user's, n >= 1. hidden: [dim].
        """
        self.drop(user)
        count = len(pages)
        if count > self._num_slots:
            return
        while len(self._free) < count:
            self.drop(next(iter(self._saved)))
        slots = tuple(self._free.pop() for _ in range(count))
        for block, host in zip(store.blocks, self._blocks, strict=True):
            _copy_out(block[:, pages].transpose(0, 1).contiguous(), host, slots)
        self._hidden[slots[0]].copy_(hidden, non_blocking=True)
        self._saved[user] = Saved(*memory, slots)

    def restore(self, user: bytes, store: PageStore, pages: torch.Tensor, hidden: torch.Tensor) -> None:
        """Copy a saved memory back, and forget it here.

        Args:
            pages: [n] int64, as many as the user has slots. hidden: [dim], filled.
        """
        slots = self._saved[user].slots
        for block, host in zip(store.blocks, self._blocks, strict=True):
            block[:, pages] = _copy_in(host, slots, self._device).transpose(0, 1)
        hidden.copy_(self._hidden[slots[0]], non_blocking=True)
        self.drop(user)

    def saves_time(self, saved: Saved, num_missing: int, num_rebuilt: int, seconds_per_event: float) -> bool:
        """Whether to restore a memory and run `num_missing` events is quicker than to run `num_rebuilt` events anew.

        Args:
            seconds_per_event: of the network, by experience; 0: there is none yet, and memory is believed in.
        """
        if not seconds_per_event:
            return num_missing <= num_rebuilt
        copying = len(saved.slots) * self._layout.page_bytes / self.bytes_per_second
        return copying + num_missing * seconds_per_event < num_rebuilt * seconds_per_event

    def _on_host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, pin_memory=self._pinned)

    def _measure(self) -> float:
        """Bytes a second from the tier to the device, page by page."""
        slots = tuple(range(min(64, self._num_slots)))
        copied, began = 0, time.perf_counter()
        while (seconds := time.perf_counter() - began) < TRIAL_SECONDS:
            _copy_in(self._blocks[0], slots, self._device)
            if self._pinned:
                torch.cuda.synchronize(self._device)
            copied += len(slots) * self._layout.page_bytes
        return copied / seconds


def _copy_out(source: torch.Tensor, host: torch.Tensor, slots: Sequence[int]) -> None:
    for at, slot in enumerate(slots):
        host[slot].copy_(source[at], non_blocking=True)


def _copy_in(host: torch.Tensor, slots: Sequence[int], device: torch.device) -> torch.Tensor:
    target = torch.empty((len(slots), *host.shape[1:]), dtype=host.dtype, device=device)
    for at, slot in enumerate(slots):
        target[at].copy_(host[slot], non_blocking=True)
    return target
