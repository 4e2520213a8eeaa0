"""Events into pages on a CPU: float32 rows to whatever a page's entries are, and what they read back as.

Rounding is that of `append_memory`: halves to even; int8 with a scale per event and head, whose largest magnitude
becomes 127.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import numpy as np
from llvmlite import ir
from numba import float32, int32, njit, types
from numba.extending import intrinsic, overload

from longrec.kernels.cpu.primitives import BFLOAT16, FLOAT16, bits, maximum

__all__ = ["write_entries"]

PEAK = 127.0
SMALLEST_PEAK = 1e-30  # as in the reference: rows below count as zero
ROUNDING = 12582912.0  # 1.5 * 2^23, whose unit is 1


@intrinsic
def _half(typing_context, value):
    """float16's bits of a float32, and what they stand for."""

    def generate(context, builder, signature, arguments):
        half = builder.fptrunc(arguments[0], ir.HalfType())
        code = builder.bitcast(half, ir.IntType(16))
        return context.make_tuple(builder, signature.return_type, [code, builder.fpext(half, ir.FloatType())])

    return types.Tuple((FLOAT16, types.float32))(types.float32), generate


@intrinsic
def _bfloat(typing_context, value):
    """bfloat16's bits of a float32 that is no NaN, and what they stand for."""

    def generate(context, builder, signature, arguments):
        integer, short = ir.IntType(32), ir.IntType(16)
        whole = builder.bitcast(arguments[0], integer)
        odd = builder.and_(builder.lshr(whole, integer(16)), integer(1))
        code = builder.lshr(builder.add(builder.add(whole, integer(0x7FFF)), odd), integer(16))
        value = builder.bitcast(builder.shl(code, integer(16)), ir.FloatType())
        return context.make_tuple(builder, signature.return_type, [builder.trunc(code, short), value])

    return types.Tuple((BFLOAT16, types.float32))(types.float32), generate


# no reassociation here: it would cancel the addition of ROUNDING
@njit(fastmath={"contract"})
def _quantise(rows, entries, size):
    peak = float32(0.0)
    for d in range(size):
        peak = maximum(peak, abs(rows[d]))
    if not peak < float32(np.inf):  # reads back as NaN, not as numbers
        for d in range(size):
            entries[d] = 0
            rows[d] = float32(np.nan)
        return float32(np.inf)
    if peak < float32(SMALLEST_PEAK):
        for d in range(size):
            entries[d] = 0
            rows[d] = float32(0.0)
        return float32(0.0)
    inverse, scale = float32(PEAK) / peak, peak / float32(PEAK)
    for d in range(size):
        code = bits(rows[d] * inverse + float32(ROUNDING)) - int32(0x4B400000)
        entries[d] = types.int8(code)
        rows[d] = float32(code) * scale
    return scale


def write_entries(rows, entries, size):
    """Write `size` float32s to a page's entries, and put into `rows` what they then read as; returns the scale."""
    raise NotImplementedError("called from jitted code alone")


@overload(write_entries, jit_options={"fastmath": {"contract"}})
def _write_entries(rows, entries, size):
    if entries.dtype == types.float32:

        def body(rows, entries, size):
            for d in range(size):
                entries[d] = rows[d]
            return float32(1.0)
    elif entries.dtype == types.int8:

        def body(rows, entries, size):
            return _quantise(rows, entries, size)
    elif entries.dtype == FLOAT16:

        def body(rows, entries, size):
            for d in range(size):
                entries[d], rows[d] = _half(rows[d])
            return float32(1.0)
    else:

        def body(rows, entries, size):
            for d in range(size):
                if rows[d] == rows[d]:
                    entries[d], rows[d] = _bfloat(rows[d])
                else:
                    entries[d] = 0x7FC0
            return float32(1.0)

    return body
