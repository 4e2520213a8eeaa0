"""News: what is read today was unknown yesterday. The service learns from its own log while it serves.

    python examples/news.py

Makes nine days of readers with topics of their own, trains, and serves on the tenth day, with what is over blocked. No
article of that day was ever read before, so in the morning the order among them is chance. At noon `longrec update`
learns the morning from the event log, and puts the new weights into the running server. Takes a minute.
"""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console

from longrec.catalogue import Catalogue
from longrec.client import Client
from longrec.config import EngineConfig, ModelConfig, TrainConfig
from longrec.datasets import Dataset, leave_one_out
from longrec.modeling import save_run
from longrec.server.process import Server
from longrec.server.repository import write_repository
from longrec.training import ProgressBar, train

DAYS, TOPICS, ARTICLES, READS, K = 10, 8, 6, 8, 10  # articles of a topic and day; reads of a reader and day
INTERESTS = 2  # topics of a reader
DAY_MS, BEGAN_MS = 86_400_000, 1_760_000_000_000
console = Console()


def main(
    readers: Annotated[int, typer.Option(help="Who read.")] = 800,
    epochs: Annotated[int, typer.Option(help="Passes over the first nine days.")] = 8,
) -> None:
    """Print how many of the articles read were among the ten shown, in the morning and in the afternoon."""
    logging.getLogger("longrec.server").setLevel(logging.ERROR)  # a loopback server for development is what we want
    torch.set_num_threads(1)  # quicker than two for a network so small
    past, today = _make(readers)
    with TemporaryDirectory(prefix="longrec-news-") as folder:
        run, data, repository = Path(folder, "run"), Path(folder, "data"), Path(folder, "repository")
        past.save(data)
        _train(past, epochs, run)
        write_repository(run, repository, engine=EngineConfig())
        Path(folder, "rules").mkdir()  # beside the repository; read again when it changes
        over = [article for article in past.catalogue.ids if not article.startswith(f"day {DAYS - 1} ")]
        Path(folder, "rules", "blocked.txt").write_text("\n".join(over) + "\n")
        with (
            Server(repository, grpc_port=0, http_port=0, metrics_port=0) as server,
            Client(server.grpc_url) as client,
        ):
            for reader, key in enumerate(past.users):
                client.append(user=key, events=past.events(reader))
            noon = READS // 2
            console.print(f"morning:   hit@{K} {_serve(client, past, today[:, :noon]):.3f}")
            command = [Path(sys.executable).with_name("longrec"), "update", run, "--data", data]
            subprocess.run([*command, "--repository", repository, "--load", server.grpc_url], check=True)
            console.print(f"afternoon: hit@{K} {_serve(client, past, today[:, noon:]):.3f}")


def _make(readers: int) -> tuple[Dataset, NDArray[np.int64]]:
    """Nine days as a data set, and the tenth: [readers, READS, 2] article, unix ms."""
    rng = np.random.default_rng(0)
    ids = [f"day {day} topic {topic} no {n}" for day in range(DAYS) for topic in range(TOPICS) for n in range(ARTICLES)]
    articles = np.arange(len(ids)).reshape(DAYS, TOPICS, ARTICLES)
    reads = np.empty((readers, DAYS, READS), np.int64)
    for reader in range(readers):
        liked = rng.choice(TOPICS, INTERESTS, replace=False)
        for day in range(DAYS):
            reads[reader, day] = rng.permutation(articles[day, liked].ravel())[:READS]
    hours = np.sort(rng.integers(6 * 3_600_000, 22 * 3_600_000, reads.shape), axis=-1)
    times = BEGAN_MS + DAY_MS * np.arange(DAYS)[:, None] + hours
    length = (DAYS - 1) * READS
    keys, indptr = [f"reader {reader}" for reader in range(readers)], length * np.arange(readers + 1)
    flat = (reads[:, :-1].ravel(), times[:, :-1].ravel())
    return Dataset("news", keys, Catalogue(ids, ids), *flat, indptr), np.stack((reads, times), axis=-1)[:, -1]


def _train(dataset: Dataset, epochs: int, out: Path) -> None:
    model = ModelConfig(num_items=len(dataset.catalogue), dim=32, hidden_dim=64, window=64)
    config = TrainConfig(epochs=epochs, learning_rate=5e-3, dropout=0.1)
    with ProgressBar(console) as bar:
        trained = train(dataset, leave_one_out(dataset), model, config, [bar])
    save_run(out, trained.network, model, dataset.catalogue, {"config": config.model_dump()})


def _serve(client: Client, past: Dataset, reads: NDArray[np.int64]) -> float:
    """Stream reads [readers, n, 2], each reader's in order; the share that was among the K shown before it."""

    def events() -> Iterator[tuple[str, NDArray[np.int64]]]:
        for key in past.users:
            yield key, np.zeros((0, 3), np.int64)  # only asks
        for step in range(reads.shape[1]):
            for key, read in zip(past.users, reads[:, step], strict=True):
                yield key, np.array([[-1, *read]])

    asked = dict.fromkeys(past.users, 0)
    number = {key: reader for reader, key in enumerate(past.users)}
    hits = []
    with client.stream(k=K) as stream:
        for shown in stream.map(events()):
            step = asked[shown.user]
            asked[shown.user] += 1
            if step < reads.shape[1]:
                hits.append(reads[number[shown.user], step, 0] in shown.items)
    return float(np.mean(hits))


if __name__ == "__main__":
    typer.run(main)
