"""Rules files: what they mean, that changes are seen, and that a broken one changes nothing."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from longrec.catalogue import Catalogue
from longrec.errors import DataError
from longrec.python_backend.rules import EVERY, Rules

IDS = ["10", "11", "a b", "Ünïcode", "14"]
GENRES = [["Drama"], ["Drama", "Sci-Fi"], [], ["Comedy"], ["Sci-Fi"]]


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    Catalogue(IDS, IDS, GENRES).save(tmp_path / "catalogue.parquet")
    return tmp_path / "catalogue.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rules").mkdir()
    return tmp_path / "rules"


def write(path: Path, text: str | bytes) -> None:
    """Replace a file as an operator should: beside it, then renamed. Its inode is new even within a clock's tick."""
    scratch = path.with_suffix(".new")
    scratch.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.replace(scratch, path)


def permitted(rules: Rules, *names: str) -> list[int]:
    allowed = sum(rules.bits[name] for name in names)
    return np.flatnonzero(rules.current.permits(np.arange(len(IDS)), allowed)).tolist()


def test_without_files_the_catalogue_says_the_categories(catalogue, tmp_path):
    rules = Rules(catalogue, tmp_path / "missing", interval_seconds=0)
    assert rules.current.blocked is None
    assert set(rules.bits) == {"Drama", "Sci-Fi", "Comedy"}
    assert permitted(rules) == [0, 1, 2, 3, 4]
    assert permitted(rules, "Drama") == [0, 1]
    assert permitted(rules, "Drama", "Comedy") == [0, 1, 3]
    assert not rules.refresh()


def test_a_catalogue_without_categories(tmp_path, folder):
    Catalogue(IDS, IDS).save(tmp_path / "catalogue.parquet")
    rules = Rules(tmp_path / "catalogue.parquet", folder)
    assert not rules.bits
    assert (rules.current.categories == EVERY).all()


def test_blocked_items_and_categories(catalogue, folder):
    (folder / "blocked.txt").write_text("# lost the licence\n 10 \n\nÜnïcode\n99\n")
    (folder / "blocked_categories.txt").write_text("Sci-Fi\nWestern\n")
    rules = Rules(catalogue, folder)
    assert permitted(rules) == [2]
    assert permitted(rules, "Drama") == []
    assert rules.unknown == 2, "item 99 and category Western"


def test_changes_are_seen_and_taken_back(catalogue, folder):
    rules = Rules(catalogue, folder, interval_seconds=0)
    write(folder / "blocked.txt", "11\n")
    assert rules.refresh()
    assert permitted(rules) == [0, 2, 3, 4]
    write(folder / "blocked.txt", "14\n")
    assert rules.refresh()
    assert permitted(rules) == [0, 1, 2, 3]
    (folder / "blocked.txt").unlink()
    assert rules.refresh()
    assert rules.current.blocked is None
    assert not rules.refresh(), "nothing changed since"


def test_the_files_are_looked_at_once_an_interval(catalogue, folder):
    rules = Rules(catalogue, folder, interval_seconds=1e6)
    write(folder / "blocked.txt", "11\n")
    assert not rules.refresh()
    assert permitted(rules) == [0, 1, 2, 3, 4]


def test_a_file_of_categories_replaces_the_catalogues(catalogue, folder):
    rules = Rules(catalogue, folder, interval_seconds=0)
    bits = dict(rules.bits)
    write(folder / "categories.csv", 'item,category\n10,"Kids, small"\n14,Drama\n14,Drama\n99,Drama\n')
    assert rules.refresh()
    assert permitted(rules, "Kids, small") == [0]
    assert permitted(rules, "Drama") == [4]
    assert permitted(rules, "Sci-Fi") == []
    assert rules.unknown == 1
    assert bits.items() <= rules.bits.items(), "what requests in flight were read with keeps its meaning"
    write(folder / "blocked_categories.txt", "Kids, small")
    assert rules.refresh()
    assert permitted(rules) == [1, 2, 3, 4]


BROKEN = {
    "not UTF-8": ("blocked.txt", b"\xff\xfe1\x00", r"blocked.txt: expected UTF-8 text"),
    "empty": ("categories.csv", "", r"categories.csv: expected CSV with columns item and category"),
    "no header": ("categories.csv", "10,Drama\n", r"categories.csv: expected columns item and category, got 10, Drama"),
    "empty cell": (
        "categories.csv",
        "item,category\n10,Drama\n11,\n",
        r"categories.csv: row 3: expected an item and a",
    ),
    "too many categories": (
        "categories.csv",
        "item,category\n" + "".join(f"10,c{number}\n" for number in range(64)),
        r"categories.csv: expected at most 63 categories, got 64",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_changes_nothing_and_is_said_once(catalogue, folder, caplog, case):
    name, content, message = BROKEN[case]
    write(folder / "blocked_categories.txt", "Comedy")
    rules = Rules(catalogue, folder, interval_seconds=0)
    before, bits = rules.current, dict(rules.bits)
    write(folder / name, content)
    with caplog.at_level(logging.WARNING):
        assert not rules.refresh()
        assert not rules.refresh()
    assert rules.current is before
    assert rules.bits == bits
    assert rules.failures == 1
    assert len(caplog.records) == 1
    (folder / name).unlink()
    assert rules.refresh(), "mended"
    write(folder / name, content)
    with pytest.raises(DataError, match=message):
        Rules(catalogue, folder)
