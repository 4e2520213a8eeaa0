"""`longrec replay`: a data set's events in time order, each predicted before it is sent."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from longrec.server.replay.replay import Progress

__all__ = ["replay"]


def replay(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder, as `longrec data` writes it.")],
    url: Annotated[str | None, typer.Option(help="host:port of a running server's gRPC endpoint.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Serve this run on a server of the command's own, instead of --url.")
    ] = None,
    users: Annotated[int | None, typer.Option(help="How many users, drawn at random. [default: all]")] = None,
    last: Annotated[
        int | None, typer.Option(help="Replay each user's last events, so many; append those before. [default: all]")
    ] = None,
    speed: Annotated[
        float | None, typer.Option(help="Times real time; 86400: a day a second. [default: as fast as it goes]")
    ] = None,
    k: Annotated[int, typer.Option(help="Items of each prediction, 1 to 256.")] = 10,
    max_in_flight: Annotated[int, typer.Option(help="Requests sent and not yet answered, at most.")] = 64,
    prefix: Annotated[
        str | None, typer.Option(help="Before each user's key on the server. [default: a fresh one]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the users that are drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Replay a data set against a server: its events in time order, each predicted before it is sent.

    hit@k counts the events that were among the k items predicted from all of their user's events before. With --last 1
    it is the test figure of `longrec evaluate`; events that were trained on are hit more often than new ones.

    Example: longrec replay data/ml-100k --run runs/first --users 200 --last 20 --speed 100000
    """
    import logging

    from rich.console import Console
    from rich.live import Live

    from longrec.server.bench.material import serving
    from longrec.server.replay.replay import Replay, ReplayPlan

    logging.getLogger("longrec.server").setLevel(logging.ERROR)  # that a loopback server is for development is no news
    plan = ReplayPlan(users, last, speed, k, max_in_flight, prefix, seed)
    console = Console(stderr=True)
    with serving(dataset, url=url, run=run) as target:
        replaying = Replay(target.dataset, plan)
        with Live(get_renderable=lambda: _table(replaying.progress(), k), console=console, transient=True):
            summary = replaying.run(target.url)
    if as_json:
        typer.echo(json.dumps({**summary.as_dict(), "k": k}, indent=2))
    else:
        Console().print(_table(summary, k))
    if summary.failed:
        raise typer.Exit(1)


def _table(progress: "Progress", k: int) -> "Table":
    from rich.table import Table

    p50_ms, p99_ms = progress.latencies_ms
    table = Table("users", "events", "events/s", f"hit@{k}", f"NDCG@{k}", "p50 ms", "p99 ms", "failed", box=None)
    table.add_row(
        f"{progress.users:,}",
        f"{progress.events:,} of {progress.total:,}",
        _short(progress.event_rate, ",.0f"),
        _short(progress.hit_rate, ".4f"),
        _short(progress.ndcg, ".4f"),
        _short(p50_ms, ".1f"),
        _short(p99_ms, ".1f"),
        str(progress.failed),
    )
    return table


def _short(value: float, spec: str) -> str:
    return "-" if value != value else format(value, spec)
