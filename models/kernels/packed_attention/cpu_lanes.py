"""Vector operations that packed attention needs beside those of ``models.kernels.simd``: transpose and dropout's hash.

Integer vectors travel as float32x16 with the same bits; nothing computes with them but the functions here.
"""

# mypy: ignore-errors
# ruff: noqa: ANN
from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from models.kernels.packed_attention.dropout import LAST_SHIFT, ROUNDS, STEP
from models.kernels.simd import LANES, lanes_type

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_WORD = ir.IntType(32)
_WORDS = ir.VectorType(_WORD, LANES)


def _address(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _FLOATS.as_pointer())


@intrinsic
def spread(typingctx, array, index):
    """``array[index]`` in all lanes; unlike numba's own indexing it neither wraps nor tests the index."""

    def code(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return _spread(builder, builder.load(builder.gep(data, [args[1]])))

    return lanes_type(array, types.intp), code


def _spread(builder, number):
    first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), number, _WORD(0))
    places = ir.Constant(_WORDS, [_WORD(0)] * LANES)
    return builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), places)


def _shuffle(builder, first, second, places):
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_WORD, LANES), [_WORD(p) for p in places]))


@intrinsic
def transpose16(typingctx, source, place, row, target, out):
    """The 16 x 16 numbers at ``source[place + i * row + c]`` to ``target[out + c * 16 + i]``."""

    def code(context, builder, sig, args):
        source, place, row, target, out = args
        v = []
        for i in range(LANES):
            at = builder.add(place, builder.mul(row, ir.Constant(row.type, i)))
            v.append(builder.load(_address(context, builder, sig.args[0], source, at), align=4))
        for k in (1, 2, 4, 8):  # swap the off-diagonal blocks of k x k
            low = [lane if not lane & k else LANES + lane - k for lane in range(LANES)]
            high = [lane + k if not lane & k else LANES + lane for lane in range(LANES)]
            for i in range(LANES):
                if not i & k:
                    pair = v[i], v[i + k]
                    v[i], v[i + k] = _shuffle(builder, *pair, low), _shuffle(builder, *pair, high)
        for i, vector in enumerate(v):
            at = builder.add(out, ir.Constant(out.type, LANES * i))
            builder.store(vector, _address(context, builder, sig.args[3], target, at), align=4)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp), code


def _splat(builder, word):
    first = builder.insert_element(ir.Constant(_WORDS, ir.Undefined), word, _WORD(0))
    return builder.shuffle_vector(first, ir.Constant(_WORDS, ir.Undefined), ir.Constant(_WORDS, [_WORD(0)] * LANES))


def _constant(number):
    return ir.Constant(_WORDS, [_WORD(number)] * LANES)


def _mix(builder, words):
    for shift, multiplier in ROUNDS:
        words = builder.xor(words, builder.lshr(words, _constant(shift)))
        words = builder.mul(words, _constant(multiplier))
    return builder.xor(words, builder.lshr(words, _constant(LAST_SHIFT)))


@intrinsic
def query_keys(typingctx, token, heads, head, seed):
    """The hash of 16 neighbouring queries of one head: see ``models.kernels.packed_attention.dropout``."""

    def code(context, builder, sig, args):
        token, heads, head, seed = args
        first = builder.trunc(builder.add(builder.mul(token, heads), head), _WORD)
        steps = builder.mul(_splat(builder, builder.trunc(heads, _WORD)), ir.Constant(_WORDS, [*map(_WORD, range(16))]))
        words = builder.add(_splat(builder, first), steps)
        words = _mix(builder, builder.xor(words, _splat(builder, builder.trunc(seed, _WORD))))
        upper = builder.trunc(builder.lshr(seed, ir.Constant(seed.type, 32)), _WORD)
        return builder.bitcast(_mix(builder, builder.add(words, _splat(builder, upper))), _FLOATS)

    return lanes_type(types.int64, types.int64, types.int64, types.int64), code


@intrinsic
def keep_lanes(typingctx, own, key, threshold, kept):
    """Per query: ``kept`` where its weight of this ``key`` survives, else 0."""

    def code(context, builder, sig, args):
        own, key, threshold, kept = args
        step = builder.mul(builder.trunc(key, _WORD), ir.Constant(_WORD, STEP))
        numbers = _mix(builder, builder.add(builder.bitcast(own, _WORDS), _splat(builder, step)))
        survives = builder.icmp_unsigned(">=", numbers, _splat(builder, builder.trunc(threshold, _WORD)))
        return builder.select(
            survives, _spread(builder, kept), ir.Constant(_FLOATS, [ir.Constant(ir.FloatType(), 0.0)] * LANES)
        )

    return lanes_type(lanes_type, types.int64, types.int64, types.float32), code
