"""The memory pool: pages of keys and values of all layers, and which user holds which.

A page id names one page in every layer, so that a user has one page table. Pages are never cleared: the operators read
nothing past a user's length. Holds the bookkeeping only; what is written into pages is the network's business.
"""

from collections import OrderedDict
from collections.abc import Container

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.config import EngineConfig, ModelConfig
from longrec.errors import ArgumentError

__all__ = ["MemoryPool", "UserMemory"]


class UserMemory:
    """What the pool holds of one user: the keys and values of events [first, length) of the log.

    Attributes:
        first: position of the first event in the first page.
        length: the memory stands for the log's prefix [0, length); what lies before `first` has left the window.
        pages: page ids, oldest first.
        time: unix ms of event length - 1; None if length is 0.
        hidden: [dim] float32, the network's answer after event length - 1; None if length is 0.
    """

    __slots__ = ("first", "hidden", "length", "pages", "time")

    def __init__(self, first: int, time: int | None) -> None:
        self.first = self.length = first
        self.pages: list[int] = []
        self.time = time
        self.hidden: NDArray[np.float32] | None = None


class MemoryPool:
    """Pages within `memory_bytes`; the user longest unused is evicted when none is free.

    Attributes:
        k_pages, v_pages: a tensor [P, S, Hkv, D] per layer.
        evictions: users evicted so far.

    Raises:
        ArgumentError: `memory_bytes` can't hold one user's window and one step's events.
    """

    def __init__(self, model: ModelConfig, engine: EngineConfig, device: torch.device, dtype: torch.dtype) -> None:
        shape = (engine.page_size, model.num_kv_heads, model.head_dim)
        page_bytes = 2 * model.num_layers * int(np.prod(shape)) * dtype.itemsize
        self.num_pages = engine.memory_bytes // page_bytes
        least = -(-(model.window + engine.max_step_events) // engine.page_size) + 1
        if self.num_pages < least:
            raise ArgumentError(
                f"memory_bytes={engine.memory_bytes}",
                f"at least {least * page_bytes} for {model.window} (window) + {engine.max_step_events} (step) events",
                remedy="raise it, or lower max_step_events",
            )
        self.page_size, self.window = engine.page_size, model.window
        pages = torch.zeros(2, model.num_layers, self.num_pages, *shape, dtype=dtype, device=device)
        self.k_pages, self.v_pages = list(pages[0]), list(pages[1])
        self.evictions = 0
        self._free = list(range(self.num_pages - 1, -1, -1))
        self._users: OrderedDict[bytes, UserMemory] = OrderedDict()  # longest unused first

    def __len__(self) -> int:
        return len(self._users)

    @property
    def num_free_pages(self) -> int:
        """Pages that no user holds."""
        return len(self._free)

    def get(self, user: bytes) -> UserMemory | None:
        """The user's memory, now the most recently used; None if there is none."""
        memory = self._users.get(user)
        if memory is not None:
            self._users.move_to_end(user)
        return memory

    def put(self, user: bytes, memory: UserMemory) -> None:
        """Give a user a new memory."""
        self.drop(user)
        self._users[user] = memory

    def drop(self, user: bytes) -> None:
        """Forget a user; their pages are free."""
        memory = self._users.pop(user, None)
        if memory is not None:
            self._free += memory.pages

    def reserve(self, memory: UserMemory, num_events: int, *, keep: Container[bytes]) -> bool:
        """Give `memory` the pages for `num_events` more events, evicting users outside `keep` where none is free.

        Returns:
            False if that is impossible; nothing is reserved then (users may have been evicted).
        """
        needed = -(-(memory.length - memory.first + num_events) // self.page_size) - len(memory.pages)
        while needed > len(self._free):
            victim = next((user for user in self._users if user not in keep), None)
            if victim is None:
                return False
            self.drop(victim)
            self.evictions += 1
        if needed > 0:
            memory.pages += self._free[: -needed - 1 : -1]  # ascending, which the prefetcher of a CPU follows
            del self._free[-needed:]
        return True

    def slots(self, memory: UserMemory, num_events: int) -> NDArray[np.int64]:
        """[num_events] int64: where the next events are written, page * page_size + place within the page."""
        place = memory.length - memory.first + np.arange(num_events)
        pages = np.asarray(memory.pages, np.int64)
        return pages[place // self.page_size] * self.page_size + place % self.page_size

    def advance(self, memory: UserMemory, num_events: int) -> None:
        """The next `num_events` events are written: count them, and free the pages that no later event can see."""
        memory.length += num_events
        expired = (memory.length - self.window + 1 - memory.first) // self.page_size
        if expired > 0:
            self._free += memory.pages[:expired]
            del memory.pages[:expired]
            memory.first += expired * self.page_size
