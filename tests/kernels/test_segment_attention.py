"""The kernels of `segment_attention` against its reference in float64; small tiles, so that every loop has several."""

from typing import Any

import pytest
import torch

from longrec.kernels import reference
from longrec.kernels.attention_cases import (
    NO_MEMORY,
    SHAPES,
    SHIPPED_PLAN,
    VARIANTS,
    WINDOWS,
    AttentionArguments,
    AttentionCase,
    small_plan,
)
from longrec.kernels.counting import count_work
from longrec.kernels.exactness import compare
from longrec.kernels.segment_attention import AttentionBuffers, segment_attention

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def attend(arguments: AttentionArguments, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return segment_attention(*arguments.tensors, **arguments.keywords, **more)


def assert_as_exact_as_pytorch(
    arguments: AttentionArguments, out: torch.Tensor, lse2: torch.Tensor, dtype: torch.dtype
) -> None:
    results = zip(
        ("out", "lse2"), (out, lse2), _reference(arguments), _reference(arguments.to(torch.float64)), strict=True
    )
    for comparison in (compare(*result, dtype) for result in results):
        assert comparison.passed, comparison


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", SHIPPED_PLAN, ids=lambda case: case.id)
def test_plan_that_ships(case: AttentionCase, dtype: torch.dtype) -> None:
    arguments = case.make(dtype)
    assert_as_exact_as_pytorch(arguments, *attend(arguments), dtype)


@pytest.mark.parametrize("memory_dtype", ["same", "int8"])
def test_wide_heads_of_float32_are_scored_piece_by_piece(memory_dtype: str) -> None:
    """The tiles that ship for them, in both launches, with targets."""
    case = AttentionCase((66, 3), (40, 20), (2, 1), 256, targets=(4, 1), window=50, memory_dtype=memory_dtype)
    arguments = case.make(torch.float32)
    assert_as_exact_as_pytorch(arguments, *attend(arguments), torch.float32)


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


@pytest.mark.parametrize("case", [VARIANTS[3], VARIANTS[5], VARIANTS[8], SHAPES[1]], ids=lambda case: case.id)
def test_a_part_is_a_problem_of_its_own(case: AttentionCase) -> None:
    """What is held against float64 where the whole is too large for it."""
    arguments = case.make(torch.float32)
    out, lse2 = _reference(arguments)
    cu_seqlens, group = arguments.tensors[3], case.heads[0] // case.heads[1]
    for user in range(len(case.new)):
        for kv_head in range(case.heads[1]):
            rows = slice(cu_seqlens[user], cu_seqlens[user + 1])
            heads = slice(kv_head * group, (kv_head + 1) * group)
            part_out, part_lse2 = _reference(arguments.part(user, kv_head))
            torch.testing.assert_close(part_out, out[rows, heads], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(part_lse2, lse2[rows, heads], rtol=1e-5, atol=1e-5)
