"""How far hidden states are from the items that came next: over the whole catalogue, or over sampled negatives."""

import torch
import torch.nn.functional as F
from torch import Tensor

from longrec import kernels
from longrec.config import TrainConfig

__all__ = ["binary_loss", "calibrated_power", "item_loss"]

SampledItems = tuple[Tensor, Tensor]  # [M] int64 items, [M] float log of how often each was expected in the draw


def item_loss(
    states: Tensor, items: Tensor, targets: Tensor, negatives: SampledItems | None, config: TrainConfig
) -> Tensor:
    """Sum over the rows of the loss that `config.loss` names.

    `softmax`: cross-entropy over the catalogue, with label smoothing (Szegedy et al., 2016). `sampled_softmax`: the
    same, with the sum over the other items estimated without bias from the negatives, each weighted by 1 / (how often
    it was expected) (Bengio & Senécal, 2008). `bce`, `gbce`: `binary_loss`.

    Args:
        states: [T, dim]. items: [N, dim].
        targets: [T] int64; -1: a row that counts for nothing.
        negatives: of the step; None with `softmax`, which takes none.

    Returns:
        A scalar in nats.
    """
    states, items = _cast(states, items)
    if negatives is None:
        return kernels.catalogue_cross_entropy(
            states, items, targets, label_smoothing=config.label_smoothing, reduction="sum", validate=False
        )
    drawn, log_expected = negatives
    if config.loss == "sampled_softmax":
        log_q = log_expected.to(torch.float64 if states.dtype == torch.float64 else torch.float32)
        return kernels.catalogue_cross_entropy(
            states,
            items,
            targets,
            negatives=drawn,
            log_q=log_q,
            target_log_q=log_q.new_zeros(len(targets)),  # the target is there for certain
            reduction="sum",
            validate=False,
        )
    power = calibrated_power(len(drawn), len(items), config.calibration if config.loss == "gbce" else 0.0)
    return binary_loss(states, items, targets, drawn, power)


def binary_loss(states: Tensor, items: Tensor, targets: Tensor, negatives: Tensor, power: float) -> Tensor:
    """Sum over the rows of -(power log σ(s⁺) + sum of log(1 - σ(s⁻))) / (M + 1), s⁺ the target's score.

    With power 1 binary cross-entropy (Kang & McAuley, 2018), below it gBCE (Petrov & Macdonald, gSASRec, 2023).
    The rows share the M negatives, which makes their scores one matrix product; where one is a row's
    target it is left out.

    Args:
        states: [T, dim]. items: [N, dim]. targets: [T] int64; -1: ignored. negatives: [M] int64.
    """
    known = targets >= 0
    own = (states * F.embedding(targets.clamp(min=0), items)).sum(1)  # [T]
    others = states @ F.embedding(negatives, items).T  # [T, M]
    positive = power * F.softplus(-own.float() if own.dtype.itemsize < 4 else -own)
    negative = F.softplus(others.float() if others.dtype.itemsize < 4 else others)
    negative = negative.masked_fill(negatives == targets[:, None], 0.0).sum(1)
    return ((positive + negative) * known).sum() / (len(negatives) + 1)


def calibrated_power(num_negatives: int, num_items: int, calibration: float) -> float:
    """gBCE's β of t: α (t (1 - 1/α) + 1/α), α the share of the other items that is drawn (Petrov & Macdonald, 2023)."""
    share = min(1.0, num_negatives / max(1, num_items - 1))
    return share * (calibration * (1 - 1 / share) + 1 / share)


def _cast(states: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Under autocast both in its type: the scores are the largest product of a step."""
    kind = states.device.type
    if not torch.is_autocast_enabled(kind):
        return states, items
    dtype = torch.get_autocast_dtype(kind)
    return states.to(dtype), items.to(dtype)
