"""Products of weights with 16 samples, of pairs of bf16 numbers, where the processor multiplies those by itself.

What weights are multiplied with is units of two channels that follow each other, ``[D / 2, SIDE]``: a register, or a
row of a tile, has one of each sample. Weights are read as they lie: their rows are such units, too. What comes out is
fp32, ``[O, SIDE]``.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from llamactl.model.kernels import vectors
from llamactl.model.kernels.plans import PAIRS, SIDE, TILES
from llamactl.model.kernels.squares import behind, do
from llamactl.model.kernels.tiles import add_product, filled, reduced, spread
from llamactl.model.kernels.vectors import added, halved, load, number, same, store

_WORD, _FLOAT, _UNIT, _TILE = ir.IntType(64), ir.FloatType(), ir.IntType(32), ir.IntType(8)
_VECTOR, _UNITS = ir.VectorType(_FLOAT, SIDE), ir.VectorType(_UNIT, SIDE)
LEFT, RIGHT, LAST_LEFT, LAST_RIGHT = (_TILE(number) for number in (3, 4, 5, 6))  # tiles; the first three add up


def _joined(builder: Any, first: Any, second: Any) -> Any:
    """Registers of fp32 numbers as units of two bf16 ones."""
    low, high = (builder.zext(halved(builder, value), _UNITS) for value in (first, second))
    return builder.or_(low, builder.shl(high, same(_UNITS, 16)))


def strip(rows: int) -> Any:
    """A product of so many rows, three sides at most: (w, row, x, depth, out); ``row`` and ``depth`` are units.

    Tiles have been made ready for what ``depth`` leaves of whole ones.
    """

    def by_tiles(builder: Any, w: Any, row: Any, x: Any, depth: Any, out: Any) -> None:
        sums, apart, line = [_TILE(i) for i in range(rows // SIDE)], builder.mul(row, _WORD(4)), _WORD(4 * SIDE)

        def more(first: Any, left: Any, right: Any) -> None:
            """Add what a tile of units comes to."""
            do(builder, "tileloadd64", right, behind(builder, x, (first, 4 * SIDE)), line)
            for i, sum_ in enumerate(sums):
                do(builder, "tileloadd64", left, behind(builder, w, (apart, SIDE * i), (first, 4)), apart)
                do(builder, "tdpbf16ps", sum_, left, right)

        for sum_ in sums:
            do(builder, "tilezero", sum_)
        whole = builder.udiv(depth, _WORD(SIDE))
        with cgutils.for_range(builder, whole, intp=_WORD) as loop:
            more(builder.mul(loop.index, _WORD(SIDE)), LEFT, RIGHT)
        done = builder.mul(whole, _WORD(SIDE))
        with builder.if_then(builder.icmp_signed("<", done, depth)):
            more(done, LAST_LEFT, LAST_RIGHT)
        for i, sum_ in enumerate(sums):
            do(builder, "tilestored64", sum_, behind(builder, out, (line, SIDE * i)), line)

    def by_registers(builder: Any, w: Any, row: Any, x: Any, depth: Any, out: Any) -> None:
        for first in range(0, rows, SIDE):
            sums = [cgutils.alloca_once(builder, _VECTOR) for _ in range(SIDE)]
            for sum_ in sums:
                builder.store(number(_VECTOR, 0.0), sum_)
            with cgutils.for_range(builder, depth, intp=_WORD) as loop:
                inputs = load(builder, x, builder.mul(loop.index, _WORD(SIDE)), _UNITS)
                for i, sum_ in enumerate(sums):
                    at = builder.add(builder.mul(row, _WORD(first + i)), loop.index)
                    weights = spread(builder, load(builder, w, at, _UNIT))
                    builder.store(add_product(builder, True, weights, inputs, builder.load(sum_)), sum_)
            for i, sum_ in enumerate(sums):
                store(builder, builder.load(sum_), out, _WORD(SIDE * (first + i)))

    @intrinsic
    def product(typing: Any, w: Any, row: Any, x: Any, depth: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            if PAIRS:
                (by_tiles if TILES else by_registers)(builder, *given)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return product


@intrinsic
def normed(typing: Any, x: Any, weight: Any, depth: Any, eps: Any, out: Any) -> Any:
    """RMSNorm of ``[D, SIDE]``, times ``[D]``, as units."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        if not PAIRS:
            return context.get_dummy_value()
        x, weight, depth, eps, out = given
        totals = [cgutils.alloca_once_value(builder, number(_VECTOR, 0.0)) for _ in range(2)]
        units = builder.udiv(depth, _WORD(2))

        def channels(unit: Any) -> list[tuple[Any, Any]]:
            """Which they are, and their numbers."""
            both = [builder.add(builder.mul(unit, _WORD(2)), _WORD(i)) for i in range(2)]
            return [(one, load(builder, x, builder.mul(one, _WORD(SIDE)), _VECTOR)) for one in both]

        with cgutils.for_range(builder, units, intp=_WORD) as loop:
            for (_, value), total in zip(channels(loop.index), totals, strict=True):
                builder.store(vectors.call(builder, "fmuladd", value, value, builder.load(total)), total)
        mean = builder.fdiv(builder.fadd(*map(builder.load, totals)), filled(builder, builder.uitofp(depth, _FLOAT)))
        root = vectors.call(builder, "sqrt", builder.fadd(mean, filled(builder, eps)))
        inverse = builder.fdiv(number(_VECTOR, 1.0), root)
        with cgutils.for_range(builder, units, intp=_WORD) as loop:
            made = [
                builder.fmul(builder.fmul(value, inverse), filled(builder, load(builder, weight, channel, _FLOAT)))
                for channel, value in channels(loop.index)
            ]
            store(builder, _joined(builder, *made), out, builder.mul(loop.index, _WORD(SIDE)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32, types.int64), generate


@intrinsic
def gated(typing: Any, a: Any, b: Any, rows: Any, out: Any) -> Any:
    """silu(a) b of ``[rows, SIDE]``, as units."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        if not PAIRS:
            return context.get_dummy_value()
        a, b, rows, out = given
        with cgutils.for_range(builder, builder.udiv(rows, _WORD(2)), intp=_WORD) as loop:
            made = []
            for i in range(2):
                at = builder.add(builder.mul(loop.index, _WORD(2 * SIDE)), _WORD(i * SIDE))
                made.append(vectors.silu_times(builder, *(load(builder, base, at, _VECTOR) for base in (a, b))))
            store(builder, _joined(builder, *made), out, builder.mul(loop.index, _WORD(SIDE)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


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
            sums = [cgutils.alloca_once(builder, _VECTOR) for _ in range(number_of)]
            for sum_ in sums:
                builder.store(number(_VECTOR, 0.0), sum_)
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
            sums = [cgutils.alloca_once(builder, _VECTOR) for _ in range(4)]
            for sum_ in sums:
                builder.store(number(_VECTOR, 0.0), sum_)

            def more(t: Any, of: list[Any]) -> None:
                """Add a token's, the first numbers of units and the second ones."""
                factor = filled(builder, load(builder, p, t, _FLOAT))
                both = load(builder, values, builder.add(builder.mul(t, row), first), _UNITS)
                halves = builder.shl(both, same(_UNITS, 16)), builder.and_(both, same(_UNITS, 0xFFFF0000))
                for half, sum_ in zip(halves, of, strict=True):
                    new = vectors.call(builder, "fmuladd", builder.bitcast(half, _VECTOR), factor, builder.load(sum_))
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
