"""Times on a device: the median of CUDA events, the level 2 cache overwritten before each run.

Method of `triton.testing.do_bench` with one difference: what can be captured is timed as the replay of a CUDA graph, so
that short operators are not timed as the Python that launches them. A replay's own start, some microseconds, is in it.
"""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from gpucheck.graphs import capture

__all__ = ["Clock", "Time", "copy_rate", "matmul_rate"]

FLUSH_BYTES = 256 << 20  # more than any level 2 cache
WARM_UP_MS, TIMED_MS = 25.0, 100.0
LEAST_RUNS, MOST_RUNS = 10, 300
COPY_BYTES = 1 << 30
MATMUL = 8192


class Time(NamedTuple):
    """Microseconds of a call: median, and the 20th and 80th percentile. runs: that were timed."""

    us: float
    p20_us: float
    p80_us: float
    runs: int


class Clock:
    """Times calls on the current device."""

    def __init__(self) -> None:
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def graph(self, call: Callable[[], Any]) -> tuple[Time, Any]:
        """The time of a call's captured graph, and the results that it wrote. Launches of the host are not in it."""
        graph, results = capture(call)
        time = self.events(graph.replay)
        return time, results

    def events(self, call: Callable[[], Any]) -> Time:
        """The time of a call from its first launch on; the host's time is in it where the device waits for it."""
        call()
        torch.cuda.synchronize()
        begin, end = _event(), _event()
        begin.record()
        for _ in range(5):
            self.flush.zero_()
            call()
        end.record()
        torch.cuda.synchronize()
        estimate = max(begin.elapsed_time(end) / 5, 1e-3)  # ms, the flush included
        for _ in range(min(MOST_RUNS, int(WARM_UP_MS / estimate))):
            call()
        pairs = [(_event(), _event()) for _ in range(min(MOST_RUNS, max(LEAST_RUNS, int(TIMED_MS / estimate))))]
        for begin, end in pairs:
            self.flush.zero_()
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize()
        times = sorted(1e3 * begin.elapsed_time(end) for begin, end in pairs)
        return Time(statistics.median(times), times[len(times) // 5], times[len(times) * 4 // 5], len(times))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def copy_rate(clock: Clock) -> float:
    """Bytes a second of a device-to-device copy, read and written counted."""
    size = min(COPY_BYTES, torch.cuda.mem_get_info()[0] // 4)
    source = torch.zeros(size, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / (clock.events(lambda: target.copy_(source)).us * 1e-6)


def matmul_rate(clock: Clock) -> float:
    """FLOPs a second of a large square product in bfloat16."""
    a, b = (torch.randn(MATMUL, MATMUL, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * MATMUL**3 / (clock.events(lambda: torch.mm(a, b, out=out)).us * 1e-6)
