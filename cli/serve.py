"""`longrec serve`: a model repository behind a running tritonserver, until it is told to stop."""

import logging
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from longrec.server.process import Server
from longrec.server.watch import WatchConfig, WatchedServer

__all__ = ["serve"]


def serve(
    repository: Annotated[Path, typer.Argument(help="Model repository, as `longrec export` writes it.")],
    grpc_port: Annotated[int, typer.Option(help="Port for gRPC, which the client speaks. 0 takes a free one.")] = 8001,
    http_port: Annotated[int, typer.Option(help="Port for HTTP. 0 takes a free one.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Port for Prometheus metrics. 0 takes a free one.")] = 8002,
    host: Annotated[str, typer.Option(help="Address to listen on. The server has no password.")] = "127.0.0.1",
    log: Annotated[
        Path | None, typer.Option(help="The server's output. [default: tritonserver.log beside the repository]")
    ] = None,
    probe_deadline: Annotated[
        float, typer.Option(help="Restart the server when two inferences in a row take longer, in seconds.")
    ] = 5.0,
) -> None:
    """Serve REPOSITORY until Ctrl-C or SIGTERM.

    A server that dies, loses a model's process or hangs is restarted on the same ports; the log of the one that failed
    is kept as LOG.1. Gives up, with exit status 2, at the sixth failure within two minutes.

    Uses the tritonserver on PATH or in /opt/tritonserver; where there is none, downloads one for development, once.
    """
    console = Console()
    handler = RichHandler(console=console, show_time=False, show_path=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = Server(repository, host=host, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port, log=log)
    try:
        with console.status("starting tritonserver"):
            server.start()
        table = Table.grid(padding=(0, 2))
        table.add_row("gRPC", server.grpc_url)
        table.add_row("HTTP", server.http_url)
        table.add_row("metrics", server.metrics_url)
        table.add_row("log", str(server.log))
        console.print(f"tritonserver {server.version} serves {repository}; Ctrl-C stops it", table, sep="\n")
        WatchedServer(server, WatchConfig(deadline_seconds=probe_deadline)).run(threading.Event())
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        server.stop()
