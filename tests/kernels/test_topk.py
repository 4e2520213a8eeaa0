"""`catalogue_topk`: exact, deterministic, masked; kernels and reference against sorting everything in float64."""

import numpy as np
import pytest
import torch
import triton

from longrec.errors import ArgumentError
from longrec.kernels import catalogue_topk
from longrec.kernels.counting import count_work
from longrec.kernels.topk import TopkBuffers, allocate_topk, catalogue_topk_triton
from longrec.kernels.topk_cases import MASKED, SHAPES, TopkCase, expected
from longrec.kernels.topk_plan import plan_topk, topk_tile

interpreted = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="kernels are compiled here")

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


def poisoned(case: TopkCase, items: torch.Tensor) -> TopkBuffers:
    """Buffers with the largest keys, negative counts and NaN in them, as another call may leave memory."""
    buffers = allocate_topk(case.num_rows, items, case.k)
    assert not buffers.plan.brute
    for workspace in (buffers.kept, buffers.floor, buffers.threshold, buffers.candidates):
        workspace.fill_(torch.iinfo(torch.int64).max)
    buffers.scores.fill_(torch.nan)
    for tensor in (buffers.count, buffers.indices):
        tensor.fill_(-7)
    return buffers


ORDERS = {
    "shuffled": lambda n: torch.randperm(n, generator=torch.Generator().manual_seed(0)),
    "ascending": lambda n: torch.arange(n),
    "pairs": lambda n: torch.arange(n) // 2,
    "periodic": lambda n: torch.arange(n) % 64,
}


@interpreted
@pytest.mark.parametrize("order", ORDERS)
def test_the_scan_is_exact_in_every_order_of_the_catalogue_and_needs_no_brute_force(order):
    case = TopkCase(3, 9001, 16, 10)
    items = torch.zeros(case.num_items, case.dim)
    items[:, 0] = ORDERS[order](case.num_items)
    hidden = torch.zeros(case.num_rows, case.dim)
    hidden[:, 0] = torch.tensor([1.0, -1.0, 0.0])  # that order, the reverse, and all equal
    buffers = poisoned(case, items)
    scores, indices = catalogue_topk_triton(hidden, items, case.k, buffers=buffers)
    best, wanted = expected(hidden, items, case.k, {})
    np.testing.assert_array_equal(scores.numpy(), best)
    np.testing.assert_array_equal(indices.numpy(), wanted)
    assert ((buffers.count >= case.k) & (buffers.count <= buffers.plan.capacity)).all()


@interpreted
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(TopkCase(17, 8_999, 24, 40, masked=True), marks=pytest.mark.slow),
        TopkCase(2, 8_200, 16, 256, masked=True),
    ],
    ids=lambda case: case.id,
)
def test_the_scan_keeps_to_the_masks(case):
    hidden, items, masks = case.make()
    scores, indices = catalogue_topk_triton(hidden, items, case.k, **masks, buffers=poisoned(case, items))
    best, order = expected(hidden, items, case.k, masks)
    np.testing.assert_array_equal(scores.numpy(), best)
    np.testing.assert_array_equal(indices.numpy(), order)


@interpreted
@pytest.mark.parametrize("change", [{"rank": 1}, {"capacity": 512}], ids=str)
def test_a_row_whose_list_does_not_hold_its_best_goes_through_brute_force(change):
    case = TopkCase(2, 9001, 16, 10)
    items = torch.zeros(case.num_items, case.dim)
    items[:, 0] = -(torch.arange(case.num_items) // 3)
    hidden = torch.zeros(case.num_rows, case.dim)
    hidden[0, 0] = 1.0
    hidden[1] = torch.nan  # has no scores, so no threshold and an empty list
    buffers = poisoned(case, items)
    if "capacity" in change:  # every item reaches the lowest threshold there is
        change = {**change, "rank": buffers.plan.top_rank}
        hidden[0, 0] = 0.0
        items[:] = 0.0
        items[0, 0] = 1.0
    buffers = buffers._replace(plan=buffers.plan._replace(**change))
    scores, indices = catalogue_topk_triton(hidden, items, case.k, buffers=buffers)
    best, wanted = expected(hidden[:1], items, case.k, {})
    np.testing.assert_array_equal(scores[:1].numpy(), best)
    np.testing.assert_array_equal(indices[:1].numpy(), wanted)
    assert indices[1].tolist() == [-1] * case.k


@interpreted
def test_what_a_share_of_the_sample_does_not_keep_is_not_lost():
    case = TopkCase(1, 9001, 16, 16)
    items = torch.zeros(case.num_items, case.dim)
    buffers = poisoned(case, items)
    plan = buffers.plan
    stratum = torch.arange(case.num_items >> plan.shift)
    drawn = (stratum << plan.shift) + (((stratum * 2654435761) >> 9) & ((1 << plan.shift) - 1))
    best = drawn[stratum % plan.num_tiles % plan.num_shares == 0]  # the whole share of one program
    assert len(best) > plan.kept
    items[:, 0] = -torch.arange(case.num_items)
    items[best, 0] += case.num_items
    hidden = torch.zeros(1, case.dim)
    hidden[0, 0] = 1.0
    _, indices = catalogue_topk_triton(hidden, items, case.k, buffers=buffers)
    np.testing.assert_array_equal(indices.numpy(), expected(hidden, items, case.k, {})[1])


@interpreted
def test_no_item_is_read_twice():
    case = TopkCase(4, 20_000, 64, 10)
    generator = torch.Generator().manual_seed(0)
    hidden, items = (torch.randn(rows, case.dim, generator=generator) for rows in (case.num_rows, case.num_items))
    buffers = allocate_topk(case.num_rows, items, case.k)
    with count_work() as count:
        catalogue_topk_triton(hidden, items, case.k, buffers=buffers)
    assert count.bytes_moved == pytest.approx(buffers.plan.expected_bytes, rel=0.01)
    assert count.bytes_moved < 1.1 * items.numel() * 4


def test_the_plan_keeps_to_the_bytes_that_are_promised():
    for num_rows in (1, 16, 64):
        for num_items in (1 << 18, 1 << 19, 1 << 20, 10_000_000):
            plan = plan_topk(num_rows, num_items, 128, 2, 100, topk_tile(90, num_rows, 128, 2), 132)
            assert plan.expected_bytes <= 1.05 * num_items * 256, (num_rows, num_items)
            assert plan.num_programs >= 120  # a program for each of 132 multiprocessors, but for rounding to tiles
