"""All parts of the serving benchmark, one after the other; a part that fails doesn't keep the others from running."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from longrec.errors import ArgumentError
from longrec.server.bench.bulk import BulkPlan, BulkResult, measure_bulk
from longrec.server.bench.cold_storm import StormPlan, StormResult, measure_cold_storm
from longrec.server.bench.echo import EchoPlan, EchoResult, measure_echo
from longrec.server.bench.long_history import LongHistoryPlan, LongHistoryResult, measure_long_history
from longrec.server.bench.material import Material
from longrec.server.bench.recompute import HistoryPlan, HistoryResult, RecomputePlan, measure_recompute
from longrec.server.bench.residency import ResidencyPlan, ResidencyResult, measure_residency
from longrec.server.bench.start import StartPlan, StartResult, measure_start

__all__ = ["FULL", "PARTS", "QUICK", "Plans", "Results", "run_parts"]


@dataclass(frozen=True)
class Plans:
    """How much each part measures."""

    echo: EchoPlan = field(default_factory=EchoPlan)
    recompute: RecomputePlan = field(default_factory=RecomputePlan)
    bulk: BulkPlan = field(default_factory=BulkPlan)
    long_history: LongHistoryPlan = field(default_factory=LongHistoryPlan)
    cold_storm: StormPlan = field(default_factory=StormPlan)
    residency: ResidencyPlan = field(default_factory=ResidencyPlan)
    start: StartPlan = field(default_factory=StartPlan)


FULL: Final = Plans()
# shows that everything works, in about a minute; its figures are those of few and short runs
QUICK: Final = Plans(
    echo=EchoPlan(users=50, rounds=1, window_ms=300),
    recompute=RecomputePlan((HistoryPlan(128, 2, 64, 300), HistoryPlan(512, 2, 32, 300)), rounds=1),
    bulk=BulkPlan(users=512, windows=1, window_seconds=0.5, attention_repeats=3),
    long_history=LongHistoryPlan(users=1, rounds=10),
    cold_storm=StormPlan(warm_users=32, cold_users=8, probe_seconds=0.3, quiet_seconds=1.0, storms=1),
    residency=ResidencyPlan(users=2000, evaluated=100),
    start=StartPlan(users=500, starts=1),
)


@dataclass
class Results:
    """What each part found; None: it didn't run, or failed.

    Args:
        failures: part -> why it failed.
        seconds: part -> how long it ran.
    """

    echo: EchoResult | None = None
    recompute: tuple[HistoryResult, ...] | None = None
    bulk: BulkResult | None = None
    long_history: LongHistoryResult | None = None
    cold_storm: StormResult | None = None
    residency: ResidencyResult | None = None
    start: StartResult | None = None
    failures: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


PARTS: Final[dict[str, Callable[[Material, Plans], object]]] = {
    "echo": lambda material, plans: measure_echo(material, plans.echo),
    "recompute": lambda material, plans: measure_recompute(material, plans.recompute),
    "bulk": lambda material, plans: measure_bulk(material, plans.bulk),
    "long_history": lambda material, plans: measure_long_history(material, plans.long_history),
    "cold_storm": lambda material, plans: measure_cold_storm(material, plans.cold_storm),
    "residency": lambda material, plans: measure_residency(material, plans.residency),
    "start": lambda material, plans: measure_start(material, plans.start),
}


def run_parts(
    material: Material,
    plans: Plans = FULL,
    *,
    only: Collection[str] = (),
    on_begin: Callable[[str], object] = lambda part: None,
) -> Results:
    """Run the parts in order.

    Args:
        material: what to measure with.
        plans: how much.
        only: parts to run; empty: all.
        on_begin: told of each part as it begins.

    Raises:
        ArgumentError: there is no such part.
    """
    for part in only:
        if part not in PARTS:
            raise ArgumentError(f"only={part}", f"one of {', '.join(PARTS)}")
    results = Results()
    for part, measure in PARTS.items():
        if only and part not in only:
            continue
        on_begin(part)
        began = time.perf_counter()
        try:
            setattr(results, part, measure(material, plans))
        except Exception as error:  # whatever it is, the other parts have figures to give
            results.failures[part] = f"{type(error).__name__}: {error}"
        results.seconds[part] = round(time.perf_counter() - began, 1)
    return results
