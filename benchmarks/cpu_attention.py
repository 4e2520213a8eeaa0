"""Attention over paged memory on a CPU: the numba body, the reference, and how fast this machine reads memory.

    python benchmarks/cpu_attention.py                  # a table: ms, and the share of read bandwidth
    python benchmarks/cpu_attention.py --json out.json

Bandwidth is that of torch's sum over 256 MB, in turn with the calls that are compared with it, so that other work on
the machine slows all of them; every figure is the best of its repeats. Each case is checked first.
Pages lie in random order unless a case says so: with 8 KB a page the hardware's prefetcher rarely gets going.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from longrec.kernels import reference, segment_attention
from longrec.kernels.attention_cases import AttentionArguments, AttentionCase

REPEATS, REFERENCE_REPEATS = 15, 3
READ_BYTES = 256 << 20
TOLERANCE = 1e-4  # float32, and the reference itself is off by 1e-6; a wrong page or window is off by 1e-1

_EVENTS = {"heads": (2, 2), "head_dim": 32, "page_size": 32}  # of 64 floats
STEPS = (
    AttentionCase(new=(1,) * 32, past=(255,) * 32, window=256, **_EVENTS),
    AttentionCase(new=(1,) * 256, past=(255,) * 256, window=256, **_EVENTS),
    AttentionCase(new=(1,) * 256, past=(512,) * 256, **_EVENTS),
    AttentionCase(new=(1,) * 256, past=(512,) * 256, **{**_EVENTS, "page_size": 128}),
    AttentionCase(new=(1,) * 256, past=(512,) * 256, memory_dtype="int8", **_EVENTS),
    AttentionCase(new=(1,) * 256, past=(512,) * 256, variant="silu", **_EVENTS),
)
PREFILLS = (
    AttentionCase(new=(16,) * 32, past=(240,) * 32, window=256, **_EVENTS),
    AttentionCase(new=(2048,), past=(256,), window=256, **_EVENTS),
    AttentionCase(new=(512,), past=(2048,), **_EVENTS),
)


class Result(NamedTuple):
    """A case on some threads; shares are of the bandwidth measured in turn with it."""

    case: str
    threads: int
    milliseconds: float
    reference_milliseconds: float
    gigabytes_per_second: float
    read_gigabytes_per_second: float
    gigaflops: float

    @property
    def share(self) -> float:
        return self.gigabytes_per_second / self.read_gigabytes_per_second


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def work(case: AttentionCase, arguments: AttentionArguments) -> tuple[int, int]:
    """Bytes of keys and values that some query sees, each once, and FLOPs of the pairs that are visible."""
    memory = arguments.keywords["memory"]
    entry = case.heads[1] * (case.head_dim * memory.k_pages.itemsize + 4 * (memory.k_scale is not None))
    seen = pairs = 0
    for new, past in zip(case.new, case.past or (), strict=True):
        seen += min(past, case.window - 1)
        pairs += sum(min(past + row + 1, case.window) for row in range(new))
    return 2 * seen * entry, 4 * pairs * case.heads[0] * case.head_dim


def in_page_order(arguments: AttentionArguments) -> AttentionArguments:
    """The same sizes with each user's pages one after the other."""
    memory = arguments.keywords["memory"]
    ordered = memory._replace(
        k_pages=memory.k_pages.nan_to_num(), page_indices=torch.arange(len(memory.page_indices), dtype=torch.int32)
    )
    ordered = ordered._replace(v_pages=memory.v_pages.nan_to_num())
    return arguments._replace(keywords={**arguments.keywords, "memory": ordered})


def measure(name: str, case: AttentionCase, arguments: AttentionArguments, source: torch.Tensor) -> Result:
    """Raises SystemExit where the answer is not the reference's."""
    fast = lambda: segment_attention(*arguments.tensors, **arguments.keywords, validate=False)  # noqa: E731
    slow = lambda: reference.segment_attention(*arguments.tensors, **arguments.keywords)  # noqa: E731
    error = float((fast()[0] - slow()[0]).abs().max())
    if not error <= TOLERANCE:
        raise SystemExit(f"{name}: off by {error:.1e} from the reference: no time is reported for a wrong answer")
    rounds = [(seconds(source.sum), seconds(fast)) for _ in range(REPEATS)]
    read, best = (min(times) for times in zip(*rounds, strict=True))
    num_bytes, flops = work(case, arguments)
    return Result(
        case=name,
        threads=torch.get_num_threads(),
        milliseconds=best * 1e3,
        reference_milliseconds=min(seconds(slow) for _ in range(REFERENCE_REPEATS)) * 1e3,
        gigabytes_per_second=num_bytes / best / 1e9,
        read_gigabytes_per_second=source.nbytes / read / 1e9,
        gigaflops=flops / best / 1e9,
    )


def problems() -> list[tuple[str, AttentionCase, bool]]:
    """Name, case, whether its pages lie in order."""
    found = []
    for case in (*STEPS, *PREFILLS):
        users = len(case.new)
        past = (case.past or (0,))[0]
        kind = "" if case.variant == "softmax" else f" {case.variant}"
        stored = "" if case.memory_dtype == "same" else f" {case.memory_dtype}"
        window = f" window {case.window}" if case.window <= past + case.new[0] else ""
        found.append(
            (f"{users} x {case.new[0]} new, {past} past{window}, page {case.page_size}{stored}{kind}", case, False)
        )
    name, case, _ = found[2]
    found.insert(3, (f"{name} in order", case, True))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, help="where to write the results as a list of objects")
    options = parser.parse_args(arguments)

    source = torch.ones(READ_BYTES // 4)
    results = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, case, ordered in problems():
            made = case.make(torch.float32)
            results.append(measure(name, case, in_page_order(made) if ordered else made, source))

    table = Table("case", "threads", "ms", "reference ms", "GB/s", "machine GB/s", "share", "GFLOP/s", box=None)
    rows: list[dict[str, Any]] = []
    for result in results:
        table.add_row(
            result.case,
            str(result.threads),
            f"{result.milliseconds:.3f}",
            f"{result.reference_milliseconds:.1f}",
            f"{result.gigabytes_per_second:.1f}",
            f"{result.read_gigabytes_per_second:.1f}",
            f"{result.share:.2f}",
            f"{result.gigaflops:.1f}",
        )
        rows.append({**result._asdict(), "share": result.share})
    Console(width=140).print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
