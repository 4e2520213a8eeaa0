"""The memory pool: pages of keys and values of all layers, or of recurrent states, and which user holds which.

A page id names one page in every layer, so that a user has one page table. What is known of a user lies in one row of
a few arrays, so that a step over hundreds of users is a few array operations. Pages are never cleared: the operators
read nothing past a user's length. Holds the bookkeeping only; what is written into pages is the network's business.
"""

from array import array
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.config import EngineConfig, ModelConfig
from longrec.errors import ArgumentError, MachineError
from longrec.modeling.memory_layout import memory_layout
from longrec.python_backend.host_tier import HostTier
from longrec.python_backend.pages import make_store

__all__ = ["NO_ROW", "NO_TIME", "MemoryPool", "PageTables"]

Ints = NDArray[np.int64]
NO_ROW = -1
NO_TIME = -1
_UNUSED = np.iinfo(np.int64).max  # `_used` of a row without a user: never the longest unused
VICTIMS = 64  # rows found by one search for the longest unused


class PageTables(NamedTuple):
    """Pages of the users of a step, as `kernels.PagedMemory` takes them.

    Args:
        indptr: [B + 1] int32. indices: [N] int32, oldest first.
    """

    indptr: NDArray[np.int32]
    indices: NDArray[np.int32]


class MemoryPool:
    """Pages within `memory_bytes`, and the users who hold them; the user longest unused is evicted when none is free.

    A row stands for what the network keeps of events [first, length) of a user's log; what lies before `first` has left
    the window. A step is: `begin_step`, `touch` the users that have rows, `open` those who have none, `reserve` pages
    for as many as `num_fitting` says, run the network, `advance`. No user touched or opened in a step is evicted in it;
    from one step to the next a row may go to another user, unless it is pinned.

    Attributes:
        store: the pages.
        hidden: [rows, dim], the network's answer after event length - 1; void where length is 0.
        first, length: [rows] int64.
        time: [rows] int64, unix ms of event length - 1, or NO_TIME.
        pinned: [rows] bool; a pinned row is never evicted.
        tier: where the memories of the evicted go; None: nowhere.
        on_evict: called with each user who is about to be evicted, and their row.
        evictions: users evicted so far. pages_restored: pages that came back from the tier.

    Raises:
        ArgumentError: `memory_bytes` can't hold one user's window and one step's events.
    """

    def __init__(self, model: ModelConfig, engine: EngineConfig, device: torch.device, dtype: torch.dtype) -> None:
        layout = memory_layout(model, dtype, engine.memory_dtype, engine.page_size)
        page_bytes = layout.page_bytes
        self.num_pages = engine.memory_bytes // page_bytes
        most_new = engine.max_user_step_events
        self.pages_per_user = layout.most_pages(model.window + most_new)
        if self.num_pages < self.pages_per_user:
            raise ArgumentError(
                f"memory_bytes={engine.memory_bytes}",
                f"at least {self.pages_per_user * page_bytes} for "
                + (f"{model.window} (window) + {most_new} (new) events" if model.reach else "a user's state"),
                remedy="raise it, or lower chunk_events and inline_events",
            )
        self.page_size, self.window = layout.page_size, model.window
        self.store = make_store(layout, self.num_pages, device)
        rows = self.num_pages  # a user in memory holds a page at least
        self.hidden = torch.zeros(rows, model.dim, dtype=dtype, device=device)
        self.tier = (
            HostTier(layout, self.hidden, engine.host_memory_bytes) if engine.host_memory_bytes >= page_bytes else None
        )
        self.first, self.length, self.time = (np.zeros(rows, np.int64) for _ in range(3))
        self.pinned = np.zeros(rows, bool)
        self.on_evict: Callable[[bytes, int], object] = lambda user, row: None
        self.evictions = self.pages_restored = 0
        self._used = np.full(rows, _UNUSED)
        self._clock = 0  # steps begun
        self._borrowed = np.zeros(rows, np.int32)  # leading pages of a fork that are the user's
        # by columns: an idle user has touched no more of it than the pages it holds, 4 bytes each
        self._tables = np.zeros((self.pages_per_user, rows), np.int32).T
        self._rows: dict[bytes, int] = {}
        self._users: list[bytes | None] = [None] * rows
        self._free_rows = array("i", range(rows - 1, -1, -1))
        self._free = np.arange(self.num_pages - 1, -1, -1, dtype=np.int32)  # a stack: the first `_num_free` are free
        self._num_free = self.num_pages
        self._victims: list[tuple[int, int]] = []  # (row, `_used` when it was found), the longest unused last

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, user: bytes) -> bool:
        return user in self._rows

    @property
    def num_free_pages(self) -> int:
        """Pages that no user holds."""
        return self._num_free

    @property
    def step_arrays(self) -> dict[str, NDArray[Any]]:
        """What `warm_body` reads and writes, by its names: arrays that stay where they are."""
        arrays = {"first": self.first, "length": self.length, "time": self.time, "used": self._used}
        return {**arrays, "hidden": self.hidden.numpy(), "tables": self._tables.T, "free": self._free}

    @property
    def clock(self) -> int:
        """Steps begun: what `used` is set to."""
        return self._clock

    def set_free(self, count: int) -> None:
        """The first `count` pages of `free` are nobody's now."""
        self._num_free = count

    def row(self, user: bytes) -> int:
        """The user's row, or NO_ROW."""
        return self._rows.get(user, NO_ROW)

    def begin_step(self) -> None:
        """From now on the users of the step before may be evicted."""
        self._clock += 1

    def touch(self, rows: Ints | list[int]) -> None:
        """These users belong to the step."""
        self._used[rows] = self._clock

    def open(self, user: bytes, first: int, time: int) -> int:
        """Give a user an empty memory that begins at event `first`, after one at `time` (or NO_TIME).

        A row without pages is one too many: reserve pages for it in the same step, or drop it.

        Returns:
            The user's row; NO_ROW if all rows belong to the step or are pinned.
        """
        if self.tier is not None:
            self.tier.drop(user)
        row = self._rows.get(user, NO_ROW)
        if row != NO_ROW:
            self._release_pages(row)
        elif (row := self._take_row(user)) == NO_ROW:
            return NO_ROW
        self.first[row] = self.length[row] = first
        self.time[row] = time
        return row

    def restore(self, user: bytes) -> int:
        """Bring a user's memory back from the tier, which must hold it.

        Returns:
            The user's row, which belongs to the step; NO_ROW if there is no room.
        """
        assert self.tier is not None
        saved = self.tier.get(user)
        assert saved is not None
        row = self.adopt(user, saved[:3], len(saved.slots))
        if row == NO_ROW:
            return NO_ROW
        pages = self._tables[row, : len(saved.slots)]
        # making room may have pushed it out of the tier: whoever is evicted goes there
        if self.tier.get(user) is not saved:
            self.drop(user)
            return NO_ROW
        self.tier.restore(user, self.store, self._index(pages), self.hidden[row])
        self.pages_restored += len(pages)
        return row

    def adopt(self, user: bytes, memory: tuple[int, int, int], num_pages: int) -> int:
        """Give a user without memory one of so many pages, which the caller fills, and its state.

        Args:
            memory: first, length and time.

        Returns:
            The user's row, which belongs to the step; NO_ROW if there is no room.
        """
        if num_pages > self._room() or (row := self._take_row(user)) == NO_ROW:
            return NO_ROW
        pages = self._take_pages(num_pages)
        self.first[row], self.length[row], self.time[row] = memory
        self._tables[row, :num_pages] = pages
        return row

    def drop(self, user: bytes) -> None:
        """Forget a user; their pages are free."""
        if self.tier is not None:
            self.tier.drop(user)
        self._drop_row(user)

    def drop_all(self) -> None:
        """Forget every user, those in the tier too."""
        for user in list(self._rows):
            self.drop(user)
        if self.tier is not None:
            self.tier.drop_all()

    def _drop_row(self, user: bytes) -> None:
        row = self._rows.pop(user, NO_ROW)
        if row != NO_ROW:
            self._users[row] = None
            self._release(row)

    def num_fitting(self, rows: Ints, counts: Ints) -> int:
        """How many of the step's users, from the first on, can get the pages for `counts` [B] more events.

        The others belong to the step no longer.
        """
        if int(self._num_needed(rows, counts).sum()) <= self._num_free:
            return len(rows)
        kept = self.pinned.copy()
        kept[rows] = False
        room = self.num_pages - int(self._num_owned(np.flatnonzero(kept)).sum())
        fitting = int(np.searchsorted(np.cumsum(self._num_owned(rows, counts)), room, side="right"))
        self._used[self._used == self._clock] = self._clock - 1
        self._used[rows[:fitting]] = self._clock
        return fitting

    def reserve(self, rows: Ints, counts: Ints) -> None:
        """Give users the pages for `counts` [B] more events, evicting others; for users that `num_fitting` counted."""
        needed = self._num_needed(rows, counts)
        total = int(needed.sum())
        if total:
            starts = np.cumsum(needed) - needed
            columns = np.repeat(self._num_held(rows) - starts, needed) + np.arange(total)
            self._tables[np.repeat(rows, needed), columns] = self._take_pages(total)

    def unreserve(self, rows: Ints, counts: Ints) -> None:
        """Take back what `reserve` gave: the events were not written."""
        for row, held, needed in zip(rows, self._num_held(rows), self._num_needed(rows, counts), strict=True):
            self._free_pages(self._tables[row, held : held + needed])

    def fork(self, rows: Ints) -> Ints:
        """Copy-on-write forks of rows [B], pinned, each to be advanced on its own and then given to `release`.

        A fork of a user borrows the full pages, so the user must stay pinned and as it is while the fork lives. A fork
        of a fork borrows what that one borrows, and outlives it.

        Returns:
            [B] rows.

        Raises:
            MachineError: there is no room.
        """
        held = self._num_held(rows)
        full = (self.length[rows] - self.first[rows]) // self.page_size
        is_fork = np.array([self._users[row] is None for row in rows.tolist()], bool)
        borrowed = np.where(is_fork, self._borrowed[rows], full)
        copied = held - borrowed
        forks = np.empty(len(rows), np.int64)
        self._check_room(len(rows), int(copied.sum()))
        for at, row in enumerate(rows.tolist()):
            if not self._free_rows:
                self._evict_one()
            fork = forks[at] = self._free_rows.pop()
            for column in (self.first, self.length, self.time, self._tables):
                column[fork] = column[row]
            self._borrowed[fork], self._used[fork], self.pinned[fork] = borrowed[at], self._clock, True
        self.hidden[self._index(forks)] = self.hidden[self._index(rows)]
        if total := int(copied.sum()):
            columns = np.repeat(borrowed - (np.cumsum(copied) - copied), copied) + np.arange(total)
            sources = self._tables[np.repeat(rows, copied), columns]
            targets = self._take_pages(total)
            self._tables[np.repeat(forks, copied), columns] = targets
            self.store.copy_within(self._index(sources), self._index(targets))
        return forks

    def release(self, forks: Ints) -> None:
        """End forks; their own pages are free."""
        for fork in forks.tolist():
            self._release(fork)

    def pages(self, rows: Ints, counts: Ints) -> PageTables:
        """The users' pages, those of their next `counts` events among them."""
        held = self._num_held(rows, counts)
        indptr = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(held, out=indptr[1:])
        width = int(held.max())
        return PageTables(indptr, self._tables[rows, :width][np.arange(width) < held[:, None]])

    def places(self, row_of_event: Ints, position: Ints) -> Ints:
        """[T] int64: where events are written: page * page_size + place within the page."""
        place = position - self.first[row_of_event]
        pages: Ints = self._tables[row_of_event, place // self.page_size].astype(np.int64)
        places: Ints = pages * self.page_size + place % self.page_size
        return places

    def advance(self, rows: Ints, counts: Ints, times: Ints, hidden: torch.Tensor) -> None:
        """The next `counts` events of each user are written: free the pages that neither a later event nor the newest
        one, which explanations ask again, can see.

        Args:
            times: [B] of the last of them. hidden: [B, dim] after it.
        """
        self.length[rows] += counts
        self.time[rows] = times
        self.hidden.index_copy_(0, self._index(rows), hidden)
        expired = (self.length[rows] - self.window - self.first[rows]) // self.page_size
        for at in np.flatnonzero(expired > 0).tolist():
            row, count = int(rows[at]), int(expired[at])
            borrowed = int(self._borrowed[row])
            self._free_pages(self._tables[row, borrowed:count])
            self._borrowed[row] = max(0, borrowed - count)
            self._tables[row, :-count] = self._tables[row, count:].copy()
            self.first[row] += count * self.page_size

    def _index(self, numbers: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(numbers).long().to(self.hidden.device)

    def _num_held(self, rows: Ints, more: Ints | int = 0) -> Ints:
        return -((self.first[rows] - self.length[rows] - more) // self.page_size)

    def _num_owned(self, rows: Ints, more: Ints | int = 0) -> Ints:
        owned: Ints = self._num_held(rows, more) - self._borrowed[rows]
        return owned

    def _num_needed(self, rows: Ints, counts: Ints) -> Ints:
        return self._num_held(rows, counts) - self._num_held(rows)

    def _take_pages(self, count: int) -> NDArray[np.int32]:
        """Pages that are nobody's now, ascending, which the prefetcher of a CPU follows."""
        while count > self._num_free:
            found = self._evict_one()
            assert found, "more pages were asked for than `num_fitting` allows"
        self._num_free -= count
        pages: NDArray[np.int32] = self._free[self._num_free : self._num_free + count][::-1].copy()
        return pages

    def _free_pages(self, pages: NDArray[np.int32]) -> None:
        self._free[self._num_free : self._num_free + len(pages)] = pages[::-1]
        self._num_free += len(pages)

    def _release(self, row: int) -> None:
        self._release_pages(row)
        self._used[row], self.pinned[row] = _UNUSED, False
        self._free_rows.append(row)

    def _release_pages(self, row: int) -> None:
        held = int(-((self.first[row] - self.length[row]) // self.page_size))
        self._free_pages(self._tables[row, int(self._borrowed[row]) : held])
        self._borrowed[row] = 0

    def _room(self) -> int:
        """Pages that neither the step's users nor pinned ones hold."""
        kept = np.flatnonzero(self.pinned | (self._used == self._clock))
        return self.num_pages - int(self._num_owned(kept).sum())

    def _take_row(self, user: bytes) -> int:
        """A row for a user who has none, in the step; NO_ROW if all rows belong to the step or are pinned."""
        if not self._free_rows and not self._evict_one():
            return NO_ROW
        row = self._free_rows.pop()
        self._rows[user], self._users[row], self._used[row] = row, user, self._clock
        self.first[row] = self.length[row] = 0
        return row

    def _check_room(self, num_rows: int, num_pages: int) -> None:
        kept = int(np.count_nonzero(self.pinned | (self._used == self._clock)))
        if num_pages > self._room() or num_rows > len(self._users) - kept:
            raise MachineError(
                f"memory_bytes: expected room for {num_rows} more forks of users, got none: raise it, or lower max_beam"
            )

    def _save(self, user: bytes, row: int) -> None:
        held = int(-((self.first[row] - self.length[row]) // self.page_size))
        if self.tier is not None and held:
            memory = int(self.first[row]), int(self.length[row]), int(self.time[row])
            self.tier.save(user, memory, self.store, self._index(self._tables[row, :held]), self.hidden[row])

    def _evict_one(self) -> bool:
        """Drop the user longest unused, not of the running step and not pinned; False if there is none."""
        while True:
            while self._victims:
                row, used = self._victims.pop()
                user = self._users[row]
                if user is not None and self._used[row] == used < self._clock and not self.pinned[row]:
                    self.on_evict(user, row)
                    self._save(user, row)
                    self._drop_row(user)
                    self.evictions += 1
                    return True
            self._victims = self._longest_unused()
            if not self._victims:
                return False

    def _longest_unused(self) -> list[tuple[int, int]]:
        """(row, `_used`) of users that may be evicted, the longest unused last."""
        used = np.where(self.pinned, _UNUSED, self._used)
        count = min(VICTIMS, len(used))
        rows = np.argpartition(used, count - 1)[:count]
        rows = rows[used[rows] < self._clock]
        return [(int(row), int(used[row])) for row in rows[np.argsort(used[rows])[::-1]]]
