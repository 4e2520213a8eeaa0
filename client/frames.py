"""Data frames in and out, polars or pandas, whichever the caller has: both are imported here alone, and late."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longrec.client.ids import indices_of, names_of
from longrec.errors import ArgumentError
from longrec.protocol import UNCHECKED_POSITION

if TYPE_CHECKING:
    from longrec.catalogue import Catalogue
    from longrec.client.types import Events, Prediction

__all__ = ["prediction_frame", "requests_of"]

EVENT_NAMES = {"item", "time_ms"}


def requests_of(
    source: "Iterable[str | tuple[str, Events]] | Any", catalogue: "Catalogue | None" = None
) -> "Iterator[tuple[str, Events]]":
    """(user, events) of each request of an iterable, or of each user of a data frame.

    A frame has a column `user`, and for events `item` and `time_ms`, and `position` where the caller numbers them; a
    user's rows are oldest first. With a catalogue `item` holds ids.

    Raises:
        ArgumentError: an entry or a column isn't as it should be.
    """
    if hasattr(source, "columns") and hasattr(source, "__getitem__"):
        yield from _of_frame(source, catalogue)
        return
    if isinstance(source, (str, bytes)) or not isinstance(source, Iterable):
        raise ArgumentError("requests", "an iterable of users or (user, events), or a frame", got=type(source).__name__)
    for row, entry in enumerate(source):
        if isinstance(entry, str):
            yield entry, ()
        elif isinstance(entry, tuple) and len(entry) == 2:
            yield entry
        else:
            raise ArgumentError(f"requests[{row}]", "a user, or (user, events)", got=type(entry).__name__)


def prediction_frame(prediction: "Prediction", catalogue: "Catalogue | None", library: str) -> Any:
    """See `Prediction.to_frame`."""
    if library not in ("polars", "pandas"):
        raise ArgumentError(f"library={library!r}", "polars or pandas")
    items = np.atleast_2d(prediction.items)
    steps, ranks = (np.broadcast_to(place, items.shape) for place in np.ogrid[: items.shape[0], : items.shape[1]])
    real = items >= 0
    columns: dict[str, Any] = {
        "user": [prediction.user] * int(real.sum()),
        "position": np.full(int(real.sum()), prediction.position),
        "step": steps[real],
        "rank": ranks[real],
        "item": items[real],
        "score": np.atleast_2d(prediction.scores)[real],
    }
    if catalogue is not None:
        columns["id"] = names_of(items[real], catalogue.ids, catalogue).tolist()
        columns["title"] = names_of(items[real], catalogue.titles, catalogue).tolist()
    if library == "pandas":
        import pandas  # type: ignore[import-untyped, unused-ignore]

        return pandas.DataFrame(columns)
    import polars

    return polars.DataFrame(columns)


def _of_frame(frame: Any, catalogue: "Catalogue | None") -> "Iterator[tuple[str, Events]]":
    names = set(map(str, frame.columns))
    if "user" not in names or (names & {*EVENT_NAMES, "position"} and not names >= EVENT_NAMES):
        expected = "columns user, and for events item and time_ms"
        raise ArgumentError("requests", expected, got=", ".join(sorted(names)) or "none")
    users = list(frame["user"])
    if not names & EVENT_NAMES:
        yield from ((user, ()) for user in users)
        return
    items = _integers(frame, "item") if catalogue is None else indices_of("requests['item']", frame["item"], catalogue)
    first = _integers(frame, "position") if "position" in names else np.full(len(users), UNCHECKED_POSITION)
    rows = np.column_stack((first, items, _integers(frame, "time_ms")))
    places: dict[str, list[int]] = {}
    for place, user in enumerate(users):
        places.setdefault(user, []).append(place)
    for user, own in places.items():
        yield user, rows[own]


def _integers(frame: Any, name: str) -> NDArray[np.int64]:
    values = np.asarray(frame[name])
    if values.dtype.kind not in "iu":
        raise ArgumentError(f"requests[{name!r}]", "integers", got=str(values.dtype))
    return values.astype(np.int64)
