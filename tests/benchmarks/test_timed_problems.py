"""What the GPU check times, in small and without a clock: the operator against float64, and others' answers against
its own."""

import warnings

import pytest
import torch
from gpucheck.baselines import attention_baselines
from gpucheck.timed import Timing, Work
from gpucheck.timings import attention_timing, backward_work
from gpucheck.timings_rest import append_work, block_work, cross_entropy_work, topk_work

from longrec.kernels.attention_cases import AttentionCase
from longrec.kernels.exactness import Comparison

CPU = torch.device("cpu")
CASES = [
    AttentionCase((1,) * 3, (40,) * 3, (4, 2)),
    AttentionCase((4,) * 2, (32,) * 2, (2, 1)),
    AttentionCase((20,) * 2, None, (2, 2)),
    AttentionCase((20,) * 2, None, (2, 2), variant="position"),
    AttentionCase((20,) * 2, None, (2, 2), variant="time"),
    AttentionCase((4,) * 2, (32,) * 2, (2, 1), memory_dtype="int8"),
    AttentionCase((20,) * 2, None, (2, 2), variant="relative"),
]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU check runs them whole")


def assert_right(work: Work) -> None:
    comparisons = work.check(work.call())
    assert comparisons
    assert all(comparison.passed for comparison in comparisons), comparisons
    assert work.least_bytes > 0


def assert_baseline_agrees(work: Work, name: str) -> None:
    ours, theirs = work.call(), work.baselines[name].prepare()()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        torch.testing.assert_close(other.double(), mine.double(), rtol=0.05, atol=0.02 * float(mine.abs().max()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_attention(case):
    assert_right(attention_timing("t", case).make(CPU))


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.id)
def test_sdpa_answers_the_same_problem(case):
    work = attention_timing("t", case).make(CPU)
    for name in ("sdpa", *(["gather + sdpa"] if case.past else [])):
        assert_baseline_agrees(work, name)
    assert {"flash-attn", "flashinfer"} <= work.baselines.keys()


@pytest.mark.parametrize("case", CASES[:5], ids=lambda case: case.id)
def test_flex_attention_answers_the_same_problem(case, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda fn, **_: fn)  # takes a C++ compiler and half a minute
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled
        assert_baseline_agrees(attention_timing("t", case, flex=True).make(CPU), "flex")


def test_what_others_cannot_express_is_said():
    case = CASES[-1]
    assert attention_baselines(case, case.make(torch.bfloat16)).keys() == set()
    with pytest.raises(Exception, match="score modification"):
        attention_baselines(case, case.make(torch.bfloat16), flex=True)["flex"].prepare()
    with pytest.raises(Exception, match="not installed"):
        attention_baselines(CASES[0], CASES[0].make(torch.bfloat16))["flashinfer"].prepare()


@pytest.mark.parametrize("variant", ["softmax", "hstu"])
def test_backward(variant):
    work = backward_work(AttentionCase((20,) * 2, None, (2, 2), window=20, variant=variant))(CPU)
    assert_right(work)
    for name in work.baselines:
        assert_baseline_agrees(work, name)


def test_topk():
    assert_right(topk_work(3, 700)(CPU))


@pytest.mark.parametrize("page_dtype", [torch.bfloat16, torch.int8, torch.float8_e4m3fn], ids=str)
def test_append(page_dtype):
    assert_right(append_work(page_dtype, 9)(CPU))


def test_block_decode():
    work = block_work(2)(CPU)
    assert_right(work)
    assert_baseline_agrees(work, "operators one by one")


def test_cross_entropy():
    work = cross_entropy_work(128, 300, CPU)
    assert_right(work)
    assert_baseline_agrees(work, "matmul + F.cross_entropy")


def test_a_wrong_result_is_refused_before_anything_is_timed():
    wrong = Comparison("out", 2.0, 1.0, 0.0, 0.0)
    work = Work(lambda: (torch.zeros(1),), lambda outputs: [wrong], 1, 1)
    answer = Timing("t", lambda device: work).answer(CPU)
    assert "us" not in answer
    assert answer["failure"] == str(wrong)
