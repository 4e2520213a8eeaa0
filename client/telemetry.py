"""OpenTelemetry for a client, as the extra `otel`: a span a call, and metrics. Who doesn't import this pays nothing.

    with Client("127.0.0.1:8001", telemetry=Telemetry()) as client: ...

Spans are called `longrec.recommend` and so on; `recommend_many` has one a batch. Attributes: `longrec.k`,
`longrec.events`, `longrec.users`, `longrec.attempts` (requests sent, those that ask for a log's length included),
`longrec.outcome` (a status, `partial` where some of a batch failed, or an error's class), `server.address` (of the last
attempt). Never a user's key, nor an error's text. The trace goes along with the requests as W3C headers.

| metric | kind | attributes |
| --- | --- | --- |
| `longrec.client.calls` | counter | `longrec.call`, `longrec.outcome` |
| `longrec.client.duration` | histogram, seconds, retries included | `longrec.call`, `longrec.outcome` |
| `longrec.client.retries` | counter | `longrec.call` |
| `longrec.client.in_flight` | up-down counter | `longrec.call` |

What a stream sends isn't a call, and is in none of these.
"""

import time
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from opentelemetry import context, metrics, propagate, trace

from longrec.client.bulk import Batch
from longrec.client.core import Core
from longrec.client.steps import Send, Sleep, Steps
from longrec.client.types import Appended, Events, Items, Options, Prediction, Scored
from longrec.errors import ServerError

__all__ = ["Telemetry"]

T = TypeVar("T")
LIBRARY: Final = "longrec.client"


class Telemetry:
    """Where a client's spans and metrics go; may serve several clients.

    Args:
        tracer_provider, meter_provider: None: the process's own.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(LIBRARY, tracer_provider=tracer_provider)
        meter = metrics.get_meter(LIBRARY, meter_provider=meter_provider)
        self._calls = meter.create_counter("longrec.client.calls", "1", "calls that ended")
        self._duration = meter.create_histogram("longrec.client.duration", "s", "how long calls took")
        self._retries = meter.create_counter("longrec.client.retries", "1", "requests that were sent again")
        self._in_flight = meter.create_up_down_counter("longrec.client.in_flight", "1", "calls that haven't ended")

    def core(self, *arguments: Any, **settings: Any) -> Core:
        """A core whose calls are followed; arguments as `Core`."""
        return _FollowedCore(self, *arguments, **settings)

    def follow(self, name: str, urls: Sequence[str], steps: Steps[T], attributes: dict[str, int]) -> Steps[T]:
        """The same steps, as a span; its parent is whatever is current now."""
        return self._follow(name, urls, steps, attributes, context.get_current())

    def _follow(
        self, name: str, urls: Sequence[str], steps: Steps[T], attributes: dict[str, int], parent: context.Context
    ) -> Steps[T]:
        call = {"longrec.call": name}
        span = self._tracer.start_span(f"longrec.{name}", parent, trace.SpanKind.CLIENT, attributes)
        headers: dict[str, str] = {}
        propagate.inject(headers, trace.set_span_in_context(span, parent))
        self._in_flight.add(1, call)
        began, attempts, outcome = time.monotonic(), 0, ""
        try:
            step = next(steps)
            while True:
                if isinstance(step, Send):
                    attempts += 1
                    span.set_attribute("server.address", urls[step.server])
                    step = step._replace(request=step.request._replace(headers=tuple(headers.items())))
                elif isinstance(step, Sleep):  # before each retry
                    self._retries.add(1, call)
                try:
                    value = yield step
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(value)
        except StopIteration as end:
            result: T = end.value
            outcome = _outcome(result)
            return result
        except BaseException as error:
            outcome = type(error).__name__
            span.set_status(trace.StatusCode.ERROR, outcome)
            raise
        finally:
            span.set_attribute("longrec.attempts", attempts)
            span.set_attribute("longrec.outcome", outcome)
            span.end()
            self._in_flight.add(-1, call)
            ended = {**call, "longrec.outcome": outcome}
            self._calls.add(1, ended)
            self._duration.record(time.monotonic() - began, ended)


class _FollowedCore(Core):
    """`Core`; arguments are still checked before anything begins, and a call that they end is none."""

    def __init__(self, telemetry: Telemetry, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._telemetry = telemetry

    def recommend(self, user: str, events: Events, k: int, *others: Any) -> Steps[Prediction]:
        return self._call("recommend", super().recommend(user, events, k, *others), k=k, events=len(events))

    def score(self, user: str, candidates: Items, events: Events, options: Options | None) -> Steps[Scored]:
        steps = super().score(user, candidates, events, options)
        return self._call("score", steps, k=len(candidates), events=len(events))

    def append(self, user: str, events: Events) -> Steps[Appended]:
        return self._call("append", super().append(user, events), events=len(events))

    def history_length(self, user: str) -> Steps[int]:
        return self._call("history_length", super().history_length(user), events=0)

    def _batch(self, batch: Batch, deadline: float) -> Steps[list[Prediction | ServerError]]:
        steps = super()._batch(batch, deadline)
        return self._call("recommend_many", steps, k=batch.k, users=len(batch.users), events=batch.num_events)

    def _call(self, name: str, steps: Steps[T], **counts: int) -> Steps[T]:
        attributes = {f"longrec.{count}": value for count, value in {"users": 1, **counts}.items()}
        return self._telemetry.follow(name, self.fleet.urls, steps, attributes)


def _outcome(result: object) -> str:
    if isinstance(result, (Prediction, Appended)):
        return result.status.name.lower()
    failed = isinstance(result, list) and any(isinstance(one, ServerError) for one in result)
    return "partial" if failed else "ok"
