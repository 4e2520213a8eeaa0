"""The backward of `segment_attention`: gradcheck of the reference, kernels against the reference's float64
gradients."""

import pytest
import torch

from longrec.kernels.attention_backward_plan import BackwardPlan, BackwardTile
from longrec.kernels.attention_cases import GRADIENTS, AttentionCase
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


TILES = {
    "pieces": BackwardTile(16, 16, 16, 4, 2),
    "wide-keys": BackwardTile(16, 32, 32, 4, 2),
    "large": BackwardTile(32, 64, 32, 4, 2),
}


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("variant", ["hstu", "relative"])
def test_any_tile_gives_the_gradients(variant, tile):
    """Rows of tiles that differ from columns, and heads loaded piece by piece."""
    case = AttentionCase((5, 40), (20, 3), (2, 1), 32, variant=variant, window=33, targets=(2, 9))
    chosen = TILES[tile]
    plan = BackwardPlan(chosen._replace(block_d=32), chosen, chosen, chosen)
    for comparison in compare_gradients(case, torch.float32, plan=plan):
        assert comparison.passed, comparison


def test_two_runs_agree_to_the_bit():
    arguments = GRADIENTS[-1].make(torch.float32)
    weight = torch.randn(arguments.tensors[0].shape)
    first, second = (kernel_gradients(arguments, weight) for _ in range(2))
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name]), name
