"""The gradients of a case of `segment_attention`, by the kernels and by autograd of the reference, side by side."""

from typing import Any

import torch

from longrec.kernels.attention_backward_plan import BackwardPlan
from longrec.kernels.attention_cases import AttentionArguments, AttentionCase
from longrec.kernels.exactness import Comparison, compare
from longrec.kernels.reference import segment_attention as reference
from longrec.kernels.segment_attention import segment_attention
from longrec.kernels.segment_attention_backward import segment_attention_backward

__all__ = ["clean", "compare_gradients", "kernel_gradients", "leaves", "reference_gradients"]

NAMES = ("q", "k", "v", "k_pages", "v_pages", "u", "v_relative", "r", "position_table", "time_table")


def leaves(
    arguments: AttentionArguments,
) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], dict[str, Any]]:
    """The tensors with gradients, by `AttentionGradients`' names; each a leaf of its own in the returned keywords."""
    q, k, v, cu_seqlens = arguments.tensors
    keywords = dict(arguments.keywords)
    found = {name: x.detach().clone().requires_grad_() for name, x in (("q", q), ("k", k), ("v", v))}
    memory, relative = keywords["memory"], keywords.get("relative")
    if memory is not None:
        found |= {n: getattr(memory, n).detach().clone().requires_grad_() for n in ("k_pages", "v_pages")}
        keywords["memory"] = memory._replace(k_pages=found["k_pages"], v_pages=found["v_pages"])
    if relative is not None:
        terms = {"u": relative.u, "v_relative": relative.v, "r": relative.r}
        found |= {name: term.detach().clone().requires_grad_() for name, term in terms.items()}
        keywords["relative"] = type(relative)(*(found[name] for name in terms))
    for name, table in (("position_bias", "position_table"), ("time_bias", "time_table")):
        if keywords.get(name) is not None:
            found[table] = keywords[name].table.detach().clone().requires_grad_()
            keywords[name] = keywords[name]._replace(table=found[table])
    return found, (found["q"], found["k"], found["v"], cu_seqlens), keywords


def clean(arguments: AttentionArguments) -> AttentionArguments:
    """Free pages hold NaN; autograd of the reference would carry it into their gradients."""
    memory = arguments.keywords["memory"]
    if memory is None:
        return arguments
    pages = {name: getattr(memory, name).nan_to_num(0.0) for name in ("k_pages", "v_pages")}
    return arguments._replace(keywords={**arguments.keywords, "memory": memory._replace(**pages)})


def reference_gradients(arguments: AttentionArguments, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """By autograd of the reference, of (out * weight).sum()."""
    found, tensors, keywords = leaves(clean(arguments))
    out, _ = reference(*tensors, **keywords)
    return dict(zip(found, torch.autograd.grad((out * weight).sum(), tuple(found.values())), strict=True))


def kernel_gradients(
    arguments: AttentionArguments, weight: torch.Tensor, plan: BackwardPlan | None = None
) -> dict[str, torch.Tensor]:
    """By the kernels' forward and backward, of (out * weight).sum(); `plan`: other tiles than those that ship."""
    found, tensors, keywords = leaves(arguments)
    with torch.no_grad():
        out, lse2 = segment_attention(*tensors, **keywords)
        gradients = segment_attention_backward(
            weight.to(out.dtype), None, *tensors[:3], out, lse2, tensors[3], memory_gradient=True, plan=plan, **keywords
        )
    return {name: x for name, x in zip(NAMES, gradients, strict=True) if name in found and x is not None}


def compare_gradients(
    case: AttentionCase,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    plan: BackwardPlan | None = None,
) -> list[Comparison]:
    """Every gradient of a case; two rounding units, one for the forward's results and one for the gradient."""
    arguments = case.make(dtype, device)
    weight = torch.randn(arguments.tensors[0].shape, device=device).to(dtype)
    exact = reference_gradients(arguments.to(torch.float64), weight.double())
    same_dtype = reference_gradients(arguments, weight)
    ours = kernel_gradients(arguments, weight, plan)
    return [compare(f"grad {name}", ours[name], same_dtype[name], exact[name], dtype, units=2) for name in exact]
