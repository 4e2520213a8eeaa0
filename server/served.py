"""What a repository serves now, read back from its files: which version, with which settings."""

from pathlib import Path
from typing import NamedTuple

from tritonclient.grpc import model_config_pb2

from longrec.checkpoint import load_checkpoint
from longrec.config import EngineConfig, engine_config
from longrec.server.model_configs import RECOMMENDER, Kind
from longrec.server.repository import check_repository, read_config, served_version

__all__ = ["Served", "read_served"]


class Served(NamedTuple):
    """The version of model `recommender` that a repository's `config.pbtxt` names.

    Args:
        version: its number.
        weights_hash: of its checkpoint.
        engine, kind, instances, max_queue_delay_microseconds: as `write_repository` takes them.
    """

    version: int
    weights_hash: str
    engine: EngineConfig
    kind: Kind
    instances: int
    max_queue_delay_microseconds: int


def read_served(repository: Path) -> Served:
    """Look into a repository.

    Raises:
        CheckpointError: it isn't one, or the version's checkpoint is damaged.
    """
    check_repository(repository)
    version = served_version(repository)
    assert version is not None  # the repository has been checked
    folder = repository / RECOMMENDER.name / str(version)
    config = read_config(folder / "config.pbtxt")
    (group,) = config.instance_group
    return Served(
        version,
        load_checkpoint(folder).weights_hash,
        engine_config({name: value.string_value for name, value in config.parameters.items()}, folder),
        "gpu" if group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU else "cpu",
        group.count,
        config.dynamic_batching.max_queue_delay_microseconds,
    )
