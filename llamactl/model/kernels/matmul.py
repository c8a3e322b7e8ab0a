"""Products of matrices by one thread, compiled by numba: a b^T, of rows that lie in any order.

Both are laid out anew, so that tiles read them in the order of memory: units of as many rows as a register has numbers
follow each other, ``[depth / 2, REGISTER]`` (Goto and van de Geijn, 2008). Rows of ``a`` are, as many as a cache holds,
and then panels of ``b``, each while what the next is made of is fetched. No row of what comes out depends on others.
"""

from typing import Any

from llvmlite import ir
from numba import carray  # type: ignore[attr-defined]
from numba.core import types
from numba.extending import intrinsic

from llamactl.model.kernels import tiles, vectors
from llamactl.model.kernels.plans import COLUMNS, REGISTER
from llamactl.model.kernels.plans import MATMUL as PLAN
from llamactl.model.kernels.products import compiled, floats, up
from llamactl.model.kernels.vectors import narrow

__all__ = ["PLAN", "work"]
HEIGHT = REGISTER // 2  # rows of a tile
BYTES = 64  # of a line of the cache
SOON = 8  # units that are laid out before those that are asked for
_UNIT, _WORD = ir.IntType(32), ir.IntType(64)
_UNITS = ir.VectorType(_UNIT, REGISTER)
_HALVES = ir.VectorType(ir.IntType(16), REGISTER)

_wide, _rounded = tiles.tile(HEIGHT, True), tiles.tile(HEIGHT, True, rounded=True)


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """Rows of registers as their columns: halves of two rows are laid side by side, then quarters, and so on."""
    by = REGISTER // 2
    while by:
        places = [i for i in range(REGISTER) if not i & by]
        low = [x if not x & by else REGISTER + x - by for x in range(REGISTER)]
        high = [x + by if not x & by else REGISTER + x for x in range(REGISTER)]
        for i in places:
            pair = rows[i], rows[i + by]
            rows[i], rows[i + by] = (builder.shuffle_vector(*pair, ir.Constant(_UNITS, order)) for order in (low, high))
        by //= 2
    return rows


@intrinsic
def turn(typing: Any, source: Any, row: Any, out: Any) -> Any:
    """As many units of as many rows, ``row`` bytes from each other, to ``[units, rows]``."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        source, row, out = given
        rows = []
        for number in range(REGISTER):
            at = builder.add(source, builder.mul(row, _WORD(number)))
            rows.append(builder.load(builder.inttoptr(at, _UNITS.as_pointer()), align=2))
        for number, units in enumerate(_turned(builder, rows)):
            vectors.store(builder, units, out, _WORD(REGISTER * number))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def join(typing: Any, source: Any, row: Any, out: Any) -> Any:
    """Numbers that lie side by side and those a row, so many bytes, behind them as units of both."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        source, row, out = given
        low, high = (
            builder.zext(vectors.load(builder, at, _WORD(0), _HALVES, 2), _UNITS)
            for at in (source, builder.add(source, row))
        )
        both = builder.or_(low, builder.shl(high, vectors.same(_UNITS, 16)))
        vectors.store(builder, both, out, _WORD(0))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def half(typing: Any, address: Any) -> Any:
    """The bits of a bf16 number."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.zext(vectors.load(builder, given[0], _WORD(0), ir.IntType(16), 2), _UNIT)

    return types.uint32(types.int64), generate


@intrinsic
def put(typing: Any, bits: Any, address: Any) -> Any:
    """Write a unit."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        vectors.store(builder, given[0], given[1], _WORD(0))
        return context.get_dummy_value()

    return types.void(types.uint32, types.int64), generate


@intrinsic
def fetch(typing: Any, address: Any) -> Any:
    """Have a line of memory fetched."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        vectors.prefetch(builder, given[0], near=False)
        return context.get_dummy_value()

    return types.void(types.int64), generate


@compiled
def lay_singly(source, row, step, rows, start, depth, out):
    """The last units of a group, from ``start`` on, and zeros where there is no row, or no second number."""
    for unit in range(start, (depth + 1) // 2):
        for i in range(REGISTER):
            bits = 0
            if i < rows:
                at = source + 2 * (i * row + 2 * unit * step)
                bits = half(at)
                if 2 * unit + 1 < depth:
                    bits |= half(at + 2 * step) << 16
            put(bits, out + 4 * (unit * REGISTER + i))


@compiled
def lay(source, row, step, rows, depth, out):
    """Rows of a matrix as groups of them, ``[rows / REGISTER, depth / 2, REGISTER]``, zeros where there is none.

    Numbers of a row are ``step`` from each other; one of ``row`` and ``step`` is 1.
    """
    group = (depth + 1) // 2 * REGISTER
    whole = rows // REGISTER * REGISTER
    units = depth // 2  # of two numbers
    if step == 1:
        units -= units % REGISTER
        for first in range(0, whole, REGISTER):
            for unit in range(0, units, REGISTER):
                at = out + 4 * (first // REGISTER * group + unit * REGISTER)
                turn(source + 2 * (first * row + 2 * unit), 2 * row, at)
    else:
        for unit in range(units):
            for first in range(0, whole, REGISTER):
                at = out + 4 * (first // REGISTER * group + unit * REGISTER)
                fetch(source + 2 * (first + 2 * (unit + SOON) * step))
                fetch(source + 2 * (first + 2 * (unit + SOON) * step + step))
                join(source + 2 * (first + 2 * unit * step), 2 * step, at)
    for first in range(0, rows, REGISTER):
        begun = units if first < whole else 0
        lay_singly(source + 2 * first * row, row, step, rows - first, begun, depth, out + 4 * first // REGISTER * group)


@compiled
def foresee(plan, column, share, shares):
    """Have a share of what the panel from a column on is made of fetched, if there is one."""
    columns = min(plan.panel, plan.columns - column)
    rows, row, width = columns, 2 * plan.b_row, 2 * plan.depth
    if plan.b_step != 1:
        rows, row, width = plan.depth, 2 * plan.b_step, 2 * columns
    if columns > 0:
        for number in range(rows * share // shares, rows * (share + 1) // shares):
            source = plan.b + 2 * column * plan.b_row + number * row
            for line in range(source, source + width, BYTES):
                fetch(line)


@compiled
def compute(plan, first, stop, column, panel):
    """Rows ``first`` to ``stop`` of what comes out, which are laid out, and a panel of columns."""
    units, columns = (plan.depth + 1) // 2, min(plan.panel, plan.columns - column)
    group, aside = 4 * units * REGISTER, panel + 4 * units * plan.panel
    lay(plan.b + 2 * column * plan.b_row, plan.b_row, plan.b_step, columns, plan.depth, panel)
    share, shares = 0, (up(columns, COLUMNS) // COLUMNS) * (up(stop - first, REGISTER) // REGISTER)
    for rows in range(first, stop, REGISTER):
        left = plan.scratch + (rows - first) // REGISTER * group
        for some in range(0, columns, COLUMNS):
            foresee(plan, column + columns, share, shares)
            share += 1
            for row in range(rows, min(rows + REGISTER, stop), HEIGHT):
                a, b, wide = left + 4 * (row - rows), panel + some // REGISTER * group, min(COLUMNS, columns - some)
                multiply_tile(plan, a, b, row, min(HEIGHT, stop - row), column + some, wide, aside)


@compiled
def multiply_tile(plan, a, b, row, rows, column, columns, aside):
    """Rows and columns of what comes out, of which there is a tile, or less: then it is computed ``aside``."""
    units = (plan.depth + 1) // 2
    out = plan.out + (4 if plan.wide else 2) * (row * plan.out_row + column)
    if rows < HEIGHT or columns < COLUMNS:
        if plan.add:
            copy(plan, aside, rows, columns, out, True)
        _wide(a, 1, REGISTER, b, REGISTER, units * REGISTER, units, aside, COLUMNS, plan.add)
        copy(plan, aside, rows, columns, out, False)
    elif plan.wide:
        _wide(a, 1, REGISTER, b, REGISTER, units * REGISTER, units, out, plan.out_row, plan.add)
    else:
        _rounded(a, 1, REGISTER, b, REGISTER, units * REGISTER, units, out, plan.out_row, False)


@compiled
def copy(plan, tile, rows, columns, out, back):
    """A part of a tile to where it belongs, or, if that is wide, ``back`` from there."""
    for row in range(rows):
        at = tile + 4 * row * COLUMNS
        if plan.wide:
            some, target = floats(at, columns), floats(out + 4 * row * plan.out_row, columns)
            for i in range(columns):
                if back:
                    some[i] = target[i]
                else:
                    target[i] = some[i]
        else:
            narrow(at, columns, out + 2 * row * plan.out_row)


@compiled
def multiply(plan):
    """Some rows after the other, of each a panel of columns after the other."""
    panel = plan.scratch + 4 * plan.some * ((plan.depth + 1) // 2)
    for first in range(0, plan.rows, plan.some):
        stop = min(first + plan.some, plan.rows)
        lay(plan.a + 2 * first * plan.a_row, plan.a_row, plan.a_step, stop - first, plan.depth, plan.scratch)
        for column in range(0, plan.columns, plan.panel):
            compute(plan, first, stop, column, panel)


def work(address: Any) -> None:
    """A product by the plan at an address."""
    multiply(carray(address, 1)[0])
