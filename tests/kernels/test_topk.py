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


@pytest.mark.parametrize(
    "case", [TopkCase(17, 3001, 50, 256), TopkCase(40, 1682, 64, 10), TopkCase(9, 20_003, 24, 3)], ids=str
)
@pytest.mark.parametrize("masked", [False, True])
def test_many_rows_on_any_number_of_threads(case, masked):
    hidden, items, masks = case._replace(masked=masked).make()
    best, order = expected(hidden, items, case.k, masks)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            scores, indices = catalogue_topk(hidden, items, case.k, **masks)
            np.testing.assert_array_equal(scores.numpy(), best)
            np.testing.assert_array_equal(indices.numpy(), order)
    finally:
        torch.set_num_threads(threads)


def test_scores_that_are_none_are_no_answers_and_zeros_are_equal():
    values = [0.0, -0.0, float("nan"), float("-inf"), 3.0, float("inf"), -1.0, float("nan"), 0.0]
    items = torch.zeros(len(values), 16)
    items[:, 0] = torch.tensor(values)
    hidden = torch.zeros(1, 16)
    hidden[0, 0] = 1.0
    scores, indices = catalogue_topk(hidden, items, 9)
    assert indices.tolist() == [[5, 4, 0, 1, 8, 6, -1, -1, -1]]
    assert scores.tolist() == [[float("inf"), 3.0, 0.0, 0.0, 0.0, -1.0, *[float("-inf")] * 3]]


def test_rows_with_any_stride_read_as_their_contiguous_copies():
    torch.manual_seed(1)
    hidden, items = torch.randn(5, 40)[:, :24], torch.randn(300, 30)[:, :24]
    for a, b in zip(
        catalogue_topk(hidden, items, 7), catalogue_topk(hidden.contiguous(), items.contiguous(), 7), strict=True
    ):
        assert torch.equal(a, b)
    assert catalogue_topk(hidden[:0], items, 7)[0].shape == (0, 7)
    assert catalogue_topk(hidden, items[:0], 7)[1].tolist() == [[-1] * 7] * 5
