"""`longrec bench serving` and `longrec bench server` on real servers, in small."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from longrec.catalogue import Catalogue
from longrec.cli.bench import bench_app
from longrec.cli.export import export
from longrec.config import ModelConfig
from longrec.datasets import Dataset
from longrec.modeling import Transformer, save_run
from longrec.server.bench import suite
from longrec.server.process import Server

IDS = [f"item {n}" for n in range(40)]
SHAPE = {
    "echo": {"throughput", "p99_ms"},
    "recommender": {"throughput", "p99_ms", "mean_batch"},
    "ratio_to_echo": None,
    "recompute": None,
    "bulk": {"users_per_second", "attention_bandwidth_share"},
    "long_history": {"ratio"},
    "cold_storm": {"p99_ratio", "answered"},
    "residency": {"bytes_per_idle_user", "int8_bytes_ratio", "int8_ndcg_ratio"},
    "start_seconds": None,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(num_items=40, dim=32, num_heads=4, num_kv_heads=2, hidden_dim=48)
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, Transformer(config), config, Catalogue(IDS, IDS), {})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    indptr = np.arange(0, 301, 15)
    users = [str(user) for user in range(20)]
    folder = tmp_path_factory.mktemp("data")
    Dataset("random", users, Catalogue(IDS, IDS), rng.integers(0, 40, 300), np.arange(300), indptr).save(folder)
    return folder


def invoke(*arguments: object):
    return CliRunner().invoke(bench_app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine with other work
def test_every_part_runs_and_has_its_figures(run, data, tmp_path):
    result = invoke("serving", run, data, "--quick", "--json", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert list(figures) == list(SHAPE)
    for name, keys in SHAPE.items():
        if keys is not None:
            assert figures[name].keys() == keys
            assert all(value > 0 for value in figures[name].values())
    assert figures["ratio_to_echo"] == figures["recommender"]["throughput"] / figures["echo"]["throughput"]
    assert [one["history"] for one in figures["recompute"]] == [128, 512]
    assert all(one["step_ratio"] > 0 and one["throughput_ratio"] > 0 for one in figures["recompute"])
    assert figures["cold_storm"]["answered"] == suite.QUICK.cold_storm.cold_users
    assert figures["residency"]["int8_bytes_ratio"] < 0.5
    assert figures["start_seconds"] > 0
    assert json.loads((tmp_path / "serving.json").read_text())["figures"] == figures
    assert {plot.name for plot in tmp_path.glob("*.png")} == {
        *("targets.png", "echo.png", "recompute.png", "cold_storm.png")
    }


@pytest.mark.server
def test_one_part_alone_prints_its_line(run, data, tmp_path):
    result = invoke("serving", run, data, "--quick", "--only", "long_history", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "latency, long against short" in result.stdout
    assert "users a second" not in result.stdout
    report = json.loads((tmp_path / "serving.json").read_text())
    assert report["figures"]["long_history"]["ratio"] > 0
    assert report["figures"]["echo"] is None
    assert report["seconds"].keys() == {"long_history"}


def test_a_part_that_fails_makes_the_exit_status_1(run, data, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(suite, "measure_bulk", fail)
    result = invoke("serving", run, data, "--only", "bulk", "--json", "--out", tmp_path)
    assert result.exit_code == 1
    assert "bulk: RuntimeError: no such luck" in result.stderr
    assert json.loads(result.stdout)["bulk"] is None
    assert json.loads((tmp_path / "serving.json").read_text())["failures"] == {"bulk": "RuntimeError: no such luck"}


@pytest.mark.server
def test_bench_server_prints_a_row_for_each_concurrency(run, data, tmp_path):
    export(run, tmp_path / "repository")
    with Server(tmp_path / "repository", grpc_port=0, http_port=0, metrics_port=0) as server:
        options = ["server", server.grpc_url, data, "--window-ms", "300", "--json"]
        result = invoke(*options, "--concurrency", "1", "--concurrency", "16")
    rows = json.loads(result.stdout)
    assert [row["concurrency"] for row in rows] == [1, 16]
    assert all(row["throughput"] > 0 and 0 < row["p50_ms"] <= row["p99_ms"] for row in rows)
    assert rows[1]["mean_batch"] > rows[0]["mean_batch"] == 1.0
