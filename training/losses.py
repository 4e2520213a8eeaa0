"""Training objectives: how far a batch's hidden states are from the items that came next."""

import torch
from torch import Tensor

from longrec import kernels
from longrec.modeling import Network

__all__ = ["next_item_loss"]


def next_item_loss(
    network: Network, hidden: Tensor, targets: Tensor, first: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of the next item over the whole catalogue.

    Args:
        network: gives the scores and the start state.
        hidden: [T, dim].
        targets: [T] int64, the item after each.
        first: [F] int64, first items of histories; the start state predicts them.
        label_smoothing: probability that is spread evenly over the catalogue (Szegedy et al., 2016).

    Returns:
        A scalar in nats, the mean over T + F predictions.
    """
    states = torch.cat((hidden, network.start.expand(len(first), -1)))
    return kernels.catalogue_cross_entropy(
        states, network.item_table, torch.cat((targets, first)), label_smoothing=label_smoothing, validate=False
    )
