"""What `Client` and `AsyncClient` share: everything but the waiting. Arguments become deliveries here."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np

from longrec.client.codec import DEFAULTS, MAX_K, check_k, encode_user, option_parameters, prepare
from longrec.client.connection import Connection, Retry, Tls, check_model, check_seconds, check_urls
from longrec.client.delivery import Delivery
from longrec.client.fleet import Fleet
from longrec.client.ledger import Ledger
from longrec.client.retrying import Budget
from longrec.client.types import Event, Events, Options, Prediction, Scored
from longrec.errors import ArgumentError, DeadlineError, ServerError

__all__ = ["PROBE_SECONDS", "Core", "failed", "logger"]

logger = logging.getLogger("longrec.client")
PROBE_SECONDS: Final = 0.5  # between two looks at servers that are down, and the longest look: one second


class Core:
    """A client's state and the checks of its arguments. Arguments as `Client`."""

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
        self.ledger = Ledger(check_seconds("resend_seconds", resend_seconds))

    def recommend(
        self,
        user: str,
        events: Events,
        k: int,
        horizon: int | None,
        exclude: Sequence[int] | None,
        explain: int | None,
        candidates: Sequence[int] | None,
        options: Options | None,
    ) -> Delivery:
        """A call's delivery, checked."""
        check_k(k)
        given = {"horizon": horizon, "exclude": exclude, "explain": explain}
        given = {name: value for name, value in given.items() if value is not None}
        chosen = options or DEFAULTS
        if given:
            chosen = dataclasses.replace(chosen, **given)  # type: ignore[arg-type]
        return self.deliver(user, events, k=k, candidates=candidates, options=chosen)

    def append(self, user: str, events: Events) -> Delivery:
        """Events without a question."""
        delivery = prepare(user, events, k=None)
        if not len(events):
            raise ArgumentError("events", "at least one", got="none", remedy="history_length only asks")
        return Delivery(self.ledger, delivery, number=self.number)

    def ask_length(self, user: str) -> Delivery:
        """A question without events; sends what is owed."""
        return self.deliver(user, k=None)

    def deliver(self, user: str, events: Events = (), **arguments: Any) -> Delivery:
        """A delivery of `codec.prepare`'s arguments."""
        return Delivery(self.ledger, prepare(user, events, **arguments), number=self.number)

    def score(
        self, user: str, candidates: Sequence[int], events: Events, options: Options | None
    ) -> tuple[Delivery, list[Delivery]]:
        """Deliveries that score candidates, at most `MAX_K` each: the first has the events."""
        chosen = options or DEFAULTS
        if chosen.horizon != 1 or chosen.explain:
            raise ArgumentError("options", "neither a horizon nor explain with score", remedy="ask recommend")
        whole = prepare(user, events, k=1, candidates=candidates, options=chosen).candidates
        indices = np.frombuffer(whole.data, np.int64)
        parts = [indices[start : start + MAX_K] for start in range(0, len(indices), MAX_K)]
        first, *rest = (
            self.deliver(user, events if at == 0 else (), k=len(part), candidates=part, options=chosen)
            for at, part in enumerate(parts)
        )
        return first, rest

    @staticmethod
    def scored(user: str, candidates: Sequence[int], parts: Sequence[Prediction]) -> Scored:
        """The parts of `score`, put together."""
        known = {item: score for part in parts for item, score in zip(part.items.tolist(), part.scores, strict=True)}
        indices = np.array(candidates, np.int64)
        scores = np.array([known.get(item, -np.inf) for item in indices.tolist()], np.float32)
        indices.flags.writeable = scores.flags.writeable = False
        return Scored(user, indices, scores, max(part.position for part in parts))

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
            option_parameters(options)
        if not isinstance(max_in_flight, int) or not 1 <= max_in_flight <= 65_536:
            raise ArgumentError(f"max_in_flight={max_in_flight!r}", "an integer in 1..65536")
        return options or DEFAULTS

    def check_many(self, k: int, options: Options | None, batch_size: int, in_flight: int) -> Options:
        """Arguments of `recommend_many`."""
        chosen = self.check_stream(k, 1, options)
        for name, value, most in (("batch_size", batch_size, 256), ("in_flight", in_flight, 64)):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ArgumentError(f"{name}={value!r}", f"an integer in 1..{most}")
        return chosen

    def deadline(self) -> float:
        """Of a call that begins now, by `time.monotonic()`."""
        return time.monotonic() + self.timeout_seconds

    def attempt_seconds(self, deadline: float) -> float:
        """What an attempt may take.

        Raises:
            DeadlineError: no time is left.
        """
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"no answer in time ({self.timeout_seconds} s)")
        return left if self.retry.attempt_seconds is None else min(left, self.retry.attempt_seconds)


def failed(delivery: Delivery, error: ServerError) -> ServerError:
    """The error of one delivery of several that failed together; the delivery is told."""
    own = error if error.user in (None, delivery.user) else type(error)(str(error))
    delivery.fail(own)
    own.user = delivery.user
    return own
