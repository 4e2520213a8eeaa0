"""NVIDIA's perf_analyzer: finds it or unpacks it, runs it on a served model, reads its figures.

Where the machine has none on PATH, the one in the wheel `tritonclient` 2.50.0 (manylinux1: glibc from 2.35 on) is used.
Its two uncommon libraries come out of the tritonserver wheel, so that no system package is needed.
"""

import csv
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longrec.errors import ArgumentError, MachineError, ServerError
from longrec.server.cache import Wheel, entry_folder, link_folder, unpacked
from longrec.server.tritonserver import tritonserver_wheel_libraries

__all__ = ["PerfAnalyzer", "PerfResult", "find_perf_analyzer", "run_perf_analyzer"]

BINARY = "tritonclient-2.50.0.data/data/bin/perf_analyzer"
WHEEL = Wheel(
    "tritonclient==2.50.0",
    "421fbb69ae6ab8cdb2c35b82134fcef2fe11e7af7718b1fcbc53335ab9bfe889",
    (BINARY, "tritonclient-2.50.0.data/data/LICENSE"),
)
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12.*"}


@dataclass(frozen=True)
class PerfAnalyzer:
    """An installed perf_analyzer.

    Args:
        binary: the program.
        libraries: folders that its LD_LIBRARY_PATH begins with.
    """

    binary: Path
    libraries: tuple[Path, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """The environment it runs in."""
        paths = [*(str(folder) for folder in self.libraries), os.environ.get("LD_LIBRARY_PATH", "")]
        return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(path for path in paths if path)}


@dataclass(frozen=True)
class PerfResult:
    """What perf_analyzer measured at one concurrency.

    Args:
        concurrency: requests in flight.
        throughput: answers a second.
        p50_ms, p90_ms, p95_ms, p99_ms: of the latency that the client sees.
        queue_ms, compute_ms: mean time of a request in the server's queue, and in its model (with copies in and out).
        mean_batch: requests of a mean execution on the server.
    """

    concurrency: int
    throughput: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    queue_ms: float
    compute_ms: float
    mean_batch: float


def find_perf_analyzer(*, download: bool = True) -> PerfAnalyzer | None:
    """The perf_analyzer that `run_perf_analyzer` uses.

    Args:
        download: get the wheels if there is none; without it the answer is None then.

    Raises:
        MachineError: the wheels can't be downloaded, or the program still lacks a library.
    """
    if on_path := shutil.which("perf_analyzer"):
        return PerfAnalyzer(Path(on_path))
    if not download and not entry_folder(WHEEL).is_dir():
        return None
    binary = unpacked(WHEEL, lambda folder: (folder / BINARY).chmod(0o755)) / BINARY
    bundled = tritonserver_wheel_libraries()
    links = {name: next(bundled.glob(pattern)) for name, pattern in LIBRARIES.items()}
    analyzer = PerfAnalyzer(binary, (link_folder(f"perf-analyzer-libraries-{bundled.parent.name}", links),))
    done = subprocess.run([binary, "--version"], env=analyzer.environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise MachineError(
            f"{binary.name}: expected it to run, got: {reason}; on Debian or Ubuntu type "
            "`apt-get install libssl3 zlib1g libstdc++6`, or put a perf_analyzer on PATH"
        )
    return analyzer


def run_perf_analyzer(
    url: str,
    model: str,
    input_data: Path,
    concurrency: Sequence[int],
    *,
    window_ms: int = 2000,
    stability_percent: float = 999.0,
    max_windows: int = 10,
    requests: int | None = None,
    parameters: Mapping[str, int] | None = None,
    analyzer: PerfAnalyzer | None = None,
    timeout_seconds: float = 120.0,
) -> list[PerfResult]:
    """Measure `model` over gRPC, asynchronously, one run a concurrency.

    Args:
        url: host:port of the gRPC endpoint.
        model: the model's name.
        input_data: JSON file of requests in perf_analyzer's format; it goes round them.
        concurrency: requests in flight, one figure of the result each.
        window_ms: a figure is the mean of three windows of this length.
        stability_percent: how far the last three windows may lie apart. The default takes the first three, as they
            are, so that a run's length is known; a lower one measures until three agree.
        max_windows: when to give up looking for agreement.
        requests: send so many, and measure those, instead of windows.
        parameters: request parameters, sent with every request.
        analyzer: which installation; default `find_perf_analyzer()`.
        timeout_seconds: of a run, beyond its windows.

    Raises:
        ArgumentError: a concurrency below 1, or `input_data` isn't there.
        MachineError: there is no perf_analyzer to be had.
        ServerError: it failed, or requests did, or it doesn't end; names its last words.
    """
    if any(level < 1 for level in concurrency):
        raise ArgumentError(f"concurrency={list(concurrency)}", "at least 1 each")
    if not input_data.is_file():
        raise ArgumentError(f"input_data={input_data}", "a JSON file of requests", "no such file")
    analyzer = analyzer or find_perf_analyzer()
    assert analyzer is not None  # find_perf_analyzer gives None only where it may not download
    command = [str(analyzer.binary), "-m", model, "-u", url, "-i", "grpc", "--async", f"--input-data={input_data}"]
    command += [f"--measurement-interval={window_ms}", f"--stability-percentage={stability_percent:g}"]
    command += [f"--max-trials={max_windows}", f"--request-count={requests or 0}"]
    for name, value in (parameters or {}).items():
        command.append(f"--request-parameter={name}:{value}:int")
    longest = timeout_seconds + max_windows * window_ms / 1000
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for level in concurrency:
            report = Path(scratch, f"{level}.csv")
            try:
                done = subprocess.run(
                    [*command, f"--concurrency-range={level}", "-f", str(report)],
                    env=analyzer.environment,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=longest,
                )
            except subprocess.TimeoutExpired:
                raise ServerError(
                    f"perf_analyzer at concurrency {level}: expected its end within {longest:g} s; does {url} answer?"
                ) from None
            if done.returncode or not report.is_file():
                words = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
                raise ServerError(f"perf_analyzer at concurrency {level}: {' '.join(words[-3:])}")
            results.append(_parse(report.read_text(), done.stdout))
    return results


def _parse(report: str, said: str) -> PerfResult:
    """One row of the CSV export, in microseconds; the server's counts stand only in what was printed."""
    (row,) = csv.DictReader(report.splitlines())
    inferences, executions = (
        int(found[1]) if (found := re.search(rf"{kind} count: (\d+)", said)) else 0
        for kind in ("Inference", "Execution")
    )
    compute = sum(float(row[f"Server Compute {part}"]) for part in ("Input", "Infer", "Output"))
    return PerfResult(
        concurrency=int(row["Concurrency"]),
        throughput=float(row["Inferences/Second"]),
        p50_ms=float(row["p50 latency"]) / 1000,
        p90_ms=float(row["p90 latency"]) / 1000,
        p95_ms=float(row["p95 latency"]) / 1000,
        p99_ms=float(row["p99 latency"]) / 1000,
        queue_ms=float(row["Server Queue"]) / 1000,
        compute_ms=compute / 1000,
        mean_batch=inferences / executions if executions else float("nan"),
    )
