"""A checkpoint: `weights.safetensors`, `catalogue.parquet`, and `config.json` that holds the model's shape and the
hashes of the other two. Weights are NumPy arrays here; `longrec.modeling` knows which network they belong to."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longrec.added_items import ADDED_ITEMS, AddedItems
from longrec.catalogue import CATALOGUE, Catalogue
from longrec.config import ModelConfig, parse_config
from longrec.errors import ArgumentError, CheckpointError

__all__ = ["CATALOGUE", "CONFIG", "WEIGHTS", "Checkpoint", "load_checkpoint", "save_checkpoint"]

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds.

    Args:
        config: shape of the network; `num_items` is that of the training.
        weights: name -> array.
        weights_hash: sha256 of `weights.safetensors`; memories name it.
        catalogue: the items, those that were added since among them.
        added: the latter, the last of the catalogue.
        training: whatever the trainer recorded (data set, seed, metrics).
    """

    config: ModelConfig
    weights: Mapping[str, np.ndarray[Any, Any]]
    weights_hash: str
    catalogue: Catalogue
    added: AddedItems
    training: Mapping[str, Any]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_checkpoint(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray[Any, Any]],
    catalogue: Catalogue,
    training: Mapping[str, Any],
) -> None:
    """Write the three files; `config.json` last, so that a folder with one is whole."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, ADDED_ITEMS):
        (folder / name).unlink(missing_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, folder / WEIGHTS)
    catalogue.save(folder / CATALOGUE)
    manifest = {
        "format": FORMAT,
        "model": config.model_dump(),
        "sha256": {name: _sha256(folder / name) for name in (WEIGHTS, CATALOGUE)},
        "training": dict(training),
    }
    (folder / CONFIG).write_text(json.dumps(manifest, indent=2) + "\n")


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: a file is missing, its hash differs from `config.json`, the format is unknown, the config has
            unknown or misfit keys, or the catalogue's length isn't the model's.
    """
    from safetensors.numpy import load_file

    for name in (CONFIG, WEIGHTS, CATALOGUE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: expected {CONFIG}, {WEIGHTS} and {CATALOGUE}, {name} is missing")
    try:
        manifest = json.loads((folder / CONFIG).read_text())
        version, model, hashes = manifest["format"], manifest["model"], manifest["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: expected keys format, model and sha256 ({error!r})") from None
    if version != FORMAT:
        raise CheckpointError(f"{folder / CONFIG}: format={version}: expected {FORMAT}; export it again")
    for name in (WEIGHTS, CATALOGUE):
        found = _sha256(folder / name)
        if found != hashes.get(name):
            raise CheckpointError(
                f"{folder / name}: expected sha256 {hashes.get(name)} (from {CONFIG}), got {found}; "
                "the file was changed or cut short: export it again"
            )
    try:
        config = parse_config(ModelConfig, model, folder / CONFIG)
    except ArgumentError as error:
        raise CheckpointError(str(error)) from None
    catalogue = Catalogue.load_own(folder / CATALOGUE)
    if len(catalogue) != config.num_items:
        raise CheckpointError(f"{folder}: expected {config.num_items} items in {CATALOGUE}, got {len(catalogue)}")
    added = AddedItems.load(folder / CATALOGUE, config.dim)
    catalogue = catalogue.with_items(added.ids, added.titles, added.categories)
    training = manifest.get("training", {})
    return Checkpoint(config, load_file(folder / WEIGHTS), hashes[WEIGHTS], catalogue, added, training)
