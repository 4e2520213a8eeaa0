"""Events of a ragged batch as tensors, and what is done to them by user: appended, cut to the newest, spread to
windows. No network here."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Events", "append", "newest", "no_events", "windows"]


class Events(NamedTuple):
    """T events of B users, user after user, oldest first.

    Args:
        items: [T] int64, 0..num_items; num_items is the unknown item.
        gaps: [T] int64, bucket of the time since the user's previous event (`features.gap_buckets`); [T, 1 + F] where
            the schema has features of events (`features.in_context`).
        seconds: [T] int32, unix seconds (`features.seconds`); only differences count, so that they may wrap.
        positions: [T] int64, absolute places in the users' logs.
        cu_seqlens: [B + 1] int32; user b's events are rows cu_seqlens[b] to cu_seqlens[b + 1], which may be none.
    """

    items: Tensor
    gaps: Tensor
    seconds: Tensor
    positions: Tensor
    cu_seqlens: Tensor

    @property
    def num_users(self) -> int:
        """B."""
        return len(self.cu_seqlens) - 1

    @property
    def counts(self) -> Tensor:
        """[B] int64, events of each user."""
        return self.cu_seqlens.diff().long()

    @property
    def users(self) -> Tensor:
        """[T] int64, whose event it is."""
        device = self.cu_seqlens.device
        return torch.repeat_interleave(torch.arange(self.num_users, device=device), self.counts)

    def of_users(self, start: int, stop: int) -> "Events":
        """The events of users `start` to `stop`, exclusive, or to the last."""
        cu_seqlens = self.cu_seqlens[start : stop + 1]
        rows = slice(int(cu_seqlens[0]), int(cu_seqlens[-1]))
        items, gaps, seconds, positions = (
            field[rows] for field in (self.items, self.gaps, self.seconds, self.positions)
        )
        return Events(items, gaps, seconds, positions, cu_seqlens - cu_seqlens[0])

    def take(self, rows: Tensor, counts: Tensor) -> "Events":
        """The events at `rows`, of which user b has the next `counts[b]`."""
        return Events(self.items[rows], self.gaps[rows], self.seconds[rows], self.positions[rows], _offsets(counts))


def no_events(num_users: int, device: torch.device) -> Events:
    """Nothing of so many users."""
    none = torch.zeros(0, dtype=torch.int64, device=device)
    cu_seqlens = torch.zeros(num_users + 1, dtype=torch.int32, device=device)
    return Events(none, none, none.int(), none, cu_seqlens)


def append(past: Events, new: Events) -> Events:
    """Each user's past and then their new events; both of the same users."""
    order = torch.cat((past.users, new.users)).argsort(stable=True)
    both = Events(*(torch.cat(fields) for fields in zip(past, new, strict=True)))  # its cu_seqlens mean nothing
    return both.take(order, past.counts + new.counts)


def newest(events: Events, most: int) -> Events:
    """Each user's last `most` events, or all they have."""
    counts = events.counts
    kept = counts.clamp(max=most)
    from_end = events.cu_seqlens[1:].long()[events.users] - torch.arange(len(events.items), device=counts.device)
    return events.take((from_end <= most).nonzero().flatten(), kept)


def windows(events: Events, counts: Tensor, window: int) -> Events:
    """The window that ends at each of the users' last `counts` [B] events, as the events of so many users."""
    begins, ends = events.cu_seqlens[:-1].long(), events.cu_seqlens[1:].long()
    user = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)  # [N]
    nth = torch.arange(len(user), device=counts.device) - (counts.cumsum(0) - counts)[user]
    last = (ends - counts)[user] + nth
    first = (last - window + 1).maximum(begins[user])
    lengths = last - first + 1
    before = lengths.cumsum(0) - lengths
    rows = torch.repeat_interleave(first - before, lengths)
    return events.take(rows + torch.arange(len(rows), device=rows.device), lengths)


def _offsets(counts: Tensor) -> Tensor:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
