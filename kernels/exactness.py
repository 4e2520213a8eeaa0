"""How exact a kernel must be: the one rule that tests on a CPU and checks on a GPU hold results against.

    error <= 2 x error of PyTorch in the same dtype + rounding units,    both against float64

of the maximum and of the root mean square over a result (Dao, FlashAttention, takes the maximum's).
"""

from typing import NamedTuple

import torch

__all__ = ["Comparison", "compare"]


class Comparison(NamedTuple):
    """One result of one case beside what it may be off by.

    Args:
        name: of the result: "out", "grad k".
        error, allowed: maximum. rms_error, rms_allowed: root mean square.
        wrong: what no error measures, such as an infinity in the wrong place; empty: nothing.
    """

    name: str
    error: float
    allowed: float
    rms_error: float
    rms_allowed: float
    wrong: str = ""

    @property
    def passed(self) -> bool:
        """Whether the result is exact enough; NaN is not."""
        return not self.wrong and self.error <= self.allowed and self.rms_error <= self.rms_allowed

    def __str__(self) -> str:
        text = (
            f"{self.name}: max error {self.error:.3g}, allowed {self.allowed:.3g}; "
            f"rms {self.rms_error:.3g}, allowed {self.rms_allowed:.3g}"
        )
        return f"{text}; {self.wrong}" if self.wrong else text


def compare(
    name: str,
    got: torch.Tensor,
    same_dtype: torch.Tensor,
    exact: torch.Tensor,
    dtype: torch.dtype,
    units: int = 1,
) -> Comparison:
    """Hold a result against float64.

    Args:
        name: of the result.
        got: what the kernel gave.
        same_dtype: what PyTorch gave from the same inputs in `dtype`.
        exact: what PyTorch gave in float64. Where it is -inf (an empty row's log-sum-exp), so must `got` be.
        dtype: whose rounding unit counts.
        units: roundings of the largest value that are granted beside.
    """
    if got.shape != exact.shape:
        return Comparison(name, torch.inf, 0.0, torch.inf, 0.0, f"shape {list(got.shape)}, not {list(exact.shape)}")
    if got.numel() == 0:
        return Comparison(name, 0.0, 0.0, 0.0, 0.0)
    empty = exact == -torch.inf
    wrong = "" if torch.equal(got == -torch.inf, empty) else "-inf in other places than float64"
    got, same_dtype, exact = (x.double().masked_fill(empty, 0.0) for x in (got, same_dtype, exact))
    ours, theirs = (got - exact).abs(), (same_dtype - exact).abs()
    unit = units * torch.finfo(dtype).eps * float(exact.abs().max())
    return Comparison(
        name,
        float(ours.max()),
        2 * float(theirs.max()) + unit,
        float(ours.square().mean().sqrt()),
        2 * float(theirs.square().mean().sqrt()) + unit,
        wrong,
    )
