"""`longrec evaluate`: how well a run ranks each user's last event."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder that `longrec train` wrote.")],
    dataset: Annotated[Path, typer.Argument(help="Dataset folder with the run's catalogue.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON instead of a table.")] = False,
) -> None:
    """Rank each user's last event (test) and the one before it (validation) among the whole catalogue.

    Each is predicted from all of the user's events before it; nothing is filtered. HR@k: share of users whose event is
    among the k best. NDCG@k: the same, a hit at rank r counting 1 / log2(r + 1). MRR: mean of 1 / r.

    Example: [bold]longrec evaluate runs/first data/ml-100k --json[/bold]
    """
    from longrec.datasets import Dataset, leave_one_out
    from longrec.errors import DataError
    from longrec.modeling import load_network
    from longrec.training import evaluate as rank_events
    from longrec.training import ranking_metrics

    network, checkpoint = load_network(run)
    data = Dataset.load(dataset)
    if list(data.catalogue.ids) != list(checkpoint.catalogue.ids):
        raise DataError(
            f"{dataset}: expected the {len(checkpoint.catalogue)} items of {run}, in the same order, "
            f"got {len(data.catalogue)} others; evaluate on the data that the run was trained on"
        )
    split = leave_one_out(data)
    figures = {
        name: ranking_metrics(rank_events(network, data, split.evaluated, rows).numpy()).as_dict()
        for name, rows in (("test", split.test), ("validation", split.validation))
    }
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    table = Table(title=f"{run} on {data.name}: {len(split.test):,} users, {len(data.catalogue):,} items")
    table.add_column("event")
    names = [name for name in figures["test"] if name != "users"]
    for name in names:
        table.add_column(name.upper(), justify="right")
    for event, metrics in figures.items():
        table.add_row(event, *(f"{metrics[name]:.4f}" for name in names))
    Console().print(table)
