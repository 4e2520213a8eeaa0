"""`longrec train`: a dataset folder into a run folder (checkpoint, history, TensorBoard scalars, training curve)."""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from longrec.config import Family, Loss, ModelConfig, TrainConfig, parse_config
from longrec.errors import ArgumentError

if TYPE_CHECKING:
    from longrec.schema import Schema
    from longrec.training.settings import Settings

__all__ = ["train"]

ORDER = "run.json"  # what was asked for, in the run folder: --resume reads it


def _option(field: str, text: str) -> Any:
    """Of a config's field; not said, it is left to --config, and then to the config's default."""
    fields = {**ModelConfig.model_fields, **TrainConfig.model_fields}
    return typer.Option(help=text, show_default=str(fields[field].default))


def train(
    dataset: Annotated[Path | None, typer.Argument(help="Dataset folder that `longrec data` wrote.")] = None,
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("runs/latest"),
    config: Annotated[Path | None, typer.Option(help="JSON file with settings, as `longrec tune` writes it.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting of docs/training.md: NAME=VALUE; repeatable.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder of a run that was stopped: go on with it.")] = None,
    pretrain: Annotated[bool, typer.Option("--pretrain", help="On all events, without validation.")] = False,
    begin: Annotated[
        Path | None, typer.Option("--from", help="Run folder whose weights and shape to begin with, by item ids.")
    ] = None,
    held_out: Annotated[
        int, typer.Option(min=2, help="Newest events of a user that are not trained on, for `evaluate --horizon`.")
    ] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    epochs: Annotated[int | None, _option("epochs", "Passes over the data.")] = None,
    max_seconds: Annotated[
        float | None,
        _option("max_seconds", "Drop epochs, and shorten the schedule, so that training ends by then."),
    ] = None,
    seed: Annotated[int | None, _option("seed", "Of weights, dropout and order.")] = None,
    learning_rate: Annotated[float | None, _option("learning_rate", "Peak rate.")] = None,
    dropout: Annotated[float | None, _option("dropout", "0 to 1.")] = None,
    loss: Annotated[str | None, _option("loss", f"One of {', '.join(get_args(Loss))}.")] = None,
    batch_events: Annotated[int | None, _option("batch_events", "Events of one step.")] = None,
    sequence_length: Annotated[
        int | None,
        _option("sequence_length", "Most events of a piece of a history; of a segment, where there is a memory."),
    ] = None,
    family: Annotated[str | None, _option("family", f"Kind of network: {', '.join(get_args(Family))}.")] = None,
    dim: Annotated[int | None, _option("dim", "Width of the network.")] = None,
    layers: Annotated[int | None, _option("num_layers", "Blocks of the network.")] = None,
    window: Annotated[int | None, _option("window", "Events that a layer looks back, its own included.")] = None,
    horizon: Annotated[int | None, _option("horizon", "Steps that seq2seq emits.")] = None,
    repeats: Annotated[
        bool | None,
        typer.Option(
            "--repeats/--no-repeats",
            help="Learn how much an item's having been there lately counts.",
        ),
    ] = None,
    features: Annotated[
        str,
        typer.Option(help="Features of the dataset's schema to learn from: all, none, or names with commas between."),
    ] = "none",
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON instead of a table.")] = False,
) -> None:
    """Train a network on a dataset's histories, and keep the weights that rank the validation events best.

    The run folder holds weights.safetensors, config.json and catalogue.parquet (the checkpoint), history.json,
    history.png, and TensorBoard scalars in tensorboard/; while it runs also state.safetensors, for --resume. Under
    torchrun every process learns a part of each batch.

    Example: [bold]longrec train data/ml-100k --out runs/first --max-seconds 240[/bold],
    then [bold]longrec evaluate runs/first data/ml-100k[/bold].
    """
    from longrec.training.settings import read_settings, sort_settings

    if resume:
        if dataset or config or settings or pretrain or begin:
            raise ArgumentError("--resume", "no other option: the run goes on as it began", "others")
        _run(resume, _read_order(resume), device, as_json, resumed=True)
        return
    if dataset is None:
        raise ArgumentError("DATASET", "a folder that `longrec data` wrote", "none")
    given = {
        "epochs": epochs,
        "max_seconds": max_seconds,
        "seed": seed,
        "learning_rate": learning_rate,
        "dropout": dropout,
        "loss": loss,
        "batch_events": batch_events,
        "sequence_length": sequence_length,
        "family": family,
        "dim": dim,
        "num_layers": layers,
        "window": window,
        "horizon": horizon,
        "repeats": repeats,
    }
    chosen = sort_settings(given, settings or ())
    if config:
        chosen = chosen.over(read_settings(config))
    order = {
        "dataset": str(dataset),
        "pretrain": pretrain,
        "held_out": held_out,
        "from": str(begin) if begin else None,
        "features": features,
        "settings": _whole(chosen, begin),
    }
    _run(out, order, device, as_json, resumed=False)


def _whole(chosen: "Settings", begin: Path | None) -> dict[str, Any]:
    """The settings as they are checked and recorded; the shape is that of the run to begin with, if there is one."""
    from longrec.checkpoint import load_checkpoint

    shape = load_checkpoint(begin).config.model_dump() if begin else {}
    model = {**shape, **chosen.model}
    model.pop("num_items", None)  # the dataset says
    train_config = parse_config(TrainConfig, chosen.train, "longrec train")
    return {"model": model, "train": train_config.model_dump()}


def _read_order(run: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((run / ORDER).read_text())
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--resume {run}", f"a run folder with {ORDER}", str(error)) from None
    if found.get("finished"):
        raise ArgumentError(f"--resume {run}", "a run that was stopped", "one that is finished")
    return found


def _run(out: Path, order: dict[str, Any], device: str, as_json: bool, *, resumed: bool) -> None:
    from longrec.datasets import Dataset, everything, leave_one_out
    from longrec.modeling import save_run
    from longrec.training import ProgressBar, TensorBoard, plot_history
    from longrec.training import train as train_network
    from longrec.training.distributed import open_world
    from longrec.training.snapshot import SNAPSHOT
    from longrec.training.transfer import carry_over

    config = parse_config(TrainConfig, order["settings"]["train"], "longrec train")
    data = Dataset.load(Path(order["dataset"]))
    shape = {**order["settings"]["model"], "num_items": len(data.catalogue)}
    if not order["from"]:  # else those of the run to begin with
        shape["features"] = _features(data.schema, order["features"])
    model = parse_config(ModelConfig, shape, "longrec train")
    initial = carry_over(Path(order["from"]), model, data.catalogue, config.seed) if order["from"] else None
    split = everything(data) if order["pretrain"] else leave_one_out(data, order["held_out"])
    console = Console(stderr=as_json)
    with ExitStack() as stack:
        size = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun says so
        world = stack.enter_context(open_world(int(os.environ.get("RANK", "0")), size, device))
        observers: list[Any] = []
        if world.rank == 0:
            out.mkdir(parents=True, exist_ok=True)
            if not resumed:
                (out / SNAPSHOT).unlink(missing_ok=True)
                (out / ORDER).write_text(json.dumps(order, indent=2) + "\n")
            observers = [
                stack.enter_context(ProgressBar(console)),
                stack.enter_context(TensorBoard(out / "tensorboard")),
            ]
        world.from_first(None)  # nobody reads the snapshot before the first rank has put the folder right
        trained = train_network(
            data,
            split,
            model,
            config,
            observers,
            validated=not order["pretrain"],
            initial=initial,
            snapshot=out / SNAPSHOT,
            device=device,
            world=world,
        )
        if world.rank:
            return
    best = next(record for record in trained.history if record["epoch"] == trained.best_epoch)
    figures: dict[str, Any] = {
        "dataset": data.name,
        "held_out": 0 if order["pretrain"] else order["held_out"],
        "config": config.model_dump(),
        "best_epoch": trained.best_epoch,
        "epochs": len(trained.history),
        "loss": best["loss"],
        "validation": best.get("validation"),
        "seconds": trained.seconds,
        "events_per_second": trained.events_per_second,
    }
    save_run(out, trained.network, model, data.catalogue, figures)
    (out / "history.json").write_text(json.dumps(trained.history, indent=1) + "\n")
    plot_history(trained.history, out / "history.png")
    (out / ORDER).write_text(json.dumps({**order, "finished": True}, indent=2) + "\n")
    (out / SNAPSHOT).unlink()
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        console.print(_table(figures, out))


def _features(schema: "Schema", wanted: str) -> "Schema":
    if wanted == "all":
        return schema
    return schema.pick([] if wanted == "none" else [name.strip() for name in wanted.split(",")])


def _table(figures: dict[str, Any], out: Path) -> Table:
    table = Table(title=f"{figures['dataset']}: trained into {out}")
    cells = {"best epoch": f"{figures['best_epoch']} of {figures['epochs']}", "loss": f"{figures['loss']:.3f}"}
    if figures["validation"]:
        cells["validation NDCG@10"] = f"{figures['validation']['ndcg@10']:.4f}"
        cells["HR@10"] = f"{figures['validation']['hr@10']:.4f}"
    cells |= {"seconds": f"{figures['seconds']:.1f}", "events/s": f"{figures['events_per_second']:,.0f}"}
    for heading in cells:
        table.add_column(heading, justify="right")
    table.add_row(*cells.values())
    return table
