"""One RecTools network, trained an epoch at a time for `quality.py`, which sends commands and ranks the answers.

Runs in an environment of its own, with `rectools[torch]` and nothing of longrec:

    python rectools_worker.py MODEL FOLDER SEED THREADS [LENGTH]

FOLDER holds the interactions as flat arrays, user after user, oldest first: `user.npy`, `item.npy`, `time_ms.npy`, and
`part.npy`: 0 trained on, 1 the validation event, 2 the test event. Commands are lines on stdin, answers JSON lines on
stdout: `epoch` trains one and tells its seconds; `rank 1` (or 2) ranks the event of that part given every event before
it, writes `ranks.npy` [E] and says so. Ranks are RecTools' own `recommend`, of the whole catalogue, nothing filtered.
"""

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel, SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers

DIM, BLOCKS, HEADS, LENGTH = 64, 2, 2, 200  # the sizes that every network of the comparison has
BATCH_USERS = 128  # RecTools' default, as are learning rate, dropout and full softmax


def build(name: str, length: int) -> Any:
    """`sasrec`, `esasrec` (SASRec with LiGR blocks), or `hstu`."""
    shape = {"n_factors": DIM, "n_blocks": BLOCKS, "n_heads": HEADS, "session_max_len": length}
    options = {"loss": "softmax", "batch_size": BATCH_USERS, "epochs": 1, "recommend_torch_device": "cpu", **shape}
    if name == "hstu":
        return HSTUModel(**options)
    if name == "esasrec":
        return SASRecModel(transformer_layers_type=LiGRLayers, **options)
    return SASRecModel(**options)


class Worker:
    """The interactions, and the network between two commands."""

    def __init__(self, name: str, folder: Path, seed: int, length: int) -> None:
        arrays = (np.load(folder / f"{column}.npy") for column in ("user", "item", "time_ms", "part"))
        user, item, time_ms, self.part = arrays
        columns = {Columns.User: user, Columns.Item: item, Columns.Weight: 1.0}
        self.frame = pd.DataFrame({**columns, Columns.Datetime: pd.to_datetime(time_ms, unit="ms")})
        self.folder, self.length = folder, length
        seed_everything(seed)
        self.model = build(name, length)
        self.training = Dataset.construct(self.frame[self.part == 0])

    def epoch(self) -> dict[str, Any]:
        """Train one epoch; the events are those that enter the loss, padding not counted."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.model.fit_partial(self.training, min_epochs=1, max_epochs=1)
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        counts = self.frame[self.part == 0].groupby(Columns.User).size().to_numpy()
        events = int(np.clip(counts - 1, 0, self.length).sum())
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "events": events}

    def rank(self, part: int) -> dict[str, Any]:
        """Ranks from 0 by the test users' order; an item that was never trained on ranks last."""
        targets = self.frame[self.part == part]
        arguments: dict[str, Any] = {"users": targets[Columns.User].to_numpy(), "filter_viewed": False}
        if self.model.require_recommend_context:  # HSTU is told when the event that it predicts takes place
            arguments["context"] = targets[[Columns.User, Columns.Datetime, Columns.Weight]].copy()
        num_items = int(self.frame[Columns.Item].max()) + 1
        past = Dataset.construct(self.frame[self.part < part])
        answers = self.model.recommend(dataset=past, k=num_items, **arguments)
        found = targets.merge(answers, on=[Columns.User, Columns.Item], how="left")
        ranks = found[Columns.Rank].fillna(num_items).to_numpy(dtype=np.int64) - 1
        np.save(self.folder / "ranks.npy", ranks)
        return {"ranks": len(ranks)}


def main() -> None:
    name, folder, seed, threads, *length = sys.argv[1:]
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    torch.set_num_threads(int(threads))
    worker = Worker(name, Path(folder), int(seed), int(length[0]) if length else LENGTH)
    for line in sys.stdin:
        command, *arguments = line.split()
        answer = worker.epoch() if command == "epoch" else worker.rank(int(arguments[0]))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
