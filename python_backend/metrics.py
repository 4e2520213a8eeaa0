"""The engine's counters as server metrics: which Prometheus series each counter is. `model.py` hands in the server's
own metric API, so that nothing here depends on it."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

from longrec.python_backend.engine import Engine

__all__ = ["COUNTERS", "GAUGES", "EngineMetrics", "Metric"]

COUNTERS = {
    "queries": ("longrec_queries_total", "Users answered, gaps included"),
    "gaps": ("longrec_gaps_total", "Users refused because their events lie past the log's end"),
    "events_appended": ("longrec_events_appended_total", "Events new in the log"),
    "events_skipped": ("longrec_events_skipped_total", "Events sent again, already in the log"),
    "events_unknown": ("longrec_events_unknown_total", "Appended events whose item is not in the catalogue"),
    "events_computed": ("longrec_events_computed_total", "Events run through the network"),
    "events_rebuilt": ("longrec_events_rebuilt_total", "Of these, events that were read back from the log"),
    "waves": ("longrec_waves_total", "Passes through the network"),
}
GAUGES: dict[str, tuple[str, str, Callable[[Engine], float]]] = {
    "users": ("longrec_memory_users", "Users with memory", lambda engine: len(engine.pool)),
    "free": ("longrec_memory_pages_free", "Free pages", lambda engine: engine.pool.num_free_pages),
    "pages": ("longrec_memory_pages", "Pages of the pool", lambda engine: engine.pool.num_pages),
    "evictions": ("longrec_memory_evictions", "Users evicted since the start", lambda engine: engine.pool.evictions),
}


class Metric(Protocol):
    """One series of the server's metric API."""

    def increment(self, value: float) -> None:
        """Add to a counter."""

    def set(self, value: float) -> None:
        """Set a gauge."""


class EngineMetrics:
    """Publishes an engine's state.

    Args:
        engine: the engine.
        counter, gauge: make a series from its name and description.
    """

    def __init__(
        self, engine: Engine, *, counter: Callable[[str, str], Metric], gauge: Callable[[str, str], Metric]
    ) -> None:
        self._engine = engine
        self._counters = {field: counter(*series) for field, series in COUNTERS.items()}
        self._gauges = [(gauge(name, text), read) for name, text, read in GAUGES.values()]
        self._published = dataclasses.replace(engine.observations)

    def publish(self) -> None:
        """Hand what has changed to the server."""
        counters = self._engine.observations
        for field, series in self._counters.items():
            grown = getattr(counters, field) - getattr(self._published, field)
            if grown:
                series.increment(grown)
        self._published = dataclasses.replace(counters)
        for series, read in self._gauges:
            series.set(read(self._engine))
