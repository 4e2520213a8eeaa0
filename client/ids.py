"""Items by the data set's own ids: what a client that has a catalogue takes and gives. Imports no polars before a file
is read.

Integer arrays hold catalogue indices, with a catalogue too; everything else holds ids then. Ids are text; an integer
stands for its decimal digits.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from longrec.catalogue import CATALOGUE, Catalogue
from longrec.errors import ArgumentError

if TYPE_CHECKING:
    from longrec.client.types import Items

__all__ = ["check_indices", "index_of", "indices_of", "item_indices", "load_catalogue", "names_of", "unknown_ids"]

SHOWN: Final = 5  # unknown ids that an error names
SHOWN_CHARACTERS: Final = 40  # of each


def load_catalogue(source: "Catalogue | str | Path | None") -> Catalogue | None:
    """The catalogue that a client was given: itself, its file, or the folder of the run that is served.

    Raises:
        ArgumentError: it is none of these. CheckpointError: the file isn't a catalogue.
    """
    if source is None or isinstance(source, Catalogue):
        return source
    expected = f"a Catalogue, a run's folder or its {CATALOGUE}, or None"
    if not isinstance(source, (str, Path)):
        raise ArgumentError("catalogue", expected, got=type(source).__name__)
    path = Path(source)
    file = path / CATALOGUE if path.is_dir() else path
    if not file.is_file():
        raise ArgumentError(f"catalogue={str(source)!r}", expected, got="a path where there is no such file")
    return Catalogue.load(file)


def index_of(argument: str, item: Any, catalogue: Catalogue) -> int | None:
    """Index of an id; None: the catalogue doesn't have it.

    Raises:
        ArgumentError: it is neither text nor an integer.
    """
    if isinstance(item, str):
        return catalogue.index.get(item)
    if isinstance(item, (int, np.integer)) and not isinstance(item, bool):
        return catalogue.index.get(str(item))
    raise ArgumentError(argument, "an id, a string or an integer", got=type(item).__name__)


def indices_of(argument: str, items: Iterable[Any], catalogue: Catalogue) -> NDArray[np.int64]:
    """Indices [n] of ids.

    Raises:
        ArgumentError: one is no id, or some aren't in the catalogue.
    """
    items = list(items)
    found = [index_of(f"{argument}[{place}]", item, catalogue) for place, item in enumerate(items)]
    unknown = [item for item, index in zip(items, found, strict=True) if index is None]
    if unknown:
        raise unknown_ids(argument, unknown, catalogue)
    return np.array(found, np.int64)


def item_indices(argument: str, values: "Items", catalogue: Catalogue | None) -> NDArray[np.int64]:
    """Indices [n] of items as the caller gives them.

    Raises:
        ArgumentError: they are no items, there is none, or the catalogue lacks some.
    """
    are_ids = catalogue is not None and not (isinstance(values, np.ndarray) and values.dtype.kind in "iu")
    expected = f"{'ids' if are_ids else 'catalogue indices >= 0'} in one dimension, at least one"
    if argument == "candidates":
        expected += " (None: the whole catalogue)"
    try:
        indices = np.asarray(values)
    except ValueError:  # ragged
        raise ArgumentError(argument, expected, got=type(values).__name__) from None
    if not indices.size:
        raise ArgumentError(argument, expected, got="none")
    if indices.ndim != 1 or (indices.dtype.kind not in "iu" and not are_ids):
        raise ArgumentError(argument, expected, got=f"{indices.dtype} {list(indices.shape)}")
    if are_ids:
        assert catalogue is not None
        return indices_of(argument, values, catalogue)
    if indices.min() < 0 or indices.max() > np.iinfo(np.int64).max:
        raise ArgumentError(argument, expected, got="an integer outside 0..2**63 - 1")
    check_indices(argument, indices, catalogue)
    return indices.astype(np.int64, copy=False)


def check_indices(argument: str, indices: NDArray[Any], catalogue: Catalogue | None) -> None:
    """Check that the catalogue, if there is one, has these indices.

    Raises:
        ArgumentError: it doesn't.
    """
    if catalogue is not None and len(indices) and indices.max() >= len(catalogue):
        raise ArgumentError(argument, f"indices of the catalogue, 0..{len(catalogue) - 1}", got="a larger one")


def unknown_ids(argument: str, unknown: Sequence[Any], catalogue: Catalogue) -> ArgumentError:
    """What to say of ids that aren't in the catalogue: the first few."""
    first = ", ".join(repr(item)[:SHOWN_CHARACTERS] for item in dict.fromkeys(unknown[:SHOWN]))
    more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
    return ArgumentError(
        argument,
        f"ids of the catalogue, which has {len(catalogue)}",
        got=first + more,
        remedy="leave them out, or give the catalogue of the run that is served",
    )


def names_of(items: NDArray[np.int64], names: Sequence[str], catalogue: Catalogue) -> NDArray[np.object_]:
    """Names of items, in their shape; None where an item is -1.

    Raises:
        ArgumentError: an index lies past the catalogue's end.
    """
    if items.size and items.max() >= len(catalogue):
        raise ArgumentError(
            "catalogue",
            "that of the run that is served",
            got=f"one of {len(catalogue)} items, where the server recommends item {items.max()}",
        )
    found = np.empty(items.size, np.object_)
    found[:] = [names[item] if item >= 0 else None for item in items.ravel().tolist()]
    return found.reshape(items.shape)
