"""The wire: names, dtypes, shapes, limits and statuses of model `recommender`. No I/O, numpy only.

| input       | type, shape      | meaning                                                                     |
| ----------- | ---------------- | --------------------------------------------------------------------------- |
| `USER`      | BYTES [B, 1]     | the users' keys, 1..256 bytes of UTF-8                                      |
| `EVENT`     | INT64 [B, n, 3]  | new events, oldest first: position in the user's log (-1: append at the end,|
|             |                  | unchecked), catalogue index, unix ms. Item -1: no event (padding). n >= 0   |
| `CANDIDATE` | INT64 [B, c]     | catalogue indices to rank; c = 0: the whole catalogue                       |

| output   | type, shape            | meaning                                               |
| -------- | ---------------------- | ----------------------------------------------------- |
| `ITEMS`  | INT64 [B, horizon, k]  | catalogue indices, best first; -1 where fewer than k  |
| `SCORES` | FP32 [B, horizon, k]   | their scores (logits), -inf where ITEMS is -1         |
| `STATE`  | INT64 [B, 2]           | `Status`, and the length of the user's log now        |
"""

from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np

__all__ = [
    "CANDIDATE",
    "DEFAULT_K",
    "EVENT",
    "EVENT_COLUMNS",
    "INPUTS",
    "ITEMS",
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

EVENT_COLUMNS: Final = ("position", "item", "time")
UNCHECKED_POSITION: Final = -1  # EVENT position: append at the end, whatever the log's length
NO_ITEM: Final = -1  # EVENT item: padding; ITEMS: fewer than k items could be ranked
MAX_USER_BYTES: Final = 256
DEFAULT_K: Final = 10
PARAMETERS: Final = ("k", "horizon")  # request parameters that a server understands


class Status(IntEnum):
    """First element of `STATE`. Clients decide by it, never by a message's text."""

    OK = 0
    GAP = 1  # the first event lies past the log's end: nothing was written, send from `length` on


class TensorSpec(NamedTuple):
    """One tensor of the wire. `dims` are without the batch dimension; -1 is free."""

    name: str
    dtype: type[np.generic]
    dims: tuple[int, ...]


INPUTS: Final = (
    TensorSpec(USER, np.object_, (1,)),
    TensorSpec(EVENT, np.int64, (-1, len(EVENT_COLUMNS))),
    TensorSpec(CANDIDATE, np.int64, (-1,)),
)
OUTPUTS: Final = (
    TensorSpec(ITEMS, np.int64, (-1, -1)),
    TensorSpec(SCORES, np.float32, (-1, -1)),
    TensorSpec(STATE, np.int64, (2,)),
)
