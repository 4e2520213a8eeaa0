"""A network's rollouts on held-out events: each user's next steps from their past alone, one predicted item after the
other, as a server rolls out with a beam of one. What the ranks are worth is computed in `metrics.horizon`."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.datasets import Dataset
from longrec.errors import ArgumentError
from longrec.modeling import Network
from longrec.modeling.features import USUAL_GAPS, usual_gap_ms
from longrec.modeling.seq2seq import Seq2Seq
from longrec.schema import UNKNOWN
from longrec.training.evaluation import SCORE_ELEMENTS, answer, pasts_before, rank_targets

__all__ = ["rollout_ranks"]

Ints = NDArray[np.int64]


def rollout_ranks(network: Network, dataset: Dataset, users: Ints, rows: Ints, horizon: int) -> Ints:
    """Rank the item of each step among the whole catalogue, given the events before the first step and, of the steps
    between, the best item of each: the true ones are never seen.

    Predicted events follow each other by the user's usual gap, and their features are unknown, as in serving.

    Args:
        network: in evaluation mode.
        dataset: with the network's catalogue.
        users: [E] user of each row.
        rows: [E] rows of the first steps; each has an event before it, and the steps after it in its history.
        horizon: H.

    Returns:
        [E, H] ranks, from 0.

    Raises:
        ArgumentError: seq2seq emits fewer steps.
    """
    if isinstance(network, Seq2Seq):
        return _emitted_ranks(network, dataset, users, rows, horizon)
    columns = {name: values.copy() for name, values in dataset.columns.items()}
    predicted = replace(dataset, items=dataset.items.copy(), times_ms=dataset.times_ms.copy(), columns=columns)
    first = np.maximum(dataset.indptr[users], rows - USUAL_GAPS - 1)
    pairs = zip(first.tolist(), rows.tolist(), strict=True)
    gaps_ms = np.array([usual_gap_ms(dataset.times_ms[a:b]) for a, b in pairs], dtype=np.int64)
    ranks = np.empty((len(rows), horizon), dtype=np.int64)
    for step in range(horizon):
        for values in columns.values():
            values[rows + step] = np.nan if values.dtype.kind == "f" else UNKNOWN
        found = answer(network, predicted, users, rows + step, 1)
        ranks[:, step] = found.ranks
        predicted.items[rows + step] = found.lists[:, 0]
        predicted.times_ms[rows + step] = predicted.times_ms[rows + step - 1] + gaps_ms
    return ranks


@torch.no_grad()
def _emitted_ranks(network: Seq2Seq, dataset: Dataset, users: Ints, rows: Ints, horizon: int) -> Ints:
    """`rollout_ranks` of a network that encodes the past once and emits the steps."""
    if horizon > network.config.horizon:
        raise ArgumentError(f"horizon={horizon}", f"1..{network.config.horizon}, the steps that the network emits")
    ranks = np.empty((len(rows), horizon), dtype=np.int64)
    at_once = max(1, SCORE_ELEMENTS // network.config.num_items)
    for chosen, events in pasts_before(network, dataset, users, rows):
        for first in range(0, len(chosen), at_once):
            part, own = chosen[first : first + at_once], events.of_users(first, first + at_once)
            encoded, counts = network.encode(own), own.counts
            emitted = counts.new_zeros(len(part), 0)
            for step in range(horizon):
                scores = network.scores(network.decode(encoded, counts, emitted)[:, -1])
                targets = torch.from_numpy(dataset.items[rows[part] + step]).to(scores.device)
                ranks[part, step] = rank_targets(scores, targets).cpu().numpy()
                emitted = torch.cat((emitted, scores.argmax(1, keepdim=True)), dim=1)
    return ranks
