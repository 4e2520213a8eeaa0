"""Sends a data set's events in time order and holds each against the prediction that was asked before it.

A user's request carries one event and asks what comes next; the first asks alone. So each event is predicted from all
of the user's events before it, as offline evaluation does it. A thread keeps the time, the caller's reads.
"""

import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longrec.client import Client, Events, Prediction, Stream
from longrec.datasets import Dataset
from longrec.errors import ArgumentError, ServerError

__all__ = ["Progress", "Replay", "ReplayPlan"]

CHUNK_EVENTS = 512  # of a request that appends what came before


@dataclass(frozen=True)
class ReplayPlan:
    """What is replayed, and how.

    Args:
        users: how many of the data set's, drawn at random; None: all.
        last: newest events of each user that are replayed; those before are appended first. None: all.
        speed: times real time; None: as fast as it goes.
        k: items of a prediction.
        max_in_flight: requests without an answer, at most.
        prefix: of users' keys; None: a fresh one.
        seed: of the users that are drawn.
    """

    users: int | None = None
    last: int | None = None
    speed: float | None = None
    k: int = 10
    max_in_flight: int = 64
    prefix: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("users", "last", "k", "max_in_flight"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"{name}={value}", "at least 1")
        if self.speed is not None and not 0 < self.speed < np.inf:
            raise ArgumentError(f"speed={self.speed}", "times real time, more than 0")


class Progress(NamedTuple):
    """How far a replay is.

    Args:
        users: whose first event was sent. events: sent. total: to send.
        seconds: since the first was due. predicted: events that were held against a prediction.
        hits: of these, those among its k items. gain: sum of 1 / log2(rank + 1) over the hits, rank from 1.
        failed: requests without an answer. incomparable: answers that refused an event, or knew later ones already, as
            happens after a broken connection.
        latencies_ms: p50, p99, from when a request was due (without a speed: sent) to its answer; NaN: none.
    """

    users: int
    events: int
    total: int
    seconds: float
    predicted: int
    hits: int
    gain: float
    failed: int
    incomparable: int
    latencies_ms: tuple[float, float]

    @property
    def hit_rate(self) -> float:
        """hit@k so far; NaN: nothing was predicted."""
        return self.hits / self.predicted if self.predicted else float("nan")

    @property
    def ndcg(self) -> float:
        """NDCG@k so far, of one relevant item an event; NaN: nothing was predicted."""
        return self.gain / self.predicted if self.predicted else float("nan")

    @property
    def event_rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds if self.seconds else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """For JSON; null where there is no figure."""
        p50_ms, p99_ms = self.latencies_ms
        figures = {name: value for name, value in self._asdict().items() if name not in ("latencies_ms", "gain")}
        figures |= {"hit_rate": self.hit_rate, "ndcg": self.ndcg, "event_rate": self.event_rate}
        figures |= {"p50_ms": p50_ms, "p99_ms": p99_ms}
        return {name: None if value != value else value for name, value in figures.items()}


class _Asked(NamedTuple):
    moment: float  # when it was due, or sent
    position: int  # that is predicted
    item: int | None  # that stands there; None: the recorded history ends before


class Replay:
    """A replay; `run` it once.

    Args:
        dataset: in the catalogue of the model that is served.
        plan: what to replay.
    """

    def __init__(self, dataset: Dataset, plan: ReplayPlan) -> None:
        count = len(dataset.users)
        chosen = np.arange(count)
        if plan.users is not None and plan.users < count:
            chosen = np.sort(np.random.default_rng(plan.seed).choice(count, plan.users, replace=False))
        if not len(chosen):
            raise ArgumentError("dataset", "users with events", got="none")
        ends = dataset.indptr[chosen + 1]
        self._begins = (
            dataset.indptr[chosen] if plan.last is None else np.maximum(dataset.indptr[chosen], ends - plan.last)
        )
        rows = np.concatenate([np.arange(begin, end) for begin, end in zip(self._begins, ends, strict=True)])
        self.rows: NDArray[np.int64] = rows[np.lexsort((rows, dataset.times_ms[rows]))]
        """[n] the data set's rows, in the order in which they are sent: by time, and as they stand there."""
        self.users: NDArray[np.int64] = np.searchsorted(dataset.indptr, self.rows, side="right") - 1
        """[n] the user of each."""
        self._dataset, self._plan, self._chosen = dataset, plan, chosen
        self._prefix = f"replay-{uuid.uuid4().hex[:8]}-" if plan.prefix is None else plan.prefix
        self._pending: dict[str, deque[_Asked]] = defaultdict(deque)
        self._room = threading.Semaphore(plan.max_in_flight)
        self._stop = threading.Event()
        self._incomparablencies: list[float] = []
        self._began: float | None = None
        self._seconds = 0.0
        self._met = self._events = self._predicted = self._hits = self._failed = self._incomparable = 0
        self._gain = 0.0
        self._error: BaseException | None = None

    def progress(self) -> Progress:
        """How far it is; for any thread, at any time."""
        latencies = self._incomparablencies[:]
        p50, p99 = 1000 * np.percentile(latencies, (50, 99)) if latencies else (np.nan, np.nan)
        seconds = self._seconds or (0.0 if self._began is None else time.perf_counter() - self._began)
        counts = (self._predicted, self._hits, self._gain, self._failed, self._incomparable)
        return Progress(self._met, self._events, len(self.rows), seconds, *counts, (float(p50), float(p99)))

    def run(self, url: str) -> Progress:
        """Replay on the server whose gRPC endpoint is at host:port; how it went.

        Raises:
            ServerError: the server failed for good, or has a log of one of the users already.
        """
        plan = self._plan
        with Client(url) as client:
            self._append_what_came_before(client, url)
            with client.stream(k=plan.k, max_in_flight=plan.max_in_flight) as stream:
                sender = threading.Thread(target=self._send_all, args=(stream,), name="replay", daemon=True)
                sender.start()
                try:
                    for outcome in _outcomes(stream):
                        self._note(outcome)
                finally:
                    self._stop.set()
                    self._room.release()  # of a sender that waits for an answer that nobody will read
                    sender.join()
        if self._error is not None:
            raise self._error
        assert self._began is not None
        self._seconds = time.perf_counter() - self._began
        return self.progress()

    def _append_what_came_before(self, client: Client, url: str) -> None:
        keys = [self._prefix + self._dataset.users[user] for user in self._chosen.tolist()]
        before = (self._begins - self._dataset.indptr[self._chosen]).tolist()
        for key, user, length in zip(keys, self._chosen.tolist(), before, strict=True):
            events = self._dataset.events(user)[:length]
            for start in range(0, length, CHUNK_EVENTS):
                client.append(user=key, events=events[start : start + CHUNK_EVENTS])
        for found, length in zip(client.recommend_many(keys, k=1), before, strict=True):
            if found.position != length:
                raise ServerError(
                    f"{url}: expected a log of {length} events of user {found.user}, got {found.position}; replay "
                    "under another prefix"
                )

    def _send_all(self, stream: Stream) -> None:
        data, plan = self._dataset, self._plan
        times, started = data.times_ms[self.rows], set(self._begins.tolist())
        self._began = time.perf_counter()
        try:
            for row, user, time_ms in zip(self.rows.tolist(), self.users.tolist(), times.tolist(), strict=True):
                due = None
                if plan.speed is not None:
                    due = self._began + (time_ms - int(times[0])) / 1000 / plan.speed
                    if self._stop.wait(max(0.0, due - time.perf_counter())):
                        return
                key, position = self._prefix + data.users[user], row - int(data.indptr[user])
                item, following = int(data.items[row]), None
                if row + 1 < data.indptr[user + 1]:
                    following = int(data.items[row + 1])
                if row in started:
                    self._met += 1
                    self._send(stream, key, (), due, position, item)
                event = np.array([[position, item, time_ms]], np.int64)
                self._send(stream, key, event, due, position + 1, following)
                self._events += 1
                if self._stop.is_set():
                    return
        except BaseException as error:  # raised by the thread that reads, after the answers of what was sent
            self._error = error
        finally:
            stream.finish()

    def _send(
        self, stream: Stream, key: str, events: Events, due: float | None, position: int, item: int | None
    ) -> None:
        self._room.acquire()  # so that a wait for room isn't taken for the server's
        self._pending[key].append(_Asked(time.perf_counter() if due is None else due, position, item))
        stream.send(key, events)

    def _note(self, outcome: Prediction | ServerError) -> None:
        assert outcome.user is not None
        asked = self._pending[outcome.user].popleft()
        self._room.release()
        if isinstance(outcome, ServerError):
            self._failed += 1
            return
        self._incomparablencies.append(time.perf_counter() - asked.moment)
        if outcome.status or outcome.position != asked.position:
            self._incomparable += 1
        elif asked.item is not None:
            self._predicted += 1
            (ranks,) = np.nonzero(outcome.items == asked.item)
            if len(ranks):
                self._hits += 1
                self._gain += 1 / float(np.log2(ranks[0] + 2))


def _outcomes(stream: Stream) -> Iterator[Prediction | ServerError]:
    while True:
        try:
            found = next(stream, None)
        except ServerError as error:
            if error.user is None:
                raise
            yield error
            continue
        if found is None:
            return
        yield found
