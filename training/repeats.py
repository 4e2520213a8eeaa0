"""Softmax loss of scores that have a term for repeated items, without making any [T, num_items]."""

import itertools

import torch
from torch import Tensor

from longrec import kernels
from longrec.modeling import Events
from longrec.modeling.repeats import Repeats, next_occurrences

__all__ = ["repeat_loss"]


def repeat_loss(
    repeats: Repeats, states: Tensor, items: Tensor, events: Events, targets: Tensor, label_smoothing: float
) -> Tensor:
    """Sum over the rows of the cross-entropy over the catalogue, the scores being inner products and `repeats`' terms.

    Args:
        states: [T + F, dim], after each of the events, and of rows that have no past.
        items: [N, dim]. events: T of B pieces, whose repeats count within a piece.
        targets: [T + F] int64.

    Returns:
        A scalar in nats.
    """
    loss = kernels.catalogue_cross_entropy(
        states, items, targets, label_smoothing=label_smoothing, reduction="none", validate=False
    )
    count = len(events.items)
    grown = _growth(repeats, states[:count], items, events, targets[:count], loss[:count], label_smoothing)
    return loss.sum() + grown.sum()


def _growth(
    repeats: Repeats,
    states: Tensor,
    items: Tensor,
    events: Events,
    targets: Tensor,
    loss: Tensor,
    label_smoothing: float,
) -> Tensor:
    """[T], what the terms add to the loss [T].

    With s the scores, b the terms and ε the smoothing, lse(s + b) = lse(s) + log(1 + sum p (exp(b) - 1)), where p =
    exp(s - lse(s)), over the seen items alone. Their scores are products within each piece, as attention's are; pieces
    of equal length go together.
    """
    own = (states * items[targets]).sum(1)
    lse = loss + (1 - label_smoothing) * own + label_smoothing * (states @ items.mean(0))
    lengths = [length for length in events.counts.tolist() if length]
    runs = [(length, len(list(same))) for length, same in itertools.groupby(lengths)]
    sizes = [length * pieces for length, pieces in runs]
    known = events.items < len(items)
    seen = items[torch.where(known, events.items, 0)]
    rows = torch.arange(len(targets), device=targets.device)
    following = torch.where(known, next_occurrences(events), rows)  # an unknown item is seen at no time
    parts = []
    for (length, pieces), *fields in zip(
        runs, *(torch.split(x, sizes) for x in (states, seen, lse, events.items, targets, following, rows)), strict=True
    ):
        h, e, total, item, target, until, row = (x.unflatten(0, (pieces, length)) for x in fields)
        age = torch.arange(length, device=row.device)[:, None] - torch.arange(length, device=row.device)  # [L, L]
        counts = (age >= 0) & (age < repeats.reach) & (until[:, None] > row[:, :, None])  # [pieces, L, L]
        term = repeats.by_age(length)[age.clamp(min=0)]  # [L, L]
        p = (h @ e.transpose(1, 2) - total[:, :, None]).masked_fill(~counts, -torch.inf).exp()
        grown = (p * term.expm1()).sum(2).clamp(min=-1 + 1e-6).log1p()
        hit = counts & (item[:, None] == target[:, :, None])
        parts.append(
            grown - (1 - label_smoothing) * (hit * term).sum(2) - label_smoothing / len(items) * (counts * term).sum(2)
        )
    return torch.cat([part.flatten() for part in parts]) if parts else torch.zeros_like(loss)
