"""A shop: phones and the cases that fit them. What goes with what is learnt from orders; the rest are rules.

    python examples/shop.py

Makes a file of orders, imports it, trains, serves, and shows three things that a shop asks of a recommender: what goes
with the basket, out of one category and without what was bought; which of given offers suits the customer best; and an
article that must no longer be shown, blocked while the server runs. Takes a minute.
"""

import logging
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import polars as pl
import torch
import typer
from rich.console import Console

from longrec.client import Client, Event, Options
from longrec.config import EngineConfig, ModelConfig, TrainConfig
from longrec.datasets import Dataset, InteractionColumns, leave_one_out, read_interactions
from longrec.modeling import save_run
from longrec.server.process import Server
from longrec.server.repository import write_repository
from longrec.training import ProgressBar, train

PHONES, ORDERS, BEGAN = 20, 8, 1_760_000_000
PARTS = ("case", "charger", "film")  # there is one of each for every phone
console = Console()


def main(
    customers: Annotated[int, typer.Option(help="Who order.")] = 1500,
    epochs: Annotated[int, typer.Option(help="Passes over their orders.")] = 12,
) -> None:
    """Print what the shop's server answers."""
    logging.getLogger("longrec.server").setLevel(logging.ERROR)  # a loopback server for development is what we want
    torch.set_num_threads(1)  # quicker than two for a network so small
    with TemporaryDirectory(prefix="longrec-shop-") as folder:
        run, repository = Path(folder, "run"), Path(folder, "repository")
        dataset = _import(_write_orders(Path(folder, "orders.csv"), customers))
        _train(dataset, epochs, run)
        write_repository(run, repository, engine=EngineConfig())
        with (
            Server(repository, grpc_port=0, http_port=0, metrics_port=0) as server,
            Client(server.grpc_url, catalogue=run) as client,
        ):
            _ask(client, Path(folder, "rules"))


def _write_orders(path: Path, customers: int) -> Path:
    """Orders as a shop's database would export them: a phone, its parts in any order, at times another phone."""
    rng, rows = np.random.default_rng(0), []
    for customer in range(customers):
        day = int(rng.integers(100))
        while len(rows) < ORDERS * (customer + 1):
            phone = int(PHONES * rng.power(0.5))  # a few phones are most of the sales
            for article in ("phone", *rng.permutation(PARTS)[: rng.integers(1, 4)]):
                day += int(rng.integers(1, 20))
                rows.append((f"customer {customer}", f"{article} {phone}", BEGAN + 86_400 * day))
    pl.DataFrame(rows, schema=["customer", "article", "at"], orient="row").write_csv(path)
    return path


def _import(orders: Path) -> Dataset:
    """The orders as a dataset; an article's category is the first word of its name."""
    frame = read_interactions(orders, InteractionColumns("customer", "article", "at"))
    categories = {article: [article.split()[0]] for article in frame["item"].unique()}
    return Dataset.from_interactions("shop", frame, categories=categories)


def _train(dataset: Dataset, epochs: int, out: Path) -> None:
    model = ModelConfig(num_items=len(dataset.catalogue), dim=32, hidden_dim=64, window=32)
    with ProgressBar(console) as bar:
        config = TrainConfig(epochs=epochs, learning_rate=5e-3, dropout=0.1)
        trained = train(dataset, leave_one_out(dataset), model, config, [bar])
    save_run(out, trained.network, model, dataset.catalogue, {"dataset": dataset.name})


def _ask(client: Client, rules: Path) -> None:
    now = 1000 * (BEGAN + 86_400 * 200)
    basket = [Event("phone 3", now), Event("film 3", now + 60_000)]
    shown = client.recommend(user="nina", events=basket, k=3, options=Options(exclude_seen=True))
    console.print("in the basket: phone 3, film 3; goes with it:", ", ".join(shown.ids))
    chargers = Options(categories=["charger"])
    console.print("of the chargers:", ", ".join(client.recommend(user="nina", k=3, options=chargers).ids))
    offers = ["case 1", "case 3", "case 7"]
    scored = client.score(user="nina", candidates=offers)
    console.print("of the offers", ", ".join(offers), "the best:", scored.ids[np.argmax(scored.scores)])
    rules.mkdir(exist_ok=True)
    blocked = rules / "blocked.txt"
    blocked.with_suffix(".new").write_text("charger 3\n")
    blocked.with_suffix(".new").rename(blocked)  # whole from the first moment on
    while "charger 3" in (left := client.recommend(user="nina", k=3, options=chargers).ids):
        time.sleep(0.1)  # the server looks at its rules once a second
    console.print("of the chargers, charger 3 recalled:", ", ".join(left))


if __name__ == "__main__":
    typer.run(main)
