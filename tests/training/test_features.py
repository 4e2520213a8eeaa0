"""Features in training: what is declared is learnt, and carries items that nobody has met."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from longrec.catalogue import Catalogue
from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, leave_one_out
from longrec.errors import ArgumentError
from longrec.modeling import load_run, recompute_scores, save_run
from longrec.modeling.new_items import add_items
from longrec.schema import EventCategory, ItemCategories, Schema
from longrec.training import evaluate, train

GROUPS, PLACES = 6, 8  # items 0..47: item i is in group i % 6
CONFIG = TrainConfig(
    sequence_length=16, batch_events=256, epochs=25, learning_rate=0.02, warmup_steps=5, dropout=0.1, weight_decay=0.0
)
SHAPE = {"dim": 16, "num_layers": 1, "hidden_dim": 16, "window": 16}


def tour() -> Dataset:
    """The next item is any of the next group; the last place of each group is never used."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(120):
        first = rng.integers(GROUPS)
        for step in range(12):
            item = (first + step) % GROUPS + GROUPS * rng.integers(PLACES - 1)
            rows.append((f"u{user}", str(item), 1000 * step))
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time_ms": pl.Int64}, orient="row")
    ids = [str(item) for item in range(GROUPS * PLACES)]
    attributes = pl.DataFrame({"item": ids, "group": [[f"group {int(item) % GROUPS}"] for item in ids]})
    schema = Schema(item={"group": ItemCategories(kind="categories")})
    return Dataset.from_interactions("tour", frame, schema=schema, attributes=attributes)


def test_an_item_that_nobody_has_met_is_recommended_by_what_it_is(tmp_path: Path) -> None:
    data = tour()
    model = ModelConfig(num_items=len(data.catalogue), features=data.schema, **SHAPE)
    trained = train(data, leave_one_out(data), model, CONFIG)
    save_run(tmp_path, trained.network, model, data.catalogue, {})
    new = [str(group + GROUPS * (PLACES - 1)) for group in range(GROUPS)]
    assert not set(new) & set(data.catalogue.ids)
    add_items(tmp_path, Catalogue(new, new), pl.DataFrame({"group": [[f"group {group}"] for group in range(GROUPS)]}))
    network, _ = load_run(tmp_path)
    for user in range(20):
        rows = data.events(user)
        scores = recompute_scores(network, rows[:, 1], rows[:, 2], np.array([len(rows)]))[0]
        wanted = (int(data.catalogue.ids[rows[-1, 1]]) + 1) % GROUPS
        of_group = np.array([int(item) % GROUPS for item in data.catalogue.ids])
        assert scores[len(of_group) + wanted] > scores[: len(of_group)][of_group != wanted].max()


def signalled() -> Dataset:
    """What is done with an event says which item is next; the items alone say nothing."""
    rng = np.random.default_rng(0)
    items = rng.integers(4, size=(150, 10))
    actions = np.roll(items, -1, axis=1)  # of an event, the next one's item
    frame = pl.DataFrame(
        {
            "user": np.repeat(np.arange(150), 10).astype(str),
            "item": items.ravel().astype(str),
            "time_ms": np.tile(1000 * np.arange(10), 150),
            "action": actions.ravel().astype(str),
        }
    )
    schema = Schema(event={"action": EventCategory(kind="category")})
    return Dataset.from_interactions("signalled", frame, schema=schema)


@pytest.mark.parametrize("family", ["transformer", "hstu", "gru", "bert4rec", "seq2seq"])
def test_the_context_of_past_events_is_learnt_from(family: str) -> None:
    data = signalled()
    split = leave_one_out(data)
    config = CONFIG.model_copy(update={"epochs": 15})
    found = {}
    for features in (Schema(), data.schema):
        model = ModelConfig(num_items=4, family=family, features=features, **SHAPE)
        network = train(data, split, model, config).network
        ranks = evaluate(network, data, split.evaluated, split.test).numpy()
        found[bool(features.event)] = (ranks == 0).mean()
    assert found[False] < 0.5
    assert found[True] > 0.7


def test_the_context_of_the_predicted_event_reaches_no_answer() -> None:
    data = signalled()
    split = leave_one_out(data)
    model = ModelConfig(num_items=4, features=data.schema, **SHAPE)
    network = train(data, split, model, CONFIG.model_copy(update={"epochs": 1})).network
    ranks = evaluate(network, data, split.evaluated, split.test)
    data.columns["action"][split.test] = 0
    assert torch.equal(evaluate(network, data, split.evaluated, split.test), ranks)


def test_features_that_the_data_lacks_are_refused() -> None:
    data = tour()
    other = Schema(item={"group": ItemCategories(kind="categories", values=("x",))})
    with pytest.raises(ArgumentError, match=r"features.group: expected a feature of tour, as its schema has it"):
        train(data, leave_one_out(data), ModelConfig(num_items=len(data.catalogue), features=other), CONFIG)


class Stop(Exception):
    """What ends a run in the middle."""


def stop(record: Mapping[str, Any], epochs: int) -> None:
    """After the second epoch."""
    if record["epoch"] == 2:
        raise Stop


def test_a_run_with_features_is_resumed_to_the_same_bits_and_goes_on_from_there(tmp_path: Path) -> None:
    data = tour()
    split, model = leave_one_out(data), ModelConfig(num_items=len(data.catalogue), features=data.schema, **SHAPE)
    config = CONFIG.model_copy(update={"epochs": 3, "ema_decay": 0.5, "adversarial": 0.1, "item_dropout": 0.1})
    whole = train(data, split, model, config).network.state_dict()
    with pytest.raises(Stop):
        train(data, split, model, config, [SimpleNamespace(epoch=stop)], snapshot=tmp_path / "state")
    resumed = train(data, split, model, config, snapshot=tmp_path / "state").network.state_dict()
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    still = config.model_copy(update={"epochs": 1, "learning_rate": 1e-12, "ema_decay": 0.0, "adversarial": 0.0})
    again = train(data, split, model, still, initial=whole).network.state_dict()
    torch.testing.assert_close(again["items.weight"], whole["items.weight"])
