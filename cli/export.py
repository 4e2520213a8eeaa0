"""`longrec export`: a trained run becomes a model repository."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="Folder that `longrec train` wrote.", exists=True, file_okay=False)],
    repository: Annotated[Path, typer.Argument(help="Model repository to write, or to add a version to.")],
    version: Annotated[int, typer.Option(help="Version of the model; the server serves the highest.", min=1)] = 1,
    gpu: Annotated[bool, typer.Option("--gpu/--cpu", help="Where the model's instances run.")] = False,
    instances: Annotated[int, typer.Option(help="Instances of the model; they share the event log.", min=1)] = 1,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A model parameter, e.g. --set max_k=100; may be repeated."),
    ] = None,
) -> None:
    """Write a Triton model repository from a run: config, model.py, and the checkpoint, its hashes verified.

    Example: longrec export runs/ml-100k repository && longrec serve repository
    """
    from longrec.config import EngineConfig, parse_config
    from longrec.errors import ArgumentError
    from longrec.modeling import load_network
    from longrec.server.repository import write_repository

    values = {}
    for setting in set_ or []:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ArgumentError(f"--set {setting}", "NAME=VALUE, such as max_k=100")
        values[name] = value
    engine = parse_config(EngineConfig, values, "--set")
    load_network(run)  # weights that don't fit their config are refused now, not by the server
    path = write_repository(
        run, repository, version=version, engine=engine, kind="gpu" if gpu else "cpu", instances=instances
    )
    Console().print(f"wrote {path}; next: longrec serve {repository}")
