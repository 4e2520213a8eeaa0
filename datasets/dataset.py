"""A dataset: every user's history in time order, as flat arrays, and its folder on disk. No splits, no batches.

On disk: `interactions.parquet` (columns user, item = catalogue index, time_ms, and those of the schema; a user's rows
together and in order), `catalogue.parquet`, `dataset.json`, and `attributes.parquet` if the schema has any of items.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from longrec.catalogue import Catalogue
from longrec.datasets.features import close
from longrec.errors import ArgumentError, CheckpointError, DataError
from longrec.parsing import parse_config
from longrec.schema import NO_FEATURES, UNKNOWN, EventCategory, EventNumber, Schema

__all__ = ["Dataset"]

INTERACTIONS, CATALOGUE, MANIFEST = "interactions.parquet", "catalogue.parquet", "dataset.json"
ATTRIBUTES = "attributes.parquet"
FORMAT = 1


@dataclass(frozen=True)
class Dataset:
    """Histories of U users, n events in all.

    Args:
        name: for people.
        users: [U] external keys.
        catalogue: the items.
        items: [n] int64, catalogue indices.
        times_ms: [n] int64, unix milliseconds; never falling within a user.
        indptr: [U + 1] int64; user u's events are rows indptr[u] to indptr[u + 1], oldest first.
        schema: the features of events and items, closed.
        columns: of the events' features that follow from no time, name -> [n]: of a category int64, the value's index
            (0: unknown); of a number float64, itself (NaN: unknown).
        attributes: the items' features, a row an item in index order, as `longrec.attributes.encode_attributes` takes
            them; None: the schema has none.
    """

    name: str
    users: Sequence[str]
    catalogue: Catalogue
    items: NDArray[np.int64]
    times_ms: NDArray[np.int64]
    indptr: NDArray[np.int64]
    schema: Schema = NO_FEATURES
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    attributes: pl.DataFrame | None = None

    def __len__(self) -> int:
        return len(self.items)

    def events(self, user: int, schema: Schema = NO_FEATURES) -> NDArray[np.int64]:
        """[n, 3 + C] int64: a user's history as the wire's EVENT has it: position, catalogue index, unix ms, features.

        Args:
            user: index into `users`.
            schema: of the model that shall get them, some of the dataset's features.
        """
        rows = slice(self.indptr[user], self.indptr[user + 1])
        items = self.items[rows]
        fixed = np.stack((np.arange(len(items)), items, self.times_ms[rows]), axis=1)
        return np.concatenate((fixed, self.context(schema, rows)), axis=1)

    def context(self, schema: Schema | None = None, rows: slice = slice(None)) -> NDArray[np.int64]:
        """[n, C] int64: the events' features as the wire has them, in the schema's order; 0: unknown.

        Args:
            schema: some of the features of the dataset's; None: all.

        Raises:
            DataError: the dataset lacks one, or has it with other values.
        """
        columns = []
        for name, feature in (schema or self.schema).columns.items():
            if self.schema.event.get(name) != feature:
                raise DataError(f"{self.name}: expected feature {name} as the model's schema has it; import it so")
            values = self.columns[name][rows]
            columns.append(values if isinstance(feature, EventCategory) else feature.indices(values))
        return np.stack(columns, axis=1) if columns else np.zeros((len(self.items[rows]), 0), np.int64)

    @classmethod
    def from_interactions(
        cls,
        name: str,
        frame: pl.DataFrame,
        titles: Mapping[str, str] | None = None,
        categories: Mapping[str, Sequence[str]] | None = None,
        schema: Schema = NO_FEATURES,
        attributes: pl.DataFrame | None = None,
    ) -> "Dataset":
        """Order interactions by user and time; equal times keep the order of the file.

        Users and items are numbered in the order in which the file first names them. Repeated interactions stay.

        Args:
            name: of the dataset.
            frame: columns user, item, time_ms as `readers.read_interactions` makes them, and the schema's as
                `features.read_event_features` does.
            titles: external item id -> title; an item without one shows its id.
            categories: external item id -> names of its categories; None: the data has none.
            schema: what there is beside; closed here, by what the data has.
            attributes: as `features.read_attributes` makes them, if the schema has features of items. Those of items
                without an interaction are left out.
        """
        users = frame["user"].unique(maintain_order=True)
        ids = frame["item"].unique(maintain_order=True)
        titles = titles or {}
        catalogue = Catalogue(
            ids.to_list(),
            [titles.get(item, item) for item in ids],
            () if categories is None else [list(categories.get(item, ())) for item in ids],
        )
        frame = (
            frame.join(pl.DataFrame({"user": users}).with_row_index("u"), on="user", maintain_order="left")
            .join(pl.DataFrame({"item": ids}).with_row_index("i"), on="item", maintain_order="left")
            .sort("u", "time_ms", maintain_order=True)
        )
        counts = np.bincount(frame["u"].to_numpy(), minlength=len(users))
        if attributes is not None:
            own = pl.DataFrame({"item": ids})
            attributes = own.join(attributes, on="item", how="left", maintain_order="left").drop("item")
        schema = close(schema, frame, attributes)
        return cls(
            name,
            users.to_list(),
            catalogue,
            frame["i"].cast(pl.Int64).to_numpy(writable=True),
            frame["time_ms"].cast(pl.Int64).to_numpy(writable=True),
            np.concatenate(([0], counts.cumsum())).astype(np.int64),
            schema,
            {name: _encoded(frame[name], feature) for name, feature in schema.columns.items()},
            attributes,
        )

    def save(self, folder: Path) -> None:
        """Write the three files; `dataset.json` last, so that a folder with one is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        user = pl.Series("user", list(self.users), dtype=pl.String).gather(
            np.repeat(np.arange(len(self.users)), np.diff(self.indptr))
        )
        columns = {"user": user, "item": self.items, "time_ms": self.times_ms, **self.columns}
        pl.DataFrame(columns).write_parquet(folder / INTERACTIONS)
        self.catalogue.save(folder / CATALOGUE)
        if self.attributes is not None:
            self.attributes.write_parquet(folder / ATTRIBUTES)
        sizes = {"users": len(self.users), "items": len(self.catalogue), "events": len(self)}
        manifest = {"format": FORMAT, "name": self.name, **sizes, "schema": self.schema.model_dump(mode="json")}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """Read a folder that `save` wrote.

        Raises:
            DataError: a file is missing or its contents don't fit the others'; the first misfit row is named.
        """
        for name in (MANIFEST, INTERACTIONS, CATALOGUE):
            if not (folder / name).is_file():
                raise DataError(f"{folder}: expected a dataset folder, {name} is missing; make one with `longrec data`")
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            version, name, events = manifest["format"], manifest["name"], manifest["events"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / MANIFEST}: expected keys format, name and events ({error!r})") from None
        if version != FORMAT:
            raise DataError(f"{folder / MANIFEST}: format={version}: expected {FORMAT}; import the data again")
        try:
            schema = parse_config(Schema, manifest.get("schema", {}), folder / MANIFEST)
            catalogue = Catalogue.load(folder / CATALOGUE)
            frame = pl.read_parquet(folder / INTERACTIONS, columns=["user", "item", "time_ms", *schema.columns])
            attributes = pl.read_parquet(folder / ATTRIBUTES, columns=[*schema.item]) if schema.item else None
        except (ArgumentError, CheckpointError, OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{folder}: {error}") from None
        if attributes is not None and len(attributes) != len(catalogue):
            raise DataError(f"{folder / ATTRIBUTES}: expected {len(catalogue)} rows; import the data again")
        if len(frame) != events or frame.null_count().sum_horizontal().item():
            raise DataError(f"{folder / INTERACTIONS}: expected {events} rows without nulls; import the data again")
        new_user = frame["user"] != frame["user"].shift(1, fill_value=None)
        starts = np.flatnonzero(new_user.fill_null(True).to_numpy())
        users = frame["user"].gather(starts)
        items = frame["item"].cast(pl.Int64).to_numpy(writable=True)
        times_ms = frame["time_ms"].cast(pl.Int64).to_numpy(writable=True)
        backwards = np.diff(times_ms, prepend=times_ms[:1]) < 0
        backwards[starts] = False
        for column, misfit in (
            ("user", users.n_unique() != len(users)),
            ("item", bool(len(items)) and not 0 <= items.min() <= items.max() < len(catalogue)),
            ("time_ms", bool(backwards.any())),
        ):
            if misfit:
                raise DataError(
                    f"{folder / INTERACTIONS}: column {column!r}: expected each user's rows together, in time order, "
                    f"and items below {len(catalogue)}; import the data again"
                )
        indptr = np.append(starts, len(frame)).astype(np.int64)
        columns = {name: frame[name].to_numpy(writable=True) for name in schema.columns}
        return cls(name, users.to_list(), catalogue, items, times_ms, indptr, schema, columns, attributes)


def _encoded(cells: pl.Series, feature: EventCategory | EventNumber) -> NDArray[Any]:
    """A column as `Dataset.columns` has it."""
    if isinstance(feature, EventCategory):
        cells = cells.replace_strict(feature.numbers, default=UNKNOWN, return_dtype=pl.Int64)
    else:
        cells = cells.fill_null(math.nan)
    encoded: NDArray[Any] = cells.to_numpy(writable=True)
    return encoded
