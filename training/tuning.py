"""Search for the settings of a training run: trials of it, judged by validation, the hopeless ones stopped early.

The only file that knows optuna. Trials are proposed by TPE (Bergstra et al., 2011) and stopped when a validation lies
below the median of the trials before at that epoch. Test events are never looked at.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from longrec.config import ModelConfig, TrainConfig, parse_config
from longrec.datasets import Dataset, leave_one_out
from longrec.errors import ArgumentError, DataError
from longrec.training.distributed import ALONE
from longrec.training.settings import Settings, sort_settings
from longrec.training.state import fingerprint
from longrec.training.trainer import train

__all__ = ["SPACE", "STUDY", "Found", "TrialRecord", "tune"]

STUDY = "study.db"
STARTUP_TRIALS = 5  # that are drawn at random and run to their end, before any is judged by others

SPACE: Mapping[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(3e-4, 1e-2, log=True),
    "weight_decay": FloatDistribution(1e-3, 0.5, log=True),
    "dropout": FloatDistribution(0.0, 0.6),
    "item_dropout": FloatDistribution(0.0, 0.3),
    "label_smoothing": FloatDistribution(0.0, 0.3),
    "batch_events": CategoricalDistribution((512, 1024, 2048)),
    "sequence_length": CategoricalDistribution((64, 128, 256, 512)),
    "dim": CategoricalDistribution((32, 64, 128)),
    "num_layers": IntDistribution(1, 4),
    "hidden_dim": CategoricalDistribution((64, 128, 256)),
}


class TrialRecord(NamedTuple):
    """A trial that has ended.

    Args:
        number: from 0.
        parameters: that were tried.
        ndcg: best validation NDCG@10; of a stopped trial the last one, None where it had none.
        stopped: whether it was stopped early.
        seconds: that it took.
    """

    number: int
    parameters: Mapping[str, Any]
    ndcg: float | None
    stopped: bool
    seconds: float


class Found(NamedTuple):
    """What a search came to.

    Args:
        best: of `trials`.
        settings: those that were given, and the best trial's.
        trials: all that have ended, in earlier calls too.
    """

    best: TrialRecord
    settings: Settings
    trials: Sequence[TrialRecord]


class _Pruning:
    """Tells optuna of each validation, and ends a trial that it gives up."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def epoch(self, record: Mapping[str, Any], epochs: int) -> None:
        """An epoch has ended."""
        if "validation" in record:
            self.trial.report(record["validation"]["ndcg@10"], record["epoch"])
            if self.trial.should_prune():
                raise optuna.TrialPruned


def tune(
    dataset: Dataset,
    given: Settings,
    folder: Path,
    *,
    search: Sequence[str],
    num_trials: int,
    each: Callable[[TrialRecord], None] = lambda record: None,
) -> Found:
    """Run trials until there are `num_trials`; a search that was stopped goes on, its unfinished trial once more.

    Args:
        dataset: whose validation events judge.
        given: settings that all trials share; `seed` among them is the trials' and the search's.
        folder: gets `study.db` (SQLite).
        search: names of `SPACE`.
        num_trials: that have ended when this returns, those of earlier calls among them.
        each: called after each trial of this call.

    Raises:
        ArgumentError: a name is not of `SPACE` or is given, too; `num_trials` is below 1; `folder` has another search.
        DataError: there is nothing to validate on, or no trial came to its end.
    """
    if num_trials < 1:
        raise ArgumentError(f"trials={num_trials}", "at least 1")
    fixed = {**given.model, **given.train}
    for name in search:
        if name not in SPACE:
            raise ArgumentError(f"search: {name}", f"names of {', '.join(SPACE)}")
        if name in fixed:
            raise ArgumentError(f"search: {name}", "a setting that is not given", f"{name}={fixed[name]}")
    if not search:
        raise ArgumentError("search", f"names of {', '.join(SPACE)}", "none")
    model, config = _configs(dataset, given)
    study = _open(folder, config.seed)
    _check_same(study, {**fingerprint(dataset, model, config, ALONE), "search": sorted(search)}, folder)
    _try_unfinished_again(study)
    space = {name: SPACE[name] for name in search}
    split = leave_one_out(dataset)
    if not len(split.evaluated):
        raise DataError(f"{dataset.name}: expected at least one user with 3 events, to validate on")

    while len(_ended(study)) < num_trials:
        trial = study.ask(space)
        shape, settings = _configs(dataset, sort_settings(trial.params).over(given))
        try:
            trained = train(dataset, split, shape, settings, (_Pruning(trial),))
        except (optuna.TrialPruned, DataError):  # or the loss is no longer finite
            ended = study.tell(trial, state=TrialState.PRUNED)
        else:
            scores = [record["validation"]["ndcg@10"] for record in trained.history if "validation" in record]
            ended = study.tell(trial, max(scores))
        each(_record(ended))
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        raise DataError(
            f"{dataset.name}: expected a trial that comes to its end, all diverged; set a lower learning_rate"
        )
    trials = [_record(trial) for trial in _ended(study)]
    best = _record(study.best_trial)
    return Found(best, sort_settings(best.parameters).over(given), trials)


def _configs(dataset: Dataset, settings: Settings) -> tuple[ModelConfig, TrainConfig]:
    shape = {**settings.model, "num_items": len(dataset.catalogue)}
    return parse_config(ModelConfig, shape, "longrec tune"), parse_config(TrainConfig, settings.train, "longrec tune")


def _open(folder: Path, seed: int) -> optuna.Study:
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{(folder / STUDY).resolve()}",
        study_name="longrec",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
    )
    # drawn anew from where the study is: one that goes on must not propose its first trials again
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=STARTUP_TRIALS, seed=seed + len(study.get_trials(deepcopy=False))
    )
    return study


def _check_same(study: optuna.Study, search: Mapping[str, Any], folder: Path) -> None:
    """A folder is of one search: trials of other data or settings say nothing of these."""
    for name, value in search.items():
        known = study.user_attrs.get(name)
        if known is None:
            study.set_user_attr(name, value)
        elif known != value:
            raise ArgumentError(f"{folder}: {name}", "what the search began with", remedy="name another folder")


def _try_unfinished_again(study: optuna.Study) -> None:
    """Trials of a process that is no more."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params, skip_if_exists=False)


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def _record(trial: FrozenTrial) -> TrialRecord:
    seconds = trial.duration.total_seconds() if trial.duration else 0.0
    return TrialRecord(trial.number, trial.params, trial.value, trial.state is TrialState.PRUNED, seconds)
