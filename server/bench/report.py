"""The benchmark's figures: as the JSON object that programs read, beside their targets for people, and as files."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from rich.table import Column, Table

from longrec.server.bench.echo import middle
from longrec.server.bench.suite import Results

__all__ = ["Judged", "figures", "judge", "table", "write_report"]

STEP_TARGETS: Final = {128: 12.0, 512: 60.0, 2048: 80.0}
THROUGHPUT_TARGETS: Final = {128: 2.5, 512: 12.0, 2048: 45.0}


class Judged(NamedTuple):
    """A figure beside its target.

    Args:
        part: of the benchmark. name: of the figure.
        value: None: the part didn't run, or failed.
        target: None: there is none. at_least: whether larger is better.
    """

    part: str
    name: str
    value: float | None
    target: float | None = None
    at_least: bool = True

    @property
    def missed(self) -> bool:
        """Whether there is a target that the figure doesn't reach."""
        if self.target is None or self.value is None:
            return False
        return not (self.value >= self.target if self.at_least else self.value <= self.target)

    @property
    def share(self) -> float | None:
        """How much of the target is reached: 1 is just enough, more is better."""
        if self.target is None or self.value is None or min(self.target, self.value) <= 0:
            return None
        return self.value / self.target if self.at_least else self.target / self.value


def figures(results: Results) -> dict[str, Any]:
    """The object that `--json` prints; null where a part didn't run, or failed."""
    echo, bulk, storm, residency = results.echo, results.bulk, results.cold_storm, results.residency
    recommender: dict[str, float] | None = None
    ceiling: dict[str, float] | None = None
    if echo:
        names = ("throughput", "p99_ms")
        ceiling = {name: middle(echo.echo, name) for name in names}
        recommender = {name: middle(echo.recommender, name) for name in (*names, "mean_batch")}
    return {
        "echo": ceiling,
        "recommender": recommender,
        "ratio_to_echo": echo and echo.ratio,
        "recompute": results.recompute
        and [
            {
                "history": one.history,
                "step_ratio": one.step_ratio,
                "step_ratio_pruned": one.step_ratio_pruned,
                "throughput_ratio": one.throughput_ratio,
            }
            for one in results.recompute
        ],
        "bulk": bulk and {"users_per_second": bulk.users_per_second, "attention_bandwidth_share": bulk.attention.share},
        "long_history": results.long_history and {"ratio": results.long_history.ratio},
        "cold_storm": storm and {"p99_ratio": storm.p99_ratio, "answered": storm.answered},
        "residency": residency
        and {
            "bytes_per_idle_user": residency.bytes_per_idle_user,
            "int8_bytes_ratio": residency.int8_bytes_ratio,
            "int8_ndcg_ratio": residency.int8_ndcg_ratio,
        },
        "start_seconds": results.start and results.start.start_seconds,
    }


def judge(found: Mapping[str, Any], *, cold_users: int) -> list[Judged]:
    """Every figure of `figures` beside its target.

    Args:
        found: as `figures` makes it.
        cold_users: of a storm, all of whom must be answered.
    """

    def of(part: str, name: str) -> float | None:
        return None if found[part] is None else float(found[part][name])

    p99_limit = None if found["echo"] is None else 2 * found["echo"]["p99_ms"]
    judged = [
        Judged("echo", "answers a second, echo", of("echo", "throughput")),
        Judged("echo", "p99 (ms), echo", of("echo", "p99_ms")),
        Judged("echo", "answers a second, recommender", of("recommender", "throughput")),
        Judged("echo", "p99 (ms), recommender, at most twice echo's", of("recommender", "p99_ms"), p99_limit, False),
        Judged("echo", "mean batch, recommender", of("recommender", "mean_batch")),
        Judged("echo", "throughput, share of echo's", found["ratio_to_echo"], 0.70),
    ]
    for one in found["recompute"] or ():
        history = one["history"]
        judged += [
            Judged("recompute", f"step time ratio, history {history}", one["step_ratio"], STEP_TARGETS.get(history)),
            Judged("recompute", f"step time ratio, pruned pass, history {history}", one["step_ratio_pruned"]),
            Judged(
                "recompute",
                f"throughput ratio, history {history}",
                one["throughput_ratio"],
                THROUGHPUT_TARGETS.get(history),
            ),
        ]
    return [
        *judged,
        Judged("bulk", "users a second", of("bulk", "users_per_second"), 20_000),
        Judged("bulk", "attention, share of read bandwidth", of("bulk", "attention_bandwidth_share"), 0.6),
        Judged("long_history", "latency, long against short", of("long_history", "ratio"), 1.3, False),
        Judged("cold_storm", "warm p99, storm against quiet", of("cold_storm", "p99_ratio"), 3.0, False),
        Judged("cold_storm", "cold users answered rightly", of("cold_storm", "answered"), cold_users),
        Judged("residency", "bytes per idle user beside pages", of("residency", "bytes_per_idle_user"), 512, False),
        Judged("residency", "int8 bytes, of float32's", of("residency", "int8_bytes_ratio"), 0.30, False),
        Judged("residency", "int8 NDCG@10, of float32's", of("residency", "int8_ndcg_ratio"), 0.99),
        Judged("start", "seconds from launch to first answer", found["start_seconds"], 6.0, False),
    ]


def table(judged: list[Judged], failures: Mapping[str, str]) -> Table:
    """A line for each figure that was measured, and one for each part that failed."""
    shown = Table(
        "part", "figure", Column("measured", justify="right"), Column("target", justify="right"), "", box=None
    )
    for one in judged:
        if one.value is None:
            continue
        target = "" if one.target is None else f"{'>=' if one.at_least else '<='} {_short(one.target)}"
        verdict = "" if one.target is None else "[red]missed[/red]" if one.missed else "[green]ok[/green]"
        shown.add_row(one.part, one.name, _short(one.value), target, verdict)
    for part in failures:
        shown.add_row(part, "", "", "", "[red]failed[/red]")
    return shown


def write_report(folder: Path, results: Results, judged: list[Judged], *, quick: bool) -> Path:
    """Write `serving.json`: the figures, what was missed, what they were made of, and the machine.

    Args:
        folder: made if need be.
        quick: whether the figures are those of a quick run.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "figures": figures(results),
        "missed": [f"{one.part}: {one.name}" for one in judged if one.missed],
        "failures": results.failures,
        "quick": quick,
        "seconds": results.seconds,
        "machine": _machine(),
        "details": _details(results),
    }
    path = folder / "serving.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    return path


def _details(results: Results) -> dict[str, Any]:
    """What the figures were made of."""
    found: dict[str, Any] = {}
    if results.echo:
        found["echo"] = asdict(results.echo)
    if results.recompute:
        found["recompute"] = [asdict(one) for one in results.recompute]
    if bulk := results.bulk:
        attention = {**bulk.attention._asdict(), "share": bulk.attention.share}
        found["bulk"] = {"windows": bulk.windows, "mean_memory": bulk.mean_memory, "attention": attention}
    if results.long_history:
        found["long_history"] = asdict(results.long_history)
    if storm := results.cold_storm:
        found["cold_storm"] = {
            "rate": storm.rate,
            "requests": len(storm.samples),
            "quiet_p99_ms": storm.quiet_p99_ms,
            "storm_p99_ms": storm.storm_p99_ms,
            "storms": storm.storms,
        }
    if results.residency:
        found["residency"] = asdict(results.residency)
    if results.start:
        found["start"] = asdict(results.start)
    return found


def _machine() -> dict[str, Any]:
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_average": os.getloadavg(),  # at the end: the benchmark itself keeps about two cores busy
    }


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
