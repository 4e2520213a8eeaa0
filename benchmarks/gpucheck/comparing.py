"""How results are held against others, beside `longrec.kernels.exactness`, and how what went wrong is said."""

import torch

from longrec.kernels.attention_cases import AttentionArguments
from longrec.kernels.exactness import Comparison, compare
from longrec.kernels.reference import segment_attention as reference

__all__ = ["compare_attention", "describe", "same"]


def same(name: str, got: torch.Tensor, expected: torch.Tensor) -> Comparison:
    """Equality to the bit as a comparison; NaN equals nothing."""
    if torch.equal(got, expected):
        return Comparison(name, 0.0, 0.0, 0.0, 0.0)
    if got.shape != expected.shape:
        return Comparison(name, torch.inf, 0.0, torch.inf, 0.0, f"shape {list(got.shape)}, not {list(expected.shape)}")
    off = (got.double() - expected.double()).abs().nan_to_num(nan=torch.inf)
    wrong = f"{int((got != expected).sum())} of {got.numel()} differ"
    return Comparison(name, float(off.max()), 0.0, float(off.square().mean().sqrt()), 0.0, wrong)


def compare_attention(
    arguments: AttentionArguments, out: torch.Tensor, lse2: torch.Tensor, dtype: torch.dtype
) -> list[Comparison]:
    """Results of `segment_attention` on these arguments."""
    same_dtype, exact = (reference(*a.tensors, **a.keywords) for a in (arguments, arguments.to(torch.float64)))
    return [
        compare(name, got, theirs, truth, dtype)
        for name, got, theirs, truth in zip(("out", "lse2"), (out, lse2), same_dtype, exact, strict=True)
    ]


def describe(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}"
