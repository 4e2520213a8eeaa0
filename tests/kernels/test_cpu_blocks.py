"""The CPU's body of a network's blocks against the reference in float64, and in float32 beside it."""

import pytest
import torch
from torch.nn.functional import linear, rms_norm, silu

from longrec.kernels import BlockStep, BlockWeights, PagedMemory, fits_blocks, reference
from longrec.kernels.reference.block import block

SETTINGS = {"window": 20, "rotary_base": 10_000.0, "eps": 1e-6}
PAGE_SIZE = 16
# new events, events in memory
RAGGED = ((1, 7), (5, 0), (0, 40), (1, 33), (37, 16), (1, 0), (2, 100))
SINGLE = tuple((1, past) for past in (0, 1, 15, 16, 17, 31, 32, 40, 90))


def run_blocks(x, weights, positions, cu_seqlens, slots, memory, **settings):
    """States of a copy of x."""
    states = x.clone()
    BlockStep(states, weights, positions, cu_seqlens, slots, memory, **settings).run(len(x), len(cu_seqlens) - 1)
    return states


class Problem:
    """Two blocks and some users' memories, pages in random order, free places NaN."""

    def __init__(self, users, stored=torch.float32, dim=64, heads=(4, 2), head_dim=16, hidden_dim=40, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*size, scale=1.0):
            return torch.randn(*size, generator=generator) * scale

        (num_heads, kv_heads), new, past = heads, *torch.tensor(users).T
        heads_dim = num_heads * head_dim
        self.weights = [
            BlockWeights(
                1 + normal(dim, scale=0.1),
                normal(heads_dim + 2 * kv_heads * head_dim, dim, scale=dim**-0.5),
                normal(dim, heads_dim, scale=heads_dim**-0.5),
                1 + normal(dim, scale=0.1),
                normal(2 * hidden_dim, dim, scale=dim**-0.5),
                normal(dim, hidden_dim, scale=hidden_dim**-0.5),
            )
            for _ in range(2)
        ]
        self.final_norm = 1 + normal(dim, scale=0.1)
        held = -(-(new + past) // PAGE_SIZE)
        tables = torch.randperm(int(held.sum()) + 2, generator=generator)[: int(held.sum())].split(held.tolist())
        places = [
            table[event // PAGE_SIZE] * PAGE_SIZE + event % PAGE_SIZE
            for table, event in ((table, torch.arange(n + m)) for table, n, m in zip(tables, new, past, strict=True))
        ]
        self.slots = torch.cat([place[m:] for place, m in zip(places, past, strict=True)])
        self.places = self.slots.clone()
        self.slots[1::7] = -1
        self.positions = torch.cat([torch.arange(n) + m + 1_000_000 for n, m in users])
        self.cu_seqlens = torch.cat([torch.zeros(1), new.cumsum(0)]).int()
        self.x = normal(len(self.slots), dim)
        indptr = torch.cat([torch.zeros(1), held.cumsum(0)]).int()
        shape = (int(held.sum()) + 2, PAGE_SIZE, kv_heads)
        filled = torch.cat([place[:m] for place, m in zip(places, past, strict=True)])
        self.memory = [
            self.pages(shape, head_dim, filled, stored, normal, indptr, torch.cat(tables).int(), past.int())
            for _ in range(2)
        ]

    def pages(self, shape, head_dim, filled, stored, normal, *tables):
        made = []
        for _ in range(2):
            rows = normal(len(filled), shape[-1], head_dim)
            if stored == torch.int8:
                pages, scales = torch.full((*shape, head_dim), 77, dtype=stored), torch.full(shape, torch.nan)
                codes, scale = reference.append.quantise(rows, stored)
                pages.flatten(0, 1)[filled], scales.flatten(0, 1)[filled] = codes.to(stored), scale
                made.append((pages, scales))
            else:
                pages = torch.full((*shape, head_dim), torch.nan, dtype=stored)
                pages.flatten(0, 1)[filled] = rows.to(stored)
                made.append((pages, None))
        (k_pages, k_scale), (v_pages, v_scale) = made
        return PagedMemory(k_pages, v_pages, *tables, k_scale, v_scale)

    def copied(self):
        return [PagedMemory(*(None if field is None else field.clone() for field in past)) for past in self.memory]

    def run(self, memory):
        assert fits_blocks(self.x, self.weights[0], memory[0].k_pages)
        tensors = (self.positions, self.cu_seqlens, self.slots, memory)
        return run_blocks(self.x, self.weights, *tensors, **SETTINGS, final_norm=self.final_norm)

    def composed(self, dtype):
        memory, x = self.copied(), self.x.to(dtype)
        if memory[0].k_pages.dtype == torch.float32:
            memory = [past._replace(k_pages=past.k_pages.to(dtype), v_pages=past.v_pages.to(dtype)) for past in memory]
        for weights, past in zip(self.weights, memory, strict=True):
            weights = BlockWeights(*(weight.to(dtype) for weight in weights))
            x = block(x, weights, self.positions, self.cu_seqlens, self.slots, past, **SETTINGS)
        return rms_norm(x, x.shape[1:], self.final_norm.to(dtype), SETTINGS["eps"]), memory

    def continued(self, memory, dtype):
        """States and each layer's rotated k and v in `dtype`, where new events attend to what `memory` holds of them:
        the codes that a rounding may have chosen are given, and what is left must be exact."""
        x, rows = self.x.to(dtype), []
        for weights, past, held in zip(self.weights, self.memory, memory, strict=True):
            weights = BlockWeights(*(weight.to(dtype) for weight in weights))
            normed = rms_norm(x, x.shape[1:], weights.attention_norm, SETTINGS["eps"])
            num_kv_heads, head_dim = past.k_pages.shape[2:]
            qkv = linear(normed, weights.qkv).unflatten(-1, (-1, head_dim))
            q, k, v = qkv.split((qkv.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads), dim=1)
            q, k = (reference.rotate(part, self.positions, SETTINGS["rotary_base"]) for part in (q, k))
            rows.append({"k": k, "v": v})
            k, v = (rows_of(held, name, self.places).to(dtype) for name in ("k", "v"))
            attended, _ = reference.segment_attention(q, k, v, self.cu_seqlens, window=SETTINGS["window"], memory=past)
            x = x + linear(attended.flatten(1), weights.out)
            normed = rms_norm(x, x.shape[1:], weights.feed_forward_norm, SETTINGS["eps"])
            gate, up = linear(normed, weights.gate_up).chunk(2, dim=-1)
            x = x + linear(silu(gate) * up, weights.down)
        return rms_norm(x, x.shape[1:], self.final_norm.to(dtype), SETTINGS["eps"]), rows


def read(memory, name):
    pages, scale = getattr(memory, f"{name}_pages").double(), getattr(memory, f"{name}_scale")
    return pages if scale is None else pages * scale.double()[..., None]


def rows_of(memory, name, slots):
    """[T, Hkv, D] float64: what the pages hold at these places."""
    return read(memory, name).flatten(0, 1)[slots]


def error(got, want):
    """The largest, where there is something."""
    return (got.double() - want.double()).nan_to_num().abs().max()


def units(want, count=1):
    """Rounding units of float32 at the largest."""
    return count * torch.finfo(torch.float32).eps * want.nan_to_num().abs().max()


@pytest.mark.parametrize("users", [RAGGED, SINGLE], ids=["ragged", "single"])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"dim": 40, "heads": (3, 3), "head_dim": 8, "hidden_dim": 24},
        {"heads": (8, 1), "head_dim": 32},
        {"dim": 512, "hidden_dim": 1024},
    ],
    ids=["d64", "d40", "grouped", "wide"],
)
def test_against_float64(users, shape):
    """Error at most twice PyTorch's in float32, and one rounding unit; so are what pages hold."""
    problem = Problem(users, **shape)
    memory = problem.copied()
    got = problem.run(memory)
    (same, same_memory), (exact, exact_memory) = problem.composed(torch.float32), problem.composed(torch.float64)
    assert error(got, exact) <= 2 * error(same, exact) + units(exact)
    for ours, theirs, truth in zip(memory, same_memory, exact_memory, strict=True):
        for name in ("k", "v"):
            found, baseline, wanted = (read(past, name) for past in (ours, theirs, truth))
            assert torch.equal(found.isnan(), wanted.isnan())  # nothing else was written
            assert error(found, wanted) <= 2 * error(baseline, wanted) + units(wanted)


def half_step(held, name, slots):
    """[T, Hkv, D]: half of the distance between two codes, where the pages' entries lie."""
    entries, dtype = rows_of(held, name, slots), getattr(held, f"{name}_pages").dtype
    if dtype == torch.int8:
        return (getattr(held, f"{name}_scale").flatten(0, 1)[slots].double() / 2)[..., None].expand_as(entries)
    kind = torch.finfo(dtype)
    return entries.abs().clamp(min=kind.smallest_normal).log2().floor().exp2() * kind.eps / 2


@pytest.mark.parametrize(("stored", "head_dim"), [(torch.bfloat16, 32), (torch.float16, 32), (torch.int8, 16)], ids=str)
def test_narrow_pages_hold_the_nearest_code_and_give_what_they_hold(stored, head_dim):
    """Codes are at most half a step from the exact value, beside float32's error; states are exact from these codes."""
    problem = Problem(RAGGED, stored, head_dim=head_dim)
    problem.slots = problem.places  # all are written
    memory = problem.copied()
    got = problem.run(memory)
    same, same_rows = problem.continued(memory, torch.float32)
    exact, exact_rows = problem.continued(memory, torch.float64)
    assert error(got, exact) <= 2 * error(same, exact) + units(exact)
    for before, held, baseline, wanted in zip(problem.memory, memory, same_rows, exact_rows, strict=True):
        for name in ("k", "v"):
            found = rows_of(held, name, problem.slots)
            off = (found - wanted[name]).abs() - half_step(held, name, problem.slots)
            # quantising itself rounds three times: 127 / peak, times the value, and the code times peak / 127
            assert off.max() <= 2 * error(baseline[name], wanted[name]) + units(wanted[name], 2.5)
            others = torch.ones(held.k_pages.shape[:2]).flatten().index_fill(0, problem.slots, 0).bool()
            assert torch.equal(
                read(held, name).flatten(0, 1)[others].nan_to_num(),
                read(before, name).flatten(0, 1)[others].nan_to_num(),
            )


@pytest.mark.parametrize("stored", [torch.float32, torch.int8], ids=str)
def test_events_in_pieces_give_the_states_of_the_whole(stored):
    problem = Problem(((40, 3), (9, 0), (25, 60)), stored)
    event = torch.cat([torch.arange(n + m)[m:] for n, m in ((40, 3), (9, 0), (25, 60))])
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor([40, 9, 25]))
    table = problem.memory[0].page_indices[problem.memory[0].page_indptr[owner].long() + event // PAGE_SIZE]
    problem.slots = table.long() * PAGE_SIZE + event % PAGE_SIZE  # all are written
    at_once = problem.run(problem.copied())
    memory, x = problem.copied(), problem.x
    done = [0, 0, 0]
    states = torch.empty_like(at_once)
    for pieces in ((1, 1, 1), (13, 0, 1), (1, 8, 20), (25, 0, 3)):
        chosen = [int(problem.cu_seqlens[user]) + done[user] + n for user in range(3) for n in range(pieces[user])]
        past = torch.tensor([3 + done[0], done[1], 60 + done[2]], dtype=torch.int32)
        offsets = torch.tensor([0, *torch.tensor(pieces).cumsum(0).tolist()], dtype=torch.int32)
        states[chosen] = run_blocks(
            x[chosen], problem.weights, problem.positions[chosen], offsets, problem.slots[chosen],
            [held._replace(lengths=past) for held in memory], **SETTINGS, final_norm=problem.final_norm,
        )  # fmt: skip
        done = [a + b for a, b in zip(done, pieces, strict=True)]
    # rounding that moves a value over the edge of a code is rare, and as large as a code's step
    assert (states - at_once).abs().mean() < (1e-6 if stored == torch.float32 else 1e-4)
    assert (states - at_once).abs().max() < (2e-5 if stored == torch.float32 else 2e-2)


def test_the_bits_depend_neither_on_threads_nor_on_the_rest_of_the_batch():
    users = ((1, 7), (150, 30), (0, 4), (1, 33), (1, 0), (90, 3), (80, 90), (1, 40))
    problem = Problem(users)
    threads = torch.get_num_threads()
    answers = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            answers.append(problem.run(problem.copied()))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    past = problem.memory[0]
    alone = [
        held._replace(page_indptr=past.page_indptr[3:5] - past.page_indptr[3],
                      page_indices=past.page_indices[int(past.page_indptr[3]) :].contiguous(),
                      lengths=past.lengths[3:4].contiguous())
        for held in problem.copied()
    ]  # fmt: skip
    row = slice(151, 152)
    got = run_blocks(
        problem.x[row], problem.weights, problem.positions[row].contiguous(), torch.tensor([0, 1], dtype=torch.int32),
        problem.slots[row].contiguous(), alone, **SETTINGS, final_norm=problem.final_norm,
    )  # fmt: skip
    assert torch.equal(got, answers[0][row])


def test_a_row_that_is_no_number_reads_back_as_none():
    problem = Problem(((1, 3), (1, 5)), torch.int8)
    problem.slots[:] = torch.tensor([1, 2]) + int(problem.memory[0].k_pages.shape[0] - 1) * PAGE_SIZE
    problem.x[0, 3] = torch.inf
    memory = problem.copied()
    problem.run(memory)
    page = memory[0].k_pages.shape[0] - 1
    assert read(memory[0], "k")[page, 1].isnan().all()
    assert read(memory[0], "k")[page, 2].isfinite().all()


def test_no_events():
    problem = Problem(((0, 3), (0, 20)))
    assert problem.run(problem.copied()).shape == (0, 64)


def test_what_does_not_fit_is_said_to():
    problem = Problem(((1, 3),))
    x, weights, pages = problem.x, problem.weights[0], problem.memory[0].k_pages
    assert fits_blocks(x, weights, pages)
    assert not fits_blocks(x.double(), weights, pages)
    assert not fits_blocks(x, weights, pages.double())
    assert not fits_blocks(x, weights._replace(qkv=weights.qkv.bfloat16()), pages)
    assert not fits_blocks(x, weights._replace(down=weights.down[:, :36].contiguous()), pages)
    assert not fits_blocks(x, weights._replace(qkv=weights.qkv.T.contiguous().T), pages)
    assert not fits_blocks(x, weights._replace(qkv=weights.qkv.clone().requires_grad_()), pages)
    with torch.no_grad():
        assert fits_blocks(x, weights._replace(qkv=weights.qkv.clone().requires_grad_()), pages)
