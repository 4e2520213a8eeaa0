"""`longrec probe`: a real inference as a command, for the health checks of containers and load balancers."""

from typing import Annotated

import typer

from longrec.server.probe import probe_recommender

__all__ = ["probe"]


def probe(
    url: Annotated[str, typer.Argument(help="host:port of the server's gRPC endpoint.")] = "127.0.0.1:8001",
    deadline: Annotated[float, typer.Option(help="Longest wait for the answer, in seconds.", min=0.1)] = 5.0,
) -> None:
    """Ask a running server for one answer: exit status 0 if it comes, 2 and the reason if not.

    A server whose model's process has died may still call itself ready; it doesn't answer this. Writes nothing.
    """
    probe_recommender(url, deadline)
    typer.echo(f"{url} answers")
