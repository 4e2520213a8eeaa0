"""How the commands that talk to a server name items: by catalogue index, or by external id and title where they were
given a catalogue."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longrec.catalogue import Catalogue
from longrec.errors import DataError

__all__ = ["Items"]


class Items:
    """Names of items.

    Args:
        path: catalogue.parquet of the run that the server serves, or the run's folder; None: items are indices.

    Raises:
        DataError: there is no such file. CheckpointError: it isn't a catalogue.
    """

    def __init__(self, path: Path | None) -> None:
        self._catalogue: Catalogue | None = None
        self.unknown = 0
        if path is not None:
            from longrec.checkpoint import CATALOGUE

            file = path / CATALOGUE if path.is_dir() else path
            if not file.is_file():
                raise DataError(f"--catalogue {path}: expected a run's folder, or its {CATALOGUE}; there is none")
            self._catalogue = Catalogue.load(file)

    def index(self, item: Any) -> Any:
        """Catalogue index of what the user calls an item; one past the end, and counted, for an unknown one."""
        if self._catalogue is None:
            return item
        index = self._catalogue.index.get(str(item), len(self._catalogue))
        self.unknown += index == len(self._catalogue)
        return index

    def describe(self, indices: Sequence[int]) -> dict[str, list[Any]]:
        """`items`, and with a catalogue their `titles`.

        Raises:
            DataError: an index lies past the catalogue's end.
        """
        if self._catalogue is None:
            return {"items": list(indices)}
        if indices and max(indices) >= len(self._catalogue):
            raise DataError(
                f"--catalogue: expected the catalogue of the run that is served, got one of {len(self._catalogue)} "
                f"items where the server recommends item {max(indices)}"
            )
        return {
            "items": [self._catalogue.ids[index] for index in indices],
            "titles": [self._catalogue.titles[index] for index in indices],
        }
