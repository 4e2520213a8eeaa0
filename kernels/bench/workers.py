"""Child processes of the harness: a process either interprets kernels or compiles them, so the caller does neither.

A job is a dictionary that travels as JSON; a child writes one line of JSON for each result.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from longrec.errors import MachineError

__all__ = ["available_cores", "run_workers"]


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_workers(
    jobs: Sequence[dict[str, object]], *, interpret: bool, on_line: Callable[[], None] | None = None
) -> list[list[str]]:
    """Run each job in a child process, all at a time, and give each one's lines.

    Args:
        jobs: for `longrec.kernels.bench.worker`.
        interpret: whether triton interprets kernels in the children.
        on_line: called as each line comes, from any thread.

    Raises:
        MachineError: a child failed; the message ends with its last words.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1"} | ({"TRITON_INTERPRET": "1"} if interpret else {})

    def run(job: dict[str, object]) -> list[str]:
        command = [sys.executable, "-m", "longrec.kernels.bench.worker", json.dumps(job)]
        lines = []
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
        ):
            for line in child.stdout or ():
                lines.append(line)
                if on_line is not None:
                    on_line()
            if child.wait():
                errors.seek(0)
                last = errors.read().strip()[-2000:]
                raise MachineError(f"{job['job']} worker exited with {child.returncode}: {last}")
        return lines

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))
