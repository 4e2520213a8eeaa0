"""The PyTorch bodies in float64 against formulations that share nothing with them: loops over users, heads, queries."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from longrec.kernels import PagedMemory, append_memory, catalogue_topk, rotate, segment_attention


class Case(NamedTuple):
    new: tuple[int, ...]  # new events of each user
    past: tuple[int, ...] | None  # memory of each user; None: no memory is given
    heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    window: int

    def __str__(self) -> str:
        past = "none" if self.past is None else "+".join(map(str, self.past))
        return (
            f"T{'+'.join(map(str, self.new))}-mem{past}-H{self.heads}x{self.kv_heads}-D{self.head_dim}"
            f"-S{self.page_size}-W{self.window}"
        )


CASES = [
    Case((7,), None, 2, 2, 8, 4, 100),
    Case((5, 5, 3, 1, 4, 4), None, 4, 2, 8, 4, 3),
    Case((0, 6, 0, 11, 0), None, 2, 1, 16, 4, 5),
    Case((23, 23), None, 2, 2, 8, 4, 7),
    Case((9, 2), None, 2, 2, 8, 4, 1),
    Case((3, 1, 5), (0, 0, 0), 2, 2, 8, 4, 100),
    Case((1, 1, 1, 1), (8, 7, 9, 0), 4, 1, 8, 4, 100),
    Case((3, 0, 6, 2), (13, 5, 0, 31), 4, 2, 8, 8, 100),
    Case((3, 17, 6, 2), (13, 5, 16, 31), 4, 4, 8, 8, 10),
    Case((2, 4), (21, 3), 6, 2, 10, 4, 1),
    Case((0, 0), (4, 0), 2, 2, 8, 4, 5),
    Case((), None, 2, 2, 8, 4, 5),
]


class Problem(NamedTuple):
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cu_seqlens: torch.Tensor
    memory: PagedMemory | None
    past: list[tuple[torch.Tensor, torch.Tensor]]  # each user's keys and values in order, unpaged


def make(case: Case, dtype: torch.dtype = torch.float64) -> Problem:
    """Random inputs; memory lies in shuffled pages whose every unused slot is NaN."""
    rng = torch.Generator().manual_seed(7)
    total = sum(case.new)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)

    q = draw(total, case.heads, case.head_dim)
    k, v = draw(total, case.kv_heads, case.head_dim), draw(total, case.kv_heads, case.head_dim)
    cu_seqlens = torch.tensor(np.cumsum((0, *case.new)), dtype=torch.int32)
    lengths = case.past or (0,) * len(case.new)
    past = [(draw(n, case.kv_heads, case.head_dim), draw(n, case.kv_heads, case.head_dim)) for n in lengths]
    if case.past is None:
        return Problem(q, k, v, cu_seqlens, None, past)
    counts = [-(-n // case.page_size) for n in lengths]
    order = torch.randperm(sum(counts) + 3, generator=rng)
    indptr = np.cumsum((0, *counts))
    k_pages = torch.full((len(order), case.page_size, case.kv_heads, case.head_dim), torch.nan, dtype=dtype)
    v_pages = k_pages.clone()
    for user, (keys, values) in enumerate(past):
        for event in range(len(keys)):
            page = order[indptr[user] + event // case.page_size]
            k_pages[page, event % case.page_size] = keys[event]
            v_pages[page, event % case.page_size] = values[event]
    memory = PagedMemory(
        k_pages,
        v_pages,
        torch.tensor(indptr, dtype=torch.int32),
        order[: sum(counts)].int(),
        torch.tensor(lengths, dtype=torch.int32),
    )
    return Problem(q, k, v, cu_seqlens, memory, past)


def naive_attention(problem: Problem, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.zeros_like(problem.q)
    lse2 = torch.zeros(problem.q.shape[:2], dtype=problem.q.dtype)
    group = problem.q.shape[1] // problem.k.shape[1]
    for user, (past_k, past_v) in enumerate(problem.past):
        start, stop = problem.cu_seqlens[user : user + 2].tolist()
        keys = torch.cat((past_k, problem.k[start:stop]))
        values = torch.cat((past_v, problem.v[start:stop]))
        for row in range(start, stop):
            i = len(past_k) + row - start
            seen = range(max(0, i - window + 1), i + 1)
            for head in range(problem.q.shape[1]):
                dots = [float(problem.q[row, head] @ keys[j, head // group]) / math.sqrt(keys.shape[-1]) for j in seen]
                total = sum(math.exp(dot) for dot in dots)
                lse2[row, head] = math.log2(total)
                for dot, j in zip(dots, seen, strict=True):
                    out[row, head] += math.exp(dot) / total * values[j, head // group]
    return out, lse2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_segment_attention_is_the_loop(case: Case) -> None:
    problem = make(case)
    out, lse2 = segment_attention(
        problem.q, problem.k, problem.v, problem.cu_seqlens, window=case.window, memory=problem.memory
    )
    expected_out, expected_lse2 = naive_attention(problem, case.window)
    assert out.dtype == lse2.dtype == torch.float64
    torch.testing.assert_close(out, expected_out, rtol=0, atol=1e-10)
    torch.testing.assert_close(lse2, expected_lse2, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[8]], ids=str)
def test_gradients_are_the_numerical_ones(case: Case) -> None:
    problem = make(case)
    inputs = [x.requires_grad_() for x in (problem.q, problem.k, problem.v)]

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return segment_attention(q, k, v, problem.cu_seqlens, window=case.window, memory=problem.memory)[0]

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


def test_scale_is_that_of_the_scores() -> None:
    problem = make(CASES[0])
    scaled, _ = segment_attention(problem.q, problem.k, problem.v, problem.cu_seqlens, window=9, scale=0.5)
    factor = 0.5 * math.sqrt(CASES[0].head_dim)
    default, _ = segment_attention(problem.q * factor, problem.k, problem.v, problem.cu_seqlens, window=9)
    torch.testing.assert_close(scaled, default, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_segment_attention_keeps_the_dtype(dtype: torch.dtype) -> None:
    for case in (CASES[1], CASES[8]):
        problem = make(case, dtype)
        out, lse2 = segment_attention(
            problem.q, problem.k, problem.v, problem.cu_seqlens, window=case.window, memory=problem.memory
        )
        assert out.dtype == lse2.dtype == dtype
        assert out.isfinite().all()


def test_non_contiguous_input_changes_nothing() -> None:
    problem = make(CASES[8])
    fused = torch.cat((problem.q, problem.k, problem.v), dim=1)
    q, k, v = fused.split((4, 4, 4), dim=1)
    arguments = {"window": CASES[8].window, "memory": problem.memory}
    expected, _ = segment_attention(problem.q, problem.k, problem.v, problem.cu_seqlens, **arguments)
    out, _ = segment_attention(q, k, v, problem.cu_seqlens, **arguments)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_rotate_turns_pairs_as_complex_numbers() -> None:
    positions = torch.tensor([0, 1, 17, 1_000_003])
    x = torch.randn(4, 3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    turned = rotate(x, positions, 100.0)
    for t, position in enumerate(positions.tolist()):
        for pair in range(5):
            number = complex(x[t, 1, pair], x[t, 1, pair + 5])
            number *= complex(math.cos(position * 100.0 ** (-pair / 5)), math.sin(position * 100.0 ** (-pair / 5)))
            assert abs(number - complex(turned[t, 1, pair], turned[t, 1, pair + 5])) < 1e-9


def test_rotated_dot_products_depend_on_the_distance_alone() -> None:
    rng = torch.Generator().manual_seed(2)
    q, k = (torch.randn(1, 1, 16, dtype=torch.float64, generator=rng) for _ in range(2))
    dots = [
        float((rotate(q, torch.tensor([i + 9]), 1e4) * rotate(k, torch.tensor([i]), 1e4)).sum())
        for i in (0, 5, 123_456)
    ]
    assert max(dots) - min(dots) < 1e-9


def test_append_memory_writes_the_named_slots_and_no_others() -> None:
    rng = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(4, 2, 8, dtype=torch.float64, generator=rng) for _ in range(3))
    positions, slots = torch.tensor([10, 11, 12, 13]), torch.tensor([4, -1, 11, 0])
    k_pages = torch.full((3, 4, 2, 8), torch.nan, dtype=torch.float64)
    v_pages = k_pages.clone()
    rotated_q, rotated_k = append_memory(q, k, v, positions, slots, k_pages, v_pages, rotary_base=1e4)
    torch.testing.assert_close(rotated_q, rotate(q, positions, 1e4))
    torch.testing.assert_close(rotated_k, rotate(k, positions, 1e4))
    written = [0, 2, 3]
    torch.testing.assert_close(k_pages.flatten(0, 1)[slots[written]], rotated_k[written])
    torch.testing.assert_close(v_pages.flatten(0, 1)[slots[written]], v[written])
    assert k_pages.flatten(0, 1).isnan().all(-1).all(-1).sum() == 12 - len(written)


def test_attention_over_appended_memory_is_attention_over_the_whole() -> None:
    """What append_memory wrote in pieces is what segment_attention would have seen at once."""
    rng = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(21, 2, 8, dtype=torch.float64, generator=rng) for _ in range(3))
    positions, order = torch.arange(21), torch.tensor([5, 1, 3, 0, 2, 4])
    k_pages = torch.full((6, 4, 2, 8), torch.nan, dtype=torch.float64)
    v_pages = k_pages.clone()
    whole, _ = segment_attention(
        rotate(q, positions, 1e4), rotate(k, positions, 1e4), v, torch.tensor([0, 21], dtype=torch.int32), window=6
    )
    for start, stop in ((0, 3), (3, 4), (4, 16), (16, 21)):
        piece, pages = slice(start, stop), -(-stop // 4)
        slots = order[positions[piece] // 4] * 4 + positions[piece] % 4
        new_q, new_k = append_memory(
            q[piece], k[piece], v[piece], positions[piece], slots, k_pages, v_pages, rotary_base=1e4
        )
        memory = PagedMemory(
            k_pages,
            v_pages,
            torch.tensor([0, pages], dtype=torch.int32),
            order[:pages].int(),
            torch.tensor([start], dtype=torch.int32),
        )
        cu_seqlens = torch.tensor([0, stop - start], dtype=torch.int32)
        out, _ = segment_attention(new_q, new_k, v[piece], cu_seqlens, window=6, memory=memory)
        torch.testing.assert_close(out, whole[piece], rtol=0, atol=1e-12)


def test_catalogue_topk_breaks_ties_by_the_lower_index() -> None:
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    items = torch.tensor([[1.0, 2.0], [3.0, 2.0], [3.0, 5.0], [0.0, 2.0]], dtype=torch.float64)
    scores, index = catalogue_topk(hidden, items, 3)
    assert index.tolist() == [[1, 2, 0], [2, 0, 1]]
    assert scores.tolist() == [[3.0, 3.0, 1.0], [5.0, 2.0, 2.0]]
