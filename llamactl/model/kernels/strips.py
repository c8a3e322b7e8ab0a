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
from llamactl.model.kernels.tiles import add_product, filled, spread
from llamactl.model.kernels.vectors import halved, joined, load, number, registers, store

_WORD, _FLOAT, _UNIT, _TILE = ir.IntType(64), ir.FloatType(), ir.IntType(32), ir.IntType(8)
_VECTOR, _UNITS = ir.VectorType(_FLOAT, SIDE), ir.VectorType(_UNIT, SIDE)
LEFT, RIGHT, LAST_LEFT, LAST_RIGHT = (_TILE(number) for number in (3, 4, 5, 6))  # tiles; the first three add up


def _units(builder: Any, first: Any, second: Any) -> Any:
    """Registers of fp32 numbers as units of two bf16 ones."""
    return joined(builder, halved(builder, first), halved(builder, second))


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
            sums = registers(builder, _VECTOR, SIDE)
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
        totals = registers(builder, _VECTOR, 2)
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
            store(builder, _units(builder, *made), out, builder.mul(loop.index, _WORD(SIDE)))
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
            store(builder, _units(builder, *made), out, builder.mul(loop.index, _WORD(SIDE)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate
