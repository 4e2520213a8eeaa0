"""`longrec bench load`: requests at a rate, whether or not the server keeps up."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from longrec.server.loadbench.point import Point

__all__ = ["load"]

DEFAULT_LIMIT_MS = 20.0


def load(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder whose histories the users have.")],
    url: Annotated[str | None, typer.Option(help="host:port of a running server's gRPC endpoint.")] = None,
    metrics_url: Annotated[str | None, typer.Option(help="Its metrics. [default: http://HOST:8002/metrics]")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Serve this run on a server of the command's own, instead of --url.")
    ] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Requests a second to offer; may be repeated.")] = None,
    cold: Annotated[
        list[float] | None,
        typer.Option(help="Share of requests, 0 to 1, of users without a memory; may be repeated. [default: 0]"),
    ] = None,
    limit_ms: Annotated[
        float | None,
        typer.Option(help="Find the highest rate whose latency stays below; 20 unless there is a --rate."),
    ] = None,
    percentile: Annotated[float, typer.Option(help="Of the latency that --limit-ms limits.")] = 99.0,
    users: Annotated[int, typer.Option(help="Returning users, all warm at first.")] = 1000,
    zipf: Annotated[float, typer.Option(help="Exponent of the law by which they return; 0: all alike.")] = 1.0,
    k: Annotated[int, typer.Option(help="Items of each answer.")] = 10,
    seconds: Annotated[float, typer.Option(help="Measured time of each rate.")] = 10.0,
    settle_seconds: Annotated[float, typer.Option(help="Before it, under the same load, not measured.")] = 1.0,
    max_lag_ms: Annotated[
        float, typer.Option(help="A rate that is sent later than this (p99) is refused: it was not offered.")
    ] = 5.0,
    seed: Annotated[int, typer.Option(help="Of arrivals and users.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for load.json and load.png.")] = Path("bench-load"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Offer requests that arrive by a Poisson process, and measure each from the moment at which it was due.

    Each request is one user's next event, of the data set, and asks for the next items. Users return by a Zipf law;
    their logs grow on that server, under keys of their own, load-…. A rate that the command can't send on time is
    refused, and so is a run with a wrong answer.

    Example: longrec bench load data/ml-100k --run runs/first --limit-ms 20 --percentile 99 --cold 0 --cold 0.05
    """
    import logging

    from rich.console import Console

    from longrec.errors import MachineError
    from longrec.server.bench.material import serving
    from longrec.server.loadbench.point import Load, LoadPlan
    from longrec.server.loadbench.search import Limit, measure_all

    try:
        from longrec.server.loadbench.report import as_dict, sentences, table, write_report
    except ImportError as error:
        raise MachineError(f"{error.name}: expected it for the plot: pip install 'longrec[train]'") from None

    logging.getLogger("longrec.server").setLevel(logging.ERROR)  # that a loopback server is for development is no news
    console = Console(stderr=True)
    if limit_ms is None and not rate:
        limit_ms = DEFAULT_LIMIT_MS
    limit = None if limit_ms is None else Limit(limit_ms, percentile)
    plan = LoadPlan(users, zipf, k, seconds, settle_seconds, max_lag_ms, seed)
    with (
        console.status("filling logs and memories") as status,
        serving(dataset, url=url, metrics_url=metrics_url, run=run) as target,
    ):
        server = Load(target, plan)

        def measure(rate: float, cold: float) -> "Point":
            status.update(f"{rate:,.0f} requests a second, {cold:.0%} of them of cold users")
            return server.measure(rate, cold)

        results = measure_all(measure, rates=rate or (), colds=cold or [0.0], limit=limit)
    path = write_report(out, results)
    if as_json:
        typer.echo(json.dumps(as_dict(results), indent=2))
    else:
        Console(width=120).print(table(results.points))
        for sentence in sentences(results):
            typer.echo(sentence)
    console.print(f"wrote {path} and {path.with_suffix('.png').name} beside it")
