"""Which server a user's requests go to: rendezvous hashing over the servers that are up. No I/O.

Each user prefers the servers in an order of their own; when one goes down its users spread over the others, and nobody
else moves. They come back with it. Servers share one event log, so that this changes speed, never answers.
"""

import threading
from collections.abc import Sequence
from hashlib import blake2b

__all__ = ["Fleet"]


class Fleet:
    """The servers of a client, by number; safe to share between threads.

    Args:
        urls: host:port of each.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = tuple(urls)
        self._salts = [url.encode()[-64:] for url in self.urls]
        self._lock = threading.Lock()
        self._down: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.urls)

    @property
    def down(self) -> frozenset[int]:
        """Servers that gave no answer lately."""
        return self._down

    def pick(self, user: str) -> int:
        """The user's server: of those that are up, or of all if none is."""
        if len(self.urls) == 1:
            return 0
        down = self._down
        up = [server for server in range(len(self.urls)) if server not in down] or range(len(self.urls))
        key = user.encode("utf-8", "replace")
        return max(up, key=lambda server: (blake2b(key, digest_size=8, key=self._salts[server]).digest(), server))

    def mark(self, server: int, *, up: bool) -> bool:
        """Note what became of a server; whether that is news."""
        with self._lock:
            was_up = server not in self._down
            self._down = self._down - {server} if up else self._down | {server}
            return was_up != up
