"""A network on held-out events: each user's whole past in, the rank of what came next and the best items out. What the
ranks and lists are worth is computed in `metrics`."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from longrec import kernels
from longrec.datasets import Dataset
from longrec.errors import CheckpointError
from longrec.modeling import Events, Network
from longrec.training.inputs import EventTable
from longrec.training.metrics import Metrics, ranking_metrics

__all__ = ["Answers", "Metrics", "answer", "evaluate", "pasts_before", "rank_targets", "ranking_metrics"]

BATCH_EVENTS = 8192
SCORE_ELEMENTS = 1 << 24  # scores held at once: 64 MB in float32


class Answers(NamedTuple):
    """What a network says of E held-out events.

    Args:
        ranks: [E] int64 rank of the event's item in the whole catalogue, from 0.
        lists: [E, k] int64 the best items, best first; -1 behind them where the catalogue has fewer than k.
    """

    ranks: NDArray[np.int64]
    lists: NDArray[np.int64]


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


def evaluate(network: Network, dataset: Dataset, users: NDArray[np.int64], rows: NDArray[np.int64]) -> torch.Tensor:
    """Rank the item of each row among the whole catalogue, given all of its user's events before it.

    Nothing is filtered: items that the user has met stay in. Only as many of the newest events are run
    as the network's family can see.

    Args:
        network: in evaluation mode.
        dataset: with the network's catalogue.
        users: [E] user of each row.
        rows: [E] rows of the dataset.

    Returns:
        [E] int64 ranks, from 0.
    """
    return torch.from_numpy(answer(network, dataset, users, rows, 0).ranks)


@torch.no_grad()
def answer(network: Network, dataset: Dataset, users: NDArray[np.int64], rows: NDArray[np.int64], k: int) -> Answers:
    """`evaluate`, and the k best items of each row; arguments as there, and k: 0..256."""
    ranks = np.empty(len(rows), dtype=np.int64)
    lists = np.empty((len(rows), k), dtype=np.int64)
    at_once = max(1, SCORE_ELEMENTS // network.config.num_items)
    for chosen, events in pasts_before(network, dataset, users, rows):
        states = network.last_states(events)
        targets = torch.from_numpy(dataset.items[rows[chosen]]).to(states.device)
        for first in range(0, len(chosen), at_once):
            part = slice(first, first + at_once)
            scores = network.scores_after(states[part], events.of_users(first, first + at_once))
            ranks[chosen[part]] = rank_targets(scores, targets[part]).cpu().numpy()
            if k and network.repeats:  # the kernel knows inner products alone
                best = scores.sort(dim=1, descending=True, stable=True).indices[:, :k].cpu().numpy()
                lists[chosen[part]] = -1
                lists[chosen[part], : best.shape[1]] = best
            elif k:
                lists[chosen[part]] = kernels.catalogue_topk(states[part], network.item_table, k)[1].cpu().numpy()
    return Answers(ranks, lists)


def pasts_before(
    network: Network, dataset: Dataset, users: NDArray[np.int64], rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], Events]]:
    """All events before rows of the dataset that the network sees.

    Args:
        network, dataset, users: as `evaluate`.
        rows: [E]; the end of a user's history, too.

    Yields:
        Places in `rows` [C] and the events of as many users, every place once.
    """
    device = network.item_table.device
    table = EventTable(dataset, network.config)
    reach = network.config.reach
    begins = dataset.indptr[users]
    if reach is not None:
        begins = np.maximum(begins, rows - reach)
    for chosen in _batches(rows - begins):
        lengths = (rows - begins)[chosen]
        cu_seqlens = np.concatenate(([0], lengths.cumsum()))
        inputs = np.repeat(begins[chosen] - cu_seqlens[:-1], lengths) + np.arange(cu_seqlens[-1])
        positions = inputs - np.repeat(dataset.indptr[users[chosen]], lengths)
        events = table.at(inputs, positions, cu_seqlens.astype(np.int32))
        yield chosen, Events(*(field.to(device) for field in events))


def _batches(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Indices by falling length, about `BATCH_EVENTS` events at a time."""
    order = np.argsort(-lengths, kind="stable")
    group = lengths[order].cumsum() // BATCH_EVENTS
    yield from np.split(order, np.flatnonzero(np.diff(group)) + 1)
