"""Results of the harness as tables for people and lists of objects for programs."""

import json
from collections.abc import Sequence

from rich.table import Table

from longrec.kernels.bench.compiling import CompileResult
from longrec.kernels.bench.counts import CountResult
from longrec.kernels.bench.devices import DEVICES, roofline_us

__all__ = ["compile_table", "count_table", "results_as_json"]


def compile_table(results: Sequence[CompileResult]) -> Table:
    """A line for each kernel and target: its configurations, the worst of each resource, and what may not ship."""
    table = Table(
        "kernel", "target", "configs", "registers", "stack bytes", "shared bytes", "instructions", "complaints"
    )
    for key in dict.fromkeys((result.kernel, result.target) for result in results):
        group = [result for result in results if (result.kernel, result.target) == key]
        names = dict.fromkeys(name for result in group for name in result.report.instructions if "." not in name)
        wrong = [f"{result.config}: {', '.join(result.complaints)}" for result in group if result.complaints]
        table.add_row(
            key[0],
            f"sm_{key[1]}",
            str(len(group)),
            str(max(result.report.registers for result in group)),
            str(max(result.report.stack_bytes for result in group)),
            str(max(result.report.shared_bytes for result in group)),
            " ".join(names),
            "\n".join(wrong),
        )
    return table


def count_table(results: Sequence[CountResult]) -> Table:
    """A line for each problem: what was counted in units of the least, and the roofline time on each device."""
    columns = ("kernel", "case", "bytes", "x least", "FLOPs", "x least", "programs")
    table = Table(*columns, *(f"{device} us" for device in DEVICES), "complaints")
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
            ", ".join(result.complaints),
        )
    return table


def results_as_json(results: Sequence[CompileResult] | Sequence[CountResult]) -> str:
    """The results as a list of objects (`CompileResult.as_json`, `CountResult.as_json`)."""
    return json.dumps([result.as_json() for result in results], indent=1)
