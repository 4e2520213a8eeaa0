"""The catalogue: which item an index stands for. Index i of the wire is row i of `catalogue.parquet`.

polars is imported only when a file is read or written, so that a client that asks for no titles never loads it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from longrec.added_items import AddedItems
from longrec.errors import CheckpointError

__all__ = ["CATALOGUE", "Catalogue"]

CATALOGUE: Final = "catalogue.parquet"  # its file, in the folder of a run


@dataclass(frozen=True)
class Catalogue:
    """External ids, titles and categories of the items, in index order.

    Args:
        ids: the items' external ids, unique.
        titles: what to show for each; the id itself where the data has no title.
        categories: names of each item's categories; empty: the data has none.
    """

    ids: Sequence[str]
    titles: Sequence[str]
    categories: Sequence[Sequence[str]] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """External id -> catalogue index."""
        return {item: i for i, item in enumerate(self.ids)}

    def with_items(self, ids: Sequence[str], titles: Sequence[str], categories: Sequence[Sequence[str]]) -> "Catalogue":
        """These items and then others; the latter have a list of categories each, which may be empty."""
        own = self.categories or ([()] * len(self) if any(categories) else ())
        return Catalogue([*self.ids, *ids], [*self.titles, *titles], [*own, *categories] if own else ())

    def save(self, path: Path) -> None:
        """Write `path` (Parquet, columns `item`, `title` and, where there are any, `categories`)."""
        import polars as pl

        frame = pl.DataFrame({"item": list(self.ids), "title": list(self.titles)})
        if self.categories:
            lists = [list(names) for names in self.categories]
            frame = frame.with_columns(pl.Series("categories", lists, dtype=pl.List(pl.String)))
        frame.write_parquet(path)

    @classmethod
    def load(cls, path: Path) -> "Catalogue":
        """Read `path`, and the items that were added beside it since.

        Raises:
            CheckpointError: a file isn't Parquet, lacks a column or repeats an id.
        """
        catalogue = cls.load_own(path)
        added = AddedItems.frame(path)
        if added is None:
            return catalogue
        return catalogue.with_items(*(added[name].to_list() for name in ("item", "title", "categories")))

    @classmethod
    def load_own(cls, path: Path) -> "Catalogue":
        """`load`, without what was added."""
        import polars as pl

        try:
            frame = pl.read_parquet(path)
        except pl.exceptions.PolarsError as error:
            raise CheckpointError(f"{path}: expected a Parquet file ({str(error).splitlines()[0]})") from None
        missing = {"item", "title"} - set(frame.columns)
        if missing:
            raise CheckpointError(f"{path}: expected columns item and title, got {frame.columns}")
        categories: Sequence[Sequence[str]] = ()
        if "categories" in frame.columns:
            if frame.schema["categories"] != pl.List(pl.String):
                raise CheckpointError(
                    f"{path}: expected lists of names in column categories, got {frame.schema['categories']}"
                )
            categories = frame["categories"].fill_null([]).to_list()
        catalogue = cls(frame["item"].cast(pl.String).to_list(), frame["title"].cast(pl.String).to_list(), categories)
        if len(catalogue.index) != len(catalogue):
            raise CheckpointError(
                f"{path}: expected unique items, got {len(catalogue) - len(catalogue.index)} repeated"
            )
        return catalogue
