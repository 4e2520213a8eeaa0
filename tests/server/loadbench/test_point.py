"""Rates on a real server: what was asked, what its counts say, what is refused."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from longrec.cli.bench import bench_app
from longrec.errors import ArgumentError, ServerError
from longrec.server.bench.material import Target, serving
from longrec.server.loadbench.point import Load, LoadPlan
from longrec.server.process import Server

PLAN = LoadPlan(users=40, k=5, seconds=1.0, settle_seconds=0.2, max_lag_ms=1e4)  # the machine may have other work

pytestmark = pytest.mark.server


def make(server: Server, material, plan=PLAN, network=None) -> Load:
    return Load(Target(server.grpc_url, server.metrics_url, material.dataset, network), plan)


def test_a_point_has_the_load_and_the_hit_rate_that_were_asked_for(server, material):
    load = make(server, material, network=material.network)
    warm = load.measure(150.0)
    assert (warm.verdict, warm.hit_rate) == ("ok", 1.0)
    assert 0 < warm.requests < 150 * 1.5
    assert len(warm.latencies) == warm.requests
    assert 0 < warm.percentile_ms(50) <= warm.percentile_ms(99)
    assert 0 < warm.throughput < 300
    mixed = load.measure(150.0, 0.4)
    assert 0.4 < mixed.hit_rate < 0.8
    assert load.measure(50.0, 1.0).hit_rate == 0.0


def test_a_sender_that_was_late_has_no_figures(server, material):
    plan = LoadPlan(users=5, seconds=0.3, settle_seconds=0.0, max_lag_ms=1e-6)
    point = make(server, material, plan).measure(100.0)
    assert point.verdict == "late"
    assert not len(point.latencies)
    assert point.as_dict()["throughput"] is None
    assert point.lag_ms > 0


def test_answers_of_other_weights_are_refused(server, material):
    other = material.with_window(material.network.config.window).network
    with torch.no_grad():
        other.norm.weight.mul_(1.1)
    with pytest.raises(ServerError, match="expected the scores of a recompute"):
        make(server, material, network=other).measure(100.0)


def test_the_metrics_of_nobody_are_named(server, material):
    with pytest.raises(ServerError, match=r"http://127\.0\.0\.1:1/metrics: expected the server's metrics"):
        Load(Target(server.grpc_url, "http://127.0.0.1:1/metrics", material.dataset, None), PLAN)


def test_the_command_sweeps_and_finds_and_writes(server, dataset_folder, tmp_path):
    arguments = [
        *("load", dataset_folder, "--url", server.grpc_url, "--metrics-url", server.metrics_url, "--json"),
        *("--rate", 60, "--cold", 0, "--cold", 0.5, "--seconds", 0.5, "--settle-seconds", 0, "--users", 20),
        *("--max-lag-ms", 10_000, "--limit-ms", 0.001, "--percentile", 50, "--out", tmp_path),
    ]
    done = CliRunner().invoke(bench_app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "load.json").read_text())
    assert [(point["offered"], point["cold"]) for point in report["points"]] == [
        *((60.0, 0.0), (100.0, 0.0)),
        *((60.0, 0.5), (100.0, 0.5)),
    ]
    assert [found["rate"] for found in report["found"]] == [None, None]  # nothing answers in a microsecond
    assert (tmp_path / "load.png").is_file()


@pytest.mark.parametrize(("url", "run"), [(None, None), ("127.0.0.1:1", "run")])
def test_either_a_server_or_a_run(url, run, dataset_folder):
    with (
        pytest.raises(ArgumentError, match="url, run: expected one of them"),
        serving(dataset_folder, url=url, run=run),
    ):
        pass


def test_plans_and_rates_that_measure_nothing_are_named(server, material):
    with pytest.raises(ArgumentError, match="seconds=0: expected more than 0"):
        LoadPlan(seconds=0)
    with pytest.raises(ArgumentError, match="settle_seconds=-1: expected 0 or more"):
        LoadPlan(settle_seconds=-1)
    with pytest.raises(ArgumentError, match="rate=nan: expected requests a second"):
        make(server, material).measure(np.nan)
