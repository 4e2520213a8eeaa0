"""`longrec bench kernels`: what the kernels compile to for each GPU, and what they move and multiply, without a GPU."""

from typing import Annotated

import typer

__all__ = ["kernels"]


def kernels(
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile every shipped configuration ahead of time for each GPU target.")
    ] = False,
    count: Annotated[
        bool, typer.Option("--count", help="Count bytes and matrix FLOPs in the interpreter against the least needed.")
    ] = False,
    target: Annotated[
        list[int] | None, typer.Option(help="Only this target, such as 90 for sm_90; may be repeated. [default: all]")
    ] = None,
    subset: Annotated[bool, typer.Option("--subset", help="Only the few that continuous integration takes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """Prove the kernels on any machine, with --compile or --count; exit with 1 where a promise is broken.

    Example: longrec bench kernels --compile --target 90
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from longrec.errors import ArgumentError
    from longrec.kernels.bench.compiling import CompileResult, compile_all, shipped_configurations
    from longrec.kernels.bench.counts import CountResult, count_all
    from longrec.kernels.bench.problems import problems
    from longrec.kernels.bench.report import broken_promises, compile_table, count_table, results_as_json
    from longrec.kernels.shipped import TARGETS

    if compile_ == count:
        raise ArgumentError("bench kernels", "one of --compile and --count", "both" if count else "neither")
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    compiled: list[CompileResult] = []
    counted: list[CountResult] = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        if compile_:
            targets = target or TARGETS
            task = progress.add_task("compiling", total=len(shipped_configurations(targets, subset=subset)))
            compiled = compile_all(targets, subset=subset, on_result=lambda: progress.advance(task))
        else:
            task = progress.add_task("counting", total=sum(problem.subset or not subset for problem in problems()))
            counted = count_all(subset=subset, on_result=lambda: progress.advance(task))
    if as_json:
        typer.echo(results_as_json(compiled or counted))
    else:
        table = compile_table(compiled) if compile_ else count_table(counted)
        Console(width=1000).print(table)  # where lines are short, rich would cut figures to dots
    broken = broken_promises(compiled or counted)
    for line in broken:
        typer.echo(line, err=True)
    if broken:
        raise typer.Exit(1)
