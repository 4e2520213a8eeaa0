"""`catalogue_cross_entropy` in PyTorch: the loss of each row.

Small problems keep the slopes of their logits for the backward; larger ones go over the items in chunks, twice, and
hold neither logits nor probabilities of more than one. Sampled softmax holds [T, M + 1] logits.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["catalogue_cross_entropy"]

KEPT_LOGITS = 1 << 24  # up to here, 64 MB of float32, keeping is cheaper than computing twice
CHUNK_LOGITS = 1 << 21  # logits at a time: 8 MB of float32 stay in the cache between the passes over them


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
) -> torch.Tensor:
    """The loss [T] of each row, 0 where ignored. `longrec.kernels.catalogue_cross_entropy` says what is what.

    Products have the inputs' dtype; exponentials and sums are float64 for float64, else float32, as is the loss.
    """
    rows = (targets != ignore_index).nonzero()[:, 0]
    num_rows = len(targets)
    if len(rows) < num_rows:
        hidden, targets = hidden.index_select(0, rows), targets[rows]
        target_log_q = None if target_log_q is None else target_log_q[rows]
    if negatives is not None:
        loss = _sampled_loss(hidden, items, targets, negatives, log_q, target_log_q)
    else:
        loss = _FullSoftmax.apply(hidden, items, targets, label_smoothing)
    return loss if len(rows) == num_rows else loss.new_zeros(num_rows).index_copy(0, rows, loss)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _sampled_loss(
    hidden: torch.Tensor,
    items: torch.Tensor,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    log_q: torch.Tensor | None,
    target_log_q: torch.Tensor | None,
) -> torch.Tensor:
    wide = _wide(hidden.dtype)
    # embedding's backward, unlike indexing's, is parallel
    own = (hidden * F.embedding(targets, items)).sum(1, dtype=wide)  # [T]
    others = (hidden @ F.embedding(negatives, items).T).to(wide)  # [T, M]
    if target_log_q is not None:
        own = own - target_log_q
    if log_q is not None:
        others = others - log_q
    others = others.masked_fill(negatives == targets[:, None], -torch.inf)
    return torch.cat([own[:, None], others], 1).logsumexp(1) - own


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, items: torch.Tensor, targets: torch.Tensor, label_smoothing: float
    ) -> torch.Tensor:
        wide = _wide(hidden.dtype)
        ctx.label_smoothing = label_smoothing
        ctx.kept = len(hidden) * len(items) <= KEPT_LOGITS
        if ctx.kept:
            log_p = torch.log_softmax(hidden @ items.T, 1, dtype=wide)
            loss = log_p.gather(1, targets[:, None])[:, 0].mul_(label_smoothing - 1)
            if label_smoothing:
                loss.sub_(log_p.mean(1), alpha=label_smoothing)
            if any(ctx.needs_input_grad):
                slope = _slope(log_p.exp_(), targets, len(items), label_smoothing)
                ctx.save_for_backward(hidden, items, slope.to(hidden.dtype))
            return loss
        lse = _chunked_lse(hidden, items)
        ctx.save_for_backward(hidden, items, targets, lse)
        own = (hidden * items[targets]).sum(1, dtype=wide)
        loss = lse.sub(own, alpha=1 - label_smoothing)
        if label_smoothing:
            # the mean of the logits is the product with the mean of the items
            loss.sub_(hidden.to(wide) @ items.mean(0, dtype=wide), alpha=label_smoothing)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        hidden, items, *rest = ctx.saved_tensors
        needs_hidden, needs_items = ctx.needs_input_grad[:2]
        # rows are weighted in hidden and in its gradient, which costs d and not N products a row
        weighted = (hidden * grad[:, None]).to(hidden.dtype) if needs_items else hidden
        if ctx.kept:
            (slope,) = rest
            grad_hidden = slope @ items if needs_hidden else None
            grad_items = slope.T @ weighted if needs_items else None
        else:
            targets, lse = rest
            grad_hidden = lse.new_zeros(hidden.shape) if needs_hidden else None
            grad_items = torch.empty(items.shape, dtype=items.dtype, device=items.device) if needs_items else None
            for start, chunk, logits in _chunks(hidden, items):
                p = logits.sub_(lse[:, None]).exp_()
                slope = _slope(p, targets - start, len(items), ctx.label_smoothing).to(hidden.dtype)
                if grad_hidden is not None:
                    grad_hidden += slope @ chunk
                if grad_items is not None:
                    torch.mm(slope.T, weighted, out=grad_items[start : start + len(chunk)])
        if grad_hidden is not None:
            grad_hidden = (grad_hidden * grad[:, None]).to(hidden.dtype)
        return grad_hidden, grad_items, None, None


def _slope(p: torch.Tensor, targets: torch.Tensor, num_items: int, label_smoothing: float) -> torch.Tensor:
    """A row's loss by its logits, from probabilities [T, n], in place; targets outside of the n are of other chunks."""
    if label_smoothing:
        p.sub_(label_smoothing / num_items)
    here = ((targets >= 0) & (targets < p.shape[1])).nonzero()[:, 0]
    p[here, targets[here]] -= 1 - label_smoothing
    return p


def _chunks(hidden: torch.Tensor, items: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """For each chunk of the items its start, its rows and its logits, in a buffer that the next chunk takes over."""
    size = max(256, CHUNK_LOGITS // max(1, len(hidden)))
    wide = _wide(hidden.dtype)
    buffer = hidden.new_empty(len(hidden) * size)
    for start in range(0, len(items), size):
        chunk = items[start : start + size]
        logits = buffer[: len(hidden) * len(chunk)].view(len(hidden), len(chunk))
        yield start, chunk, torch.mm(hidden, chunk.T, out=logits).to(wide)


def _chunked_lse(hidden: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    wide = _wide(hidden.dtype)
    peak = torch.full((len(hidden),), -torch.inf, dtype=wide, device=hidden.device)
    total = torch.zeros_like(peak)
    for _, _, logits in _chunks(hidden, items):
        higher = torch.maximum(peak, logits.amax(1))
        total = total * (peak - higher).exp_() + logits.sub_(higher[:, None]).exp_().sum(1)
        peak = higher
    return peak + total.log()
