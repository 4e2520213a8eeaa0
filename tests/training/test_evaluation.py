import json
import math
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch

from longrec.config import ModelConfig
from longrec.datasets import Dataset, leave_one_out
from longrec.errors import ArgumentError, CheckpointError
from longrec.modeling import Transformer, gap_buckets
from longrec.training import evaluate, rank_targets, ranking_metrics

RANX = """
import json, sys
from ranx import Qrels, Run, evaluate
scores, targets, names = json.load(sys.stdin)
qrels = Qrels({f"u{u}": {f"i{item}": 1} for u, item in enumerate(targets)})
run = Run({f"u{u}": {f"i{i}": score for i, score in enumerate(row)} for u, row in enumerate(scores)})
print(json.dumps({name: float(value) for name, value in evaluate(qrels, run, names).items()}))
"""


def test_metrics_are_those_of_ranx() -> None:
    """In a process of its own: ranx as plain Python takes seconds, compiling it a minute."""
    rng = np.random.default_rng(0)
    users, items = 60, 40
    scores = rng.permuted(np.tile(np.arange(items, dtype=np.float64), (users, 1)), axis=1)
    targets = rng.integers(items, size=users)
    ranks = rank_targets(torch.from_numpy(scores), torch.from_numpy(targets)).numpy()
    ours = ranking_metrics(ranks, (1, 5, 10)).as_dict()
    names = {f"hr@{k}": f"hit_rate@{k}" for k in (1, 5, 10)} | {f"ndcg@{k}": f"ndcg@{k}" for k in (1, 5, 10)}
    names["mrr"] = "mrr"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RANX],
        input=json.dumps((scores.tolist(), targets.tolist(), list(names.values()))),
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = json.loads(done.stdout.splitlines()[-1])
    for name, theirs in names.items():
        assert ours[name] == pytest.approx(expected[theirs], abs=1e-12), name
    assert ours["users"] == users


def test_metrics_of_known_ranks() -> None:
    metrics = ranking_metrics(np.array([0, 2, 10]), (1, 10))
    assert metrics.hr == {1: pytest.approx(1 / 3), 10: pytest.approx(2 / 3)}
    assert metrics.ndcg[10] == pytest.approx((1 + 1 / math.log2(4)) / 3)
    assert metrics.mrr == pytest.approx((1 + 1 / 3 + 1 / 11) / 3)
    with pytest.raises(ArgumentError, match="at least one evaluated user"):
        ranking_metrics(np.array([], dtype=np.int64))


def test_equal_scores_rank_by_the_lower_index() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0]]).expand(4, 4)
    assert rank_targets(scores, torch.arange(4)).tolist() == [3, 0, 1, 2]


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(CheckpointError, match="expected finite numbers"):
        rank_targets(torch.tensor([[1.0, torch.nan]]), torch.tensor([1]))


@torch.no_grad()
def test_each_target_is_ranked_from_all_events_before_it_and_no_other() -> None:
    """Against one forward pass a user, over histories shorter and longer than the receptive field."""
    rng = np.random.default_rng(1)
    lengths = [3, 5, 30, 9, 18]
    rows = [(f"u{u}", str(rng.integers(12)), int(rng.integers(10**7))) for u, n in enumerate(lengths) for _ in range(n)]
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time_ms": pl.Int64}, orient="row")
    data = Dataset.from_interactions("test", frame)
    torch.manual_seed(0)
    net = Transformer(ModelConfig(num_items=len(data.catalogue), dim=16, window=5)).eval()
    for weight in net.parameters():
        weight.add_(0.3 * torch.randn_like(weight))
    split = leave_one_out(data)
    for targets in (split.validation, split.test, data.indptr[:-1]):  # the last: first events, from the start state
        expected = []
        for user, row in enumerate(targets):
            history = slice(data.indptr[user], row)
            items = torch.from_numpy(data.items[history])
            gaps = torch.from_numpy(gap_buckets(data.times_ms[history], None, 32))
            hidden = net(items, gaps, torch.arange(len(items)), torch.tensor([0, len(items)], dtype=torch.int32))
            scores = net.scores(hidden[-1] if len(items) else net.start)
            target = data.items[row]
            expected.append(int((scores > scores[target]).sum()) + int((scores[:target] == scores[target]).sum()))
        assert evaluate(net, data, np.arange(5), targets).tolist() == expected
