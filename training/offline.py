"""Recommendations for many users at once, from Parquet to Parquet, in shards that are there whole or not at all.

A shard is so many successive rows of the users' table. Whoever runs a job again, after a stop or elsewhere, computes
the shards that are missing; who computes them, `run_here` or others, is no concern of a shard.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from torch import Tensor

from longrec import kernels
from longrec.catalogue import Catalogue
from longrec.checkpoint import load_checkpoint
from longrec.datasets import Dataset
from longrec.errors import ArgumentError, DataError
from longrec.modeling import Events, load_run
from longrec.training.evaluation import SCORE_ELEMENTS, pasts_before

__all__ = ["Job", "Scorer", "begin", "missing", "run_here"]

MANIFEST: Final = "job.json"
MAX_K: Final = 256


@dataclass(frozen=True)
class Job:
    """What is computed; the same on every machine that works on it.

    Args:
        run: folder of a checkpoint.
        users: Parquet file, or a folder of them: a row a user, with columns `user`, `items` (a list of external ids,
            oldest first; those that the catalogue lacks are unknown items) and `times_ms` (a list of unix ms).
        out: folder for the shards.
        k: items of a user, 1..256.
        shard_users: rows of a shard.
    """

    run: Path
    users: Path
    out: Path
    k: int = 10
    shard_users: int = 4096

    def __post_init__(self) -> None:
        for name, most in (("k", MAX_K), ("shard_users", 1 << 20)):
            if not 1 <= getattr(self, name) <= most:
                raise ArgumentError(f"{name}={getattr(self, name)}", f"1..{most}")
        if not self.files:
            raise ArgumentError(f"users={self.users}", "a Parquet file, or a folder of some")

    @property
    def files(self) -> list[Path]:
        """Of the users' table, in order."""
        return sorted(self.users.glob("*.parquet")) if self.users.is_dir() else [self.users] * self.users.is_file()

    def shard(self, number: int) -> Path:
        """The file of a shard."""
        return self.out / f"part-{number:06}.parquet"


def begin(job: Job) -> int:
    """Make the folder, or find in it the same job's; the number of shards.

    Raises:
        ArgumentError: the folder is another job's; or the run has features of events, for which there are no columns.
        DataError: the users' table can't be read, or lacks a column.
        CheckpointError: the run's files don't fit each other.
    """
    try:
        table = pl.scan_parquet(job.files)
        columns, rows = table.collect_schema().names(), int(table.select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{job.users}: expected Parquet ({str(error).splitlines()[0]})") from None
    if absent := {"user", "items", "times_ms"} - set(columns):
        raise DataError(f"{job.users}: expected columns user, items and times_ms, {', '.join(sorted(absent))} missing")
    checkpoint = load_checkpoint(job.run)
    if names := ", ".join(checkpoint.config.features.event):
        raise ArgumentError(f"run={job.run}", "one without features of events, which the table can't hold", got=names)
    identity = {
        "weights": checkpoint.weights_hash,
        "items": len(checkpoint.catalogue),
        "rows": rows,
        "bytes": sum(path.stat().st_size for path in job.files),
        **{name: value for name, value in asdict(job).items() if name in ("k", "shard_users")},
    }
    job.out.mkdir(parents=True, exist_ok=True)
    manifest = job.out / MANIFEST
    if not manifest.is_file():
        _write(manifest, lambda path: path.write_text(json.dumps(identity, indent=2) + "\n"))
    elif (found := json.loads(manifest.read_text())) != identity:
        differing = ", ".join(name for name in identity if found.get(name) != identity[name])
        raise ArgumentError(f"out={job.out}", "an empty folder, or one of the same job", f"another {differing}")
    return -(-rows // job.shard_users)


def missing(job: Job, shards: int) -> list[int]:
    """Numbers of the shards that aren't there yet."""
    return [number for number in range(shards) if not job.shard(number).is_file()]


def run_here(job: Job, numbers: Iterable[int], note: Callable[[int], None]) -> None:
    """Compute shards, one after another; `note` is told the users of each. Raises as `Scorer`."""
    scorer = Scorer(job)
    for number in numbers:
        note(scorer.score(number))


class Scorer:
    """Computes shards of a job, with the network loaded once.

    Raises:
        CheckpointError: the run's files don't fit each other.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.network, checkpoint = load_run(job.run)
        self.catalogue: Catalogue = checkpoint.catalogue
        self.ids = pl.Series("items", list(self.catalogue.ids), dtype=pl.String)

    @torch.no_grad()
    def score(self, number: int) -> int:
        """Write shard `number`: columns user, items (external ids, best first) and scores; the number of its users.

        Raises:
            DataError: a row's user is missing, or its items and times don't fit each other; the first one is named.
        """
        first = number * self.job.shard_users
        frame = pl.scan_parquet(self.job.files).slice(first, self.job.shard_users).collect()
        dataset = _histories(self.job, first, frame, self.catalogue)
        k = min(self.job.k, len(self.catalogue))
        items, scores = np.empty((len(frame), k), np.int64), np.empty((len(frame), k), np.float32)
        at_once = max(1, SCORE_ELEMENTS // len(self.catalogue))
        for chosen, events in pasts_before(self.network, dataset, np.arange(len(frame)), dataset.indptr[1:]):
            states = self.network.last_states(events)
            for begin in range(0, len(chosen), at_once):
                part = slice(begin, begin + at_once)
                best, found = self._best(states[part], events.of_users(begin, begin + at_once), k)
                items[chosen[part]], scores[chosen[part]] = found.numpy(), best.numpy()
        answer = pl.DataFrame(
            {
                "user": dataset.users,
                "items": self.ids.gather(items.ravel()).reshape((-1, k)).arr.to_list(),
                "scores": pl.Series(scores.ravel()).reshape((-1, k)).arr.to_list(),
            }
        )
        _write(self.job.shard(number), answer.write_parquet)
        return len(frame)

    def _best(self, states: Tensor, events: Events, k: int) -> tuple[Tensor, Tensor]:
        """[B, k] scores and indices; of equal scores the lower index."""
        if self.network.repeats is None:
            return kernels.catalogue_topk(states, self.network.item_table, k)
        ranked = self.network.scores_after(states, events).sort(dim=1, descending=True, stable=True)
        return ranked.values[:, :k], ranked.indices[:, :k]


def _histories(job: Job, first: int, frame: pl.DataFrame, catalogue: Catalogue) -> Dataset:
    """Rows of the users' table, from `first` on, as a data set; an unknown item is one past the catalogue's end."""
    try:
        frame = frame.select(
            pl.col("user").cast(pl.String),
            pl.col("items").cast(pl.List(pl.String)),
            pl.col("times_ms").cast(pl.List(pl.Int64)),
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{job.users}: expected text, a list and a list ({str(error).splitlines()[0]})") from None
    lengths = frame["items"].list.len()
    fits = frame["user"].is_not_null() & (lengths == frame["times_ms"].list.len())
    some = frame.filter(lengths.fill_null(0) > 0)
    items, times = some["items"].explode(), some["times_ms"].explode()
    if not fits.fill_null(False).all():
        row = first + int(np.flatnonzero(~fits.fill_null(False).to_numpy())[0])
        raise DataError(f"{job.users}, row {row}: expected a user, and as many times_ms as items")
    if items.null_count() or times.null_count():
        raise DataError(f"{job.users}, rows {first}..{first + len(frame) - 1}: expected items and times without nulls")
    indices = items.replace_strict(dict(catalogue.index), default=len(catalogue), return_dtype=pl.Int64)
    flat = [column.to_numpy(writable=True) for column in (indices, times)]
    indptr = np.concatenate(([0], lengths.to_numpy().astype(np.int64).cumsum()))
    return Dataset("users", frame["user"].to_list(), catalogue, flat[0], flat[1], indptr)


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Whole or not at all, whoever else writes the same."""
    fresh = path.with_name(f".{path.name}-{os.uname().nodename}-{os.getpid()}")
    write(fresh)
    fresh.rename(path)
