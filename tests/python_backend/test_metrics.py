"""What is published equals what was observed, and at no moment would a scrape find what Prometheus can't read."""

from longrec.python_backend.metrics import COUNTERS, GAUGES, HISTOGRAMS, EngineMetrics
from longrec.python_backend.observations import Histogram, Observations

Labels = tuple[tuple[str, str], ...]


class Server:
    """Holds series as the server does, as doubles that are added to. A counter doesn't fall, a name keeps its text."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, Labels], float] = {}
        self.texts: dict[str, str] = {}
        self.calls = 0

    def counter(self, name: str, text: str, labels: dict[str, str]) -> "Series":
        return self._make(name, text, labels, falls=False)

    def gauge(self, name: str, text: str, labels: dict[str, str]) -> "Series":
        return self._make(name, text, labels, falls=True)

    def _make(self, name: str, text: str, labels: dict[str, str], falls: bool) -> "Series":
        assert self.texts.setdefault(name, text) == text
        key = (name, tuple(labels.items()))
        assert key not in self.values
        self.values[key] = 0.0
        return Series(self, key, falls)

    def buckets(self, name: str) -> dict[str, float]:
        return {labels[0][1]: value for (family, labels), value in self.values.items() if family == f"{name}_bucket"}


class Series:
    def __init__(self, server: Server, key: tuple[str, Labels], falls: bool) -> None:
        self.server, self.key, self.falls = server, key, falls

    def increment(self, value: float) -> None:
        assert value > 0 or self.falls
        self.server.calls += 1
        self.server.values[self.key] += value
        if self.key[0].endswith("_bucket"):
            values = list(self.server.buckets(self.key[0].removesuffix("_bucket")).values())
            assert values == sorted(values), "a bucket holds what the smaller ones hold"


def test_every_field_has_a_series() -> None:
    assert sorted(COUNTERS) == sorted(Observations.names(int))
    assert sorted(GAUGES) == sorted(Observations.names(float))
    assert sorted(HISTOGRAMS) == sorted(Observations.names(Histogram))


def test_values_arrive() -> None:
    server, seen = Server(), Observations()
    metrics = EngineMetrics(lambda: seen, counter=server.counter, gauge=server.gauge)
    for turn in range(50):
        seen.queries += turn
        seen.note_request("gap", 0.1 * turn)
        seen.note_request("ok", 1e-3)
        seen.log_lag_seconds = 0.1 * (turn % 7)
        seen.deferred_depth = float(turn % 3)
        seen.step_events.observe(turn)
        metrics.publish()
    assert server.values["longrec_queries_total", ()] == sum(range(50))
    assert server.values["longrec_requests_total", (("outcome", "gap"),)] == 50
    assert server.values["longrec_requests_total", (("outcome", "error"),)] == 0
    assert abs(server.values["longrec_log_lag_seconds", ()] - seen.log_lag_seconds) < 1e-12
    assert server.values["longrec_deferred_depth", ()] == seen.deferred_depth
    assert server.values["longrec_step_events_sum", ()] == sum(range(50))
    assert server.values["longrec_step_events_count", ()] == 50
    assert server.buckets("longrec_step_events")["16"] == 17
    assert server.buckets("longrec_step_events")["+Inf"] == 50
    assert server.buckets("longrec_request_seconds")["1"] == 50 + 11


def test_what_has_not_changed_costs_nothing() -> None:
    server, seen = Server(), Observations()
    metrics = EngineMetrics(lambda: seen, counter=server.counter, gauge=server.gauge)
    seen.note_request("invalid", 0.1)
    metrics.publish()
    calls = server.calls
    metrics.publish()
    assert server.calls == calls > 0


def test_the_thread_publishes_by_itself_and_a_last_time() -> None:
    server, seen = Server(), Observations()
    metrics = EngineMetrics(lambda: seen, counter=server.counter, gauge=server.gauge).start()
    seen.queries += 3
    metrics.close()
    assert server.values["longrec_queries_total", ()] == 3
