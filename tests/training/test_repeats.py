"""The loss of scores with the term for repeats, against one that makes every score; and that it is learned."""

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F

from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset, leave_one_out
from longrec.errors import ArgumentError
from longrec.modeling import Events, build_network
from longrec.training import answer, train
from longrec.training.repeats import repeat_loss

NUM_ITEMS = 30
COUNTS = (20, 13, 13, 0, 4)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_all_scores(label_smoothing: float) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"dim": 16, "num_layers": 1, "window": 9, "repeats": True}
    network = build_network(ModelConfig(num_items=NUM_ITEMS, **shape)).double()
    assert network.repeats is not None
    torch.nn.init.normal_(network.items.weight)
    torch.nn.init.normal_(network.repeats.table, std=0.3)
    count = sum(COUNTS)
    cu_seqlens = torch.tensor(np.cumsum((0, *COUNTS)), dtype=torch.int32)
    items, nothing = torch.randint(NUM_ITEMS + 1, (count,)), torch.zeros(count, dtype=torch.int64)  # unknown ones too
    events = Events(items, nothing, nothing.int(), nothing, cu_seqlens)
    states = torch.randn(count + 2, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(NUM_ITEMS, (count + 2,))
    targets[:count:3] = items[::3].clamp(max=NUM_ITEMS - 1)  # some are repeats

    scores = []
    for user, own in enumerate(COUNTS):
        past = events.of_users(user, user + 1)
        for length in range(1, own + 1):
            row = int(cu_seqlens[user]) + length - 1
            some = past.take(torch.arange(length), torch.tensor([length]))
            scores.append(network.scores_after(states[row : row + 1], some)[0])
    rows = torch.cat((torch.stack(scores), network.scores(states[count:])))
    expected = F.cross_entropy(rows, targets, label_smoothing=label_smoothing, reduction="sum")
    got = repeat_loss(network.repeats, states, network.item_table, events, targets, label_smoothing)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=0)
    leaves = (states, network.items.weight, network.repeats.table)
    for ours, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def never_twice(users: int = 60) -> Dataset:
    """Each user takes 20 of 40 items in an order of their own, none twice."""
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", f"{item:02}", 1000 * n) for u in range(users) for n, item in enumerate(rng.permutation(40)[:20])]
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time_ms": pl.Int64}, orient="row")
    return Dataset.from_interactions("never twice", frame)


@pytest.mark.parametrize("family", ["transformer", "gru"])
def test_that_nothing_is_taken_twice_is_learned(family: str) -> None:
    data = never_twice()
    split = leave_one_out(data)
    model = ModelConfig(num_items=40, family=family, dim=16, num_layers=1, hidden_dim=16, window=32, repeats=True)
    config = TrainConfig(batch_events=128, epochs=15, learning_rate=0.05, warmup_steps=0, item_dropout=0.0)
    network = train(data, split, model, config).network
    best = answer(network, data, split.evaluated, split.test, 10).lists
    taken = [set(data.items[data.indptr[user] : row]) for user, row in zip(split.evaluated, split.test, strict=True)]
    again = np.mean([len(set(row) & before) for row, before in zip(best, taken, strict=True)])
    assert again < 0.2  # of 10; 19 of 40 were taken


def test_a_loss_that_samples_is_refused() -> None:
    data = never_twice()
    model = ModelConfig(num_items=40, repeats=True)
    with pytest.raises(ArgumentError, match="loss=bce: expected softmax with repeats"):
        train(data, leave_one_out(data), model, TrainConfig(loss="bce"))
