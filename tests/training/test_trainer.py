from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, everything, leave_one_out
from longrec.errors import ArgumentError, CheckpointError, DataError
from longrec.training import ProgressBar, TensorBoard, Trained, evaluate, plot_history, ranking_metrics, train

NUM_ITEMS = 11
MODEL = ModelConfig(num_items=NUM_ITEMS, dim=16, num_layers=1, hidden_dim=16, window=16)
CONFIG = TrainConfig(
    sequence_length=16, batch_events=128, epochs=12, learning_rate=0.02, warmup_steps=5, dropout=0.1, weight_decay=0.0
)


def walks(step: int = 3, users: int = 40) -> Dataset:
    """Each user walks round the catalogue with a fixed step from a place of its own: the next item is certain."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(users):
        first = rng.integers(NUM_ITEMS)
        rows += [(f"u{user}", str((first + step * n) % NUM_ITEMS), 1000 * n) for n in range(rng.integers(5, 30))]
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time_ms": pl.Int64}, orient="row")
    return Dataset.from_interactions("walks", frame)


def run(config: TrainConfig = CONFIG, observers: tuple[Any, ...] = ()) -> Trained:
    data = walks()
    return train(data, leave_one_out(data), MODEL, config, observers)


def weights(trained: Trained) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in trained.network.state_dict().values()])


def test_a_certain_next_item_is_learnt() -> None:
    data, trained = walks(), run()
    split = leave_one_out(data)
    ranks = evaluate(trained.network, data, split.evaluated, split.test).numpy()
    assert ranking_metrics(ranks).hr[5] == 1.0
    assert (ranks == 0).mean() > 0.9
    assert trained.history[-1]["loss"] < 0.5 * trained.history[0]["loss"]
    assert trained.events_per_second > 0


def test_a_seed_gives_the_same_weights_and_another_does_not() -> None:
    config = CONFIG.model_copy(update={"epochs": 3, "item_dropout": 0.2, "label_smoothing": 0.1, "max_seconds": 1e6})
    first = run(config)
    torch.rand(5)  # the state of the generator outside must not matter
    assert torch.equal(weights(first), weights(run(config)))
    assert not torch.equal(weights(first), weights(run(config.model_copy(update={"seed": 1}))))


def test_the_generator_outside_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    run(CONFIG.model_copy(update={"epochs": 1}))
    assert torch.equal(torch.rand(3), expected)


def test_the_best_validated_epoch_is_kept() -> None:
    data = walks()
    split = leave_one_out(data)
    trained = run(CONFIG.model_copy(update={"epochs": 7, "validate_every": 2}))
    validated = {
        record["epoch"]: record["validation"]["ndcg@10"] for record in trained.history if "validation" in record
    }
    assert list(validated) == [2, 4, 6, 7]
    assert validated[trained.best_epoch] == max(validated.values())
    ranks = evaluate(trained.network, data, split.evaluated, split.validation).numpy()
    assert ranking_metrics(ranks).ndcg[10] == pytest.approx(validated[trained.best_epoch])


def test_the_start_state_learns_the_first_items() -> None:
    rows = [(f"u{u}", item, 1000 * n) for u in range(40) for n, item in enumerate(["7", *map(str, range(6))])]
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time_ms": pl.Int64}, orient="row")
    data = Dataset.from_interactions("starts", frame)
    model = MODEL.model_copy(update={"num_items": len(data.catalogue)})
    trained = train(data, leave_one_out(data), model, CONFIG.model_copy(update={"epochs": 20}))
    assert int(trained.network.scores(trained.network.start).argmax()) == data.catalogue.index["7"]


def test_time_that_has_run_out_ends_the_run_after_an_epoch() -> None:
    trained = run(CONFIG.model_copy(update={"max_seconds": 1e-3}))
    assert len(trained.history) == trained.best_epoch == 1


def test_what_can_not_be_trained_on_is_refused() -> None:
    data = walks()
    with pytest.raises(ArgumentError, match="num_items=12: expected 11"):
        train(data, leave_one_out(data), MODEL.model_copy(update={"num_items": 12}), CONFIG)
    frame = pl.DataFrame({"user": ["a", "a", "b"], "item": ["1", "2", "1"], "time_ms": [1, 2, 3]})
    short = Dataset.from_interactions("short", frame)
    with pytest.raises(DataError, match="short: expected at least one user with 3 events"):
        train(short, leave_one_out(short), MODEL.model_copy(update={"num_items": 2}), CONFIG)


def test_a_diverging_run_is_stopped() -> None:
    with pytest.raises(DataError, match="no longer finite in epoch 1; lower learning_rate"):
        run(CONFIG.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0}))


def test_observers_see_every_epoch_and_records_become_scalars_and_a_plot(tmp_path: Path) -> None:
    console = Console(record=True, width=120)
    with ProgressBar(console) as bar, TensorBoard(tmp_path / "board") as board:
        trained = run(CONFIG.model_copy(update={"epochs": 3}), (bar, board))
    assert "3/3" in console.export_text()
    assert [path.name.startswith("events.out") for path in (tmp_path / "board").iterdir()] == [True]
    plot_history(trained.history, tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_gets_no_better_ends_early() -> None:
    trained = run(CONFIG.model_copy(update={"epochs": 60, "validate_every": 1, "patience": 3}))
    scores = [record["validation"]["ndcg@10"] for record in trained.history]
    assert len(scores) == trained.best_epoch + 3 < 60
    assert max(scores[-3:]) <= scores[trained.best_epoch - 1] == max(scores)


def test_without_validation_the_last_weights_are_kept() -> None:
    data = walks()
    trained = train(data, everything(data), MODEL, CONFIG.model_copy(update={"epochs": 2}), validated=False)
    assert trained.best_epoch == 2
    assert not any("validation" in record for record in trained.history)
    assert torch.isfinite(weights(trained)).all()


class Stop(Exception):
    """What ends a run in the middle."""


class Stopper:
    """Ends a run after some epochs."""

    def __init__(self, after: int) -> None:
        self.after = after

    def epoch(self, record: Mapping[str, Any], epochs: int) -> None:
        if record["epoch"] == self.after:
            raise Stop


HARD = CONFIG.model_copy(
    update={
        "epochs": 5,
        "item_dropout": 0.1,
        "ema_decay": 0.9,
        "adversarial": 0.1,
        "loss": "sampled_softmax",
        "num_negatives": 5,
        "negative_power": 0.5,
        "patience": 9,
    }
)


@pytest.mark.parametrize("family", ["transformer", "transformer_xl", "gru", "bert4rec"])
@pytest.mark.parametrize("config", [HARD, HARD.model_copy(update={"optimizer": "sgd", "ema_decay": 0.0})])
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(
    family: str, config: TrainConfig, tmp_path: Path
) -> None:
    data, model = walks(), MODEL.model_copy(update={"family": family})
    config = config.model_copy(update={"steps_ahead": 1 if family == "bert4rec" else 3})
    whole = train(data, leave_one_out(data), model, config)
    for after in (1, 4):
        with pytest.raises(Stop):
            train(data, leave_one_out(data), model, config, [Stopper(after)], snapshot=tmp_path / "state")
        torch.rand(3)
    resumed = train(data, leave_one_out(data), model, config, snapshot=tmp_path / "state")
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.best_epoch == whole.best_epoch
    same = ("epoch", "loss", "learning_rate", "validation")
    assert [{name: record.get(name) for name in same} for record in resumed.history] == [
        {name: record.get(name) for name in same} for record in whole.history
    ]


def test_a_snapshot_of_another_run_is_refused(tmp_path: Path) -> None:
    run_it = partial(train, snapshot=tmp_path / "state")
    data = walks()
    run_it(data, leave_one_out(data), MODEL, CONFIG.model_copy(update={"epochs": 1}))
    with pytest.raises(CheckpointError, match="training: expected what the run began with"):
        run_it(data, leave_one_out(data), MODEL, CONFIG.model_copy(update={"epochs": 2}))
    other = walks(users=39)
    with pytest.raises(CheckpointError, match="dataset: expected what the run began with"):
        run_it(other, leave_one_out(other), MODEL, CONFIG.model_copy(update={"epochs": 1}))
    (tmp_path / "state").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="expected the state of a training run"):
        run_it(data, leave_one_out(data), MODEL, CONFIG)
