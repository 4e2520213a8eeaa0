"""The model repository: versions appear whole or not at all, all models move together, `config.pbtxt` says where to."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from longrec.catalogue import Catalogue
from longrec.checkpoint import CATALOGUE, CONFIG, WEIGHTS, load_checkpoint, save_checkpoint
from longrec.config import EngineConfig, ModelConfig
from longrec.errors import ArgumentError, CheckpointError
from longrec.modeling import Transformer, save_run
from longrec.protocol import MODEL
from longrec.schema import EventCategory, EventFeature, Schema, Weekday
from longrec.server.model_configs import EXTRAS, parse_config_text
from longrec.server.repository import (
    check_repository,
    models_in,
    select_version,
    served_version,
    versions_in,
    write_repository,
)

COMMITTED = Path(__file__).parents[2] / "model_repository"
VERSION_FILES = {"model.py", "config.pbtxt", WEIGHTS, CONFIG, CATALOGUE}


def parse(path: Path):
    return parse_config_text(path.read_text())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = ModelConfig(num_items=3)
    weights = {"table": np.ones((3, config.dim), np.float32)}
    save_checkpoint(tmp_path / "checkpoint", config, weights, Catalogue(["a", "b", "c"], ["A", "B", "C"]), {})
    return tmp_path / "checkpoint"


def test_committed_repository_is_what_is_written_by_default(checkpoint: Path, tmp_path: Path) -> None:
    version = write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig())
    committed, fresh = COMMITTED / MODEL, version.parent
    for file in ("config.pbtxt", "warmup/user", "1/model.py"):
        assert (committed / file).read_bytes() == (fresh / file).read_bytes(), f"cp {fresh / file} {committed / file}"


def test_version_is_complete_and_others_stay(checkpoint: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    first = write_repository(checkpoint, repository, engine=EngineConfig())
    second = write_repository(checkpoint, repository, engine=EngineConfig(max_k=5))
    for version in (first, second):
        assert {file.name for file in version.iterdir()} == VERSION_FILES
        assert (version / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()
    assert {entry.name for entry in first.parent.iterdir()} == {"1", "2", "config.pbtxt", "warmup"}
    assert (versions_in(repository), served_version(repository)) == ([1, 2], 2)
    check_repository(repository)


def test_version_is_replaced(checkpoint: Path, tmp_path: Path) -> None:
    version = write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig())
    (version / "stale").touch()
    write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig(), version=1)
    assert not (version / "stale").exists()


def test_a_version_brings_its_own_settings(checkpoint: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_repository(checkpoint, repository, engine=EngineConfig(max_k=5), kind="gpu", instances=2)
    write_repository(checkpoint, repository, engine=EngineConfig(max_k=7), extras=["sequence"])
    for version, max_k, instances in ((2, "7", 1), (1, "5", 2), (2, "7", 1)):
        assert select_version(repository, version) == [EXTRAS["sequence"].name, MODEL]
        for name in models_in(repository):
            config = parse(repository / name / "config.pbtxt")
            assert list(config.version_policy.specific.versions) == [version]
            assert config.parameters["max_k"].string_value == max_k
            assert config.instance_group[0].count == instances
        check_repository(repository)


def test_a_version_can_be_written_without_being_served(checkpoint: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for _ in range(2):
        write_repository(checkpoint, repository, engine=EngineConfig(), select=False)
    assert (versions_in(repository), served_version(repository)) == ([1, 2], 1)


def test_select_wants_a_version_that_is_there(checkpoint: Path, tmp_path: Path) -> None:
    write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig())
    with pytest.raises(CheckpointError, match=r"recommender/3: expected config.pbtxt"):
        select_version(tmp_path / "repository", 3)
    assert served_version(tmp_path / "repository") == 1


def test_extras_hold_no_second_copy_and_move_with_the_repository(checkpoint: Path, tmp_path: Path) -> None:
    repository, moved = tmp_path / "repository", tmp_path / "elsewhere" / "repository"
    write_repository(checkpoint, repository, engine=EngineConfig(), extras=list(EXTRAS))
    write_repository(checkpoint, repository, engine=EngineConfig())  # those that are there get the version too
    shutil.copytree(repository, moved, symlinks=True)
    shutil.rmtree(repository)
    assert models_in(moved) == ["recommender_recompute", "recommender_echo", "recommender_sequence", "recommender"]
    check_repository(moved)
    for name in models_in(moved):
        for version in ("1", "2"):
            folder = moved / name / version
            files = VERSION_FILES if name != "recommender_echo" else {"model.py", "config.pbtxt"}
            assert {file.name for file in folder.iterdir()} == files
            if name not in (MODEL, "recommender_echo"):
                assert all((folder / file).is_symlink() for file in (WEIGHTS, CONFIG, CATALOGUE))
                assert load_checkpoint(folder).catalogue.ids == ["a", "b", "c"]


def test_unknown_extra(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="extra ecco: expected one of sequence, echo, recompute"):
        write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig(), extras=["ecco"])
    assert not (tmp_path / "repository").exists()


def test_bad_checkpoint_leaves_the_repository_alone(checkpoint: Path, tmp_path: Path) -> None:
    version = write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig())
    before = (version / WEIGHTS).read_bytes()
    (checkpoint / WEIGHTS).write_bytes(before[:-1])
    with pytest.raises(CheckpointError, match="sha256"):
        write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig())
    assert (version / WEIGHTS).read_bytes() == before
    assert {entry.name for entry in version.parent.iterdir()} == {"1", "config.pbtxt", "warmup"}


@pytest.mark.parametrize("argument", ["version", "instances"])
def test_numbers_below_one(checkpoint: Path, tmp_path: Path, argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"{argument}=0: expected at least 1"):
        write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig(), **{argument: 0})
    assert not (tmp_path / "repository").exists()


LOSSES = ["config.pbtxt", "warmup/user", "1/model.py", f"1/{WEIGHTS}", f"1/{CONFIG}", f"1/{CATALOGUE}"]


@pytest.mark.parametrize("lost", [f"{MODEL}/{file}" for file in LOSSES] + ["recommender_sequence/1/model.py"])
def test_check_names_what_is_missing(checkpoint: Path, tmp_path: Path, lost: str) -> None:
    repository = tmp_path / "repository"
    write_repository(checkpoint, repository, engine=EngineConfig(), extras=["sequence"])
    (repository / lost).unlink()
    with pytest.raises(CheckpointError, match=f"expected .*{Path(lost).name}.*longrec export"):
        check_repository(repository)


def test_check_wants_a_version(checkpoint: Path, tmp_path: Path) -> None:
    version = write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig())
    version.rename(version.with_name("2"))
    with pytest.raises(CheckpointError, match=r"expected version 1, which config.pbtxt names, got 2; .*rollback"):
        check_repository(tmp_path / "repository")
    shutil.rmtree(version.with_name("2"))
    with pytest.raises(CheckpointError, match="a folder for each version"):
        check_repository(tmp_path / "repository")


@pytest.mark.parametrize("text", ["", "inputs: 3"])
def test_check_wants_a_config_that_names_a_version(checkpoint: Path, tmp_path: Path, text: str) -> None:
    version = write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig())
    (version.parent / "config.pbtxt").write_text(text)
    with pytest.raises(CheckpointError, match="expected a model config that names a version"):
        check_repository(tmp_path / "repository")


def with_features(folder: Path, **features: EventFeature) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(num_items=3, dim=8, num_layers=1, hidden_dim=8, window=8, features=Schema(event=features))
    save_run(folder, Transformer(config), config, Catalogue(["a", "b", "c"], ["A", "B", "C"]), {})
    return folder


def test_the_wire_of_events_with_features_is_stated(tmp_path: Path) -> None:
    action = EventCategory(kind="category", values=("view", "buy"))
    run = with_features(tmp_path / "run", action=action, day=Weekday(kind="weekday"))
    write_repository(run, tmp_path / "repository", engine=EngineConfig(), extras=list(EXTRAS))
    for name in models_in(tmp_path / "repository"):
        config = parse(tmp_path / "repository" / name / "config.pbtxt")
        assert list(next(one.dims for one in config.input if one.name == "EVENT")) == [-1, -1]
        schema = Schema.from_json(config.parameters["schema"].string_value, "here")
        assert list(schema.event) == ["action", "day"]
        assert schema.columns == {"action": action}


@pytest.mark.parametrize(
    ("values", "fits"),
    [(("view", "buy", "like"), True), (("view",), True), (("buy", "view"), False), (("view", "like", "buy"), False)],
)
def test_a_version_that_would_misread_the_log_is_refused(tmp_path: Path, values: tuple[str, ...], fits: bool) -> None:
    repository = tmp_path / "repository"
    old = with_features(tmp_path / "old", action=EventCategory(kind="category", values=("view", "buy")))
    new = with_features(tmp_path / "new", action=EventCategory(kind="category", values=values))
    plain = with_features(tmp_path / "plain")
    write_repository(old, repository, engine=EngineConfig())
    write_repository(plain, repository, engine=EngineConfig())
    write_repository(new, tmp_path / "other", engine=EngineConfig(event_log="../another"))
    if fits:
        write_repository(new, repository, engine=EngineConfig())
    else:
        with pytest.raises(ArgumentError, match=r"features\.action: expected the column of version 1"):
            write_repository(new, repository, engine=EngineConfig())
        write_repository(new, repository, engine=EngineConfig(event_log="../another"))
