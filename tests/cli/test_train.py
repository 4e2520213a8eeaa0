"""`longrec train` beyond its plain form: settings, a run that is killed and resumed, pretraining, several processes."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from longrec.checkpoint import load_checkpoint
from longrec.errors import ArgumentError

Longrec = Callable[..., str]  # the fixture


SMALL = ("--dim", 8, "--layers", 1, "--batch-events", 64, "--learning-rate", 0.02, "--set", "warmup_steps=5")


def made(longrec: Longrec, folder: Path, name: str, users: range, items: int, step: int = 2) -> Path:
    rows = [f"u{u},i{(u + step * n) % items},{100 * n}" for u in users for n in range(6 + u % 5)]
    (folder / f"{name}.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    longrec("data", "import", folder / f"{name}.csv", "--out", folder / name)
    return folder / name


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, longrec: Longrec) -> Path:
    return made(longrec, tmp_path_factory.mktemp("data"), "orders", range(30), 9)


def command(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name("longrec")), "train", *map(str, arguments)]


def epochs_in(snapshot: Path) -> int:
    """Finished epochs; 0 while there is no snapshot."""
    if not snapshot.exists():
        return 0
    with safe_open(snapshot, "np") as file:
        done: int = json.loads(file.metadata()["record"])["budget"]["done"]
        return done


def test_a_run_that_is_killed_and_resumed_has_the_weights_of_one_that_is_not(
    dataset: Path, tmp_path: Path, longrec: Longrec
) -> None:
    options = (*SMALL, "--epochs", 60, "--set", "ema_decay=0.9", "--set", "validate_every=7", "--seed", 5)
    longrec("train", dataset, "--out", tmp_path / "whole", *options)
    process = subprocess.Popen(command(dataset, "--out", tmp_path / "killed", *options), stdout=subprocess.DEVNULL)
    snapshot = tmp_path / "killed" / "state.safetensors"
    while (done := epochs_in(snapshot)) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert 3 <= done < 60
    assert not (tmp_path / "killed" / "weights.safetensors").exists()
    figures = json.loads(longrec("train", "--resume", tmp_path / "killed", "--json"))
    assert figures["epochs"] == 60
    whole, resumed = (tmp_path / name / "weights.safetensors" for name in ("whole", "killed"))
    assert resumed.read_bytes() == whole.read_bytes()
    assert not snapshot.exists()
    with pytest.raises(ArgumentError, match="a run that was stopped, got one that is finished"):
        longrec("train", "--resume", tmp_path / "killed")
    with pytest.raises(ArgumentError, match="--resume: expected no other option"):
        longrec("train", dataset, "--resume", tmp_path / "killed")
    with pytest.raises(ArgumentError, match=r"a run folder with run\.json"):
        longrec("train", "--resume", tmp_path)


def test_options_go_before_settings_of_a_file(dataset: Path, tmp_path: Path, longrec: Longrec) -> None:
    (tmp_path / "best.json").write_text(
        json.dumps({"model": {"dim": 8, "num_layers": 1}, "train": {"loss": "gbce", "epochs": 9, "dropout": 0.5}})
    )
    config = ("--config", tmp_path / "best.json")
    longrec("train", dataset, "--out", tmp_path / "run", *config, "--epochs", 1, "--set", "num_negatives=3")
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    training = written["training"]["config"]
    assert [training[name] for name in ("loss", "epochs", "dropout", "num_negatives")] == ["gbce", 1, 0.5, 3]
    assert written["model"]["dim"] == 8
    for text, message in (
        ("lose=gbce", "--set lose: expected one of adversarial, ahead_decay, batch_events"),
        ("loss", "--set loss: expected NAME=VALUE"),
        ("loss=hinge", "loss: expected 'softmax', "),
    ):
        with pytest.raises(ArgumentError, match=message):
            longrec("train", dataset, "--set", text)
    (tmp_path / "best.json").write_text('{"modle": {}}')
    with pytest.raises(ArgumentError, match='expected objects "model" and "train"'):
        longrec("train", dataset, *config)


def test_pretrained_weights_are_fine_tuned_on_another_catalogue(
    dataset: Path, tmp_path: Path, longrec: Longrec
) -> None:
    """The second data set lacks two of the items, has three others, and comes in another order."""
    longrec("train", dataset, "--out", tmp_path / "wide", *SMALL, "--epochs", 2, "--pretrain")
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["training"]["validation"] is None
    rows = [f"u{u},i{11 - (u + n) % 10},{100 * n}" for u in range(12) for n in range(5)]
    (tmp_path / "new.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    longrec("data", "import", tmp_path / "new.csv", "--out", tmp_path / "new")
    begin = ("--from", tmp_path / "wide", "--learning-rate", 1e-12, "--set", "weight_decay=0", "--epochs", 1)
    longrec("train", tmp_path / "new", "--out", tmp_path / "tuned", *begin)
    old, new = (load_file(tmp_path / name / "weights.safetensors") for name in ("wide", "tuned"))
    ids = [_ids(tmp_path / name) for name in ("wide", "tuned")]
    shared = set(ids[0]) & set(ids[1])
    assert 0 < len(shared) < len(ids[1])
    for item in ids[1]:
        row = new["items.weight"][ids[1].index(item)]
        if item in shared:
            assert row == pytest.approx(old["items.weight"][ids[0].index(item)], abs=1e-6)
        else:
            assert 0 < abs(row).max() < 0.2
    assert new["items.weight"][-1] == pytest.approx(old["items.weight"][-1], abs=1e-6)
    assert new["blocks.0.qkv.weight"] == pytest.approx(old["blocks.0.qkv.weight"], abs=1e-6)
    with pytest.raises(ArgumentError, match="dim=16: expected dim=8"):
        longrec("train", tmp_path / "new", *begin, "--dim", 16)


def _ids(run: Path) -> list[str]:
    from longrec.catalogue import Catalogue

    return list(Catalogue.load(run / "catalogue.parquet").ids)


def test_torchrun_trains_one_network(dataset: Path, tmp_path: Path, longrec: Longrec) -> None:
    options = (*SMALL, "--epochs", 2, "--dropout", 0, "--set", "item_dropout=0", "--set", "optimizer=sgd")
    longrec("train", dataset, "--out", tmp_path / "one", *options)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    subprocess.run([*torchrun, *command(dataset, "--out", tmp_path / "two", *options)], check=True, capture_output=True)
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, expected in one.items():
        assert two[name] == pytest.approx(expected, abs=1e-6), name


@pytest.mark.parametrize(
    ("options", "expected"),
    [((), False), (("--repeats",), True), (("--repeats", "--family", "gru"), True)],
    ids=str,
)
def test_repeats_are_learned_where_they_are_asked_for(
    tmp_path: Path, dataset: Path, options: tuple[str, ...], expected: bool, longrec: Longrec
) -> None:
    longrec("train", dataset, "--out", tmp_path / "run", *SMALL, "--epochs", 1, *options)
    assert load_checkpoint(tmp_path / "run").config.repeats is expected
