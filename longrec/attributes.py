"""Items' features as numbers: which values each item has, and its vectors. No files, no network."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec.schema import ItemVector, Schema

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Attributes", "encode_attributes"]


class Attributes(NamedTuple):
    """What N items are, by a closed schema.

    Args:
        values: [n] int64, item after item: a number for each value that an item has, counted through all features that
            have values (`Schema.num_item_values` in all). Unknown values aren't there.
        indptr: [N + 1] int64; item i has values[indptr[i]] to values[indptr[i + 1]].
        vectors: feature -> [N, width] float32; zeros for an item without a vector.
    """

    values: NDArray[np.int64]
    indptr: NDArray[np.int64]
    vectors: Mapping[str, NDArray[np.float32]]


def encode_attributes(schema: Schema, frame: "pl.DataFrame") -> Attributes:
    """Items' features as numbers.

    Args:
        schema: closed.
        frame: a row an item; a column a feature: lists of text, Float64, or lists of Float32, null where unknown.

    Returns:
        Of the N rows.
    """
    rows: list[NDArray[np.int64]] = []
    values: list[NDArray[np.int64]] = []
    vectors: dict[str, NDArray[np.float32]] = {}
    before = 0
    for name, feature in schema.item.items():
        cells = frame[name].to_list()
        if isinstance(feature, ItemVector):
            vectors[name] = np.zeros((len(cells), feature.width), np.float32)
            for row, cell in enumerate(cells):
                if cell is not None:
                    vectors[name][row] = cell
            continue
        lists = [cell if isinstance(cell, list) else [cell] for cell in cells]
        found = np.array([feature.index(value) for cell in lists for value in cell], np.int64)
        of_row = np.repeat(np.arange(len(lists)), [len(cell) for cell in lists])
        rows.append(of_row[found > 0])
        values.append(found[found > 0] - 1 + before)
        before += feature.size
    of_value = np.concatenate([*rows, np.zeros(0, np.int64)])
    order = np.argsort(of_value, kind="stable")
    indptr = np.zeros(len(frame) + 1, np.int64)
    np.cumsum(np.bincount(of_value, minlength=len(frame)), out=indptr[1:])
    return Attributes(np.concatenate([*values, np.zeros(0, np.int64)])[order], indptr, vectors)
