"""`longrec evaluate`: the ranking quality of a run on the validation and test events of a dataset."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from longrec.datasets import Dataset
    from longrec.modeling import Network
    from longrec.training.evaluation_report import Group

__all__ = ["evaluate"]

LIST_LENGTH = 10


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder that `longrec train` wrote.")],
    dataset: Annotated[Path, typer.Argument(help="Dataset folder with the run's catalogue.")],
    by: Annotated[
        str, typer.Option(help="Also by group: history, popularity, cold; several with commas between.")
    ] = "",
    cold_events: Annotated[int, typer.Option(min=0, help="Most past events of a cold user.")] = 5,
    plots: Annotated[Path | None, typer.Option(help="Folder for a picture of each grouping of --by.")] = None,
    horizon: Annotated[
        int, typer.Option(min=1, help="Also roll out so many steps, each from the items predicted before it.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON instead of a table.")] = False,
) -> None:
    """Rank each user's last event (test) and the one before it (validation) among the whole catalogue.

    Each is predicted from all of the user's events before it; nothing is filtered. HR@k: share of users whose event is
    among the k best. NDCG@k: the same, a hit at rank r counting 1 / log2(r + 1). MRR: mean of 1 / r. Groups are of the
    test event, with 95% intervals. Every metric and group: docs/evaluation.md.

    Example: [bold]longrec evaluate runs/first data/ml-100k --by history,popularity,cold --plots plots[/bold]
    """
    from longrec.datasets import HELD_OUT, Dataset, leave_one_out
    from longrec.errors import ArgumentError, DataError
    from longrec.modeling import load_run
    from longrec.training import answer, ranking_metrics
    from longrec.training.evaluation_report import GROUPINGS, group_figures, list_figures, training_counts

    names = [name.strip() for name in by.split(",") if name.strip()]
    for name in names:
        if name not in GROUPINGS:
            raise ArgumentError(f"--by {name}", f"one of {', '.join(GROUPINGS)}")
    if plots and not names:
        raise ArgumentError("--plots", "groups to draw", got="no --by", remedy="say --by history, for example")
    network, checkpoint = load_run(run)
    data = Dataset.load(dataset)
    if list(data.catalogue.ids) != list(checkpoint.catalogue.ids):
        raise DataError(
            f"{dataset}: expected the {len(checkpoint.catalogue)} items of {run}, in the same order, "
            f"got {len(data.catalogue)} others; evaluate on the data that the run was trained on"
        )
    split = leave_one_out(data)
    if not len(split.evaluated):
        raise DataError(f"{dataset}: expected at least one user with 3 events, to evaluate")
    counts = training_counts(data, split)
    figures: dict[str, dict[str, float]] = {}
    lists: dict[str, dict[str, float]] = {}
    steps = _steps(network, data, horizon, checkpoint.training.get("held_out", HELD_OUT), run) if horizon > 1 else []
    groups: dict[str, list[Group]] = {}
    for event, rows in (("test", split.test), ("validation", split.validation)):
        answers = answer(network, data, split.evaluated, rows, LIST_LENGTH)
        figures[event] = ranking_metrics(answers.ranks).as_dict()
        lists[event] = list_figures(answers, data, split.evaluated, rows, counts)
        if event == "test":
            groups = group_figures(answers, data, split.evaluated, rows, counts, names, cold_events=cold_events)
    if plots:
        from longrec.training.evaluation_plots import plot_groups

        plot_groups(groups, plots)
    if as_json:
        found = {by: [group._asdict() for group in of] for by, of in groups.items()}
        for group in (group for of in found.values() for group in of):
            group["metrics"] = {name: one._asdict() for name, one in group["metrics"].items()}
        typer.echo(json.dumps({**figures, "lists": lists, "steps": steps, "by": found}, indent=2))
        return
    console = Console()
    title = f"{run} on {data.name}: {len(split.test):,} users, {len(data.catalogue):,} items"
    console.print(_events_table(title, figures))
    console.print(_events_table(f"the {LIST_LENGTH} best items (calibration: 0 is best)", lists))
    if steps:
        numbered = {str(step): metrics for step, metrics in enumerate(steps, start=1)}
        title = f"the newest {horizon} events of {steps[0]['users']:,.0f} users, rolled out"
        console.print(_events_table(title, numbered, "step"))
    for name, of in groups.items():
        console.print(_groups_table(name, of))


def _steps(network: "Network", data: "Dataset", horizon: int, held_out: int, run: Path) -> list[dict[str, float]]:
    """Metrics of each step of rollouts over users' newest `horizon` events, none of which was trained on."""
    from longrec.datasets import leave_one_out
    from longrec.errors import ArgumentError, DataError
    from longrec.training.metrics.horizon import horizon_metrics
    from longrec.training.rollouts import rollout_ranks

    if horizon > held_out:
        raise ArgumentError(
            f"--horizon {horizon}",
            f"at most {held_out}, the newest events that {run} was not trained on",
            remedy=f"longrec train --held-out {horizon}",
        )
    ends, train_end = data.indptr[1:], leave_one_out(data, held_out).train_end
    users = (ends - train_end >= horizon).nonzero()[0]
    if not len(users):
        raise DataError(f"{data.name}: expected a user with more than {held_out} events, to roll out {horizon} steps")
    ranks = rollout_ranks(network, data, users, ends[users] - horizon, horizon)
    return [metrics.as_dict() for metrics in horizon_metrics(ranks, (1, 5, 10))]


def _events_table(title: str, figures: Mapping[str, Mapping[str, float]], head: str = "event") -> Table:
    table = Table(head, title=title)
    names = [name for name in next(iter(figures.values())) if name != "users"]
    for name in names:
        table.add_column(name.upper(), justify="right")
    for event, metrics in figures.items():
        table.add_row(event, *(f"{metrics[name]:.4f}" for name in names))
    return table


def _groups_table(by: str, groups: Sequence["Group"]) -> Table:
    from longrec.training.evaluation_report import GROUP_METRICS

    table = Table("group", title=f"test event by {by}: mean and 95% interval", box=SIMPLE_HEAD, padding=0)
    table.add_column("users", justify="right")
    for name in GROUP_METRICS:
        table.add_column(name.upper(), justify="right")
    for group in groups:
        cells = (_interval(*one) if (one := group.metrics.get(name)) else "-" for name in GROUP_METRICS)
        table.add_row(group.name, f"{group.users:,}", *cells)
    return table


def _interval(mean: float, low: float, high: float) -> str:
    """`0.148 .126-.171`: three metrics side by side fit into 80 columns."""
    return f"{mean:.3f} {low:.3f}-{high:.3f}".replace(" 0.", " .").replace("-0.", "-.")
