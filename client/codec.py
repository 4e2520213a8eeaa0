"""The client's half of the protocol without I/O: arguments -> tensors, tensors -> results.

Every argument is checked here, before anything is sent, and every answer before anything is returned. Knows neither
gRPC nor tritonclient (`transport.py` does), so that each way to send shares it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from struct import unpack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec import protocol
from longrec.catalogue import Catalogue
from longrec.client.ids import check_indices, index_of, item_indices, unknown_ids
from longrec.client.types import Appended, Event, Events, Items, Options, Prediction
from longrec.errors import ArgumentError, ProtocolError
from longrec.protocol import (
    BECAUSE,
    CANDIDATE,
    EVENT,
    EVENT_COLUMNS,
    ITEMS,
    SCORES,
    STATE,
    UNCHECKED_POSITION,
    USER,
    Status,
)

if TYPE_CHECKING:
    from longrec.schema import Schema

__all__ = [
    "DEFAULTS",
    "NO_CANDIDATES",
    "NO_EVENTS",
    "POSITION",
    "Query",
    "Request",
    "Tensor",
    "check_k",
    "decode_appended",
    "decode_prediction",
    "decode_state",
    "encode",
    "encode_user",
    "event_rows",
    "option_parameters",
    "prepare",
    "read_output",
    "stack_rows",
]

MOST: Final = 2**31 - 1
MAX_K: Final = 256  # of the protocol; a server may allow less (its model parameter max_k)
POSITION, ITEM, TIME = range(len(EVENT_COLUMNS))
NO_EVENTS: Final[NDArray[np.int64]] = np.empty((0, len(EVENT_COLUMNS)), np.int64)
DEFAULTS: Final = Options()
NOTHING: Final = (np.empty(0, np.int64), np.empty(0, np.float32))


class Tensor(NamedTuple):
    """A tensor as it travels: `datatype` in the server's spelling, `data` little-endian and row-major."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes


NO_CANDIDATES: Final = Tensor("INT64", (1, 0), b"")


class Request(NamedTuple):
    """One user's request.

    Args:
        user: the key.
        inputs: name -> tensor, batch size 1.
        outputs: what is asked for.
        k: items wanted; None: only STATE.
        options: how they are predicted.
        parameters: request parameters.
        headers: sent along, beside the connection's; not on streams.
    """

    user: str
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    k: int | None
    options: Options
    parameters: Mapping[str, int | bool | str]
    headers: tuple[tuple[str, str], ...] = ()


class Query(NamedTuple):
    """What one user asks: checked, and independent of which events go along.

    Args:
        user: the key.
        key: its tensor.
        rows: [n, 3 + c] int64, the events; see `protocol.EVENT_COLUMNS`.
        candidates: their tensor.
        k, options, parameters, outputs: as in `Request`.
        catalogue: of the client.
    """

    user: str
    key: Tensor
    rows: NDArray[np.int64]
    candidates: Tensor
    k: int | None
    options: Options
    parameters: Mapping[str, int | bool | str]
    outputs: tuple[str, ...]
    catalogue: Catalogue | None = None

    def request(self, rows: NDArray[np.int64]) -> Request:
        """The request with these events [n, 3 + c]."""
        events = Tensor("INT64", (1, *rows.shape), rows.tobytes())
        inputs = {USER: self.key, EVENT: events, CANDIDATE: self.candidates}
        return Request(self.user, inputs, self.outputs, self.k, self.options, self.parameters)

    def state_request(self, rows: NDArray[np.int64] = NO_EVENTS) -> Request:
        """A request that appends these events and asks for STATE alone."""
        return self._replace(candidates=NO_CANDIDATES, k=None, parameters={}, outputs=(STATE,)).request(rows)


def prepare(
    user: str,
    events: Events = (),
    *,
    k: int | None,
    candidates: Items | None = None,
    options: Options = DEFAULTS,
    catalogue: Catalogue | None = None,
    schema: "Schema | None" = None,
) -> Query:
    """Check a request.

    Args:
        user: 1..256 bytes of UTF-8.
        events: oldest first; may be empty.
        k: items wanted, 1..256; None: ask for STATE only.
        candidates: items to rank, at least one; None: the whole catalogue.
        options: how they are predicted.
        catalogue: of the client: items are given by their ids then.
        schema: of the model's events; None: not known.

    Raises:
        ArgumentError: naming the argument, what was expected and what came.
    """
    key = encode_user(user)
    rows = event_rows(events, catalogue, schema)
    ranked = NO_CANDIDATES
    if candidates is not None:
        indices = item_indices("candidates", candidates, catalogue)
        ranked = Tensor("INT64", (1, len(indices)), indices.tobytes())
    if k is None:
        return Query(user, key, rows, ranked, None, options, {}, (STATE,), catalogue)
    check_k(k)
    if candidates is not None and options.horizon != 1:
        raise ArgumentError("candidates", "None with a horizon above 1", got=f"horizon={options.horizon!r}")
    parameters = {"k": int(k)} if options is DEFAULTS else {"k": int(k), **option_parameters(options, catalogue)}
    outputs = (ITEMS, SCORES, STATE) if not options.explain else (ITEMS, SCORES, STATE, BECAUSE)
    return Query(user, key, rows, ranked, int(k), options, parameters, outputs, catalogue)


def encode(
    user: str,
    events: Events = (),
    *,
    k: int | None,
    candidates: Items | None = None,
    options: Options = DEFAULTS,
) -> Request:
    """Check a request and lay it out; arguments and errors as `prepare`."""
    query = prepare(user, events, k=k, candidates=candidates, options=options)
    return query.request(query.rows)


def check_k(k: int) -> None:
    """Check the number of items wanted.

    Raises:
        ArgumentError: it isn't an integer in 1..256.
    """
    if not _is_int(k) or not 1 <= k <= MAX_K:
        raise ArgumentError(f"k={k!r}", f"an integer in 1..{MAX_K}")


def option_parameters(options: Options, catalogue: Catalogue | None = None) -> dict[str, int | bool | str]:
    """Request parameters of the options that differ from the server's defaults; limits are the server's to know.

    Raises:
        ArgumentError: naming the option.
    """
    parameters: dict[str, int | bool | str] = {}
    for name, least in (("horizon", 1), ("beam", 1), ("explain", 0)):
        value = getattr(options, name)
        if not _is_int(value) or not least <= value <= MOST:
            raise ArgumentError(f"options.{name}={value!r}", f"an integer of at least {least}")
        if value != least:
            parameters[name] = int(value)
    for name in ("exclude_seen", "probabilities"):
        if not isinstance(getattr(options, name), bool):
            raise ArgumentError(f"options.{name}", "True or False", got=type(getattr(options, name)).__name__)
    if options.exclude_seen:
        parameters["exclude_seen"] = True
    if options.probabilities:
        parameters["scores"] = "probability"
    if len(options.exclude):
        parameters["exclude"] = json.dumps(item_indices("options.exclude", options.exclude, catalogue).tolist())
    if options.categories:
        if isinstance(options.categories, str) or not all(isinstance(name, str) for name in options.categories):
            raise ArgumentError("options.categories", "a sequence of names", got=type(options.categories).__name__)
        parameters["categories"] = json.dumps(list(options.categories))
    return parameters


def decode_prediction(
    request: Request | Query, answer: Mapping[str, Tensor], state: tuple[Status, int] | None = None
) -> Prediction:
    """The result of a request with k; `state` where it was read already.

    Raises:
        ProtocolError: the answer lacks an output, or one has another dtype, shape or size than the protocol says.
    """
    status, length = state or decode_state(answer)
    catalogue = request.catalogue if isinstance(request, Query) else None
    if status is not Status.OK:
        return Prediction(request.user, *NOTHING, length, status, None, catalogue)
    options = request.options
    shape = (1, options.horizon, request.k or 0)
    items = read_output(answer, ITEMS, "INT64", np.int64, shape)[0]
    scores = read_output(answer, SCORES, "FP32", np.float32, shape)[0]
    because = read_output(answer, BECAUSE, "INT64", np.int64, (*shape, options.explain))[0] if options.explain else None
    if options.horizon > 1:
        return Prediction(request.user, items, scores, length, status, because, catalogue)
    items, scores, because = items[0], scores[0], None if because is None else because[0]
    if len(items) and items[-1] == protocol.NO_ITEM:
        ranked = int(np.argmax(items == protocol.NO_ITEM))
        items, scores, because = items[:ranked], scores[:ranked], None if because is None else because[:ranked]
    return Prediction(request.user, items, scores, length, status, because, catalogue)


def decode_appended(request: "Request | Query", answer: Mapping[str, Tensor]) -> Appended:
    """The result of a request without k.

    Raises:
        ProtocolError: as `decode_prediction`.
    """
    status, length = decode_state(answer)
    return Appended(request.user, length, status)


def encode_user(user: str) -> Tensor:
    """The tensor of a user's key.

    Raises:
        ArgumentError: it isn't 1..256 bytes of UTF-8.
    """
    if not isinstance(user, str):
        raise ArgumentError("user", "a string", got=type(user).__name__)
    try:
        key = user.encode()
    except UnicodeEncodeError:
        raise ArgumentError("user", "a string that UTF-8 can hold", got="a lone surrogate") from None
    if not 1 <= len(key) <= protocol.MAX_USER_BYTES:
        raise ArgumentError("user", f"1..{protocol.MAX_USER_BYTES} bytes of UTF-8", got=f"{len(key)} bytes")
    return Tensor("BYTES", (1, 1), len(key).to_bytes(4, "little") + key)


def event_rows(events: Events, catalogue: Catalogue | None = None, schema: "Schema | None" = None) -> NDArray[np.int64]:
    """Events as rows [n, 3 + c], checked; of `Event`s with ids where there is a catalogue.

    Raises:
        ArgumentError: naming the row.
    """
    if isinstance(events, np.ndarray):
        rows = events
        if rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] < len(EVENT_COLUMNS):
            expected = f"int64 [n, {len(EVENT_COLUMNS)} or more] (columns {', '.join(EVENT_COLUMNS)}, features)"
            raise ArgumentError("events", expected, got=f"{rows.dtype} {list(rows.shape)}")
        if schema is not None:
            _check_features(rows[:, len(EVENT_COLUMNS) :], schema)
    elif not isinstance(events, Sequence) or isinstance(events, (str, bytes)):
        raise ArgumentError("events", "a sequence of Event or an int64 array", got=type(events).__name__)
    else:
        rows = _rows_of(events, catalogue, schema)
    if not len(rows):
        return NO_EVENTS
    for column, name, unit in ((ITEM, "item", "a catalogue index"), (TIME, "time_ms", "unix milliseconds")):
        if rows[:, column].min() < 0:
            row = int(np.argmax(rows[:, column] < 0))
            raise ArgumentError(f"events[{row}].{name}", f"{unit} >= 0", got="a negative integer")
    check_indices("events", rows[:, ITEM], catalogue)
    _check_positions(rows[:, POSITION])
    return rows


def _check_features(columns: NDArray[np.int64], schema: "Schema") -> None:
    """Check indices of values [n, c], of the schema's first features.

    Raises:
        ArgumentError: there are too many, or one is none of a value.
    """
    known = schema.columns
    if columns.shape[1] > len(known):
        names = ", ".join(known) or "none"
        raise ArgumentError("events", f"at most {len(known)} columns of features ({names})", got=str(columns.shape[1]))
    for name, feature, column in zip(known, known.values(), columns.T, strict=False):
        if column.size and not 0 <= column.min() <= column.max() <= feature.size:
            raise ArgumentError(f"events, column {name}", f"indices 0..{feature.size} (0: unknown)", got="another one")


def stack_rows(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Rows of several parts, which may have columns of features or not: those without are unknown, 0."""
    width = max(rows.shape[1] for rows in parts)
    if all(rows.shape[1] == width for rows in parts):
        return np.concatenate(parts)
    return np.concatenate([np.pad(rows, ((0, 0), (0, width - rows.shape[1]))) for rows in parts])


def _features_of(events: Sequence[Event], schema: "Schema | None") -> NDArray[np.int64]:
    """[n, c], c = 0 where no event has any."""
    given = [event.features for event in events]
    if not any(given):
        return np.empty((len(events), 0), np.int64)
    if schema is None:
        raise ArgumentError(
            "events",
            "no features, or a client that knows the model's schema",
            remedy="let it ask before: client.schema()",
        )
    rows = [schema.indices(features or {}, f"events[{row}].features") for row, features in enumerate(given)]
    return np.array(rows, np.int64).reshape(len(events), -1)


def _rows_of(events: Sequence[Event], catalogue: Catalogue | None, schema: "Schema | None") -> NDArray[np.int64]:
    unknown: list[Any] = []
    rows = np.empty((len(events), len(EVENT_COLUMNS)), np.int64)
    for row, event in enumerate(events):
        if not isinstance(event, Event):
            raise ArgumentError(f"events[{row}]", "an Event", got=type(event).__name__)
        item: Any = event.item
        if catalogue is not None:
            item = index_of(f"events[{row}].item", item, catalogue)
            if item is None:
                unknown.append(event.item)
                continue
        position = UNCHECKED_POSITION if event.position is None else event.position
        for name, value in (("item", item), ("time_ms", event.time_ms), ("position", position)):
            if not _is_int(value):
                raise ArgumentError(f"events[{row}].{name}", "an integer", got=type(value).__name__)
        if event.position is not None and position < 0:
            raise ArgumentError(
                f"events[{row}].position", "a position >= 0, or None to append", got="a negative integer"
            )
        try:
            rows[row] = position, item, event.time_ms
        except OverflowError:
            raise ArgumentError(f"events[{row}]", "integers below 2**63", got="a larger one") from None
    if unknown:
        assert catalogue is not None
        raise unknown_ids("events", unknown, catalogue)
    features = _features_of(events, schema)
    return np.concatenate((rows, features), axis=1) if features.shape[1] else rows


def _check_positions(positions: NDArray[np.int64]) -> None:
    first = int(positions[0])
    if len(positions) == 1 and first >= UNCHECKED_POSITION:
        return
    step = 0 if first == UNCHECKED_POSITION else 1
    wrong = np.flatnonzero(np.diff(positions) != step)
    if first < UNCHECKED_POSITION or wrong.size:
        row = int(wrong[0]) + 1 if wrong.size else 0
        raise ArgumentError(
            f"events[{row}].position",
            "positions that rise by 1 from event to event, or none at all",
            got="another one",
            remedy="sort the events, or send each run in a request of its own",
        )


def _is_int(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def decode_state(answer: Mapping[str, Tensor]) -> tuple[Status, int]:
    """Status and length of the log.

    Raises:
        ProtocolError: as `decode_prediction`.
    """
    tensor = answer.get(STATE)
    if tensor is None or tensor[:2] != ("INT64", (1, 2)) or len(tensor.data) != 16:
        read_output(answer, STATE, "INT64", np.int64, (1, 2))  # knows what to say
        raise AssertionError
    code, length = unpack("<qq", tensor.data)
    try:
        status = Status(code)
    except ValueError:
        known = ", ".join(f"{status.value} {status.name}" for status in Status)
        raise ProtocolError(
            f"{STATE}: expected a status of {known}, got {code}; the server is newer: upgrade"
        ) from None
    if length < 0:
        raise ProtocolError(f"{STATE}: expected a length >= 0, got {length}")
    return status, length


def read_output(
    answer: Mapping[str, Tensor], name: str, datatype: str, dtype: type[np.generic], shape: tuple[int, ...]
) -> NDArray[Any]:
    """An output as a read-only array.

    Raises:
        ProtocolError: it isn't there, or has another dtype, shape or size.
    """
    if name not in answer:
        raise ProtocolError(f"{name}: expected it among the outputs, got {', '.join(sorted(answer)) or 'none'}")
    tensor = answer[name]
    count, size = math.prod(shape), dtype().itemsize
    if tensor.datatype != datatype or tensor.shape != shape or len(tensor.data) != count * size:
        raise ProtocolError(
            f"{name}: expected {datatype} {list(shape)} in {count * size} bytes, "
            f"got {tensor.datatype} {list(tensor.shape)} in {len(tensor.data)}"
        )
    return np.frombuffer(tensor.data, dtype).reshape(shape)
