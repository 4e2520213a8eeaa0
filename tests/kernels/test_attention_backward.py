"""The backward of `segment_attention`: gradcheck of the reference, kernels against the reference's float64
gradients."""

import pytest
import torch

from longrec.kernels.attention_cases import GRADIENTS
from longrec.kernels.attention_gradients import clean, compare_gradients, kernel_gradients, leaves
from longrec.kernels.reference import segment_attention as reference


@pytest.mark.parametrize("case", GRADIENTS, ids=lambda case: case.id)
def test_reference_gradcheck(case):
    small = case._replace(new=(3, 2), past=(4, 0) if case.past else None, window=min(case.window, 5), targets=None)
    arguments = clean(small.make(torch.float32).to(torch.float64))
    found, tensors, keywords = leaves(arguments)
    rows = {name: found[name] for name in ("q", "k", "v")}

    def attend(q, k, v):
        return reference(q, k, v, tensors[3], **keywords)[0]

    assert torch.autograd.gradcheck(attend, tuple(rows.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", GRADIENTS, ids=lambda case: case.id)
def test_kernel_is_as_exact_as_pytorch_in_the_same_dtype(case, dtype):
    for comparison in compare_gradients(case, dtype):
        assert comparison.passed, comparison


def test_two_runs_agree_to_the_bit():
    arguments = GRADIENTS[-1].make(torch.float32)
    weight = torch.randn(arguments.tensors[0].shape)
    first, second = (kernel_gradients(arguments, weight) for _ in range(2))
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name]), name
