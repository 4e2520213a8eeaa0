"""Keys of users and items as text: one spelling whatever type a file stores them in."""

import polars as pl

__all__ = ["key_text"]


def key_text(cells: pl.Series) -> pl.Series:
    """Text of each key; null where a cell can't be one.

    Text and categories stay as they are, whole numbers are written in decimal: floats of whole numbers too, since a
    column of integers with gaps comes out of pandas as floats. Fractions, NaN, booleans, bytes, lists and structs are
    no keys.
    """
    dtype = cells.dtype
    if dtype.is_float():
        whole = cells.is_finite() & (cells == cells.round()) & (cells.abs() < 2**53)
        cells = pl.select(pl.when(whole).then(cells)).to_series().cast(pl.Int64)
    elif not (dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum)):
        return pl.Series(cells.name, [None] * len(cells), dtype=pl.String)
    text: pl.Series = cells.cast(pl.String)
    return text
