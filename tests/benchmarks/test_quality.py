"""What is chosen by whom in `benchmarks/quality.py`; RecTools itself runs in the benchmark alone."""

import sys
from pathlib import Path

import numpy as np
import pytest
from qualitybench import large_catalogue
from qualitybench.rivals import WORKER, Rival, check_rectools, write_interactions
from qualitybench.runs import Record, rows, run_ours, run_rival

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import leave_one_out
from longrec.datasets.synthetic import make_drift
from longrec.errors import MachineError


def record(model: str, source: str, seed: int, ndcg: float) -> Record:
    metrics = {"ndcg@10": ndcg, "hr@10": 2 * ndcg, "mrr": ndcg}
    return Record(model, source, seed, metrics, metrics, [ndcg], 1, 1, 2.0, 100)


def test_rows_are_means_over_seeds_best_first() -> None:
    found = rows([record("a", "theirs", 0, 0.1), record("a", "longrec", 0, 0.2), record("a", "theirs", 1, 0.2)])
    assert [(row["source"], row["seeds"]) for row in found] == [("longrec", 1), ("theirs", 2)]
    assert found[1]["ndcg@10"] == pytest.approx(0.15)
    assert found[1]["events_per_second"] == 50.0


class Scripted(Rival):
    """A network whose validation is best after the second of three epochs."""

    def __init__(self) -> None:
        self.trained, self.tested = 0, list[int]()

    def epoch(self) -> dict[str, float]:
        self.trained += 1
        return {"seconds": 2.0, "cpu_seconds": 3.0, "events": 10}

    def ranks(self, event: str) -> np.ndarray:
        if event == "test":
            self.tested.append(self.trained)
        return np.full(4, {1: 5, 2: 0, 3: 3}[self.trained])


def test_the_validation_event_chooses_the_rivals_epoch() -> None:
    rival = Scripted()
    found = run_rival(rival, "sasrec", "theirs", 0, epochs=3, validate_every=1)
    assert (found.best_epoch, found.test["ndcg@10"], found.epochs) == (2, 1.0, 3)
    assert (found.train_seconds, found.events) == (6.0, 30)
    assert 3 not in rival.tested  # the test event of a worse epoch is not looked at


def test_ours_is_the_recipe_on_the_same_split() -> None:
    data = make_drift(40, 1000, num_items=60)
    model = ModelConfig(num_items=60, dim=16, num_layers=1)
    found = run_ours(data, leave_one_out(data), "small", model, TrainConfig(epochs=2, seed=3))
    assert (found.source, found.seed, found.epochs, len(found.curve)) == ("longrec", 3, 2, 1)
    assert 0.0 <= found.test["ndcg@10"] <= found.test["hr@10"] <= 1.0
    assert found.events == 2 * (1000 - 3 * 40)


def test_the_arrays_hold_the_split(tmp_path: Path) -> None:
    data = make_drift(20, 400, num_items=60)
    split = leave_one_out(data)
    write_interactions(data, split, tmp_path)
    part, user = np.load(tmp_path / "part.npy"), np.load(tmp_path / "user.npy")
    assert np.flatnonzero(part == 1).tolist() == split.validation.tolist()
    assert np.flatnonzero(part == 2).tolist() == split.test.tolist()
    assert user[split.test].tolist() == split.evaluated.tolist()


def test_a_python_without_rectools_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"expected a Python with rectools; .*pip install"):
        check_rectools(Path(sys.executable))
    data = make_drift(20, 400, num_items=60)
    write_interactions(data, leave_one_out(data), tmp_path)
    with (
        pytest.raises(MachineError, match=r"worker ended at 'epoch'; it says why in .*sasrec-0\.log"),
        Rival(Path(sys.executable), "sasrec", tmp_path, seed=0, threads=1) as rival,
    ):
        rival.epoch()
    assert "No module named" in (tmp_path / "sasrec-0.log").read_text()


def test_nothing_beside_the_worker_hides_what_it_imports() -> None:
    beside = {path.stem for path in WORKER.parent.glob("*.py")}
    assert not beside & {"lightning_fabric", "numpy", "pandas", "rectools", "torch"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_step_over_a_million_items_stays_under_2_gb() -> None:
    figures = large_catalogue.measure()
    assert figures["step_events"] == large_catalogue.STEP_EVENTS
    assert figures["peak_bytes"] < 2e9
