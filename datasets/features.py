"""Features of events and items out of files, as a schema declares them; and the schema, closed by what the files have.

Nothing is dropped in silence: an empty cell is unknown, a cell of another type is refused with its row named.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from longrec.datasets.keys import key_text
from longrec.datasets.readers import (
    MOVIELENS_INTERACTIONS,
    MOVIELENS_TITLES,
    Format,
    format_of,
    read_columns,
    require,
)
from longrec.errors import DataError
from longrec.schema import (
    EventCategory,
    EventFeature,
    EventNumber,
    ItemCategories,
    ItemFeature,
    ItemNumber,
    ItemTriples,
    ItemVector,
    Schema,
    closed_values,
)

__all__ = ["close", "read_attributes", "read_event_features"]


def read_event_features(path: Path, schema: Schema, *, kind: Format | None = None) -> pl.DataFrame:
    """The columns of the events' features, a row an interaction, in file order: text, or Float64; null where unknown.

    Raises:
        ArgumentError, DataError: as `readers.read_interactions`.
    """
    kind = kind or format_of(path)
    if not schema.columns:
        return pl.DataFrame()
    frame = read_columns(path, kind, _columns(schema.columns), MOVIELENS_INTERACTIONS)
    return frame.select(_typed(path, kind, name, frame[name], feature) for name, feature in schema.columns.items())


def read_attributes(
    path: Path | None, item: str, schema: Schema, folder: Path, *, kind: Format | None = None
) -> pl.DataFrame:
    """The items' features: a row an item that has any, `item` its id.

    Args:
        path: the item file, which says which items there are. None: only features that have files of their own are
            declared, and any item of these counts.
        item: its column of ids.
        schema: what to read.
        folder: which the schema's files are relative to.

    Returns:
        Columns `item` (String) and the features' names: lists of text, Float64, or lists of Float32; null: unknown.

    Raises:
        ArgumentError, DataError: as `readers.read_interactions`; also an item that is listed twice, and vectors of
            different widths.
    """
    frame = pl.DataFrame(schema={"item": pl.String})
    own = {name: one for name, one in schema.item.items() if isinstance(one, ItemCategories | ItemNumber)}
    if path is not None:
        kind = kind or format_of(path)
        raw = read_columns(path, kind, {"item": item, **_columns(own)}, MOVIELENS_TITLES)
        frame = pl.DataFrame([_ids(path, kind, item, raw["item"])])
        frame = frame.with_columns(
            _names(path, kind, name, raw[name], one)
            if isinstance(one, ItemCategories)
            else _typed(path, kind, name, raw[name], one)
            for name, one in own.items()
        )
    elif own:
        raise DataError(f"items: expected an item file with the columns of {', '.join(own)}, got none")
    for name, feature in schema.item.items():
        if isinstance(feature, ItemTriples):
            table = _facts(folder, name, feature)
        elif isinstance(feature, ItemVector):
            table = _vectors(folder, name, feature, item, frame["item"])
        else:
            continue
        if path is None:
            frame = frame.join(table, on="item", how="full", coalesce=True)
        else:
            frame = frame.join(table, on="item", how="left", maintain_order="left")
    return frame.select("item", *schema.item)


def close(schema: Schema, events: pl.DataFrame, attributes: pl.DataFrame | None) -> Schema:
    """The schema with the values, edges and widths that it leaves open taken from the data.

    Args:
        events: of `read_event_features`. attributes: of `read_attributes`, of the items that count.

    Raises:
        DataError: vectors have no width, or several.
    """
    closed: dict[str, dict[str, EventFeature | ItemFeature]] = {"event": {}, "item": {}}
    if attributes is None:
        if schema.item:
            raise DataError(f"items: expected the features {', '.join(schema.item)}, got no items' features at all")
        attributes = pl.DataFrame()
    for part, features, frame in (("event", schema.event, events), ("item", schema.item, attributes)):
        for name, feature in features.items():
            update: dict[str, object] = {}
            if isinstance(feature, EventCategory | ItemCategories | ItemTriples) and not feature.is_closed:
                counts = frame[name].explode().drop_nulls().value_counts(sort=True)
                update = {"values": closed_values(list(counts.iter_rows()), feature.at_least)}
            elif isinstance(feature, EventNumber | ItemNumber) and not feature.is_closed:
                update = {"edges": _quantiles(frame[name].drop_nulls().to_numpy(), feature.buckets)}
            elif isinstance(feature, ItemVector):
                widths = frame[name].drop_nulls().list.len().unique().to_list()
                if len(widths) != 1 or feature.width not in (0, widths[0]):
                    expected = f"{feature.width} numbers" if feature.width else "as many numbers for each item"
                    got = " and ".join(map(str, sorted(widths))) or "none"
                    raise DataError(
                        f"{feature.file}: column {feature.column or name!r}: expected {expected}, got {got}"
                    )
                update = {"width": widths[0]}
            closed[part][name] = feature.model_copy(update=update)
    return Schema.model_validate(closed)


def _quantiles(numbers: NDArray[np.float64], buckets: int) -> tuple[float, ...]:
    """Edges between buckets of about equal shares; fewer where numbers repeat."""
    if not len(numbers):
        return ()
    edges = np.unique(np.quantile(numbers, np.arange(1, buckets) / buckets))
    return tuple(edges[edges > numbers.min()].tolist())


def _columns(features: Mapping[str, EventCategory | EventNumber | ItemCategories | ItemNumber]) -> dict[str, str]:
    return {name: feature.column or name for name, feature in features.items()}


def _typed(
    path: Path, kind: Format, name: str, cells: pl.Series, feature: EventCategory | EventNumber | ItemNumber
) -> pl.Series:
    """Text, or Float64; null where the cell is empty."""
    column = feature.column or name
    empty = cells.is_null()
    if isinstance(feature, EventCategory):
        text = key_text(cells)
        require(path, kind, column, empty | text.is_not_null(), "text or a whole number, or an empty cell")
        return pl.select(pl.when(text != "").then(text)).to_series().alias(name)
    if cells.dtype == pl.String:
        cells = cells.str.strip_chars()
        empty = empty | (cells == "").fill_null(False)
    numeric = cells.dtype.is_numeric() or cells.dtype == pl.String
    numbers = cells.cast(pl.Float64, strict=False) if numeric else pl.Series([None] * len(cells), dtype=pl.Float64)
    require(path, kind, column, empty | numbers.is_finite().fill_null(False), "a finite number, or an empty cell")
    return numbers.alias(name)


def _ids(path: Path, kind: Format, column: str, cells: pl.Series) -> pl.Series:
    """An item file's ids."""
    ids = key_text(cells).alias("item")
    require(path, kind, column, (ids.str.len_bytes() > 0).fill_null(False), "a value")
    require(path, kind, column, ids.is_first_distinct(), "an item that no earlier row has")
    return ids


def _names(path: Path, kind: Format, name: str, cells: pl.Series, feature: ItemCategories) -> pl.Series:
    """Lists of names without repeats or blanks; null where the cell is empty."""
    column = feature.column or name
    if isinstance(cells.dtype, pl.List):
        lists = cells.cast(pl.List(pl.String), strict=False)
        fits = lists.list.len().fill_null(0) == cells.list.len().fill_null(0)
        require(path, kind, column, fits, "a list of names")
    else:
        text = key_text(cells)
        require(path, kind, column, cells.is_null() | text.is_not_null(), "text, or an empty cell")
        lists = text.str.split(feature.separator)
    frame = pl.DataFrame({name: lists}).with_row_index("row")
    names = (
        frame.explode(name)
        .with_columns(pl.col(name).str.strip_chars())
        .filter(pl.col(name) != "")
        .unique(maintain_order=True)
        .group_by("row", maintain_order=True)
        .agg(name)
    )
    return frame.select("row").join(names, on="row", how="left", maintain_order="left")[name]


def _facts(folder: Path, name: str, feature: ItemTriples) -> pl.DataFrame:
    """Columns `item` and `name`: the facts of each item that has any, as text."""
    path, kind = _file(folder, feature.file)
    columns = {"head": feature.head, "relation": feature.relation, "tail": feature.tail}
    raw = read_columns(path, kind, columns, ())
    frame = pl.DataFrame([_required(path, kind, columns[part], raw[part]) for part in columns])
    if feature.links:
        links, link_kind = _file(folder, feature.links)
        columns = {"item": feature.link_item, "head": feature.link_entity}
        raw = read_columns(links, link_kind, columns, ())
        frame = frame.join(
            pl.DataFrame([_required(links, link_kind, columns[part], raw[part]) for part in columns]), on="head"
        )
    else:
        frame = frame.rename({"head": "item"})
    frame = frame.select("item", pl.concat_str("relation", "tail", separator=" ").alias(name))
    return frame.unique(maintain_order=True).group_by("item", maintain_order=True).agg(name)


def _vectors(folder: Path, name: str, feature: ItemVector, item: str, rows: pl.Series) -> pl.DataFrame:
    """Columns `item` and `name`: a list of Float32 each."""
    path = folder / feature.file
    vectors = pl.List(pl.Float32)
    if path.suffix == ".npy":
        if not path.is_file():
            raise DataError(f"{path}: expected a file, found none")
        try:
            table = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise DataError(f"{path}: expected a NumPy array: {error}") from None
        if table.ndim != 2 or table.dtype.kind not in "fiu" or len(table) != len(rows):
            raise DataError(
                f"{path}: expected numbers [{len(rows)}, width], a row for each of the item file's, got "
                f"{table.dtype} {list(table.shape)}"
            )
        frame = pl.DataFrame({"item": rows, name: pl.Series(table.astype(np.float32)).arr.to_list()})
    else:
        path, kind = _file(folder, feature.file)
        columns = {"item": feature.item or item, name: feature.column or name}
        raw = read_columns(path, kind, columns, ())
        if not isinstance(raw.schema[name], pl.List | pl.Array):
            raise DataError(f"{path}: column {columns[name]!r}: expected lists of numbers, got {raw.schema[name]}")
        cells = raw[name].cast(vectors, strict=False)
        frame = pl.DataFrame([_ids(path, kind, columns["item"], raw["item"]), cells])
    whole = frame[name].list.eval(pl.element().is_finite().fill_null(False)).list.all()
    require(path, "parquet", feature.column or name, whole.fill_null(True), "finite numbers")
    return frame


def _required(path: Path, kind: Format, column: str, cells: pl.Series) -> pl.Series:
    text = key_text(cells)
    require(path, kind, column, (text.str.len_bytes() > 0).fill_null(False), "a value")
    return text


def _file(folder: Path, name: str) -> tuple[Path, Format]:
    """A file of the schema's; RecBole's `.kg` and `.link` are read as its other files."""
    path = folder / name
    return path, "recbole" if path.suffix in (".kg", ".link") else format_of(path)
