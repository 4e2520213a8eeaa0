"""Products and a maximum on explicit LLVM vectors, so that no heuristic decides whether an inner loop vectorises.

Beside `primitives`, whose pointers they take. Sums are float32 in a fixed order: the same input gives the same bits.
Sizes given as constants must be literals where a jitted function calls these (a closure's integers are).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from longrec.kernels.cpu.primitives import widen_value

__all__ = ["dot", "multiply_add", "rise"]

FLOAT = ir.FloatType()
LANES = 16  # of a vector: one 512-bit register, or two of 256 bits


def _fma(builder, a, b, c):
    kind = ir.FunctionType(c.type, [c.type] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{c.type.count}f32")
    return builder.call(function, [a, b, c])


def _load(builder, base, at, element, lanes):
    """`lanes` entries from `at` on as float32, whatever their alignment."""
    raw, size = (ir.IntType(element.bitwidth), element.bitwidth // 8) if element != types.float32 else (FLOAT, 4)
    vector = ir.VectorType(raw, lanes)
    address = builder.bitcast(builder.gep(base, [at], source_etype=raw), vector.as_pointer())
    return widen_value(builder, builder.load(address, align=size, typ=vector), element)


def _splat(builder, value, lanes):
    vector = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


@intrinsic(prefer_literal=True)
def dot(typing_context, a, b, size):
    """Sum over d < size (a constant) of a[d] * b[d]; a float32, b any page entries."""
    if not isinstance(size, types.IntegerLiteral):
        return None
    length = size.literal_value
    lanes = LANES if length % LANES == 0 else 8

    def generate(context, builder, signature, arguments):
        index, vector = ir.IntType(64), ir.VectorType(FLOAT, lanes)
        total = ir.Constant(vector, [0.0] * lanes)
        for start in range(0, length, lanes):
            left = _load(builder, arguments[0], index(start), types.float32, lanes)
            right = _load(builder, arguments[1], index(start), b.dtype, lanes)
            total = _fma(builder, left, right, total)
        kind = ir.FunctionType(FLOAT, [FLOAT, vector])
        add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{lanes}f32")
        return builder.call(add, [FLOAT(-0.0), total], fastmath=("reassoc",))

    return types.float32(a, b, size), generate


@intrinsic(prefer_literal=True)
def multiply_add(typing_context, out, out_stride, a, a_row, a_depth, b, b_stride, depth, rows, columns, keep):
    """out[r, c] = out[r, c] * keep + sum over i < depth of a[r, i] * b[i, c], for r < rows and c < columns, constants.

    Sums stay in registers: rows * columns / 16 vectors. `keep` is the constant 0 (out is not read) or 1: then the sum
    starts at 0 too, and what is kept is added at its end, or every term would be rounded to the units of that.

    Args:
        out: float32, row r at r * out_stride.
        a: any page entries, entry [r, i] at r * a_row + i * a_depth.
        b: any page entries, row i at i * b_stride.
    """
    if not all(isinstance(constant, types.IntegerLiteral) for constant in (rows, columns, keep)):
        return None
    num_rows, lanes = rows.literal_value, columns.literal_value

    def generate(context, builder, signature, arguments):
        out_base, out_step, a_base, row_step, depth_step, b_base, b_step, count = arguments[:8]
        index, vector = ir.IntType(64), ir.VectorType(FLOAT, lanes)
        zero = ir.Constant(vector, [0.0] * lanes)

        def out_row(row):
            address = builder.gep(out_base, [builder.mul(out_step, index(row))], source_etype=FLOAT)
            return builder.bitcast(address, vector.as_pointer())

        before = builder.block
        loop, done = (builder.append_basic_block(f"products.{name}") for name in ("loop", "done"))
        builder.cbranch(builder.icmp_signed(">", count, index(0)), loop, done)

        builder.position_at_end(loop)
        i = builder.phi(index)
        sums = [builder.phi(vector) for _ in range(num_rows)]
        b_row = _load(builder, b_base, builder.mul(i, b_step), b.dtype, lanes)
        column = builder.mul(i, depth_step)
        following = []
        for row, total in enumerate(sums):
            at = builder.add(builder.mul(row_step, index(row)), column)
            entry = _load(builder, a_base, at, a.dtype, 1)
            entry = builder.extract_element(entry, ir.IntType(32)(0))
            following.append(_fma(builder, _splat(builder, entry, lanes), b_row, total))
        after = builder.add(i, index(1))
        builder.cbranch(builder.icmp_signed("<", after, count), loop, done)
        i.add_incoming(index(0), before)
        i.add_incoming(after, loop)

        builder.position_at_end(done)
        results = [builder.phi(vector) for _ in range(num_rows)]
        for total, result, last in zip(sums, results, following, strict=True):
            for phi in (total, result):
                phi.add_incoming(zero, before)
                phi.add_incoming(last, loop)
        for row, result in enumerate(results):
            if keep.literal_value:
                result = builder.fadd(builder.load(out_row(row), align=4, typ=vector), result)
            builder.store(result, out_row(row), align=4)
        return context.get_dummy_value()

    index = types.int64
    return types.void(out, index, a, index, index, b, index, index, rows, columns, keep), generate


@intrinsic
def rise(typing_context, peaks, values, count, floor):
    """peaks[lane] = the largest of floor[lane] and values[n * LANES + lane] over n < count; whether any is above its
    floor. A NaN is never larger. All float32.
    """

    def generate(context, builder, signature, arguments):
        peaks_base, values_base, number, floor_base = arguments
        index, vector = ir.IntType(64), ir.VectorType(FLOAT, LANES)

        def load(base):
            return builder.load(builder.bitcast(base, vector.as_pointer()), align=4, typ=vector)

        lowest = load(floor_base)
        before = builder.block
        loop, done = (builder.append_basic_block(f"rise.{name}") for name in ("loop", "done"))
        builder.cbranch(builder.icmp_signed(">", number, index(0)), loop, done)

        builder.position_at_end(loop)
        n, best = builder.phi(index), builder.phi(vector)
        row = load(builder.gep(values_base, [builder.mul(n, index(LANES))], source_etype=FLOAT))
        larger = builder.select(builder.fcmp_ordered(">", row, best), row, best)
        after = builder.add(n, index(1))
        builder.cbranch(builder.icmp_signed("<", after, number), loop, done)
        for phi, first, last in ((n, index(0), after), (best, lowest, larger)):
            phi.add_incoming(first, before)
            phi.add_incoming(last, loop)

        builder.position_at_end(done)
        result = builder.phi(vector)
        result.add_incoming(lowest, before)
        result.add_incoming(larger, loop)
        builder.store(result, builder.bitcast(peaks_base, vector.as_pointer()), align=4)
        above = builder.bitcast(builder.fcmp_ordered(">", result, lowest), ir.IntType(LANES))
        return builder.icmp_unsigned("!=", above, ir.IntType(LANES)(0))

    return types.boolean(peaks, values, types.int64, floor), generate
