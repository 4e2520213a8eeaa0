"""`longrec bench serving`: what serving reaches on this machine, each figure beside its target, in one run."""

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["serving"]


def serving(
    run: Annotated[Path, typer.Argument(help="Folder that `longrec train` wrote.", exists=True, file_okay=False)],
    dataset: Annotated[Path, typer.Argument(help="The dataset folder that it was trained on.")],
    out: Annotated[Path, typer.Option(help="Folder for serving.json and the plots.")] = Path("bench-serving"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            help="Only this part: echo, recompute, bulk, long_history, cold_storm, residency, start; may be repeated.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few and short runs: whether it works, not how fast it is.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object, not as a table.")
    ] = False,
) -> None:
    """Measure the memory engine against an echo, against recomputing, and under cold users; about ten minutes.

    Starts servers of its own, on free ports and with logs of their own, one after the other, and touches no other. A
    part that fails says so and makes the exit status 1; a figure that misses its target doesn't, for it is the
    machine's as much as the software's.

    Example: longrec bench serving runs/first data/ml-100k --json
    """
    import logging
    from tempfile import TemporaryDirectory

    from rich.console import Console

    from longrec.errors import MachineError
    from longrec.server.bench.material import load_material
    from longrec.server.bench.report import figures, judge, table, write_report
    from longrec.server.bench.suite import FULL, QUICK, run_parts

    try:
        from longrec.server.bench.plots import draw_plots
    except ImportError as error:
        raise MachineError(f"{error.name}: expected it for the plots: pip install 'longrec[train]'") from None

    logging.getLogger("longrec.server").setLevel(logging.ERROR)  # that a loopback server is for development is no news
    console = Console(stderr=True)
    plans = QUICK if quick else FULL
    with TemporaryDirectory(prefix="longrec-bench-") as scratch:
        material = load_material(run, dataset, Path(scratch))
        with console.status("") as status:
            results = run_parts(
                material, plans, only=only or (), on_begin=lambda part: status.update(f"measuring: {part}")
            )
    found = figures(results)
    judged = judge(found, cold_users=plans.cold_storm.cold_users)
    path = write_report(out, results, judged, quick=quick)
    draw_plots(out, results, judged)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        Console(width=120).print(table(judged, results.failures))
    note = "; a quick run: too short to judge by" if quick else ""
    console.print(f"wrote {path} and plots beside it{note}")
    for part, failure in results.failures.items():
        typer.echo(f"{part}: {failure}", err=True)
    if results.failures:
        raise typer.Exit(1)
