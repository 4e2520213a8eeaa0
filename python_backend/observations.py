"""What an engine has done and what it holds: plain numbers, so cheap that every step may note them.

`metrics.py` says which Prometheus series each field is. One thread writes at a time (whoever holds the engine); another
may read meanwhile, and sees each number as it was at some moment of its reading.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["SECONDS", "SIZES", "Histogram", "Observations"]

# 0.25 ms to 64 s: a step of one event is below a millisecond, a cold user's answer may take minutes under load
SECONDS = (
    *(0.00025, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.016, 0.024, 0.032),
    *(0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0),
)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Histogram:
    """How often a value fell between which bounds; the last bucket is what lies above all of them.

    Args:
        bounds: upper ends of the buckets, ascending; a value equal to a bound belongs below it, as in Prometheus.
    """

    __slots__ = ("_counts", "bounds", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(float(bound) for bound in bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    @property
    def counts(self) -> tuple[int, ...]:
        """Values in each bucket, not cumulative; one number more than there are bounds."""
        return tuple(self._counts)

    def observe(self, value: float) -> None:
        """Note a value."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_many(self, values: ArrayLike) -> None:
        """Note each value of an array."""
        array = np.asarray(values, dtype=np.float64).ravel()
        buckets, counts = np.unique(np.searchsorted(self.bounds, array), return_counts=True)
        for bucket, count in zip(buckets.tolist(), counts.tolist(), strict=True):
            self._counts[bucket] += count
        self.total += float(array.sum())


def _seconds() -> Histogram:
    return Histogram(SECONDS)


def _sizes() -> Histogram:
    return Histogram(SIZES)


@dataclass(slots=True)
class Observations:
    """Counts, which only grow; gauges (floats), which are as they are now; histograms.

    Attributes:
        requests_ok, requests_gap, requests_conflict: answered, with status ok, or refused for a gap or a conflict of at
            least one of their users.
        requests_invalid: refused for what they said. requests_failed: not answered for an error of the server's.
        queries: users answered, gaps and conflicts included; a bulk request asks for many.
        gaps: users refused for a gap. conflicts: users refused as the log holds another event where they sent one.
        events_appended: new in the log. events_skipped: sent again by a retry, already in the log.
        events_unknown: among the appended, those whose item isn't in the catalogue.
        events_computed: run through the network. events_rebuilt: those of them that were read back from the log.
        events_caught_up: those of the rebuilt that a memory lacked which was there, but behind.
        waves: passes through the network.
        memory_hits, memory_misses: queries whose user had a memory, or not.
        evictions: users who lost their memory to others.
        deferred_total: queries that were deferred. background_rebuilds: users given a memory before they asked.
        pages_restored: pages that came back from the host's memory.
        rules_failures: times that changed rules files could not be read, and the old rules stayed.
        users, pages, pages_free: users with a memory, pages of the pool, those that nobody holds.
        deferred_depth, deferred_oldest_seconds: queries that are deferred now, and how long the oldest has waited.
        log_lag_seconds: age of the oldest acknowledged event that isn't on disk.
        rules_unknown: ids and categories in the rules files that no item has.
        log_bytes, log_bytes_limit: size of the event log, and what it may grow to.
        request_seconds: from a request's arrival in the model to its answer.
        queue_seconds: of a deferred query, from its arrival to its answer.
        step_seconds, step_events, step_users: of a pass through the network. turn_seconds: of a piece of deferred work.
        batch_queries: queries of one batch, as the server's batcher made it.
    """

    requests_ok: int = 0
    requests_gap: int = 0
    requests_conflict: int = 0
    requests_invalid: int = 0
    requests_failed: int = 0
    queries: int = 0
    gaps: int = 0
    conflicts: int = 0
    events_appended: int = 0
    events_skipped: int = 0
    events_unknown: int = 0
    events_computed: int = 0
    events_rebuilt: int = 0
    events_caught_up: int = 0
    waves: int = 0
    memory_hits: int = 0
    memory_misses: int = 0
    evictions: int = 0
    deferred_total: int = 0
    background_rebuilds: int = 0
    pages_restored: int = 0
    rules_failures: int = 0

    users: float = 0.0
    pages: float = 0.0
    pages_free: float = 0.0
    deferred_depth: float = 0.0
    deferred_oldest_seconds: float = 0.0
    log_lag_seconds: float = 0.0
    rules_unknown: float = 0.0
    log_bytes: float = 0.0
    log_bytes_limit: float = 0.0

    request_seconds: Histogram = field(default_factory=_seconds)
    queue_seconds: Histogram = field(default_factory=_seconds)
    step_seconds: Histogram = field(default_factory=_seconds)
    turn_seconds: Histogram = field(default_factory=_seconds)
    step_events: Histogram = field(default_factory=_sizes)
    step_users: Histogram = field(default_factory=_sizes)
    batch_queries: Histogram = field(default_factory=_sizes)

    def note_request(self, outcome: Literal["ok", "gap", "conflict", "invalid", "failed"], seconds: float) -> None:
        """Count a request that has its answer, `seconds` after it came."""
        name = f"requests_{outcome}"
        setattr(self, name, getattr(self, name) + 1)
        self.request_seconds.observe(seconds)

    @classmethod
    def names(cls, kind: type) -> tuple[str, ...]:
        """Fields that are counts (`int`), gauges (`float`) or histograms (`Histogram`)."""
        return tuple(entry.name for entry in fields(cls) if entry.type is kind)
