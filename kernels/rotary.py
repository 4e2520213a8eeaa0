"""Cosine and sine of rotary angles inside a kernel: the helper that `append_memory` and `block_decode` share.

The angle of pair i at position p is p * base^(-2 i / D). It is reduced in float64, since a float32 angle is off by
0.06 rad at position 1e6, and evaluated in float32 by polynomials, since `tl.cos` of an unreduced argument brings
Payne-Hanek reduction and with it 32 bytes of stack on every target.
"""

import triton
import triton.language as tl

__all__ = ["rotary_cos_sin"]


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
    x = (quarter - whole).to(tl.float32) * 1.5707963267948966  # within pi / 4 of the nearest quarter turn
    z = x * x
    # minimax on [-pi / 4, pi / 4], Cephes' sinf and cosf (Moshier, 1984)
    sin = x + x * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4))
    cos = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))
    turn = whole.to(tl.int64) & 3
    swapped = (turn & 1) == 1
    cos, sin = tl.where(swapped, sin, cos), tl.where(swapped, cos, sin)
    cos = tl.where((turn == 1) | (turn == 2), -cos, cos)
    sin = tl.where(turn >= 2, -sin, sin)
    return cos, sin
