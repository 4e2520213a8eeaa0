"""Rotary angles in a kernel against float64."""

import math

import pytest
import torch
import triton
import triton.language as tl

from longrec.kernels.rotary import phase_cos_sin, rotary_cos_sin, rotary_phases

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"


@triton.jit
def _cos_sin_kernel(positions_ptr, cos_ptr, sin_ptr, N: tl.constexpr, LOG2_BASE: tl.constexpr, HALF: tl.constexpr):
    rows = tl.arange(0, N)
    cos, sin = rotary_cos_sin(tl.load(positions_ptr + rows), LOG2_BASE, HALF)
    offsets = rows[:, None] * HALF + tl.arange(0, HALF)[None, :]
    tl.store(cos_ptr + offsets, cos)
    tl.store(sin_ptr + offsets, sin)


@triton.jit
def _phase_kernel(positions_ptr, phases_ptr, cos_ptr, sin_ptr, N: tl.constexpr, HALF: tl.constexpr):
    rows = tl.arange(0, N)
    phases = tl.load(phases_ptr + tl.arange(0, HALF))
    cos, sin = phase_cos_sin(tl.load(positions_ptr + rows)[:, None], phases[None, :])
    offsets = rows[:, None] * HALF + tl.arange(0, HALF)[None, :]
    tl.store(cos_ptr + offsets, cos)
    tl.store(sin_ptr + offsets, sin)


@pytest.mark.parametrize("base", [10_000.0, 500_000.0, 1.5])
@pytest.mark.parametrize("half", [8, 32])
def test_wrapping_phases_hold_up_to_positions_of_a_billion(base, half):
    positions = torch.cat([torch.arange(24), torch.logspace(2, 9, 40, dtype=torch.float64).long()]).to(DEVICE)
    cos, sin = torch.empty(2, 64, half, device=DEVICE)
    _phase_kernel[(1,)](positions, rotary_phases(base, 2 * half, positions.device), cos, sin, N=64, HALF=half)
    angle = positions.double()[:, None] * base ** (-torch.arange(half, device=DEVICE).double() / half)
    assert (cos - angle.cos()).abs().max() < 2**-22
    assert (sin - angle.sin()).abs().max() < 2**-22


@pytest.mark.parametrize("base", [10_000.0, 500_000.0, 1.5])
@pytest.mark.parametrize("half", [8, 32])
def test_angles_hold_up_to_positions_of_a_billion(base, half):
    positions = torch.cat([torch.arange(24), torch.logspace(2, 9, 40, dtype=torch.float64).long()]).to(DEVICE)
    cos, sin = torch.empty(2, 64, half, device=DEVICE)
    _cos_sin_kernel[(1,)](positions, cos, sin, N=64, LOG2_BASE=math.log2(base), HALF=half)
    angle = positions.double()[:, None] * base ** (-torch.arange(half, device=DEVICE).double() / half)
    assert (cos - angle.cos()).abs().max() < 2**-22
    assert (sin - angle.sin()).abs().max() < 2**-22
