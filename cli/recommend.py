"""`longrec recommend`: one user's next items, once."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from longrec.cli.items import Items

__all__ = ["recommend"]


def recommend(
    user: Annotated[str, typer.Argument(help="The user's key; one that the server doesn't know has no events yet.")],
    url: Annotated[str, typer.Option(help="host:port of the server's gRPC service.")] = "127.0.0.1:8001",
    k: Annotated[int, typer.Option(help="Items wanted, 1 to 256.")] = 10,
    catalogue: Annotated[
        Path | None, typer.Option(help="Run folder, or its catalogue.parquet: prints external ids and titles.")
    ] = None,
    timeout_seconds: Annotated[float, typer.Option(help="Longest wait for the answer.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Ask a running server what a user will choose next.

    Adds nothing to the user's log.

    Example: longrec recommend 196 --catalogue runs/ml-100k --k 5
    """
    from longrec.client import Client

    items = Items(catalogue)
    with Client(url, timeout_seconds=timeout_seconds) as client:
        prediction = client.recommend(user=user, k=k)
    named, scores = items.describe(prediction.items.tolist()), prediction.scores.tolist()
    if as_json:
        typer.echo(json.dumps({"user": user, "position": prediction.position, **named, "scores": scores}))
        return
    table = Table(title=f"user {user}, after {prediction.position} events")
    for column in ("rank", "item", *(["title"] if "titles" in named else []), "score"):
        table.add_column(column, justify="left" if column == "title" else "right")
    for rank, row in enumerate(zip(*named.values(), scores, strict=True), 1):
        table.add_row(str(rank), *(str(value) for value in row[:-1]), f"{row[-1]:.3f}")
    Console().print(table)
