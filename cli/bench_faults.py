"""`longrec bench faults`: what goes wrong in production, done to a real server: nothing may be lost."""

from typing import Annotated

import typer

__all__ = ["faults"]


def faults(
    fault: Annotated[
        list[str] | None, typer.Option(help="Only this fault; may be repeated. [default: all of them]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few runs of each, for continuous integration.")] = False,
    runs: Annotated[int | None, typer.Option(help="Runs of each fault, instead of its own number.", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """Kill the server under load, garble its messages, fill its disk; exit with 1 where an event is lost or doubled,
    or an answer differs from a recompute.

    Example: longrec bench faults --fault kill-server --runs 20
    """
    from rich.console import Console

    from longrec.server.faults.registry import FAULTS, QUICK, run_faults
    from longrec.server.faults.report import FaultResult, faults_as_json, faults_table

    names = fault or list(QUICK if quick else FAULTS)
    results: list[FaultResult] = []
    progress = Console(stderr=True)
    with progress.status("starting") as status:
        outcomes = run_faults(names, quick=quick, runs=runs)
        for name in names:
            status.update(f"{name} ({len(results) + 1} of {len(names)})")
            results.append(next(outcomes))
    if as_json:
        typer.echo(faults_as_json(results))
    else:
        Console().print(faults_table(results))
    for result in results:
        for problem in result.problems:
            typer.echo(f"{result.fault}: {problem}", err=True)
    if not all(result.passed for result in results):
        raise typer.Exit(1)
