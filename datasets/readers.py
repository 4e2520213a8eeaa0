"""Files of interactions and of item titles into frames of known columns. No indices, no order, no splits here.

Formats: CSV and TSV with a header, Parquet, JSON lines, RecBole's atomic files (`.inter`, `.item`: tabs, header
`name:type`), and MovieLens' `::` (`ratings.dat`, `movies.dat`: no header).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import polars as pl

from longrec.datasets.keys import key_text
from longrec.datasets.text_files import misfit_row, read_json_lines
from longrec.errors import ArgumentError, DataError

__all__ = [
    "FORMATS",
    "TIME_UNITS",
    "InteractionColumns",
    "TitleColumns",
    "read_categories",
    "read_interactions",
    "read_titles",
]

Format = Literal["csv", "tsv", "parquet", "json", "recbole", "movielens"]
FORMATS: Mapping[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".inter": "recbole",
    ".item": "recbole",
    ".dat": "movielens",
}
TIME_UNITS: Mapping[str, tuple[int, int]] = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000)}  # to milliseconds
POSSIBLE_MS = (-62_135_596_800_000, 253_402_300_799_999)  # years 1 to 9999: milliseconds taken for seconds fall out
MOVIELENS_INTERACTIONS = ("user_id", "item_id", "rating", "timestamp")
MOVIELENS_TITLES = ("item_id", "movie_title", "genres")
SEPARATORS: Mapping[Format, str] = {"csv": ",", "tsv": "\t", "recbole": "\t"}
FIRST_ROW: Mapping[Format, int] = {"csv": 2, "tsv": 2, "parquet": 1, "json": 1, "recbole": 2, "movielens": 1}


class InteractionColumns(NamedTuple):
    """Names of the columns that hold the user, the item and the time of an interaction."""

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"


class TitleColumns(NamedTuple):
    """Names of the columns of an item file; `year`, where there is one, is written behind the title."""

    item: str = "item_id"
    title: str = "movie_title"
    year: str | None = None


def read_interactions(
    path: Path,
    columns: InteractionColumns = InteractionColumns(),  # noqa: B008 - immutable
    *,
    time_unit: str = "s",
    kind: Format | None = None,
) -> pl.DataFrame:
    """Read interactions in file order.

    Args:
        path: the file; its suffix names the format unless `kind` does.
        columns: which columns to take.
        time_unit: `s`, `ms` or `us` of a numeric time; dates and ISO 8601 text carry their own.
        kind: csv, tsv, parquet, json (lines), recbole or movielens.

    Returns:
        Columns `user` and `item` (String), `time_ms` (Int64, unix milliseconds), a row an interaction.

    Raises:
        ArgumentError: unknown unit or format.
        DataError: the file can't be read, is empty, lacks a column, or a cell is empty or no time; rows are named as an
            editor counts them (the header is row 1; Parquet counts from 1).
    """
    if time_unit not in TIME_UNITS:
        raise ArgumentError(f"time_unit={time_unit}", "s, ms or us")
    kind = kind or format_of(path)
    frame = read_columns(path, kind, dict(zip(("user", "item", "time"), columns, strict=True)), MOVIELENS_INTERACTIONS)
    times = _milliseconds(frame["time"], time_unit).alias("time_ms")
    frame = pl.DataFrame([key_text(frame["user"]), key_text(frame["item"]), times])
    for column, cells in ((columns.user, frame["user"]), (columns.item, frame["item"])):
        require(path, kind, column, (cells.str.len_bytes() > 0).fill_null(False), "a value")
    expected = f"a time of the years 1 to 9999 (numbers are in {time_unit})"
    require(path, kind, columns.time, frame["time_ms"].is_not_null(), expected)
    return frame


def read_titles(
    path: Path,
    columns: TitleColumns = TitleColumns(),  # noqa: B008 - immutable
    *,
    kind: Format | None = None,
) -> dict[str, str]:
    """Read an item file into external id -> title, with ` (year)` behind it where `columns.year` is given.

    Raises:
        ArgumentError, DataError: as `read_interactions`; also an item that is listed twice.
    """
    kind = kind or format_of(path)
    wanted = {name: column for name, column in columns._asdict().items() if column is not None}
    frame = read_columns(path, kind, wanted, MOVIELENS_TITLES)
    frame = frame.with_columns(key_text(frame["item"]), pl.all().exclude("item").cast(pl.String))
    require(path, kind, columns.item, (frame["item"].str.len_bytes() > 0).fill_null(False), "a value")
    require(path, kind, columns.item, frame["item"].is_first_distinct(), "an item that no earlier row has")
    title = pl.col("title").fill_null(pl.col("item"))
    if "year" in frame.columns:
        title = pl.concat_str(title, pl.format(" ({})", "year").fill_null(""))
    return dict(frame.select("item", title.alias("title")).iter_rows())


def read_categories(path: Path, item: str, categories: str, *, kind: Format | None = None) -> dict[str, list[str]]:
    """Read an item file into external id -> names of the item's categories, without repeats; an item may have none.

    A cell separates names with a space in RecBole's files, with `|` elsewhere; Parquet may hold lists.

    Args:
        item, categories: names of the columns.

    Raises:
        ArgumentError, DataError: as `read_titles`.
    """
    kind = kind or format_of(path)
    frame = read_columns(path, kind, {"item": item, "categories": categories}, MOVIELENS_TITLES)
    if not isinstance(frame.schema["categories"], pl.List):
        cells = pl.col("categories").cast(pl.String)
        frame = frame.with_columns(cells.str.split(" " if kind == "recbole" else "|"))
    frame = frame.with_columns(key_text(frame["item"]), pl.col("categories").cast(pl.List(pl.String)))
    require(path, kind, item, (frame["item"].str.len_bytes() > 0).fill_null(False), "a value")
    require(path, kind, item, frame["item"].is_first_distinct(), "an item that no earlier row has")
    names = {key: [name.strip() for name in cell or () if name and name.strip()] for key, cell in frame.iter_rows()}
    return {key: list(dict.fromkeys(cell)) for key, cell in names.items()}


def format_of(path: Path) -> Format:
    if path.suffix.lower() not in FORMATS:
        raise ArgumentError(
            f"format of {path.name}",
            f"a suffix of {', '.join(FORMATS)}",
            got=repr(path.suffix),
            remedy="name the format",
        )
    return FORMATS[path.suffix.lower()]


def read_columns(path: Path, kind: Format, wanted: Mapping[str, str], movielens: tuple[str, ...]) -> pl.DataFrame:
    """The columns `wanted` (new name -> name in the file); every one is text unless the file is Parquet."""
    if not path.is_file():
        raise DataError(f"{path}: expected a file, found none")
    try:
        frame = _read_frame(path, kind, movielens, list(wanted.values()))
    except pl.exceptions.NoDataError:
        raise DataError(f"{path}: expected rows of data, the file is empty") from None
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        place = misfit_row(path, SEPARATORS[kind]) if kind in SEPARATORS else ""
        raise DataError(f"{path}: {place}expected a {kind} file: {str(error).splitlines()[0]}") from None
    for column in wanted.values():
        if column not in frame.columns:
            raise DataError(f"{path}: expected a column {column!r}, got {', '.join(frame.columns)}")
        if f"{column}_duplicated_0" in frame.columns:
            raise DataError(f"{path}: row 1: expected one column {column!r}, got several")
    if frame.is_empty():
        raise DataError(f"{path}: expected rows of data, got none")
    return frame.select(pl.col(column).alias(name) for name, column in wanted.items())


def _read_frame(path: Path, kind: Format, movielens: tuple[str, ...], columns: list[str]) -> pl.DataFrame:
    if kind == "parquet":
        return pl.read_parquet(path)
    if kind == "json":
        return read_json_lines(path, columns)
    if kind == "movielens":
        lines = pl.Series("line", path.read_text(encoding="latin-1").splitlines(), dtype=pl.String)
        return (
            lines.to_frame()
            .select(pl.col("line").str.splitn("::", len(movielens)).struct.rename_fields(movielens).alias("cells"))[
                "cells"
            ]
            .struct.unnest()
        )
    frame = pl.read_csv(
        path, separator=SEPARATORS[kind], infer_schema=False, quote_char='"' if kind != "recbole" else None
    )
    return frame.rename(lambda name: name.rsplit(":", 1)[0]) if kind == "recbole" else frame


def _milliseconds(time: pl.Series, unit: str) -> pl.Series:
    """Int64 unix milliseconds; null where a cell is no time between the years 1 and 9999."""
    if time.dtype == pl.String:
        time = _parse(time.str.strip_chars())
    if time.dtype == pl.Date or isinstance(time.dtype, pl.Datetime):
        time, unit = time.cast(pl.Datetime("ms")).cast(pl.Int64), "ms"
    if not time.dtype.is_numeric():
        return pl.Series([None] * len(time), dtype=pl.Int64)
    numerator, denominator = TIME_UNITS[unit]
    rough = time.cast(pl.Float64) * (numerator / denominator)
    possible = rough.is_between(*POSSIBLE_MS).fill_null(False)
    time = pl.select(pl.when(possible).then(time)).to_series()  # whole numbers can't overflow now, nor floats be NaN
    if time.dtype.is_integer():
        exact: pl.Series = time.cast(pl.Int64) * numerator // denominator
    else:
        exact = (time * numerator / denominator).floor().cast(pl.Int64)
    return exact


def _parse(text: pl.Series) -> pl.Series:
    """Whole numbers if all cells are, else numbers if any is, else ISO 8601 dates; null where a cell is none."""
    whole: pl.Series = text.cast(pl.Int64, strict=False)
    if whole.null_count() == 0:
        return whole
    number: pl.Series = text.cast(pl.Float64, strict=False)
    if number.null_count() < len(text):
        return number
    try:
        dates: pl.Series = text.str.to_datetime(time_unit="ms", time_zone="UTC", strict=False)
    except pl.exceptions.ComputeError:  # no format of a date fits the first cells
        return number
    return dates


def require(path: Path, kind: Format, column: str, fits: pl.Series, expected: str) -> None:
    """`DataError` that names the first row where `fits` is false."""
    first = fits.arg_min()
    if first is not None and not fits[first]:
        row = first + FIRST_ROW[kind]
        raise DataError(
            f"{path}: row {row}, column {column!r}: expected {expected}, got a cell that is empty or something else"
        )
