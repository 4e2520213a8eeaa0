"""`longrec train`: a dataset folder into a run folder (checkpoint, history, TensorBoard scalars, training curve)."""

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from longrec.config import Family, ModelConfig, TrainConfig, parse_config

__all__ = ["train"]

MODEL, TRAINING = ModelConfig.model_fields, TrainConfig.model_fields


def train(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder that `longrec data` wrote.")],
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("runs/latest"),
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = TRAINING["epochs"].default,
    max_seconds: Annotated[
        float | None, typer.Option(help="Drop epochs, and shorten the schedule, so that training ends by then.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, dropout and order.")] = 0,
    learning_rate: Annotated[float, typer.Option(help="Peak rate.")] = TRAINING["learning_rate"].default,
    dropout: Annotated[float, typer.Option(help="0 to 1.")] = TRAINING["dropout"].default,
    batch_events: Annotated[int, typer.Option(help="Events of one step.")] = TRAINING["batch_events"].default,
    sequence_length: Annotated[
        int, typer.Option(help="Most events of a piece of a history; of a segment, where the family carries a memory.")
    ] = TRAINING["sequence_length"].default,
    family: Annotated[str, typer.Option(help=f"Kind of network: {', '.join(get_args(Family))}.")] = MODEL[
        "family"
    ].default,
    dim: Annotated[int, typer.Option(help="Width of the network.")] = MODEL["dim"].default,
    layers: Annotated[int, typer.Option(help="Blocks of the network.")] = MODEL["num_layers"].default,
    window: Annotated[int, typer.Option(help="Events that a layer looks back, its own included.")] = MODEL[
        "window"
    ].default,
    horizon: Annotated[int, typer.Option(help="Steps that seq2seq emits.")] = MODEL["horizon"].default,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON instead of a table.")] = False,
) -> None:
    """Train a network on a dataset's histories, and keep the weights that rank the validation events best.

    The run folder holds weights.safetensors, config.json and catalogue.parquet (the checkpoint), history.json,
    history.png, and TensorBoard scalars in tensorboard/.

    Example: [bold]longrec train data/ml-100k --out runs/first --max-seconds 240[/bold],
    then [bold]longrec evaluate runs/first data/ml-100k[/bold].
    """
    from longrec.datasets import Dataset, leave_one_out
    from longrec.modeling import save_run
    from longrec.training import ProgressBar, TensorBoard, plot_history
    from longrec.training import train as train_network

    options = {
        "epochs": epochs,
        "max_seconds": max_seconds,
        "seed": seed,
        "learning_rate": learning_rate,
        "dropout": dropout,
        "batch_events": batch_events,
        "sequence_length": sequence_length,
    }
    config = parse_config(TrainConfig, options, "longrec train")
    data = Dataset.load(dataset)
    shape = {
        "num_items": len(data.catalogue),
        "family": family,
        "dim": dim,
        "num_layers": layers,
        "window": window,
        "horizon": horizon,
    }
    model = parse_config(ModelConfig, shape, "longrec train")
    console = Console(stderr=as_json)
    with ProgressBar(console) as bar, TensorBoard(out / "tensorboard") as board:
        trained = train_network(data, leave_one_out(data), model, config, (bar, board))
    best = next(record for record in trained.history if record["epoch"] == trained.best_epoch)
    figures: dict[str, Any] = {
        "dataset": data.name,
        "config": config.model_dump(),
        "best_epoch": trained.best_epoch,
        "epochs": len(trained.history),
        "validation": best["validation"],
        "seconds": trained.seconds,
        "events_per_second": trained.events_per_second,
    }
    save_run(out, trained.network, model, data.catalogue, figures)
    (out / "history.json").write_text(json.dumps(trained.history, indent=1) + "\n")
    plot_history(trained.history, out / "history.png")
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        console.print(_table(figures, out))


def _table(figures: dict[str, Any], out: Path) -> Table:
    table = Table(title=f"{figures['dataset']}: trained into {out}")
    for heading in ("best epoch", "validation NDCG@10", "HR@10", "seconds", "events/s"):
        table.add_column(heading, justify="right")
    table.add_row(
        f"{figures['best_epoch']} of {figures['epochs']}",
        f"{figures['validation']['ndcg@10']:.4f}",
        f"{figures['validation']['hr@10']:.4f}",
        f"{figures['seconds']:.1f}",
        f"{figures['events_per_second']:,.0f}",
    )
    return table
