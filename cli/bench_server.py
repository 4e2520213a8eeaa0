"""`longrec bench server`: perf_analyzer on a server that runs already."""

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["server"]


def server(
    url: Annotated[str, typer.Argument(help="host:port of the running server's gRPC endpoint.")],
    dataset: Annotated[
        Path, typer.Argument(help="Dataset folder, as `longrec data` writes it; its users are replayed.")
    ],
    users: Annotated[int, typer.Option(help="How many of the dataset's users.", min=1)] = 200,
    concurrency: Annotated[
        list[int] | None, typer.Option(help="Requests in flight; may be repeated. [default: 1, 8, 32]", min=1)
    ] = None,
    window_ms: Annotated[int, typer.Option(help="Length of a measuring window; a figure takes three.", min=100)] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Run perf_analyzer on a running server: warm users, one new event a request.

    The users' logs grow on that server: each gets a key of its own, `bench-…`.

    Example: longrec serve repository & longrec bench server 127.0.0.1:8001 data/ml-100k --concurrency 32
    """
    import tempfile
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from longrec.datasets import Dataset
    from longrec.server.bench.running import bench_server

    data = Dataset.load(dataset)
    histories = {f"bench-{data.users[user]}": data.events(user) for user in range(min(users, len(data.users)))}
    with tempfile.TemporaryDirectory() as folder:
        results = bench_server(
            url,
            histories,
            Path(folder, "requests.json"),
            concurrency=concurrency or [1, 8, 32],
            window_ms=window_ms,
        )
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in results], indent=2))
        return
    table = Table("concurrency", "answers/s", "p50 ms", "p99 ms", "mean batch")
    for result in results:
        table.add_row(
            str(result.concurrency),
            f"{result.throughput:.0f}",
            f"{result.p50_ms:.1f}",
            f"{result.p99_ms:.1f}",
            f"{result.mean_batch:.1f}",
        )
    Console().print(table)
