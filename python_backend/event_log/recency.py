"""Who appended last: what an LMDB log remembers of it, as bytes. No I/O.

A log keeps users in the order of their last append, so that after a start the memories of those who will likely ask
next are rebuilt first. It is a hint: an append puts its users into a buffer in memory, and the buffer goes to the disk
with a later append, at most once in `WRITE_SECONDS`. A process that is killed loses that much of the order, no event.

A page of the order is (uint16 length | user's key) [users], the latest last.
"""

import struct
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

__all__ = ["PAGES_KEPT", "Page", "RecentUsers", "page_of_users", "users_of_page"]

WRITE_SECONDS: Final = 1.0
PAGE_BYTES: Final = 1 << 16  # about 4,000 users with keys of 14 bytes
PAGES_KEPT: Final = 64  # 4 MiB at most, about 250,000 users

_LENGTH: Final = struct.Struct(">H")


class Page(NamedTuple):
    """A page of the order: its place (unix nanoseconds of its writing), its bytes, the place of the one it replaces."""

    place: int
    users: bytes
    replaces: int | None


class RecentUsers:
    """The users who appended through one open log, in order, as far as they aren't on a full page yet."""

    def __init__(self) -> None:
        self._users: dict[bytes, None] = {}  # the latest last
        self._place: int | None = None
        self._due = 0.0  # monotonic seconds
        self._unwritten = False

    def note(self, users: Iterable[bytes]) -> None:
        """They have appended, the last of them last."""
        held = self._users
        for user in users:
            held.pop(user, None)
            held[user] = None
        self._unwritten = True

    @property
    def is_due(self) -> bool:
        """Whether there is something to write, and it is time to."""
        return self._unwritten and time.monotonic() >= self._due

    @property
    def is_unwritten(self) -> bool:
        """Whether there is something to write."""
        return self._unwritten

    def page(self) -> Page:
        """What to write now."""
        return Page(time.time_ns(), page_of_users(self._users), self._place)

    def written(self, page: Page) -> None:
        """`page` is on its way to the disk; a full one is begun anew."""
        self._due, self._unwritten, self._place = time.monotonic() + WRITE_SECONDS, False, page.place
        if len(page.users) >= PAGE_BYTES:
            self._place, self._users = None, {}

    def latest_first(self) -> Iterator[bytes]:
        """The users, the latest first."""
        return reversed(self._users)


def page_of_users(users: Iterable[bytes]) -> bytes:
    """Users' keys as a page."""
    return b"".join(_LENGTH.pack(len(user)) + user for user in users)


def users_of_page(page: bytes) -> list[bytes]:
    """The users of a page, the latest first; as many as are readable: a hint isn't worth an error."""
    users, at = [], 0
    while at + _LENGTH.size <= len(page):
        (length,) = _LENGTH.unpack_from(page, at)
        at += _LENGTH.size
        users.append(page[at : at + length])
        at += length
    if at != len(page):
        return []
    return users[::-1]
