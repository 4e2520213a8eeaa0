"""What is known of events and items beside item and time: declared in a file, closed by the data, kept by checkpoints.

    [event.rating]                   # of an interaction
    kind = "category"                # one of a few values; also "number", "time_of_day", "weekday"
    column = "rating"                # where the files have it; the feature's own name if left out

    [item.genres]                    # of an item
    kind = "categories"              # any number of values; also "number", "vector", "triples"
    column = "class"

A file may leave out which values there are, and where a number's buckets end: the import of a data set finds them, and
the schema is closed then. Value 0 of an event's feature means that it is unknown: absent, or not among the values that
the schema was closed with. Unknown values of an item count for nothing.
"""

import json
import math
import sys
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, SupportsFloat, SupportsIndex

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from longrec.errors import ArgumentError
from longrec.parsing import parse_config

__all__ = [
    "NO_FEATURES",
    "UNKNOWN",
    "EventCategory",
    "EventFeature",
    "EventNumber",
    "ItemCategories",
    "ItemFeature",
    "ItemNumber",
    "ItemTriples",
    "ItemVector",
    "Schema",
    "TimeOfDay",
    "Weekday",
    "closed_values",
    "text_of",
]

UNKNOWN: Final = 0
DAY_MS: Final = 86_400_000
THURSDAY: Final = 3  # the weekday of the first of January 1970, Monday being 0
MOST_VALUES: Final = 1 << 20


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values) or "" in values:
        raise ValueError("values that differ, none of them empty")
    return values


def _rising(edges: tuple[float, ...]) -> tuple[float, ...]:
    if not all(math.isfinite(edge) for edge in edges) or any(a >= b for a, b in pairwise(edges)):
        raise ValueError("finite numbers that rise")
    return edges


Values = Annotated[tuple[str, ...], Field(max_length=MOST_VALUES), AfterValidator(_distinct)]
Edges = Annotated[tuple[float, ...], AfterValidator(_rising)]


class _Feature(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class _Numbers(_Feature):
    """A number by the bucket it falls into.

    Args:
        column: where files have it; empty: the feature's name.
        buckets: how many, where the data shall choose the edges: each gets about as many of its numbers.
        edges: between buckets, rising: number x is in bucket 1 + the number of edges <= x. None yet: the data chooses.
    """

    kind: Literal["number"]
    column: str = ""
    buckets: Annotated[int, Field(ge=2, le=1024)] = 16
    edges: Edges | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the edges are known."""
        return self.edges is not None

    @property
    def size(self) -> int:
        """Buckets; the unknown one isn't counted."""
        return len(self.edges or ()) + 1

    def index(self, value: object) -> int:
        """Bucket of a number, from 1; `UNKNOWN` for None and NaN.

        Raises:
            TypeError: it is no number.
        """
        if value is None:
            return UNKNOWN
        if isinstance(value, bool) or not isinstance(value, SupportsFloat):
            raise TypeError("a number")
        number = float(value)
        return UNKNOWN if math.isnan(number) else 1 + bisect_right(self.edges or (), number)

    def value(self, index: int) -> float:
        """A number in a bucket."""
        edges = self.edges or (0.0,)
        return edges[index - 2] if index > 1 else float(np.nextafter(edges[0], -math.inf))

    def indices(self, numbers: NDArray[np.float64]) -> NDArray[np.int64]:
        """Buckets [n] of numbers [n], as `index`."""
        found = 1 + np.searchsorted(self.edges or (), numbers, side="right")
        return np.where(np.isnan(numbers), UNKNOWN, found)


class _Values(_Feature):
    """Text out of a closed set.

    Args:
        column: where files have it; empty: the feature's name.
        values: what there is; value i stands at index i + 1. None yet: those that the data has.
        at_least: a value that the data has less often becomes unknown.
    """

    column: str = ""
    values: Values | None = None
    at_least: Annotated[int, Field(ge=1)] = 1

    @property
    def is_closed(self) -> bool:
        """Whether the values are known."""
        return self.values is not None

    @property
    def size(self) -> int:
        """Values; the unknown one isn't counted."""
        return len(self.values or ())

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Value -> index, from 1."""
        return {value: index for index, value in enumerate(self.values or (), 1)}

    def index(self, value: object) -> int:
        """Index of a value, from 1; `UNKNOWN` for None, and for what isn't among the values.

        Raises:
            TypeError: it is neither text nor an integer.
        """
        return UNKNOWN if value is None else self.numbers.get(text_of(value), UNKNOWN)

    def value(self, index: int) -> str:
        """The value at an index from 1."""
        return (self.values or ())[index - 1]


class EventCategory(_Values):
    """One of a few values, such as the action, the device or a rating: each has a vector."""

    kind: Literal["category"]


class EventNumber(_Numbers):
    """A number, such as seconds watched or a price."""


class TimeOfDay(_Feature):
    """The hour of the event's time, in UTC: nothing in files or on the wire."""

    kind: Literal["time_of_day"]
    size: ClassVar[int] = 24

    def indices(self, times_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """1..24 of unix milliseconds [n]."""
        return times_ms // (DAY_MS // 24) % 24 + 1


class Weekday(_Feature):
    """The weekday of the event's time, in UTC: nothing in files or on the wire."""

    kind: Literal["weekday"]
    size: ClassVar[int] = 7

    def indices(self, times_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """1..7 of unix milliseconds [n]; Monday is 1."""
        return (times_ms // DAY_MS + THURSDAY) % 7 + 1


class ItemCategories(_Values):
    """Any number of values, such as genres.

    Args:
        separator: between the names in a cell of a text file.
    """

    kind: Literal["categories"]
    separator: Annotated[str, Field(min_length=1)] = "|"


class ItemNumber(_Numbers):
    """A number, such as a year or a price."""


class ItemVector(_Feature):
    """Numbers that something else has computed, such as an embedding of a description; the network learns a linear map.

    Args:
        file: `.npy` [items, width], whose rows stand as those of the item file; or Parquet with a list an item.
        item, column: its columns, of Parquet; `item` empty: as the item file calls it.
        width: of a vector; 0: not known yet.
    """

    kind: Literal["vector"]
    file: str
    item: str = ""
    column: str = ""
    width: Annotated[int, Field(ge=0, le=1 << 16)] = 0

    @property
    def is_closed(self) -> bool:
        """Whether the width is known."""
        return self.width > 0


class ItemTriples(_Values):
    """Facts of a knowledge graph: what an item is joined to, and by which relation, is a value `relation tail`.

    Args:
        file: with a fact a row.
        head, relation, tail: its columns. `column` means nothing here.
        links: file that says which entity an item is; empty: heads are items.
        link_item, link_entity: its columns.
    """

    kind: Literal["triples"]
    file: str
    head: str = "head_id"
    relation: str = "relation_id"
    tail: str = "tail_id"
    links: str = ""
    link_item: str = "item_id"
    link_entity: str = "entity_id"
    at_least: Annotated[int, Field(ge=1)] = 2


EventFeature = EventCategory | EventNumber | TimeOfDay | Weekday
ItemFeature = ItemCategories | ItemNumber | ItemVector | ItemTriples
Name = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
RESERVED: Final = ("position", "user", "item", "title", "time", "time_ms")


class Schema(_Feature):
    """Features by name, in the order of the file; empty: item and time alone.

    Args:
        event: of interactions.
        item: of items.
    """

    event: Mapping[Name, Annotated[EventFeature, Field(discriminator="kind")]] = {}
    item: Mapping[Name, Annotated[ItemFeature, Field(discriminator="kind")]] = {}

    @model_validator(mode="after")
    def _names(self) -> "Schema":
        for name in (*self.event, *self.item):
            if name in RESERVED:
                raise ValueError(f"another name than {name}")
        return self

    @property
    def is_closed(self) -> bool:
        """Whether all values, edges and widths are known."""
        features = [*self.columns.values(), *self.item.values()]
        return all(feature.is_closed for feature in features)

    @cached_property
    def columns(self) -> Mapping[str, EventCategory | EventNumber]:
        """The events' features that files, wire and log hold, a column each; the others follow from the time."""
        return {name: one for name, one in self.event.items() if isinstance(one, EventCategory | EventNumber)}

    @property
    def num_event_values(self) -> int:
        """Values of all of the events' features, the unknown one of each among them."""
        return sum(feature.size + 1 for feature in self.event.values())

    @property
    def num_item_values(self) -> int:
        """Values of all of the items' features that have any."""
        return sum(feature.size for feature in self.item.values() if not isinstance(feature, ItemVector))

    @property
    def of_events(self) -> "Schema":
        """The part that who sends events needs."""
        return Schema(event=self.event)

    def misread(self, older: "Schema") -> str:
        """The first column that would mean another thing in events which were written by an `older` schema; "": none.

        Columns, and values of a category, may be appended or left out at the end.
        """
        for (name, new), (old_name, old) in zip(self.columns.items(), older.columns.items(), strict=False):
            if name != old_name:
                return old_name
            if isinstance(new, EventCategory) and isinstance(old, EventCategory):
                mine, theirs = new.values or (), old.values or ()
                shorter = min(len(mine), len(theirs))
                if mine[:shorter] != theirs[:shorter]:
                    return name
            elif new != old:
                return name
        return ""

    def pick(self, names: Collection[str]) -> "Schema":
        """Only the features of these names.

        Raises:
            ArgumentError: there is no feature of a name.
        """
        strangers = set(names) - {*self.event, *self.item}
        if strangers:
            known = ", ".join((*self.event, *self.item)) or "none: the data was imported without"
            raise ArgumentError(f"features={min(strangers)}", f"features of the schema ({known})")
        return Schema(
            event={name: one for name, one in self.event.items() if name in names},
            item={name: one for name, one in self.item.items() if name in names},
        )

    def indices(self, features: Mapping[str, object], argument: str) -> list[int]:
        """An event's columns, as the wire has them.

        Args:
            features: name -> value; what is left out is unknown.
            argument: what errors call it.

        Raises:
            ArgumentError: there is no such feature, or a value is of another type.
        """
        strangers = features.keys() - self.columns.keys()
        if strangers:
            known = ", ".join(self.columns) or "none: the model was trained without"
            raise ArgumentError(f"{argument}[{min(strangers)!r}]", f"one of the model's features ({known})")
        row = []
        for name, feature in self.columns.items():
            value = features.get(name)
            try:
                row.append(feature.index(value))
            except TypeError as error:
                raise ArgumentError(f"{argument}[{name!r}]", str(error), got=type(value).__name__) from None
        return row

    def values(self, indices: Sequence[int]) -> dict[str, object]:
        """What `indices` turns into these columns: of a number, one in its bucket; what is unknown is left out."""
        columns = zip(self.columns.items(), indices, strict=False)
        return {name: feature.value(index) for (name, feature), index in columns if index != UNKNOWN}

    def to_json(self) -> str:
        """As one line that `Schema.from_json` reads."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str, source: str | Path) -> "Schema":
        """Read what `to_json` wrote, or a schema file in JSON.

        Raises:
            ArgumentError: it is none; the field is named.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ArgumentError(str(source), f"JSON ({error})") from None
        return parse_config(cls, values, source)

    @classmethod
    def load(cls, path: Path) -> "Schema":
        """Read a schema file, TOML or JSON by its suffix.

        Raises:
            ArgumentError: there is no such file, or it is none; the field is named.
        """
        if not path.is_file():
            raise ArgumentError(f"schema={path}", "a file (.toml or .json)", got="none")
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return cls.from_json(text, path)
        if path.suffix != ".toml":
            raise ArgumentError(f"schema={path}", "a file of suffix .toml or .json")
        toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
        try:
            values = toml.loads(text)
        except toml.TOMLDecodeError as error:
            raise ArgumentError(str(path), f"TOML ({error})") from None
        return parse_config(cls, values, path)


NO_FEATURES: Final = Schema()


def text_of(value: object) -> str:
    """A value as the schema spells it: whole numbers in decimal, floats of whole numbers too.

    Raises:
        TypeError: it is neither text nor a whole number.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        raise TypeError("text or an integer")
    if isinstance(value, SupportsIndex):
        return str(index(value))
    if isinstance(value, SupportsFloat) and (number := float(value)).is_integer():
        return str(int(number))
    raise TypeError("text or an integer")


def closed_values(counts: Sequence[tuple[str, int]], at_least: int) -> tuple[str, ...]:
    """The values that occur often enough, in order; numbers among themselves by their size."""
    kept = [value for value, count in counts if count >= at_least]
    return tuple(sorted(kept, key=lambda value: (not value.isdecimal(), len(value) if value.isdecimal() else 0, value)))
