"""`longrec bench client`: what the client costs beside tritonclient, and what it keeps while servers are killed."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

__all__ = ["client"]


def client(
    users: Annotated[int, typer.Option(help="Users of the stream under which the server is killed.", min=1)] = 10_000,
    events: Annotated[int, typer.Option(help="Events of each.", min=1)] = 20,
    kills: Annotated[int, typer.Option(help="How often the server is killed.", min=0)] = 3,
    rounds: Annotated[int, typer.Option(help="Rounds of the timings; the figures are medians.", min=1)] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure the client on servers of its own: CPU time a request and bulk throughput beside raw tritonclient, a
    stream whose server is killed, the failover between two servers, the import.

    Exits with 1 where an event or a request was lost, doubled or answered out of order.

    Example: longrec bench client --users 1000 --json
    """
    from rich.console import Console
    from rich.table import Table

    from longrec.server.clientbench.chaos import measure_chaos
    from longrec.server.clientbench.costs import import_seconds, measure_costs
    from longrec.server.clientbench.failover import measure_failover

    with Console(stderr=True).status("costs") as status:
        costs = measure_costs(rounds=rounds)
        status.update("chaos: the server is killed under a stream")
        chaos = measure_chaos(users, events, kills)
        status.update("failover: one of two servers is killed under load")
        failover = measure_failover()
        seconds = import_seconds()
    report = {
        "overhead_us": costs.overhead_us,
        "bulk_ratio": costs.bulk_ratio,
        "chaos": asdict(chaos),
        "failover": asdict(failover),
        "import_seconds": seconds,
        "costs": asdict(costs),
    }
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        table = Table("figure", "value")
        table.add_row("CPU above raw tritonclient", f"{costs.overhead_us:.0f} us a request (raw {costs.raw_us:.0f})")
        table.add_row("recommend_many / raw loop", f"{costs.bulk_ratio:.2f} ({costs.client_users:.0f} users/s)")
        table.add_row("stream, server killed", f"{chaos.kills} times: {chaos.answered} of {users * events} answered")
        table.add_row("out of order, lost, doubled", f"{chaos.out_of_order}, {chaos.lost}, {chaos.duplicated}")
        table.add_row("failover", f"{failover.lost} lost, p99 recovered after {failover.recover_seconds:.1f} s")
        table.add_row("import longrec.client", f"{seconds:.2f} s")
        Console().print(table)
    if not chaos.passed or failover.lost or failover.duplicated:
        raise typer.Exit(1)
