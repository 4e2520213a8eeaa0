"""`catalogue_topk`: exact, deterministic, masked; kernels and reference against sorting everything in float64."""

import numpy as np
import pytest
import torch

from longrec.errors import ArgumentError
from longrec.kernels import catalogue_topk
from longrec.kernels.topk import catalogue_topk_triton

# the interpreter sorts a row's candidates step by step
SLOW = [pytest.param(*shape, marks=pytest.mark.slow) for shape in ((17, 300, 32, 256), (65, 301, 16, 7))]
BODIES = [pytest.param(catalogue_topk, id="cpu"), pytest.param(catalogue_topk_triton, id="kernel")]


def make(num_rows, num_items, dim, dtype=torch.float32, seed=0):
    """Small integers: every product is exact in every dtype, and many scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(-3, 4, (n, dim), generator=generator).to(dtype) for n in (num_rows, num_items))


def make_masks(num_rows, num_items):
    rng = np.random.default_rng(1)
    seen = [np.sort(rng.choice(num_items, rng.integers(0, num_items // 2), replace=False)) for _ in range(num_rows)]
    words = -(-num_items // 32)
    return {
        "seen_indptr": torch.from_numpy(np.cumsum([0, *map(len, seen)])),
        "seen_indices": torch.from_numpy(np.concatenate(seen)),
        "blocked": torch.from_numpy(rng.integers(-(2**31), 2**31, words).astype(np.int32)),
        "categories": torch.from_numpy(rng.integers(0, 16, num_items)),
        "allowed": torch.from_numpy(rng.integers(1, 16, num_rows)),
    }


def expected(hidden, items, k, masks):
    """By (score falling, index rising) among what the masks leave; -inf and -1 behind."""
    scores = (hidden.double() @ items.double().T).numpy()
    num_items = len(items)
    if masks:
        bits = masks["blocked"].numpy()[np.arange(num_items) // 32] >> (np.arange(num_items) % 32)
        scores[:, (bits & 1) == 1] = -np.inf
        scores[(masks["categories"].numpy() & masks["allowed"].numpy()[:, None]) == 0] = -np.inf
        for row in range(len(scores)):
            begin, end = masks["seen_indptr"][row : row + 2].tolist()
            scores[row, masks["seen_indices"][begin:end].numpy()] = -np.inf
    order = np.lexsort((np.broadcast_to(np.arange(num_items), scores.shape), -scores))[:, :k]
    best = np.take_along_axis(scores, order, 1)
    order = np.where(np.isneginf(best), -1, order)
    filling = ((0, 0), (0, k - order.shape[1]))
    return np.pad(best, filling, constant_values=-np.inf), np.pad(order, filling, constant_values=-1)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(
    ("num_rows", "num_items", "dim", "k"),
    [(1, 5, 16, 3), (3, 700, 64, 10), (2, 40, 24, 64), *SLOW],
    ids=lambda value: str(value),
)
def test_exactly_the_k_best_with_ties_to_the_lower_index(body, masked, num_rows, num_items, dim, k):
    hidden, items = make(num_rows, num_items, dim)
    masks = make_masks(num_rows, num_items) if masked else {}
    scores, indices = body(hidden, items, k, **masks)
    best, order = expected(hidden, items, k, masks)
    np.testing.assert_array_equal(scores.numpy(), best)
    np.testing.assert_array_equal(indices.numpy(), order)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(body, dtype):
    hidden, items = make(4, 300, 64, dtype)
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
