"""Items that joined a catalogue after the training: their names and vectors, one file beside the checkpoint's.

The weights stay as they are, and so do the memories that name them. Item i of the file is item `num_items + i` of the
whole catalogue; rows are only ever appended.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from longrec.errors import CheckpointError

__all__ = ["ADDED_ITEMS", "AddedItems"]

ADDED_ITEMS: Final = "added_items.parquet"  # its file, beside `catalogue.parquet`


@dataclass(frozen=True, eq=False)
class AddedItems:
    """M items.

    Args:
        ids, titles, categories: as `Catalogue`'s, a list of categories for each item.
        vectors: [M, dim] float32, finite.
    """

    ids: Sequence[str]
    titles: Sequence[str]
    categories: Sequence[Sequence[str]]
    vectors: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def save(self, folder: Path) -> None:
        """Write the folder's file, whole or not at all: a running server reads it."""
        import polars as pl

        width = self.vectors.shape[1]
        frame = pl.DataFrame(
            {
                "item": list(self.ids),
                "title": list(self.titles),
                "categories": pl.Series([list(names) for names in self.categories], dtype=pl.List(pl.String)),
                "vector": pl.Series(self.vectors, dtype=pl.Array(pl.Float32, width)),
            }
        )
        fresh = folder / f".{ADDED_ITEMS}-{os.getpid()}"
        frame.write_parquet(fresh)
        os.replace(fresh, folder / ADDED_ITEMS)

    @classmethod
    def load(cls, catalogue: Path, dim: int) -> "AddedItems":
        """Read the file beside a catalogue's, which may be a link to where both are; no items if there is none.

        Raises:
            CheckpointError: it isn't what `save` writes, or its vectors aren't of width `dim`.
        """
        frame = cls.frame(catalogue)
        if frame is None:
            return cls((), (), (), np.empty((0, dim), np.float32))
        path = _beside(catalogue)
        vectors = np.asarray(frame["vector"].to_list(), np.float32).reshape(len(frame), -1)
        if vectors.shape[1] != dim or not np.isfinite(vectors).all():
            raise CheckpointError(f"{path}: expected finite vectors of {dim}, got {vectors.shape[1]} numbers each")
        return cls(frame["item"].to_list(), frame["title"].to_list(), frame["categories"].to_list(), vectors)

    @staticmethod
    def frame(catalogue: Path) -> Any:
        """Columns item, title, categories, vector of the file beside a catalogue's; None: there is none.

        Raises:
            CheckpointError: as `load`.
        """
        path = _beside(catalogue)
        if not path.is_file():
            return None
        import polars as pl

        try:
            return pl.read_parquet(path, columns=["item", "title", "categories", "vector"])
        except pl.exceptions.PolarsError as error:
            raise CheckpointError(f"{path}: expected what `longrec items add` writes ({error})") from None


def _beside(catalogue: Path) -> Path:
    return catalogue.resolve().with_name(ADDED_ITEMS)
