"""What goes into the client and what comes out: frozen values. No validation and no wire here (see `codec.py`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from longrec.client.ids import names_of
from longrec.errors import ArgumentError
from longrec.protocol import Status

if TYPE_CHECKING:
    from longrec.catalogue import Catalogue
    from longrec.schema import Schema

__all__ = ["Appended", "Event", "Events", "Items", "ModelInfo", "Options", "Prediction", "Scored"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a user did.

    Args:
        item: catalogue index, >= 0; one past the catalogue's end is served as an unknown item. With a client that has a
            catalogue: the item's id.
        time_ms: unix milliseconds. May run backwards: the order of the log is the order of arrival.
        position: place in the user's log, from 0: what the log already has is skipped, and another event there is a
            conflict. None: the client numbers it.
        features: what else is known of it, by the names of the model's schema (`Client.schema`); what is left out is
            unknown.
    """

    item: int | str
    time_ms: int
    position: int | None = None
    features: Mapping[str, object] | None = field(default=None, hash=False)


Events: TypeAlias = Sequence[Event] | NDArray[np.int64]
"""Events, oldest first: `Event`s, or an int64 array [n, 3 + c] with the columns position (-1: None), item as a
catalogue index, time_ms, and indices of features' values in the schema's order (`Dataset.events` gives such)."""

Items: TypeAlias = Sequence[int] | Sequence[str] | NDArray[np.int64]
"""Items: catalogue indices; or, with a client that has a catalogue, ids. An integer array holds indices in any case."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a prediction may be asked beside k and candidates. The server's model parameters limit each.

    Args:
        horizon: steps to predict; above 1 a rollout of the whole catalogue.
        beam: paths that a rollout keeps; 1: greedy.
        exclude_seen: leave out items of the user's log, and in a rollout those of its earlier steps.
        exclude: items to leave out.
        categories: only items that have one of these; none: all items.
        explain: past events to name for each item.
        probabilities: scores are probabilities over the whole catalogue, not logits.
    """

    horizon: int = 1
    beam: int = 1
    exclude_seen: bool = False
    exclude: Items = ()
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
        catalogue: of the client that asked; None: it has none.
    """

    user: str
    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    position: int
    status: Status = Status.OK
    because: NDArray[np.int64] | None = None
    catalogue: "Catalogue | None" = field(default=None, repr=False)

    @property
    def ids(self) -> NDArray[np.object_]:
        """The items' ids, strings in the shape of `items`; None where an item is -1.

        Raises:
            ArgumentError: the client has no catalogue, or not that of the run that is served.
        """
        catalogue = _required(self.catalogue)
        return names_of(self.items, catalogue.ids, catalogue)

    @property
    def titles(self) -> NDArray[np.object_]:
        """The items' titles; shape and errors as `ids`."""
        catalogue = _required(self.catalogue)
        return names_of(self.items, catalogue.titles, catalogue)

    def to_frame(self, catalogue: "Catalogue | None" = None, *, library: str = "polars") -> Any:
        """A polars (or pandas) frame, a row an item: user, position, step (of a rollout), rank, item, score.

        Args:
            catalogue: of the run that is served; adds the items' external ids and titles, as `id` and `title`.
                None: the client's, if it has one.
            library: polars or pandas.

        Raises:
            ArgumentError: another library, or catalogue. ImportError: the library isn't installed.
        """
        from longrec.client.frames import prediction_frame

        return prediction_frame(self, self.catalogue if catalogue is None else catalogue, library)


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Scores of the candidates that were given, in their order.

    Args:
        user: the key.
        candidates: [n] int64 catalogue indices.
        scores: [n] float32, logits or probabilities; -inf for one that may not be recommended or isn't there.
        position: length of the user's log.
        catalogue: as `Prediction`'s.
    """

    user: str
    candidates: NDArray[np.int64]
    scores: NDArray[np.float32]
    position: int
    catalogue: "Catalogue | None" = field(default=None, repr=False)

    @property
    def ids(self) -> NDArray[np.object_]:
        """The candidates' ids; as `Prediction.ids`."""
        catalogue = _required(self.catalogue)
        return names_of(self.candidates, catalogue.ids, catalogue)

    @property
    def titles(self) -> NDArray[np.object_]:
        """The candidates' titles; as `Prediction.ids`."""
        catalogue = _required(self.catalogue)
        return names_of(self.candidates, catalogue.titles, catalogue)


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

    @property
    def schema(self) -> "Schema":
        """The features of events that it was trained with.

        Raises:
            ArgumentError: it isn't one that this library reads.
        """
        from longrec.schema import NO_FEATURES, Schema

        text = self.settings.get("schema")
        return NO_FEATURES if text is None else Schema.from_json(text, f"schema of model {self.name}")


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


def _required(catalogue: "Catalogue | None") -> "Catalogue":
    if catalogue is None:
        raise ArgumentError("catalogue", "a client that was given one", got="None", remedy="Client(catalogue=…)")
    return catalogue
