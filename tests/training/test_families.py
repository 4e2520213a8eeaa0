"""Each family learns what is certain, and what only a memory of earlier segments can tell."""

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, leave_one_out
from longrec.modeling import FAMILIES, recompute_scores
from longrec.modeling.seq2seq import Seq2Seq
from longrec.training import Trained, evaluate, train

NUM_ITEMS = 11
SHAPE: dict[str, Any] = {"dim": 16, "num_heads": 1, "num_kv_heads": 1, "num_layers": 1, "hidden_dim": 32}
CONFIG = TrainConfig(
    sequence_length=8,
    batch_events=128,
    epochs=15,
    learning_rate=0.02,
    warmup_steps=5,
    dropout=0.1,
    weight_decay=0.0,
    label_smoothing=0.0,
    validate_every=1000,  # the last weights are taken
)


def dataset(histories: list[list[int]], num_items: int) -> Dataset:
    rows = [(f"u{u}", f"{item:02}", 1000 * n) for u, items in enumerate(histories) for n, item in enumerate(items)]
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time_ms": pl.Int64}, orient="row")
    data = Dataset.from_interactions("pattern", frame)
    assert len(data.catalogue) == num_items
    return data


def walks(users: int = 60) -> Dataset:
    """Each user walks round the catalogue in steps of 3 from a place of its own: the next item is certain."""
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(NUM_ITEMS, size=users).tolist(), rng.integers(5, 30, users).tolist()
    walked = [[(first + 3 * n) % NUM_ITEMS for n in range(count)] for first, count in zip(starts, lengths, strict=True)]
    return dataset(walked, NUM_ITEMS)


def hits(trained: Trained, data: Dataset) -> float:
    """Share of the test events that are ranked first."""
    split = leave_one_out(data)
    return float((evaluate(trained.network, data, split.evaluated, split.test) == 0).double().mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_certain_next_item_is_learnt(family: str) -> None:
    data = walks()
    model = ModelConfig(num_items=NUM_ITEMS, family=family, window=16, **SHAPE)
    epochs = 40 if family in ("bert4rec", "seq2seq") else 15  # a piece has few targets
    trained = train(data, leave_one_out(data), model, CONFIG.model_copy(update={"epochs": epochs}))
    assert hits(trained, data) > 0.9  # by chance 1 of 11
    history = data.items[: data.indptr[1]]
    scores = recompute_scores(trained.network, history, data.times_ms[: len(history)], np.array([3, len(history)]))
    assert scores.argmax(1).tolist() == [
        data.catalogue.index[f"{(int(data.catalogue.ids[history[n - 1]]) + 3) % NUM_ITEMS:02}"]
        for n in (3, len(history))
    ]


def test_seq2seq_learns_the_steps_that_follow() -> None:
    data = walks()
    model = ModelConfig(num_items=NUM_ITEMS, family="seq2seq", window=16, horizon=3, **SHAPE)
    trained = train(data, leave_one_out(data), model, CONFIG.model_copy(update={"epochs": 40}))
    network = trained.network
    assert isinstance(network, Seq2Seq)
    from longrec.training.inputs import EventTable

    starts = data.indptr[:-1]
    rows = (starts[:, None] + np.arange(2)).flatten()
    table = EventTable(data, model)
    given = table.at(rows, np.tile(np.arange(2), len(starts)), np.arange(0, len(rows) + 1, 2, dtype=np.int32))
    with torch.no_grad():
        right = network.emit(given) == torch.from_numpy(data.items[starts[:, None] + np.arange(2, 5)])
    assert right.double().mean() > 0.9


@pytest.mark.parametrize("family", [family for family in FAMILIES if FAMILIES[family].recurrent])
def test_what_stood_in_an_earlier_segment_is_learnt(family: str) -> None:
    """Each user walks in steps of 2 or of 3, which two events together show, and a segment is one event."""
    rng = np.random.default_rng(1)
    walkers = zip(rng.integers(NUM_ITEMS, size=80).tolist(), rng.integers(2, 4, 80).tolist(), strict=True)
    data = dataset([[(first + step * n) % NUM_ITEMS for n in range(15)] for first, step in walkers], NUM_ITEMS)
    config = CONFIG.model_copy(update={"sequence_length": 1, "item_dropout": 0.0, "dropout": 0.0, "epochs": 30})
    model = ModelConfig(num_items=NUM_ITEMS, family=family, window=4, **SHAPE)
    assert hits(train(data, leave_one_out(data), model, config), data) > 0.9  # without a memory 1 of 2


def test_a_seed_gives_the_same_weights_of_a_recurrent_network() -> None:
    data = walks(20)
    model = ModelConfig(num_items=NUM_ITEMS, family="gru", **SHAPE)

    def weights() -> torch.Tensor:
        trained = train(data, leave_one_out(data), model, CONFIG.model_copy(update={"epochs": 2}))
        return torch.cat([weight.flatten() for weight in trained.network.state_dict().values()])

    assert torch.equal(weights(), weights())
