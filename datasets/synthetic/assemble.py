"""Flat items and lengths into a dataset."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longrec.catalogue import Catalogue
from longrec.datasets.dataset import Dataset

__all__ = ["assemble", "borders"]

BEGAN_MS = 1_700_000_000_000
Array = NDArray[np.int64]


def borders(lengths: Array) -> Array:
    """[U] lengths -> [U + 1] `Dataset.indptr`."""
    return np.concatenate(([0], lengths.cumsum())).astype(np.int64)


def assemble(
    name: str,
    items: Array,
    indptr: Array,
    num_items: int,
    times_ms: Array | None = None,
    categories: Sequence[Sequence[str]] = (),
) -> Dataset:
    """A dataset of items "0", "1" … and users "u0", "u1" …; without times an event a second, which tell nothing."""
    if times_ms is None:
        times_ms = np.arange(len(items)) - np.repeat(indptr[:-1], np.diff(indptr))
        times_ms = BEGAN_MS + 1000 * times_ms
    ids = [str(item) for item in range(num_items)]
    users = [f"u{user}" for user in range(len(indptr) - 1)]
    return Dataset(name, users, Catalogue(ids, ids, categories), items, times_ms, indptr)
