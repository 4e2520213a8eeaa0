"""`catalogue_cross_entropy`: the training loss over a catalogue, full or sampled softmax, without [T, N] logits.

With logits z_tn = h_t . w_n and s the label smoothing, the full softmax is

    loss_t = log sum_n exp z_tn - (1 - s) z_t,target - s mean_n z_tn

and the sampled one, over the target and M negatives that all rows share, with q the sampler's probabilities,

    loss_t = log (exp y_t + sum_m exp y_tm) - y_t,    y_t = z_t,target - log q_target,    y_tm = z_tm - log q_m

where a negative that is the row's own target is left out. Logs are natural.

Shapes: T rows, d width, N items, M negatives.
"""

import torch

from longrec.errors import ArgumentError
from longrec.kernels.checks import check_tensor, check_values
from longrec.kernels.reference.cross_entropy import catalogue_cross_entropy as catalogue_cross_entropy_reference

__all__ = ["catalogue_cross_entropy", "catalogue_cross_entropy_reference"]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MAX_DIM = 256
REDUCTIONS = ("mean", "sum", "none")


def catalogue_cross_entropy(
    hidden: torch.Tensor,
    items: torch.Tensor,
    targets: torch.Tensor,
    *,
    negatives: torch.Tensor | None = None,
    log_q: torch.Tensor | None = None,
    target_log_q: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -1,
    reduction: str = "mean",
    validate: bool = True,
) -> torch.Tensor:
    """Cross entropy of each row's target among all items, or among sampled ones. Differentiable in hidden and items.

    Label smoothing: Szegedy et al., Rethinking the Inception Architecture, 2016, section 7. Sampled softmax with its
    correction: Bengio and Senecal, 2008; Yi et al., Sampling-Bias-Corrected Neural Modeling, 2019. Deterministic: the
    same call gives the same bits, gradients too.

    Args:
        hidden: [T, d], d <= 256: float32, float16 or bfloat16 (on the CPU float64 too); rows may have any stride.
        items: [N, d], of hidden's dtype; rows may have any stride.
        targets: [T] int64, each an item or `ignore_index`.
        negatives: [M] int64, items drawn for this call, repeats allowed: sampled softmax. None: full softmax.
        log_q: [M] float32, or float64 on the CPU, natural log of the probability (or expected count) with which each
            negative was drawn; None: no correction.
        target_log_q: [T], the same of the targets; needed with `log_q` and not taken without it.
        label_smoothing: 0 <= s < 1; must be 0 with negatives.
        ignore_index: target of rows that count for nothing: their loss is 0 and they have no gradient.
        reduction: "mean" over the rows that aren't ignored (0 where all are), "sum", or "none".
        validate: also check values, for which the host waits for the device.

    Returns:
        The loss, a scalar, or [T] for "none": float32, or float64 for float64.

    Raises:
        ArgumentError: shape, dtype, stride, device, label_smoothing, reduction, or (with `validate`) a target or
            negative that is no item, or a log probability that isn't finite.
    """
    _check(hidden, items, targets, negatives, log_q, target_log_q, label_smoothing, reduction)
    if validate:
        _check_values(len(items), targets, negatives, log_q, target_log_q, ignore_index)
    rows = catalogue_cross_entropy_reference(
        hidden, items, targets, negatives=negatives, log_q=log_q, target_log_q=target_log_q,
        label_smoothing=label_smoothing, ignore_index=ignore_index,
    )  # fmt: skip
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    return rows.sum() / (targets != ignore_index).sum().clamp(min=1)


def _check(
    hidden: torch.Tensor,
    items: torch.Tensor,
    targets: torch.Tensor,
    negatives: torch.Tensor | None,
    log_q: torch.Tensor | None,
    target_log_q: torch.Tensor | None,
    label_smoothing: float,
    reduction: str,
) -> None:
    floats = FLOATS if isinstance(hidden, torch.Tensor) and hidden.is_cuda else (*FLOATS, torch.float64)
    check_tensor("hidden", hidden, (("T", None), ("d", None)), floats, dense_from=1)
    num_rows, dim = hidden.shape
    if not 0 < dim <= MAX_DIM:
        raise ArgumentError("hidden", f"d of 1..{MAX_DIM}", str(dim))
    check_tensor("items", items, (("N", None), ("d", dim)), (hidden.dtype,), like=hidden, dense_from=1)
    if not 0 < len(items) < 1 << 31:
        raise ArgumentError("items", "N of 1..2^31 - 1", str(len(items)))
    check_tensor("targets", targets, (("T", num_rows),), (torch.int64,), like=hidden)
    if not 0 <= label_smoothing < 1:
        raise ArgumentError(f"label_smoothing={label_smoothing}", "0 <= label_smoothing < 1")
    if reduction not in REDUCTIONS:
        raise ArgumentError(f"reduction={reduction!r}", " or ".join(map(repr, REDUCTIONS)))
    if (log_q is None) != (target_log_q is None):
        raise ArgumentError("log_q, target_log_q", "both or neither", "one of the two")
    if negatives is None:
        if log_q is not None:
            raise ArgumentError("log_q", "None without negatives", "a tensor")
        return
    if label_smoothing:
        raise ArgumentError(f"label_smoothing={label_smoothing}", "0 with negatives")
    check_tensor("negatives", negatives, (("M", None),), (torch.int64,), like=hidden)
    wide = (torch.float64,) if hidden.dtype == torch.float64 else (torch.float32,)
    for name, log, letter, size in (("log_q", log_q, "M", len(negatives)), ("target_log_q", target_log_q, "T", num_rows)):
        if log is not None:
            check_tensor(name, log, ((letter, size),), wide, like=hidden)


def _check_values(
    num_items: int,
    targets: torch.Tensor,
    negatives: torch.Tensor | None,
    log_q: torch.Tensor | None,
    target_log_q: torch.Tensor | None,
    ignore_index: int,
) -> None:
    known = (targets >= 0) & (targets < num_items) | (targets == ignore_index)
    check_values("targets", known, f"0..{num_items - 1} (items - 1) or ignore_index {ignore_index}")
    if negatives is not None:
        check_values("negatives", (negatives >= 0) & (negatives < num_items), f"0..{num_items - 1} (items - 1)")
    for name, log in (("log_q", log_q), ("target_log_q", target_log_q)):
        if log is not None:
            check_values(name, log.isfinite(), "finite")
