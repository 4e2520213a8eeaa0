"""Ranking quality of a network on held-out events: each user's whole past in, the rank of what came next out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.datasets import Dataset
from longrec.errors import ArgumentError, CheckpointError
from longrec.modeling import Transformer, gap_buckets

__all__ = ["Metrics", "evaluate", "history_gaps", "rank_targets", "ranking_metrics"]

BATCH_EVENTS = 8192


@dataclass(frozen=True)
class Metrics:
    """Means over users.

    Args:
        hr, ndcg: cutoff k -> share of users whose item is among the k best; -> 1 / log2(rank + 1) there, else 0.
        mrr: 1 / rank over the whole catalogue.
        users: how many.
    """

    hr: dict[int, float]
    ndcg: dict[int, float]
    mrr: float
    users: int

    def as_dict(self) -> dict[str, float]:
        """Flat, with keys such as `hr@10`."""
        named = {f"hr@{k}": value for k, value in self.hr.items()}
        named |= {f"ndcg@{k}": value for k, value in self.ndcg.items()}
        return {**named, "mrr": self.mrr, "users": self.users}


def ranking_metrics(ranks: NDArray[np.int64], cutoffs: tuple[int, ...] = (5, 10, 20)) -> Metrics:
    """Metrics of one relevant item a user.

    Args:
        ranks: [E] from 0 (best).
        cutoffs: the k of HR@k and NDCG@k.
    """
    if not len(ranks):
        raise ArgumentError("ranks", "at least one evaluated user", got="none")
    gain = 1.0 / np.log2(ranks + 2.0)
    return Metrics(
        {k: float((ranks < k).mean()) for k in cutoffs},
        {k: float(np.where(ranks < k, gain, 0.0).mean()) for k in cutoffs},
        float((1.0 / (ranks + 1.0)).mean()),
        len(ranks),
    )


def rank_targets(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Ranks from 0: items with a higher score, plus items with the same score and a lower index.

    Args:
        scores: [E, num_items]. targets: [E] int64.

    Returns:
        [E] int64.

    Raises:
        CheckpointError: a score is not finite (comparisons with NaN would read as a perfect rank).
    """
    if not scores.isfinite().all():
        raise CheckpointError("scores: expected finite numbers; the weights have diverged, train again")
    own = scores.gather(1, targets[:, None])  # [E, 1]
    index = torch.arange(scores.shape[1], device=scores.device)
    ahead = (scores > own) | ((scores == own) & (index < targets[:, None]))
    return ahead.sum(1)


def history_gaps(dataset: Dataset, num_buckets: int) -> NDArray[np.int64]:
    """[n] gap bucket of every event of the dataset, each user's history from its own beginning."""
    starts, ends = dataset.indptr[:-1].tolist(), dataset.indptr[1:].tolist()
    parts = [gap_buckets(dataset.times_ms[a:b], None, num_buckets) for a, b in zip(starts, ends, strict=True)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


@torch.no_grad()
def evaluate(network: Transformer, dataset: Dataset, users: NDArray[np.int64], rows: NDArray[np.int64]) -> torch.Tensor:
    """Rank the item of each row among the whole catalogue, given all of its user's events before it.

    Nothing is filtered: items that the user has met stay in. Only the newest `receptive_field` events are run; what
    lies further back can't reach the answer.

    Args:
        network: in evaluation mode.
        dataset: with the network's catalogue.
        users: [E] user of each row.
        rows: [E] rows of the dataset.

    Returns:
        [E] int64 ranks, from 0.
    """
    device = network.item_table.device
    gaps = history_gaps(dataset, network.config.num_gap_buckets)
    begins = np.maximum(dataset.indptr[users], rows - network.config.receptive_field)
    ranks = torch.empty(len(rows), dtype=torch.int64)
    for chosen in _batches(rows - begins):
        lengths = (rows - begins)[chosen]
        cu_seqlens = np.concatenate(([0], lengths.cumsum()))
        inputs = np.repeat(begins[chosen] - cu_seqlens[:-1], lengths) + np.arange(cu_seqlens[-1])
        positions = inputs - np.repeat(dataset.indptr[users[chosen]], lengths)
        hidden = network(
            torch.from_numpy(dataset.items[inputs]).to(device),
            torch.from_numpy(gaps[inputs]).to(device),
            torch.from_numpy(positions).to(device),
            torch.from_numpy(cu_seqlens.astype(np.int32)).to(device),
        )
        newest = torch.from_numpy(np.where(lengths > 0, cu_seqlens[1:], 0)).to(device)  # 0: nothing before the target
        states = torch.cat((network.start[None], hidden))[newest]
        targets = torch.from_numpy(dataset.items[rows[chosen]]).to(device)
        ranks[torch.from_numpy(chosen)] = rank_targets(network.scores(states), targets).cpu()
    return ranks


def _batches(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Indices by falling length, about `BATCH_EVENTS` events at a time."""
    order = np.argsort(-lengths, kind="stable")
    group = lengths[order].cumsum() // BATCH_EVENTS
    yield from np.split(order, np.flatnonzero(np.diff(group)) + 1)
