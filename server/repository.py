"""Writes and checks a model repository: what Triton loads. The model's code is `longrec.python_backend.model`.

<repository>/recommender/config.pbtxt
<repository>/recommender/<version>/{model.py, weights.safetensors, config.json, catalogue.parquet}
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from longrec.checkpoint import CATALOGUE, CONFIG, WEIGHTS, load_checkpoint
from longrec.config import EngineConfig
from longrec.errors import ArgumentError, CheckpointError
from longrec.protocol import INPUTS, MODEL, OUTPUTS

__all__ = ["MAX_BATCH", "MODEL_FILE", "check_repository", "model_config", "write_repository"]

MAX_BATCH: Final = 256
MODEL_FILE: Final = '''"""What Triton loads; the model itself is `longrec.python_backend.model`."""

from longrec.python_backend.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''

_DTYPES: Final = {np.object_: "TYPE_STRING", np.int64: "TYPE_INT64", np.float32: "TYPE_FP32"}


def model_config(
    engine: EngineConfig,
    kind: Literal["cpu", "gpu"] = "cpu",
    instances: int = 1,
    max_queue_delay_microseconds: int = 0,
) -> Any:
    """The `inference.ModelConfig` message of model `recommender`.

    Inputs of free length are ragged, and none is `optional`: an optional input makes Triton's batcher split batches.

    Args:
        engine: each field becomes a model parameter, as a string.
        kind: where the instances run.
        instances: of the model; on GPUs one a GPU is meant.
        max_queue_delay_microseconds: how long a request may wait for others to join its batch. 0: a batch is what came
            while the last one ran.
    """
    config = model_config_pb2.ModelConfig(name=MODEL, backend="python", max_batch_size=MAX_BATCH)
    for spec in INPUTS:
        ragged = any(dim < 0 for dim in spec.dims)
        config.input.add(
            name=spec.name, data_type=_DTYPES[spec.dtype], dims=spec.dims, allow_ragged_batch=ragged or None
        )
    for spec in OUTPUTS:
        config.output.add(name=spec.name, data_type=_DTYPES[spec.dtype], dims=spec.dims)
    config.dynamic_batching.max_queue_delay_microseconds = max_queue_delay_microseconds
    config.instance_group.add(kind=f"KIND_{kind.upper()}", count=instances)
    for name, value in engine.model_dump().items():
        config.parameters[name].string_value = str(value)
    return config


def write_repository(
    checkpoint: Path,
    repository: Path,
    *,
    engine: EngineConfig,
    kind: Literal["cpu", "gpu"] = "cpu",
    version: int = 1,
    instances: int = 1,
    max_queue_delay_microseconds: int = 0,
) -> Path:
    """Write `checkpoint` as a version of model `recommender`; other versions in the repository stay as they are.

    The version is made beside its place and renamed into it, so that a server never loads half of one.

    Args:
        checkpoint: folder that `longrec.checkpoint.save_checkpoint` wrote.
        repository: Triton's model repository; made if it is missing.
        engine, kind, instances, max_queue_delay_microseconds: as `model_config`.
        version: 1 or more; one of this number that is there already is replaced.

    Returns:
        The version's folder.

    Raises:
        ArgumentError: version or instances is below 1.
        CheckpointError: the checkpoint is incomplete or its parts don't fit each other.
    """
    for name, number in (("version", version), ("instances", instances)):
        if number < 1:
            raise ArgumentError(f"{name}={number}", "at least 1")
    load_checkpoint(checkpoint)
    config = model_config(engine, kind, instances, max_queue_delay_microseconds)
    model = repository / MODEL
    model.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=model) as scratch:
        fresh, target = Path(scratch, "fresh"), model / str(version)
        fresh.mkdir()
        (fresh / "model.py").write_text(MODEL_FILE)
        for name in (WEIGHTS, CATALOGUE, CONFIG):
            shutil.copy(checkpoint / name, fresh)
        Path(scratch, "config.pbtxt").write_text(text_format.MessageToString(config))
        if target.exists():
            target.rename(Path(scratch, "replaced"))
        fresh.rename(target)
        os.replace(Path(scratch, "config.pbtxt"), model / "config.pbtxt")
    return target


def check_repository(repository: Path) -> None:
    """Whether `repository` can be served, as far as a look at its files tells.

    Raises:
        CheckpointError: there is no model `recommender`, no version of it, or a version lacks a file.
    """
    model = repository / MODEL
    remedy = "write one with `longrec export`"
    if not (model / "config.pbtxt").is_file():
        raise CheckpointError(f"{repository}: expected {MODEL}/config.pbtxt, got no such file; {remedy}")
    versions = [folder for folder in model.iterdir() if folder.name.isdecimal()]
    if not versions:
        raise CheckpointError(f"{model}: expected a folder for each version (1, 2 …), got none; {remedy}")
    for folder in versions:
        for name in ("model.py", WEIGHTS, CONFIG, CATALOGUE):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder}: expected {name}, got no such file; {remedy}")
