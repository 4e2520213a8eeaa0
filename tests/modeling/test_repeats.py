"""The term of items that stood among the newest events: who gets it, and that the scores have it."""

import numpy as np
import pytest
import torch

from longrec.config import ModelConfig
from longrec.modeling import Events, build_network, recompute_scores
from longrec.modeling.repeats import Repeats, next_occurrences

UNKNOWN = 9
MODEL = ModelConfig(num_items=UNKNOWN, dim=16, num_layers=1, hidden_dim=16, window=6, repeats=True)


def events(*histories: list[int]) -> Events:
    items = torch.tensor([item for history in histories for item in history], dtype=torch.int64)
    zeros = torch.zeros_like(items)
    counts = torch.tensor([len(history) for history in histories])
    cu_seqlens = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    return Events(items, zeros, zeros.int(), zeros, cu_seqlens)


def test_the_next_occurrence_is_of_the_same_user() -> None:
    found = next_occurrences(events([3, 1, 3, 3], [], [1, 3]))
    assert found.tolist() == [2, 4, 3, 4, 6, 6]
    assert next_occurrences(events([], [])).tolist() == []


def test_each_item_counts_once_by_its_last_time_within_reach() -> None:
    repeats = Repeats(dim=4, reach=5)
    with torch.no_grad():
        repeats.table.copy_(torch.arange(8.0))
    users, items, terms = repeats.after(events([0, 5, 1, 5, 2, UNKNOWN, 7], [], [4]), UNKNOWN)
    found = {(int(u), int(i)): float(t) for u, i, t in zip(users, items, terms.detach(), strict=True)}
    # 7 is the newest, 2 came 2 before it, 5 3 and 1 4; 0 is out of reach, and the unknown item is none
    assert found == {(0, 7): 0.0, (0, 2): 2.0, (0, 5): 4.0, (0, 1): 4.0, (2, 4): 0.0}


def test_ages_share_buckets_by_powers_of_two() -> None:
    repeats = Repeats(dim=1, reach=1000)
    with torch.no_grad():
        repeats.table.copy_(torch.arange(8.0))
    terms = repeats.by_age(600).tolist()
    assert [terms[age] for age in (0, 1, 2, 3, 6, 7, 126, 127, 599)] == [0, 1, 1, 2, 2, 3, 6, 7, 7]


def test_recomputed_scores_have_the_terms() -> None:
    torch.manual_seed(0)
    network = build_network(MODEL).eval()
    assert network.repeats is not None
    assert not network.repeats.table.any()  # at first a network as any other
    items, after = np.array([5, 0, 1, 5, UNKNOWN, 7, 8, 8]), np.array([0, 3, 8])
    before = recompute_scores(network, items, np.arange(8) * 1000, after)
    with torch.no_grad():
        network.repeats.table.fill_(-1.0)
    change = recompute_scores(network, items, np.arange(8) * 1000, after) - before
    expected = np.zeros((3, UNKNOWN))
    expected[1, [0, 1, 5]] = expected[2, [1, 5, 7, 8]] = -4.0  # sqrt(16); of the last 6 events at the end
    assert change == pytest.approx(expected, abs=1e-5)
