"""`Client`: one call, one answer, with threads. `aio_client.py` does it with asyncio; what both share is `core.py`."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal

import tenacity

from longrec.client.bulk import batches, groups, merge, split
from longrec.client.codec import Request, Tensor
from longrec.client.connection import Connection, Retry, Tls
from longrec.client.core import PROBE_SECONDS, Core, failed, logger
from longrec.client.delivery import Delivery, Next, Outcome
from longrec.client.frames import requests_of
from longrec.client.progress import showing
from longrec.client.retrying import is_passing, retry_arguments
from longrec.client.stream import Stream
from longrec.client.transport import GrpcTransport, Transport
from longrec.client.types import Appended, Event, Events, ModelInfo, Options, Prediction, Scored
from longrec.errors import DeadlineError, ServerError, UnavailableError
from longrec.protocol import DEFAULT_K, MODEL

__all__ = ["Client"]


class Client:
    """A connection to one or several servers of model `recommender`.

        with Client("127.0.0.1:8001") as client:
            prediction = client.recommend(user="u1", events=[Event(item=3, time_ms=1_700_000_000_000)], k=10)

    Safe to share between threads. Every call ends within `timeout_seconds`. What fails raises one of `longrec.errors`.

    Exactly once: events without positions are numbered by the client, after it has asked how long the user's log is, so
    that a call may be repeated until it is answered, by the client itself too. Send a user's events through one client
    at a time: two that number the same user's events give the same numbers, and the second's are refused
    (`ConflictError`). Where that can't be had use `number=False`.

    A call that fails without an answer (`UnavailableError`, `DeadlineError`) leaves its events with the client, as
    nobody knows whether they were written: they go along with the user's next request, or with `flush`. Don't send them
    again. After `RejectedError`, `GapError` and `ConflictError`, and wherever you gave the positions, they are yours to
    send.

    Args:
        url: host:port of the server's gRPC service; it is connected to by the first call. Several: users spread over
            them by their keys; when one goes down its users go to the others, and come back with it.
        model: name of the model.
        timeout_seconds: deadline of every call, retries included, and of every request on a stream.
        number: whether events without positions are numbered; False: appended unchecked wherever the log ends, and
            never sent twice.
        resend_seconds: how long acknowledged events are kept, for a server whose machine loses its last moments.
        history: user -> the user's events, whole or with positions; asked where the server lacks events that the client
            doesn't have any more.
        retry: what is tried again, how often and when.
        tls: encryption; None: none.
        headers: sent with every call, such as `{"authorization": "Bearer …"}`.
        compression: of requests.
        transport: (url, model, connection) -> what carries requests, in place of gRPC.

    Raises:
        ArgumentError: an argument doesn't fit.
    """

    def __init__(
        self,
        url: str | Sequence[str] = "127.0.0.1:8001",
        *,
        model: str = MODEL,
        timeout_seconds: float = 30.0,
        number: bool = True,
        resend_seconds: float = 5.0,
        history: Callable[[str], Events] | None = None,
        retry: Retry | None = None,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        compression: Literal["none", "gzip", "deflate"] = "none",
        transport: Callable[[str, str, Connection], Transport] = GrpcTransport,
    ) -> None:
        self.core = Core(
            url,
            model=model,
            timeout_seconds=timeout_seconds,
            number=number,
            resend_seconds=resend_seconds,
            history=history,
            retry=retry,
            tls=tls,
            headers=headers,
            compression=compression,
        )
        self.transports = [transport(one, model, self.core.connection) for one in self.core.fleet.urls]
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._prober: threading.Thread | None = None

    def recommend(
        self,
        *,
        user: str,
        events: Events = (),
        k: int = DEFAULT_K,
        horizon: int | None = None,
        exclude: Sequence[int] | None = None,
        explain: int | None = None,
        candidates: Sequence[int] | None = None,
        options: Options | None = None,
    ) -> Prediction:
        """Append a user's new events and rank what comes next.

        Args:
            user: the user's key, 1..256 bytes of UTF-8; a new one starts an empty log.
            events: new events, oldest first; none: only ask.
            k: items wanted, 1..256 (the server's model parameter max_k may be lower).
            horizon, exclude, explain: as in `Options`, whose values they replace.
            candidates: catalogue indices to rank, at least one; None: the whole catalogue.
            options: rollouts, what to leave out, explanations; None: a plain ranking.

        Raises:
            ArgumentError: an argument doesn't fit; nothing was sent.
            RejectedError: the server refused the request; its log is as it was.
            ServerError: it failed, can't be reached, was too slow, or answered garbage; see the class.
        """
        delivery = self.core.recommend(user, events, k, horizon, exclude, explain, candidates, options)
        return self._predict(delivery, self.core.deadline())

    def score(
        self, *, user: str, candidates: Sequence[int], events: Events = (), options: Options | None = None
    ) -> Scored:
        """Append a user's new events and score candidates, each of them.

        Args:
            user, events: as `recommend`.
            candidates: catalogue indices, at least one.
            options: what to leave out, probabilities; None: logits of all.

        Raises:
            As `recommend`.
        """
        deadline = self.core.deadline()
        first, rest = self.core.score(user, candidates, events, options)
        return self.core.scored(user, candidates, [self._predict(part, deadline) for part in (first, *rest)])

    def append(self, *, user: str, events: Events) -> Appended:
        """Append a user's new events, at least one, and rank nothing.

        Raises:
            As `recommend`.
        """
        return self._append(self.core.append(user, events))

    def history_length(self, *, user: str) -> int:
        """Events in the user's log; 0 for a user the server has never heard of.

        Raises:
            As `recommend`.
        """
        return self._append(self.core.ask_length(user)).length

    def recommend_many(
        self,
        requests: "Iterable[str | tuple[str, Events]] | Any",
        *,
        k: int = DEFAULT_K,
        options: Options | None = None,
        batch_size: int = 256,
        in_flight: int = 4,
        progress: bool = False,
        errors: list[ServerError] | None = None,
    ) -> Iterator[Prediction]:
        """Predictions for many users, in the order of the requests: in bulk, several batches at once.

        Args:
            requests: users, or (user, events); or a polars or pandas frame with a column `user`, and for events `item`
                and `time_ms` (and `position`), a user's rows oldest first: one prediction a user.
            k, options: of each.
            batch_size: users of a request, 1..256.
            in_flight: batches at once, 1..64.
            progress: show a bar on stderr.
            errors: takes the errors of users who can't be answered, each with its `user`; None: the first is raised.

        Raises:
            As `recommend`.
        """
        chosen = self.core.check_many(k, options, batch_size, in_flight)
        return self._many(requests_of(requests), k, chosen, batch_size, in_flight, progress, errors)

    def is_ready(self) -> bool:
        """Whether a server answers and calls the model ready; False where none can be reached.

        Raises:
            ServerError: what answers there isn't a Triton server, or denies access.
        """
        seconds = self.core.timeout_seconds
        return any(transport.is_ready(seconds) for transport in self.transports)

    def model_info(self) -> ModelInfo:
        """What a server says of its model.

        Raises:
            ProtocolError: it speaks another protocol than this library. ServerError: as `recommend`.
        """
        return self.transports[self.core.fleet.pick("")].model_info(self.core.timeout_seconds)

    def stream(self, *, k: int = DEFAULT_K, options: Options | None = None, max_in_flight: int = 256) -> Stream:
        """Open a stream for many users; a context manager. A client may have several.

            with client.stream(k=10) as stream:
                for prediction in stream.map([("u1", events_1), ("u2", events_2)]): ...

        Args:
            k: items wanted of each prediction, 1..256.
            options: of each prediction.
            max_in_flight: requests sent and not yet read, at most; 1..65536.

        Raises:
            ArgumentError: an argument doesn't fit.
        """
        chosen = self.core.check_stream(k, max_in_flight, options)
        return Stream(self, k=k, options=chosen, max_in_flight=max_in_flight)

    def unacknowledged(self, *, user: str) -> list[Event]:
        """The user's events, with their positions, that the server hasn't said it has; oldest first."""
        return self.core.unacknowledged(user)

    def flush(self) -> None:
        """Send what calls that failed have left behind.

        Raises:
            As `recommend`.
        """
        for user in self.core.ledger.owed():
            self._append(self.core.ask_length(user))

    def forget(self, *, user: str) -> None:
        """Drop what the client knows and holds of a user: the next call asks for the log's length anew."""
        self.core.forget(user)

    def close(self) -> None:
        """Close the connections; what is in flight is cancelled. Harmless when repeated."""
        self._closed.set()
        for transport in self.transports:
            transport.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def deliver(self, delivery: Delivery, deadline: float) -> Prediction | Appended:
        """See a delivery through (for streams).

        Raises:
            ServerError: it failed, and was told so.
        """
        outcome: Outcome = Next.SEND
        try:
            while isinstance(outcome, Next):
                if outcome is Next.SEND:
                    outcome = delivery.receive(self._send(delivery.request(), deadline, delivery.repeatable))
                else:
                    outcome = delivery.supply(self.core.history(delivery.user) if self.core.history else None)
        except BaseException as error:
            delivery.fail(error)
            raise
        return outcome

    def note_down(self, server: int) -> None:
        """A server gave no answer: users go elsewhere until it does (for streams)."""
        if len(self.transports) == 1 or not self.core.fleet.mark(server, up=False):
            return
        logger.warning("%s is down; its users go elsewhere", self.core.fleet.urls[server])
        with self._lock:
            if self._prober is None or not self._prober.is_alive():
                self._prober = threading.Thread(target=self._probe, name="longrec-probe", daemon=True)
                self._prober.start()

    def _predict(self, delivery: Delivery, deadline: float) -> Prediction:
        result = self.deliver(delivery, deadline)
        assert isinstance(result, Prediction)
        return result

    def _append(self, delivery: Delivery) -> Appended:
        result = self.deliver(delivery, self.core.deadline())
        assert isinstance(result, Appended)
        return result

    def _send(self, request: Request, deadline: float, repeatable: bool) -> Mapping[str, Tensor]:
        try:
            return self._attempt(request, deadline)
        except ServerError as error:
            if not repeatable or not is_passing(error, 1, self.core.retry):
                raise
            failures = [error]

        def attempt() -> Mapping[str, Tensor]:
            if failures:
                raise failures.pop()
            return self._attempt(request, deadline)

        again = retry_arguments(self.core.retry, self.core.budget, deadline - time.monotonic())
        outputs: Mapping[str, Tensor] = tenacity.Retrying(**again)(attempt)
        return outputs

    def _attempt(self, request: Request, deadline: float) -> Mapping[str, Tensor]:
        seconds = self.core.attempt_seconds(deadline)
        server = self.core.fleet.pick(request.user)
        try:
            return self.transports[server].infer(request, seconds)
        except (UnavailableError, DeadlineError):
            self.note_down(server)
            raise

    def _probe(self) -> None:
        while self.core.fleet.down and not self._closed.wait(PROBE_SECONDS):
            for server in self.core.fleet.down:
                try:
                    ready = self.transports[server].is_ready(1.0)
                except (ServerError, ValueError):  # ValueError: gRPC's word for a closed channel
                    ready = False
                if ready and self.core.fleet.mark(server, up=True):
                    logger.warning("%s is back", self.core.fleet.urls[server])

    def _many(
        self,
        requests: Iterator[tuple[str, Events]],
        k: int,
        options: Options,
        batch_size: int,
        in_flight: int,
        progress: bool,
        errors: list[ServerError] | None,
    ) -> Iterator[Prediction]:
        running: deque[Future[list[Prediction | ServerError]]] = deque()
        pool = ThreadPoolExecutor(in_flight, "longrec-bulk")
        try:
            with showing(progress) as advance:
                more = batches(requests, batch_size)
                while True:
                    while len(running) <= in_flight and (batch := next(more, None)) is not None:
                        deliveries = [self.core.deliver(user, events, k=k, options=options) for user, events in batch]
                        running.append(pool.submit(self._batch, deliveries))
                    if not running:
                        return
                    for result in running.popleft().result():
                        advance()
                        if not isinstance(result, ServerError):
                            yield result
                        elif errors is None:
                            raise result
                        else:
                            errors.append(result)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _batch(self, deliveries: list[Delivery]) -> list[Prediction | ServerError]:
        """Each delivery's result, by requests of many users; those that fail together are asked again alone."""
        deadline = self.core.deadline()
        results: dict[Delivery, Prediction | ServerError] = {}
        while left := [delivery for delivery in deliveries if delivery not in results]:
            requests = [delivery.request() for delivery in left]
            for places in groups(requests, self.core.fleet.pick):
                together = [left[place] for place in places]
                repeatable = all(delivery.repeatable for delivery in together)
                parts: Sequence[Mapping[str, Tensor] | None] = [None] * len(together)
                if repeatable or len(together) > 1:
                    message = merge([requests[place] for place in places])
                    try:
                        parts = split(self._send(message, deadline, repeatable), len(together))
                    except ServerError as error:
                        if not repeatable:
                            results |= {delivery: failed(delivery, error) for delivery in together}
                            continue
                for delivery, part in zip(together, parts, strict=True):
                    result = self._take(delivery, part, deadline)
                    if result is not None:
                        results[delivery] = result
        return [results[delivery] for delivery in deliveries]

    def _take(
        self, delivery: Delivery, part: Mapping[str, Tensor] | None, deadline: float
    ) -> Prediction | ServerError | None:
        try:
            outcome = Next.HISTORY if part is None else delivery.receive(part)
            if outcome is Next.SEND:
                return None
            if isinstance(outcome, Next):
                return self._predict(delivery, deadline)
        except ServerError as error:
            return failed(delivery, error)
        assert isinstance(outcome, Prediction)
        return outcome
