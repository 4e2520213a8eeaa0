"""The search for settings: what it finds, that it goes on, what it stops, what it refuses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset
from longrec.errors import ArgumentError, DataError
from longrec.training import tuning
from longrec.training.settings import Settings
from longrec.training.tuning import tune

SMALL = Settings({"dim": 8, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "hidden_dim": 16}, {})
TRAIN = {"epochs": 3, "validate_every": 1, "batch_events": 64, "warmup_steps": 2}
GIVEN = SMALL._replace(train=TRAIN)


def walks(events: int = 8) -> Dataset:
    """Users who go from item to the next but one."""
    rows = [(f"u{u}", f"i{(u + 2 * n) % 11}", 1000 * n) for u in range(30) for n in range(events)]
    return Dataset.from_interactions("walks", pl.DataFrame(rows, schema=["user", "item", "time_ms"], orient="row"))


def test_the_best_of_all_trials_is_found_and_its_settings_train_as_well(tmp_path: Path) -> None:
    seen: list[Any] = []
    found = tune(walks(), GIVEN, tmp_path, search=["learning_rate"], num_trials=3, each=seen.append)
    assert list(found.trials) == seen
    assert len(seen) == 3
    assert found.best.ndcg == max(trial.ndcg for trial in found.trials if trial.ndcg is not None)
    assert found.settings == GIVEN._replace(train={**TRAIN, **found.best.parameters})


def test_a_search_goes_on_where_it_was_stopped_and_tries_the_unfinished_trial_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, tried = tuning.train, []

    def interrupted(dataset: Any, split: Any, model: Any, config: Any, observers: Any) -> Any:
        tried.append(config.learning_rate)
        if len(tried) == 2:
            raise KeyboardInterrupt
        return train(dataset, split, model, config, observers)

    monkeypatch.setattr(tuning, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(walks(), GIVEN, tmp_path, search=["learning_rate"], num_trials=3)
    found = tune(walks(), GIVEN, tmp_path, search=["learning_rate"], num_trials=3)
    assert len(found.trials) == 3
    assert tried[2] == tried[1]
    assert len(set(tried)) == 3


def test_a_finished_search_trains_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tune(walks(), GIVEN, tmp_path, search=["dropout"], num_trials=1)
    monkeypatch.setattr(tuning, "train", None)
    assert tune(walks(), GIVEN, tmp_path, search=["dropout"], num_trials=1) == first


def test_a_trial_that_lies_behind_is_stopped_and_never_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, epochs = tuning.train, []

    class Count:
        def epoch(self, record: Mapping[str, Any], of: int) -> None:
            epochs[-1] += 1

    def spoiled(dataset: Any, split: Any, model: Any, config: Any, observers: Any) -> Any:
        epochs.append(0)
        if len(epochs) == 7:  # learns nothing
            config = config.model_copy(update={"learning_rate": 1e-9})
        return train(dataset, split, model, config, (Count(), *observers))

    monkeypatch.setattr(tuning, "train", spoiled)
    given = GIVEN._replace(train={**TRAIN, "epochs": 4, "learning_rate": 0.02})
    found = tune(walks(), given, tmp_path, search=["label_smoothing"], num_trials=7)
    assert found.trials[6].stopped
    assert epochs[6] < 4
    assert found.best.number != 6


def test_a_trial_that_diverges_ends_and_the_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, calls = tuning.train, []

    def diverging(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise DataError("the loss is no longer finite")
        return train(*arguments)

    monkeypatch.setattr(tuning, "train", diverging)
    found = tune(walks(), GIVEN, tmp_path, search=["dropout"], num_trials=2)
    assert found.trials[0].stopped
    assert found.trials[0].ndcg is None
    assert found.best.number == 1


def test_only_diverging_trials_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverging(*arguments: Any) -> Any:
        raise DataError("the loss is no longer finite")

    monkeypatch.setattr(tuning, "train", diverging)
    with pytest.raises(DataError, match="expected a trial that comes to its end"):
        tune(walks(), GIVEN, tmp_path, search=["dropout"], num_trials=1)


def test_another_data_set_or_other_settings_are_refused_in_the_same_folder(tmp_path: Path) -> None:
    tune(walks(), GIVEN, tmp_path, search=["dropout"], num_trials=1)
    for data, given, search, named in (
        (walks(9), GIVEN, ["dropout"], "dataset"),
        (walks(), SMALL, ["dropout"], "training"),
        (walks(), GIVEN, ["item_dropout"], "search"),
    ):
        with pytest.raises(ArgumentError, match=f"{named}: expected what the search began with"):
            tune(data, given, tmp_path, search=search, num_trials=2)


@pytest.mark.parametrize(
    ("search", "num_trials", "message"),
    [
        (["dropout"], 0, "trials=0: expected at least 1"),
        (["warmup"], 1, "search: warmup: expected names of learning_rate"),
        ([], 1, "search: expected names of"),
        (["batch_events"], 1, "search: batch_events: expected a setting that is not given"),
    ],
)
def test_what_is_refused(tmp_path: Path, search: list[str], num_trials: int, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        tune(walks(), GIVEN, tmp_path / "study", search=search, num_trials=num_trials)
    assert not (tmp_path / "study").exists()


def test_nothing_to_validate_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one user with 3 events"):
        tune(walks(2), GIVEN, tmp_path, search=["dropout"], num_trials=1)


def test_every_range_is_of_a_setting() -> None:
    assert tuning.SPACE.keys() <= {*TrainConfig.model_fields, *ModelConfig.model_fields}
