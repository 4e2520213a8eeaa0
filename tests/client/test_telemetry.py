"""OpenTelemetry of a client, with the SDK's exporters in memory, over a real gRPC connection."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from longrec.client import ArgumentError, AsyncClient, Client, Event, RejectedError
from longrec.client.telemetry import Telemetry

SECRET = "a-user-nobody-may-see"


class Seen:
    """What was exported."""

    def __init__(self) -> None:
        self._spans, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.telemetry = Telemetry(self.tracers, MeterProvider([self._reader]))

    def spans(self) -> list[Any]:
        return list(self._spans.get_finished_spans())

    def metric(self, name: str) -> dict[tuple[str, ...], Any]:
        """Points by the values of their attributes."""
        data = self._reader.get_metrics_data()
        found = [
            metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == f"longrec.client.{name}"
        ]
        return {tuple(map(str, (p.attributes or {}).values())): p for one in found for p in one.data.data_points}


@pytest.fixture
def seen() -> Seen:
    return Seen()


def abort_once(servicer: Any, code: grpc.StatusCode) -> Callable[..., Any]:
    def fault(request: Any, context: Any) -> Any:
        del servicer.faults[SECRET]
        context.abort(code, f"{SECRET}: not now")

    return fault


def test_a_call_is_a_span_and_counted(url: str, servicer: Any, seen: Seen) -> None:
    servicer.logs[SECRET] = []
    with Client(url, telemetry=seen.telemetry) as client:
        client.recommend(user=SECRET, events=[Event(3, 1000, 0), Event(4, 2000, 1)], k=7)
        client.recommend(user=SECRET, events=[Event(3, 1000, 5)], k=7)
        client.append(user=SECRET, events=[Event(5, 3000, 2)])
        client.score(user=SECRET, candidates=[1, 2, 3])
        assert client.history_length(user=SECRET) == 3
        with pytest.raises(ArgumentError):
            client.recommend(user=SECRET, k=0)
    assert [span.name for span in seen.spans()] == [
        *("longrec.recommend", "longrec.recommend", "longrec.append", "longrec.score", "longrec.history_length")
    ]
    first, second = seen.spans()[:2]
    assert dict(first.attributes) == {
        "longrec.k": 7,
        "longrec.events": 2,
        "longrec.users": 1,
        "longrec.attempts": 1,
        "longrec.outcome": "ok",
        "server.address": url,
    }
    assert (first.kind, second.attributes["longrec.outcome"]) == (trace.SpanKind.CLIENT, "gap")
    calls = {key: point.value for key, point in seen.metric("calls").items()}
    assert calls == {
        ("recommend", "ok"): 1,
        ("recommend", "gap"): 1,
        ("append", "ok"): 1,
        ("score", "ok"): 1,
        ("history_length", "ok"): 1,
    }
    assert {key: point.count for key, point in seen.metric("duration").items()} == calls
    assert {point.value for point in seen.metric("in_flight").values()} == {0}
    assert seen.metric("retries") == {}


def test_retries_and_failures(url: str, servicer: Any, seen: Seen) -> None:
    with Client(url, telemetry=seen.telemetry) as client:
        servicer.faults[SECRET] = abort_once(servicer, grpc.StatusCode.INTERNAL)
        client.recommend(user=SECRET)
        servicer.faults[SECRET] = abort_once(servicer, grpc.StatusCode.INVALID_ARGUMENT)
        with pytest.raises(RejectedError):
            client.recommend(user=SECRET)
    again, failed = seen.spans()
    assert (again.attributes["longrec.attempts"], again.attributes["longrec.outcome"]) == (2, "ok")
    assert (failed.attributes["longrec.outcome"], failed.status.status_code) == (
        "RejectedError",
        trace.StatusCode.ERROR,
    )
    assert {key: point.value for key, point in seen.metric("retries").items()} == {("recommend",): 1}
    assert set(seen.metric("calls")) == {("recommend", "ok"), ("recommend", "RejectedError")}
    assert SECRET not in "".join(span.to_json() for span in seen.spans())


def test_a_batch_is_a_span_below_the_callers_also_from_other_threads(url: str, servicer: Any, seen: Seen) -> None:
    servicer.faults["bad"] = lambda request, context: "no"
    errors: list[Any] = []
    with Client(url, telemetry=seen.telemetry) as client, seen.tracers.get_tracer("test").start_span("outer") as outer:
        requests = [*((f"u{n}", [Event(n, 1000)]) for n in range(5)), ("bad", [])]
        with trace.use_span(outer):
            assert len(list(client.recommend_many(requests, k=2, batch_size=3, errors=errors))) == 5
    batches = [span for span in seen.spans() if span.name == "longrec.recommend_many"]
    assert {span.parent.span_id for span in batches} == {outer.get_span_context().span_id}
    described = [[span.attributes[f"longrec.{name}"] for name in ("users", "events", "outcome")] for span in batches]
    assert sorted(described) == [[3, 2, "partial"], [3, 3, "ok"]]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
def test_the_trace_goes_along(url: str, servicer: Any, seen: Seen, asynchronous: bool) -> None:
    sent: list[str] = []

    def note(request: Any, context: Any) -> Any:
        sent.append(dict(context.invocation_metadata())["traceparent"])
        return servicer.answer(SECRET, request)

    async def ask() -> None:
        async with AsyncClient(url, telemetry=seen.telemetry) as client:
            await client.recommend(user=SECRET)

    servicer.faults[SECRET] = note
    if asynchronous:
        asyncio.run(ask())
    else:
        with Client(url, telemetry=seen.telemetry) as client:
            client.recommend(user=SECRET)
    (span,) = seen.spans()
    assert sent == [f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"]


def test_a_cancelled_call_ends_its_span(url: str, servicer: Any, seen: Seen) -> None:
    async def ask() -> None:
        async with AsyncClient(url, telemetry=seen.telemetry) as client:
            task = asyncio.ensure_future(client.recommend(user=SECRET))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(ask())
    (span,) = seen.spans()
    assert span.attributes["longrec.outcome"] == "CancelledError"
    assert {point.value for point in seen.metric("in_flight").values()} == {0}
