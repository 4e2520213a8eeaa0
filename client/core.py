"""What `Client` and `AsyncClient` share: everything but the waiting. A call's arguments become steps here."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

import numpy as np

from longrec.catalogue import Catalogue
from longrec.client.bulk import Alone, Batch, Places, batches
from longrec.client.codec import (
    DEFAULTS,
    MAX_K,
    Query,
    Request,
    Tensor,
    check_k,
    encode_user,
    option_parameters,
    prepare,
)
from longrec.client.connection import Connection, Retry, Tls, check_model, check_seconds, check_urls
from longrec.client.delivery import Delivery, Next, Outcome
from longrec.client.fleet import Fleet
from longrec.client.frames import requests_of
from longrec.client.ledger import Ledger
from longrec.client.retrying import ENDLESS, Budget, Retries, is_passing
from longrec.client.steps import Ask, Await, Describe, Look, Send, Sleep, Steps
from longrec.client.types import Appended, Event, Events, Items, ModelInfo, Options, Prediction, Scored
from longrec.errors import ArgumentError, DeadlineError, ServerError

if TYPE_CHECKING:
    from longrec.schema import Schema

__all__ = ["Core"]

T = TypeVar("T")

logger = logging.getLogger("longrec.client")
PROBE_SECONDS: Final = 0.5  # between two looks at servers that are down
LOOK_SECONDS: Final = 1.0  # the longest look
LAST_SECONDS: Final = 0.1  # an attempt that had no more than this tells nothing by being late


class Core:
    """A client's state, and its calls as steps. Every argument is checked before the first step.

    Args:
        watch: has `probe` run in the background, once.
        catalogue: items are given by their ids then.
        url, model, timeout_seconds, number, resend_seconds, history, retry, tls, headers, compression: as `Client`.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        model: str,
        timeout_seconds: float,
        number: bool,
        resend_seconds: float,
        history: Callable[[str], Any] | None,
        retry: Retry | None,
        tls: Tls | None,
        headers: Mapping[str, str] | None,
        compression: Literal["none", "gzip", "deflate"],
        catalogue: Catalogue | None,
        watch: Callable[[], None],
    ) -> None:
        self.fleet = Fleet(check_urls(url))
        self.model = check_model(model)
        self.timeout_seconds = check_seconds("timeout_seconds", timeout_seconds)
        self.connection = Connection(tls, {} if headers is None else headers, compression)
        if retry is not None and not isinstance(retry, Retry):
            raise ArgumentError("retry", "a Retry, or None", got=type(retry).__name__)
        if history is not None and not callable(history):
            raise ArgumentError("history", "a function of a user's key, or None", got=type(history).__name__)
        self.retry = retry or Retry()
        self.budget = Budget(self.retry.per_second)
        self.history = history
        self.number = bool(number)
        self.catalogue = catalogue
        self.ledger = Ledger(check_seconds("resend_seconds", resend_seconds), catalogue=catalogue)
        self._watch = watch
        self._checked: set[int] = set()  # servers that said what they speak, since they were last reached anew
        self._checking: dict[int, Future[ServerError | None]] = {}  # servers that are being asked, and what comes of it
        self._lock = threading.Lock()

    def recommend(
        self,
        user: str,
        events: Events,
        k: int,
        horizon: int | None,
        exclude: Items | None,
        explain: int | None,
        candidates: Items | None,
        options: Options | None,
    ) -> Steps[Prediction]:
        """`Client.recommend`."""
        check_k(k)
        if self._lacks_schema(events):
            again = (user, events, k, horizon, exclude, explain, candidates, options)
            return self._knowing_schema(lambda: self.recommend(*again))
        asked: dict[str, Any] = {"horizon": horizon, "exclude": exclude, "explain": explain}
        given = {name: value for name, value in asked.items() if value is not None}
        chosen = options or DEFAULTS
        if given:
            chosen = dataclasses.replace(chosen, **given)
        delivery = self._delivery(user, events, k=k, candidates=candidates, options=chosen)
        return cast("Steps[Prediction]", self.deliver(delivery, self.deadline()))

    def score(self, user: str, candidates: Items, events: Events, options: Options | None) -> Steps[Scored]:
        """`Client.score`: in parts of at most `MAX_K`, the first with the events."""
        if self._lacks_schema(events):
            return self._knowing_schema(lambda: self.score(user, candidates, events, options))
        chosen, deadline = options or DEFAULTS, self.deadline()
        if chosen.horizon != 1 or chosen.explain:
            raise ArgumentError("options", "neither a horizon nor explain with score", remedy="ask recommend")
        whole = self.prepare(user, events, k=1, candidates=candidates, options=chosen).candidates
        indices = np.frombuffer(whole.data, np.int64)
        parts = [indices[start : start + MAX_K] for start in range(0, len(indices), MAX_K)]
        deliveries = [
            self._delivery(user, events if at == 0 else (), k=len(part), candidates=part, options=chosen)
            for at, part in enumerate(parts)
        ]

        def steps() -> Steps[Scored]:
            known: dict[int, float] = {}
            position = 0
            for delivery in deliveries:
                part = yield from self.deliver(delivery, deadline)
                assert isinstance(part, Prediction)
                known |= zip(part.items.tolist(), part.scores.tolist(), strict=True)
                position = max(position, part.position)
            scores = np.array([known.get(item, -np.inf) for item in indices.tolist()], np.float32)
            scores.flags.writeable = False
            return Scored(user, indices, scores, position, self.catalogue)

        return steps()

    def append(self, user: str, events: Events) -> Steps[Appended]:
        """`Client.append`."""
        if self._lacks_schema(events):
            return self._knowing_schema(lambda: self.append(user, events))
        query = self.prepare(user, events, k=None)
        if not len(events):
            raise ArgumentError("events", "at least one", got="none", remedy="history_length only asks")
        delivery = Delivery(self.ledger, query, number=self.number)
        return cast("Steps[Appended]", self.deliver(delivery, self.deadline()))

    def history_length(self, user: str) -> Steps[int]:
        """`Client.history_length`; sends what is owed, too."""
        delivery, deadline = self._delivery(user, k=None), self.deadline()

        def steps() -> Steps[int]:
            answer = yield from self.deliver(delivery, deadline)
            assert isinstance(answer, Appended)
            return answer.length

        return steps()

    def flush(self) -> Steps[None]:
        """`Client.flush`."""
        for user in self.ledger.owed():
            yield from self.history_length(user)

    def is_ready(self) -> Steps[bool]:
        """`Client.is_ready`."""
        ready = False
        for server in range(len(self.fleet)):
            ready |= yield Look(server, self.timeout_seconds)
        return ready

    def model_info(self) -> Steps[ModelInfo]:
        """`Client.model_info`."""
        info: ModelInfo = yield Describe(self.fleet.pick(""), self.timeout_seconds)
        self._learn(info)
        return info

    def schema(self) -> "Steps[Schema]":
        """`Client.schema`."""
        if self.ledger.schema is None:
            info = yield from self.model_info()
            self.ledger.schema = info.schema
        return self.ledger.schema

    def _learn(self, info: ModelInfo) -> None:
        """Keep the schema of the model's events, where it has one."""
        if "schema" in info.settings:
            self.ledger.schema = info.schema

    def _lacks_schema(self, events: Events) -> bool:
        """Whether the schema has to be asked for before these events can be checked."""
        return (
            self.ledger.schema is None
            and isinstance(events, Sequence)
            and any(getattr(event, "features", None) for event in events)
        )

    def _knowing_schema(self, call: Callable[[], Steps[T]]) -> Steps[T]:
        """A call, after the schema was asked for."""
        yield from self.schema()
        return (yield from call())

    def recommend_many(
        self, requests: Any, k: int, options: Options | None, batch_size: int, in_flight: int
    ) -> Iterator[Steps[list[Prediction | ServerError]]]:
        """`Client.recommend_many`: the calls of the batches, to be begun in order; in flight as the caller likes."""
        chosen = self.check_stream(k, 1, options)
        for name, value, most in (("batch_size", batch_size, 256), ("in_flight", in_flight, 64)):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ArgumentError(f"{name}={value!r}", f"an integer in 1..{most}")
        question = self.prepare("-", k=k, options=chosen)

        def calls() -> Iterator[Steps[list[Prediction | ServerError]]]:
            for entries in batches(requests_of(requests, self.catalogue), batch_size):
                steps = self._batch(Batch(self.ledger, entries, question, number=self.number), self.deadline())
                next(steps)
                yield steps

        return calls()

    def deliver(
        self, delivery: Delivery, deadline: float, outcome: Outcome = Next.SEND
    ) -> Steps[Prediction | Appended]:
        """See a delivery through.

        Raises:
            ServerError: it failed, and was told so.
        """
        try:
            while isinstance(outcome, Next):
                if outcome is Next.SEND:
                    outputs = yield from self._send(delivery.request(), deadline, delivery.repeatable)
                    outcome = delivery.receive(outputs)
                else:
                    outcome = delivery.supply((yield Ask(delivery.user)))
        except BaseException as error:
            delivery.fail(error)
            raise
        return outcome

    def check(self, server: int, seconds: float) -> Steps[None]:
        """Before anything is sent to a server, and again after it was away: that it speaks this protocol.

        Raises:
            ProtocolError: it doesn't. MissingModelError: it lacks the model. ServerError: it can't be reached.
        """
        until = time.monotonic() + seconds
        while server not in self._checked:
            with self._lock:
                other = self._checking.get(server)
                if other is None:
                    own = self._checking[server] = Future()
                    own.set_running_or_notify_cancel()  # who waits and gives up can't cancel it for the others
            if other is None:
                yield from self._ask(server, until - time.monotonic(), own)
            else:
                failure: ServerError | None = yield Await(other, max(0.0, until - time.monotonic()))
                if failure is not None:
                    raise type(failure)(str(failure)) from failure

    def _ask(self, server: int, seconds: float, asked: "Future[ServerError | None]") -> Steps[None]:
        """Ask a server what it speaks, for all calls that wait for it. If this one is cancelled another asks."""
        failure: ServerError | None = None
        try:
            self._learn((yield Describe(server, seconds)))
            self._checked.add(server)
        except ServerError as error:
            failure = error
            raise
        finally:
            with self._lock:
                del self._checking[server]
            asked.set_result(failure)

    def probe(self) -> Steps[None]:
        """Look at the servers that are down until none is."""
        while self.fleet.down:
            yield Sleep(PROBE_SECONDS)
            for server in self.fleet.down:
                try:
                    ready = yield Look(server, LOOK_SECONDS)
                except ServerError:
                    ready = False
                if ready and self.fleet.mark(server, up=True):
                    logger.warning("%s is back", self.fleet.urls[server])

    def note_down(self, server: int) -> None:
        """A server gave no answer: users go elsewhere until it does."""
        self._checked.discard(server)
        if len(self.fleet) > 1 and self.fleet.mark(server, up=False):
            logger.warning("%s is down; its users go elsewhere", self.fleet.urls[server])
            self._watch()

    def _delivery(self, user: str, events: Events = (), **arguments: Any) -> Delivery:
        return Delivery(self.ledger, self.prepare(user, events, **arguments), number=self.number)

    def prepare(self, user: str, events: Events = (), **arguments: Any) -> Query:
        """Check a request, as `codec.prepare`."""
        return prepare(user, events, catalogue=self.catalogue, schema=self.ledger.schema, **arguments)

    def _send(self, request: Request, deadline: float, repeatable: bool) -> Steps[Mapping[str, Tensor]]:
        """Send a request, again where that may help."""
        try:
            return (yield from self._attempt(request, deadline))
        except ServerError as error:
            if not repeatable or not is_passing(error, 1, self.retry):
                raise
            failure = error
        retries = Retries(self.retry, self.budget, deadline - time.monotonic())
        while True:
            yield Sleep(retries.wait(failure))
            left = deadline - time.monotonic()
            try:
                return (yield from self._attempt(request, deadline))
            except ServerError as error:
                if isinstance(error, DeadlineError) and left < LAST_SECONDS:
                    raise failure from error  # which says more than that the time is over
                failure = error

    def _attempt(self, request: Request, deadline: float) -> Steps[Mapping[str, Tensor]]:
        server = self.fleet.pick(request.user)
        try:
            yield from self.check(server, self._attempt_seconds(deadline))
            outputs: Mapping[str, Tensor] = yield Send(server, request, self._attempt_seconds(deadline))
        except ENDLESS:
            self.note_down(server)
            raise
        return outputs

    def _attempt_seconds(self, deadline: float) -> float:
        """What an attempt may take.

        Raises:
            DeadlineError: no time is left.
        """
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"no answer in time ({self.timeout_seconds} s)")
        return left if self.retry.attempt_seconds is None else min(left, self.retry.attempt_seconds)

    def _batch(self, batch: Batch, deadline: float) -> Steps[list[Prediction | ServerError]]:
        """Everybody's result. Lengths that nobody knows are asked first. The first step does nothing: once it was
        taken, a call that is closed before it did anything leaves the batch's events owed."""
        everybody = range(len(batch.results))
        try:
            yield Sleep(0)
            for places in batch.groups(batch.unknown, self.fleet.pick):
                yield from self._together(batch, places, deadline, batch.lengths_request, batch.learn)
            together = [place for place in everybody if place not in batch.alone and batch.results[place] is None]
            for places in batch.groups(together, self.fleet.pick):
                yield from self._together(batch, places, deadline, batch.request, batch.receive)
            for place, delivery in batch.alone.items():
                yield from self._alone(batch, place, delivery, deadline)
        except BaseException as error:
            batch.give_up(everybody, error)
            raise
        return cast("list[Prediction | ServerError]", batch.results)

    def _together(
        self,
        batch: Batch,
        places: Places,
        deadline: float,
        request: Callable[[Places], Request],
        receive: Callable[[Places, Mapping[str, Tensor]], list[Alone]],
    ) -> Steps[None]:
        """Ask for several users at once. Where the server refuses, by halves: one bad user doesn't spoil the others."""
        try:
            special = receive(places, (yield from self._send(request(places), deadline, batch.repeatable)))
        except ServerError as error:
            if len(places) == 1 or not batch.repeatable or isinstance(error, ENDLESS):
                batch.give_up(places.tolist(), error)
                return
            half = len(places) // 2
            yield from self._together(batch, places[:half], deadline, request, receive)
            yield from self._together(batch, places[half:], deadline, request, receive)
            return
        for place, delivery, part in special:
            yield from self._alone(batch, place, delivery, deadline, part)

    def _alone(
        self,
        batch: Batch,
        place: int,
        delivery: Delivery,
        deadline: float,
        part: Mapping[str, Tensor] | None = None,
    ) -> Steps[None]:
        try:
            outcome = Next.SEND if part is None else delivery.receive(part)
            result = yield from self.deliver(delivery, deadline, outcome)
        except ServerError as error:
            error.user = delivery.user
            batch.results[place] = error
        else:
            assert isinstance(result, Prediction)
            batch.results[place] = result

    def unacknowledged(self, user: str) -> list[Event]:
        """The user's events that the server hasn't said it has."""
        encode_user(user)
        return self.ledger.unacknowledged(user)

    def forget(self, user: str) -> None:
        """Drop what is known of the user."""
        encode_user(user)
        self.ledger.forget(user)

    def check_stream(self, k: int, max_in_flight: int, options: Options | None) -> Options:
        """Arguments of `stream`."""
        check_k(k)
        if options is not None:
            option_parameters(options, self.catalogue)
        if not isinstance(max_in_flight, int) or not 1 <= max_in_flight <= 8192:
            raise ArgumentError(f"max_in_flight={max_in_flight!r}", "an integer in 1..8192")
        return options or DEFAULTS

    def deadline(self) -> float:
        """Of a call that begins now, by `time.monotonic()`."""
        return time.monotonic() + self.timeout_seconds
