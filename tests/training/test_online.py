"""What an update learns, what it holds out, and when it refuses."""

import numpy as np
import pytest
import torch

from longrec.catalogue import Catalogue
from longrec.config import ModelConfig, TrainConfig
from longrec.datasets import Dataset
from longrec.errors import ArgumentError, DataError
from longrec.modeling import build_network
from longrec.training import online
from longrec.training.metrics import ranking_metrics
from longrec.training.online import Judgement, NewEvents, UpdatePlan, update

ITEMS = 20
CATALOGUE = Catalogue([str(item) for item in range(ITEMS)], [str(item) for item in range(ITEMS)])
CONFIG = TrainConfig(epochs=1, sequence_length=4, batch_events=32, validate_every=1)


def log_of(*lengths: int) -> list[np.ndarray]:
    """Items 0, 1, 2 …, a second each."""
    return [np.stack((np.arange(n) % ITEMS, 1000 * np.arange(n)), axis=1) for n in lengths]


def keys(count: int) -> list[bytes]:
    return [f"u{user}".encode() for user in range(count)]


def test_unknown_items_are_left_out_and_counted() -> None:
    rows = [np.array([[ITEMS, 0], [1, 1], [ITEMS, 2], [2, 3]]), np.array([[3, 0], [ITEMS, 1]])]
    new, unknown = NewEvents.from_log(keys(2), rows, np.array([2, 1]), CATALOGUE)
    assert unknown == 2
    assert new.dataset.users == ["u0"]  # the other has nothing new that could be learnt
    assert new.dataset.items.tolist() == [1, 2]
    assert new.fresh.tolist() == [1]


def test_the_mix_holds_out_the_newest_and_cuts_the_past() -> None:
    new, _ = NewEvents.from_log(keys(4), log_of(12, 9, 8, 3), np.array([5, 2, 1, 3]), CATALOGUE)
    old = Dataset("old", ["a", "b"], CATALOGUE, *(np.arange(10) % ITEMS,) * 2, np.array([0, 5, 10]))
    mixed, split, learnt = online._mix(new, old, CONFIG, UpdatePlan(replay=0.1))
    pieces = [mixed.items[a:b].tolist() for a, b in zip(mixed.indptr[:-1], split.train_end, strict=True)]
    assert pieces[:4] == [
        [3, 4, 5, 6, 7, 8, 9],  # 4 of its past, 3 of its 5 new events
        [3, 4, 5, 6, 7],  # 4 of its past, 1 of its 2
        [],  # its one new event is held out
        [0],
    ]
    assert learnt == 13
    assert pieces[4:] in ([[0, 1, 2]], [[5, 6, 7]])  # one old user is enough, without the events that test
    assert mixed.items[split.validation].tolist() == [10, 1]
    assert split.evaluated.tolist() == [0, 3]
    assert new.dataset.items[new.newest].tolist() == [11, 8, 7, 2]


def judgement(before: float, after: float) -> Judgement:
    """NDCG@10 of a share of 1,000 users at rank 0, the others nowhere."""
    return Judgement(*(ranking_metrics(np.where(np.arange(1000) < 1000 * share, 0, 99)) for share in (before, after)))


@pytest.mark.parametrize(
    ("new", "old", "refusal"),
    [
        ((0.2, 0.2), (0.5, 0.45), ""),
        ((0.2, 0.199), (0.5, 0.9), "NDCG@10 of the newest events falls from 0.2000 to 0.1990"),
        ((0.2, 0.9), (0.5, 0.449), "NDCG@10 of the old data falls from 0.5000 to 0.4490, by more than 10%"),
        ((0.0, 0.0), None, ""),
    ],
)
def test_what_is_refused(new: tuple[float, float], old: tuple[float, float] | None, refusal: str) -> None:
    found = online._refusal(judgement(*new), old and judgement(*old), UpdatePlan())
    assert found.startswith(refusal)
    assert bool(found) == bool(refusal)


def test_an_update_leaves_the_served_network_as_it_is() -> None:
    network = build_network(ModelConfig(num_items=ITEMS, dim=8, num_layers=1, hidden_dim=8, window=8)).eval()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    new, _ = NewEvents.from_log(keys(3), log_of(9, 9, 9), np.array([9, 9, 9]), CATALOGUE)
    found = update(network, new, None, CONFIG, UpdatePlan(min_users=3))
    assert found.old is None
    assert (found.learnt, found.replayed) == (21, 0)
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    assert not torch.equal(found.trained.network.items.weight, before["items.weight"])


def test_too_little_to_judge_by_is_refused() -> None:
    network = build_network(ModelConfig(num_items=ITEMS, dim=8, num_layers=1, hidden_dim=8)).eval()
    new, _ = NewEvents.from_log(keys(3), log_of(9, 9, 9), np.array([2, 2, 1]), CATALOGUE)
    with pytest.raises(DataError, match=r"at least 100 users \(min_users\), to judge by, got 3"):
        update(network, new, None, CONFIG, UpdatePlan())
    with pytest.raises(DataError, match="a user with at least 3 new events"):
        update(network, new, None, CONFIG, UpdatePlan(min_users=1))
    with pytest.raises(ArgumentError, match="replay=-1: expected 0 or more"):
        UpdatePlan(replay=-1)
