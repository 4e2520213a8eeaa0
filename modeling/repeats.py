"""How much more, or less, likely an item is for having stood among the newest events: a learned term of its score, by
how long ago it was there last.

Inner products with a state can't say it: `dim` numbers don't tell apart hundreds of items seen from others like them.
Where nothing is consumed twice the term turns strongly negative, where things are bought again it rises.
"""

import math

import torch
from torch import Tensor, nn

from longrec.modeling.events import Events

__all__ = ["Repeats", "next_occurrences"]

NUM_BUCKETS = 8  # floor(log2(1 + events since)), the last for 127 events and more


class Repeats(nn.Module):
    """The term [NUM_BUCKETS] of each bucket of elapsed events, zero at first.

    It counts sqrt(dim) times, as large as a logit that a normalised state makes of one number, and so learns as fast.

    Args:
        dim: width of the network.
        reach: newest events that count.
    """

    def __init__(self, dim: int, reach: int) -> None:
        super().__init__()
        self.scale, self.reach = math.sqrt(dim), reach
        self.table = nn.Parameter(torch.zeros(NUM_BUCKETS))

    def by_age(self, count: int) -> Tensor:
        """[count], the term of an item that came last 0, 1, … events before the newest one."""
        age = torch.arange(1, count + 1, device=self.table.device, dtype=torch.float64)
        return self.scale * self.table[age.log2().long().clamp(max=NUM_BUCKETS - 1)]

    def after(self, events: Events, num_items: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the scores after each user's last event get on top: users [P], items [P], terms [P], no pair twice."""
        ends = events.cu_seqlens[1:].long()[events.users]
        age = ends - 1 - torch.arange(len(ends), device=ends.device)
        last = next_occurrences(events) == ends
        rows = (last & (age < self.reach) & (events.items < num_items)).nonzero().flatten()
        terms = self.by_age(int(age.max()) + 1 if len(age) else 0)
        return events.users[rows], events.items[rows], terms[age[rows]]


def next_occurrences(events: Events) -> Tensor:
    """[T], the row of the same user's next event with the same item; the end of the user's rows where there is none."""
    users, rows = events.users, torch.arange(len(events.items), device=events.items.device)
    following = events.cu_seqlens[1:].long()[users]
    order = (users * (int(events.items.max()) + 1 if len(rows) else 1) + events.items).argsort(stable=True)
    same = (users[order][1:] == users[order][:-1]) & (events.items[order][1:] == events.items[order][:-1])
    return following.index_copy(0, order[:-1][same], order[1:][same])
