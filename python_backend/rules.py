"""Rules that people edit while the server runs: which items are never recommended, and which categories items have.

A folder holds up to three files, UTF-8, all optional; items are named by their external ids:

    blocked.txt             an item a line: never recommended. Blank lines and lines that begin with # are skipped
    blocked_categories.txt  a category a line: no item of it is ever recommended
    categories.csv          columns item and category, a row for each pair; where it is there, it and not the
                            catalogue says which categories every item has

`Rules.refresh` reads them again when they change, away from requests. A file that can't be read changes nothing: the
rules stay as they were, which is logged and counted. Ids that the catalogue lacks are counted, not refused, since one
list may serve several catalogues. Write beside the file and rename: half a file may read as a whole one.
"""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from longrec.errors import DataError

__all__ = ["BLOCKED", "BLOCKED_CATEGORIES", "CATEGORIES", "EVERY", "RuleSet", "Rules"]

BLOCKED: Final = "blocked.txt"
BLOCKED_CATEGORIES: Final = "blocked_categories.txt"
CATEGORIES: Final = "categories.csv"
EVERY: Final = -(1 << 63)  # a bit that every item has: who is allowed it is allowed everything
MAX_CATEGORIES: Final = 63  # the other bits of an int64

logger = logging.getLogger(__name__)
Signature = tuple[tuple[int, int, int] | None, ...]


class RuleSet(NamedTuple):
    """The rules of one moment, over the catalogue's N items.

    Args:
        blocked: [N] bool, items that are never recommended; None: there are none.
        categories: [N] int64, each item's categories as bits of `Rules.bits`, and `EVERY`.
    """

    blocked: NDArray[np.bool_] | None
    categories: NDArray[np.int64]

    @classmethod
    def nothing(cls, num_items: int) -> "RuleSet":
        """No rules: nothing is blocked, and no item has a category."""
        return cls(None, np.full(num_items, EVERY))

    def permits(self, items: NDArray[np.int64], allowed: int) -> NDArray[np.bool_]:
        """Which of the items may be recommended where the categories `allowed` (bits; 0: all) are asked for."""
        permitted: NDArray[np.bool_] = (self.categories[items] & (allowed or EVERY)) != 0
        return permitted if self.blocked is None else permitted & ~self.blocked[items]


class Rules:
    """The rules of a folder, as it is now.

    Args:
        catalogue: `catalogue.parquet`: columns `item` and, where it has them, `categories`.
        folder: of the three files; may be missing.
        interval_seconds: how often `refresh` looks at the files at most.

    Attributes:
        current: the rules; replaced as a whole, never changed.
        bits: category -> its bit. A name keeps its bit for as long as the process lives.
        failures: times that files could not be read. unknown: ids and categories in them that no item has, at present.

    Raises:
        DataError: a file can't be read. There are no older rules to keep, and a server that recommends what is blocked
            is worse than none.
    """

    def __init__(self, catalogue: Path, folder: Path, *, interval_seconds: float = 1.0) -> None:
        self._catalogue, self._folder, self._interval_seconds = catalogue, folder, interval_seconds
        self.bits: dict[str, int] = {}
        self.failures = self.unknown = 0
        self._looked = time.monotonic()
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._look, name="rules", daemon=True)
        self._signature = self._sign()
        self.current = self._read()

    def refresh(self) -> bool:
        """If it is time to, look whether the files changed, and read them; whether there are new rules.

        Never raises.
        """
        now = time.monotonic()
        if now - self._looked < self._interval_seconds:
            return False
        self._looked = now
        signature = self._sign()
        if signature == self._signature:
            return False
        self._signature = signature  # taken before reading: a change while reading shows the next time
        try:
            self.current = self._read()
        except DataError as error:
            self.failures += 1
            logger.warning("rules stay as they were: %s", error)
            return False
        logger.info("rules read from %s: %d ids or categories that no item has", self._folder, self.unknown)
        return True

    def watch(self) -> None:
        """Refresh from a thread of its own from now on, until `close`."""
        self._watch.start()

    def close(self) -> None:
        """End the thread, if there is one."""
        self._closed.set()
        if self._watch.is_alive():
            self._watch.join()

    def _look(self) -> None:
        while not self._closed.wait(self._interval_seconds):
            self.refresh()

    def _sign(self) -> Signature:
        return tuple(_signature(self._folder / name) for name in (BLOCKED, BLOCKED_CATEGORIES, CATEGORIES))

    def _read(self) -> RuleSet:
        path = self._catalogue
        has_categories = "categories" in pl.read_parquet_schema(path)
        frame = pl.read_parquet(path, columns=["item", *(["categories"] if has_categories else [])])
        index = frame.select(pl.col("item").cast(pl.String), pl.int_range(pl.len()).alias("index"))
        file = self._folder / CATEGORIES
        own = _read_pairs(file)
        unknown = 0
        if own is not None:
            known = own.join(index, on="item")
            unknown += own["item"].n_unique() - known["item"].n_unique()
        elif has_categories:
            file = path
            known = frame.select(pl.int_range(pl.len()).alias("index"), pl.col("categories").alias("category"))
            known = known.explode("category").drop_nulls()
        else:
            known = pl.DataFrame(schema={"index": pl.Int64, "category": pl.String})
        bits = self._bits_for(file, known["category"].unique(maintain_order=True).to_list())
        categories = RuleSet.nothing(len(index)).categories
        of_row = known["category"].replace_strict(bits, return_dtype=pl.Int64).to_numpy()
        np.bitwise_or.at(categories, known["index"].to_numpy(), of_row)

        blocked = np.zeros(len(index), bool)
        ids = pl.DataFrame({"item": _read_lines(self._folder / BLOCKED)}, schema={"item": pl.String}).unique()
        found = ids.join(index, on="item")
        blocked[found["index"].to_numpy()] = True
        unknown += len(ids) - len(found)
        names = set(_read_lines(self._folder / BLOCKED_CATEGORIES))
        mask = sum(bits.get(name, 0) for name in names)
        blocked |= (categories & mask) != 0
        unknown += len(names - bits.keys())

        self.bits.update(bits)  # nothing can fail any more
        self.unknown = unknown
        return RuleSet(blocked if blocked.any() else None, categories)

    def _bits_for(self, path: Path, names: Sequence[str]) -> dict[str, int]:
        """Bits of all these categories: those they have, or the next that are free."""
        fresh = [name for name in names if name not in self.bits]
        total = len(self.bits) + len(fresh)
        if total > MAX_CATEGORIES:
            raise DataError(
                f"{path}: expected at most {MAX_CATEGORIES} categories, got {total}, those since the start among them; "
                "use fewer, or restart the server if others are gone"
            )
        bits = {name: 1 << (len(self.bits) + at) for at, name in enumerate(fresh)}
        return {name: bits.get(name) or self.bits[name] for name in names}


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected UTF-8 text, a name a line: {error}") from None
    return [name for line in lines if (name := line.strip()) and not name.startswith("#")]


def _read_pairs(path: Path) -> pl.DataFrame | None:
    """Columns item and category, no nulls; None: there is no file."""
    if not path.exists():
        return None
    try:
        frame = pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: expected CSV with columns item and category: {str(error).splitlines()[0]}") from None
    if not {"item", "category"} <= set(frame.columns):
        raise DataError(f"{path}: expected columns item and category, got {', '.join(frame.columns)}")
    frame = frame.select(pl.col("item", "category").str.strip_chars())
    empty = frame.select((pl.any_horizontal(pl.all().is_null() | (pl.all() == ""))).alias("empty"))["empty"]
    if empty.any():
        row = int(empty.to_numpy().argmax()) + 2
        raise DataError(f"{path}: row {row}: expected an item and a category, got an empty cell")
    return frame.unique(maintain_order=True)
