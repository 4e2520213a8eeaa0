"""Rollouts on held-out events against one recomputation a user and step."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from longrec.config import ModelConfig
from longrec.datasets import Dataset
from longrec.errors import ArgumentError
from longrec.modeling import FAMILIES, Network, build_network, recompute_scores
from longrec.modeling.seq2seq import Seq2Seq
from longrec.schema import EventCategory, EventNumber, Schema
from longrec.training import rollouts as rollouts_module
from longrec.training.inputs import EventTable
from longrec.training.rollouts import rollout_ranks

HORIZON = 4
MODEL = ModelConfig(num_items=12, dim=16, window=5, horizon=HORIZON, num_layers=2)


def data() -> Dataset:
    """Histories shorter and longer than what the network sees; gaps from a second to hours."""
    rng = np.random.default_rng(1)
    rows = [
        (f"u{u}", str(rng.integers(12)), int(rng.integers(10**8)))
        for u, n in enumerate([5, 6, 30, 9, 18])
        for _ in range(n)
    ]
    rows += [("all", str(item), item) for item in range(12)]
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time_ms": pl.Int64}, orient="row")
    return Dataset.from_interactions("test", frame)


def network_of(model: ModelConfig) -> Network:
    torch.manual_seed(0)
    network = build_network(model).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return network


CASES = [(family, False) for family in FAMILIES if family != "seq2seq"] + [("transformer", True), ("gru", True)]


@pytest.mark.parametrize(("family", "repeats"), CASES)
def test_each_step_is_ranked_from_what_was_predicted_before_it(family: str, repeats: bool) -> None:
    network, histories = network_of(MODEL.model_copy(update={"family": family, "repeats": repeats})), data()
    rows = histories.indptr[1:] - HORIZON
    found = rollout_ranks(network, histories, np.arange(len(rows)), rows, HORIZON)
    assert len(np.unique(found)) > 5
    for user, row in enumerate(rows.tolist()):
        past = slice(int(histories.indptr[user]), row)
        items, times = histories.items[past].tolist(), histories.times_ms[past].tolist()
        gap = int(np.median(np.diff(times[-33:]))) if len(times) > 1 else 0
        for step in range(HORIZON):
            lengths = np.array([len(items)])
            (scores,) = recompute_scores(network, np.array(items), np.array(times), lengths)
            order = np.argsort(-scores, kind="stable")
            assert found[user, step] == order.tolist().index(histories.items[row + step])
            items.append(int(order[0]))
            times.append(times[-1] + gap)


@pytest.mark.parametrize("at_once", [None, 30])
def test_seq2seq_is_ranked_by_the_steps_that_it_emits(monkeypatch: pytest.MonkeyPatch, at_once: int | None) -> None:
    if at_once is not None:
        monkeypatch.setattr(rollouts_module, "SCORE_ELEMENTS", at_once)
    network, histories = network_of(MODEL.model_copy(update={"family": "seq2seq"})), data()
    assert isinstance(network, Seq2Seq)
    rows = histories.indptr[1:] - HORIZON
    found = rollout_ranks(network, histories, np.arange(len(rows)), rows, HORIZON)
    table = EventTable(histories, MODEL)
    for user, row in enumerate(rows.tolist()):
        begin = int(histories.indptr[user])
        past = np.arange(max(begin, row - MODEL.window), row)
        events = table.at(past, past - begin, np.array([0, len(past)], dtype=np.int32))
        with torch.no_grad():
            emitted = network.emit(events)
            scores = network.scores(network.decode(network.encode(events), events.counts, emitted[:, :-1]))[0]
        order = scores.argsort(descending=True, stable=True).tolist()
        expected = [order[step].index(histories.items[row + step]) for step in range(HORIZON)]
        assert found[user].tolist() == expected
    with pytest.raises(ArgumentError, match=r"horizon=5: expected 1\.\.4"):
        rollout_ranks(network, histories, np.arange(len(rows)), rows, HORIZON + 1)


def test_features_of_the_events_to_come_are_not_seen() -> None:
    histories = data()
    schema = Schema(
        event={
            "action": EventCategory(kind="category", values=("look", "buy")),
            "rating": EventNumber(kind="number", edges=(1.5, 3.5)),
        }
    )
    network = network_of(MODEL.model_copy(update={"features": schema}))
    users, rows = np.arange(len(histories.users)), histories.indptr[1:] - HORIZON
    held_out = np.zeros(len(histories), dtype=np.bool_)
    held_out[rows[:, None] + np.arange(HORIZON)] = True

    def ranks(seed: int, where: np.ndarray) -> list[list[int]]:
        """With other features of the events there."""
        rng = np.random.default_rng(seed)
        action, rating = np.ones(len(histories), dtype=np.int64), np.full(len(histories), 2.0)
        action[where], rating[where] = rng.integers(0, 3, where.sum()), rng.uniform(0, 5, where.sum())
        with_features = replace(histories, schema=schema, columns={"action": action, "rating": rating})
        return rollout_ranks(network, with_features, users, rows, HORIZON).tolist()

    assert ranks(0, held_out) == ranks(1, held_out)
    assert ranks(0, ~held_out) != ranks(1, ~held_out)
