"""Cosine and sine of rotary angles inside a kernel: the helpers that `append_memory` and `block_decode` share.

The angle of pair i at position p is p * base^(-2 i / D). A float32 angle is off by 0.06 rad at position 1e6, so it is
reduced exactly first, in one of two ways, and evaluated in float32 by polynomials, since `tl.cos` of an unreduced
argument brings Payne-Hanek reduction and with it 32 bytes of stack on every target.

- `rotary_cos_sin` reduces in float64 and needs nothing but the base: for kernels with few rows.
- `phase_cos_sin` multiplies the position by the frequency as a 64-bit fraction of a turn; the product wraps where the
  angle does, so the reduction costs nothing. 9 integer and 15 float32 instructions a pair and no float64, which at 1/64
  of the float32 rate (sm_86, 89, 120) would take longer than the rows' own traffic: for kernels that stream.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl

__all__ = ["phase_cos_sin", "rotary_cos_sin", "rotary_phases"]


@lru_cache(maxsize=64)
def rotary_phases(base: float, head_dim: int, device: torch.device) -> torch.Tensor:
    """The frequencies as 64-bit fractions of a turn, [head_dim / 2] int64, made once for each device.

    What is lost is float64's rounding of the frequency, as in the reference: 2e-7 rad at position 1e9.
    """
    half = head_dim // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float64) / half)  # [D / 2] radians a position, at most 1
    return (frequency * (2.0**64 / (2.0 * torch.pi))).long().to(device)  # at most 2^62


@triton.jit
def phase_cos_sin(positions, phases):
    """Cosine and sine, float32 to within 2^-22.

    Args:
        positions: int64, broadcasts with phases.
        phases: of `rotary_phases`.
    """
    phase = positions * phases  # wraps: whole turns are of no interest
    turn = ((phase >> 61) + 1) >> 1  # nearest quarter turn, -2..2
    # what is left, in 2^-64 turns; its upper half is exact to 2^-33 turns and fits int32
    x = ((phase - (turn << 62)) >> 32).to(tl.int32).to(tl.float32) * (6.283185307179586 / 4294967296.0)
    return _quarter_cos_sin(x, (turn & 3).to(tl.int32))


@triton.jit
def rotary_cos_sin(positions, LOG2_BASE: tl.constexpr, HALF: tl.constexpr):
    """Cosine and sine, float32 to within 2^-23.

    Args:
        positions: [N] int64.
        LOG2_BASE: log2 of the base, a Python float (a run-time argument would come as float32).
        HALF: D / 2.

    Returns:
        cos, sin [N, HALF] float32.
    """
    pairs = tl.arange(0, HALF).to(tl.float64)
    quarters = 4.0 / 6.283185307179586 * tl.exp2(pairs * (-LOG2_BASE / HALF))  # [HALF] quarter turns a position
    quarter = positions.to(tl.float64)[:, None] * quarters[None, :]  # [N, HALF]
    whole = tl.floor(quarter + 0.5)
    x = ((quarter - whole) * 1.5707963267948966).to(tl.float32)  # within pi / 4 of the nearest quarter turn
    return _quarter_cos_sin(x, (whole.to(tl.int64) & 3).to(tl.int32))


@triton.jit
def _quarter_cos_sin(x, turn):
    """Cosine and sine of x + turn * pi / 2, |x| <= pi / 4, turn 0..3."""
    z = x * x
    # minimax on [-pi / 4, pi / 4], Cephes' sinf and cosf (Moshier, 1984)
    sin = x + x * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4))
    cos = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))
    swapped = (turn & 1) == 1
    cos, sin = tl.where(swapped, sin, cos), tl.where(swapped, cos, sin)
    cos = tl.where((turn == 1) | (turn == 2), -cos, cos)
    sin = tl.where(turn >= 2, -sin, sin)
    return cos, sin
