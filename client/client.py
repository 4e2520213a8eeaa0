"""`Client`: one call, one answer. Many users at once are `stream.py`'s; tensors the codec's; gRPC the transport's."""

import math
import re
from collections.abc import Sequence
from types import TracebackType

from longrec.client.codec import DEFAULTS, check_k, decode_appended, decode_prediction, encode
from longrec.client.stream import Stream
from longrec.client.transport import Transport
from longrec.client.types import Appended, Events, Options, Prediction
from longrec.errors import ArgumentError
from longrec.protocol import DEFAULT_K, MODEL

__all__ = ["Client"]


class Client:
    """A connection to a server of model `recommender`.

        with Client("127.0.0.1:8001") as client:
            prediction = client.recommend(user="u1", events=[Event(item=3, time_ms=1_700_000_000_000)], k=10)

    Safe to share between threads. Every call ends within `timeout_seconds`. What the server says about a user's log
    comes back as a result, a `Status.GAP` included: look at `.status` where events carry positions. What fails raises.

    Args:
        url: host:port of the server's gRPC service; it is connected to by the first call.
        model: name of the model.
        timeout_seconds: deadline of every call, and of every request on a stream.

    Raises:
        ArgumentError: an argument doesn't fit.
    """

    def __init__(self, url: str = "127.0.0.1:8001", *, model: str = MODEL, timeout_seconds: float = 30.0) -> None:
        if not isinstance(url, str) or not re.fullmatch(r"([^\s/:]+|\[[0-9a-fA-F:]+\]):\d{1,5}", url):
            raise ArgumentError(f"url={url!r}", "host:port of the server's gRPC service, such as 127.0.0.1:8001")
        if not isinstance(model, str) or not model:
            raise ArgumentError(f"model={model!r}", "the name of a model")
        if not isinstance(timeout_seconds, (int, float)) or not 0 < timeout_seconds < math.inf:
            raise ArgumentError(f"timeout_seconds={timeout_seconds!r}", "a number of seconds > 0")
        self._transport = Transport(url, model, float(timeout_seconds))

    def recommend(
        self,
        *,
        user: str,
        events: Events = (),
        k: int = DEFAULT_K,
        candidates: Sequence[int] | None = None,
        options: Options | None = None,
    ) -> Prediction:
        """Append a user's new events and rank what comes next.

        Args:
            user: the user's key, 1..256 bytes of UTF-8; a new one starts an empty log.
            events: new events, oldest first; none: only ask.
            k: items wanted, 1..256 (the server's model parameter max_k may be lower).
            candidates: catalogue indices to rank, at least one; None: the whole catalogue.
            options: rollouts, what to leave out, explanations; None: a plain ranking.

        Raises:
            ArgumentError: an argument doesn't fit; nothing was sent.
            RejectedError: the server refused the request; its log is as it was.
            ServerError: it failed, can't be reached, was too slow, or answered garbage. Whether the events are in the
                log is unknown; sending them again is harmless where they carry positions.
        """
        check_k(k)
        request = encode(user, events, k=k, candidates=candidates, options=options or DEFAULTS)
        return decode_prediction(request, self._transport.infer(request))

    def append(self, *, user: str, events: Events) -> Appended:
        """Append a user's new events, at least one, and rank nothing.

        Raises:
            As `recommend`.
        """
        request = encode(user, events, k=None)
        if not len(events):
            raise ArgumentError("events", "at least one", got="none", remedy="history_length only asks")
        return decode_appended(request, self._transport.infer(request))

    def history_length(self, *, user: str) -> int:
        """Events in the user's log; 0 for a user the server has never heard of.

        Raises:
            As `recommend`.
        """
        request = encode(user, k=None)
        return decode_appended(request, self._transport.infer(request)).length

    def is_ready(self) -> bool:
        """Whether the server answers and calls the model ready; False where it can't be reached.

        Raises:
            ServerError: what answers there isn't a Triton server, or denies access.
        """
        return self._transport.is_ready()

    def stream(self, *, k: int = DEFAULT_K, max_in_flight: int = 256) -> Stream:
        """Open a stream for many users; a context manager. A client may have several.

            with client.stream(k=10) as stream:
                for prediction in stream.map([("u1", events_1), ("u2", events_2)]): ...

        Args:
            k: items wanted of each prediction, 1..256.
            max_in_flight: requests sent and not yet read, at most; 1..65536.

        Raises:
            ArgumentError: an argument doesn't fit.
        """
        check_k(k)
        if not isinstance(max_in_flight, int) or not 1 <= max_in_flight <= 65_536:
            raise ArgumentError(f"max_in_flight={max_in_flight!r}", "an integer in 1..65536")
        timeout_seconds = self._transport.timeout_seconds
        return Stream(self._transport, k=k, max_in_flight=max_in_flight, timeout_seconds=timeout_seconds)

    def close(self) -> None:
        """Close the connection; what is in flight is cancelled. Harmless when repeated."""
        self._transport.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()
