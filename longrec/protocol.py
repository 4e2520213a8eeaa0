"""The wire: names, dtypes, shapes, limits and statuses of model `recommender`. No I/O, numpy only.

| input       | type, shape      | meaning                                                                     |
| ----------- | ---------------- | --------------------------------------------------------------------------- |
| `USER`      | BYTES [B, 1]     | the users' keys, 1..256 bytes of UTF-8                                      |
| `EVENT`     | INT64 [B, n, 3]  | new events, oldest first: position in the user's log (-1: append at the end,|
|             |                  | unchecked), catalogue index, unix ms. Item -1: no event (padding). n >= 0.  |
|             |                  | Of a model whose schema has C features of events, [B, n, 3 + c], c <= C:    |
|             |                  | the values' indices follow, in the schema's order; 0, or absent: unknown    |
| `CANDIDATE` | INT64 [B, c]     | catalogue indices to rank; c = 0: the whole catalogue                       |

| output    | type, shape              | meaning                                                                     |
| --------- | ------------------------ | --------------------------------------------------------------------------- |
| `ITEMS`   | INT64 [B, horizon, k]    | catalogue indices, best first; -1 where fewer than k                        |
| `SCORES`  | FP32 [B, horizon, k]     | their scores, -inf where ITEMS is -1                                        |
| `STATE`   | INT64 [B, 2]             | `Status`, and the length of the user's log now                              |
| `BECAUSE` | INT64 [B, horizon, k, m] | positions in the user's log of the m = `explain` events that weighed most   |
|           |                          | for each item, heaviest first; -1 where fewer. Only made if `explain` > 0   |

| request parameter | type, default     | meaning                                                                   |
| ----------------- | ----------------- | ------------------------------------------------------------------------- |
| `k`               | int, 10           | items wanted, 1..`max_k`                                                  |
| `horizon`         | int, 1            | steps wanted, 1..`max_horizon`. Above 1: a rollout, of the whole catalogue|
| `beam`            | int, 1            | paths that a rollout keeps, 1..`max_beam`; 1: greedy                      |
| `exclude_seen`    | bool, false       | leave out the items of the newest `max_seen` events of the user's log,    |
|                   |                   | and in a rollout the items of its earlier steps                           |
| `exclude`         | string, none      | leave out these items: a JSON array of catalogue indices, "[3, 17]", at   |
|                   |                   | most `max_excluded`                                                       |
| `categories`      | string, all       | only items that have one of these categories: a JSON array of names       |
| `explain`         | int, 0            | past events for each item, 0..`max_explain`, in output `BECAUSE`          |
| `scores`          | string, "logit"   | "logit", or "probability": softmax over the whole catalogue, before       |
|                   |                   | anything is left out                                                      |

Names in `max_…` are model parameters. Model parameter `schema`, where there is one, is the schema of the events in JSON
(`longrec.schema`): numbers are put into its buckets by who sends them, so that all features are integers here. What is
left out of the catalogue is left out of CANDIDATE too.

| status | what became of the events                                                                            |
| ------ | ---------------------------------------------------------------------------------------------------- |
| 0 OK   | the log holds all of them: new ones were appended, those it held already at their positions skipped  |
| 1 GAP  | the first one's position lies past the log's end; nothing was written: send from the log's length on |
| 2      | CONFLICT: the log holds another event (item or time; features aren't compared) at the position of  |
|        | one of them; nothing was written. Someone else writes this user, or the client counts wrongly. What  |
|        | the retention limit has dropped can't be compared, and counts as equal                               |

Under GAP and CONFLICT `ITEMS` are -1 and `SCORES` -inf.

A rollout's path is the one of the largest summed log-probability that beam search finds. ITEMS[s, 0] is the path's item
of step s; ITEMS[s, 1:] are the k - 1 other items that score best for step s after the path's items of the steps before,
best first. With beam = 1 that makes ITEMS[s] the k best, best first; with a wider one SCORES[s, 0] may be below
SCORES[s, 1]. A predicted event is taken to follow the one before after the median gap of the user's newest events.

`BECAUSE` ranks events by what they add to an item's score through the last layer's attention: the inner product of the
item's vector with the event's value, weighed by attention and projected back, summed over heads; what the feed-forward
and the final norm make of it is left out. The predicted event's own predecessor counts as any other.
"""

from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np

__all__ = [
    "ANY_EVENT",
    "BECAUSE",
    "CANDIDATE",
    "DEFAULT_K",
    "EVENT",
    "EVENT_COLUMNS",
    "INPUTS",
    "ITEMS",
    "MAX_CELLS",
    "MAX_USER_BYTES",
    "MODEL",
    "NO_ITEM",
    "OUTPUTS",
    "PARAMETERS",
    "PROTOCOL_VERSION",
    "SCORES",
    "STATE",
    "UNCHECKED_POSITION",
    "USER",
    "Status",
    "TensorSpec",
]

PROTOCOL_VERSION: Final = 1
MODEL: Final = "recommender"

USER: Final = "USER"
EVENT: Final = "EVENT"
CANDIDATE: Final = "CANDIDATE"
ITEMS: Final = "ITEMS"
SCORES: Final = "SCORES"
STATE: Final = "STATE"
BECAUSE: Final = "BECAUSE"

EVENT_COLUMNS: Final = ("position", "item", "time")
UNCHECKED_POSITION: Final = -1  # EVENT position: append at the end, whatever the log's length
NO_ITEM: Final = -1  # EVENT item: padding; ITEMS: fewer than k items could be ranked
MAX_USER_BYTES: Final = 256
DEFAULT_K: Final = 10
MAX_CELLS: Final = 1 << 14  # k * horizon * max(1, explain): numbers of one output for one user
PARAMETERS: Final = ("k", "horizon", "beam", "exclude_seen", "exclude", "categories", "explain", "scores")


class Status(IntEnum):
    """First element of `STATE`. Clients decide by it, never by a message's text."""

    OK = 0
    GAP = 1  # the first event lies past the log's end: nothing was written, send from `length` on
    CONFLICT = 2  # the log holds another event at one of the positions: nothing was written


class TensorSpec(NamedTuple):
    """One tensor of the wire. `dims` are without the batch dimension; -1 is free."""

    name: str
    dtype: type[np.generic]
    dims: tuple[int, ...]


ANY_EVENT: Final = TensorSpec(EVENT, np.int64, (-1, -1))  # of a model whose schema has features of events
INPUTS: Final = (
    TensorSpec(USER, np.object_, (1,)),
    TensorSpec(EVENT, np.int64, (-1, len(EVENT_COLUMNS))),
    TensorSpec(CANDIDATE, np.int64, (-1,)),
)
OUTPUTS: Final = (
    TensorSpec(ITEMS, np.int64, (-1, -1)),
    TensorSpec(SCORES, np.float32, (-1, -1)),
    TensorSpec(STATE, np.int64, (2,)),
    TensorSpec(BECAUSE, np.int64, (-1, -1, -1)),
)
