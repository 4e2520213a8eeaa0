"""Problems for `catalogue_cross_entropy`, and their answers with every logit in memory."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from longrec.kernels.cross_entropy import catalogue_cross_entropy_triton
from longrec.kernels.exactness import Comparison, compare

__all__ = ["SAMPLED", "SHAPES", "CrossEntropyCase", "compare_cross_entropy", "plain", "results"]

NUM_NEGATIVES = 45
SMOOTHING = 0.1
Sample = dict[str, Any]  # tensors


class CrossEntropyCase(NamedTuple):
    """T rows over N items of width d; full softmax, or sampled."""

    num_rows: int
    num_items: int
    dim: int
    sampled: bool = False

    @property
    def id(self) -> str:
        """`T33-N130-d32-sampled`."""
        text = f"T{self.num_rows}-N{self.num_items}-d{self.dim}"
        return f"{text}-sampled" if self.sampled else text

    @property
    def smoothing(self) -> float:
        """Label smoothing, which a sampled softmax does not take."""
        return 0.0 if self.sampled else SMOOTHING

    def make(
        self, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Sample]:
        """Hidden and items, both leaves, targets of which one is ignored, and the sample's keywords."""
        torch.manual_seed(self.num_rows)
        hidden = torch.randn(self.num_rows, self.dim).to(device, dtype).requires_grad_()
        items = (torch.randn(self.num_items, self.dim) / 4).to(device, dtype).requires_grad_()
        targets = torch.randint(self.num_items, (self.num_rows,))
        if self.num_rows > 2:
            targets[1] = -1
        if not self.sampled:
            return hidden, items, targets.to(device), {}
        negatives = torch.randint(self.num_items, (NUM_NEGATIVES,))
        negatives[0] = targets[0]  # an accidental hit
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        sample = {
            "negatives": negatives,
            "log_q": torch.randn(NUM_NEGATIVES).to(wide) - 3,
            "target_log_q": torch.randn(self.num_rows).to(wide),
        }
        return hidden, items, targets.to(device), {name: x.to(device) for name, x in sample.items()}


SHAPES = (
    CrossEntropyCase(1, 7, 16),
    CrossEntropyCase(33, 130, 32),
    CrossEntropyCase(70, 1682, 64),
    CrossEntropyCase(20, 70, 190),  # float32 is multiplied in pieces of the width
)
SAMPLED = tuple(case._replace(sampled=True) for case in SHAPES)


def plain(
    hidden: torch.Tensor,
    items: torch.Tensor,
    targets: torch.Tensor,
    smoothing: float = 0.0,
    negatives: torch.Tensor | None = None,
    log_q: torch.Tensor | None = None,
    target_log_q: torch.Tensor | None = None,
) -> torch.Tensor:
    """Row losses [T] with every logit in memory."""
    if negatives is None or log_q is None or target_log_q is None:
        return F.cross_entropy(hidden @ items.T, targets, ignore_index=-1, reduction="none", label_smoothing=smoothing)
    known = targets.clamp(min=0)
    own = (hidden * items[known]).sum(1) - target_log_q
    others = hidden @ items[negatives].T - log_q
    others = others.masked_fill(negatives == known[:, None], -torch.inf)
    loss = torch.cat((own[:, None], others), 1).logsumexp(1) - own
    return loss.masked_fill(targets == -1, 0.0)


def results(loss: torch.Tensor, hidden: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The losses, and the gradients of hidden and items under a weight of each row."""
    weight = torch.linspace(0.5, 1.5, len(loss), dtype=loss.dtype, device=loss.device)
    return loss.detach(), *torch.autograd.grad((loss * weight).sum(), (hidden, items))


def compare_cross_entropy(
    case: CrossEntropyCase, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> list[Comparison]:
    """Loss and gradients of the kernels."""
    hidden, items, targets, sample = case.make(dtype, device)
    wide_hidden, wide_items = (x.detach().double().requires_grad_() for x in (hidden, items))
    wide_sample = {name: x.double() if x.is_floating_point() else x for name, x in sample.items()}
    exact = results(plain(wide_hidden, wide_items, targets, case.smoothing, **wide_sample), wide_hidden, wide_items)
    same_dtype = results(plain(hidden, items, targets, case.smoothing, **sample), hidden, items)
    kernel = results(
        catalogue_cross_entropy_triton(hidden, items, targets, label_smoothing=case.smoothing, **sample), hidden, items
    )
    names = ("loss", "grad hidden", "grad items")
    return [compare(*result, dtype) for result in zip(names, kernel, same_dtype, exact, strict=True)]
