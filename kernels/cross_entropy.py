"""`catalogue_cross_entropy`: the training loss over a catalogue, full or sampled softmax, without [T, N] logits.

With logits z_tn = h_t . w_n and s the label smoothing, the full softmax is

    loss_t = log sum_n exp z_tn - (1 - s) z_t,target - s mean_n z_tn

and the sampled one, over the target and M negatives that all rows share, with q the sampler's probabilities,

    loss_t = log (exp y_t + sum_m exp y_tm) - y_t,    y_t = z_t,target - log q_target,    y_tm = z_tm - log q_m

where a negative that is the row's own target is left out. Logs are natural.

Forward: one kernel goes over the columns (items or negatives) and leaves base-2 log-sum-exps, one adds the target's
logit. Backward: the logits are computed again, once by programs that own rows of hidden and once by programs that own
rows of items, so that each gradient is summed by its owner, in order, without atomics. What is saved in between is a
log-sum-exp a row. Of the sampled loss, the negatives' gradients [M, d] and the rows' are added up by item, in the order
of a stable sort; the items' gradient is dense in any case.

Shapes: T rows, d width, N items, M negatives.
"""

# mypy: disable-error-code="no-untyped-call"

import math
from typing import Any, NamedTuple

import torch
import triton

from longrec.errors import ArgumentError
from longrec.kernels.checks import check_tensor, check_values
from longrec.kernels.cross_entropy_kernels import (
    SLOPE_SCALE,
    gather_kernel,
    hidden_gradient_kernel,
    item_gradient_kernel,
    loss_kernel,
    lse_kernel,
)
from longrec.kernels.cross_entropy_plan import GATHER_TILE, ROW_TILE, padded_dim, part_size, plan_cross_entropy
from longrec.kernels.reference.cross_entropy import catalogue_cross_entropy as catalogue_cross_entropy_reference
from longrec.kernels.shipped import MAX_REGISTERS, target_of

__all__ = ["catalogue_cross_entropy", "catalogue_cross_entropy_reference", "catalogue_cross_entropy_triton"]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MAX_DIM = 256
REDUCTIONS = ("mean", "sum", "none")
CPU_MULTIPROCESSORS = 132  # an H100's, so that the interpreter cuts work as an H100 would


class _Problem(NamedTuple):
    """What forward and backward share, apart from the tensors with gradients."""

    targets: torch.Tensor
    negatives: torch.Tensor | None
    log_q: torch.Tensor | None
    target_log_q: torch.Tensor | None
    label_smoothing: float
    ignore_index: int


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, items: torch.Tensor, problem: _Problem) -> torch.Tensor:
        loss, lse2 = _launch_loss(hidden, items, problem)
        ctx.problem = problem
        ctx.save_for_backward(hidden, items, loss, lse2)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        hidden, items, loss, lse2 = ctx.saved_tensors
        problem: _Problem = ctx.problem
        grad = torch.where(problem.targets == problem.ignore_index, 0.0, grad)  # grad may be one number, expanded
        # of the target's logit, which is no column of a sample: p - 1 = exp(-loss) - 1
        own_slope = None if problem.negatives is None else torch.expm1(-loss)
        grad_hidden = grad_items = None
        if ctx.needs_input_grad[0]:
            grad_hidden = _launch_hidden_gradient(hidden, items, problem, lse2, grad, own_slope)
        if ctx.needs_input_grad[1]:
            grad_items = _launch_column_gradients(hidden, items, problem, lse2, grad)
            if problem.negatives is not None and own_slope is not None:
                grad_items = _launch_gather(hidden, items, problem, own_slope * grad, grad_items)
        return grad_hidden, grad_items, None


def catalogue_cross_entropy_triton(
    hidden: torch.Tensor,
    items: torch.Tensor,
    targets: torch.Tensor,
    *,
    negatives: torch.Tensor | None = None,
    log_q: torch.Tensor | None = None,
    target_log_q: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -1,
) -> torch.Tensor:
    """The loss [T] of each row, by the kernels; `catalogue_cross_entropy` has made the checks."""
    problem = _Problem(targets, negatives, log_q, target_log_q, label_smoothing, ignore_index)
    if not len(targets):
        return (hidden.sum() + items[:1].sum()).float() * targets
    loss: torch.Tensor = _CrossEntropy.apply(hidden, items, problem)
    return loss


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _num_columns(items: torch.Tensor, problem: _Problem) -> int:
    return len(items if problem.negatives is None else problem.negatives)


def _arguments(hidden: torch.Tensor, items: torch.Tensor, problem: _Problem) -> dict[str, Any]:
    """What all three kernels with logits are given."""
    return {
        "hidden_ptr": hidden,
        "items_ptr": items,
        "targets_ptr": problem.targets,
        "negatives_ptr": problem.negatives,
        "log_q_ptr": problem.log_q,
        "num_rows": len(hidden),
        "num_columns": _num_columns(items, problem),
        "hidden_stride": hidden.stride(0),
        "items_stride": items.stride(0),
        "WIDTH": hidden.shape[1],
        "DIM": padded_dim(hidden.shape[1]),
    }


def _launch_loss(hidden: torch.Tensor, items: torch.Tensor, problem: _Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the base-2 log-sum-exp of each row, [T] float32."""
    num_rows, dim = hidden.shape
    num_columns = _num_columns(items, problem)
    tile = plan_cross_entropy(target_of(hidden.device), dim, hidden.element_size()).lse
    size = part_size(num_rows, tile.block_m, num_columns, tile.block_n, _multiprocessors(hidden.device))
    num_parts = triton.cdiv(num_columns, size)
    parts, loss, lse2 = (
        torch.empty(shape, dtype=torch.float32, device=hidden.device)
        for shape in ((num_parts, num_rows), (num_rows,), (num_rows,))
    )
    if num_parts:
        lse_kernel[(triton.cdiv(num_rows, tile.block_m), num_parts)](
            **_arguments(hidden, items, problem),
            parts_ptr=parts,
            part_columns=size,
            ignore_index=problem.ignore_index,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            maxnreg=MAX_REGISTERS,
        )
    loss_kernel[(triton.cdiv(num_rows, ROW_TILE.block_m),)](
        hidden_ptr=hidden,
        items_ptr=items,
        targets_ptr=problem.targets,
        mean_ptr=items.mean(0, dtype=torch.float32) if problem.label_smoothing else None,
        target_log_q_ptr=problem.target_log_q,
        parts_ptr=parts,
        lse2_ptr=lse2,
        loss_ptr=loss,
        num_rows=num_rows,
        num_parts=num_parts,
        hidden_stride=hidden.stride(0),
        items_stride=items.stride(0),
        ignore_index=problem.ignore_index,
        label_smoothing=problem.label_smoothing,
        SAMPLED=problem.negatives is not None,
        WIDTH=dim,
        DIM=padded_dim(dim),
        BLOCK_M=ROW_TILE.block_m,
        num_warps=ROW_TILE.num_warps,
        num_stages=ROW_TILE.num_stages,
        maxnreg=MAX_REGISTERS,
    )
    return loss, lse2


def _launch_hidden_gradient(
    hidden: torch.Tensor,
    items: torch.Tensor,
    problem: _Problem,
    lse2: torch.Tensor,
    grad: torch.Tensor,
    own_slope: torch.Tensor | None,
) -> torch.Tensor:
    num_rows, dim = hidden.shape
    num_columns = _num_columns(items, problem)
    tile = plan_cross_entropy(target_of(hidden.device), dim, hidden.element_size()).hidden
    size = part_size(num_rows, tile.block_m, num_columns, tile.block_n, _multiprocessors(hidden.device))
    num_parts = max(1, triton.cdiv(num_columns, size))  # without negatives there are the targets still
    parts = _parts(num_parts, num_rows, hidden)
    hidden_gradient_kernel[(triton.cdiv(num_rows, tile.block_m), num_parts)](
        **_arguments(hidden, items, problem),
        lse2_ptr=lse2,
        grad_ptr=grad,
        own_slope_ptr=own_slope,
        parts_ptr=parts,
        part_columns=size,
        certain=(1 - problem.label_smoothing) * SLOPE_SCALE,
        spread=problem.label_smoothing / len(items) * SLOPE_SCALE,
        shift=math.log2(SLOPE_SCALE),
        unscale=1 / SLOPE_SCALE,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=tile.block_d or padded_dim(dim),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        maxnreg=MAX_REGISTERS,
    )
    return parts[0] if num_parts == 1 else parts.sum(0).to(hidden.dtype)


def _launch_column_gradients(
    hidden: torch.Tensor, items: torch.Tensor, problem: _Problem, lse2: torch.Tensor, grad: torch.Tensor
) -> torch.Tensor:
    """The gradients of the columns: [N, d] in items' dtype, or of the negatives, [M, d] float32."""
    num_rows, dim = hidden.shape
    num_columns = _num_columns(items, problem)
    tile = plan_cross_entropy(target_of(hidden.device), dim, hidden.element_size()).items
    size = part_size(num_columns, tile.block_n, num_rows, tile.block_m, _multiprocessors(hidden.device))
    num_parts = triton.cdiv(num_rows, size)
    sampled = problem.negatives is not None
    parts = _parts(num_parts, num_columns, hidden, torch.float32 if sampled else None)
    peak = grad.abs().amax().clamp(min=1e-30)
    if num_columns:
        item_gradient_kernel[(triton.cdiv(num_columns, tile.block_n), num_parts)](
            **_arguments(hidden, items, problem),
            lse2_ptr=lse2,
            weight_ptr=grad / peak * SLOPE_SCALE,
            unscale_ptr=peak / SLOPE_SCALE,
            parts_ptr=parts,
            part_rows=size,
            certain=1 - problem.label_smoothing,
            spread=problem.label_smoothing / len(items),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_D=tile.block_d or padded_dim(dim),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            maxnreg=MAX_REGISTERS,
        )
    if num_parts == 1:
        return parts[0]
    return parts.sum(0) if sampled else parts.sum(0).to(items.dtype)


def _parts(num_parts: int, num_rows: int, like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Room for the parts of a gradient: float32 if they are to be added, else the gradient itself."""
    dtype = dtype or (like.dtype if num_parts == 1 else torch.float32)
    return torch.empty(num_parts, num_rows, like.shape[1], dtype=dtype, device=like.device)


def _launch_gather(
    hidden: torch.Tensor, items: torch.Tensor, problem: _Problem, own_weight: torch.Tensor, grad_negatives: torch.Tensor
) -> torch.Tensor:
    """The items' gradient [N, d] from the targets' weights [T] and the negatives' gradients [M, d]."""
    assert problem.negatives is not None
    num_rows, dim = hidden.shape
    counted = problem.targets.masked_fill(problem.targets == problem.ignore_index, -1)
    item, source = torch.cat([counted, problem.negatives]).sort(stable=True)
    grad_items = torch.zeros(items.shape, dtype=items.dtype, device=items.device)
    gather_kernel[(len(item),)](
        hidden_ptr=hidden,
        own_weight_ptr=own_weight,
        negatives_gradient_ptr=grad_negatives,
        item_ptr=item,
        source_ptr=source,
        grad_items_ptr=grad_items,
        num_rows=num_rows,
        num_negatives=len(problem.negatives),
        hidden_stride=hidden.stride(0),
        WIDTH=dim,
        DIM=padded_dim(dim),
        BLOCK=GATHER_TILE.block_m,
        num_warps=GATHER_TILE.num_warps,
        num_stages=GATHER_TILE.num_stages,
        maxnreg=MAX_REGISTERS,
    )
    return grad_items


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
    body = catalogue_cross_entropy_triton if hidden.is_cuda else catalogue_cross_entropy_reference
    rows = body(
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
    for name, log, letter, size in (
        ("log_q", log_q, "M", len(negatives)),
        ("target_log_q", target_log_q, "T", num_rows),
    ):
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
