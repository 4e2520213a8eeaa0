"""`block_decode`: reference against a plain transformer block, kernel against reference, poison, bad input."""

import math
import sys

import pytest
import torch
import triton

from longrec.errors import ArgumentError
from longrec.kernels.block_decode import (
    BlockWeights,
    block_decode,
    block_decode_fits,
    block_decode_reference,
    block_decode_triton,
)
from longrec.kernels.block_decode_cases import SETTINGS, SHAPES, BlockCase, compare_block
from longrec.kernels.block_decode_kernel import choose_block_b
from longrec.kernels.types import PagedMemory

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"


def make(shape, dtype):
    return shape.make(dtype, DEVICE)


def plain_block(x, weights, positions, slots, memory, user):
    """One user's event through the block, written out head by head over a plain list of its keys and values."""
    page_size, num_kv_heads, head_dim = memory.k_pages.shape[1:]
    length, first = int(memory.lengths[user]), int(memory.page_indptr[user])

    def norm(z, weight):
        return z / (z.square().mean() + 1e-6).sqrt() * weight

    def turn(z):
        half = head_dim // 2
        angle = positions[user] * SETTINGS["rotary_base"] ** (-torch.arange(half, dtype=torch.float64) / half)
        z = torch.complex(z[:half], z[half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([z.real, z.imag])

    heads = (weights.qkv @ norm(x[user], weights.attention_norm)).unflatten(0, (-1, head_dim))
    num_heads = len(heads) - 2 * num_kv_heads
    attended = []
    for head in range(num_heads):
        kv = head * num_kv_heads // num_heads
        keys, values = [turn(heads[num_heads + kv])], [heads[num_heads + num_kv_heads + kv]]
        for event in range(max(0, length + 1 - SETTINGS["window"]), length):
            page = memory.page_indices[first + event // page_size]
            keys.append(memory.k_pages[page, event % page_size, kv])
            values.append(memory.v_pages[page, event % page_size, kv])
        weight = (torch.stack(keys) @ turn(heads[head]) / math.sqrt(head_dim)).softmax(0)
        attended.append(weight @ torch.stack(values))
    y = x[user] + weights.out @ torch.cat(attended)
    gate, up = (weights.gate_up @ norm(y, weights.feed_forward_norm)).chunk(2)
    return y + weights.down @ (gate * gate.sigmoid() * up)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda case: case.id)
def test_reference_is_a_transformer_block(shape):
    arguments = tuple(t.cpu() if isinstance(t, torch.Tensor) else t for t in make(shape, torch.float64))
    arguments = (*arguments[:1], BlockWeights(*(w.cpu() for w in arguments[1])), *arguments[2:4], arguments[4])
    memory = PagedMemory(*(t.cpu() for t in arguments[4][:5]))
    expected = [plain_block(*arguments[:4], memory, user) for user in range(len(arguments[0]))]
    got = block_decode_reference(*arguments[:4], memory, **SETTINGS)
    assert (got - torch.stack(expected)).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "block_b"), list(zip(SHAPES, (1, 4, 1, 8, 4), strict=True)), ids=[case.id for case in SHAPES]
)
def test_kernel_is_as_exact_as_pytorch_in_the_same_dtype(shape, block_b, dtype, monkeypatch):
    module = sys.modules[block_decode_triton.__module__]  # by path the function of its name is found
    monkeypatch.setattr(module, "choose_block_b", lambda *_: block_b)
    for comparison in compare_block(shape, dtype, DEVICE):
        assert comparison.passed, comparison


def test_only_the_named_slots_are_written():
    arguments = make(SHAPES[1], torch.float32)
    arguments[3][1] = -1
    before = arguments.copy(torch.float32).memory
    block_decode_triton(*arguments, **SETTINGS)

    for name in ("k_pages", "v_pages"):
        changed = (getattr(arguments[4], name) != getattr(before, name)) & getattr(arguments[4], name).isfinite()
        places = changed.any(-1).any(-1).flatten().nonzero().flatten().tolist()
        assert places == sorted(slot for slot in arguments[3].tolist() if slot >= 0)


def test_steps_chain_through_memory():
    """Three steps of the kernel are three steps of the reference: what one appends the next one reads."""
    arguments = BlockCase(32, 2, 1, 16, 48, 16, (13, 4)).make(torch.float32, DEVICE)
    other = arguments.copy(torch.float64)
    for step in range(3):
        states = []
        for body, (x, weights, positions, _, memory) in (
            (block_decode_triton, arguments),
            (block_decode_reference, other),
        ):
            held = memory.lengths + step
            slots = memory.page_indices[memory.page_indptr[:-1] + held // 16].long() * 16 + held % 16
            memory = memory._replace(lengths=held)
            states.append(body(x, weights, positions + step, slots, memory, **SETTINGS))
        torch.testing.assert_close(states[0].double(), states[1], rtol=1e-5, atol=1e-5)


def test_out_may_be_x():
    arguments, same = make(SHAPES[0], torch.float32), make(SHAPES[0], torch.float32)
    expected = block_decode_triton(*same, **SETTINGS)
    assert block_decode_triton(*arguments, **SETTINGS, out=arguments[0]) is arguments[0]
    torch.testing.assert_close(arguments[0], expected, rtol=0, atol=0)


def test_a_user_does_not_depend_on_its_neighbours():
    x, weights, positions, slots, memory = make(SHAPES[1], torch.float32)
    alone = make(SHAPES[1], torch.float32)
    whole = block_decode_triton(x, weights, positions, slots, memory, **SETTINGS)
    user = 3
    first, last = memory.page_indptr[user], memory.page_indptr[user + 1]
    own = alone[4]._replace(
        page_indptr=torch.stack([first - first, last - first]),
        page_indices=memory.page_indices[first:last],
        lengths=memory.lengths[user : user + 1],
    )
    got = block_decode_triton(
        alone[0][user : user + 1], weights, positions[user : user + 1], slots[user : user + 1], own, **SETTINGS
    )
    torch.testing.assert_close(got[0], whole[user], rtol=1e-5, atol=1e-5)


def test_no_users_is_no_launch():
    x, weights, positions, slots, memory = make(SHAPES[0], torch.float32)
    nobody = memory._replace(page_indptr=memory.page_indptr[:1], lengths=memory.lengths[:0])
    assert block_decode_triton(x[:0], weights, positions[:0], slots[:0], nobody, **SETTINGS).shape == (0, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": lambda a: a[0].int()}, "x: expected"),
        ({"x": lambda a: a[0][0]}, r"x: expected shape \[B, d\]"),
        ({"positions": lambda a: a[2].int()}, "positions: expected int64, got int32"),
        ({"slots": lambda a: a[3][:-1]}, "slots: expected shape"),
        ({"weights": lambda a: a[1]._replace(down=a[1].down[:-1])}, "weights.down: expected shape"),
        ({"weights": lambda a: a[1]._replace(qkv=a[1].qkv.T.contiguous().T)}, "weights.qkv: expected contiguous"),
        ({"memory": lambda a: a[4]._replace(lengths=a[4].lengths + 1000)}, "memory.lengths"),
        ({"memory": lambda a: a[4]._replace(page_indices=a[4].page_indices - 1000)}, "memory.page_indices"),
        ({"memory": lambda a: a[4]._replace(k_scale=a[4].k_pages[..., 0].float())}, "memory: expected pages without"),
        ({"slots": lambda a: a[3] + 100_000}, "slots"),
        ({"window": lambda a: 0}, "window=0"),
    ],
)
def test_bad_input_is_refused_before_any_launch(change, message):
    arguments = make(SHAPES[1], torch.float32)
    named = dict(zip(("x", "weights", "positions", "slots", "memory"), arguments, strict=True)) | SETTINGS
    named |= {name: value(arguments) for name, value in change.items()}
    with pytest.raises(ArgumentError, match=message):
        block_decode(**named)


def test_what_fits():
    assert block_decode_fits(32, 2, 2, 16, 32, torch.float32)
    assert block_decode_fits(128, 2, 2, 64, 32, torch.bfloat16)
    assert not block_decode_fits(128, 2, 2, 64, 32, torch.float32)
    assert not block_decode_fits(256, 4, 4, 64, 32, torch.bfloat16)
    assert not block_decode_fits(96, 4, 4, 24, 32, torch.bfloat16)
    assert not block_decode_fits(128, 2, 1, 64, 48, torch.bfloat16)
    assert not block_decode_fits(64, 2, 2, 32, 32, torch.float64)


@pytest.mark.parametrize("num_users", [1, 64, 263, 1056, 5000])
def test_a_device_is_filled_before_programs_grow(num_users):
    block_b = choose_block_b(num_users, 132)
    assert block_b == 1 or num_users // block_b >= 264
