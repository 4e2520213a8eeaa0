"""Figures, targets and files, from results that no clock has seen."""

import json
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from longrec.kernels.bench.attention_bandwidth import AttentionTime
from longrec.server.bench.bulk import BulkResult
from longrec.server.bench.cold_storm import StormResult
from longrec.server.bench.echo import EchoResult
from longrec.server.bench.long_history import LongHistoryResult
from longrec.server.bench.plots import draw_plots
from longrec.server.bench.recompute import HistoryResult, Step
from longrec.server.bench.report import Judged, figures, judge, table, write_report
from longrec.server.bench.residency import ResidencyResult
from longrec.server.bench.start import StartResult
from longrec.server.bench.suite import Results
from longrec.server.perf_analyzer import PerfResult


def perf(throughput: float, p99_ms: float) -> PerfResult:
    return PerfResult(32, throughput, 1.0, 2.0, 3.0, p99_ms, 0.5, 0.5, mean_batch=12.0)


def storm() -> StormResult:
    """100 quiet requests of 10 ms, 100 of 20 ms in a storm, and a slow one right behind it that belongs to neither."""
    quiet = np.stack((np.linspace(0, 0.99, 100), np.full(100, 0.010)), axis=1)
    inside = np.stack((np.linspace(1, 1.99, 100), np.full(100, 0.020)), axis=1)
    return StormResult(100.0, np.concatenate((quiet, inside, [[2.1, 5.0]])), ((1.0, 2.0),), answered=64)


@pytest.fixture
def results() -> Results:
    return Results(
        echo=EchoResult((perf(4000, 20), perf(1, 999), perf(4100, 21)), (perf(3000, 30), perf(2900, 32), perf(9, 900))),
        recompute=(
            HistoryResult(128, Step(0.002, 0.001), Step(0.030, 0.029), Step(0.020, 0.019), 1500, 500),
            HistoryResult(2048, Step(0.002, 0.001), Step(0.300, 0.299), Step(0.200, 0.199), 1400, 35),
        ),
        bulk=BulkResult((21_000.0, 19_000.0, 22_000.0), 130.0, AttentionTime(1, 8.0, 36.0, 9.0, 18.0, 5.0)),
        long_history=LongHistoryResult(0.004, 0.005),
        cold_storm=storm(),
        residency=ResidencyResult(500.0, {"float32": 1024.0, "int8": 288.0}, {"float32": 0.08, "int8": 0.076}),
        start=StartResult((5.0, 9.0, 4.0)),
    )


def test_figures_are_medians_and_ratios_under_the_promised_keys(results):
    assert figures(results) == {
        "echo": {"throughput": 4000, "p99_ms": 21},
        "recommender": {"throughput": 2900, "p99_ms": 32, "mean_batch": 12},
        "ratio_to_echo": 2900 / 4000,
        "recompute": [
            {
                "history": 128,
                "step_ratio": pytest.approx(15),
                "step_ratio_pruned": pytest.approx(10),
                "throughput_ratio": 3,
            },
            {
                "history": 2048,
                "step_ratio": pytest.approx(150),
                "step_ratio_pruned": pytest.approx(100),
                "throughput_ratio": 40,
            },
        ],
        "bulk": {"users_per_second": 21_000, "attention_bandwidth_share": 0.5},
        "long_history": {"ratio": 1.25},
        "cold_storm": {"p99_ratio": pytest.approx(2), "answered": 64},
        "residency": {
            "bytes_per_idle_user": 500,
            "int8_bytes_ratio": 288 / 1024,
            "int8_ndcg_ratio": pytest.approx(0.95),
        },
        "start_seconds": 5,
    }


def test_what_misses_its_target_is_named(results):
    missed = {(one.part, one.name) for one in judge(figures(results), cold_users=64) if one.missed}
    assert missed == {
        ("recompute", "throughput ratio, history 2048"),
        ("bulk", "attention, share of read bandwidth"),
        ("residency", "int8 NDCG@10, of float32's"),
    }
    assert ("cold_storm", "cold users answered rightly") in {
        (one.part, one.name) for one in judge(figures(results), cold_users=65) if one.missed
    }


def test_the_echos_own_latency_sets_the_limit(results):
    found = figures(results)
    found["recommender"]["p99_ms"] = 42.1  # echo: 21
    assert any(one.missed and "p99" in one.name for one in judge(found, cold_users=64))


def test_what_did_not_run_is_null_and_meets_or_misses_nothing():
    found = figures(Results())
    assert set(found.values()) == {None}
    assert list(found) == list(figures(Results(start=StartResult((1.0,)))))
    judged = judge(found, cold_users=64)
    assert not any(one.missed or one.share for one in judged)


@pytest.mark.parametrize(
    ("judged", "missed", "share"),
    [
        (Judged("p", "n", 2.0, 1.0), False, 2.0),
        (Judged("p", "n", 1.0, 2.0), True, 0.5),
        (Judged("p", "n", 1.0, 2.0, at_least=False), False, 2.0),
        (Judged("p", "n", 4.0, 2.0, at_least=False), True, 0.5),
        (Judged("p", "n", float("nan"), 2.0), True, None),
        (Judged("p", "n", 4.0), False, None),
    ],
    ids=str,
)
def test_judged(judged, missed, share):
    assert judged.missed == missed
    assert share is None or judged.share == share


def test_report_table_and_plots(results, tmp_path):
    results.failures["bulk"] = "ServerError: no answer"
    judged = judge(figures(results), cold_users=64)
    path = write_report(tmp_path / "out", results, judged, quick=True)
    report = json.loads(path.read_text())
    assert report["figures"] == json.loads(json.dumps(figures(results)))
    assert "recompute: throughput ratio, history 2048" in report["missed"]
    assert report["quick"] is True
    assert report["details"]["cold_storm"]["storm_p99_ms"] == pytest.approx(20)
    assert report["details"]["echo"]["recommender"][0]["throughput"] == 3000
    drawn = draw_plots(path.parent, results, judged)
    assert {plot.name for plot in drawn} == {"targets.png", "echo.png", "recompute.png", "cold_storm.png"}
    assert all(plot.stat().st_size > 5000 for plot in drawn)
    shown = StringIO()
    Console(width=120, file=shown).print(table(judged, results.failures))
    lines = shown.getvalue().splitlines()
    assert any("users a second" in line and "21,000" in line and "20,000" in line and "ok" in line for line in lines)
    assert sum("missed" in line for line in lines) == 3
    assert any("bulk" in line and "failed" in line for line in lines)


def test_nothing_is_drawn_of_nothing(tmp_path):
    assert draw_plots(tmp_path, Results(), judge(figures(Results()), cold_users=64)) == []
