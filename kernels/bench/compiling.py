"""Compiles everything that ships, in child processes that do not interpret, and collects the reports."""

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from longrec.errors import ArgumentError
from longrec.kernels.bench.workers import available_cores, run_workers
from longrec.kernels.compile_check import CompileReport, compile_shipped, complaints
from longrec.kernels.shipped import SHIPPING_MODULES, TARGETS, Shipped

__all__ = ["CompileResult", "compile_all", "compile_share", "shipped_configurations"]


class CompileResult(NamedTuple):
    """One shipped configuration and what became of it.

    Args:
        kernel, config, target: of the `Shipped` entry.
        report: what the assembler made of it.
        complaints: why it must not ship; empty if it may.
    """

    kernel: str
    config: str
    target: int
    report: CompileReport
    complaints: list[str]

    def as_json(self) -> dict[str, object]:
        """`{kernel, config, target, registers, stack_bytes, shared_bytes, instructions}`."""
        return {
            "kernel": self.kernel,
            "config": self.config,
            "target": f"sm_{self.target}",
            **self.report._asdict(),
        }


def shipped_configurations(targets: Sequence[int] = TARGETS, *, subset: bool = False) -> list[Shipped]:
    """Every configuration that ships for these targets, or the few of each kernel that CI compiles.

    Raises:
        ArgumentError: an unknown target.
    """
    for target in targets:
        if target not in TARGETS:
            raise ArgumentError(f"target={target}", f"one of {', '.join(map(str, TARGETS))}")
    modules = [importlib.import_module(name) for name in SHIPPING_MODULES]
    entries = [entry for target in targets for module in modules for entry in module.shipped(target)]
    return [entry for entry in entries if entry.subset or not subset]


def compile_share(targets: Sequence[int], subset: bool, share: int, shares: int) -> Iterator[CompileResult]:
    """Compile every `shares`-th configuration from the `share`-th on, in this process."""
    for entry in shipped_configurations(targets, subset=subset)[share::shares]:
        report = compile_shipped(entry)
        yield CompileResult(entry.kernel, entry.config, entry.target, report, complaints(entry, report))


def compile_all(
    targets: Sequence[int] = TARGETS,
    *,
    subset: bool = False,
    processes: int | None = None,
    on_result: Callable[[], None] | None = None,
) -> list[CompileResult]:
    """Compile in child processes; results in the order of `shipped_configurations`.

    Args:
        targets: compute capabilities x 10.
        subset: only what CI compiles.
        processes: children at a time; one a core by default.
        on_result: called as each configuration is done, from any thread.

    Raises:
        MachineError: a child failed, that is, a configuration does not compile: the message ends with its last words.
    """
    shares = processes or available_cores()
    job = {"job": "compile", "targets": list(targets), "subset": subset, "shares": shares}
    gathered = run_workers([{**job, "share": share} for share in range(shares)], interpret=False, on_line=on_result)
    count = sum(map(len, gathered))
    return [_parse(gathered[i % shares][i // shares]) for i in range(count)]


def _parse(line: str) -> CompileResult:
    kernel, config, target, report, wrong = json.loads(line)
    return CompileResult(kernel, config, target, CompileReport(*report), wrong)
