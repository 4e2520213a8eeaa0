"""The updates of a run on disk, and which of them is served.

    RUN/updates/0001, 0002 …        each a checkpoint like the run's own, and
        learnt.parquet              how far each user's log has been learnt: columns user (bytes), length
        update.json                 what the update came to

A folder appears whole, and only for weights that were not refused.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from longrec.checkpoint import Checkpoint
from longrec.datasets import HELD_OUT
from longrec.errors import CheckpointError
from longrec.modeling import Network, load_run, save_run

__all__ = ["Base", "find_base", "save_update"]

UPDATES: Final = "updates"
LEARNT, REPORT = "learnt.parquet", "update.json"


class Base(NamedTuple):
    """What an update begins with.

    Args:
        folder: the run's, or that of one of its updates.
        network, checkpoint: its weights.
        learnt: user -> events of their log that these have learnt.
    """

    folder: Path
    network: Network
    checkpoint: Checkpoint
    learnt: Mapping[bytes, int]


def find_base(run: Path, weights_hash: str | None = None) -> Base:
    """The run or its update whose weights have this hash; the newest without one.

    Raises:
        CheckpointError: there is none, or its files don't fit each other.
    """
    for folder in (*reversed(_updates(run)), run):
        network, checkpoint = load_run(folder)
        if weights_hash in (None, checkpoint.weights_hash):
            return Base(folder, network, checkpoint, _learnt(folder))
    raise CheckpointError(
        f"{run}: expected the weights that are served, here or in an update, got others; name the run that was exported"
    )


def save_update(
    run: Path, base: Checkpoint, network: Network, learnt: Mapping[bytes, int], report: Mapping[str, Any]
) -> Path:
    """Write an update; its folder.

    Args:
        run: whose.
        base: what it began with.
        network: with the new weights.
        learnt: user -> events of their log that these have learnt.
        report: JSON-able.
    """
    number = 1 + max((int(folder.name) for folder in _updates(run)), default=0)
    fresh, target = run / UPDATES / f".{os.getpid()}", run / UPDATES / f"{number:04}"
    shutil.rmtree(fresh, ignore_errors=True)
    held_out = min(HELD_OUT, base.training.get("held_out", HELD_OUT))  # of the old data no more were spared
    training = {**base.training, "update": number, "held_out": held_out}
    save_run(fresh, network, network.config, base.catalogue, training)
    lengths = pl.Series("length", list(learnt.values()), dtype=pl.Int64)
    pl.DataFrame([pl.Series("user", list(learnt), dtype=pl.Binary), lengths]).write_parquet(fresh / LEARNT)
    (fresh / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    fresh.rename(target)
    return target


def _updates(run: Path) -> list[Path]:
    folder = run / UPDATES
    return sorted(path for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


def _learnt(folder: Path) -> Mapping[bytes, int]:
    path = folder / LEARNT
    if not path.is_file():
        return {}
    try:
        return dict(pl.read_parquet(path, columns=["user", "length"]).iter_rows())
    except pl.exceptions.PolarsError as error:
        raise CheckpointError(f"{path}: expected users and lengths ({str(error).splitlines()[0]})") from None
