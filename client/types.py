"""What goes into the client and what comes out: frozen values. No validation and no wire here (see `codec.py`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from longrec.protocol import Status

if TYPE_CHECKING:
    from longrec.catalogue import Catalogue

__all__ = ["Appended", "Event", "Events", "ModelInfo", "Options", "Prediction", "Scored"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a user did.

    Args:
        item: catalogue index, >= 0; one past the catalogue's end is served as an unknown item.
        time_ms: unix milliseconds. May run backwards: the order of the log is the order of arrival.
        position: place in the user's log, from 0: what the log already has is skipped, and another event there is a
            conflict. None: the client numbers it.
    """

    item: int
    time_ms: int
    position: int | None = None


Events: TypeAlias = Sequence[Event] | NDArray[np.int64]
"""Events, oldest first: `Event`s, or an int64 array [n, 3] with the columns position (-1: None), item, time_ms."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a prediction may be asked beside k and candidates. The server's model parameters limit each.

    Args:
        horizon: steps to predict; above 1 a rollout of the whole catalogue.
        beam: paths that a rollout keeps; 1: greedy.
        exclude_seen: leave out items of the user's log, and in a rollout those of its earlier steps.
        exclude: catalogue indices to leave out.
        categories: only items that have one of these; none: all items.
        explain: past events to name for each item.
        probabilities: scores are probabilities over the whole catalogue, not logits.
    """

    horizon: int = 1
    beam: int = 1
    exclude_seen: bool = False
    exclude: Sequence[int] = ()
    categories: Sequence[str] = ()
    explain: int = 0
    probabilities: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The items that a user is expected to choose next.

    Args:
        user: the key.
        items: [k] int64 catalogue indices, best first; shorter where fewer than k could be ranked. Of a rollout
            [horizon, k], never shorter: -1 stands where fewer could be ranked; items[s, 0] is step s of the best path.
        scores: float32, theirs: logits, or probabilities.
        position: length of the user's log, so the position that is predicted. Under `Status.GAP`: the position to send
            events from.
        status: `OK`; or `GAP`: the first event lay past the log's end; or `CONFLICT`: the log holds another event where
            one of them should stand. Under both nothing was written, and `items` is empty.
        because: int64, in the shape of `items` and [explain]: positions in the user's log of the events that weighed
            most for each item, heaviest first; -1 where there are fewer. None: not asked for.
    """

    user: str
    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    position: int
    status: Status = Status.OK
    because: NDArray[np.int64] | None = None

    def to_frame(self, catalogue: "Catalogue | None" = None, *, library: str = "polars") -> Any:
        """A polars (or pandas) frame, a row an item: user, position, step (of a rollout), rank, item, score.

        Args:
            catalogue: of the run that is served; adds the items' external ids and titles, as `id` and `title`.
            library: polars or pandas.

        Raises:
            ArgumentError: another library. ImportError: it isn't installed.
        """
        from longrec.client.frames import prediction_frame

        return prediction_frame(self, catalogue, library)


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Scores of the candidates that were given, in their order.

    Args:
        user: the key.
        candidates: [n] int64 catalogue indices.
        scores: [n] float32, logits or probabilities; -inf for one that may not be recommended or isn't there.
        position: length of the user's log.
    """

    user: str
    candidates: NDArray[np.int64]
    scores: NDArray[np.float32]
    position: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the server says of its model.

    Args:
        name: the model's.
        versions: of its weights, those that are served by name; none: as the server likes.
        max_users: most users of one request.
        settings: the model's parameters, such as max_k and durability, as text.
    """

    name: str
    versions: tuple[int, ...]
    max_users: int
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of events that were sent without asking for a prediction.

    Args:
        user: the key.
        length: of the user's log now. Under `Status.GAP`: the position to send events from.
        status: `OK`: the log has every event that was sent; `GAP`, `CONFLICT`: as `Prediction`'s, nothing was written.
    """

    user: str
    length: int
    status: Status = Status.OK
