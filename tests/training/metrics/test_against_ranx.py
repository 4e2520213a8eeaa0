"""The same lists through ranx, in a process of its own: ranx as plain Python takes seconds, compiling it a minute."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from longrec.training import rank_targets, ranking_metrics
from longrec.training.metrics import hit, match, ndcg, precision, recall, reciprocal_rank

RANX = """
import json, sys
from ranx import Qrels, Run, evaluate
for lists, relevant, names in json.load(sys.stdin):
    qrels = Qrels({f"u{u}": {f"i{item}": 1 for item in items} for u, items in enumerate(relevant)})
    run = Run({f"u{u}": {f"i{item}": -place for place, item in enumerate(row)} for u, row in enumerate(lists)})
    print(json.dumps({name: float(value) for name, value in evaluate(qrels, run, names).items()}))
"""
USERS, ITEMS, CUTOFFS = 60, 40, (1, 5, 10, 60)
Case = tuple[list[list[int]], list[list[int]], dict[str, float]]  # lists, relevant items, what we say


def one_item() -> Case:
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(ITEMS, dtype=np.float64), (USERS, 1)), axis=1)
    targets = rng.integers(ITEMS, size=USERS)
    ranks = rank_targets(torch.from_numpy(scores), torch.from_numpy(targets)).numpy()
    ours = {
        name.replace("hr@", "hit_rate@"): value for name, value in ranking_metrics(ranks, (1, 5, 10)).as_dict().items()
    }
    assert ours.pop("users") == USERS
    return np.argsort(-scores, axis=1).tolist(), targets[:, None].tolist(), ours


def several_items() -> Case:
    """Users with 1 to 12 relevant items, lists of 15 to 20: some k is larger than either."""
    rng = np.random.default_rng(1)
    lists = rng.permuted(np.tile(np.arange(ITEMS), (USERS, 1)), axis=1)[:, :20]
    lists[::3, 15:] = -1
    relevant = [rng.choice(ITEMS, rng.integers(1, 12, endpoint=True), replace=False) for _ in range(USERS)]
    matches, counts = match(lists, relevant)
    ours = {"mrr": reciprocal_rank(matches)}
    for k in CUTOFFS:
        ours |= {
            f"hit_rate@{k}": hit(matches, k),
            f"recall@{k}": recall(matches, counts, k),
            f"precision@{k}": precision(matches, k),
            f"ndcg@{k}": ndcg(matches, counts, k),
            f"mrr@{k}": reciprocal_rank(matches, k),
        }
    means = {name: float(values.mean()) for name, values in ours.items()}
    return [row[row >= 0].tolist() for row in lists], [items.tolist() for items in relevant], means


def test_metrics_are_those_of_ranx() -> None:
    cases = (one_item(), several_items())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RANX],
        input=json.dumps([(lists, relevant, list(ours)) for lists, relevant, ours in cases]),
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    for (_, _, ours), line in zip(cases, done.stdout.splitlines()[-2:], strict=True):
        assert ours == pytest.approx(json.loads(line), abs=1e-12)
