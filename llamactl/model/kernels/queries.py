"""Attention of one query at a time, in a step of decoding: keys and values lie one token after the other.

They are fp32, in registers of ``LANES``; or bf16, pairs of which the processor multiplies by itself (``_pairs``).
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from llamactl.model.kernels.plans import LANES, PAIRS, SIDE
from llamactl.model.kernels.tiles import add_product, filled, reduced
from llamactl.model.kernels.vectors import call, load, madd, registers, same, spread, store

_WORD, _FLOAT, _UNIT = ir.IntType(64), ir.FloatType(), ir.IntType(32)
_VECTOR, _WIDE, _UNITS = (ir.VectorType(kind, n) for kind, n in ((_FLOAT, LANES), (_FLOAT, SIDE), (_UNIT, SIDE)))


def added(builder: Any, rows: list[Any]) -> Any:
    """The numbers of each of as many registers as each has, added up: one register."""
    lanes, by = len(rows), len(rows) // 2
    order = ir.VectorType(ir.IntType(32), lanes)
    while by:  # lanes of two rows are added, and the two laid side by side
        lower = [x for i in range(0, lanes, 2 * by) for row in (0, lanes) for x in range(row + i, row + i + by)]
        both = [ir.Constant(order, some) for some in (lower, [x + by for x in lower])]
        half = len(rows) // 2
        pairs = zip(rows[:half], rows[half:], strict=True)
        rows = [builder.fadd(*(builder.shuffle_vector(*pair, some) for some in both)) for pair in pairs]
        by //= 2
    return rows[0]


@intrinsic
def match(typing: Any, q: Any, keys: Any, width: Any, tokens: Any, out: Any) -> Any:
    """Products of a query with keys ``[tokens, width]``, a multiple of 8 of them."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        q, keys, width, tokens, out = given
        with cgutils.for_range(builder, builder.udiv(tokens, _WORD(LANES)), intp=_WORD) as block:
            sums, first = registers(builder, _VECTOR, LANES), builder.mul(block.index, _WORD(LANES))
            with cgutils.for_range(builder, builder.udiv(width, _WORD(LANES)), intp=_WORD) as loop:
                at = builder.mul(loop.index, _WORD(LANES))
                query = load(builder, q, at, _VECTOR)
                for t, sum_ in enumerate(sums):
                    place = builder.add(builder.mul(builder.add(first, _WORD(t)), width), at)
                    value = load(builder, keys, place, _VECTOR)
                    builder.store(madd(builder, query, value, builder.load(sum_)), sum_)
            store(builder, added(builder, [builder.load(sum_) for sum_ in sums]), out, first)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@intrinsic
def blend(typing: Any, p: Any, values: Any, width: Any, tokens: Any, out: Any) -> Any:
    """Values ``[tokens, width]``, each times its number, added to ``out``; widths are multiples of 32."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        p, values, width, tokens, out = given
        with cgutils.for_range(builder, builder.udiv(width, _WORD(4 * LANES)), intp=_WORD) as block:
            first = builder.mul(block.index, _WORD(4 * LANES))
            sums = registers(builder, _VECTOR, 8)
            pairs = builder.udiv(tokens, _WORD(2))
            with cgutils.for_range(builder, pairs, intp=_WORD) as loop:
                for half in range(2):
                    t = builder.add(builder.mul(loop.index, _WORD(2)), _WORD(half))
                    factor = spread(builder, load(builder, p, t, _FLOAT))
                    for i in range(4):
                        place = builder.add(builder.mul(t, width), builder.add(first, _WORD(i * LANES)))
                        sum_ = sums[4 * half + i]
                        value = load(builder, values, place, _VECTOR)
                        builder.store(madd(builder, factor, value, builder.load(sum_)), sum_)
            with cgutils.for_range(builder, tokens, start=builder.mul(pairs, _WORD(2)), intp=_WORD) as loop:
                factor = spread(builder, load(builder, p, loop.index, _FLOAT))
                for i in range(4):
                    place = builder.add(builder.mul(loop.index, width), builder.add(first, _WORD(i * LANES)))
                    value = load(builder, values, place, _VECTOR)
                    builder.store(madd(builder, factor, value, builder.load(sums[i])), sums[i])
            for i in range(4):
                place = builder.add(first, _WORD(i * LANES))
                both = builder.fadd(builder.load(sums[i]), builder.load(sums[4 + i]))
                store(builder, builder.fadd(load(builder, out, place, _VECTOR), both), out, place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@intrinsic
def match_pairs(typing: Any, q: Any, keys: Any, width: Any, tokens: Any, out: Any) -> Any:
    """Products of a query with keys ``[tokens, width]``, both bf16; widths are multiples of 32."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        if not PAIRS:
            return context.get_dummy_value()
        q, keys, width, tokens, out = given
        row = builder.udiv(width, _WORD(2))

        def products(first: Any, number_of: int) -> list[Any]:
            """Of so many tokens, a register each, whose numbers are still to be added up."""
            sums = registers(builder, _WIDE, number_of)
            with cgutils.for_range(builder, builder.udiv(row, _WORD(SIDE)), intp=_WORD) as loop:
                at = builder.mul(loop.index, _WORD(SIDE))
                query = load(builder, q, at, _UNITS)
                for t, sum_ in enumerate(sums):
                    token = builder.mul(builder.add(first, _WORD(t)), row)
                    key = load(builder, keys, builder.add(token, at), _UNITS)
                    builder.store(add_product(builder, True, key, query, builder.load(sum_)), sum_)
            return [builder.load(sum_) for sum_ in sums]

        whole = builder.udiv(tokens, _WORD(SIDE))
        with cgutils.for_range(builder, whole, intp=_WORD) as block:
            first = builder.mul(block.index, _WORD(SIDE))
            store(builder, added(builder, products(first, SIDE)), out, first)
        with cgutils.for_range(builder, tokens, start=builder.mul(whole, _WORD(SIDE)), intp=_WORD) as loop:
            (sums,) = products(loop.index, 1)
            store(builder, reduced(builder, "fadd", sums, ir.Constant(_FLOAT, 0.0)), out, loop.index)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@intrinsic
def blend_pairs(typing: Any, p: Any, values: Any, width: Any, tokens: Any, out: Any) -> Any:
    """Values ``[tokens, width]``, bf16, each times its fp32 number, added to ``out``; widths are multiples of 32."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        if not PAIRS:
            return context.get_dummy_value()
        p, values, width, tokens, out = given
        row, order = builder.udiv(width, _WORD(2)), ir.VectorType(_UNIT, 2 * SIDE)
        in_turn = ir.Constant(order, [at for i in range(SIDE) for at in (i, SIDE + i)])
        with cgutils.for_range(builder, builder.udiv(row, _WORD(SIDE)), intp=_WORD) as block:
            first = builder.mul(block.index, _WORD(SIDE))
            sums = registers(builder, _WIDE, 4)

            def more(t: Any, of: list[Any]) -> None:
                """Add a token's, the first numbers of units and the second ones."""
                factor = filled(builder, load(builder, p, t, _FLOAT))
                both = load(builder, values, builder.add(builder.mul(t, row), first), _UNITS)
                halves = builder.shl(both, same(_UNITS, 16)), builder.and_(both, same(_UNITS, 0xFFFF0000))
                for half, sum_ in zip(halves, of, strict=True):
                    new = call(builder, "fmuladd", builder.bitcast(half, _WIDE), factor, builder.load(sum_))
                    builder.store(new, sum_)

            whole = builder.udiv(tokens, _WORD(2))
            with cgutils.for_range(builder, whole, intp=_WORD) as loop:
                for i in range(2):
                    more(builder.add(builder.mul(loop.index, _WORD(2)), _WORD(i)), sums[2 * i : 2 * i + 2])
            with cgutils.for_range(builder, tokens, start=builder.mul(whole, _WORD(2)), intp=_WORD) as loop:
                more(loop.index, sums[:2])
            halves = [builder.fadd(builder.load(a), builder.load(b)) for a, b in zip(sums[:2], sums[2:], strict=True)]
            laid = builder.shuffle_vector(*halves, in_turn)
            at = builder.mul(first, _WORD(2))
            store(builder, builder.fadd(load(builder, out, at, laid.type), laid), out, at)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate
