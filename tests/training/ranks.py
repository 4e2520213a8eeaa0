"""A program for torchrun: trains a few networks on its rank's part of each batch, and rank 0 saves their weights.

Arguments: a dataset folder, the file to write. Alone, without torchrun, it trains on all of each batch.
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, leave_one_out
from longrec.training import train
from longrec.training.distributed import open_world

PLAIN = {
    "sequence_length": 8,
    "batch_events": 64,
    "epochs": 2,
    "warmup_steps": 2,
    "dropout": 0.0,
    "item_dropout": 0.0,
    "learning_rate": 0.01,
    "loss": "gbce",
    "num_negatives": 4,
    "validate_every": 1,
}
FAMILIES = ("transformer", "transformer_xl", "gru", "hstu")


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    data = Dataset.load(folder)
    found = {}
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    with open_world(rank, size, "cpu") as world:
        for family in FAMILIES:
            model = ModelConfig(
                num_items=len(data.catalogue), family=family, dim=8, num_layers=1, hidden_dim=8, window=8
            )
            others = {"gru": {"ema_decay": 0.5}, "hstu": {"steps_ahead": 3}}.get(family, {})
            config = TrainConfig.model_validate({**PLAIN, **others})
            trained = train(data, leave_one_out(data), model, config, world=world)
            found |= {f"{family}.{name}": weight for name, weight in trained.network.state_dict().items()}
            found[f"{family}.losses"] = torch.tensor([record["loss"] for record in trained.history])
        if world.rank == 0:
            save_file(found, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
