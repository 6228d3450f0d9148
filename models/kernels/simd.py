"""Sixteen float32 numbers as one value inside numba functions, with the few operations that the kernels need.

Numba vectorises loops only where LLVM can prove it may, and calls scalar libm for exp. A type of its own that maps to
LLVM's ``<16 x float>`` leaves nothing to luck: one instruction on AVX-512, two on AVX2, four on SSE or NEON, from the
same source and without a compiler on the machine (LLVM comes inside the llvmlite wheel). Imports numba at top level:
only the ``cpu.py`` files import this module.
"""

# mypy: ignore-errors
# ruff: noqa: ANN
from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_jitable, register_model

LANES = 16
_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)
_LOG2_E = 1.4426950408889634
_ROUNDING = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer and leaves that integer in the low mantissa bits
# 2^f = 1 + f p(f) on [-0.5, 0.5], minimax in relative error (9.2e-8 before rounding)
_EXP2 = (0.0013264723340609568, 0.009671518332916327, 0.0555073380489465, 0.24022242000118757, 0.6931469775381438)


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name="float32x16")


lanes_type = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type) -> None:
        super().__init__(manager, fe_type, _VECTOR)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, value)] * LANES)


def _register(function, instruction: str) -> None:
    @infer_global(function)
    class _Typing(ConcreteTemplate):
        cases = [signature(lanes_type, lanes_type, lanes_type)]

    @lower_builtin(function, lanes_type, lanes_type)
    def _lower(context, builder, sig, args):
        return getattr(builder, instruction)(*args)


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register(_function, _instruction)


def _address(context, builder, array_type, array, index, kind):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


@intrinsic
def load(typingctx, array, index):
    """The 16 numbers from ``array[index]`` on, of a flat float32 array; nothing checks the bounds."""

    def code(context, builder, sig, args):
        return builder.load(_address(context, builder, sig.args[0], args[0], args[1], _VECTOR), align=4)

    return lanes_type(array, types.intp), code


@intrinsic
def store(typingctx, array, index, value):
    """Writes 16 numbers from ``array[index]`` on."""

    def code(context, builder, sig, args):
        builder.store(args[2], _address(context, builder, sig.args[0], args[0], args[1], _VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes_type), code


@intrinsic
def splat(typingctx, value):
    """One number in all lanes."""

    def code(context, builder, sig, args):
        number = context.cast(builder, args[0], sig.args[0], types.float32)
        first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, ir.IntType(32)(0))
        zeros = ir.Constant(_INTEGERS, [ir.IntType(32)(0)] * LANES)
        return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), zeros)

    return lanes_type(value), code


def _fma(builder, first, second, third):
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(function, [first, second, third])


@intrinsic
def fma(typingctx, first, second, third):
    """``first * second + third``, fused where the processor can."""

    def code(context, builder, sig, args):
        return _fma(builder, *args)

    return lanes_type(lanes_type, lanes_type, lanes_type), code


def _choose(builder, condition: str, value, bound: float):
    limit = _constant(bound)
    return builder.select(builder.fcmp_ordered(condition, value, limit), limit, value)  # NaN passes


@intrinsic
def exp2(typingctx, exponent):
    """2 to the power of each lane (relative error below 2e-7); exactly 0 below -127, 2^127 above 127; NaN stays."""

    def code(context, builder, sig, args):
        value = _choose(builder, "<", args[0], -127.0)
        value = _choose(builder, ">", value, 127.0)
        shifted = builder.fadd(value, _constant(_ROUNDING))
        fraction = builder.fsub(value, builder.fsub(shifted, _constant(_ROUNDING)))
        result = _constant(_EXP2[0])
        for coefficient in (*_EXP2[1:], 1.0):
            result = _fma(builder, result, fraction, _constant(coefficient))
        shift = ir.Constant(_INTEGERS, [ir.IntType(32)(23)] * LANES)
        power = builder.shl(builder.bitcast(shifted, _INTEGERS), shift)
        return builder.bitcast(builder.add(builder.bitcast(result, _INTEGERS), power), _VECTOR)

    return lanes_type(lanes_type), code


@intrinsic
def positive_part(typingctx, value):
    """max(value, 0), NaN stays."""

    def code(context, builder, sig, args):
        return _choose(builder, "<", args[0], 0.0)

    return lanes_type(lanes_type), code


def _shuffle(builder, first, second, places):
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), [ir.IntType(32)(place) for place in places])
    return builder.shuffle_vector(first, second, mask)


def _pair_sums(builder, first, second):
    """Sums of neighbours inside each quarter: (f0+f1, f2+f3, s0+s1, s2+s3) four times."""
    even = [quarter + place for quarter in range(0, LANES, 4) for place in (0, 2, LANES, LANES + 2)]
    odd = [place + 1 for place in even]
    return builder.fadd(_shuffle(builder, first, second, even), _shuffle(builder, first, second, odd))


@intrinsic
def _add_sums(typingctx, array, index, first, second, third, fourth):
    """Adds the sums over the lanes of four vectors to ``array[index:index + 4]``, in a fixed order of summation."""

    def code(context, builder, sig, args):
        vectors = args[2:]
        four = _pair_sums(builder, _pair_sums(builder, *vectors[:2]), _pair_sums(builder, *vectors[2:]))
        eight = builder.fadd(_shuffle(builder, four, four, range(8)), _shuffle(builder, four, four, range(8, 16)))
        total = builder.fadd(_shuffle(builder, eight, eight, range(4)), _shuffle(builder, eight, eight, range(4, 8)))
        kind = ir.VectorType(_FLOAT, 4)
        place = _address(context, builder, sig.args[0], args[0], args[1], kind)
        builder.store(builder.fadd(builder.load(place, align=4), total), place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes_type, lanes_type, lanes_type, lanes_type), code


@register_jitable
def sigmoid(value):
    """1 / (1 + exp(-value)), without overflow."""
    one = splat(1.0)
    return one / (one + exp2(value * splat(-_LOG2_E)))


@register_jitable
def softplus(value):
    """log(1 + exp(value)) without overflow: max(value, 0) + log1p(exp(-|value|))."""
    positive = positive_part(value)
    tail = exp2((value - positive - positive) * splat(_LOG2_E))  # exp(-|value|), in (0, 1]
    s = tail / (tail + splat(2.0))  # log1p(u) = 2 atanh(u / (2 + u)), s <= 1/3: 7 terms reach 3e-8
    square = s * s
    series = fma(splat(2.0 / 13.0), square, splat(2.0 / 11.0))
    series = fma(series, square, splat(2.0 / 9.0))
    series = fma(series, square, splat(2.0 / 7.0))
    series = fma(series, square, splat(2.0 / 5.0))
    series = fma(series, square, splat(2.0 / 3.0))
    series = fma(series, square, splat(2.0))
    return fma(series, s, positive)


# Four vectors at once, as tuples: four states of sixteen channels each.


@register_jitable
def load4(array, place, step):
    """Vectors at ``place``, ``place + step``, ..."""
    return load(array, place), load(array, place + step), load(array, place + 2 * step), load(array, place + 3 * step)


@register_jitable
def store4(array, place, step, four):
    """The vectors to ``place``, ``place + step``, ..."""
    store(array, place, four[0])
    store(array, place + step, four[1])
    store(array, place + 2 * step, four[2])
    store(array, place + 3 * step, four[3])


@register_jitable
def splat4(array, place):
    """Four adjacent numbers, each in all lanes of a vector of its own."""
    return splat(array[place]), splat(array[place + 1]), splat(array[place + 2]), splat(array[place + 3])


@register_jitable
def scale4(value, four):
    """``value * four``."""
    return value * four[0], value * four[1], value * four[2], value * four[3]


@register_jitable
def exp2_4(four):
    """2 to the power of each."""
    return exp2(four[0]), exp2(four[1]), exp2(four[2]), exp2(four[3])


@register_jitable
def mul4(four, other):
    """``four * other``."""
    return four[0] * other[0], four[1] * other[1], four[2] * other[2], four[3] * other[3]


@register_jitable
def fma4(four, other, third):
    """``four * other + third``."""
    return (
        fma(four[0], other[0], third[0]),
        fma(four[1], other[1], third[1]),
        fma(four[2], other[2], third[2]),
        fma(four[3], other[3], third[3]),
    )


@register_jitable
def scale_add4(value, four, third):
    """``value * four + third``."""
    return fma4((value, value, value, value), four, third)


@register_jitable
def dot4(four, other, start):
    """``start`` plus the four products, in this order."""
    return fma(four[3], other[3], fma(four[2], other[2], fma(four[1], other[1], fma(four[0], other[0], start))))


@register_jitable
def add_sums(array, place, four):
    """Adds the sum over the lanes of each of the four vectors to ``array[place:place + 4]``."""
    _add_sums(array, place, four[0], four[1], four[2], four[3])


@intrinsic
def choose_below(typingctx, value, limit, below, other):
    """Per lane: ``below`` where ``value < limit``, else ``other``."""

    def code(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return lanes_type(lanes_type, lanes_type, lanes_type, lanes_type), code


@register_jitable
def round_lanes(value):
    """To the nearest integer; exact below 2^22."""
    return (value + splat(_ROUNDING)) - splat(_ROUNDING)


@register_jitable
def exp_and_expm1(value):
    """exp(value) and exp(value) - 1, each within 1e-6 of itself near 0; arguments beyond +-88 are clamped there."""
    scaled = value * splat(_LOG2_E)
    scaled = choose_below(scaled, splat(-127.0), splat(-127.0), scaled)
    scaled = choose_below(splat(127.0), scaled, splat(127.0), scaled)
    whole = round_lanes(scaled)
    f = scaled - whole
    p = fma(splat(0.00015403530393381608), f, splat(0.0013333558146428443))  # Taylor in f ln 2: the slope at 0 is exact
    p = fma(p, f, splat(0.009618129107628477))
    p = fma(p, f, splat(0.05550410866482158))
    p = fma(p, f, splat(0.2402265069591007))
    p = fma(p, f, splat(0.6931471805599453)) * f  # 2^f - 1
    power = exp2(whole)
    return fma(power, p, power), fma(power, p, power - splat(1.0))


@register_jitable
def sine_and_cosine_less_one(angle):
    """sin(angle) and cos(angle) - 1 through the half angle, whose sign by quadrant cancels; good to about 1e5 radians.

    Beyond that the argument itself holds no phase in float32; the results stay between -1 and 1, and -2 and 0.
    """
    half = angle * splat(0.5)
    turns = round_lanes(half * splat(0.3183098861837907))
    r = fma(turns, splat(-3.140625), half)  # pi in three parts, the first two exact in products
    r = fma(turns, splat(-9.67502593994140625e-4), r)
    r = fma(turns, splat(-1.5099579909783764e-7), r)
    r = choose_below(r, splat(-1.5708), splat(-1.5708), r)
    r = choose_below(splat(1.5708), r, splat(1.5708), r)
    q = r * r
    s = fma(splat(1.6059043836821613e-10), q, splat(-2.505210838544172e-08))
    s = fma(s, q, splat(2.7557319223985893e-06))
    s = fma(s, q, splat(-0.0001984126984126984))
    s = fma(s, q, splat(0.008333333333333333))
    s = fma(s, q, splat(-0.16666666666666666))
    s = fma(s * q, r, r)
    c = fma(splat(2.08767569878681e-09), q, splat(-2.755731922398589e-07))
    c = fma(c, q, splat(2.48015873015873e-05))
    c = fma(c, q, splat(-0.001388888888888889))
    c = fma(c, q, splat(0.041666666666666664))
    c = fma(c, q, splat(-0.5))
    c = fma(c, q, splat(1.0))
    twice = s + s
    return twice * c, splat(0.0) - twice * s
