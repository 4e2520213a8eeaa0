"""One user's part of a request, and its answer. A request's arrays are checked here, and nowhere downstream again."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec import protocol
from longrec.config import EngineConfig
from longrec.errors import ArgumentError, LongrecError
from longrec.protocol import CANDIDATE, EVENT, NO_ITEM, UNCHECKED_POSITION, USER, Status

__all__ = ["Answer", "Query", "Settings", "parse_queries", "parse_settings"]

Int64Array = NDArray[np.int64]
POSITION, ITEM, TIME = range(len(protocol.EVENT_COLUMNS))


class Settings(NamedTuple):
    """The request parameters: `k` items; `horizon` steps."""

    k: int = protocol.DEFAULT_K
    horizon: int = 1


class Query(NamedTuple):
    """What one user sends.

    Args:
        user: the key, UTF-8.
        events: [n, 2] int64: item, unix ms.
        position: of the first event in the user's log; -1: append at the end, unchecked.
        candidates: [c] int64 catalogue indices, or None for the whole catalogue.
        k: items wanted; 0: none (the caller asked for STATE only).
    """

    user: bytes
    events: Int64Array
    position: int
    candidates: Int64Array | None
    k: int


class Answer(NamedTuple):
    """What one user gets.

    Args:
        status: OK or GAP.
        length: of the user's log now.
        items: [k] int64, -1 where fewer than k could be ranked; scores: [k] float32, -inf there.
        error: why this user, alone of the batch, can't be answered: their log is damaged. The rest is void then.
    """

    status: Status
    length: int
    items: Int64Array
    scores: NDArray[np.float32]
    error: LongrecError | None = None


def parse_settings(parameters: Mapping[str, Any], config: EngineConfig) -> Settings:
    """Check the request parameters.

    Raises:
        ArgumentError: an unknown name, k outside 1..max_k, a horizon other than 1.
    """
    for name in parameters:
        if name not in protocol.PARAMETERS and not name.startswith("triton_"):  # the server's own
            raise ArgumentError(f"parameter {name}", f"one of {', '.join(protocol.PARAMETERS)}", remedy="remove it")
    k, horizon = parameters.get("k", protocol.DEFAULT_K), parameters.get("horizon", 1)
    if not _is_int(k) or not 1 <= k <= config.max_k:
        raise ArgumentError(f"k={k!r}", f"an integer in 1..{config.max_k} (model parameter max_k)")
    if not _is_int(horizon) or horizon != 1:
        raise ArgumentError(f"horizon={horizon!r}", "1, the only horizon that this server answers")
    return Settings(k, horizon)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def parse_queries(
    users: NDArray[np.object_],
    events: Int64Array,
    candidates: Int64Array,
    settings: Settings,
    config: EngineConfig,
    *,
    wants_items: bool,
) -> list[Query]:
    """Check the three tensors of a request and cut them into one query a user.

    Args:
        users: [B, 1] bytes. events: [B, n, 3]. candidates: [B, c].
        wants_items: whether ITEMS or SCORES were asked for.

    Raises:
        ArgumentError: naming tensor, expected and got. Nothing has been changed then.
    """
    batch = len(users)
    columns = len(protocol.EVENT_COLUMNS)
    if users.shape != (batch, 1):
        raise ArgumentError(USER, "shape [B, 1]", got=str(list(users.shape)))
    if events.dtype != np.int64 or events.ndim != 3 or events.shape[0] != batch or events.shape[2] != columns:
        raise ArgumentError(EVENT, f"INT64 [{batch}, n, {columns}]", got=f"{events.dtype} {list(events.shape)}")
    if candidates.dtype != np.int64 or candidates.ndim != 2 or candidates.shape[0] != batch:
        raise ArgumentError(CANDIDATE, f"INT64 [{batch}, c]", got=f"{candidates.dtype} {list(candidates.shape)}")
    if events.shape[1] > config.max_events_per_request:
        expected = f"at most {config.max_events_per_request} events a user (model parameter max_events_per_request)"
        raise ArgumentError(EVENT, expected, got=str(events.shape[1]), remedy="send them in several requests")
    if candidates.shape[1] > config.max_candidates:
        expected = f"at most {config.max_candidates} (model parameter max_candidates)"
        raise ArgumentError(CANDIDATE, expected, got=str(candidates.shape[1]))
    if candidates.size and candidates.min() < 0:
        raise ArgumentError(CANDIDATE, "catalogue indices >= 0", got=str(candidates.min()))
    k = settings.k if wants_items else 0
    return [
        _parse_query(users[b, 0], events[b], candidates[b] if candidates.shape[1] else None, k) for b in range(batch)
    ]


def _parse_query(user: Any, rows: Int64Array, candidates: Int64Array | None, k: int) -> Query:
    if isinstance(user, str):
        user = user.encode()
    if not 1 <= len(user) <= protocol.MAX_USER_BYTES:
        raise ArgumentError(USER, f"1..{protocol.MAX_USER_BYTES} bytes of UTF-8", got=f"{len(user)} bytes")
    try:
        user.decode()
    except UnicodeDecodeError:
        raise ArgumentError(USER, "UTF-8", got=f"{len(user)} bytes that are not") from None
    position = UNCHECKED_POSITION
    if len(rows):
        rows = rows[rows[:, ITEM] != NO_ITEM]
    if len(rows):
        if rows[:, ITEM].min() < 0:
            raise ArgumentError(
                f"{EVENT} column item", "a catalogue index >= 0, or -1 for padding", got="a negative item"
            )
        if rows[:, TIME].min() < 0:
            raise ArgumentError(f"{EVENT} column time", "unix milliseconds >= 0", got="a negative time")
        position = int(rows[0, POSITION])
        unchecked = position == UNCHECKED_POSITION
        expected = np.full(len(rows), position) if unchecked else position + np.arange(len(rows))
        if position < UNCHECKED_POSITION or not np.array_equal(rows[:, POSITION], expected):
            raise ArgumentError(
                f"{EVENT} column position",
                "positions >= 0 that rise by 1 from event to event, or -1 in every row",
                got=f"{len(rows)} rows that start at {position} and don't",
                remedy="sort the events, or send each run in a request of its own",
            )
    # a copy: the server reuses the input's memory once execute() has returned
    return Query(bytes(user), rows[:, ITEM:].copy(), position, None if candidates is None else candidates.copy(), k)
