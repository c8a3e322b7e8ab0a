"""Products by tiles that the processor has (``TILES``, Intel's AMX): eight of them, of SIDE rows of as many units.

A unit is a pair of bf16 numbers, as in ``tiles``, or an fp32 number that products of pairs are added up in.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from llamactl.model.kernels.plans import SIDE, TILES

_WORD, _UNIT, _TILE = ir.IntType(64), ir.IntType(32), ir.IntType(8)
_CONFIGURED = (1, 0, *[0] * 14, *[4 * SIDE, 0] * 8, *[0] * 16, *[SIDE] * 8, *[0] * 8)  # bytes, as Intel's manual has it
COLUMNS_OF, ROWS_OF = 16, 48  # where it says how many bytes a row of each tile has, in two of them, and how many rows


def do(builder: Any, name: str, *given: Any) -> None:
    """An instruction on tiles."""
    function = ir.FunctionType(ir.VoidType(), [one.type for one in given])
    builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.x86.{name}"), given)


def behind(builder: Any, base: Any, *steps: tuple[Any, int]) -> Any:
    """So many steps behind an address, of so many bytes each."""
    for step, size in steps:
        base = builder.add(base, builder.mul(step, _WORD(size)))
    return builder.inttoptr(base, cgutils.voidptr_t)


@intrinsic
def begin_squares(typing: Any, rest: Any) -> Any:
    """Have this thread's processor make its tiles ready; what multiplies by them before would crash.

    With a ``rest``, tiles 5 and 6 are for the last of what is added up, of so many units: the columns of the one, the
    rows of the other.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        if TILES:
            (rest,) = given
            said = cgutils.alloca_once(builder, ir.ArrayType(_TILE, 64))
            builder.store(ir.Constant(said.type.pointee, _CONFIGURED), said)
            with builder.if_then(builder.icmp_signed(">", rest, _WORD(0))):
                units = builder.trunc(rest, _TILE)
                for at, value in ((COLUMNS_OF + 2 * 5, builder.mul(units, _TILE(4))), (ROWS_OF + 6, units)):
                    builder.store(value, builder.gep(said, [_UNIT(0), _UNIT(at)]))
            do(builder, "ldtilecfg", builder.bitcast(said, cgutils.voidptr_t))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def end_squares(typing: Any) -> Any:
    """Have it forget them, so that nobody has to keep what is in them."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        if TILES:
            do(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


def square(rows: int, columns: int) -> Any:
    """A product of as many rows and columns, one or two sides each: (a, a_row, b, b_row, b_next, depth, out, out_row,
    add), as ``tile`` has them, of pairs. ``depth`` is a multiple of ``SIDE``.
    """
    high, wide = rows // SIDE, columns // SIDE

    @intrinsic
    def product(
        typing: Any, a: Any, a_row: Any, b: Any, b_row: Any, b_next: Any, depth: Any, out: Any, out_row: Any, add: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            if not TILES:
                return context.get_dummy_value()
            a, a_row, b, b_row, b_next, depth, out, out_row, add = given
            a_row, b_row, b_next, out_row = (builder.mul(one, _WORD(4)) for one in (a_row, b_row, b_next, out_row))
            sums = [(_TILE(2 * i + j), i, j) for i in range(high) for j in range(wide)]
            lefts, rights = [_TILE(4 + i) for i in range(high)], [_TILE(6 + j) for j in range(wide)]

            def whole(i: int, j: int) -> Any:
                return behind(builder, out, (out_row, SIDE * i), (_WORD(4 * SIDE), j))

            with builder.if_else(builder.icmp_signed("!=", add, _WORD(0))) as (more, anew):
                with more:
                    for number, i, j in sums:
                        do(builder, "tileloadd64", number, whole(i, j), out_row)
                with anew:
                    for number, _, _ in sums:
                        do(builder, "tilezero", number)
            with cgutils.for_range(builder, builder.udiv(depth, _WORD(SIDE)), intp=_WORD) as loop:
                left = builder.add(a, builder.mul(loop.index, _WORD(4 * SIDE)))
                right = builder.add(b, builder.mul(loop.index, builder.mul(b_row, _WORD(SIDE))))
                for i, number in enumerate(lefts):
                    do(builder, "tileloadd64", number, behind(builder, left, (a_row, SIDE * i)), a_row)
                for j, number in enumerate(rights):
                    do(builder, "tileloadd64", number, behind(builder, right, (b_next, j)), b_row)
                for number, i, j in sums:
                    do(builder, "tdpbf16ps", number, lefts[i], rights[j])
            for number, i, j in sums:
                do(builder, "tilestored64", number, whole(i, j), out_row)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return product
