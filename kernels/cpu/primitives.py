"""What numba lacks for the CPU bodies: raw pointers, page entries as float32, a maximum and an exp2 that vectorise.

Pointers are C's: the address of a tensor's first element (`data_ptr()`) and offsets in elements, int64, no bounds
checks and no negative indices, whose handling keeps LLVM from vectorising `a[start + d]`. Callers vouch for offsets.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from llvmlite import ir
from numba import float32, int32, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "LOWEST",
    "as_float",
    "bits",
    "exp2",
    "maximum",
    "offset",
    "pointer",
    "prefetch",
    "silu",
    "widen_value",
]

# numba's CPU target has neither float: their bits, told apart by the sign of the integer type
BFLOAT16, FLOAT16 = types.int16, types.uint16

LOWEST = -3.4028234663852886e38  # of float32: stands in for a maximum of -inf, so that no difference is NaN
LOG2_E = 1.4426950408889634
ROUNDING = 12582912.0  # 1.5 * 2^23, whose unit is 1: a sum with it is rounded to an integer
# 2^f on [-1/2, 1/2], minimax in relative error: 2e-9 before rounding
C1, C2, C3, C4, C5, C6 = 0.6931472029, 0.2402264791, 0.05550332471, 0.009618437358, 0.001339887442, 0.0001535336189


@intrinsic
def pointer(typing_context, address, dtype):
    """The address as a pointer to elements of `dtype`, a numba type."""
    kind = types.CPointer(dtype.dtype)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(types.int64, dtype), generate


@intrinsic
def offset(typing_context, base, count):
    """The pointer `count` elements on."""

    def generate(context, builder, signature, arguments):
        element = context.get_value_type(base.dtype)
        return builder.gep(arguments[0], [arguments[1]], source_etype=element)

    return base(base, types.int64), generate


@intrinsic
def prefetch(typing_context, base):
    """Fetch the pointer's cache line into the second level (x86's prefetcht1).

    Not into the first: such fetches wait in the few buffers of its misses, two dozen on Zen 4, and hold up loads.
    """

    def generate(context, builder, signature, arguments):
        integer = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), integer, integer, integer])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        address = builder.bitcast(arguments[0], ir.IntType(8).as_pointer())
        builder.call(function, [address, integer(0), integer(2), integer(1)])  # to read, level, data
        return context.get_dummy_value()

    return types.void(base), generate


def widen_value(builder, value, entry):
    """LLVM's instructions for page entries of numba type `entry`, a vector, as float32."""
    lanes = value.type.count
    real, integer = ir.VectorType(ir.FloatType(), lanes), ir.VectorType(ir.IntType(32), lanes)
    if entry == types.float32:
        return value
    if entry == types.int8:
        return builder.sitofp(value, real)
    if entry == BFLOAT16:
        bits = builder.shl(builder.zext(value, integer), ir.Constant(integer, [16] * lanes))
        return builder.bitcast(bits, real)
    return builder.fpext(builder.bitcast(value, ir.VectorType(ir.HalfType(), lanes)), real)


@intrinsic
def maximum(typing_context, a, b):
    """The larger; NaN if either is NaN. Unlike a comparison it makes a reduction that LLVM vectorises."""

    def generate(context, builder, signature, arguments):
        real = ir.FloatType()
        function = builder.module.declare_intrinsic("llvm.maximum", [real], ir.FunctionType(real, [real, real]))
        return builder.call(function, arguments)

    return types.float32(types.float32, types.float32), generate


@intrinsic
def bits(typing_context, value):
    """A float32's bits as int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def as_float(typing_context, value):
    """The float32 of an int32's bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


# no reassociation here: it would cancel the two additions of ROUNDING
@njit(fastmath={"contract"})
def exp2(x):
    """2^x in float32 within 2 units in the last place; 0 below -126, 2^127 above 127, NaN for NaN."""
    low = float32(-126.0)
    y = low if x < low else x
    y = float32(127.0) if y > float32(127.0) else y
    rounded = y + float32(ROUNDING)
    f = y - (rounded - float32(ROUNDING))
    p = float32(C6)
    p = p * f + float32(C5)
    p = p * f + float32(C4)
    p = p * f + float32(C3)
    p = p * f + float32(C2)
    p = p * f + float32(C1)
    p = p * f + float32(1.0)
    power = as_float(int32((bits(rounded) - int32(0x4B400000) + int32(127)) << int32(23)))
    return float32(0.0) if x < low else p * power


@njit(fastmath={"contract"})
def silu(x):
    """x / (1 + e^-x) in float32, 0 below -88, where it is above -1e-36."""
    return float32(0.0) if x < float32(-88.0) else x / (float32(1.0) + exp2(x * float32(-LOG2_E)))
