"""The CPU's body of attention over paged memory, through the public operator, against the reference in float64."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.errors import ArgumentError
from longrec.kernels import append_memory, reference, segment_attention
from longrec.kernels.attention_cases import AttentionArguments, AttentionCase
from longrec.kernels.cpu.attention import fits_paged
from longrec.kernels.cpu.attention_terms import fits_terms
from longrec.kernels.types import PagedMemory

# at most 8 rows (new events x heads of a group) of a user go query by query, more in tiles of 16
SHAPES = [
    AttentionCase(new=(5, 1, 0, 37), past=(0, 0, 3, 0)),
    AttentionCase(new=(3, 1, 21), past=(17, 0, 47), heads=(4, 2)),
    AttentionCase(new=(1, 2), past=(80, 16), heads=(8, 1)),
    AttentionCase(new=(1, 1, 1, 1), past=(31, 32, 33, 1), heads=(2, 2), head_dim=32, page_size=32),
    AttentionCase(new=(4, 19), past=(33, 1), heads=(3, 1), head_dim=32, page_size=32),
    AttentionCase(new=(2, 7), past=(100, 9), head_dim=64, page_size=64),
    AttentionCase(new=(1, 15), past=(40, 15), heads=(1, 1), head_dim=128, page_size=128),
    AttentionCase(new=(1, 19), past=(40, 15), heads=(1, 1), head_dim=256),
    AttentionCase(new=(1, 20), past=(40, 15), heads=(2, 2), head_dim=24),
    AttentionCase(new=(1, 3, 0), past=(40, 15, 3), heads=(16, 1), head_dim=8),
    AttentionCase(new=(1, 200, 2), past=(1000, 517, 256), heads=(2, 2), head_dim=32, page_size=32),
    AttentionCase(new=(12, 1), past=(20_000, 20_000), heads=(1, 1), head_dim=8, page_size=128),
]
WINDOWS = [
    AttentionCase(new=(2, 40, 1, 1), past=(48, 31, 300, 16), window=window, heads=heads, page_size=page_size)
    for heads in ((1, 1), (4, 2))
    for window, page_size in ((1, 16), (7, 16), (17, 32), (50, 16), (257, 64))
]
STORED = [
    AttentionCase(new=(3, 21, 1), past=(60, 37, 300), window=window, variant=variant, memory_dtype="int8", heads=(4, 2))
    for variant in ("softmax", "silu")
    for window in (40, 1 << 20)
]
SILU = [
    AttentionCase(new=(3, 21, 1), past=(60, 37, 300), window=window, variant="silu", heads=heads)
    for heads in ((2, 2), (8, 1))
    for window in (40, 1 << 20)
]
TERMS = [
    AttentionCase(
        new=(3, 21, 1, 0, 1), past=(60, 37, 300, 5, 0), window=window, variant=variant, heads=heads, memory_dtype=dtype
    )
    for variant in ("position", "time", "hstu", "relative")
    for window, heads, dtype in ((40, (4, 2), "same"), (257, (2, 2), "same"), (1 << 20, (4, 1), "int8"))
]


def ids(case: AttentionCase) -> str:
    return case.id


def assert_as_exact_as_pytorch(arguments: AttentionArguments, out: torch.Tensor, lse2: torch.Tensor) -> None:
    """Error against float64 at most twice that of the reference in float32, and one rounding unit."""
    wide = arguments.to(torch.float64)
    exact = reference.segment_attention(*wide.tensors, **wide.keywords)
    same_dtype = reference.segment_attention(*arguments.tensors, **arguments.keywords)
    for got, want, baseline in zip((out, lse2), exact, same_dtype, strict=True):
        assert got.dtype == torch.float32
        empty = want == -torch.inf
        assert torch.equal(got == -torch.inf, empty)
        got, want, baseline = (x.double().masked_fill(empty, 0.0) for x in (got, want, baseline))
        unit = torch.finfo(torch.float32).eps * want.abs().max()
        for norm in (lambda x: x.abs().max(), lambda x: x.square().mean().sqrt()):
            assert norm(got - want) <= 2 * norm(baseline - want) + unit


def attend(arguments: AttentionArguments) -> tuple[torch.Tensor, torch.Tensor]:
    assert fits_paged(*arguments.tensors[:3], arguments.keywords["memory"])
    terms = (arguments.keywords.get(name) for name in ("relative", "position_bias", "time_bias"))
    assert fits_terms(arguments.tensors[0], *terms)
    return segment_attention(*arguments.tensors, **arguments.keywords)


@pytest.mark.parametrize("case", [*SHAPES, *WINDOWS, *SILU, *STORED, *TERMS], ids=ids)
def test_against_float64(case: AttentionCase) -> None:
    arguments = case.make(torch.float32)
    assert_as_exact_as_pytorch(arguments, *attend(arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("new", [(2, 1), (33, 5)])
def test_half_precision_pages_are_widened_exactly(new: tuple[int, int], dtype: torch.dtype) -> None:
    arguments = AttentionCase(new=new, past=(70, 15), heads=(4, 2), head_dim=32, window=60).make(torch.float32)
    memory = arguments.keywords["memory"]
    halves = memory._replace(k_pages=memory.k_pages.to(dtype), v_pages=memory.v_pages.to(dtype))
    narrow = AttentionArguments(arguments.tensors, {**arguments.keywords, "memory": halves})
    assert_as_exact_as_pytorch(narrow, *attend(narrow))
    widened = memory._replace(k_pages=halves.k_pages.float(), v_pages=halves.v_pages.float())
    wide = AttentionArguments(arguments.tensors, {**arguments.keywords, "memory": widened})
    for a, b in zip(attend(narrow), attend(wide), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("new", [(1, 2), (40, 7)])
def test_strided_input_reads_as_its_contiguous_copy(new: tuple[int, int]) -> None:
    """q, k, v as slices of one projection, and keys and values of a page side by side."""
    arguments = AttentionCase(new=new, past=(40, 5), heads=(4, 2)).make(torch.float32)
    q, k, v, cu_seqlens = arguments.tensors
    memory = arguments.keywords["memory"]
    q_view, k_view, v_view = torch.cat((q, k, v), dim=1).split((4, 2, 2), dim=1)
    k_pages, v_pages = torch.stack((memory.k_pages, memory.v_pages), dim=2).unbind(2)
    keywords = {**arguments.keywords, "memory": memory._replace(k_pages=k_pages, v_pages=v_pages)}
    views = AttentionArguments((q_view, k_view, v_view, cu_seqlens), keywords)
    for a, b in zip(attend(views), attend(arguments), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("variant", ["softmax", "silu"])
def test_the_bits_depend_neither_on_threads_nor_on_the_rest_of_the_batch(variant: str) -> None:
    new, past = (1, 150, 2, 1), (3000, 700, 90, 2000)
    case = AttentionCase(new=new, past=past, heads=(4, 2), head_dim=64, page_size=32, variant=variant)
    arguments = case.make(torch.float32)
    threads = torch.get_num_threads()
    answers = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            answers.append(attend(arguments))
    finally:
        torch.set_num_threads(threads)
    for answer in answers[1:]:
        for a, b in zip(answer, answers[0], strict=True):
            assert torch.equal(a, b)
    q, k, v, _ = arguments.tensors
    memory = arguments.keywords["memory"]
    rows, held = slice(1, 151), slice(int(memory.page_indptr[1]), int(memory.page_indptr[2]))
    alone = memory._replace(
        page_indptr=(memory.page_indptr[1:3] - memory.page_indptr[1]).contiguous(),
        page_indices=memory.page_indices[held].contiguous(),
        lengths=memory.lengths[1:2].contiguous(),
    )
    only = (q[rows], k[rows], v[rows], torch.tensor([0, 150], dtype=torch.int32))
    answer = segment_attention(*only, **{**arguments.keywords, "memory": alone})
    for a, b in zip(answer, answers[0], strict=True):
        assert torch.equal(a, b[rows])


@given(data=st.data(), window=st.integers(1, 90), stored=st.sampled_from([torch.float32, torch.int8]))
@settings(max_examples=25, deadline=None)
def test_any_chunking_of_a_history_gives_the_answer_at_once(
    data: st.DataObject, window: int, stored: torch.dtype
) -> None:
    """Chunks appended with `append_memory`, each attended over the pages that the earlier ones filled."""
    chunks = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    total, page_size, heads, kv_heads, dim = sum(chunks), 16, 4, 2, 16
    torch.manual_seed(total)
    q, k, v = (torch.randn(total, n, dim) for n in (heads, kv_heads, kv_heads))
    num_pages = -(-total // page_size)
    table = torch.randperm(num_pages + 1)[:num_pages].int()
    shape = (num_pages + 1, page_size, kv_heads)
    free = torch.nan if stored.is_floating_point else 0
    k_pages, v_pages = (torch.full((*shape, dim), free, dtype=stored) for _ in range(2))
    scales = [torch.full(shape, torch.nan) for _ in range(2)] if stored == torch.int8 else [None, None]
    outs = []
    start = 0
    for count in chunks:
        new = slice(start, start + count)
        position = torch.arange(start, start + count)
        memory = PagedMemory(
            k_pages, v_pages, torch.tensor([0, num_pages], dtype=torch.int32), table,
            torch.tensor([start], dtype=torch.int32), *scales,
        )  # fmt: skip
        offsets = torch.tensor([0, count], dtype=torch.int32)
        outs.append(segment_attention(q[new], k[new], v[new], offsets, window=window, memory=memory)[0])
        slots = table[position // page_size].long() * page_size + position % page_size
        append_memory(
            q[new], k[new], v[new], position, slots, k_pages, v_pages,
            rotary_base=None, k_scale=scales[0], v_scale=scales[1],
        )  # fmt: skip
        start += count
    whole = torch.tensor([0, total], dtype=torch.int32)
    expected, _ = reference.segment_attention(q.double(), k.double(), v.double(), whole, window=window)
    tolerance = 1e-5 if stored == torch.float32 else 0.1  # 1/254 of a row's peak, times scores of up to 20 or so
    torch.testing.assert_close(torch.cat(outs).double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("new", [1, 30])
def test_nan_among_the_keys_that_are_seen_is_not_hidden(new: int) -> None:
    arguments = AttentionCase(new=(new,), past=(40,), heads=(1, 1), window=20).make(torch.float32)
    memory = arguments.keywords["memory"]
    memory.k_pages[memory.page_indices[2].long(), 0] = torch.nan  # event 32, seen by queries 40 to 51
    out, lse2 = attend(arguments)
    seen = torch.arange(new) + 40 < 32 + 20
    assert torch.equal(out.isnan().any(-1)[:, 0], seen)
    assert torch.equal(lse2.isnan()[:, 0], seen)


@pytest.mark.parametrize("new", [1, 30])
def test_scores_that_are_too_large_for_an_exponential_are_shifted(new: int) -> None:
    arguments = AttentionCase(new=(new,), past=(40,), heads=(2, 1)).make(torch.float32)
    arguments.keywords["scale"] = 300.0
    assert_as_exact_as_pytorch(arguments, *attend(arguments))


def test_no_events() -> None:
    out, lse2 = attend(AttentionCase(new=(0, 0), past=(3, 20)).make(torch.float32))
    assert out.shape == (0, 2, 16)
    assert lse2.shape == (0, 2)


def test_what_the_body_does_not_take_goes_to_the_reference() -> None:
    for case, dtype in (
        (AttentionCase(new=(3,), past=(9,)), torch.float64),
        (AttentionCase(new=(3,), past=(9,), memory_dtype="fp8"), torch.float32),
        (AttentionCase(new=(3,), past=(9,), heads=(17, 1)), torch.float32),
        (AttentionCase(new=(3,), past=(9,), head_dim=20), torch.float32),
    ):
        arguments = case.make(dtype)
        assert not fits_paged(*arguments.tensors[:3], arguments.keywords["memory"])
        expected = reference.segment_attention(*arguments.tensors, **arguments.keywords)
        for a, b in zip(segment_attention(*arguments.tensors, **arguments.keywords), expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lengths", [17], r"memory.lengths\[0\]: expected no more events than the user's pages hold"),
        ("page_indices", [3], r"memory.page_indices\[0\]: expected 0\.\.2, the pages there are"),
        ("lengths", [1, 1], r"memory.lengths: expected shape \[B=1\]"),
    ],
)
def test_what_would_read_outside_of_the_pages_is_named(field: str, value: list[int], message: str) -> None:
    arguments = AttentionCase(new=(2,), past=(9,)).make(torch.float32)
    memory = arguments.keywords["memory"]._replace(**{field: torch.tensor(value, dtype=torch.int32)})
    with pytest.raises(ArgumentError, match=message):
        segment_attention(*arguments.tensors, **{**arguments.keywords, "memory": memory})


def test_the_kernels_import_without_numba() -> None:
    """And an engine on a CPU is told what it lacks while it loads."""
    code = """
import sys, torch
sys.modules["numba"] = None
from longrec import kernels
kernels.prepare_attention(torch.empty(1, 16, 2, 20), torch.float32)  # the reference's
try:
    kernels.prepare_attention(torch.empty(1, 16, 2, 32), torch.float32)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "MachineError longrec's kernels on a CPU need numba: pip install 'longrec[server]'\n"
