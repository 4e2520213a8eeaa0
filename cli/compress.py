"""`longrec compress`: a smaller checkpoint of a run."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["compress"]


def compress(
    run: Annotated[Path, typer.Argument(help="Folder that `longrec train` wrote.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    method: Annotated[
        str, typer.Option(help="int8, int8-items, low-rank, prune or prune-hidden: docs/compression.md.")
    ],
    keep: Annotated[
        float | None,
        typer.Option(help="Share of weights, rank or units that is kept. [default: 0.5, where there is one]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line.")] = False,
) -> None:
    """Write a run's checkpoint smaller; it is evaluated, exported and served as any other.

    On disk: weights are dense float32 again when they are loaded, so that serving takes what it took. prune-hidden
    alone makes a smaller network.

    Example: longrec compress runs/first --method int8 --out runs/first-int8
    """
    from longrec.checkpoint import WEIGHTS, save_checkpoint
    from longrec.errors import ArgumentError
    from longrec.modeling import load_run
    from longrec.modeling.compression import compress as smaller

    if out.resolve() == run.resolve():
        raise ArgumentError(f"--out {out}", "another folder than the run's")
    network, checkpoint = load_run(run)  # with the items that were added since its training
    dense = {name: weight.numpy() for name, weight in network.state_dict().items()}
    config, weights = smaller(network.config, dense, method, keep)
    record = {**checkpoint.training, "compressed": {"method": method, "keep": keep}}
    save_checkpoint(out, config, weights, checkpoint.catalogue, record)
    load_run(out)  # what can't be read back is told now
    before, after = ((folder / WEIGHTS).stat().st_size for folder in (run, out))
    if as_json:
        typer.echo(json.dumps({"method": method, "keep": keep, "bytes_before": before, "bytes": after}))
    else:
        Console().print(f"wrote {out}: {after:,} bytes of weights, {after / before:.2f} of {before:,}")
