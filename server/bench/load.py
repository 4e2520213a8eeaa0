"""Requests of many users at once, and two ways to keep a server busy with them: so many in flight, or so many a second.

Messages are made before they are timed, and sent as they are: the client shares the machine with the server. The
KServe v2 messages that tritonclient generates are used as they stand, for `Client` has no bulk requests.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from longrec.errors import ServerError
from longrec.protocol import CANDIDATE, EVENT, EVENT_COLUMNS, ITEMS, MODEL, NO_ITEM, SCORES, STATE, USER, Status
from longrec.server.bench.material import History

__all__ = ["Bulk", "Channel", "SteadyLoad", "answered_a_second", "bulk_request", "fill", "read_bulk"]

UNLIMITED: Final = 2**31 - 1  # bytes of a message; gRPC's default of 4 MiB is less than a bulk request
TIMEOUT_SECONDS: Final = 120.0
MAX_USERS: Final = 256  # of a request: the server's largest batch
FILL_EVENTS: Final = 1 << 16  # cells of EVENT in a request of `fill`: 1.5 MB
MAX_EVENTS: Final = 2048  # of a user in one request: EngineConfig.max_events_per_request


class Bulk(NamedTuple):
    """What came back for a request of B users.

    Args:
        items: [B, k] int64. scores: [B, k] float32. lengths: [B] int64, of their logs.
    """

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    lengths: NDArray[np.int64]


class Channel:
    """A connection of raw messages; a context manager.

    Args:
        url: host:port of the server's gRPC endpoint.
    """

    def __init__(self, url: str) -> None:
        options = (("grpc.max_send_message_length", UNLIMITED), ("grpc.max_receive_message_length", UNLIMITED))
        self._channel = grpc.insecure_channel(url, options=options)
        self._infer = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelInfer

    def send(self, message: Any) -> Any:
        """A future of the answer's message."""
        return self._infer.future(message, timeout=TIMEOUT_SECONDS)

    def close(self) -> None:
        """Close the connection; what is in flight is cancelled."""
        self._channel.close()

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def bulk_request(
    users: Sequence[str], events: Sequence[NDArray[np.int64]], *, k: int | None = 10, model: str = MODEL
) -> Any:
    """A request of B users, each with some events.

    Args:
        users: B keys.
        events: B arrays [n, 3] as the wire has them; shorter ones are padded.
        k: items wanted; None: only STATE.
        model: the model's name.
    """
    longest = max(len(rows) for rows in events)
    cells = np.full((len(users), longest, len(EVENT_COLUMNS)), NO_ITEM, np.int64)
    for row, rows in zip(cells, events, strict=True):
        row[: len(rows)] = rows
    keys = [user.encode() for user in users]
    inputs = (
        (USER, "BYTES", (len(users), 1), b"".join(len(key).to_bytes(4, "little") + key for key in keys)),
        (EVENT, "INT64", cells.shape, cells.tobytes()),
        (CANDIDATE, "INT64", (len(users), 0), b""),
    )
    message = service_pb2.ModelInferRequest(
        model_name=model,
        inputs=[{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape, _ in inputs],
        outputs=[{"name": name} for name in ((STATE,) if k is None else (ITEMS, SCORES, STATE))],
        raw_input_contents=[data for *_, data in inputs],
    )
    if k is not None:
        message.parameters["k"].int64_param = k
    return message


def read_bulk(future: Any) -> Bulk:
    """Wait for an answer and read it.

    Raises:
        ServerError: the request failed, was too slow, or one of its users' events were refused.
    """
    try:
        answer = future.result()
    except grpc.RpcError as error:
        raise ServerError(f"a request of the benchmark: {error.code().name}: {error.details()}") from None
    arrays: dict[str, NDArray[Any]] = {}
    for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True):
        dtype = np.float32 if output.datatype == "FP32" else np.int64
        arrays[output.name] = np.frombuffer(data, dtype).reshape(list(output.shape))
    state = arrays[STATE]
    if (state[:, 0] != Status.OK).any():
        raise ServerError(f"a request of the benchmark: expected status 0, got {int(state[:, 0].max())}")
    none = np.empty((len(state), 1, 0))
    items, scores = arrays.get(ITEMS, none.astype(np.int64)), arrays.get(SCORES, none.astype(np.float32))
    return Bulk(items[:, 0], scores[:, 0], state[:, 1])


def fill(
    url: str, users: Sequence[str], histories: Sequence[History], *, warm: bool = True, model: str = MODEL
) -> None:
    """Put histories into a server's logs, and into its memory.

    Args:
        url: host:port of the server's gRPC endpoint.
        users: keys, without events yet. histories: theirs.
        warm: ask for each of them too, so that they have a memory.
        model: the model's name.

    Raises:
        ServerError: the server failed, or holds events of these users already.
    """
    lengths = [len(history) for history in histories]
    batch = max(1, min(MAX_USERS, FILL_EVENTS // min(MAX_EVENTS, max(lengths))))
    with Channel(url) as channel:
        for begin in range(0, len(users), batch):
            part = slice(begin, begin + batch)
            rows = [np.column_stack((np.arange(len(history)), history)) for history in histories[part]]
            for start in range(0, max(lengths[part]), MAX_EVENTS):
                cut = [own[start : start + MAX_EVENTS] for own in rows]
                read_bulk(channel.send(bulk_request(users[part], cut, k=None, model=model)))
            if warm:
                nothing = [own[:0] for own in rows]
                answer = read_bulk(channel.send(bulk_request(users[part], nothing, k=1, model=model)))
                if answer.lengths.tolist() != lengths[part]:
                    raise ServerError(f"{url}: expected logs of the histories just sent, got others; use fresh keys")


def answered_a_second(
    url: str, messages: Sequence[Any], *, in_flight: int, window_seconds: float, windows: int = 3
) -> list[float]:
    """Send the messages round and round, so many in flight; requests answered a second in each of the windows.

    Raises:
        ServerError: a request failed.
    """
    finished: SimpleQueue[Any] = SimpleQueue()
    times: list[float] = []
    sent = 0
    with closing(Channel(url)) as channel:

        def send() -> None:
            nonlocal sent
            channel.send(messages[sent % len(messages)]).add_done_callback(finished.put)
            sent += 1

        began = time.perf_counter() + window_seconds / 2  # the first answers meet a server that idled
        until = began + windows * window_seconds
        for _ in range(in_flight):
            send()
        left = in_flight
        while left:
            try:
                future = finished.get(timeout=TIMEOUT_SECONDS)
            except Empty:
                raise ServerError(f"{url}: expected an answer within {TIMEOUT_SECONDS:g} s, got none") from None
            read_bulk(future)
            times.append(time.perf_counter())
            if times[-1] < until:
                send()
            else:
                left -= 1
    edges = began + window_seconds * np.arange(windows + 1)
    counts, _ = np.histogram(times, edges)
    return [float(count) / window_seconds for count in counts]


class SteadyLoad:
    """A thread that sends so many requests a second, whether or not the server keeps up; a context manager.

    A request's latency counts from the moment at which it was due, so that a wait of the sender's isn't forgotten.

    Args:
        url: host:port of the server's gRPC endpoint.
        messages: sent round and round.
        rate: requests a second.
        read: what to do with each answer; it may raise.
    """

    def __init__(
        self, url: str, messages: Sequence[Any], rate: float, read: Callable[[Any], object] = read_bulk
    ) -> None:
        self._url, self._messages, self._rate, self._read = url, messages, rate, read
        self._samples: list[tuple[float, float]] = []
        self._failures: list[BaseException] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="steady load", daemon=True)

    def samples(self) -> NDArray[np.float64]:
        """[n, 2] of what was answered: when it was due (`time.perf_counter`), and its latency in seconds.

        Raises:
            ServerError: a request failed.
        """
        if self._failures:
            raise self._failures[0]
        return np.array(sorted(self._samples), np.float64).reshape(-1, 2)

    def __enter__(self) -> "SteadyLoad":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        flight = threading.Semaphore(0)
        sent = 0
        with closing(Channel(self._url)) as channel:
            began = time.perf_counter()
            while not self._stop.is_set() and not self._failures:
                due = began + sent / self._rate
                wait = due - time.perf_counter()
                if wait > 0:
                    time.sleep(wait)
                future = channel.send(self._messages[sent % len(self._messages)])
                future.add_done_callback(self._noting(due, flight))
                sent += 1
            for _ in range(sent):
                flight.acquire(timeout=TIMEOUT_SECONDS)

    def _noting(self, due: float, flight: threading.Semaphore) -> Callable[[Any], None]:
        def note(future: Any) -> None:
            self._samples.append((due, time.perf_counter() - due))
            try:
                self._read(future)
            except Exception as error:
                self._failures.append(error)
            flight.release()

        return note
