"""One user's part of a request, and its answer. A request's arrays are checked here, and nowhere downstream again.

A request of one user with a few events is the common one, and there are 32 of them in a batch: it goes through plain
Python numbers, which cost less than NumPy's calls. The other requests are checked as whole arrays.
"""

from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec import protocol
from longrec.config import EngineConfig
from longrec.errors import ArgumentError, LongrecError
from longrec.protocol import CANDIDATE, EVENT, MAX_USER_BYTES, NO_ITEM, UNCHECKED_POSITION, USER, Status
from longrec.python_backend.settings import DEFAULTS, Settings

__all__ = ["Answer", "Query", "parse_queries"]

Int64Array = NDArray[np.int64]
COLUMNS = len(protocol.EVENT_COLUMNS)
POSITION, ITEM, TIME = range(COLUMNS)
NO_FEATURES: Mapping[str, int] = MappingProxyType({})
FEW_EVENTS = 8  # up to here plain numbers are quicker than arrays


class Query(NamedTuple):
    """What one user sends.

    Args:
        user: the key, UTF-8.
        events: [n, 2 + C] int64: item, unix ms, the features of the model's schema.
        position: of the first event in the user's log; -1: append at the end, unchecked.
        candidates: [c] int64 catalogue indices, or None for the whole catalogue.
        k: items wanted; 0: none (the caller asked for STATE only).
        settings: the other request parameters; of no interest where k is 0.
    """

    user: bytes
    events: Int64Array
    position: int
    candidates: Int64Array | None
    k: int
    settings: Settings = DEFAULTS

    @property
    def needs_memory(self) -> bool:
        """Whether a state isn't enough to answer: the memory must stand where the answer stands."""
        return self.settings.explain > 0 or self.settings.horizon > 1


class Answer(NamedTuple):
    """What one user gets.

    Args:
        status: OK; or GAP or CONFLICT: nothing of the query was written, and nothing is recommended.
        length: of the user's log now.
        items: [k] int64, or [horizon, k] of a rollout; -1 where fewer could be ranked.
        scores: float32 in the shape of `items`, -inf there.
        error: why this user, alone of the batch, can't be answered: their log is damaged. The rest is void then.
        because: int64 in the shape of `items` and [explain], log positions or -1; None: not asked for.
    """

    status: Status
    length: int
    items: Int64Array
    scores: NDArray[np.float32]
    error: LongrecError | None = None
    because: Int64Array | None = None

    @classmethod
    def without_items(cls, query: Query, status: Status, length: int) -> "Answer":
        """Nothing is recommended, in the shapes that the query asked for."""
        settings = query.settings
        shape = (settings.horizon, query.k) if settings.horizon > 1 else (query.k,)
        because = np.full((*shape, settings.explain), NO_ITEM) if settings.explain else None
        return cls(status, length, np.full(shape, NO_ITEM), np.full(shape, -np.inf, np.float32), None, because)

    @classmethod
    def failed(cls, error: LongrecError) -> "Answer":
        """This user can't be answered."""
        return cls(Status.OK, 0, np.empty(0, np.int64), np.empty(0, np.float32), error)


def parse_queries(
    users: NDArray[np.object_],
    events: Int64Array,
    candidates: Int64Array,
    settings: Settings,
    config: EngineConfig,
    *,
    wants_items: bool,
    wants_because: bool = False,
    features: Mapping[str, int] = NO_FEATURES,
) -> list[Query]:
    """Check the three tensors of a request and cut them into one query a user.

    Args:
        users: [B, 1] bytes. events: [B, n, 3 + c]. candidates: [B, c].
        wants_items: whether ITEMS, SCORES or BECAUSE were asked for.
        wants_because: whether BECAUSE was asked for.
        features: of the model's schema, in order, each with its largest value; events may lack the last ones, or all.

    Raises:
        ArgumentError: naming tensor, expected and got. Nothing has been changed then.
    """
    batch = len(users)
    if users.shape != (batch, 1):
        raise ArgumentError(USER, "shape [B, 1]", got=str(list(users.shape)))
    shape = events.shape
    most = COLUMNS + len(features)
    if len(shape) != 3 or shape[0] != batch or not COLUMNS <= shape[2] <= most or events.dtype != np.int64:
        widths = str(COLUMNS) if not features else f"{COLUMNS}..{most}"
        raise ArgumentError(EVENT, f"INT64 [{batch}, n, {widths}]", got=f"{events.dtype} {list(shape)}")
    if features:
        events = _with_features(events, features)
    if candidates.ndim != 2 or len(candidates) != batch or candidates.dtype != np.int64:
        raise ArgumentError(CANDIDATE, f"INT64 [{batch}, c]", got=f"{candidates.dtype} {list(candidates.shape)}")
    if shape[1] > config.max_events_per_request:
        expected = f"at most {config.max_events_per_request} events a user (model parameter max_events_per_request)"
        raise ArgumentError(EVENT, expected, got=str(shape[1]), remedy="send them in several requests")
    given = _check_candidates(candidates, settings, config) if candidates.shape[1] else None
    k = settings.k if wants_items else 0
    if settings.explain and not wants_because:
        settings = settings._replace(explain=0)
    if batch == 1 and shape[1] <= FEW_EVENTS:
        own, position = _few(events[0])
        return [Query(_key(users[0, 0]), own, position, None if given is None else given[0], k, settings)]
    keys = [_key(user) for user in users[:, 0].tolist()]
    parts, positions = (_run(events[0]) if batch == 1 else None) or _many(events)
    ranked = [None] * batch if given is None else list(given)
    return [
        Query(key, part, position, row, k, settings)
        for key, part, position, row in zip(keys, parts, positions, ranked, strict=True)
    ]


def _key(user: Any) -> bytes:
    key = user.encode() if isinstance(user, str) else bytes(user)  # no copy of what is bytes already
    if not 1 <= len(key) <= MAX_USER_BYTES:
        raise ArgumentError(USER, f"1..{MAX_USER_BYTES} bytes of UTF-8", got=f"{len(key)} bytes")
    try:
        key.decode()
    except UnicodeDecodeError:
        raise ArgumentError(USER, "UTF-8", got=f"{len(key)} bytes that are not") from None
    return key


def _check_candidates(candidates: Int64Array, settings: Settings, config: EngineConfig) -> Int64Array:
    """A copy of the candidates [B, c]: the server reuses the input's memory once `execute()` has returned."""
    if candidates.shape[1] > config.max_candidates:
        expected = f"at most {config.max_candidates} (model parameter max_candidates)"
        raise ArgumentError(CANDIDATE, expected, got=str(candidates.shape[1]))
    if settings.horizon > 1:
        raise ArgumentError(CANDIDATE, "none with horizon > 1", got=str(candidates.shape[1]), remedy="ask step by step")
    if candidates.size and candidates.min() < 0:
        raise ArgumentError(CANDIDATE, "catalogue indices >= 0", got=str(candidates.min()))
    own: Int64Array = candidates.copy()
    return own


def _with_features(events: Int64Array, features: Mapping[str, int]) -> Int64Array:
    """Events [B, n, 3 + C], of values that the features can have."""
    missing = COLUMNS + len(features) - events.shape[2]
    for name, most, column in zip(features, features.values(), events.T[COLUMNS:], strict=False):
        if column.size and not 0 <= column.min() <= column.max() <= most:
            raise ArgumentError(f"{EVENT} column {name}", f"values 0..{most} (0: unknown)", got="another one")
    return np.pad(events, ((0, 0), (0, 0), (0, missing))) if missing else events


def _few(rows: Int64Array) -> tuple[Int64Array, int]:
    """Events [n, 2 + C] in memory of their own, and the first one's position."""
    kept = [row for row in rows.tolist() if row[ITEM] != NO_ITEM]
    if not kept:
        return rows[:0, ITEM:].copy(), UNCHECKED_POSITION
    first: int = kept[0][POSITION]
    step = first != UNCHECKED_POSITION
    expected = first
    for position, item, time, *_ in kept:
        if item < 0 or time < 0 or position != expected or first < UNCHECKED_POSITION:
            _many(rows[None])  # knows what to say
        expected += step
    own = rows.copy() if len(kept) == len(rows) else np.array(kept, np.int64)
    return own[:, ITEM:], first


def _run(rows: Int64Array) -> tuple[list[Int64Array], list[int]] | None:
    """What `_many` gives for one user's rows [n, 3 + C] without padding, in a third of its time: a batch may hold
    dozens of long histories, and whoever sends one event waits while they are checked. None: `_many` has to look."""
    position, item, time = rows.T[:COLUMNS]
    if not len(rows) or item.min() < 0 or time.min() < 0:
        return None
    first = int(position[0])
    if first < UNCHECKED_POSITION or position[-1] < first:  # the latter where they run past int64
        return None
    starts = position if first == UNCHECKED_POSITION else position - np.arange(len(rows))
    return None if (starts != first).any() else ([rows[:, ITEM:].copy()], [first])


def _many(events: Int64Array) -> tuple[list[Int64Array], list[int]]:
    """Each user's events [n, 2 + C], views of one copy of the array, and their first positions."""
    real = events[:, :, ITEM] != NO_ITEM  # [B, n]
    rows = events[real]  # [T, 3 + C], a copy
    counts = real.sum(axis=1)  # [B]
    stops = np.cumsum(counts)
    positions = np.full(len(events), UNCHECKED_POSITION)
    if len(rows):
        position, item, time = rows.T[:COLUMNS]
        if item.min() < 0:
            raise ArgumentError(
                f"{EVENT} column item", "a catalogue index >= 0, or -1 for padding", got="a negative item"
            )
        if time.min() < 0:
            raise ArgumentError(f"{EVENT} column time", "unix milliseconds >= 0", got="a negative time")
        some = counts > 0
        starts = (stops - counts)[some]
        positions[some] = position[starts]
        first = np.repeat(positions[some], counts[some])  # [T]
        place = np.arange(len(rows)) - np.repeat(starts, counts[some])  # [T], within the user's events
        wrong = (position != np.where(first == UNCHECKED_POSITION, UNCHECKED_POSITION, first + place)) | (
            position < UNCHECKED_POSITION  # also where first + place runs past int64
        )
        if wrong.any():
            user = int(np.searchsorted(stops, int(wrong.argmax()), side="right"))
            raise ArgumentError(
                f"{EVENT} column position",
                "positions >= 0 that rise by 1 from event to event, or -1 in every row",
                got=f"{counts[user]} rows that start at {positions[user]} and don't",
                remedy="sort the events, or send each run in a request of its own",
            )
    own = rows[:, ITEM:]
    bounds = [0, *stops.tolist()]
    return [own[start:stop] for start, stop in pairwise(bounds)], positions.tolist()
