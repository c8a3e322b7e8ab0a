"""Products of small matrices in the registers of this machine's processor, and rows of scores: LLVM's own instructions.

They are parts of ``attention``, and tiles of ``matmul``. What is multiplied lies in units of 32 bits: one fp32 number,
or, where the processor adds up products of bf16 by itself (``PAIRS``), two bf16 numbers that follow each other in what
is added up.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from llamactl.model.kernels.plans import COLUMNS, PAIRS, REGISTER
from llamactl.model.kernels.vectors import (
    Half,
    exp,
    halved,
    joined,
    larger,
    number,
    prefetch,
    registers,
    store_halved,
)

_WORD, _UNIT, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_VECTOR, _UNITS = ir.VectorType(_FLOAT, REGISTER), ir.VectorType(_UNIT, REGISTER)
_HALVES = ir.VectorType(Half(), 2 * REGISTER)


def _at(builder: Any, base: Any, kind: Any, *offsets: Any) -> Any:
    """A place so many units behind an address."""
    for offset in offsets:
        base = builder.add(base, builder.mul(offset, _WORD(4)))
    return builder.inttoptr(base, kind.as_pointer())


def spread(builder: Any, value: Any) -> Any:
    """A unit in all lanes."""
    nothing = ir.Constant(_UNITS, ir.Undefined)
    single = builder.insert_element(nothing, value, ir.Constant(_UNIT, 0))
    return builder.shuffle_vector(single, nothing, ir.Constant(_UNITS, [0] * REGISTER))


def add_product(builder: Any, pairs: bool, a: Any, b: Any, c: Any) -> Any:
    """a b + c, of units in all lanes."""
    if pairs:
        kind, name = _HALVES, "llvm.x86.avx512bf16.dpbf16ps.512"
        given = (c, builder.bitcast(a, kind), builder.bitcast(b, kind))
    else:
        kind, name = _VECTOR, f"llvm.fmuladd.v{REGISTER}f32"
        given = (builder.bitcast(a, kind), builder.bitcast(b, kind), c)
    function = ir.FunctionType(_VECTOR, [one.type for one in given])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), given)


def tile(rows: int, pairs: bool, rounded: bool = False) -> Any:
    """A product of ``rows`` rows and as many columns as a tile has: (a, a_row, a_step, b, b_row, b_next, depth, out,
    out_row, add).

    ``a``, ``b`` and ``out`` are addresses; ``a`` is ``[rows, depth]``, ``b [depth, COLUMNS]``, and what comes out fp32,
    added to what is there if ``add``, or bf16 if ``rounded``. ``a_row`` and so on are units, or numbers, from one row
    to the next, ``a_step`` units from one of a row to the next, ``b_next`` from one register of a row to the next. (Of
    ``pairs`` there is none where the processor has no instruction for them: then it is the same as without.)
    """
    pairs = pairs and PAIRS

    @intrinsic
    def product(
        typing: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_row: Any, b_next: Any, depth: Any, out: Any,
        out_row: Any, add: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            a, a_row, a_step, b, b_row, b_next, depth, out, out_row, add = given
            places = [
                builder.add(builder.mul(out_row, _WORD(row)), _WORD(first))
                for row in range(rows)
                for first in range(0, COLUMNS, REGISTER)
            ]
            sums = registers(builder, _VECTOR, len(places))
            if rounded:  # it is not read, and has to be there when it is written
                for row in range(rows):
                    prefetch(builder, builder.add(out, builder.mul(builder.mul(out_row, _WORD(row)), _WORD(2))), True)
            else:
                with builder.if_then(builder.icmp_signed("!=", add, _WORD(0))):
                    for sum_, place in zip(sums, places, strict=True):
                        builder.store(builder.load(_at(builder, out, _VECTOR, place), align=4), sum_)
            with cgutils.for_range(builder, depth, intp=_WORD) as loop:
                row_of_b = builder.mul(loop.index, b_row)
                columns = [
                    builder.load(_at(builder, b, _UNITS, row_of_b, builder.mul(b_next, _WORD(register))), align=4)
                    for register in range(COLUMNS // REGISTER)
                ]
                for row in range(rows):
                    place = builder.mul(a_row, _WORD(row)), builder.mul(a_step, loop.index)
                    factor = spread(builder, builder.load(_at(builder, a, _UNIT, *place), align=4))
                    for register, values in enumerate(columns):
                        sum_ = sums[row * len(columns) + register]
                        builder.store(add_product(builder, pairs, factor, values, builder.load(sum_)), sum_)
            for sum_, place in zip(sums, places, strict=True):
                if rounded:
                    store_halved(builder, builder.load(sum_), out, place)
                else:
                    builder.store(builder.load(sum_), _at(builder, out, _VECTOR, place), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), generate

    return product


# -- rows of scores, a whole number of tiles wide, of which the first ``seen`` count; the others come to 0


def _columns(builder: Any, columns: Any, seen: Any, body: Callable[[Any, Any, int], None]) -> None:
    """``body(place, mask, side)`` for each register of a row; the mask is None where all of it counts.

    A tile's registers are sides of it, which need not wait for each other.
    """
    order = ir.Constant(_UNITS, list(range(REGISTER)))
    whole = builder.udiv(seen, _WORD(COLUMNS))

    def of_tile(index: Any) -> list[Any]:
        first = builder.mul(index, _WORD(COLUMNS))
        return [builder.add(first, _WORD(step)) for step in range(0, COLUMNS, REGISTER)]

    with cgutils.for_range(builder, whole, intp=_WORD) as loop:
        for side, place in enumerate(of_tile(loop.index)):
            body(place, None, side)
    with cgutils.for_range(builder, builder.udiv(columns, _WORD(COLUMNS)), start=whole, intp=_WORD) as loop:
        for side, place in enumerate(of_tile(loop.index)):
            left = spread(builder, builder.trunc(builder.sub(seen, place), _UNIT))
            body(place, builder.icmp_signed("<", order, left), side)


def _of_sides(builder: Any, value: float) -> list[Any]:
    """A register for each, of one number."""
    return registers(builder, _VECTOR, COLUMNS // REGISTER, value)


def _kept(builder: Any, mask: Any, value: Any, otherwise: float = 0.0) -> Any:
    return value if mask is None else builder.select(mask, value, number(_VECTOR, otherwise))


def filled(builder: Any, value: Any) -> Any:
    return builder.bitcast(spread(builder, builder.bitcast(value, _UNIT)), _VECTOR)


def _load(builder: Any, base: Any, place: Any) -> Any:
    return builder.load(_at(builder, base, _VECTOR, place), align=4)


def reduced(builder: Any, name: str, vector: Any, *first: Any) -> Any:
    """One number out of those of a register, of which the largest is looked for among numbers alone."""
    function = ir.FunctionType(_FLOAT, [*(one.type for one in first), _VECTOR])
    called = cgutils.get_or_insert_function(builder.module, function, f"llvm.vector.reduce.{name}.v{REGISTER}f32")
    return builder.call(called, (*first, vector), fastmath=("nnan",) if name == "fmax" else ("reassoc",))


@intrinsic
def highest(typing: Any, x: Any, columns: Any, seen: Any) -> Any:
    """The largest score of a row."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        x, columns, seen = given
        most = _of_sides(builder, -3.0e38)

        def look(place: Any, mask: Any, side: int) -> None:
            value = _kept(builder, mask, _load(builder, x, place), -3.0e38)
            builder.store(larger(builder, value, builder.load(most[side])), most[side])

        _columns(builder, columns, seen, look)
        return reduced(builder, "fmax", larger(builder, *map(builder.load, most)))

    return types.float32(types.int64, types.int64, types.int64), generate


def powers(pairs: bool) -> Any:
    """exp((x - shift) scale) of a row as units, which may take its place where they are numbers; their sum."""
    pairs = pairs and PAIRS

    @intrinsic
    def exponentials(typing: Any, x: Any, columns: Any, seen: Any, shift: Any, scale: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            x, columns, seen, shift, scale, out = given

            def store(place: Any, y: Any) -> Any:
                value, at = (halved(builder, y), builder.udiv(place, _WORD(2))) if pairs else (y, place)
                builder.store(value, _at(builder, out, value.type, at), align=4)
                return y

            return _sum_of_powers(builder, x, columns, seen, shift, scale, store)

        numbers = types.int64, types.int64, types.int64, types.float32, types.float32, types.int64
        return types.float32(*numbers), generate

    return exponentials


@intrinsic
def against(typing: Any, x: Any, columns: Any, seen: Any, shift: Any, scale: Any, other: Any) -> Any:
    """exp((x - shift) scale) of a row in its place; the sum of its products with another row."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        x, columns, seen, shift, scale, other = given

        def store(place: Any, y: Any) -> Any:
            builder.store(y, _at(builder, x, _VECTOR, place), align=4)
            return builder.fmul(y, _load(builder, other, place))

        return _sum_of_powers(builder, x, columns, seen, shift, scale, store)

    return types.float32(types.int64, types.int64, types.int64, types.float32, types.float32, types.int64), generate


def _sum_of_powers(
    builder: Any, x: Any, columns: Any, seen: Any, shift: Any, scale: Any, counted: Callable[[Any, Any], Any]
) -> Any:
    """Of what is ``counted(place, exp((x - shift) scale))``."""
    totals = _of_sides(builder, 0.0)
    by, factor = filled(builder, shift), filled(builder, scale)

    def add(place: Any, mask: Any, side: int) -> None:
        moved = builder.fsub(_load(builder, x, place), by)
        y = _kept(builder, mask, exp(builder, builder.fmul(moved, factor)))
        builder.store(builder.fadd(builder.load(totals[side]), counted(place, y)), totals[side])

    _columns(builder, columns, seen, add)
    return reduced(builder, "fadd", builder.fadd(*map(builder.load, totals)), ir.Constant(_FLOAT, 0.0))


def slopes(pairs: bool) -> Any:
    """p over its sum, and p (of_p - mean), gradients of the scores, of one row or of two that make pairs.

    (p, of_p, row, columns, facts, out, out_row, p_across, across): ``facts`` is where one over the sum and the mean of
    each lie. Where units are numbers, both replace what they are made from, and the rest is not looked at. Else the
    gradients are at ``out``, row by row; at ``p_across`` and ``across`` are units of both rows' p and gradients.
    """
    pairs = pairs and PAIRS

    @intrinsic
    def differentiate(
        typing: Any, p: Any, of_p: Any, row: Any, columns: Any, facts: Any, out: Any, out_row: Any, p_across: Any,
        across: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            p, of_p, row, columns, facts, out, out_row, p_across, across = given
            known = [
                [filled(builder, builder.load(_at(builder, facts, _FLOAT, _WORD(2 * which + i)))) for i in range(2)]
                for which in range(1 + pairs)
            ]

            def replace(place: Any, mask: Any, side: int) -> None:
                made = []
                for which, (inverse, mean) in enumerate(known):
                    here = builder.add(builder.mul(row, _WORD(which)), place)
                    share = builder.fmul(_load(builder, p, here), inverse)
                    made.append((share, builder.fmul(share, builder.fsub(_load(builder, of_p, here), mean))))
                if not pairs:
                    for target, value in zip((p, of_p), made[0], strict=True):
                        builder.store(value, _at(builder, target, _VECTOR, place), align=4)
                    return
                halves = [[halved(builder, value) for value in some] for some in made]
                for which, (_, slope) in enumerate(halves):
                    where = builder.add(builder.mul(out_row, _WORD(which)), builder.udiv(place, _WORD(2)))
                    builder.store(slope, _at(builder, out, slope.type, where), align=4)
                for target, *both in zip((p_across, across), *halves, strict=True):
                    builder.store(joined(builder, *both), _at(builder, target, _UNITS, place), align=4)

            _columns(builder, columns, columns, replace)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return differentiate


@intrinsic
def turn(typing: Any, source: Any, source_row: Any, rows: Any, columns: Any, out: Any, out_row: Any) -> Any:
    """``[rows, columns]`` to ``[columns, rows]``, a few rows at a time."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        source, source_row, rows, columns, out, out_row = given
        some = _WORD(16)
        with cgutils.for_range(builder, builder.udiv(builder.add(rows, _WORD(15)), some), intp=_WORD) as block:
            first = builder.mul(block.index, some)
            beyond = builder.add(first, some)
            stop = builder.select(builder.icmp_signed("<", beyond, rows), beyond, rows)
            each = cgutils.for_range(builder, columns, intp=_WORD)
            with each as column, cgutils.for_range(builder, stop, start=first, intp=_WORD) as row:
                unit = builder.load(_at(builder, source, _UNIT, builder.mul(row.index, source_row), column.index))
                builder.store(unit, _at(builder, out, _UNIT, builder.mul(column.index, out_row), row.index))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate
