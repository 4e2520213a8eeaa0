import numpy as np
import polars as pl
import pytest
import torch

from longrec.config import ModelConfig
from longrec.datasets import Dataset, leave_one_out
from longrec.errors import CheckpointError
from longrec.modeling import Transformer, gap_buckets
from longrec.training import answer, evaluate, rank_targets
from longrec.training import evaluation as evaluation_module


def test_equal_scores_rank_by_the_lower_index() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0]]).expand(4, 4)
    assert rank_targets(scores, torch.arange(4)).tolist() == [3, 0, 1, 2]


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(CheckpointError, match="expected finite numbers"):
        rank_targets(torch.tensor([[1.0, torch.nan]]), torch.tensor([1]))


@pytest.mark.parametrize("at_once", [None, 1, 30])
@torch.no_grad()
def test_each_target_is_ranked_from_all_events_before_it_and_no_other(
    monkeypatch: pytest.MonkeyPatch, at_once: int | None
) -> None:
    """Against one forward pass a user, over histories shorter and longer than the receptive field."""
    if at_once is not None:
        monkeypatch.setattr(evaluation_module, "SCORE_ELEMENTS", at_once)
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
        expected, best = [], []
        for user, row in enumerate(targets):
            history = slice(data.indptr[user], row)
            items = torch.from_numpy(data.items[history])
            gaps = torch.from_numpy(gap_buckets(data.times_ms[history], None, 32))
            hidden = net(items, gaps, torch.arange(len(items)), torch.tensor([0, len(items)], dtype=torch.int32))
            scores = net.scores(hidden[-1] if len(items) else net.start)
            target = data.items[row]
            expected.append(int((scores > scores[target]).sum()) + int((scores[:target] == scores[target]).sum()))
            best.append(scores.argsort(descending=True, stable=True)[:4].tolist())
        assert evaluate(net, data, np.arange(5), targets).tolist() == expected
        ranks, lists = answer(net, data, np.arange(5), targets, 4)
        assert ranks.tolist() == expected
        assert lists.tolist() == best
