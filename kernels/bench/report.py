"""Results of the harness as tables for people and lists of objects for programs."""

import json
from collections.abc import Sequence

from rich.table import Column, Table

from longrec.kernels.bench.compiling import CompileResult
from longrec.kernels.bench.counts import CountResult
from longrec.kernels.bench.devices import DEVICES, roofline_us

__all__ = ["broken_promises", "compile_table", "count_table", "results_as_json"]

UNITS = ("mma", "wgmma", "tcgen05", "async_copy", "local_memory")  # of `compile_check.INSTRUCTION_CLASSES`


def compile_table(results: Sequence[CompileResult]) -> Table:
    """A line for each kernel and target: its configurations, and the most that one of them takes of each resource."""
    table = Table(
        Column("kernel", no_wrap=True), "target", "configs", "registers", "stack", "shared", "units", box=None
    )
    for key in dict.fromkeys((result.kernel, result.target) for result in results):
        reports = [result.report for result in results if (result.kernel, result.target) == key]
        table.add_row(
            key[0],
            f"sm_{key[1]}",
            str(len(reports)),
            str(max(report.registers for report in reports)),
            str(max(report.stack_bytes for report in reports)),
            str(max(report.shared_bytes for report in reports)),
            " ".join(kind for kind in UNITS if any(report.count(kind) for report in reports)),
        )
    return table


def count_table(results: Sequence[CountResult]) -> Table:
    """A line for each problem: what was counted in units of the least, and the roofline time on each device."""
    names = (Column("kernel", no_wrap=True), Column("case", no_wrap=True))
    table = Table(*names, "bytes", "x least", "FLOPs", "x least", "programs", *(f"{d} us" for d in DEVICES), box=None)
    for result in results:
        times = roofline_us(result.bytes_moved, result.flops)
        table.add_row(
            result.kernel,
            result.case,
            f"{result.bytes_moved:,}",
            f"{result.bytes_ratio:.3f}",
            f"{result.flops:,}",
            "-" if result.flops_ratio is None else f"{result.flops_ratio:.3f}",
            str(result.programs),
            *(f"{times[device]:.2f}" for device in DEVICES),
        )
    return table


def broken_promises(results: Sequence[CompileResult] | Sequence[CountResult]) -> list[str]:
    """A line for each complaint; empty: everything may ship."""
    return [
        f"{result.kernel} {result.config} sm_{result.target}: {complaint}"
        if isinstance(result, CompileResult)
        else f"{result.kernel} {result.case}: {complaint}"
        for result in results
        for complaint in result.complaints
    ]


def results_as_json(results: Sequence[CompileResult] | Sequence[CountResult]) -> str:
    """The results as a list of objects (`CompileResult.as_json`, `CountResult.as_json`)."""
    return json.dumps([result.as_json() for result in results], indent=1)
