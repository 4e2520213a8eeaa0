"""`longrec bench`: measurements on this machine. Each is a file of its own."""

import typer

from longrec.cli.bench_client import client
from longrec.cli.bench_faults import faults
from longrec.cli.bench_kernels import kernels
from longrec.cli.bench_load import load
from longrec.cli.bench_server import server
from longrec.cli.bench_serving import serving

__all__ = ["bench_app"]

bench_app = typer.Typer(help="Measure: ratios and medians in one run.", no_args_is_help=True)

for command in (serving, server, load, client, kernels, faults):
    bench_app.command()(command)


@bench_app.callback()
def _group() -> None:
    """Measure: ratios and medians in one run."""
