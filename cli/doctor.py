"""`longrec doctor`: what this machine has and lacks, and the next step for each."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from longrec.server.machine import examine

__all__ = ["doctor"]

STYLES = {"ok": "green", "note": "yellow", "missing": "red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """Look at this machine: Python, torch, GPU, server, memory. Exit code 1 if something needed is missing.

    Downloads nothing and starts nothing.
    """
    checks = examine()
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("check", "state", "found", "next step"):
            table.add_column(column, overflow="fold")
        for check in checks:
            style = STYLES[check.state]
            table.add_row(check.name, f"[{style}]{check.state}[/]", check.found, check.next_step)
        Console().print(table)
    raise typer.Exit(any(check.state == "missing" for check in checks))
