"""`catalogue_cross_entropy` and its gradients: reference against PyTorch's own in float64, kernels against float64."""

import pytest
import torch

from longrec.errors import ArgumentError
from longrec.kernels import catalogue_cross_entropy
from longrec.kernels.cross_entropy import catalogue_cross_entropy_triton
from longrec.kernels.cross_entropy_cases import (
    SAMPLED,
    SHAPES,
    CrossEntropyCase,
    compare_cross_entropy,
    plain,
    results,
)


@pytest.mark.parametrize("case", [*SHAPES, *SAMPLED], ids=lambda case: case.id)
def test_reference_is_cross_entropy(case):
    hidden, items, targets, sample = case.make(torch.float64)
    loss = catalogue_cross_entropy(hidden, items, targets, label_smoothing=case.smoothing, reduction="none", **sample)
    for ours, theirs in zip(
        results(loss, hidden, items),
        results(plain(hidden, items, targets, case.smoothing, **sample), hidden, items),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sampled", [False, True], ids=["full", "sampled"])
def test_gradcheck(sampled):
    hidden, items, targets, sample = CrossEntropyCase(5, 11, 16, sampled).make(torch.float64)
    smoothing = 0.0 if sampled else 0.2
    torch.autograd.gradcheck(
        lambda h, i: catalogue_cross_entropy(h, i, targets, label_smoothing=smoothing, **sample), (hidden, items)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [*SHAPES, *SAMPLED], ids=lambda case: case.id)
def test_kernel_is_as_exact_as_pytorch_in_the_same_dtype(case, dtype):
    for comparison in compare_cross_entropy(case, dtype):
        assert comparison.passed, comparison


def test_two_runs_agree_to_the_bit():
    hidden, items, targets, sample = CrossEntropyCase(70, 300, 32, sampled=True).make(torch.float32)
    runs = [results(catalogue_cross_entropy_triton(hidden, items, targets, **sample), hidden, items) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("body", [catalogue_cross_entropy, catalogue_cross_entropy_triton], ids=["cpu", "kernel"])
def test_rows_that_are_ignored_count_for_nothing(body):
    hidden, items, _, _ = CrossEntropyCase(4, 20, 16).make(torch.float32)
    loss, grad_hidden, grad_items = results(
        body(hidden, items, torch.full((4,), -1), **({"reduction": "none"} if body is catalogue_cross_entropy else {})),
        hidden,
        items,
    )
    assert not loss.any()
    assert not grad_hidden.any()
    assert not grad_items.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.tensor([0, 9])}, "targets"),
        ({"targets": torch.tensor([0, -2])}, "targets"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"reduction": "total"}, "reduction"),
        ({"items": torch.zeros(9, 8)}, "items"),
        ({"negatives": torch.tensor([9])}, "negatives"),
        ({"log_q": torch.zeros(1)}, "log_q|negatives"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"hidden": torch.zeros(2, 16), "items": torch.zeros(9, 16), "targets": torch.tensor([1, 2]), **change}
    with pytest.raises(ArgumentError, match=message):
        catalogue_cross_entropy(**arguments)
