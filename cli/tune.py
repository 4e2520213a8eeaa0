"""`longrec tune`: a dataset folder into the settings that train best on it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from longrec.training.tuning import Found, TrialRecord

__all__ = ["tune"]

BEST = "best.json"
SHOWN = 5  # trials of the table


def tune(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder that `longrec data` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the search; one that was stopped goes on.")] = Path("runs/tune"),
    trials: Annotated[int, typer.Option(help="Trials, those of earlier calls among them.")] = 30,
    search: Annotated[
        str, typer.Option(help="Settings to search, with commas between (docs/training.md has the ranges).")
    ] = "learning_rate,weight_decay,dropout,item_dropout,label_smoothing",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting that all trials share: NAME=VALUE; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
) -> None:
    """Search for settings by validation NDCG@10, hopeless trials stopped early; needs the extra `tune`.

    The folder gets study.db and best.json, which [bold]longrec train --config[/bold] takes.

    Example: [bold]longrec tune data/ml-100k --trials 40 --set epochs=20[/bold],
    then [bold]longrec train data/ml-100k --config runs/tune/best.json[/bold].
    """
    from longrec.datasets import Dataset
    from longrec.training.settings import sort_settings
    from longrec.training.tuning import tune as run_trials

    console = Console(stderr=True)

    def show(record: "TrialRecord") -> None:
        score = "no validation" if record.ndcg is None else f"NDCG@10 {record.ndcg:.4f}"
        console.print(f"trial {record.number}: {score}{', stopped early' if record.stopped else ''}")

    names = [name.strip() for name in search.split(",") if name.strip()]
    given = sort_settings({}, settings or ())
    found = run_trials(Dataset.load(dataset), given, out, search=names, num_trials=trials, each=show)
    (out / BEST).write_text(json.dumps(found.settings._asdict(), indent=2) + "\n")
    if as_json:
        result = {"best": found.best._asdict(), "settings": found.settings._asdict(), "trials": len(found.trials)}
        typer.echo(json.dumps(result, indent=2))
    else:
        Console().print(_table(found, out / BEST))


def _table(found: "Found", best: Path) -> Table:
    stopped = sum(trial.stopped for trial in found.trials)
    table = Table(title=f"{len(found.trials)} trials, {stopped} stopped early; the first row is in {best}")
    names = list(found.best.parameters)
    for heading in ("trial", "validation NDCG@10", *names, "seconds"):
        table.add_column(heading, justify="right")
    whole = [trial for trial in found.trials if not trial.stopped]
    for trial in sorted(whole, key=lambda trial: -(trial.ndcg or 0.0))[:SHOWN]:
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in trial.parameters.values()]
        table.add_row(str(trial.number), f"{trial.ndcg:.4f}", *cells, f"{trial.seconds:.1f}")
    return table
