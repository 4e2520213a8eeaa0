"""`append_memory`: the reference against complex rotation, the kernel against the reference, poison, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.errors import ArgumentError
from longrec.kernels.append import append_memory, append_memory_reference, append_memory_triton
from longrec.kernels.append_cases import SHAPES, AppendCase, compare_append, compare_quantised, rotated, written

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP8 = torch.float8_e4m3fn


def make(shape, dtype=torch.float32, page_dtype=None, seed=0):
    return AppendCase(*shape).make(dtype, page_dtype, DEVICE, seed)


def copy(arguments):
    return {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda case: case.id)
def test_reference_is_complex_rotation(shape):
    arguments = make(shape, torch.float64)
    arguments["positions"] %= 10_000  # further out the last place of a frequency shows, which is PyTorch's or Python's
    q, k = append_memory_reference(**arguments)
    kept = arguments["slots"] >= 0
    assert (q - rotated(arguments["q"], arguments["positions"])).abs().max() < 1e-10
    assert (k - rotated(arguments["k"], arguments["positions"])).abs().max() < 1e-10
    assert (written(arguments, "k") - k[kept]).abs().max() < 1e-10
    assert (written(arguments, "v") - arguments["v"][kept]).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda case: case.id)
def test_kernel_is_as_exact_as_pytorch_in_the_same_dtype(shape, dtype):
    for comparison in compare_append(shape, dtype, DEVICE):
        assert comparison.passed, comparison


@pytest.mark.parametrize("page_dtype", [torch.int8, FP8], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda case: case.id)
def test_quantised_rows_are_off_by_half_a_step(shape, page_dtype):
    for comparison in compare_quantised(shape, page_dtype, DEVICE):
        assert comparison.passed, comparison


@pytest.mark.parametrize("page_dtype", [torch.int8, FP8], ids=str)
def test_quantised_codes_are_the_references_to_the_bit(page_dtype):
    arguments = make((9, 2, 2, 64, 16), torch.float32, page_dtype) | {"rotary_base": None}
    for scale, row in ((1e-20, 0), (1e-38, 1), (0.0, 3), (1e20, 4)):
        arguments["k"][row] *= scale
    arguments["v"][6, 0] = torch.linspace(-448, 448, 64)  # ties, the smallest codes and the largest
    arguments["v"][7, 1] = torch.logspace(-6, 3, 64)
    same = copy(arguments)
    append_memory_triton(**arguments)
    append_memory_reference(**same)
    for name in ("k", "v"):
        assert torch.equal(written(arguments, name), written(same, name))
        scale = arguments[f"{name}_scale"]
        assert torch.equal(scale.nan_to_num(-1.0), same[f"{name}_scale"].nan_to_num(-1.0))


@pytest.mark.parametrize("page_dtype", [torch.int8, FP8], ids=str)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("body", [append_memory_triton, append_memory_reference])
def test_a_poisoned_row_does_not_read_back_as_numbers(body, poison, page_dtype):
    arguments = make((4, 2, 2, 16, 16), torch.float32, page_dtype) | {"rotary_base": None}
    arguments["v"][0, 1, 3] = poison
    body(**arguments)
    back = written(arguments, "v")
    assert not back[0, 1].isfinite().any()
    assert back[0, 0].isfinite().all()
    assert back[1:].isfinite().all()


@pytest.mark.parametrize("body", [append_memory_triton, append_memory_reference])
def test_only_named_slots_are_written(body):
    arguments = make((12, 2, 1, 16, 8), torch.float32)
    body(**arguments)
    page_size = arguments["k_pages"].shape[1]
    touched = torch.zeros(arguments["k_pages"].shape[:2], dtype=torch.bool, device=DEVICE)
    slots = arguments["slots"][arguments["slots"] >= 0]
    touched[slots // page_size, slots % page_size] = True
    for name in ("k_pages", "v_pages"):
        assert arguments[name][~touched].isnan().all()
        assert arguments[name][touched].isfinite().all()


@pytest.mark.parametrize("body", [append_memory_triton, append_memory_reference])
def test_rows_of_one_fused_projection_and_strided_pages_may_be_given(body):
    plain = make((7, 4, 2, 16, 8), torch.float32)
    expected = body(**copy(plain))
    fused = torch.cat([plain[name].flatten(1) for name in ("q", "k", "v")], dim=1)  # [T, (Hq + 2 Hkv) D]
    views = {
        name: part.unflatten(1, (-1, 16)) for name, part in zip("qkv", fused.split([64, 32, 32], dim=1), strict=True)
    }
    layers = torch.full((plain["k_pages"].shape[0], 2, 8, 2, 16), torch.nan, device=DEVICE)  # keys, values of a page
    strided = plain | views | {"k_pages": layers[:, 0], "v_pages": layers[:, 1]}
    got = body(**strided)
    reference = copy(plain)
    body(**reference)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    for name in ("k_pages", "v_pages"):
        assert torch.equal(strided[name].nan_to_num(-9.0), reference[name].nan_to_num(-9.0))


@pytest.mark.parametrize("body", [append_memory_triton, append_memory_reference])
def test_results_may_go_where_the_inputs_stand(body):
    arguments = make((9, 2, 2, 32, 8), torch.float32)
    expected = body(**copy(arguments))
    q, k = body(**arguments, out_q=arguments["q"], out_k=arguments["k"])
    assert q is arguments["q"]
    assert k is arguments["k"]
    assert torch.equal(q, expected[0])
    assert torch.equal(k, expected[1])


@pytest.mark.parametrize("body", [append_memory_triton, append_memory_reference])
def test_without_rotation_rows_stay_as_they_are(body):
    arguments = make((9, 2, 1, 32, 8), torch.bfloat16) | {"rotary_base": None}
    q, k = body(**arguments)
    assert q is arguments["q"]
    assert k is arguments["k"]
    kept = arguments["slots"] >= 0
    assert torch.equal(written(arguments, "k"), k[kept].double())


@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_any_cut_of_a_history_into_calls_writes_the_same_pages(data):
    num_tokens = data.draw(st.integers(2, 9))
    whole = make((num_tokens, 2, 1, 16, 4), torch.float32, torch.int8, seed=num_tokens)
    cuts = sorted(data.draw(st.sets(st.integers(1, num_tokens - 1), max_size=4)))
    parts = copy(whole)
    append_memory_triton(**whole)
    for start, stop in zip([0, *cuts], [*cuts, num_tokens], strict=True):
        rows = {name: parts[name][start:stop] for name in ("q", "k", "v", "positions", "slots")}
        append_memory_triton(**(parts | rows))
    for name in ("k", "v"):
        assert torch.equal(whole[f"{name}_pages"], parts[f"{name}_pages"])
        assert torch.equal(written(whole, name), written(parts, name))


def test_no_event_is_no_work():
    arguments = make((1, 2, 1, 16, 4), torch.float32)
    arguments |= {name: arguments[name][:0] for name in ("q", "k", "v", "positions", "slots")}
    q, k = append_memory_triton(**arguments)
    assert q.shape == (0, 2, 16)
    assert k.shape == (0, 1, 16)


BAD = {
    "k-heads-of-v": (lambda a: a | {"v": a["v"][:, :1]}, r"v: expected shape \[T=5, Hkv=2, D=64\]"),
    "q-dtype": (lambda a: a | {"q": a["q"].long()}, r"q: expected .*float32.*, got int64"),
    "k-dtype": (lambda a: a | {"k": a["k"].half()}, r"k: expected float32, got float16"),
    "positions-dtype": (lambda a: a | {"positions": a["positions"].int()}, r"positions: expected int64, got int32"),
    "slots-rank": (lambda a: a | {"slots": a["slots"][:, None]}, r"slots: expected shape \[T=5\]"),
    "odd-head-dim": (
        lambda a: a | {"q": a["q"][..., :63].contiguous()},
        r"q: expected an even head_dim of 2..256, got 63",
    ),
    "q-stride": (lambda a: a | {"q": a["q"].transpose(1, 2).contiguous().transpose(1, 2)}, r"q: expected contiguous"),
    "pages-shape": (lambda a: a | {"v_pages": a["v_pages"][:-1]}, r"v_pages: expected shape \[P="),
    "scale-missing": (lambda a: a | {"k_pages": a["k_pages"].to(torch.int8)}, r"v_pages: expected int8|k_scale"),
    "scale-extra": (lambda a: a | {"k_scale": torch.zeros(1)}, r"k_scale: expected None"),
    "base": (lambda a: a | {"rotary_base": 1.0}, r"rotary_base=1.0: expected a number above 1"),
    "out-shape": (lambda a: a | {"out_q": a["k"]}, r"out_q: expected shape \[T=5, H=4, D=64\]"),
    "position": (lambda a: a | {"positions": a["positions"] - 3_000_000}, r"positions\[0\]: expected at least 0"),
    "slot": (lambda a: a | {"slots": a["slots"] + 1000}, r"slots\[0\]: expected -1..\d+"),
    "slot-twice": (
        lambda a: a | {"slots": torch.tensor([3, 4, -1, 3, -1], device=DEVICE)},
        r"slots\[3\]: expected each",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_before_anything_is_written(name):
    change, message = BAD[name]
    arguments = change(make((5, 4, 2, 64, 16), torch.float32))
    with pytest.raises(ArgumentError, match=message):
        append_memory(**arguments)
    if arguments["k_pages"].is_floating_point():
        assert arguments["k_pages"].isnan().all()


def test_values_are_not_looked_at_where_that_is_switched_off():
    arguments = make((5, 4, 2, 64, 16), torch.float32)
    arguments["positions"] -= 3_000_000
    append_memory(**arguments, validate=False)
