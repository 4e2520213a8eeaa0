"""Counts every problem in child processes that interpret, and sets it against the least and the roofline."""

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from longrec.kernels.bench.devices import roofline_us
from longrec.kernels.bench.problems import problems
from longrec.kernels.bench.workers import available_cores, run_workers
from longrec.kernels.counting import count_work

__all__ = ["CountResult", "count_all", "count_share"]


class CountResult(NamedTuple):
    """One problem and what its kernel did.

    Args:
        kernel, case: of the problem.
        bytes_moved, flops: counted, see `longrec.kernels.counting`.
        least_bytes, least_flops: that the problem needs.
        programs: of its largest launch.
        complaints: promises that it breaks.
    """

    kernel: str
    case: str
    bytes_moved: int
    flops: int
    least_bytes: int
    least_flops: int
    programs: int
    complaints: list[str]

    @property
    def bytes_ratio(self) -> float:
        """Moved in units of the least."""
        return self.bytes_moved / self.least_bytes

    @property
    def flops_ratio(self) -> float | None:
        """Issued in units of the least; None where the problem needs none."""
        return self.flops / self.least_flops if self.least_flops else None

    def as_json(self) -> dict[str, object]:
        """`{kernel, case, bytes_ratio, flops_ratio, roofline_us: {device: …}}`; the roofline is of what was counted."""
        return {
            "kernel": self.kernel,
            "case": self.case,
            "bytes_ratio": round(self.bytes_ratio, 4),
            "flops_ratio": None if self.flops_ratio is None else round(self.flops_ratio, 4),
            "roofline_us": roofline_us(self.bytes_moved, self.flops),
        }


def count_share(subset: bool, share: int, shares: int) -> Iterator[tuple[int, CountResult]]:
    """Count every `shares`-th problem from the `share`-th on, in this process, with its place among all."""
    chosen = [problem for problem in problems() if problem.subset or not subset]
    for place in range(share, len(chosen), shares):
        problem = chosen[place]
        work = problem.make(torch.device("cpu"))
        with count_work(values=problem.values) as count:
            work.launch()
        result = CountResult(
            problem.kernel,
            problem.case,
            count.bytes_moved,
            count.flops,
            work.least_bytes,
            work.least_flops,
            count.programs,
            [],
        )
        for name, ratio, limit in (
            ("bytes", result.bytes_ratio, problem.bytes_limit),
            ("FLOPs", result.flops_ratio, problem.flops_limit),
        ):
            if limit is not None and ratio is not None and ratio > limit:
                result.complaints.append(f"{ratio:.3f} x the least {name} > {limit}")
        yield place, result


def count_all(
    *, subset: bool = False, processes: int | None = None, on_result: Callable[[], None] | None = None
) -> list[CountResult]:
    """Count in child processes; results in the order of `problems`.

    Args:
        subset: only what CI counts.
        processes: children at a time; one a core by default.
        on_result: called as each problem is done, from any thread.

    Raises:
        MachineError: a child failed; the message ends with its last words.
    """
    shares = processes or available_cores()
    job = {"job": "count", "subset": subset, "shares": shares}
    lines = run_workers([{**job, "share": share} for share in range(shares)], interpret=True, on_line=on_result)
    placed = sorted(json.loads(line) for child in lines for line in child)
    return [CountResult(*values) for _, values in placed]
