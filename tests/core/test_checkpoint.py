"""A checkpoint comes back as it was written, and one whose parts don't fit each other is refused."""

import json

import numpy as np
import pytest

from longrec.catalogue import Catalogue
from longrec.checkpoint import load_checkpoint, save_checkpoint
from longrec.config import ModelConfig
from longrec.errors import CheckpointError

CONFIG = ModelConfig(num_items=3)
CATALOGUE = Catalogue(["7", "b", "é"], ["Seven", "b", "Ému"])


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tmp_path / "run", CONFIG, {"w": np.arange(6.0).reshape(2, 3)}, CATALOGUE, {"seed": 5})
    return tmp_path / "run"


def edit(folder, **changes):
    manifest = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**manifest, **changes}))


def test_round_trip(folder):
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config == CONFIG
    assert checkpoint.catalogue == CATALOGUE
    assert checkpoint.catalogue.index["é"] == 2
    assert checkpoint.training == {"seed": 5}
    np.testing.assert_array_equal(checkpoint.weights["w"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json", "catalogue.parquet"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "catalogue.parquet"])
def test_a_changed_file_is_found_by_its_hash(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: expected sha256 \w+ \(from config.json\), got \w+"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 9}, r"format=9: expected 1"),
        ({"model": {"num_items": 3, "depth": 2}}, r"config.json: depth: expected one of num_items"),
        ({"model": {"num_items": 4}}, r"expected 4 items in catalogue.parquet, got 3"),
        ({"model": None}, r"config.json"),
    ],
    ids=["format", "unknown key", "catalogue length", "no model"],
)
def test_a_config_that_does_not_fit_is_named(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_a_config_that_is_no_json_is_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: expected keys format, model and sha256"):
        load_checkpoint(folder)


def test_a_catalogue_with_repeated_ids_is_refused(tmp_path):
    save_checkpoint(tmp_path, CONFIG, {}, Catalogue(["a", "a", "b"], ["", "", ""]), {})
    with pytest.raises(CheckpointError, match="expected unique items, got 1 repeated"):
        load_checkpoint(tmp_path)
