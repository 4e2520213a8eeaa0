"""A training run at the end of an epoch, to and from a snapshot: after a restart it goes on to the same bits."""

from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset
from longrec.errors import CheckpointError
from longrec.training.distributed import World
from longrec.training.schedule import Budget
from longrec.training.selection import Selection
from longrec.training.snapshot import read_snapshot, section, write_snapshot
from longrec.training.stepping import Stepper

__all__ = ["Progress", "fingerprint", "restore", "save"]


@dataclass
class Progress:
    """Where a run is.

    Args:
        budget: epochs done and left.
        selection: the best weights so far.
        history: a record an epoch.
        events: input events so far.
        training_seconds: of them, validation aside.
        seconds: the whole run so far.
    """

    budget: Budget
    selection: Selection
    history: list[dict[str, Any]]
    events: int = 0
    training_seconds: float = 0.0
    seconds: float = 0.0


def fingerprint(dataset: Dataset, model: ModelConfig, config: TrainConfig, world: World) -> dict[str, Any]:
    """What a run must have in common with the one it goes on with; JSON-able."""
    data = sha256()
    for array in (dataset.items, dataset.times_ms, dataset.indptr, *dataset.columns.values()):
        data.update(array.tobytes())
    return {
        "dataset": data.hexdigest(),
        "model": model.model_dump(mode="json"),
        "training": config.model_dump(mode="json"),
        "processes": world.size,
    }


def save(path: Path, run: dict[str, Any], stepper: Stepper, progress: Progress) -> None:
    """Write a snapshot, on rank 0; all ranks call."""
    tensors = {f"objective.{name}": weight for name, weight in stepper.objective.state_dict().items()}
    for place, values in stepper.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{place}.{name}": value for name, value in values.items() if value is not None}
    if stepper.average:
        tensors |= {f"average.{place}": weight for place, weight in enumerate(stepper.average.weights)}
    tensors |= {f"best.{name}": weight for name, weight in progress.selection.weights.items()}
    tensors |= {f"random.{name}": stepper.world.rows(value) for name, value in _generators(stepper).items()}
    if stepper.world.rank:
        return
    selection = {name: getattr(progress.selection, name) for name in ("score", "epoch", "misses")}
    record = {
        "run": run,
        "taken": stepper.taken,
        "budget": asdict(progress.budget),
        "selection": selection,
        "history": progress.history,
        "events": progress.events,
        "training_seconds": progress.training_seconds,
        "seconds": progress.seconds,
    }
    write_snapshot(path, tensors, record)


def restore(path: Path, run: dict[str, Any], stepper: Stepper) -> Progress:
    """Put `stepper` and torch's generators into the state of a snapshot.

    Raises:
        CheckpointError: as `read_snapshot`, or it is of another run than `run` says.
    """
    tensors, record = read_snapshot(path)
    for name, expected in run.items():
        if record["run"].get(name) != expected:
            raise CheckpointError(
                f"{path}: {name}: expected what the run began with, got another; resume with the same data, settings "
                "and number of processes"
            )
    stepper.objective.load_state_dict(section(tensors, "objective"))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in section(tensors, "optimizer").items():
        place, key = name.split(".", 1)
        state.setdefault(int(place), {})[key] = value
    groups = stepper.optimizer.state_dict()["param_groups"]
    stepper.optimizer.load_state_dict({"state": state, "param_groups": groups})
    if stepper.average:
        for number, weight in enumerate(stepper.average.weights):
            weight.copy_(tensors[f"average.{number}"])
    stepper.taken = record["taken"]
    random = {name: rows[stepper.world.rank] for name, rows in section(tensors, "random").items()}
    torch.set_rng_state(random["cpu"])
    if "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"])
    selection = Selection(**record["selection"], weights=section(tensors, "best"))
    budget = Budget(record["budget"]["asked"], record["budget"]["max_seconds"])
    for field in fields(Budget):
        setattr(budget, field.name, record["budget"][field.name])
    return Progress(
        budget, selection, record["history"], record["events"], record["training_seconds"], record["seconds"]
    )


def _generators(stepper: Stepper) -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    if stepper.network.start.is_cuda:
        found["cuda"] = torch.cuda.get_rng_state()
    return found
