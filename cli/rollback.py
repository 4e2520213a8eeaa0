"""`longrec rollback`: another version of a repository's weights is served."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["rollback"]


def rollback(
    repository: Annotated[
        Path, typer.Argument(help="Model repository, as `longrec export` writes it.", exists=True, file_okay=False)
    ],
    to: Annotated[int | None, typer.Option(help="Version to serve. [default: the one below the served one]")] = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="host:port (gRPC) of a running server of this repository: it changes over at once."
        ),
    ] = None,
) -> None:
    """Go back to an earlier version of the weights, or on to a later one.

    The version's settings come back with it. Users' events stay; memories are rebuilt under the version's weights.

    Example: longrec rollback repository --to 1 --url 127.0.0.1:8001
    """
    from longrec.errors import ArgumentError
    from longrec.server.loading import switch_version
    from longrec.server.repository import select_version, served_version, versions_in

    versions, served = versions_in(repository), served_version(repository)
    if to is None:
        to = max((version for version in versions if served is not None and version < served), default=None)
    if to not in versions:
        there = ", ".join(str(version) for version in versions) or "none"
        raise ArgumentError("--to" if to is None else f"--to {to}", f"a version in {repository} ({there})")
    if url is None:
        select_version(repository, to)
        Console().print(f"{repository}: version {to} is served from the next start on")
    else:
        models = switch_version(repository, to, url)
        Console().print(f"{url} serves version {to} of {', '.join(models)}")
