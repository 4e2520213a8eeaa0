"""Which rates are measured, and what is found, for servers whose latency is a formula."""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from longrec.errors import ArgumentError
from longrec.server.loadbench.point import Point
from longrec.server.loadbench.report import as_dict, sentences, table, write_report
from longrec.server.loadbench.search import PRECISION, Limit, Results, find_rate, measure_all


def queue(rate: float, cold: float = 0.0, capacity: float = 1000.0) -> Point:
    """A queue with one server: latencies are exponential, with mean 1 / (capacity - rate)."""
    own = capacity * (1 - cold)
    if rate >= own:
        return Point(rate, cold, 5000, 0.1, 1 - cold, "overloaded")
    quantiles = (np.arange(5000) + 0.5) / 5000
    return Point(rate, cold, 5000, 0.1, 1 - cold, "ok", rate, -np.log1p(-quantiles) / (own - rate))


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.9])
def test_the_highest_rate_is_found_within_the_precision(percentile: float):
    true = 1000 + np.log(1 - percentile / 100) / 0.020
    found = find_rate(queue, 0.0, Limit(20.0, percentile))
    assert found.rate is not None
    assert found.broken is not None
    assert found.rate <= 1.01 * true  # of 5,000 latencies, percentiles are a little off
    assert found.broken.offered >= 0.99 * true
    assert found.broken.offered <= PRECISION * found.rate


def test_a_first_rate_that_breaks_the_limit_finds_nothing():
    found = find_rate(queue, 0.0, Limit(20.0), first=900.0)
    assert found.rate is None
    assert found.broken is not None
    assert found.broken.offered == 900


def test_the_search_ends_at_the_highest_rate():
    found = find_rate(lambda rate, cold: queue(rate, cold, 1e9), 0.0, Limit(20.0), highest=750.0)
    assert (found.rate, found.broken) == (750.0, None)


def test_too_few_requests_for_the_percentile_are_an_error():
    few = Point(10.0, 0.0, 50, 0.1, 1.0, "ok", 10.0, np.full(50, 0.001))
    assert np.isnan(few.percentile_ms(99))
    assert few.percentile_ms(98) == pytest.approx(1.0)
    with pytest.raises(ArgumentError, match="expected at least 100 requests a point"):
        Limit(20.0).keeps(few)


@pytest.mark.parametrize(("limit", "message"), [((0.0, 99.0), "milliseconds=0.0"), ((20.0, 100.0), "percentile=100.0")])
def test_limits_that_limit_nothing_are_named(limit, message):
    with pytest.raises(ArgumentError, match=message):
        Limit(*limit)


@pytest.fixture
def results() -> Results:
    return measure_all(queue, rates=[100.0, 2000.0], colds=[0.0, 0.5], limit=Limit(20.0))


def test_every_share_has_its_rates_and_its_search(results: Results):
    assert [(point.offered, point.cold) for point in results.points if point.offered in (100, 2000)][:3] == [
        (100.0, 0.0),
        (2000.0, 0.0),
        (100.0, 0.0),  # where the search begins
    ]
    warm, mixed = results.found
    assert warm.rate is not None
    assert mixed.rate is not None
    assert warm.rate > 2 * mixed.rate
    assert "0% cold, p99 within 20 ms: 7" in next(sentences(results))


def test_a_refused_point_has_no_figures_anywhere(results: Results, tmp_path: Path):
    path = write_report(tmp_path / "new", results)
    report = json.loads(path.read_text())
    assert report == json.loads(json.dumps(as_dict(results)))
    refused = next(point for point in report["points"] if point["verdict"] == "overloaded")
    assert [refused[name] for name in ("throughput", "p50_ms", "p99_ms", "p99.9_ms")] == [None] * 4
    assert (tmp_path / "new" / "load.png").stat().st_size > 10_000
    out = StringIO()
    Console(file=out, width=120).print(table(results.points))
    (row,) = (line for line in out.getvalue().splitlines() if " 2,000 " in line and " 0% " in line)
    assert row.split() == ["2,000", "0%", "-", "100.0%", "-", "-", "-", "0.1", "overloaded"]


def test_a_late_sender_is_named_as_what_broke_the_limit():
    late = Point(800.0, 0.0, 5000, 9.0, 1.0, "late")
    (found,) = measure_all(lambda *_: late, rates=(), colds=[0.0], limit=Limit(20.0)).found
    (said,) = sentences(Results([late], [found], Limit(20.0)))
    assert "no rate was found; at 800: the sender itself was 9.0 ms late" in said
