"""`catalogue_topk`: exact, deterministic, masked; kernels and reference against sorting everything in float64."""

import numpy as np
import pytest
import torch

from longrec.errors import ArgumentError
from longrec.kernels import catalogue_topk
from longrec.kernels.topk import catalogue_topk_triton
from longrec.kernels.topk_cases import MASKED, SHAPES, TopkCase, expected

# the interpreter sorts a row's candidates step by step
SLOW = [
    pytest.param(TopkCase(*shape, masked), marks=pytest.mark.slow)
    for shape in ((17, 300, 32, 256), (65, 301, 16, 7))
    for masked in (False, True)
]
BODIES = [pytest.param(catalogue_topk, id="cpu"), pytest.param(catalogue_topk_triton, id="kernel")]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("case", [*SHAPES, *MASKED, *SLOW], ids=lambda case: case.id)
def test_exactly_the_k_best_with_ties_to_the_lower_index(body, case):
    hidden, items, masks = case.make()
    scores, indices = body(hidden, items, case.k, **masks)
    best, order = expected(hidden, items, case.k, masks)
    np.testing.assert_array_equal(scores.numpy(), best)
    np.testing.assert_array_equal(indices.numpy(), order)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(body, dtype):
    hidden, items, _ = TopkCase(4, 300, 64, 20).make(dtype)
    scores, indices = body(hidden, items, 20)
    best, order = expected(hidden, items, 20, {})
    np.testing.assert_array_equal(scores.float().numpy(), best)
    np.testing.assert_array_equal(indices.numpy(), order)


@pytest.mark.parametrize("body", BODIES)
def test_random_scores_come_in_order(body):
    torch.manual_seed(0)
    hidden, items = torch.randn(2, 48), torch.randn(900, 48)
    scores, indices = body(hidden, items, 100)
    exact = hidden.double() @ items.double().T
    np.testing.assert_allclose(scores, exact.gather(1, indices), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores, exact.topk(100).values, rtol=1e-5, atol=1e-5)
    assert (scores.diff(dim=1) <= 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, r"k=0"),
        ({"k": 257}, r"k=257"),
        ({"hidden": torch.zeros(2, 8)}, r"\[.*16.*\]|d"),
        ({"items": torch.zeros(9, 16, dtype=torch.float16)}, r"items"),
        ({"seen_indptr": torch.zeros(3, dtype=torch.int64)}, r"seen_ind"),
        ({"seen_indptr": torch.tensor([0, 2, 2]), "seen_indices": torch.tensor([3, 9])}, r"seen_indices"),
        ({"seen_indptr": torch.tensor([0, 2, 2]), "seen_indices": torch.tensor([3, 1])}, r"seen_indices"),
        ({"blocked": torch.zeros(2, dtype=torch.int32)}, r"blocked"),
        ({"categories": torch.zeros(9, dtype=torch.int64)}, r"allowed|categories"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"hidden": torch.zeros(2, 16), "items": torch.zeros(9, 16), "k": 3, **change}
    with pytest.raises(ArgumentError, match=message):
        catalogue_topk(**arguments)
