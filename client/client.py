"""`Client`: one call, one answer, with threads. `aio_client.py` does it with asyncio; what both share is `core.py`."""

import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from longrec.client.base import BaseClient
from longrec.client.connection import Connection
from longrec.client.progress import showing
from longrec.client.steps import Steps
from longrec.client.stream import Stream
from longrec.client.transport import GrpcTransport, Transport
from longrec.client.types import Appended, Events, Items, ModelInfo, Options, Prediction, Scored
from longrec.errors import DeadlineError, ServerError
from longrec.protocol import DEFAULT_K

if TYPE_CHECKING:
    from longrec.schema import Schema

__all__ = ["Client"]

T = TypeVar("T")


class Client(BaseClient[Transport, Events]):
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
        catalogue: of the run that is served, its file, or the run's folder: items are given by the data set's own ids
            then (`Event.item`, candidates, exclude, a frame's `item`), and results have `ids` and `titles`. An integer
            array holds indices even so. Ids are text; an integer stands for its digits.
        transport: (url, model, connection) -> what carries requests, in place of gRPC.
        telemetry: a `longrec.client.telemetry.Telemetry`, for OpenTelemetry's spans and metrics of every call.

    Raises:
        ArgumentError: an argument doesn't fit. CheckpointError: the catalogue's file isn't one.
    """

    def recommend(
        self,
        *,
        user: str,
        events: Events = (),
        k: int = DEFAULT_K,
        horizon: int | None = None,
        exclude: Items | None = None,
        explain: int | None = None,
        candidates: Items | None = None,
        options: Options | None = None,
    ) -> Prediction:
        """Append a user's new events and rank what comes next.

        Args:
            user: the user's key, 1..256 bytes of UTF-8; a new one starts an empty log.
            events: new events, oldest first; none: only ask.
            k: items wanted, 1..256 (the server's model parameter max_k may be lower).
            horizon, exclude, explain: as in `Options`, whose values they replace.
            candidates: items to rank, at least one; None: the whole catalogue.
            options: rollouts, what to leave out, explanations; None: a plain ranking.

        Raises:
            ArgumentError: an argument doesn't fit; nothing was sent.
            RejectedError: the server refused the request; its log is as it was.
            ServerError: it failed, can't be reached, was too slow, or answered garbage; see the class.
        """
        return self.run(self.core.recommend(user, events, k, horizon, exclude, explain, candidates, options))

    def score(self, *, user: str, candidates: Items, events: Events = (), options: Options | None = None) -> Scored:
        """Append a user's new events and score candidates, each of them.

        Args:
            user, events: as `recommend`.
            candidates: items, at least one.
            options: what to leave out, probabilities; None: logits of all.

        Raises:
            As `recommend`.
        """
        return self.run(self.core.score(user, candidates, events, options))

    def append(self, *, user: str, events: Events) -> Appended:
        """Append a user's new events, at least one, and rank nothing.

        Raises:
            As `recommend`.
        """
        return self.run(self.core.append(user, events))

    def history_length(self, *, user: str) -> int:
        """Events in the user's log; 0 for a user the server has never heard of.

        Raises:
            As `recommend`.
        """
        return self.run(self.core.history_length(user))

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
        calls = self.core.recommend_many(requests, k, options, batch_size, in_flight)
        return self._many(calls, in_flight, progress, errors)

    def is_ready(self) -> bool:
        """Whether a server answers and calls the model ready; False where none can be reached.

        Raises:
            ServerError: what answers there isn't a Triton server, or denies access.
        """
        return self.run(self.core.is_ready())

    def model_info(self) -> ModelInfo:
        """What a server says of its model.

        Raises:
            ProtocolError: it speaks another protocol than this library. ServerError: as `recommend`.
        """
        return self.run(self.core.model_info())

    def schema(self) -> "Schema":
        """The features that events may have (`Event.features`), as the model was trained with them; asked for once.
        Before the first event with features on a stream or in bulk; other calls ask by themselves.

        Raises:
            As `model_info`.
        """
        return self.run(self.core.schema())

    def stream(self, *, k: int = DEFAULT_K, options: Options | None = None, max_in_flight: int = 256) -> Stream:
        """Open a stream for many users; a context manager. A client may have several.

            with client.stream(k=10) as stream:
                for prediction in stream.map([("u1", events_1), ("u2", events_2)]): ...

        Args:
            k: items wanted of each prediction, 1..256.
            options: of each prediction.
            max_in_flight: requests sent and not yet read, at most; 1..8192.

        Raises:
            ArgumentError: an argument doesn't fit.
        """
        chosen = self.core.check_stream(k, max_in_flight, options)
        return Stream(self, k=k, options=chosen, max_in_flight=max_in_flight)

    def flush(self) -> None:
        """Send what calls that failed have left behind.

        Raises:
            As `recommend`.
        """
        self.run(self.core.flush())

    def close(self) -> None:
        """Close the connections; what is in flight is cancelled. Harmless when repeated."""
        self._closed.set()
        for transport in self.transports:
            transport.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def run(self, steps: Steps[T]) -> T:
        """See a call through (for streams)."""
        try:
            step = next(steps)
            while True:
                try:
                    value = self.start(step)
                except BaseException as error:  # noqa: PERF203
                    step = steps.throw(error)
                else:
                    step = steps.send(value)
        except StopIteration as end:
            result: T = end.value
            return result

    def _many(
        self,
        calls: Iterator[Steps[list[Prediction | ServerError]]],
        in_flight: int,
        progress: bool,
        errors: list[ServerError] | None,
    ) -> Iterator[Prediction]:
        running: deque[Future[list[Prediction | ServerError]]] = deque()
        with showing(progress) as advance, ThreadPoolExecutor(in_flight, "longrec-bulk") as pool:
            while True:
                while len(running) < in_flight and (steps := next(calls, None)) is not None:
                    running.append(pool.submit(self.run, steps))
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

    def _prepare(self) -> None:
        self._closed, self._lock = threading.Event(), threading.Lock()
        self._prober: threading.Thread | None = None

    def _grpc(self, url: str, model: str, connection: Connection) -> Transport:
        return GrpcTransport(url, model, connection)

    def _sleep(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise ServerError("the client was closed")

    def _wait(self, future: Future[Any], seconds: float) -> Any:
        try:
            return future.result(seconds)
        except (futures.TimeoutError, TimeoutError):
            raise DeadlineError(f"no answer in time ({self.core.timeout_seconds} s)") from None

    def _watch(self) -> None:
        with self._lock:
            if self._prober is None or not self._prober.is_alive():
                self._prober = threading.Thread(target=self._probe, name="longrec-probe", daemon=True)
                self._prober.start()

    def _probe(self) -> None:
        with contextlib.suppress(ServerError):  # the client was closed
            self.run(self.core.probe())
