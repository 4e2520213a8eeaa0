"""The engine without a server, for tests and notebooks: a transport for `Client` and `AsyncClient` that stays in the
process.

    with serve_locally("runs/demo") as local, Client(transport=local.transport) as client:
        client.recommend(user="anna", k=10)

Requests go through the same checks, engine and log as behind a tritonserver, in batches of what came while the last one
ran; what is long is deferred. Errors are those that the server's would become. Of `longrec.client` it uses what
transports are made of, and the client knows nothing of it.
"""

import asyncio
import contextlib
import json
import logging
import tempfile
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, TypeAlias

import grpc
import numpy as np

from longrec.client import messages
from longrec.client.aio_transport import AsyncStreamCall, AsyncTransport
from longrec.client.codec import Request, Tensor
from longrec.client.connection import Connection
from longrec.client.transport import Answer, StreamCall, Transport
from longrec.client.types import ModelInfo
from longrec.config import EngineConfig
from longrec.errors import ArgumentError, LongrecError, ServerError
from longrec.protocol import CANDIDATE, EVENT, MODEL, USER
from longrec.python_backend import query
from longrec.python_backend.engine import Ticket
from longrec.python_backend.service import Pending, Service, first_error, output_arrays

__all__ = ["LocalServer", "serve_locally"]

logger = logging.getLogger(__name__)
MAX_USERS: Final = 256  # of a batch, as the server's
WHERE: Final = "in process"  # what an error names in place of an address
DATATYPES: Final = {"int64": "INT64", "float32": "FP32"}
Outputs: TypeAlias = Mapping[str, Tensor]
Came: TypeAlias = Answer | ServerError | None
Put: TypeAlias = Callable[[Came], object]


@dataclass(slots=True, eq=False)
class _Job:
    """A request on its way through the engine. Its future gives the outputs; who sets it first, be it the caller who
    gives up, has set it."""

    request: Request
    future: "Future[Outputs]" = field(default_factory=Future)

    @property
    def num_users(self) -> int:
        return self.request.inputs[USER].shape[0]

    def fail(self, error: Exception) -> None:
        """Told as the server tells it: by status."""
        code = grpc.StatusCode.INVALID_ARGUMENT if isinstance(error, ArgumentError) else grpc.StatusCode.INTERNAL
        _fail(self.future, messages.failure(code, str(error), WHERE, MODEL))

    def answer(self, answers: list[query.Answer], outputs: frozenset[str]) -> None:
        """Give the outputs, or why there are none."""
        error = first_error(answers)
        if error is not None:
            self.fail(error)
            return
        arrays = output_arrays(answers, outputs)
        with contextlib.suppress(InvalidStateError):  # whoever asked has gone
            self.future.set_result(
                {name: Tensor(DATATYPES[array.dtype.name], array.shape, array.tobytes()) for name, array in arrays}
            )


class LocalServer:
    """An engine, and the thread that works it. Made by `serve_locally`.

    Args:
        service: the engine; closed with this.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._closed = False
        self._late: dict[Ticket, tuple[_Job, Pending]] = {}
        self._worker = threading.Thread(target=self._work, name="longrec-local", daemon=True)
        self._worker.start()

    @property
    def closed(self) -> bool:
        """Whether it answers no more."""
        return self._closed

    def transport(self, url: str, model: str, connection: Connection) -> Transport:
        """What `Client(transport=…)` takes; addresses and what concerns the network don't matter."""
        return _LocalTransport(self, model)

    def aio_transport(self, url: str, model: str, connection: Connection) -> AsyncTransport:
        """What `AsyncClient(transport=…)` takes."""
        return _AsyncLocalTransport(self, model)

    def submit(self, request: Request) -> "Future[Outputs]":
        """Queue a request. Cancelling its future keeps it from the engine, as long as it hasn't begun."""
        job = _Job(request)
        with self._changed:
            if self._closed:
                job.fail(ServerError("the engine was closed"))
            else:
                self._waiting.append(job)
                self._changed.notify()
        return job.future

    def close(self) -> None:
        """Answer the batch that runs, refuse what waits, close the log. Harmless when repeated."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        self._worker.join()
        for job in (*self._waiting, *(job for job, _ in self._late.values())):
            job.fail(ServerError("the engine was closed"))
        self.service.close()

    def _work(self) -> None:
        """The thread: a batch of what waits, then a piece of what was deferred, and again."""
        while (jobs := self._next()) is not None:
            if jobs:
                self._answer(jobs)
            if self.service.engine.has_work:
                self._turn()

    def _next(self) -> list[_Job] | None:
        """The requests of the next batch, none where only deferred work is left; None: the end."""
        with self._changed:
            while not (self._waiting or self._closed or self.service.engine.has_work):
                self._changed.wait()
            if self._closed:
                return None
            jobs: list[_Job] = []
            room = MAX_USERS
            while self._waiting and (not jobs or self._waiting[0].num_users <= room):
                job = self._waiting.popleft()
                if not job.future.done():
                    jobs.append(job)
                    room -= job.num_users
            return jobs

    def _answer(self, jobs: list[_Job]) -> None:
        works = []
        for job in jobs:
            try:
                works.append((job, self.service.read(*_arrays(job.request))))
            except ArgumentError as error:  # noqa: PERF203
                job.fail(error)
        try:
            answers = self.service.engine.answer([one for _, work in works for one in work.queries])
        except Exception as error:  # whatever it is, nobody may wait for ever
            if not isinstance(error, LongrecError):
                logger.exception("a batch failed")
            for job, _ in works:
                job.fail(error)
            return
        begin = 0
        for job, work in works:
            end = begin + len(work.queries)
            pending = Pending(work.outputs, answers[begin:end])
            begin = end
            if pending.tickets:
                self._late |= dict.fromkeys(pending.tickets, (job, pending))
            else:
                job.answer(pending.known, work.outputs)

    def _turn(self) -> None:
        try:
            done = self.service.engine.turn()
        except Exception as error:
            logger.exception("deferred work failed")
            self.service.engine.give_up()
            for job, _ in self._late.values():
                job.fail(ServerError(f"deferred work failed: {error}"))
            self._late.clear()
            return
        for ticket, answer in done:
            job, pending = self._late.pop(ticket)
            if pending.settle(ticket, answer):
                job.answer(pending.known, pending.outputs)


@contextlib.contextmanager
def serve_locally(
    run: str | Path, *, config: EngineConfig | None = None, folder: str | Path | None = None, device: str = "cpu"
) -> Iterator[LocalServer]:
    """Serve a run in this process.

    Args:
        run: folder of a checkpoint.
        config: of the engine; `cpu_threads` doesn't count, the process's own settings of torch hold.
        folder: where `event_log` and `rules` lie, unless `config` says otherwise; the folder of a model repository that
            nobody serves meanwhile. None: a temporary one, so that users are forgotten.
        device: torch's name of where it runs.

    Raises:
        LongrecError: the checkpoint, a setting, or the log's folder is unusable.
    """
    with contextlib.ExitStack() as undo:
        base = undo.enter_context(tempfile.TemporaryDirectory(prefix="longrec-local-")) if folder is None else folder
        settings = config or EngineConfig()
        server = LocalServer(Service.open(Path(run), Path(base) / "repository", settings, device))
        undo.callback(server.close)
        yield server


class _Transport:
    """What both transports share.

    Args:
        server: whose engine answers.
        model: the name that the caller gave.
    """

    def __init__(self, server: LocalServer, model: str) -> None:
        self._server, self._model = server, model
        self._futures: set[Future[Outputs]] = set()  # in flight
        self._closed = False

    def _submit(self, request: Request) -> "Future[Outputs]":
        """Never raises: as over a network, what is wrong comes back."""
        if self._closed or self._model != MODEL:
            future: Future[Outputs] = Future()
            future.set_exception(self._cancelled() if self._closed else self._missing())
            return future
        future = self._server.submit(request)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def _open(self, put: Put) -> "_Call":
        return _Call(self._submit, put, self._cancelled())

    def _info(self) -> ModelInfo:
        if self._model != MODEL:
            raise self._missing()
        settings = {name: str(value) for name, value in self._server.service.config.model_dump().items()}
        schema = self._server.service.engine.network.config.features
        if schema.columns:
            settings["schema"] = schema.of_events.to_json()
        return ModelInfo(MODEL, (1,), MAX_USERS, settings)

    def _close(self) -> None:
        self._closed = True
        for future in list(self._futures):
            _fail(future, self._cancelled())

    @property
    def _ready(self) -> bool:
        return self._model == MODEL and not self._server.closed

    def _late(self, seconds: float) -> ServerError:
        details = f"{seconds:.3g} s are over"
        return messages.failure(grpc.StatusCode.DEADLINE_EXCEEDED, details, WHERE, self._model)

    def _cancelled(self) -> ServerError:
        return messages.failure(grpc.StatusCode.CANCELLED, "closed", WHERE, self._model)

    def _missing(self) -> ServerError:
        return messages.failure(grpc.StatusCode.NOT_FOUND, f"it is called {MODEL}", WHERE, self._model)


class _LocalTransport(_Transport):
    """`Transport` to an engine in the process."""

    def infer(self, request: Request, seconds: float) -> Outputs:
        future = self._submit(request)
        try:
            return future.result(seconds)
        except FutureTimeoutError:
            future.cancel()
            raise self._late(seconds) from None

    def is_ready(self, seconds: float) -> bool:
        return self._ready

    def model_info(self, seconds: float) -> ModelInfo:
        return self._info()

    def open(self) -> StreamCall:
        return _LocalCall(self._open)

    def close(self) -> None:
        self._close()


class _AsyncLocalTransport(_Transport):
    """`AsyncTransport` to an engine in the process."""

    async def infer(self, request: Request, seconds: float) -> Outputs:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._submit(request)), seconds)
        except (asyncio.TimeoutError, TimeoutError):
            raise self._late(seconds) from None

    async def is_ready(self, seconds: float) -> bool:
        return self._ready

    async def model_info(self, seconds: float) -> ModelInfo:
        return self._info()

    def open(self) -> AsyncStreamCall:
        return _AsyncLocalCall(self._open)

    async def close(self) -> None:
        self._close()


class _Call:
    """A stream's requests.

    Args:
        submit: begins one.
        put: takes what comes, from any thread: answers; None: the end; an error: the stream was cancelled.
        cancelled: that error.
    """

    def __init__(self, submit: "Callable[[Request], Future[Outputs]]", put: Put, cancelled: ServerError) -> None:
        self._submit, self._put, self._cancelled = submit, put, cancelled
        self._lock = threading.Lock()
        self._futures: set[Future[Outputs]] = set()
        self._finished = False

    def send(self, id: str, request: Request) -> None:
        future = self._submit(request)
        with self._lock:
            self._futures.add(future)
        future.add_done_callback(partial(self._answered, id))

    def finish(self) -> None:
        with self._lock:
            self._finished = True
            if not self._futures:
                self._put(None)

    def cancel(self) -> None:
        self._put(self._cancelled)
        for future in list(self._futures):
            _fail(future, self._cancelled)

    def _answered(self, id: str, future: "Future[Outputs]") -> None:
        error = future.exception()
        self._put(Answer(id, {}, str(error)) if error else Answer(id, future.result()))
        with self._lock:
            self._futures.discard(future)
            if self._finished and not self._futures:
                self._put(None)


class _LocalCall:
    """`StreamCall`."""

    def __init__(self, start: Callable[[Put], _Call]) -> None:
        self._queue: SimpleQueue[Came] = SimpleQueue()
        call = start(self._queue.put)
        self.send, self.finish, self.cancel = call.send, call.finish, call.cancel

    def answers(self) -> Iterator[Answer]:
        while (came := self._queue.get()) is not None:
            if isinstance(came, ServerError):
                raise came
            yield came


class _AsyncLocalCall:
    """`AsyncStreamCall`."""

    def __init__(self, start: Callable[[Put], _Call]) -> None:
        self._queue: asyncio.Queue[Came] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        call = start(lambda came: loop.call_soon_threadsafe(self._queue.put_nowait, came))
        self.send, self.finish, self.cancel = call.send, call.finish, call.cancel

    async def answers(self) -> AsyncIterator[Answer]:
        while (came := await self._queue.get()) is not None:
            if isinstance(came, ServerError):
                raise came
            yield came


def _fail(future: "Future[Outputs]", error: Exception) -> None:
    """Unless it is over already."""
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)


def _arrays(request: Request) -> tuple[Any, Any, Any, str, frozenset[str]]:
    """A request as `Service.read` takes it."""
    data, users = request.inputs[USER].data, []
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        users.append([data[4:end]])
        data = data[end:]
    events, candidates = (
        np.frombuffer(request.inputs[name].data, np.int64).reshape(request.inputs[name].shape)
        for name in (EVENT, CANDIDATE)
    )
    parameters = json.dumps(dict(request.parameters))
    return np.array(users, np.object_), events, candidates, parameters, frozenset(request.outputs)
