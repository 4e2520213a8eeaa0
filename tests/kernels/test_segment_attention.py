"""The kernels of `segment_attention` against its reference in float64; small tiles, so that every loop has several."""

from typing import Any

import pytest
import torch

from longrec.kernels import reference
from longrec.kernels.attention_cases import AttentionArguments, AttentionCase
from longrec.kernels.attention_plan import AttentionPlan, Tile
from longrec.kernels.counting import count_work
from longrec.kernels.segment_attention import AttentionBuffers, segment_attention

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# up to 4 new events: split into at most 3 parts; more: tiled
SHAPES = [
    AttentionCase(new=(5, 1, 0, 37)),
    AttentionCase(new=(3, 1, 21), past=(17, 0, 47), heads=(4, 2)),
    AttentionCase(new=(1, 2), past=(80, 16), heads=(8, 1)),
    AttentionCase(new=(4, 19), past=(33, 1), heads=(3, 1), head_dim=32, page_size=32),
    AttentionCase(new=(2, 6), past=(100, 9), head_dim=64, page_size=64),
    AttentionCase(new=(1, 5), past=(40, 15), heads=(1, 1), head_dim=128, page_size=128),
    AttentionCase(new=(1, 5), past=(40, 15), heads=(1, 1), head_dim=256),
]
WINDOWS = [
    AttentionCase(new=(2, 40), past=(48, 31), window=window, heads=(1, 1), page_size=page_size)
    for window, page_size in ((1, 16), (7, 16), (17, 32), (50, 16))
]
VARIANTS = [
    AttentionCase(new=(3, 21), past=(60, 37), variant=variant, targets=targets, window=window, memory_dtype=stored)
    for variant, targets, window, stored in (
        ("silu", None, 40, "same"),
        ("position", (1, 9), 1 << 20, "same"),
        ("time", None, 1 << 20, "same"),
        ("hstu", (3, 17), 30, "same"),
        ("relative", None, 1 << 20, "same"),
        ("relative", (1, 20), 30, "same"),
        ("softmax", (2, 18), 1 << 20, "same"),
        ("softmax", None, 1 << 20, "int8"),
        ("softmax", (1, 2), 50, "fp8"),
        ("silu", None, 64, "fp8"),
        ("relative", None, 1 << 20, "int8"),
    )
]
NO_MEMORY = [
    AttentionCase(new=(3, 21), variant=variant, targets=(1, 18), window=15)
    for variant in ("softmax", "hstu", "relative")
]


def small_plan(case: AttentionCase) -> AttentionPlan:
    """16 rows or more to a tile, 16 keys; users of up to 4 new events have their memory cut into up to 3 parts."""
    heads = 1 if case.variant == "relative" else case.heads[0] // case.heads[1]
    short = Tile(16 if heads <= 4 else 32, 16, 4, 1)
    return AttentionPlan(Tile(16 if heads == 1 else 32, 16, 4, 1), short, 4, 3, 1)


def attend(arguments: AttentionArguments, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return segment_attention(*arguments.tensors, **arguments.keywords, **more)


def assert_as_exact_as_pytorch(
    arguments: AttentionArguments, out: torch.Tensor, lse2: torch.Tensor, dtype: torch.dtype
) -> None:
    """Error against float64 at most twice that of the reference in the same dtype, and one rounding unit."""
    exact = _reference(arguments.to(torch.float64))
    same_dtype = _reference(arguments)
    for got, want, baseline in zip((out, lse2), exact, same_dtype, strict=True):
        empty = want == -torch.inf
        assert torch.equal(got == -torch.inf, empty)
        got, want, baseline = (x.double().masked_fill(empty, 0.0) for x in (got, want, baseline))
        unit = torch.finfo(dtype).eps * want.abs().max()
        for norm in (lambda x: x.abs().max(), lambda x: x.square().mean().sqrt()):
            assert norm(got - want) <= 2 * norm(baseline - want) + unit


def _reference(arguments: AttentionArguments) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.segment_attention(*arguments.tensors, **arguments.keywords)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.id)
def test_shapes(case: AttentionCase, dtype: torch.dtype) -> None:
    arguments = case.make(dtype)
    out, lse2 = attend(arguments, plan=small_plan(case))
    assert out.dtype == dtype
    assert lse2.dtype == torch.float32
    assert_as_exact_as_pytorch(arguments, out, lse2, dtype)


@pytest.mark.parametrize("case", WINDOWS, ids=lambda case: case.id)
def test_window_is_exact_to_the_event(case: AttentionCase) -> None:
    arguments = case.make(torch.float32)
    assert_as_exact_as_pytorch(arguments, *attend(arguments, plan=small_plan(case)), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", VARIANTS, ids=lambda case: case.id)
def test_variants(case: AttentionCase, dtype: torch.dtype) -> None:
    arguments = case.make(dtype)
    assert_as_exact_as_pytorch(arguments, *attend(arguments, plan=small_plan(case)), dtype)


@pytest.mark.parametrize("case", NO_MEMORY, ids=lambda case: case.id)
def test_without_memory(case: AttentionCase) -> None:
    arguments = case.make(torch.float32)
    assert_as_exact_as_pytorch(arguments, *attend(arguments, plan=small_plan(case)), torch.float32)


@pytest.mark.parametrize(
    "case",
    [
        AttentionCase(new=(1, 2), past=(300, 555), heads=(8, 1), head_dim=64, page_size=32),
        AttentionCase(new=(70, 3), past=(130, 200), heads=(2, 2), head_dim=32),
        AttentionCase(new=(70, 3), past=(130, 20), variant="hstu", targets=(40, 1), window=150),
        AttentionCase(new=(9, 1), past=(300, 20), variant="relative", head_dim=32),
    ],
    ids=lambda case: case.id,
)
def test_plan_that_ships(case: AttentionCase) -> None:
    arguments = case.make(torch.bfloat16)
    assert_as_exact_as_pytorch(arguments, *attend(arguments), torch.bfloat16)


def test_bounds_change_the_launch_and_not_the_answer() -> None:
    arguments = AttentionCase(new=(1, 2), past=(300, 17), heads=(4, 2)).make(torch.float32)
    with count_work() as loose:
        expected = attend(arguments)
    with count_work() as tight:
        got = attend(arguments, max_new=2, max_memory=300)
    assert tight.programs < loose.programs
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_buffers_are_filled_whole_and_can_be_used_again() -> None:
    """What a CUDA graph needs: the same pointers, plan and shapes, with other lengths in the tensors."""
    first = AttentionCase(new=(3, 1), past=(60, 0), heads=(4, 2))
    second = AttentionCase(new=(1, 3), past=(17, 43), heads=(4, 2))
    plan = small_plan(first)
    buffers = AttentionBuffers(
        torch.full((4, 4, 16), torch.nan),
        torch.full((4, 4), torch.nan),
        torch.full((3, 2, 4, 4, 16), torch.nan),
        torch.full((3, 2, 4, 4), torch.nan),
    )
    for case in (first, second, first):
        arguments = case.make(torch.float32)
        out, lse2 = attend(arguments, plan=plan, buffers=buffers)
        assert out.data_ptr() == buffers.out.data_ptr()
        assert_as_exact_as_pytorch(arguments, out, lse2, torch.float32)


def test_strided_input_reads_as_its_contiguous_copy() -> None:
    """q, k, v as slices of one projection, and keys and values of a page side by side."""
    arguments = AttentionCase(new=(2, 20), past=(40, 5), heads=(4, 2)).make(torch.float32)
    q, k, v, cu_seqlens = arguments.tensors
    memory = arguments.keywords["memory"]
    q_view, k_view, v_view = torch.cat((q, k, v), dim=1).split((4, 2, 2), dim=1)
    k_pages, v_pages = torch.stack((memory.k_pages, memory.v_pages), dim=2).unbind(2)
    keywords = {**arguments.keywords, "memory": memory._replace(k_pages=k_pages, v_pages=v_pages)}
    got = segment_attention(q_view, k_view, v_view, cu_seqlens, **keywords)
    for a, b in zip(got, attend(arguments), strict=True):
        assert torch.equal(a, b)


def test_no_events_launch_nothing() -> None:
    arguments = AttentionCase(new=(0, 0), past=(3, 20)).make(torch.float32)
    with count_work() as work:
        out, lse2 = attend(arguments)
    assert out.shape == (0, 2, 16)
    assert lse2.shape == (0, 2)
    assert not work.grids


def test_scale_is_used() -> None:
    arguments = AttentionCase(new=(6,), past=(10,)).make(torch.float32)
    arguments.keywords["scale"] = 1.7
    assert_as_exact_as_pytorch(arguments, *attend(arguments), torch.float32)
