"""Checks and times the kernels on an NVIDIA GPU, in one command and under 8 minutes.

    python3 benchmarks/gpu_check.py              # from a plain checkout with torch, triton and numpy; no network
    python3 benchmarks/gpu_check.py --quick      # a minute
    python3 benchmarks/gpu_check.py --interpret  # without a GPU: a few cases through triton's interpreter, no times

First every correctness case of every operator, in several processes at a time; then the times, one at a time: medians
beside PyTorch's SDPA, FlexAttention, flash-attn and FlashInfer where they are installed, and rates beside those of a
copy and a matrix product measured in the same run. Prints tables, writes JSON. Triton compiles its launchers, so a C
compiler and Python's headers are needed too.

Exit code: 0 all correct (targets of time may be missed), 1 a wrong result, 2 no GPU or a wrong argument.
"""

import argparse
import json
import math
import os
import platform
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from gpucheck.checkout import ROOT, use_checkout

CHECK_SECONDS = 180.0  # that one check may take, its compiling included
TIME_SECONDS = 120.0
BUDGET_SECONDS = 7 * 60.0  # after which no timing is begun
END_SECONDS = 7.75 * 60.0  # at which one that runs is given up
MOST_PROCESSES = 8

Json = dict[str, Any]


def main() -> int:
    """Run what the arguments ask for; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="a subset, in about a minute")
    parser.add_argument("--interpret", action="store_true", help="a few cases on the CPU, without times")
    parser.add_argument(
        "--json", type=Path, help="where results go [benchmarks/results/gpu-DEVICE.json; none with --interpret]"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    else:
        os.environ.pop("TRITON_INTERPRET", None)
    use_checkout()
    import torch

    if arguments.worker:
        from gpucheck.worker import serve

        serve(torch.device("cpu" if arguments.interpret else "cuda:0"))
        return 0
    if not arguments.interpret and not torch.cuda.is_available():
        print("no NVIDIA GPU that PyTorch can use: nothing was checked; --interpret checks a few cases without one")
        return 2
    if not arguments.interpret and not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        print("no C compiler, with which triton builds its launchers: install gcc, or name one in CC")
        return 2
    return check(quick=arguments.quick, interpret=arguments.interpret, path=arguments.json)


def check(*, quick: bool, interpret: bool, path: Path | None) -> int:
    """Check, time, print and write; returns the exit code."""
    began = time.monotonic()
    machine = describe_machine(interpret)
    print(", ".join(f"{name} {machine[name]}" for name in ("device", "torch", "triton", "python")), flush=True)
    checked = run_checks(quick=quick, interpret=interpret)
    timed: dict[str, Json] = {}
    if not interpret:
        timed = run_timings(machine, began, quick=quick)
    wrong = [id for id, answer in (checked | timed).items() if "failure" in answer or not answer.get("passed", True)]
    results = {
        "machine": machine,
        "seconds": round(time.monotonic() - began, 1),
        "quick": quick,
        "passed": not wrong,
        "checks": checked,
        "timings": timed,
    }
    if path is None and not interpret:
        slug = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
        path = ROOT / "benchmarks" / "results" / f"gpu-{slug}.json"
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(finite(results), indent=1, allow_nan=False) + "\n")
    outcome = f"WRONG: {len(wrong)} of them" if wrong else "all correct"
    print(f"{outcome}; {results['seconds']} s; JSON: {path or 'none'}")
    return 1 if wrong else 0


def finite(value: Any) -> Any:
    """The value with infinities and NaN as text, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def describe_machine(interpret: bool) -> Json:
    """What ran, on what."""
    import torch
    import triton

    versions = {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()}
    if interpret:
        return {"device": "interpreter", **versions}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        **versions,
    }


def run_checks(*, quick: bool, interpret: bool) -> dict[str, Json]:
    """Answers of the correctness cases by id; those that fail are printed as they come."""
    from gpucheck.checks import checks
    from gpucheck.report import failure_lines
    from gpucheck.workers import run_jobs

    chosen = [check for check in checks() if (check.interpreted if interpret else check.quick or not quick)]
    answers: dict[str, Json] = {}

    def on_answer(job: Json, answer: Json) -> None:
        answers[job["id"]] = answer
        for line in failure_lines(job["id"], answer):
            print(line, flush=True)
        if "left_out" in answer:
            print(f"left out {job['id']}: {answer['left_out']}", flush=True)

    run_jobs(
        [{"kind": "check", "id": check.id} for check in chosen],
        processes=1 if interpret else max(1, min(MOST_PROCESSES, len(os.sched_getaffinity(0)))),
        limit_seconds=lambda: CHECK_SECONDS,
        on_answer=on_answer,
        arguments=("--interpret",) if interpret else (),
    )
    good = sum(answer.get("passed", False) for answer in answers.values())
    operators = sorted({check.id.split(" ", 1)[0] for check in chosen})
    print(f"correctness: {good} of {len(chosen)} cases passed ({', '.join(operators)})", flush=True)
    return {check.id: answers[check.id] for check in chosen}


def run_timings(machine: Json, began: float, *, quick: bool) -> dict[str, Json]:
    """Answers of the timings by id, with what became of their targets; prints their table. Adds the measured rates of
    copy and matmul to `machine`."""
    from gpucheck.report import machine_line, timing_table, verdict
    from gpucheck.timings import timings
    from gpucheck.workers import run_jobs

    chosen = [timing for timing in timings() if timing.quick or not quick]
    timed: dict[str, Json] = {}

    def seconds_left() -> float:
        elapsed = time.monotonic() - began
        return 0.0 if elapsed > BUDGET_SECONDS else min(TIME_SECONDS, END_SECONDS - elapsed)

    def on_answer(job: Json, answer: Json) -> None:
        if job["kind"] == "machine":
            machine.update(answer)
            return
        if "failure" in answer:
            print(f"FAILED {job['id']}: {answer['failure']}", flush=True)
            if time.monotonic() - began >= END_SECONDS:
                answer = {"left_out": "no time was left to end it"}
        timed[job["id"]] = answer

    run_jobs(
        [{"kind": "machine", "id": "machine"}, *({"kind": "time", "id": timing.id} for timing in chosen)],
        processes=1,
        limit_seconds=seconds_left,
        on_answer=on_answer,
    )
    for timing in chosen:
        target = verdict(timing.target, timed[timing.id], timed, machine)
        if target is not None:
            timed[timing.id]["target"] = target
    print(machine_line(machine))
    print(timing_table(timed, machine))
    print("* from events around the call, launches of the host included; all others are replays of a CUDA graph")
    missed = [id for id, answer in timed.items() if (answer.get("target") or {}).get("met") is False]
    print(f"targets missed: {'; '.join(missed) or 'none of those judged'}")
    return timed


if __name__ == "__main__":
    sys.exit(main())
