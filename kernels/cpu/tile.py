"""Int8 products of a tile of rows and latents, held in registers: AVX512-VNNI instructions that numba does not emit.

One `vpdpbusd` adds the products of four unsigned and four signed bytes to each of 16 int32 sums. A tile is ROWS rows
times two vectors of latents, so 28 of the 32 vector registers are sums, two hold weights and one a row's four bytes:
16 loads feed 28 instructions. Rows are stored with 128 added, and the sums start from -128 times the weights' sum.
"""

from __future__ import annotations

from functools import cache

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

ROWS = 14
"""Rows of a tile. Of 6x4, 5x5, 8x3, 9x3, 12x2 and 14x2 (rows x vectors) the fastest, by a little, at d = 576."""

PANEL = 32
"""Latents of a tile."""

LANES = 16
WORD = ir.IntType(32)
LONG = ir.IntType(64)
WORDS = ir.VectorType(WORD, LANES)
BITS = ir.VectorType(ir.IntType(1), LANES)
FLOATS = ir.VectorType(ir.FloatType(), LANES)

DOT = "llvm.x86.avx512.vpdpbusd.512"


@cache
def has_vnni() -> bool:
    """True if numba compiles for a CPU that has the 512-bit dot product instruction."""
    features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")  # pyright: ignore[reportAttributeAccessIssue]
    return {"+avx512f", "+avx512vnni"} <= set(features)


@intrinsic
def screen_tile(
    typingctx, x, weights, steps, start, scale_w, bias, scale_x, limits, first, valid, estimates, columns, filled
):  # fmt: skip
    """Append to the lists of ROWS rows those of PANEL latents whose estimate is not below the row's limit.

    x: int32 [steps * ROWS], four bytes (value + 128) of each row, step by step.
    weights: int32 [steps * PANEL], four int8 of each latent, step by step. steps: a quarter of d, at least 1.
    start: int32 [PANEL], -128 times the sum of each latent's int8. scale_w, bias: [PANEL]. scale_x, limits: [ROWS].
    first: int32, number of the first latent. valid: uint32, one bit for each latent there is.
    estimates (fp32), columns (int32): the lists [ROWS, room], written up to PANEL entries beyond their ends; the
    estimate is product * scale_w * scale_x + bias. found: int64 [ROWS], lengths of the lists.
    """
    given = x, weights, steps, start, scale_w, bias, scale_x, limits, first, valid, estimates, columns, filled
    if any(isinstance(kind, types.Array) and kind.layout != "C" for kind in given):
        return None
    return types.void(*given), _emit


def _emit(context, builder, signature, values):
    """The instructions of `screen_tile`: the branch-free compression costs a twelfth of the products at d = 576."""
    given, room = list(values), None
    for place, kind in enumerate(signature.args):
        if isinstance(kind, types.Array):
            array = context.make_array(kind)(context, builder, values[place])
            given[place] = array.data
            room = builder.extract_value(array.shape, 1) if kind.ndim == 2 else room
    x, weights, steps, start, scale_w, bias, scale_x, limits, first, valid, estimates, columns, filled = given
    sums = _emit_products(builder, x, weights, steps, start)
    scales, biases = ([_load(builder, array, LANES * j, FLOATS) for j in (0, 1)] for array in (scale_w, bias))
    counting = ir.Constant(WORDS, list(range(LANES)))
    numbers = [builder.add(_spread(builder, builder.add(first, WORD(LANES * j))), counting) for j in (0, 1)]
    there = [
        builder.bitcast(builder.trunc(builder.lshr(valid, WORD(LANES * j)), ir.IntType(LANES)), BITS) for j in (0, 1)
    ]
    for r in range(ROWS):
        scale, limit = (_spread(builder, builder.load(builder.gep(array, [LONG(r)]))) for array in (scale_x, limits))
        length = builder.gep(filled, [LONG(r)])
        end = builder.load(length)
        for j in (0, 1):
            scaled = builder.fmul(builder.sitofp(sums[2 * r + j], FLOATS), scales[j])
            estimate = _call(builder, "llvm.fma.v16f32", FLOATS, scaled, scale, biases[j])
            reached = builder.and_(builder.fcmp_unordered(">=", estimate, limit), there[j])
            place = builder.add(builder.mul(room, LONG(r)), end)
            for vector, array, name in (estimate, estimates, "v16f32"), (numbers[j], columns, "v16i32"):
                empty = ir.Constant(vector.type, None)
                dense = _call(builder, f"llvm.x86.avx512.mask.compress.{name}", vector.type, vector, empty, reached)
                _store(builder, dense, array, place)
            many = _call(builder, "llvm.ctpop.i16", ir.IntType(LANES), builder.bitcast(reached, ir.IntType(LANES)))
            end = builder.add(end, builder.zext(many, LONG))
        builder.store(end, length)
    return context.get_dummy_value()


def _emit_products(builder, x, weights, steps, start):
    """A loop over the steps of d with the sums in registers. Returns them, two vectors a row."""
    first = [_load(builder, start, LANES * j, WORDS) for j in (0, 1)]
    before, body, after = builder.block, builder.append_basic_block("step"), builder.append_basic_block("summed")
    builder.branch(body)
    builder.position_at_end(body)
    step = builder.phi(LONG)
    sums = [builder.phi(WORDS) for _ in range(2 * ROWS)]
    own = builder.gep(weights, [builder.mul(step, LONG(PANEL))])
    w = [_load(builder, own, LANES * j, WORDS) for j in (0, 1)]
    added = []
    for r in range(ROWS):
        at = builder.gep(x, [builder.add(builder.mul(step, LONG(ROWS)), LONG(r))])
        four = _spread(builder, builder.load(at))
        added += [_call(builder, DOT, WORDS, sums[2 * r + j], four, w[j]) for j in (0, 1)]
    following = builder.add(step, LONG(1))
    step.add_incoming(LONG(0), before)
    step.add_incoming(following, body)
    for i, total in enumerate(sums):
        total.add_incoming(first[i % 2], before)
        total.add_incoming(added[i], body)
    builder.cbranch(builder.icmp_signed("<", following, steps), body, after)
    builder.position_at_end(after)
    return added


def _call(builder, name, result, *operands):
    """A call of the LLVM intrinsic `name`."""
    kind = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)


def _spread(builder, scalar):
    """A vector with `scalar` in every lane."""
    kind = ir.VectorType(scalar.type, LANES)
    vector = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, WORD(0))
    return builder.shuffle_vector(vector, ir.Constant(kind, ir.Undefined), ir.Constant(WORDS, [0] * LANES))


def _load(builder, array, offset, kind):
    """The vector at array[offset:]."""
    loaded = builder.load(builder.bitcast(builder.gep(array, [LONG(offset)]), kind.as_pointer()))
    loaded.align = 4
    return loaded


def _store(builder, vector, array, place):
    """Write the vector to array[place:]."""
    written = builder.store(vector, builder.bitcast(builder.gep(array, [place]), vector.type.as_pointer()))
    written.align = 4
