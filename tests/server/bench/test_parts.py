"""What each part must refuse or count right; that all of them run is tests/cli's."""

import numpy as np
import pytest
import torch

from longrec.datasets import leave_one_out
from longrec.errors import ServerError
from longrec.modeling import recompute_scores
from longrec.server.bench import cold_storm, recompute, residency, resident
from longrec.server.bench.load import Bulk
from longrec.server.bench.recompute import HistoryPlan, RecomputePlan
from longrec.server.bench.residency import ResidencyPlan
from longrec.training import evaluate, ranking_metrics

K = 5
PLAN = RecomputePlan(batch=4, steps=2)


def test_steps_of_all_engines_take_time(material):
    for step in recompute._measure_steps(material.with_window(128), HistoryPlan(40, 2, 0, 0), PLAN):
        assert 0 < step.network_seconds < step.seconds


@pytest.mark.parametrize("is_worse", [True, False], ids=["pruned", "whole"])
def test_no_ratio_of_wrong_answers(material, monkeypatch, is_worse):
    class Worse(recompute.RecomputeEngine):
        def __init__(self, network, *rest, pruned=False):
            other = material.with_window(network.config.window).network
            with torch.no_grad():
                other.norm.weight.mul_(2 if pruned is is_worse else 1)
            super().__init__(other, *rest, pruned=pruned)

    monkeypatch.setattr(recompute, "RecomputeEngine", Worse)
    with pytest.raises(ServerError, match="no ratio of wrong answers"):
        recompute._measure_steps(material.with_window(128), HistoryPlan(40, 2, 0, 0), PLAN)


def test_only_right_answers_of_cold_users_count(material):
    histories = material.drawn([30] * 4)
    answers = []
    for rows in histories:
        (scores,) = recompute_scores(material.network, rows[:, 0], rows[:, 1], np.array([len(rows)]))
        items = np.argsort(-scores)[:K]
        answers.append(Bulk(items[None], scores[items][None], np.array([len(rows)])))
    assert cold_storm._count_right(material, histories, answers, 4) == 4
    answers[0] = None
    answers[1] = answers[1]._replace(items=answers[1].items[:, ::-1])
    answers[2] = answers[2]._replace(scores=answers[2].scores + 0.01)
    assert cold_storm._count_right(material, histories, answers, 4) == 1
    assert cold_storm._count_right(material, histories, answers, 2) == 2  # who wasn't answered counts nowhere


def test_ranks_are_those_of_the_last_events(material):
    result = residency._ndcg(material, "float32", ResidencyPlan())[1]
    split = leave_one_out(material.dataset)
    ranks = evaluate(material.network, material.dataset, split.evaluated, split.test).numpy()
    assert result == pytest.approx(ranking_metrics(ranks, (10,)).ndcg[10])


def test_an_idle_user_costs_more_than_nothing_and_less_than_a_page(material):
    per_user = residency._bytes_per_idle_user(material, ResidencyPlan(users=3000, events=4))
    hidden = 4 * material.network.config.dim
    page = 2 * 32 * material.network.config.head_dim * 4
    assert hidden < per_user < page / 2


def test_a_process_that_fails_or_does_not_end_is_an_error(material, monkeypatch):
    with pytest.raises(ServerError, match=r"residency: expected 10 users within 0.01 s"):
        residency._bytes_per_idle_user(material, ResidencyPlan(users=10, timeout_seconds=0.01))
    monkeypatch.setattr(resident, "__name__", "longrec.server.bench.absent")
    with pytest.raises(ServerError, match=r"residency: .*No module named longrec.server.bench.absent"):
        residency._bytes_per_idle_user(material, ResidencyPlan(users=10))
