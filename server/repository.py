"""Writes and checks a model repository: what Triton loads. What a `config.pbtxt` says is `model_configs`' business.

<repository>/recommender/config.pbtxt            of the version that is served
<repository>/recommender/warmup/user             the key that the warm-up asks for
<repository>/recommender/<version>/config.pbtxt  as it is when this version is served
<repository>/recommender/<version>/{model.py, weights.safetensors, config.json, catalogue.parquet}
<repository>/recommender_<extra>/...             the same, but the last three are relative links: weights are on
                                                 the disk once, and the repository can be moved as a whole

All models of a repository are at the same version. Which one is served, only `config.pbtxt` says: a rollback puts that
of another version in its place.
"""

import os
import shutil
import struct
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from longrec.added_items import ADDED_ITEMS
from longrec.checkpoint import CATALOGUE, CONFIG, WEIGHTS, load_checkpoint
from longrec.config import EngineConfig
from longrec.errors import ArgumentError, CheckpointError
from longrec.family_settings import fit_engine
from longrec.schema import Schema
from longrec.server.model_configs import (
    EXTRAS,
    RECOMMENDER,
    VARIANTS,
    WARMUP_FILE,
    WARMUP_USER,
    Kind,
    Variant,
    config_text,
    model_config,
    parse_config_text,
    variant_config,
)

__all__ = [
    "check_repository",
    "models_in",
    "read_config",
    "select_version",
    "served_folder",
    "served_version",
    "versions_in",
    "write_repository",
]

CHECKPOINT_FILES = (WEIGHTS, CATALOGUE, CONFIG)
SERVED = "config.pbtxt"
REMEDY = "write one with `longrec export`"


def write_repository(
    checkpoint: Path,
    repository: Path,
    *,
    engine: EngineConfig,
    kind: Kind = "cpu",
    version: int | None = None,
    instances: int = 1,
    max_queue_delay_microseconds: int = 0,
    extras: Collection[str] = (),
    select: bool = True,
) -> Path:
    """Write `checkpoint` as a version of model `recommender`; other versions in the repository stay as they are.

    The version is made beside its place and renamed into it, and `config.pbtxt`, which names it, is replaced after
    that: a server never loads half of one.

    Args:
        checkpoint: folder that `longrec.checkpoint.save_checkpoint` wrote.
        repository: Triton's model repository; made if it is missing.
        engine, kind, instances, max_queue_delay_microseconds: as `model_config`.
        version: 1 or more; one of this number that is there already is replaced. None: one above the highest there is.
        extras: further models, keys of `EXTRAS`; those that the repository has already get the version too.
        select: make it the version that is served.

    Returns:
        The version's folder.

    Raises:
        ArgumentError: version or instances is below 1, there is no such extra, a setting doesn't fit the family, or
            events that another version may have logged would mean something else.
        CheckpointError: the checkpoint is incomplete or its parts don't fit each other.
    """
    if version is None:
        version = max(versions_in(repository), default=0) + 1
    for name, number in (("version", version), ("instances", instances)):
        if number < 1:
            raise ArgumentError(f"{name}={number}", "at least 1")
    for extra in extras:
        if extra not in EXTRAS:
            raise ArgumentError(f"extra {extra}", f"one of {', '.join(EXTRAS)}")
    shape = load_checkpoint(checkpoint).config
    engine, schema = fit_engine(engine, shape), shape.features
    _check_log(repository, schema, engine.event_log)
    config = model_config(engine, kind, instances, max_queue_delay_microseconds, version=version, schema=schema)
    target = _write_version(repository / RECOMMENDER.name, RECOMMENDER, config, checkpoint)
    if select or served_version(repository) is None:
        select_version(repository, version, extras=extras)
    return target


def select_version(repository: Path, version: int, *, extras: Collection[str] = ()) -> list[str]:
    """Let `config.pbtxt` of every model in the repository name `version`; a running server learns it by a load.

    Args:
        repository: as `write_repository` writes it.
        version: one that model `recommender` has. The other models get it where they lack it.
        extras: further models, made if the repository lacks them.

    Returns:
        Names of the models, `recommender` last: it changes when all else is in place.

    Raises:
        CheckpointError: there is no such version, or it lacks its config.
    """
    config = read_config(repository / RECOMMENDER.name / str(version) / SERVED)
    present = {name for name, variant in EXTRAS.items() if (repository / variant.name / SERVED).is_file()}
    for name in sorted({*extras, *present}):
        variant = EXTRAS[name]
        model, own = repository / variant.name, variant_config(config, variant)
        _write_version(model, variant, own, Path("..", "..", RECOMMENDER.name, str(version)), link=True)
        _replace(model / SERVED, config_text(own))
    _replace(repository / RECOMMENDER.name / SERVED, config_text(config))
    return models_in(repository)


def models_in(repository: Path) -> list[str]:
    """Names of our models in the repository, `recommender` last."""
    return [variant.name for variant in reversed(VARIANTS) if (repository / variant.name / SERVED).is_file()]


def versions_in(repository: Path) -> list[int]:
    """Versions of model `recommender`, rising."""
    model = repository / RECOMMENDER.name
    return sorted(int(folder.name) for folder in model.iterdir() if folder.name.isdecimal()) if model.is_dir() else []


def served_version(repository: Path) -> int | None:
    """The version that `config.pbtxt` of model `recommender` names; None if there is no such file.

    Raises:
        CheckpointError: the file is no model config.
    """
    path = repository / RECOMMENDER.name / SERVED
    return int(read_config(path).version_policy.specific.versions[0]) if path.is_file() else None


def served_folder(repository: Path) -> Path | None:
    """Folder of the version that is served; None if this is no model repository.

    Raises:
        CheckpointError: as `served_version`.
    """
    version = served_version(repository)
    return None if version is None else repository / RECOMMENDER.name / str(version)


def check_repository(repository: Path) -> None:
    """Whether `repository` can be served, as far as a look at its files tells.

    Raises:
        CheckpointError: there is no model `recommender`, no version of it; or one of our models lacks a file, or the
            version that its config names.
    """
    if not (repository / RECOMMENDER.name / SERVED).is_file():
        raise CheckpointError(f"{repository}: expected {RECOMMENDER.name}/{SERVED}, got no such file; {REMEDY}")
    for variant in VARIANTS:
        model = repository / variant.name
        if (model / SERVED).is_file():
            _check_model(model, variant)


def _check_log(repository: Path, schema: Schema, event_log: str) -> None:
    """Whether events that other versions may have logged mean the same to a model of this schema.

    Raises:
        ArgumentError: they don't.
    """
    for version in versions_in(repository):
        path = repository / RECOMMENDER.name / str(version) / SERVED
        parameters = read_config(path).parameters
        if "schema" not in parameters or parameters["event_log"].string_value != event_log:
            continue
        misread = schema.misread(Schema.from_json(parameters["schema"].string_value, path))
        if misread:
            raise ArgumentError(
                f"features.{misread}",
                f"the column of version {version}, as the log holds it; values may be appended",
                remedy="import the data with that version's values and edges in the schema, or set another event_log",
            )


def _check_model(model: Path, variant: Variant) -> None:
    versions = {folder.name for folder in model.iterdir() if folder.name.isdecimal()}
    if not versions:
        raise CheckpointError(f"{model}: expected a folder for each version (1, 2 …), got none; {REMEDY}")
    config = read_config(model / SERVED)
    for served in config.version_policy.specific.versions:
        if str(served) not in versions:
            raise CheckpointError(
                f"{model}: expected version {served}, which {SERVED} names, got {', '.join(sorted(versions))}; "
                "choose one with `longrec rollback`"
            )
    needed = [Path(version, name) for version in sorted(versions) for name in _files(variant)]
    if config.model_warmup:
        needed.append(Path("warmup", WARMUP_FILE))
    for path in needed:
        if not (model / path).is_file():
            raise CheckpointError(f"{model / path.parent}: expected {path.name}, got no such file; {REMEDY}")


def _files(variant: Variant) -> Iterable[str]:
    return ("model.py", *(CHECKPOINT_FILES if variant.has_checkpoint else ()))


def _write_version(model: Path, variant: Variant, config: Any, checkpoint: Path, *, link: bool = False) -> Path:
    """Make a version's folder, whole or not at all, with the files of `checkpoint` or links to them."""
    (version,) = config.version_policy.specific.versions
    model.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=model) as scratch:
        fresh, target = Path(scratch, "fresh"), model / str(version)
        fresh.mkdir()
        (fresh / "model.py").write_text(variant.model_file)
        (fresh / SERVED).write_text(config_text(config))
        for name in CHECKPOINT_FILES if variant.has_checkpoint else ():
            if link:
                (fresh / name).symlink_to(checkpoint / name)
            else:
                shutil.copy(checkpoint / name, fresh)
        if not link and (checkpoint / ADDED_ITEMS).is_file():
            shutil.copy(checkpoint / ADDED_ITEMS, fresh)
        if config.model_warmup:
            (model / "warmup").mkdir(exist_ok=True)
            (model / "warmup" / WARMUP_FILE).write_bytes(struct.pack("<I", len(WARMUP_USER)) + WARMUP_USER)
        if target.exists():
            target.rename(Path(scratch, "replaced"))
        fresh.rename(target)
    return target


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}-{os.getpid()}")
    fresh.write_text(text)
    os.replace(fresh, path)


def read_config(path: Path) -> Any:
    """The `inference.ModelConfig` message in a `config.pbtxt`.

    Raises:
        CheckpointError: there is no such file, or it is no model config that names a version.
    """
    try:
        config = parse_config_text(path.read_text())
        config.version_policy.specific.versions[0]
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: expected {path.name}, got no such file; {REMEDY}") from None
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: expected a model config that names a version, got: {error}; {REMEDY}") from None
    return config
