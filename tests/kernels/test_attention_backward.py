"""The backward of `segment_attention`: gradcheck of the reference, kernels against the reference's float64
gradients."""

import pytest
import torch

from longrec.kernels.attention_cases import AttentionCase
from longrec.kernels.reference import segment_attention as reference
from longrec.kernels.segment_attention import segment_attention
from longrec.kernels.segment_attention_backward import segment_attention_backward

CASES = [
    AttentionCase((7, 1, 20)),
    AttentionCase((5, 33), past=(37, 0), heads=(4, 2), window=30),
    AttentionCase((5, 33), past=(37, 0), variant="silu", window=64),
    AttentionCase((3, 21), past=(20, 5), variant="position"),
    AttentionCase((3, 21), past=(20, 5), variant="time"),
    AttentionCase((3, 21), past=(20, 5), heads=(2, 2), variant="relative", window=25),
    AttentionCase((9, 24), past=(18, 0), variant="hstu", window=40, targets=(2, 11)),
]
NAMES = ("q", "k", "v", "k_pages", "v_pages", "u", "v_relative", "r", "position_table", "time_table")


def leaves(arguments):
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


def clean(arguments):
    """Free pages hold NaN; autograd of the reference would carry it into their gradients."""
    memory = arguments.keywords["memory"]
    if memory is None:
        return arguments
    pages = {name: getattr(memory, name).nan_to_num(0.0) for name in ("k_pages", "v_pages")}
    return arguments._replace(keywords={**arguments.keywords, "memory": memory._replace(**pages)})


def reference_gradients(arguments, weight):
    found, tensors, keywords = leaves(clean(arguments))
    out, _ = reference(*tensors, **keywords)
    return dict(zip(found, torch.autograd.grad((out * weight).sum(), found.values(), allow_unused=True), strict=True))


def kernel_gradients(arguments, weight):
    found, tensors, keywords = leaves(arguments)
    with torch.no_grad():
        out, lse2 = segment_attention(*tensors, **keywords)
        gradients = segment_attention_backward(
            weight.to(out.dtype), None, *tensors[:3], out, lse2, tensors[3], memory_gradient=True, **keywords
        )
    return {name: gradient for name, gradient in zip(NAMES, gradients, strict=True) if name in found}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_reference_gradcheck(case):
    small = case._replace(new=(3, 2), past=(4, 0) if case.past else None, window=min(case.window, 5), targets=None)
    arguments = clean(small.make(torch.float32).to(torch.float64))
    found, tensors, keywords = leaves(arguments)
    rows = {name: found[name] for name in ("q", "k", "v")}

    def attend(q, k, v):
        return reference(q, k, v, tensors[3], **keywords)[0]

    assert torch.autograd.gradcheck(attend, tuple(rows.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernel_is_as_exact_as_pytorch_in_the_same_dtype(case, dtype):
    arguments = case.make(dtype)
    weight = torch.randn(arguments.tensors[0].shape).to(dtype)
    exact = reference_gradients(arguments.to(torch.float64), weight.double())
    same = reference_gradients(arguments, weight)
    ours = kernel_gradients(arguments, weight)
    assert ours.keys() == exact.keys()
    for name, truth in exact.items():
        error = (ours[name].double() - truth).abs().max()
        unit = torch.finfo(dtype).eps * truth.abs().max()  # one for the forward's results, one for the gradient
        assert error <= 2 * (same[name].double() - truth).abs().max() + 2 * unit, name


def test_two_runs_agree_to_the_bit():
    arguments = CASES[-1].make(torch.float32)
    weight = torch.randn(arguments.tensors[0].shape)
    first, second = (kernel_gradients(arguments, weight) for _ in range(2))
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name]), name
