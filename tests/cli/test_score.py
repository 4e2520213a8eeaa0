"""`longrec score`: the answers of an engine that was told the same, in shards that a stopped run leaves whole."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from longrec.catalogue import Catalogue
from longrec.cli.main import app
from longrec.client import Client, Event
from longrec.config import EngineConfig, ModelConfig
from longrec.errors import ArgumentError, DataError, LongrecError
from longrec.modeling import build_network, save_run
from longrec.python_backend.local import serve_locally
from longrec.schema import EventCategory, Schema
from longrec.training.offline import Job, Scorer, begin, run_here

ITEMS, USERS, K, SHARD = 50, 25, 5, 10


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "repeats"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, with the term for items seen lately or without, and users of 0 to 24 events: longer than the receptive
    field, some of items that the catalogue lacks."""
    folder = tmp_path_factory.mktemp("score")
    torch.manual_seed(0)
    config = ModelConfig(num_items=ITEMS, dim=16, num_layers=2, hidden_dim=32, window=6, repeats=request.param)
    ids = [f"item {item}" for item in range(ITEMS)]
    network = build_network(config)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)  # so that scores differ
        if network.repeats:
            network.repeats.table.normal_()
    save_run(folder / "run", network, config, Catalogue(ids, ids), {})
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        items = [f"item {item}" for item in rng.integers(0, ITEMS + 3, user)]
        times = (1_700_000_000_000 + np.sort(rng.integers(0, 10**9, user))).tolist()
        rows.append({"user": f"u{user}", "items": items, "times_ms": times})
    schema = {"user": pl.String, "items": pl.List(pl.String), "times_ms": pl.List(pl.Int64)}
    pl.DataFrame(rows, schema=schema).write_parquet(folder / "users.parquet")
    return folder


def score(folder: Path, out: Path, *options: object) -> dict[str, float]:
    command = ["score", folder / "run", folder / "users.parquet", out, "--k", K, "--shard-users", SHARD, "--json"]
    done = CliRunner().invoke(app, [str(part) for part in (*command, *options)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def read(out: Path) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(path) for path in sorted(out.glob("part-*.parquet")))


def test_the_answers_are_those_of_an_engine(folder: Path, tmp_path: Path) -> None:
    figures = score(folder, tmp_path / "out")
    assert (figures["users"], figures["shards"], figures["skipped"]) == (USERS, 3, 0)
    scored = read(tmp_path / "out")
    engine = EngineConfig(memory_bytes=1 << 20, log_bytes=1 << 20)
    users = pl.read_parquet(folder / "users.parquet")
    known = {f"item {item}": item for item in range(ITEMS)}
    with serve_locally(folder / "run", config=engine) as local, Client(transport=local.transport) as client:
        for row, found in zip(users.iter_rows(named=True), scored.iter_rows(named=True), strict=True):
            pairs = zip(row["items"], row["times_ms"], strict=True)
            events = [Event(known.get(item, ITEMS), time) for item, time in pairs]
            expected = client.recommend(user=row["user"], events=events, k=K)
            assert found["user"] == row["user"]
            assert found["items"] == [f"item {item}" for item in expected.items]
            np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-5)


def test_a_stopped_run_goes_on_and_another_job_is_refused(folder: Path, tmp_path: Path) -> None:
    score(folder, tmp_path / "out")
    whole = read(tmp_path / "out")
    (tmp_path / "out" / "part-000001.parquet").unlink()
    kept = (tmp_path / "out" / "part-000000.parquet").stat().st_mtime_ns
    figures = score(folder, tmp_path / "out")
    assert (figures["users"], figures["shards"], figures["skipped"]) == (SHARD, 1, 2)
    assert (tmp_path / "out" / "part-000000.parquet").stat().st_mtime_ns == kept
    assert read(tmp_path / "out").equals(whole)
    with pytest.raises(ArgumentError, match="expected an empty folder, or one of the same job, got another k"):
        score(folder, tmp_path / "out", "--k", 7)


def test_a_shard_that_fails_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(folder / "run", folder / "users.parquet", tmp_path, K, SHARD)
    begin(job)
    write = pl.DataFrame.write_parquet

    def cut_off(self: pl.DataFrame, path: Path) -> None:
        write(self, path)
        raise OSError("disk full")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", cut_off)
    with pytest.raises(OSError, match="disk full"):
        Scorer(job).score(0)
    assert not list(tmp_path.glob("part-*"))


@pytest.mark.slow
@pytest.mark.parametrize("folder", [True], ids=["repeats"], indirect=True)
@pytest.mark.timeout(600)  # Ray starts ten processes before the first of ours
def test_ray_answers_the_same(folder: Path, tmp_path: Path) -> None:
    """On this machine's cores: two workers, three shards, one of them there already."""
    score(folder, tmp_path / "here")
    score(folder, tmp_path / "ray")
    for number in (0, 2):
        (tmp_path / "ray" / f"part-00000{number}.parquet").unlink()
    command = [Path(sys.executable).with_name("longrec"), "score", folder / "run", folder / "users.parquet"]
    command += [tmp_path / "ray", "--engine", "ray", "--workers", 2, "--k", K, "--shard-users", SHARD, "--json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["users"], figures["shards"], figures["skipped"]) == (SHARD + 5, 2, 1)
    assert read(tmp_path / "ray").equals(read(tmp_path / "here"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"user": ["a"], "items": [["x"]]}, "expected columns user, items and times_ms, times_ms missing"),
        (
            {"user": ["a", "b"], "items": [["x"], ["x"]], "times_ms": [[1], [1, 2]]},
            "row 1: expected a user, and as many",
        ),
        ({"user": ["a", None], "items": [["x"], ["x"]], "times_ms": [[1], [1]]}, "row 1: expected a user"),
        ({"user": ["a"], "items": [["x", None]], "times_ms": [[1, 2]]}, "without nulls"),
        ({"user": ["a"], "items": [3], "times_ms": [[1]]}, "expected text, a list and a list"),
    ],
)
def test_bad_tables_are_refused_with_their_row(folder: Path, tmp_path: Path, rows: dict, message: str) -> None:
    pl.DataFrame(rows, strict=False).write_parquet(tmp_path / "users.parquet")
    job = Job(folder / "run", tmp_path / "users.parquet", tmp_path / "out")
    with pytest.raises(DataError, match=message):
        run_here(job, range(begin(job)), print)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "spark"), "--engine spark: expected local or ray"),
        (("--address", "a:1"), "--address: expected --engine ray"),
        (("--k", 0), "k=0: expected 1..256"),
        (("--engine", "ray", "--workers", 0), "workers=0: expected at least 1"),
    ],
)
def test_misfit_options_are_named(folder: Path, tmp_path: Path, options: tuple[object, ...], message: str) -> None:
    with pytest.raises(LongrecError, match=message):
        score(folder, tmp_path / "out", *options)


def test_a_run_with_features_of_events_is_refused(tmp_path: Path) -> None:
    features = Schema(event={"action": EventCategory(kind="category", values=("view", "buy"))})
    config = ModelConfig(num_items=2, dim=8, num_layers=1, hidden_dim=8, features=features)
    save_run(tmp_path / "run", build_network(config), config, Catalogue(["a", "b"], ["a", "b"]), {})
    pl.DataFrame({"user": ["u"], "items": [["a"]], "times_ms": [[1]]}).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(ArgumentError, match=r"expected one without features of events, .* got action"):
        begin(Job(tmp_path / "run", tmp_path / "users.parquet", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
