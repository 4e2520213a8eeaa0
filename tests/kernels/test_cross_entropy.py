"""`catalogue_cross_entropy` and its gradients: reference against PyTorch's own in float64, kernels against float64."""

import pytest
import torch
import torch.nn.functional as F

from longrec.errors import ArgumentError
from longrec.kernels import catalogue_cross_entropy
from longrec.kernels.cross_entropy import catalogue_cross_entropy_triton

CASES = [(1, 7, 16), (33, 130, 32), (70, 1682, 64)]
ids = [f"T{t}-N{n}-d{d}" for t, n, d in CASES]


def make(num_rows, num_items, dim, dtype, *, sampled=False):
    torch.manual_seed(num_rows)
    hidden = torch.randn(num_rows, dim).to(dtype).requires_grad_()
    items = (torch.randn(num_items, dim) / 4).to(dtype).requires_grad_()
    targets = torch.randint(num_items, (num_rows,))
    if num_rows > 2:
        targets[1] = -1
    if not sampled:
        return hidden, items, targets, {}
    negatives = torch.randint(num_items, (45,))
    negatives[0] = targets[0]  # an accidental hit
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    log_q = torch.randn(45).to(wide) - 3
    return (
        hidden,
        items,
        targets,
        {"negatives": negatives, "log_q": log_q, "target_log_q": torch.randn(num_rows).to(wide)},
    )


def plain(hidden, items, targets, smoothing=0.0, negatives=None, log_q=None, target_log_q=None):
    """Row losses with every logit in memory."""
    if negatives is None:
        return F.cross_entropy(hidden @ items.T, targets, ignore_index=-1, reduction="none", label_smoothing=smoothing)
    known = targets.clamp(min=0)
    own = (hidden * items[known]).sum(1) - target_log_q
    others = hidden @ items[negatives].T - log_q
    others = others.masked_fill(negatives == known[:, None], -torch.inf)
    loss = torch.cat((own[:, None], others), 1).logsumexp(1) - own
    return loss.masked_fill(targets == -1, 0.0)


def results(loss, hidden, items):
    weight = torch.linspace(0.5, 1.5, len(loss), dtype=loss.dtype)
    return loss.detach(), *torch.autograd.grad((loss * weight).sum(), (hidden, items))


@pytest.mark.parametrize("sampled", [False, True], ids=["full", "sampled"])
@pytest.mark.parametrize("shape", CASES, ids=ids)
def test_reference_is_cross_entropy(shape, sampled):
    hidden, items, targets, sample = make(*shape, torch.float64, sampled=sampled)
    smoothing = 0.0 if sampled else 0.1
    loss = catalogue_cross_entropy(hidden, items, targets, label_smoothing=smoothing, reduction="none", **sample)
    for ours, theirs in zip(
        results(loss, hidden, items),
        results(plain(hidden, items, targets, smoothing, **sample), hidden, items),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sampled", [False, True], ids=["full", "sampled"])
def test_gradcheck(sampled):
    hidden, items, targets, sample = make(5, 11, 16, torch.float64, sampled=sampled)
    smoothing = 0.0 if sampled else 0.2
    torch.autograd.gradcheck(
        lambda h, i: catalogue_cross_entropy(h, i, targets, label_smoothing=smoothing, **sample), (hidden, items)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sampled", [False, True], ids=["full", "sampled"])
@pytest.mark.parametrize("shape", CASES, ids=ids)
def test_kernel_is_as_exact_as_pytorch_in_the_same_dtype(shape, sampled, dtype):
    hidden, items, targets, sample = make(*shape, dtype, sampled=sampled)
    smoothing = 0.0 if sampled else 0.1
    wide = [x.detach().double().requires_grad_() for x in (hidden, items)]
    wide_sample = {name: x.double() if x.is_floating_point() else x for name, x in sample.items()}
    exact = results(plain(*wide, targets, smoothing, **wide_sample), *wide)
    same = results(plain(hidden, items, targets, smoothing, **sample), hidden, items)
    kernel = results(
        catalogue_cross_entropy_triton(hidden, items, targets, label_smoothing=smoothing, **sample), hidden, items
    )
    for ours, theirs, truth in zip(kernel, same, exact, strict=True):
        error = (ours.double() - truth).abs().max()
        allowed = 2 * (theirs.double() - truth).abs().max() + torch.finfo(dtype).eps * truth.abs().max()
        assert error <= allowed


def test_two_runs_agree_to_the_bit():
    hidden, items, targets, sample = make(70, 300, 32, torch.float32, sampled=True)
    runs = [results(catalogue_cross_entropy_triton(hidden, items, targets, **sample), hidden, items) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("body", [catalogue_cross_entropy, catalogue_cross_entropy_triton], ids=["cpu", "kernel"])
def test_rows_that_are_ignored_count_for_nothing(body):
    hidden, items, _, _ = make(4, 20, 16, torch.float32)
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
