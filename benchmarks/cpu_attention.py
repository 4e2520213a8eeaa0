"""Attention over paged memory on a CPU: the numba body, the reference, and how fast this machine reads memory.

    python benchmarks/cpu_attention.py                  # a table: ms, and the share of read bandwidth
    python benchmarks/cpu_attention.py --json out.json

How it is measured: `longrec.kernels.bench.attention_bandwidth`.
Pages lie in random order unless a case says so: with 8 KB a page the hardware's prefetcher rarely gets going alone.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from longrec.kernels.attention_cases import AttentionArguments, AttentionCase
from longrec.kernels.bench.attention_bandwidth import measure_attention

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


def in_page_order(arguments: AttentionArguments) -> AttentionArguments:
    """The same sizes with each user's pages one after the other."""
    memory = arguments.keywords["memory"]
    ordered = memory._replace(
        k_pages=memory.k_pages.nan_to_num(), page_indices=torch.arange(len(memory.page_indices), dtype=torch.int32)
    )
    ordered = ordered._replace(v_pages=memory.v_pages.nan_to_num())
    return arguments._replace(keywords={**arguments.keywords, "memory": ordered})


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

    table = Table("case", "threads", "ms", "reference ms", "GB/s", "machine GB/s", "share", "GFLOP/s", box=None)
    rows: list[dict[str, Any]] = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, case, ordered in problems():
            made = case.make(torch.float32)
            result = measure_attention(case, in_page_order(made) if ordered else made)
            table.add_row(
                name,
                str(threads),
                f"{result.milliseconds:.3f}",
                f"{result.reference_milliseconds:.1f}",
                f"{result.gigabytes_per_second:.1f}",
                f"{result.read_gigabytes_per_second:.1f}",
                f"{result.share:.2f}",
                f"{result.gigaflops:.1f}",
            )
            rows.append({"case": name, **result._asdict(), "share": result.share})
    Console(width=140).print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
