"""The task that began it all: sequences of purchases over {0, 1}, bought or not; predict the next k = 2 steps.

    python examples/purchases.py

Makes users who each repeat a rhythm of their own, a tenth of the steps flipped. Trains on all but a user's last two
steps, then serves: the server gets each history and rolls out the two steps that follow. Takes a minute.
"""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from longrec.client import Client, Options
from longrec.config import EngineConfig, ModelConfig, TrainConfig
from longrec.datasets import Dataset, leave_one_out
from longrec.datasets.synthetic import make_purchases
from longrec.modeling import save_run
from longrec.server.process import Server
from longrec.server.repository import write_repository
from longrec.training import ProgressBar, train

STEPS, K, NOISE, SHOWN = 64, 2, 0.1, 3
console = Console()


def main(
    users: Annotated[int, typer.Option(help="Sequences.")] = 2000,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 16,
) -> None:
    """Print, for each of the next two steps, how often the rollout was right."""
    logging.getLogger("longrec.server").setLevel(logging.ERROR)  # a loopback server for development is what we want
    torch.set_num_threads(1)  # quicker than two for a network so small
    dataset = make_purchases(users, STEPS, noise=NOISE)
    with TemporaryDirectory(prefix="longrec-purchases-") as folder:
        run = _train(dataset, epochs, Path(folder, "run"))
        repository = Path(folder, "repository")
        write_repository(run, repository, engine=EngineConfig())
        with Server(repository, grpc_port=0, http_port=0, metrics_port=0) as server, Client(server.grpc_url) as client:
            histories = ((key, dataset.events(user)[:-K]) for user, key in enumerate(dataset.users))
            rollouts = client.recommend_many(histories, k=1, options=Options(horizon=K))
            predicted = np.array([rollout.items[:, 0] for rollout in rollouts])  # [users, K]
    _report(dataset.items.reshape(users, STEPS), predicted)


def _train(dataset: Dataset, epochs: int, out: Path) -> Path:
    """A small network without regularisation: there is nothing to memorise, only a rule to find."""
    model = ModelConfig(num_items=2, dim=32, hidden_dim=64, window=STEPS)
    plain = {"dropout": 0.0, "item_dropout": 0.0, "label_smoothing": 0.0, "weight_decay": 0.01}
    config = TrainConfig(epochs=epochs, learning_rate=1e-2, batch_events=2048, **plain)
    with ProgressBar(console) as bar:
        trained = train(dataset, leave_one_out(dataset), model, config, [bar])
    save_run(out, trained.network, model, dataset.catalogue, {"dataset": dataset.name})
    return out


def _report(sequences: np.ndarray, predicted: np.ndarray) -> None:
    """Sequences [users, STEPS], of which the last K are those that were predicted [users, K]."""
    past, actual = sequences[:, :-K], sequences[:, -K:]
    shown = Table("the last of the past", "predicted", "came", title="some of them")
    for user in range(SHOWN):
        shown.add_row(*(" ".join(map(str, steps)) for steps in (past[user, -20:], predicted[user], actual[user])))
    console.print(shown)
    usual = (past.mean(axis=1) > 0.5)[:, None] == actual
    table = Table("step", "rollout", "the user's usual", "at best", title="share predicted rightly")
    for step in range(K):
        right = (predicted == actual)[:, step].mean()
        table.add_row(str(step + 1), f"{right:.3f}", f"{usual[:, step].mean():.3f}", f"{1 - NOISE:.3f}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
