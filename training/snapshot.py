"""The state of a training run as one file: tensors, and a JSON-able record in the file's metadata. Written whole or not
at all, so that a run that is killed goes on from its last finished epoch. No pickle."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from longrec.errors import CheckpointError

__all__ = ["SNAPSHOT", "read_snapshot", "section", "write_snapshot"]

SNAPSHOT: Final = "state.safetensors"  # its name, in the folder of a run
FORMAT = 1


def write_snapshot(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Replace `path`; what was there stays until the new file is on the disk."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    whole = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}  # no storage twice
    save_file(whole, partial, {"record": json.dumps({"format": FORMAT, **record})})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def read_snapshot(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, on the CPU, and record.

    Raises:
        CheckpointError: the file is no snapshot, or one of another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})["record"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: expected the state of a training run ({error}); train anew") from None
    if record.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format={record.get('format')}: expected {FORMAT}; train anew")
    return tensors, record


def section(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `name.`, without it."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
