"""`longrec export`: a trained run becomes a model repository."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="Folder that `longrec train` wrote.", exists=True, file_okay=False)],
    repository: Annotated[Path, typer.Argument(help="Model repository to write, or to add a version to.")],
    version: Annotated[
        int | None, typer.Option(help="Version to write. [default: one above the highest there is]", min=1)
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu/--cpu", help="Where the model's instances run.")] = False,
    instances: Annotated[int, typer.Option(help="Instances of the model; they share the event log.", min=1)] = 1,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="MODEL",
            help="A further model: sequence (for clients that speak Triton sequences), or for benchmarks echo (the "
            "same wire, no work) and recompute (the same answers without memory). The server loads each of them; may "
            "be repeated. Those that the repository has already always get the version too.",
        ),
    ] = None,
    load: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="host:port (gRPC) of a running server of this repository: it loads the version while it goes on "
            "answering. If it can't, it stays at the version from before.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A model parameter, e.g. --set max_k=100; may be repeated."),
    ] = None,
) -> None:
    """Write a Triton model repository from a run: config, model.py, and the checkpoint, its hashes verified.

    A version is served from the next start on, or at once with --load. `longrec rollback` goes back.

    Example: longrec export runs/ml-100k repository && longrec serve repository
    """
    from longrec.config import EngineConfig, parse_config
    from longrec.errors import ArgumentError
    from longrec.modeling import load_run
    from longrec.server.loading import switch_version
    from longrec.server.repository import write_repository

    values = {}
    for setting in set_ or []:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ArgumentError(f"--set {setting}", "NAME=VALUE, such as max_k=100")
        values[name] = value
    engine = parse_config(EngineConfig, values, "--set")
    load_run(run)  # weights that don't fit their config are refused now, not by the server
    extras = with_ or []
    path = write_repository(
        run,
        repository,
        version=version,
        engine=engine,
        kind="gpu" if gpu else "cpu",
        instances=instances,
        extras=extras,
        select=load is None,
    )
    if load is None:
        Console().print(f"wrote {path}; next: longrec serve {repository}")
    else:
        models = switch_version(repository, int(path.name), load, extras=extras)
        Console().print(f"wrote {path}; {load} serves version {path.name} of {', '.join(models)}")
