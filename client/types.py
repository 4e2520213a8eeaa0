"""What goes into the client and what comes out: frozen values. No validation and no wire here (see `codec.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from longrec.protocol import Status

__all__ = ["Appended", "Event", "Events", "Prediction"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a user did.

    Args:
        item: catalogue index, >= 0; one past the catalogue's end is served as an unknown item.
        time_ms: unix milliseconds. May run backwards: the order of the log is the order of arrival.
        position: place in the user's log, from 0. With it a retry is harmless: what the log already has is skipped.
            None: append at the end, whatever is there; then a retry may append twice.
    """

    item: int
    time_ms: int
    position: int | None = None


Events: TypeAlias = Sequence[Event] | NDArray[np.int64]
"""Events, oldest first: `Event`s, or an int64 array [n, 3] with the columns position (-1: None), item, time_ms."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The items that a user is expected to choose next.

    Args:
        user: the key.
        items: [k] int64 catalogue indices, best first; shorter where fewer than k could be ranked.
        scores: [k] float32, theirs: logits.
        position: length of the user's log, so the position that is predicted. Under `Status.GAP`: the position to send
            events from.
        status: `OK`; or `GAP`: the first event lay past the log's end, nothing was written, and `items` is empty.
    """

    user: str
    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    position: int
    status: Status = Status.OK


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of events that were sent without asking for a prediction.

    Args:
        user: the key.
        length: of the user's log now. Under `Status.GAP`: the position to send events from.
        status: `OK`: the log has every event that was sent; or `GAP`: nothing was written.
    """

    user: str
    length: int
    status: Status = Status.OK
