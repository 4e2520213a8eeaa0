"""An engine's observations as server metrics: which Prometheus series each field is, and when they are published.

`model.py` hands in the server's own metric API, so that nothing here depends on it. A call of it is a round trip to the
server's process (measured: 20 us), so a thread publishes what has changed, twice a second, and no request waits for it.

A histogram is published as the counters that Prometheus makes of one, `_bucket{le=…}`, `_sum` and `_count`: the API's
own histogram takes one value a call.
"""

import logging
import threading
from collections.abc import Callable
from itertools import accumulate
from typing import Protocol

from longrec.python_backend.observations import Histogram, Observations

__all__ = ["COUNTERS", "GAUGES", "HISTOGRAMS", "EngineMetrics", "Metric", "MetricMaker"]

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 0.5

# field: name, description, labels
COUNTERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "requests_ok": ("longrec_requests_total", "Requests by outcome", {"outcome": "ok"}),
    "requests_gap": ("longrec_requests_total", "Requests by outcome", {"outcome": "gap"}),
    "requests_conflict": ("longrec_requests_total", "Requests by outcome", {"outcome": "conflict"}),
    "requests_invalid": ("longrec_requests_total", "Requests by outcome", {"outcome": "invalid"}),
    "requests_failed": ("longrec_requests_total", "Requests by outcome", {"outcome": "error"}),
    "queries": ("longrec_queries_total", "Users answered, gaps and conflicts included", {}),
    "gaps": ("longrec_gaps_total", "Users refused because their events lie past the log's end", {}),
    "conflicts": (
        "longrec_conflicts_total",
        "Users refused because the log holds other events at their events' positions",
        {},
    ),
    "events_appended": ("longrec_events_appended_total", "Events new in the log", {}),
    "events_skipped": ("longrec_events_skipped_total", "Events sent again, already in the log", {}),
    "events_unknown": ("longrec_events_unknown_total", "Appended events whose item is not in the catalogue", {}),
    "events_computed": ("longrec_events_computed_total", "Events run through the network", {}),
    "events_rebuilt": ("longrec_events_rebuilt_total", "Of these, events that were read back from the log", {}),
    "events_caught_up": (
        "longrec_events_caught_up_total",
        "Of these, events that a memory was behind by",
        {},
    ),
    "waves": ("longrec_waves_total", "Passes through the network", {}),
    "memory_hits": ("longrec_memory_hits_total", "Queries whose user had a memory", {}),
    "memory_misses": ("longrec_memory_misses_total", "Queries whose user had none", {}),
    "evictions": ("longrec_memory_evictions_total", "Users who lost their memory to others", {}),
    "deferred_total": ("longrec_deferred_total", "Queries that took too long to answer at once", {}),
    "background_rebuilds": ("longrec_background_rebuilds_total", "Users given a memory before they asked", {}),
    "pages_restored": ("longrec_memory_pages_restored_total", "Pages that came back from the host's memory", {}),
    "rules_failures": ("longrec_rules_failures_total", "Times that changed rules files could not be read", {}),
}
GAUGES: dict[str, tuple[str, str]] = {
    "users": ("longrec_memory_users", "Users with a memory"),
    "pages": ("longrec_memory_pages", "Pages of the pool"),
    "pages_free": ("longrec_memory_pages_free", "Pages that nobody holds"),
    "deferred_depth": ("longrec_deferred_depth", "Queries that are deferred now"),
    "deferred_oldest_seconds": ("longrec_deferred_oldest_seconds", "How long the oldest of them has waited"),
    "log_lag_seconds": ("longrec_log_lag_seconds", "Age of the oldest acknowledged event that is not on disk"),
    "rules_unknown": ("longrec_rules_unknown", "Ids and categories in the rules files that no item has"),
    "log_bytes": ("longrec_log_bytes", "Size of the event log"),
    "log_bytes_limit": ("longrec_log_bytes_limit", "Size that the event log may grow to"),
}
HISTOGRAMS: dict[str, tuple[str, str]] = {
    "request_seconds": ("longrec_request_seconds", "From a request's arrival in the model to its answer"),
    "queue_seconds": ("longrec_queue_seconds", "From a deferred query's arrival to its answer"),
    "step_seconds": ("longrec_step_seconds", "Time of a pass through the network"),
    "turn_seconds": ("longrec_turn_seconds", "Time of a piece of deferred work"),
    "step_events": ("longrec_step_events", "Events of a pass"),
    "step_users": ("longrec_step_users", "Users of a pass"),
    "batch_queries": ("longrec_batch_queries", "Queries of a batch, as the server's batcher made it"),
}


class Metric(Protocol):
    """One series of the server's metric API."""

    def increment(self, value: float) -> None:
        """Add to it; to a gauge, a negative number too. (Its `set` would hold Python's lock during the round trip.)"""


class MetricMaker(Protocol):
    """Makes a series from its family's name and description, and the labels that tell it from the family's others."""

    def __call__(self, name: str, description: str, labels: dict[str, str], /) -> Metric:
        """Make it; the same name always comes with the same description."""


class EngineMetrics:
    """Publishes an engine's observations.

    Args:
        observe: gives the observations, gauges up to date; called by the publishing thread.
        counter, gauge: make series.
    """

    def __init__(self, observe: Callable[[], Observations], *, counter: MetricMaker, gauge: MetricMaker) -> None:
        self._observe = observe
        self._counters = {field: _Series(counter(*series)) for field, series in COUNTERS.items()}
        self._gauges = {field: _Series(gauge(*series, {})) for field, series in GAUGES.items()}
        now = observe()
        self._histograms = {
            field: _HistogramSeries(*series, getattr(now, field), counter) for field, series in HISTOGRAMS.items()
        }
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> "EngineMetrics":
        """Publish from now on, in a thread."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Publish a last time, and end the thread."""
        self._closed.set()
        self._thread.join()

    def publish(self) -> None:
        """Hand what has changed to the server. For one thread at a time."""
        now = self._observe()
        for field, series in self._counters.items():
            series.raise_to(getattr(now, field))
        for field, series in self._gauges.items():
            series.set(getattr(now, field))
        for field, histogram in self._histograms.items():
            histogram.publish(getattr(now, field))

    def _run(self) -> None:
        try:
            while not self._closed.wait(PUBLISH_SECONDS):
                self.publish()
            self.publish()
        except Exception:  # requests are served without metrics rather than not at all
            logger.exception("metrics are no longer published")


class _Series:
    """A series and its value. What is added here is what the server adds, so that both are the same to the last bit."""

    def __init__(self, metric: Metric) -> None:
        self._metric, self._value = metric, 0.0

    def set(self, value: float) -> None:
        if value != self._value:
            self._add(value - self._value)

    def raise_to(self, value: float) -> None:
        if value > self._value:  # a sum of floats may have been rounded up: a counter never falls
            self._add(value - self._value)

    def _add(self, change: float) -> None:
        self._metric.increment(change)
        self._value += change


class _HistogramSeries:
    """The series of a histogram."""

    def __init__(self, name: str, description: str, histogram: Histogram, counter: MetricMaker) -> None:
        bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
        self._buckets = [_Series(counter(f"{name}_bucket", description, {"le": bound})) for bound in bounds]
        self._sum, self._count = (_Series(counter(f"{name}_{part}", description, {})) for part in ("sum", "count"))

    def publish(self, histogram: Histogram) -> None:
        cumulative = list(accumulate(histogram.counts))
        # from above: a scrape in between finds no bucket larger than the next
        self._count.raise_to(cumulative[-1])
        for series, value in zip(reversed(self._buckets), reversed(cumulative), strict=True):
            series.raise_to(value)
        self._sum.raise_to(histogram.total)
