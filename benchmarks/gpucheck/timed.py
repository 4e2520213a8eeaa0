"""What a timed problem is, and how one is run: made, held against float64, timed, set beside its baselines."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from gpucheck.clock import Clock, Time
from gpucheck.comparing import describe
from longrec.kernels.exactness import Comparison

__all__ = ["Baseline", "NotExpressibleError", "Target", "Timing", "Work"]

BASELINE_TOLERANCE = 0.02  # root mean squares: the same problem, whatever the dtype of its parts

Outputs = tuple[torch.Tensor, ...]


class NotExpressibleError(Exception):
    """A baseline that is not installed, or has no way to say the problem."""


class Target(NamedTuple):
    """What is promised of a time.

    Args:
        kind: "bandwidth": share of the copy's; "tflops": 10^12 FLOPs a second, of an H100 or newer; "ratio": times the
            time of the problem `of`, at most.
        value: the limit.
        of: another problem's id, for "ratio".
    """

    kind: str
    value: float
    of: str = ""


class Baseline(NamedTuple):
    """Another way to the same outputs.

    Args:
        prepare: makes the call, which gives the outputs that are compared, or raises `NotExpressibleError`.
        graph: whether its time is that of a captured graph.
    """

    prepare: Callable[[], Callable[[], Outputs]]
    graph: bool = True


class Work(NamedTuple):
    """A problem with its inputs made.

    Args:
        call: runs the operator and gives its outputs.
        check: holds outputs against float64.
        least_bytes, least_flops: that the problem needs, see `longrec.kernels.bench.problems`.
        baselines: by name.
        graph: whether the time is that of a captured graph.
    """

    call: Callable[[], Outputs]
    check: Callable[[Outputs], list[Comparison]]
    least_bytes: int
    least_flops: int
    baselines: Mapping[str, Baseline] = {}
    graph: bool = True


class Timing(NamedTuple):
    """A problem to time. quick: part of a quick run."""

    id: str
    make: Callable[[torch.device], Work]
    target: Target | None = None
    quick: bool = False

    def answer(self, device: torch.device) -> dict[str, Any]:
        """`{"us", "p20_us", "p80_us", "runs", "method", "least_bytes", "least_flops", "baselines": {name: {"us", …} or
        {"na": why}}}`, `{"failure": what is wrong with the result}` and no time, or `{"left_out": why}`."""
        try:
            return self._run(device)
        except torch.cuda.OutOfMemoryError:
            return {"left_out": "the device has too little memory"}

    def _run(self, device: torch.device) -> dict[str, Any]:
        work = self.make(device)
        outputs = work.call()
        wrong = [str(comparison) for comparison in work.check(outputs) if not comparison.passed]
        if wrong:
            return {"failure": "; ".join(wrong)}
        clock = Clock()
        time, replayed = clock.graph(work.call) if work.graph else (clock.events(work.call), work.call())
        if any(not torch.equal(ours, again) for ours, again in zip(outputs, replayed, strict=True)):
            return {"failure": "the timed runs gave other results than the checked one"}
        return {
            **time._asdict(),
            "method": "graph" if work.graph else "events",
            "least_bytes": work.least_bytes,
            "least_flops": work.least_flops,
            "baselines": {name: _time(clock, baseline, outputs) for name, baseline in work.baselines.items()},
        }


def _time(clock: Clock, baseline: Baseline, outputs: Outputs) -> dict[str, Any]:
    """A baseline never fails a run: what it can't do is said in its place."""
    try:
        call = baseline.prepare()
        for theirs, ours in zip(call(), outputs, strict=True):
            off = float((theirs.double() - ours.double()).square().mean().sqrt())
            if not off <= BASELINE_TOLERANCE * float(ours.double().square().mean().sqrt()):
                return {"na": f"other results, off by {off:.3g}"}
        time: Time = clock.graph(call)[0] if baseline.graph else clock.events(call)
        return time._asdict()
    except Exception as error:  # any library, in any state
        return {"na": str(error) if isinstance(error, NotExpressibleError) else describe(error)}
