import math

import numpy as np
import pytest

from longrec.errors import ArgumentError
from longrec.training.metrics import (
    gains,
    hit,
    horizon_metrics,
    match,
    ndcg,
    precision,
    ranking_metrics,
    recall,
    reciprocal_rank,
)


def test_metrics_of_known_ranks() -> None:
    metrics = ranking_metrics(np.array([0, 2, 10]), (1, 10))
    assert metrics.hr == {1: pytest.approx(1 / 3), 10: pytest.approx(2 / 3)}
    assert metrics.ndcg[10] == pytest.approx((1 + 1 / math.log2(4)) / 3)
    assert metrics.mrr == pytest.approx((1 + 1 / 3 + 1 / 11) / 3)
    with pytest.raises(ArgumentError, match="at least one evaluated user"):
        ranking_metrics(np.array([], dtype=np.int64))


def test_one_item_is_the_case_of_several_with_one() -> None:
    rng = np.random.default_rng(0)
    lists = rng.permuted(np.tile(np.arange(30), (50, 1)), axis=1)
    ranks = rng.integers(30, size=50)
    matches, counts = match(lists, [row[[rank]] for row, rank in zip(lists, ranks, strict=True)])
    each = gains(ranks, (10,))
    np.testing.assert_allclose(each["hr@10"], hit(matches, 10))
    np.testing.assert_allclose(each["hr@10"], recall(matches, counts, 10))
    np.testing.assert_allclose(each["hr@10"] / 10, precision(matches, 10))
    np.testing.assert_allclose(each["ndcg@10"], ndcg(matches, counts, 10))
    np.testing.assert_allclose(each["mrr"], reciprocal_rank(matches))


def test_padding_matches_nothing_and_users_without_relevant_items_score_zero() -> None:
    matches, counts = match(np.array([[3, -1], [3, -1]]), [np.array([-1, 3]), np.array([], dtype=np.int64)])
    assert matches.tolist() == [[True, False], [False, False]]
    assert ndcg(matches, counts, 2).tolist()[1] == recall(matches, counts, 2)[1] == reciprocal_rank(matches)[1] == 0.0
    assert precision(matches, 2).tolist() == [0.5, 0.0]
    with pytest.raises(ArgumentError, match="relevant: expected the items of 2 users"):
        match(np.array([[3], [3]]), [np.array([3])])


def test_a_horizon_has_metrics_for_each_step_of_the_users_who_have_it() -> None:
    first, second = horizon_metrics(np.array([[0, 4], [9, -1], [2, 0]]), (5,))
    assert (first.hr[5], first.users) == (pytest.approx(2 / 3), 3)
    assert (second.hr[5], second.users, second.mrr) == (1.0, 2, pytest.approx(0.6))
