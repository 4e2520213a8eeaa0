"""Many users' calls as one: whole arrays out, whole arrays in, as long as all goes well. No I/O.

    batch = Batch(ledger, entries, question)
    for places in batch.groups(batch.unknown, server):
        batch.learn(places, send(batch.lengths_request(places)))
    for places in batch.groups(range(len(entries)), server):
        special = batch.receive(places, send(batch.request(places)))
    batch.results

A user for whom something is special (unanswered events of before, more events than a request takes, an answer that
isn't plain OK) goes on alone, as a `Delivery`; both keep the same book.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from longrec.catalogue import Catalogue
from longrec.client.codec import (
    ITEM,
    NO_EVENTS,
    POSITION,
    TIME,
    Query,
    Request,
    Tensor,
    encode_user,
    event_rows,
    read_output,
    stack_rows,
)
from longrec.client.delivery import MOST_ROWS, REFUSED, Delivery
from longrec.client.ledger import Book, Ledger
from longrec.client.types import Event, Events, Prediction
from longrec.errors import ServerError
from longrec.protocol import (
    BECAUSE,
    CANDIDATE,
    EVENT,
    EVENT_COLUMNS,
    ITEMS,
    MAX_USER_BYTES,
    NO_ITEM,
    SCORES,
    STATE,
    UNCHECKED_POSITION,
    USER,
    Status,
)

if TYPE_CHECKING:
    from longrec.schema import Schema

__all__ = ["Alone", "Batch", "Places", "batches", "rows_of"]

T = TypeVar("T")
Places = NDArray[np.intp]
WIDTH: Final = len(EVENT_COLUMNS)
PADDING: Final = np.array([UNCHECKED_POSITION, NO_ITEM, 0], np.int64)
PREFIXES: Final = [size.to_bytes(4, "little") for size in range(MAX_USER_BYTES + 1)]


class Alone(NamedTuple):
    """Somebody of a batch who goes on alone: the place, the delivery, and the part of an answer that it shall take."""

    place: int
    delivery: Delivery
    part: Mapping[str, Tensor]


class Batch:
    """Users who are asked the same, each with events of their own.

    Args:
        ledger: of the client.
        entries: (user, events) of each; a user may come twice.
        question: what each is asked; its user and rows don't count.
        number: as `Delivery`'s.

    Attributes:
        alone: deliveries, by place, of those who go alone from the beginning.
        results: by place; None: there is none yet.
        repeatable: whether sending a request twice does what sending it once does.

    Raises:
        ArgumentError: a user or an event isn't as it should be; nothing is in the ledger then.
    """

    def __init__(
        self, ledger: Ledger, entries: Sequence[tuple[str, Events]], question: Query, *, number: bool = True
    ) -> None:
        self.users = [user for user, _ in entries]
        self._ledger, self._question, self._numbers = ledger, question, number
        self._keys = _keys(self.users)
        self._rows, self._counts = rows_of([events for _, events in entries], question.catalogue, ledger.schema)
        self._ends = np.cumsum(self._counts)
        self.results: list[Prediction | ServerError | None] = [None] * len(entries)
        self.alone: dict[int, Delivery] = {}
        self._books: list[Book] = []
        self._starts = np.zeros(len(entries), np.int64)  # position of the first event; without events: the least length
        self._seen = np.zeros(len(entries), np.int64)
        self._waiting: dict[int, Callable[[int], None]] = {}
        self._given = bool((self._rows[:, POSITION] != UNCHECKED_POSITION).any())
        self.repeatable = number or bool((self._rows[:, POSITION] != UNCHECKED_POSITION).all())
        self._events = self._rows.tolist() if self.repeatable else []
        with ledger.lock:
            stop = 0
            for place, (user, count) in enumerate(zip(self.users, self._counts.tolist(), strict=True)):
                start, stop = stop, stop + count
                self._books.append(self._enter(place, user, start, stop))

    @property
    def k(self) -> int:
        """Items wanted of each."""
        return self._question.k or 0

    @property
    def num_events(self) -> int:
        """Events of all of them."""
        return len(self._rows)

    def _enter(self, place: int, user: str, start: int, stop: int) -> Book:
        """Find out how one goes, under the lock."""
        book = self._ledger.open(user)
        if book.failed_from is not None or book.waiting or stop - start > MOST_ROWS:
            self._ledger.release(book)
            query = self._question._replace(user=user, key=encode_user(user), rows=self._rows[start:stop])
            self.alone[place] = Delivery(self._ledger, query, number=self._numbers)
        elif not self.repeatable:
            pass
        elif start == stop:
            self._starts[place] = book.acknowledged or 0
        elif self._given and self._events[start][POSITION] != UNCHECKED_POSITION:
            self._starts[place] = self._events[start][POSITION]
            book.hold(self._events[start][POSITION], self._events[start:stop])
        elif book.acknowledged is None:
            self._waiting[place] = number = partial(self._number, place, book)
            book.waiting.append(number)
        else:
            self._number(place, book, book.next)
        return book

    def _number(self, place: int, book: Book, first: int) -> None:
        stop = int(self._ends[place])
        self._waiting.pop(place, None)
        self._starts[place] = first
        book.numbered = True
        book.hold(first, self._events[stop - int(self._counts[place]) : stop])

    @property
    def unknown(self) -> Places:
        """Places whose log's length must be asked before their events have positions."""
        return np.array(list(self._waiting), np.intp)

    def groups(self, places: Iterable[int], server: Callable[[str], int]) -> list[Places]:
        """Places that one message can carry: to one server, with alike numbers of events.

        Args:
            places: which.
            server: a user's.
        """
        found: dict[tuple[int, int], list[int]] = {}
        for place in places:
            key = (server(self.users[place]), int(self._counts[place]).bit_length())
            found.setdefault(key, []).append(place)
        return [np.array(group, np.intp) for group in found.values()]

    def lengths_request(self, places: Places) -> Request:
        """Ask for the lengths of logs."""
        cells = np.empty((len(places), 0, WIDTH), np.int64)
        return self._message(places, cells)._replace(outputs=(STATE,), k=None, parameters={})

    def learn(self, places: Places, outputs: Mapping[str, Tensor]) -> list[Alone]:
        """Take the lengths of logs.

        Raises:
            ProtocolError: they aren't there.
        """
        lengths = read_output(outputs, STATE, "INT64", np.int64, (len(places), 2))[:, 1].tolist()
        with self._ledger.lock:
            self._ledger.acknowledge(
                (self.users[place], self._books[place], max(0, length))
                for place, length in zip(places.tolist(), lengths, strict=True)
            )
        return []

    def request(self, places: Places) -> Request:
        """Events of some, and the question."""
        counts = self._counts[places]
        most, offsets = int(counts.max()), self._ends[places] - counts
        column = np.arange(most)
        held = column < counts[:, None]  # [B, most]
        cells = np.zeros((len(places), most, self._rows.shape[1]), np.int64)
        if not held.all():
            cells[:, :, :WIDTH] = PADDING
        cells[held] = self._rows[(offsets[:, None] + column)[held]]
        if self.repeatable:
            cells[:, :, POSITION][held] = (self._starts[places, None] + column)[held]
            with self._ledger.lock:
                self._seen[places] = [self._books[place].acknowledged or 0 for place in places.tolist()]
        return self._message(places, cells)

    def receive(self, places: Places, outputs: Mapping[str, Tensor]) -> list[Alone]:
        """Take an answer: results of those whose answer is plain OK; the others.

        Raises:
            ProtocolError: a tensor isn't as it should be.
        """
        question, size = self._question, len(places)
        options, shape = question.options, (size, question.options.horizon, question.k or 0)
        states = read_output(outputs, STATE, "INT64", np.int64, (size, 2))
        items = read_output(outputs, ITEMS, "INT64", np.int64, shape)
        scores = read_output(outputs, SCORES, "FP32", np.float32, shape)
        because: Sequence[NDArray[np.int64] | None] = [None] * size
        if options.explain:
            because = list(read_output(outputs, BECAUSE, "INT64", np.int64, (*shape, options.explain)))
        plain = (states[:, 0] == Status.OK) & (states[:, 1] >= 0)
        if self.repeatable:
            plain &= states[:, 1] >= self._starts[places] + self._counts[places]
        if options.horizon == 1:
            items, scores = items[:, 0], scores[:, 0]
            because = [one if one is None else one[0] for one in because]
        rows = zip(places.tolist(), items, scores, states[:, 1].tolist(), because, plain.tolist(), strict=True)
        done = []
        for place, own_items, own_scores, length, why, is_plain in rows:
            if is_plain:
                user = self.users[place]
                self.results[place] = Prediction(
                    user, own_items, own_scores, length, Status.OK, why, question.catalogue
                )
                done.append((user, self._books[place], length))
        if options.horizon == 1:
            self._shorten(places[plain & (items[:, -1] == NO_ITEM)])
        with self._ledger.lock:
            if self.repeatable:
                self._ledger.acknowledge(done)
            for _, book, _ in done:
                self._ledger.release(book)
        return [
            Alone(int(places[at]), self._resume(int(places[at])), _part(outputs, int(at), size))
            for at in np.flatnonzero(~plain)
        ]

    def give_up(self, places: Iterable[int], error: BaseException) -> None:
        """Those of these who have no result fail for one reason."""
        for place in places:
            if self.results[place] is not None:
                continue
            own = error if isinstance(error, ServerError) and error.user == self.users[place] else None
            if own is None and isinstance(error, ServerError):
                own = type(error)(str(error))
                own.user = self.users[place]
            number = self._waiting.pop(place, None)
            if place in self.alone:
                self.alone[place].fail(own or error)
            elif number is not None:
                book, stop = self._books[place], int(self._ends[place])
                rows = self._events[stop - int(self._counts[place]) : stop]
                with self._ledger.lock:
                    book.put_off(number, None if isinstance(own or error, REFUSED) else rows)
                    self._ledger.release(book)
            else:
                self._resume(place).fail(own or error)
            self.results[place] = own

    def _message(self, places: Places, cells: NDArray[np.int64]) -> Request:
        size = len(places)
        users = b"".join([self._keys[place] for place in places.tolist()])
        inputs = {
            USER: Tensor("BYTES", (size, 1), users),
            EVENT: Tensor("INT64", cells.shape, cells.tobytes()),
            CANDIDATE: Tensor("INT64", (size, 0), b""),
        }
        question = self._question
        user = self.users[int(places[0])]
        return Request(user, inputs, question.outputs, question.k, question.options, question.parameters)

    def _shorten(self, places: Places) -> None:
        """Where fewer than k could be ranked: leave out what stands for the others."""
        for place in places.tolist():
            whole = self.results[place]
            assert isinstance(whole, Prediction)
            ranked = int(np.argmax(whole.items == NO_ITEM))
            because = None if whole.because is None else whole.because[:ranked]
            self.results[place] = Prediction(
                whole.user,
                whole.items[:ranked],
                whole.scores[:ranked],
                whole.position,
                whole.status,
                because,
                whole.catalogue,
            )

    def _resume(self, place: int) -> Delivery:
        stop, user = int(self._ends[place]), self.users[place]
        rows = self._rows[stop - int(self._counts[place]) : stop]
        given = len(rows) and rows[0, POSITION] != UNCHECKED_POSITION
        if self.repeatable and len(rows):
            rows = np.column_stack((int(self._starts[place]) + np.arange(len(rows)), rows[:, 1:]))
        query = self._question._replace(user=user, key=encode_user(user), rows=rows)
        number = self.repeatable and not given and bool(len(rows))
        seen = int(self._starts[place] if not len(rows) else self._seen[place])
        return Delivery.resume(self._ledger, query, self._books[place], seen=seen, number=number)


def batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` values, the last shorter."""
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch


def rows_of(
    events: Sequence[Events], catalogue: Catalogue | None = None, schema: "Schema | None" = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Many users' events as one array [n, 3 + c], and how many each has.

    Raises:
        ArgumentError: as `event_rows`.
    """
    rows = _plain_rows(events, catalogue)
    if rows is not None:
        return rows, np.array([len(own) for own in events], np.int64)
    each = [event_rows(own, catalogue, schema) for own in events]
    return stack_rows((NO_EVENTS, *each)), np.array([len(own) for own in each], np.int64)


def _plain_rows(events: Sequence[Events], catalogue: Catalogue | None) -> NDArray[np.int64] | None:
    """Rows where all are lists of `Event`s without positions and features, of plain integers and known ids; None: look
    at each."""
    if not set(map(type, events)) <= {list, tuple}:
        return None
    flat = [event for own in events for event in own]
    if not set(map(type, flat)) <= {Event}:
        return None
    items: list[Any] = [event.item for event in flat]
    times = [event.time_ms for event in flat]
    if catalogue is not None and set(map(type, items)) <= {int, str}:
        items = [catalogue.index.get(str(item), NO_ITEM) for item in items]
    if not set(map(type, items)) | set(map(type, times)) <= {int}:
        return None
    if any(event.position is not None or event.features for event in flat):
        return None
    rows = np.full((len(flat), WIDTH), UNCHECKED_POSITION, np.int64)
    try:
        rows[:, ITEM], rows[:, TIME] = items, times
    except OverflowError:
        return None
    return rows if not (rows[:, 1:] < 0).any() else None


def _keys(users: Sequence[str]) -> list[bytes]:
    """Users as BYTES elements.

    Raises:
        ArgumentError: as `encode_user`.
    """
    if set(map(type, users)) <= {str} and all(user.isascii() and 1 <= len(user) <= MAX_USER_BYTES for user in users):
        return [PREFIXES[len(user)] + user.encode() for user in users]
    return [encode_user(user).data for user in users]


def _part(outputs: Mapping[str, Tensor], at: int, size: int) -> Mapping[str, Tensor]:
    """One user's part of an answer about `size` users."""
    parts = {}
    for name, tensor in outputs.items():
        width = len(tensor.data) // size
        parts[name] = Tensor(tensor.datatype, (1, *tensor.shape[1:]), tensor.data[at * width : (at + 1) * width])
    return parts
