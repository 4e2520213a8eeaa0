"""Films: what to watch next, why, and for whom. Trained on MovieLens-100k, which the project fetches.

    python examples/video.py

Trains, serves, sends the users' past, and then streams their last films one by one: how often the film that they chose
next was among the ten that the server showed. Then for one of them: why each film is shown, and what a profile for
children sees. Takes a minute and a half.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from longrec.client import Client, Options
from longrec.config import EngineConfig, ModelConfig, TrainConfig
from longrec.datasets import Dataset, fetch, leave_one_out
from longrec.modeling import save_run
from longrec.server.process import Server
from longrec.server.repository import write_repository
from longrec.training import ProgressBar, train

LAST, K = 2, 10  # films of each user that aren't trained on, and are streamed
console = Console()


def main(
    data: Annotated[Path, typer.Option(help="Where the data set lies, or is put.")] = Path("data/ml-100k"),
    epochs: Annotated[int, typer.Option(help="Passes over it.")] = 12,
    users: Annotated[int, typer.Option(help="Whose last films are streamed.")] = 300,
) -> None:
    """Print hits of the streamed films, and one user's films with reasons."""
    logging.getLogger("longrec.server").setLevel(logging.ERROR)  # a loopback server for development is what we want
    torch.set_num_threads(1)  # quicker than two for a network so small
    if not (data / "dataset.json").is_file():
        fetch("ml-100k").save(data)
    dataset = Dataset.load(data)
    with TemporaryDirectory(prefix="longrec-video-") as folder:
        run, repository = Path(folder, "run"), Path(folder, "repository")
        _train(dataset, epochs, run)
        write_repository(run, repository, engine=EngineConfig())
        with (
            Server(repository, grpc_port=0, http_port=0, metrics_port=0) as server,
            Client(server.grpc_url, catalogue=run) as client,
        ):
            _stream(client, dataset, range(users))
            _explain(client, dataset, user=0)


def _train(dataset: Dataset, epochs: int, out: Path) -> None:
    model = ModelConfig(num_items=len(dataset.catalogue))
    with ProgressBar(console) as bar:
        trained = train(dataset, leave_one_out(dataset), model, TrainConfig(epochs=epochs), [bar])
    save_run(out, trained.network, model, dataset.catalogue, {"dataset": dataset.name})


def _stream(client: Client, dataset: Dataset, users: range) -> None:
    """Send the users' past, then their last films one by one; hits of the films that came, beside the most popular."""
    histories = {dataset.users[user]: dataset.events(user) for user in users}
    popular = np.argsort(-np.bincount(dataset.items, minlength=len(dataset.catalogue)), kind="stable")[:K]

    def films() -> Iterator[tuple[str, NDArray[np.int64]]]:
        for step in range(LAST):
            for user, history in histories.items():
                at = len(history) - LAST + step - 1
                yield user, history[at : at + 1] if step else history[: at + 1]

    hits, usual = [], []
    with client.stream(k=K) as stream:
        for shown in stream.map(films()):
            chosen = histories[shown.user][shown.position, 1]
            hits.append(chosen in shown.items)
            usual.append(chosen in popular)
    console.print(f"{len(hits)} films: hit@{K} {np.mean(hits):.3f}, the most popular films {np.mean(usual):.3f}")


def _explain(client: Client, dataset: Dataset, user: int) -> None:
    """Why each of a user's films is shown, and which are for children."""
    watched, titles = dataset.events(user)[:, 1], dataset.catalogue.titles
    key = dataset.users[user]
    shown = client.recommend(user=key, k=5, options=Options(exclude_seen=True, explain=1))
    assert shown.because is not None
    table = Table("recommended", "because of", title=f"user {key}")
    for title, (position,) in zip(shown.titles, shown.because.tolist(), strict=True):
        table.add_row(title, titles[watched[position]])
    console.print(table)
    small = client.recommend(user=key, k=5, options=Options(exclude_seen=True, categories=["Children's"]))
    console.print("for children:", "; ".join(small.titles))


if __name__ == "__main__":
    typer.run(main)
