"""Text files: JSON lines into columns of text, and where a file that can't be read goes wrong."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from longrec.errors import DataError

__all__ = ["misfit_row", "read_json_lines"]


def read_json_lines(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """`columns` of a file with a JSON object a line, as text; null where a key is absent or null.

    Numbers become text, so that 7 and "7" are the same key; whole floats are written as integers.

    Raises:
        DataError: a line is no JSON object, or a cell is neither text nor a number; the line is named.
    """
    cells: dict[str, list[str | None]] = {column: [] for column in columns}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line, parse_constant=_refuse)
            except ValueError:  # of UTF-8 too
                row = None
            if not isinstance(row, dict):
                raise DataError(f"{path}: row {number}: expected a JSON object")
            for column, values in cells.items():
                value = row.get(column)
                if isinstance(value, float) and value.is_integer():
                    value = int(value)
                if isinstance(value, bool) or not isinstance(value, str | int | float | None):
                    raise DataError(
                        f"{path}: row {number}, column {column!r}: expected text or a number, "
                        f"got {type(value).__name__}"
                    )
                values.append(None if value is None else str(value))
    return pl.DataFrame(cells, schema=dict.fromkeys(columns, pl.String))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def misfit_row(path: Path, separator: str) -> str:
    """`row 7: ` for the first row of a CSV file that isn't UTF-8 or has more cells than the header; else nothing."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not _is_utf8(line):
                return f"row {number}: "
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file, delimiter=separator)
        width = len(next(rows, ()))
        try:
            return next((f"row {rows.line_num}: " for row in rows if len(row) > width), "")
        except csv.Error:  # a quote that nothing closes
            return f"row {rows.line_num}: "


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
