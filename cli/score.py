"""`longrec score`: recommendations for a table of users, without a server."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

__all__ = ["score"]


def score(
    run: Annotated[Path, typer.Argument(help="Run folder that `longrec train` wrote.", exists=True, file_okay=False)],
    users: Annotated[
        Path, typer.Argument(help="Parquet file or folder: a row a user, columns user, items, times_ms (lists).")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for Parquet files: columns user, items, scores (lists).")],
    engine: Annotated[str, typer.Option(help="local: this process. ray: a pool of workers.")] = "local",
    address: Annotated[str | None, typer.Option(help="ray: of a cluster. [default: this machine's cores]")] = None,
    workers: Annotated[int, typer.Option(help="ray: processes, a core each.")] = 2,
    k: Annotated[int, typer.Option(help="Items of each user, 1 to 256.")] = 10,
    shard_users: Annotated[int, typer.Option(help="Users of an output file.")] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line.")] = False,
) -> None:
    """Rank the whole catalogue for every user of a table; a server with the same histories answers the same.

    Files appear whole; those that are there already are skipped, so a run that was stopped goes on where it was.

    Example: longrec score runs/first users.parquet scored --engine ray --workers 8
    """
    from longrec.errors import ArgumentError
    from longrec.training.offline import Job, begin, missing, run_here

    if engine not in ("local", "ray"):
        raise ArgumentError(f"--engine {engine}", "local or ray")
    if engine == "local" and address:
        raise ArgumentError("--address", "--engine ray", "local")
    job = Job(run.resolve(), users.resolve(), out.resolve(), k, shard_users)
    shards = begin(job)
    numbers = missing(job, shards)
    scored, began = 0, time.perf_counter()
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("shards", total=shards, completed=shards - len(numbers))

        def note(count: int) -> None:
            nonlocal scored
            scored += count
            bar.advance(task)

        if numbers and engine == "ray":
            from longrec.training.offline_ray import run_on_ray

            run_on_ray(job, numbers, note, address=address, workers=workers)
        else:
            run_here(job, numbers, note)
    seconds = time.perf_counter() - began
    if as_json:
        figures = {"users": scored, "shards": len(numbers), "skipped": shards - len(numbers), "seconds": seconds}
        typer.echo(json.dumps(figures))
    else:
        Console().print(
            f"{scored:,} users in {len(numbers)} files in {seconds:.1f} s, {shards - len(numbers)} were there: {out}"
        )
