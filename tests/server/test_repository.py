"""The model repository: what Triton is told, and that a version appears whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from longrec.catalogue import Catalogue
from longrec.checkpoint import CATALOGUE, CONFIG, WEIGHTS, save_checkpoint
from longrec.config import EngineConfig, ModelConfig
from longrec.errors import ArgumentError, CheckpointError
from longrec.protocol import INPUTS, MODEL, OUTPUTS
from longrec.server.repository import MODEL_FILE, check_repository, model_config, write_repository

COMMITTED = Path(__file__).parents[2] / "model_repository"
TYPES = {np.object_: "TYPE_STRING", np.int64: "TYPE_INT64", np.float32: "TYPE_FP32"}


def parse(path: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = ModelConfig(num_items=3)
    weights = {"table": np.ones((3, config.dim), np.float32)}
    save_checkpoint(tmp_path / "checkpoint", config, weights, Catalogue(["a", "b", "c"], ["A", "B", "C"]), {})
    return tmp_path / "checkpoint"


def test_committed_repository_is_what_is_written_by_default(checkpoint: Path, tmp_path: Path) -> None:
    version = write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig())
    committed, fresh = COMMITTED / MODEL / "config.pbtxt", version.parent / "config.pbtxt"
    assert parse(committed) == parse(fresh), f"a setting changed: cp {fresh} {committed}"
    assert (COMMITTED / MODEL / "1" / "model.py").read_text() == (version / "model.py").read_text() == MODEL_FILE


def test_config_states_the_wire() -> None:
    config = model_config(EngineConfig())
    for specs, tensors in ((INPUTS, config.input), (OUTPUTS, config.output)):
        assert [spec.name for spec in specs] == [tensor.name for tensor in tensors]
        assert [list(spec.dims) for spec in specs] == [list(tensor.dims) for tensor in tensors]
        assert [TYPES[spec.dtype] for spec in specs] == [
            model_config_pb2.DataType.Name(tensor.data_type) for tensor in tensors
        ]
    assert [tensor.name for tensor in config.input if tensor.allow_ragged_batch] == ["EVENT", "CANDIDATE"]
    assert not any(tensor.optional for tensor in config.input)
    assert config.HasField("dynamic_batching")


def test_config_carries_every_engine_setting() -> None:
    engine = EngineConfig(max_k=7, durability="commit", memory_bytes=1 << 20)
    parameters = {name: value.string_value for name, value in model_config(engine).parameters.items()}
    assert EngineConfig(**parameters) == engine


def test_kind_instances_and_delay() -> None:
    config = model_config(EngineConfig(), "gpu", instances=2, max_queue_delay_microseconds=500)
    (group,) = config.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 2)
    assert config.dynamic_batching.max_queue_delay_microseconds == 500


def test_version_is_complete_and_others_stay(checkpoint: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    first = write_repository(checkpoint, repository, engine=EngineConfig())
    second = write_repository(checkpoint, repository, engine=EngineConfig(max_k=5), version=2)
    for version in (first, second):
        assert {file.name for file in version.iterdir()} == {"model.py", WEIGHTS, CONFIG, CATALOGUE}
        assert (version / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()
    assert {entry.name for entry in first.parent.iterdir()} == {"1", "2", "config.pbtxt"}
    check_repository(repository)


def test_version_is_replaced(checkpoint: Path, tmp_path: Path) -> None:
    version = write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig())
    (version / "stale").touch()
    write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig())
    assert not (version / "stale").exists()


def test_bad_checkpoint_leaves_the_repository_alone(checkpoint: Path, tmp_path: Path) -> None:
    version = write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig())
    before = (version / WEIGHTS).read_bytes()
    (checkpoint / WEIGHTS).write_bytes(before[:-1])
    with pytest.raises(CheckpointError, match="sha256"):
        write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig())
    assert (version / WEIGHTS).read_bytes() == before
    assert {entry.name for entry in version.parent.iterdir()} == {"1", "config.pbtxt"}


@pytest.mark.parametrize("argument", ["version", "instances"])
def test_numbers_below_one(checkpoint: Path, tmp_path: Path, argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"{argument}=0: expected at least 1"):
        write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig(), **{argument: 0})
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("lost", ["config.pbtxt", "1/model.py", f"1/{WEIGHTS}", f"1/{CONFIG}", f"1/{CATALOGUE}"])
def test_check_names_what_is_missing(checkpoint: Path, tmp_path: Path, lost: str) -> None:
    version = write_repository(checkpoint, tmp_path / "repository", engine=EngineConfig())
    (version.parent / lost).unlink()
    with pytest.raises(CheckpointError, match=f"expected .*{Path(lost).name}.*longrec export"):
        check_repository(tmp_path / "repository")


def test_check_wants_a_version(tmp_path: Path) -> None:
    (tmp_path / MODEL).mkdir()
    (tmp_path / MODEL / "config.pbtxt").touch()
    with pytest.raises(CheckpointError, match="a folder for each version"):
        check_repository(tmp_path)
