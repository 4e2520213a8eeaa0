"""The road from a file of interactions to figures, through the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from longrec.errors import ArgumentError, DataError
from longrec.modeling import FAMILIES

Longrec = Callable[..., str]  # the fixture


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, longrec: Longrec) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = [f"u{user},i{(user + 2 * n) % 9},{100 * n}" for user in range(30) for n in range(6 + user % 5)]
    (folder / "orders.csv").write_text("who,what,when\n" + "\n".join(rows) + "\n")
    (folder / "names.csv").write_text("what,name,made\n" + "".join(f"i{n},Thing {n},199{n}\n" for n in range(9)))
    columns = ("--user", "who", "--item", "what", "--time", "when")
    titles = ("--titles", folder / "names.csv", "--title", "name", "--year", "made")
    shown = longrec("data", "import", folder / "orders.csv", "--out", folder / "orders", *columns, *titles)
    assert "30" in shown
    assert "orders" in shown
    return folder / "orders"


@pytest.fixture(scope="module")
def run(dataset: Path, longrec: Longrec) -> Path:
    out = dataset.parent / "run"
    options = ("--epochs", 4, "--dim", 8, "--layers", 1, "--batch-events", 64, "--learning-rate", 0.02)
    figures = json.loads(longrec("train", dataset, "--out", out, *options, "--json"))
    assert figures["epochs"] == 4
    assert 1 <= figures["best_epoch"] <= 4
    assert figures["validation"]["users"] == 30
    assert figures["events_per_second"] > 0
    return out


def test_a_run_folder_holds_the_checkpoint_and_the_record(run: Path) -> None:
    files = {path.name for path in run.iterdir()}
    assert files >= {
        "weights.safetensors",
        "config.json",
        "catalogue.parquet",
        "history.json",
        "history.png",
        "tensorboard",
    }
    assert len(json.loads((run / "history.json").read_text())) == 4
    assert json.loads((run / "config.json").read_text())["training"]["dataset"] == "orders"


def test_evaluation_reports_both_events_and_agrees_with_training(run: Path, dataset: Path, longrec: Longrec) -> None:
    figures = json.loads(longrec("evaluate", run, dataset, "--json"))
    recorded = json.loads((run / "config.json").read_text())["training"]["validation"]
    assert figures["validation"] == pytest.approx(recorded)
    assert figures["test"]["users"] == 30
    assert f"{figures['test']['ndcg@10']:.4f}" in longrec("evaluate", run, dataset)


def test_groups_are_printed_and_drawn(run: Path, dataset: Path, tmp_path: Path, longrec: Longrec) -> None:
    options = ("--by", "history,popularity,cold", "--cold-events", 6, "--plots", tmp_path)
    found = json.loads(longrec("evaluate", run, dataset, *options, "--json"))
    assert {path.name for path in tmp_path.iterdir()} == {"history.png", "popularity.png", "cold.png"}
    for by in ("history", "popularity"):
        assert sum(group["users"] for group in found["by"][by]) == 30
    cold = found["by"]["cold"][0]
    assert cold["users"] == 12  # of 6 or 7 events, the last of which is the target
    assert cold["metrics"]["mrr"]["low"] <= cold["metrics"]["mrr"]["mean"] <= cold["metrics"]["mrr"]["high"]
    assert 0 < found["lists"]["test"]["coverage@10"] <= 1
    assert "users, <= 6 events" in longrec("evaluate", run, dataset, *options)
    with pytest.raises(ArgumentError, match="--by age: expected one of history, popularity, cold"):
        longrec("evaluate", run, dataset, "--by", "age")
    with pytest.raises(ArgumentError, match="--plots: expected groups"):
        longrec("evaluate", run, dataset, "--plots", tmp_path)


def test_rollouts_are_evaluated_by_step_on_events_that_were_held_out(
    run: Path, dataset: Path, tmp_path: Path, longrec: Longrec
) -> None:
    figures = json.loads(longrec("evaluate", run, dataset, "--horizon", 2, "--json"))
    assert [step["users"] for step in figures["steps"]] == [30, 30]
    assert figures["steps"][0]["ndcg@10"] == pytest.approx(figures["validation"]["ndcg@10"])  # from the same past
    assert json.loads(longrec("evaluate", run, dataset, "--json"))["steps"] == []
    with pytest.raises(ArgumentError, match=r"--horizon 3: expected at most 2, .*; longrec train --held-out 3"):
        longrec("evaluate", run, dataset, "--horizon", 3)
    options = ("--epochs", 1, "--dim", 8, "--layers", 1, "--held-out", 7, "--set", "steps_ahead=3")
    longrec("train", dataset, "--out", tmp_path, *options, "--json")
    figures = json.loads(longrec("evaluate", tmp_path, dataset, "--horizon", 3, "--json"))
    assert [step["users"] for step in figures["steps"]] == [18] * 3  # of 8 events and more
    shown = longrec("evaluate", tmp_path, dataset, "--horizon", 3)
    assert "the newest 3 events of 18 users, rolled out" in shown
    assert f"{figures['steps'][2]['mrr']:.4f}" in shown


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "transformer"])
def test_every_family_is_trained_and_evaluated_and_exported(
    family: str, dataset: Path, tmp_path: Path, longrec: Longrec
) -> None:
    options = ("--epochs", 2, "--dim", 8, "--layers", 1, "--window", 8, "--batch-events", 64, "--family", family)
    options += ("--sequence-length", 3, "--horizon", 3)
    trained = json.loads(longrec("train", dataset, "--out", tmp_path / "run", *options, "--json"))
    assert trained["config"]["sequence_length"] == 3
    model = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    assert (model["family"], model["horizon"]) == (family, 3)
    figures = json.loads(longrec("evaluate", tmp_path / "run", dataset, "--json"))
    assert figures["validation"]["ndcg@10"] == pytest.approx(trained["validation"]["ndcg@10"])
    longrec("export", tmp_path / "run", tmp_path / "repository")
    assert (tmp_path / "repository" / "recommender" / "1" / "model.py").exists()


def test_a_run_is_not_evaluated_on_another_catalogue(run: Path, tmp_path: Path, longrec: Longrec) -> None:
    (tmp_path / "other.csv").write_text("user_id,item_id,timestamp\nu,a,1\nu,b,2\nu,c,3\n")
    longrec("data", "import", tmp_path / "other.csv", "--out", tmp_path / "other")
    with pytest.raises(DataError, match="expected the 9 items"):
        longrec("evaluate", run, tmp_path / "other")


@pytest.mark.parametrize("kind", ["long-range", "purchases", "drift"])
def test_made_data_is_trained_on(tmp_path: Path, kind: str, longrec: Longrec) -> None:
    longrec("data", "make", kind, "--users", 20, "--events", 60, "--distance", 10, "--out", tmp_path / "data")
    options = ("--epochs", 1, "--dim", 8, "--layers", 1)
    assert json.loads(longrec("train", tmp_path / "data", "--out", tmp_path / "run", *options, "--json"))["epochs"] == 1
    with pytest.raises(ArgumentError, match="kind=walks: expected one of long-range"):
        longrec("data", "make", "walks", "--out", tmp_path)


def test_misfit_options_are_named(dataset: Path, tmp_path: Path, longrec: Longrec) -> None:
    with pytest.raises(ArgumentError, match="dim: expected"):
        longrec("train", dataset, "--out", tmp_path, "--dim", 7)
    with pytest.raises(ArgumentError, match="epochs"):
        longrec("train", dataset, "--out", tmp_path, "--epochs", 0)
    with pytest.raises(ArgumentError, match=r"family: expected 'transformer', .* got 'rnn'"):
        longrec("train", dataset, "--out", tmp_path, "--family", "rnn")
    with pytest.raises(DataError, match=r"dataset\.json is missing"):
        longrec("train", tmp_path)
