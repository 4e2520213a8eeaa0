"""Deferred work: users whose answers take more than a moment, served in turn. Holds the order only.

A user's entries are answered in the order in which they came, so whoever is here stays until all of theirs are. The
users that are being served are bounded, so that each finishes what the pool keeps for it; they take turns, and the
next one in line follows when one is done.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Container
from itertools import islice

from longrec.python_backend.work import Entry, Work

__all__ = ["DeferredWork"]


class DeferredWork:
    """The queue.

    Args:
        max_served: users that are served at a time.
    """

    def __init__(self, max_served: int) -> None:
        self._max_served = max_served
        self._waiting: dict[bytes, deque[Entry]] = {}  # not yet taken; users in the order in which they came
        self._served: OrderedDict[bytes, Work] = OrderedDict()  # the one whose turn is the longest ago first
        self._depth = 0

    def __contains__(self, user: bytes) -> bool:
        return user in self._waiting or user in self._served

    def __bool__(self) -> bool:
        return bool(self._waiting or self._served)

    @property
    def depth(self) -> int:
        """Entries that were added and have not been answered; who answers them tells `answered`."""
        return self._depth

    @property
    def oldest_seconds(self) -> float:
        """How long the oldest entry has waited; 0 if there is none."""
        fronts = [work.entries[0].seconds for work in self._served.values() if work.entries]
        fronts += [entries[0].seconds for entries in islice(self._waiting.values(), 1)]  # users come in order
        return time.monotonic() - min(fronts) if fronts else 0.0

    def add(self, entry: Entry) -> None:
        """Put an entry behind those of its user, or its user behind the others."""
        self._waiting.setdefault(entry.query.user, deque()).append(entry)
        self._depth += 1

    def answered(self, count: int) -> None:
        """So many entries have been answered."""
        self._depth -= count

    def take(self, max_events: int) -> list[tuple[Work, Entry]]:
        """The next entry of each served user who has none in work, with at most `max_events` new events in all (or one
        entry). The caller appends their events and puts them into the works, or answers them."""
        while len(self._served) < self._max_served:
            user = next((user for user in self._waiting if user not in self._served), None)
            if user is None:
                break
            self._served[user] = Work(user)
        taken: list[tuple[Work, Entry]] = []
        for user, work in self._served.items():
            entries = self._waiting.get(user)
            if work.entries or not entries:
                continue
            max_events -= 0 if entries[0].outcome else len(entries[0].query.events)
            if taken and max_events < 0:
                break
            taken.append((work, entries.popleft()))
            if not entries:
                del self._waiting[user]
        return taken

    def next_works(self, count: int, rolling: Container[bytes]) -> list[Work]:
        """Users whose turn it is: up to `count` of those who aren't `rolling`, or all who are, as they take their steps
        together. They go to the end of the row."""
        works = [work for work in self._served.values() if work.entries]
        rolls = bool(works) and works[0].user in rolling
        works = [work for work in works if (work.user in rolling) == rolls]
        works = works if rolls else works[:count]
        for work in works:
            self._served.move_to_end(work.user)
        return works

    def end_idle(self) -> list[bytes]:
        """The served users who wait for nothing more; they are served no longer."""
        idle = [user for user, work in self._served.items() if not work.entries and user not in self._waiting]
        for user in idle:
            del self._served[user]
        return idle

    def drop_rows(self) -> None:
        """Forget the log's rows that are kept for those who are served."""
        for work in self._served.values():
            work.drop_rows()

    def clear(self) -> None:
        """Forget everything that waits."""
        self._depth = 0
        self._served.clear()
        self._waiting.clear()
