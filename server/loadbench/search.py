"""Rates to measure: those that were named, and the highest within a latency limit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from longrec.errors import ArgumentError
from longrec.server.loadbench.point import Point

__all__ = ["Found", "Limit", "Results", "find_rate", "measure_all"]

PRECISION: Final = 1.05  # ratio of the lowest rate that broke the limit to the highest that kept it
FIRST_RATE: Final = 100.0
HIGHEST_RATE: Final = 1e5


@dataclass(frozen=True)
class Limit:
    """What a rate must keep: a percentile of the latency is at most so many milliseconds."""

    milliseconds: float
    percentile: float = 99.0

    def __post_init__(self) -> None:
        if not self.milliseconds > 0:
            raise ArgumentError(f"milliseconds={self.milliseconds}", "more than 0")
        if not 0 < self.percentile < 100:
            raise ArgumentError(f"percentile={self.percentile}", "more than 0 and less than 100")

    def keeps(self, point: Point) -> bool:
        """Whether a point kept it. One without figures, overloaded or sent late, did not.

        Raises:
            ArgumentError: it has too few requests for the percentile.
        """
        if point.verdict != "ok":
            return False
        found = point.percentile_ms(self.percentile)
        if found != found:
            needed = 100 / (100 - self.percentile)
            raise ArgumentError(
                f"percentile={self.percentile}",
                f"at least {needed:.0f} requests a point; measure for longer, or at higher rates",
                got=str(point.requests),
            )
        return found <= self.milliseconds


class Found(NamedTuple):
    """What a search found.

    Args:
        cold: share of the requests that are of cold users.
        rate: the highest that kept the limit, requests a second; None: even the first broke it.
        broken: the lowest that broke it; None: the highest that may be offered kept it.
    """

    cold: float
    rate: float | None
    broken: Point | None


class Results(NamedTuple):
    """All that was measured: points in their order, and for each share of cold requests what was found."""

    points: list[Point]
    found: list[Found]
    limit: Limit | None


def measure_all(
    measure: Callable[[float, float], Point], *, rates: Sequence[float], colds: Sequence[float], limit: Limit | None
) -> Results:
    """For each share of cold requests: measure the rates, then look for the highest within the limit.

    Args:
        measure: offers a rate, requests a second, with a share of cold requests.
        rates: may be empty. colds: shares. limit: None: nothing is looked for.
    """
    points: list[Point] = []
    found: list[Found] = []

    def measured(rate: float, cold: float) -> Point:
        points.append(measure(rate, cold))
        return points[-1]

    for cold in colds:
        for rate in rates:
            measured(rate, cold)
        if limit is not None:
            found.append(find_rate(measured, cold, limit))
    return Results(points, found, limit)


def find_rate(
    measure: Callable[[float, float], Point],
    cold: float,
    limit: Limit,
    *,
    first: float = FIRST_RATE,
    highest: float = HIGHEST_RATE,
) -> Found:
    """The rate is doubled until it breaks the limit, and the gap then halved until it is narrow."""
    kept: float | None = None
    broken: Point | None = None
    rate = first
    while True:
        point = measure(rate, cold)
        if limit.keeps(point):
            kept = rate
        else:
            broken = point
        if broken is None:
            if rate >= highest:
                break
            rate = min(2 * rate, highest)
        elif kept is None or broken.offered <= PRECISION * kept:
            break
        else:
            rate = (kept * broken.offered) ** 0.5
    return Found(cold, kept, broken)
