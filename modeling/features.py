"""Integer features of events that the network embeds, computed the same way in training and in serving. NumPy only."""

import numpy as np
from numpy.typing import NDArray

from longrec.config import ModelConfig
from longrec.schema import UNKNOWN, TimeOfDay, Weekday

__all__ = [
    "USUAL_GAPS",
    "gap_buckets",
    "in_context",
    "ragged_gap_buckets",
    "seconds",
    "unknown_context",
    "usual_gap_ms",
]

USUAL_GAPS = 32  # newest gaps that tell how long it is to a user's next event
MAX_GAP_MS = 1 << 62  # a median is a float, and may be rounded up past int64


def gap_buckets(times_ms: NDArray[np.int64], previous_ms: int | None, num_buckets: int) -> NDArray[np.int64]:
    """Logarithmic buckets of the time since a user's previous event.

    Bucket 0: there is no previous event; else 1 + min(floor(log2(1 + seconds)), num_buckets - 2). Time that runs
    backwards counts as no time.

    Args:
        times_ms: [n] unix milliseconds of one user's successive events, in the order of the log.
        previous_ms: time of the event before them; None: there is none.
        num_buckets: at least 2.

    Returns:
        [n] int64 in 0..num_buckets - 1.
    """
    if not len(times_ms):
        return np.zeros(0, dtype=np.int64)
    gaps_ms = np.diff(times_ms, prepend=times_ms[0] if previous_ms is None else np.int64(previous_ms))
    seconds = np.maximum(gaps_ms, 0) / 1000.0
    buckets = 1 + np.minimum(np.floor(np.log2(1.0 + seconds)).astype(np.int64), num_buckets - 2)
    if previous_ms is None:
        buckets[0] = 0
    return buckets


def ragged_gap_buckets(
    times_ms: NDArray[np.int64], cu_seqlens: NDArray[np.int32], previous_ms: NDArray[np.int64], num_buckets: int
) -> NDArray[np.int64]:
    """`gap_buckets` of B users at once.

    Args:
        times_ms: [T], user after user. cu_seqlens: [B + 1] int32; each user has an event at least.
        previous_ms: [B] unix milliseconds; negative: there is no event before.

    Returns:
        [T] int64.
    """
    before = np.empty_like(times_ms)
    before[1:] = times_ms[:-1]
    starts = cu_seqlens[:-1]
    before[starts] = previous_ms
    seconds = np.maximum(times_ms - before, 0) / 1000.0
    buckets: NDArray[np.int64] = 1 + np.minimum(np.floor(np.log2(1.0 + seconds)).astype(np.int64), num_buckets - 2)
    buckets[starts[previous_ms < 0]] = 0
    return buckets


def in_context(
    model: ModelConfig, gaps: NDArray[np.int64], times_ms: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Gap buckets, and beside them the values of the schema's features, as rows of one table (`Network.gaps`).

    Args:
        gaps, times_ms: [T].
        columns: [T, C] the features that the wire has; a value that the schema doesn't know is unknown.

    Returns:
        `gaps` where the schema has no features of events; else [T, 1 + F].
    """
    if not model.features.event:
        return gaps
    rows, first, column = [gaps], model.num_gap_buckets, 0
    for feature in model.features.event.values():
        if isinstance(feature, TimeOfDay | Weekday):
            values = feature.indices(times_ms)
        else:
            values = columns[:, column]
            values = np.where((values >= 0) & (values <= feature.size), values, UNKNOWN)
            column += 1
        rows.append(values + first)
        first += feature.size + 1
    return np.stack(rows, axis=1)


def unknown_context(model: ModelConfig) -> NDArray[np.int64]:
    """[1 + F], what stands beside a gap for features that are unknown; 0 where that can't be: of the gap, and times."""
    sizes = [feature.size + 1 for feature in model.features.event.values()]
    rows = model.num_gap_buckets + np.cumsum([0, *sizes[:-1]])[: len(sizes)]
    can_be = [name in model.features.columns for name in model.features.event]
    return np.concatenate(([0], np.where(can_be, rows, 0))).astype(np.int64)


def usual_gap_ms(times_ms: NDArray[np.int64]) -> int:
    """Milliseconds from one event of a rollout to the next: the median of the user's newest gaps.

    Args:
        times_ms: of the newest `USUAL_GAPS` + 1 events, or fewer, oldest first; of fewer than two, there is no gap.
    """
    return int(min(np.median(np.maximum(np.diff(times_ms), 0)), MAX_GAP_MS)) if len(times_ms) > 1 else 0


def seconds(times_ms: NDArray[np.int64]) -> NDArray[np.int32]:
    """Unix seconds of unix milliseconds, as int32, which wraps in 2038: only differences are used."""
    return (times_ms // 1000).astype(np.int32)
