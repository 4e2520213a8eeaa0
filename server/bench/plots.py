"""The benchmark's figures as pictures."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from longrec.server.bench.cold_storm import StormResult
from longrec.server.bench.echo import EchoResult
from longrec.server.bench.recompute import HistoryResult
from longrec.server.bench.report import STEP_TARGETS, THROUGHPUT_TARGETS, Judged
from longrec.server.bench.suite import Results

__all__ = ["draw_plots"]

MET, MISSED, CEILING = "tab:blue", "tab:red", "tab:gray"


def draw_plots(folder: Path, results: Results, judged: list[Judged]) -> list[Path]:
    """A PNG for each part that has more to show than a number, and one of all targets.

    Returns:
        The files.
    """
    drawn = {"targets": _targets(judged)} if any(one.share for one in judged) else {}
    if results.echo:
        drawn["echo"] = _echo(results.echo)
    if results.recompute:
        drawn["recompute"] = _recompute(results.recompute)
    if results.cold_storm:
        drawn["cold_storm"] = _storm(results.cold_storm)
    paths = []
    for name, figure in drawn.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1])
    return paths


def _targets(judged: list[Judged]) -> Figure:
    """How much of each target is reached, on a logarithmic scale: 1 is just enough."""
    rows = [(one, one.share) for one in reversed(judged) if one.share is not None]
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(rows)), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="share of the target that is reached (1: just enough, more is better)")
    axes.barh(
        [f"{one.part}: {one.name}" for one, _ in rows],
        [share for _, share in rows],
        color=[MISSED if one.missed else MET for one, _ in rows],
    )
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    least, most = min(share for _, share in rows), max(share for _, share in rows)
    axes.set_xlim(min(0.4, 0.7 * least), max(2.5, 1.6 * most))
    for place, (_, share) in enumerate(rows):
        axes.annotate(f"{share:.2f}", (share, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10) if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    return figure


def _echo(result: EchoResult) -> Figure:
    """Every run of both models, in the order in which they took turns."""
    figure = Figure(figsize=(8, 3.6), dpi=120, layout="constrained")
    for place, (name, label) in enumerate((("throughput", "answers a second"), ("p99_ms", "p99 latency (ms)"))):
        axes = figure.add_subplot(1, 2, place + 1, xlabel="round", ylabel=label)
        for runs, model, color in ((result.echo, "echo", CEILING), (result.recommender, "recommender", MET)):
            numbers = range(1, len(runs) + 1)
            axes.plot(numbers, [getattr(run, name) for run in runs], "-o", color=color, label=model)
        axes.set_xticks(list(range(1, len(result.echo) + 1)))
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower right")
    return figure


def _recompute(results: tuple[HistoryResult, ...]) -> Figure:
    """Both ratios by the length of the history, and what they should be."""
    figure = Figure(figsize=(8, 3.6), dpi=120, layout="constrained")
    parts = (
        ("step_ratio", "step time without memory / with", STEP_TARGETS),
        ("throughput_ratio", "answers a second with memory / without", THROUGHPUT_TARGETS),
    )
    for place, (name, label, targets) in enumerate(parts):
        axes = figure.add_subplot(1, 2, place + 1, xlabel="events of history", ylabel=label)
        axes.plot([one.history for one in results], [getattr(one, name) for one in results], "-o", label="measured")
        if name == "step_ratio":
            pruned = [one.step_ratio_pruned for one in results]
            axes.plot([one.history for one in results], pruned, ":o", color=CEILING, label="measured, pruned pass")
        wanted = [(one.history, targets[one.history]) for one in results if one.history in targets]
        if wanted:
            axes.plot(*zip(*wanted, strict=True), "--_", color="black", label="target")
        _logarithmic(axes, [one.history for one in results])
    return figure


def _logarithmic(axes: Axes, histories: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(histories, [str(history) for history in histories])
    axes.xaxis.minorticks_off()
    _plain_numbers(axes)
    axes.grid(axis="y", which="both", alpha=0.3)
    axes.legend()


def _plain_numbers(axes: Axes) -> None:
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _storm(result: StormResult) -> Figure:
    """Each warm request's latency by the time at which it was due; storms shaded."""
    figure = Figure(figsize=(9, 3.8), dpi=120, layout="constrained")
    title = (
        f"{result.rate:.0f} requests of warm users a second; shaded: cold users arrive at once, until all are answered"
    )
    axes = figure.add_subplot(xlabel="seconds", ylabel="latency (ms)")
    axes.set_title(title, fontsize=9)
    for begin, end in result.storms:
        axes.axvspan(begin, end, color="tab:orange", alpha=0.25, linewidth=0)
    axes.plot(result.samples[:, 0], 1000 * result.samples[:, 1], ".", markersize=2, color=MET)
    for p99, name, color in (
        (result.quiet_p99_ms, "p99 quiet", "black"),
        (result.storm_p99_ms, "p99 in storms", "tab:orange"),
    ):
        axes.axhline(p99, color=color, linewidth=1, linestyle="--", label=f"{name}: {p99:.1f} ms")
    axes.set_yscale("log")
    _plain_numbers(axes)
    axes.legend(loc="upper right")
    return figure
