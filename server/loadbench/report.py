"""The points as a table, as JSON and as a picture."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Column, Table

from longrec.server.loadbench.point import Point
from longrec.server.loadbench.search import Limit, Results

__all__ = ["as_dict", "draw", "sentences", "table", "write_report"]

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")


def as_dict(results: Results) -> dict[str, Any]:
    """What `--json` prints; null where there is no figure."""
    limit = results.limit
    return {
        "points": [point.as_dict() for point in results.points],
        "limit": limit and {"milliseconds": limit.milliseconds, "percentile": limit.percentile},
        "found": [
            {"cold": found.cold, "rate": found.rate, "broken": found.broken and found.broken.as_dict()}
            for found in results.found
        ],
    }


def table(points: Sequence[Point]) -> Table:
    """A line a point, by share of cold requests and rate."""
    names = ("offered/s", "cold", "answered/s", "hit rate", "p50 ms", "p99 ms", "p99.9 ms", "sender late ms")
    shown = Table(*(Column(name, justify="right") for name in names), "", box=None)
    for point in _sorted(points):
        latencies = (point.percentile_ms(percentile) for percentile in (50, 99, 99.9))
        shown.add_row(
            f"{point.offered:,.0f}",
            f"{point.cold:.0%}",
            _short(point.throughput, ",.0f"),
            _short(point.hit_rate, ".1%"),
            *(_short(value, ".1f") for value in latencies),
            _short(point.lag_ms, ".1f"),
            "" if point.verdict == "ok" else f"[red]{point.verdict}[/red]",
        )
    return shown


def sentences(results: Results) -> Iterator[str]:
    """What each search found, in words."""
    for cold, rate, broken in results.found:
        assert results.limit is not None
        limit = f"p{results.limit.percentile:g} within {results.limit.milliseconds:g} ms"
        best = "no rate was found" if rate is None else f"{rate:,.0f} requests a second"
        yield f"{cold:.0%} cold, {limit}: {best}" + (
            f"; at {broken.offered:,.0f}: {_why(broken, results.limit)}" if broken else ""
        )


def _why(broken: Point, limit: Limit) -> str:
    if broken.verdict == "late":
        return f"the sender itself was {broken.lag_ms:.1f} ms late, so that the server may bear more"
    if broken.verdict == "overloaded":
        return "overloaded"
    return f"{broken.percentile_ms(limit.percentile):.1f} ms"


def write_report(folder: Path, results: Results) -> Path:
    """Write `load.json` and `load.png`.

    Returns:
        The first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "load.json"
    path.write_text(json.dumps(as_dict(results), indent=2) + "\n")
    draw(results).savefig(folder / "load.png")
    return path


def draw(results: Results) -> Figure:
    """Latency, and answers a second, by the rate that was offered; a colour for each share of cold requests."""
    points, limit = results.points, results.limit
    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    latency = figure.add_subplot(1, 2, 1, xlabel="requests offered a second", ylabel="latency from due to answer (ms)")
    answered = figure.add_subplot(1, 2, 2, xlabel="requests offered a second", ylabel="answers a second")
    good = [point for point in _sorted(points) if point.verdict == "ok"]
    refused = [point for point in points if point.verdict != "ok"]
    for number, cold in enumerate(sorted({point.cold for point in points})):
        color, own = COLORS[number % len(COLORS)], [point for point in good if point.cold == cold]
        rates = [point.offered for point in own]
        hits = sum(point.hit_rate for point in own) / len(own) if own else float("nan")
        for percentile, style in ((50, ":o"), (99, "-o"), (99.9, "--o")):
            values = [point.percentile_ms(percentile) for point in own]
            label = f"p{percentile:g}, {cold:.0%} cold (hit rate {hits:.0%})"
            latency.plot(rates, values, style, color=color, markersize=3, linewidth=1, label=label)
        answered.plot(
            rates, [point.throughput for point in own], "-o", color=color, markersize=3, label=f"{cold:.0%} cold"
        )
    for axes in (latency, answered):
        for number, point in enumerate(refused):
            axes.axvline(
                point.offered,
                color="tab:gray",
                linestyle=":",
                linewidth=1,
                label="" if number else "overloaded, or late",
            )
    if good:
        most = max(point.offered for point in good)
        answered.plot([0, most], [0, most], color="black", linewidth=0.5, label="all of them")
        latency.set_yscale("log")
        _plain(latency)
    if limit is not None:
        label = f"limit of p{limit.percentile:g}: {limit.milliseconds:g} ms"
        latency.axhline(limit.milliseconds, color="black", linewidth=0.8, label=label)
    for axes in (latency, answered):
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    answered.set_ylim(bottom=0)
    return figure


def _sorted(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: (point.cold, point.offered))


def _plain(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _short(value: float, spec: str) -> str:
    return "-" if value != value else format(value, spec)
