"""Products of matrices, compiled by numba: a b^T, of rows that lie in any order.

They are laid out anew, so that tiles read them in the order of memory: units of as many rows as a register has numbers
follow each other, ``[depth / 2, REGISTER]`` (Goto and van de Geijn, 2008). Only rows of ``a`` whose numbers lie side by
side are taken as they are, if there are whole tiles of them: there a tile reads one number at a time.

Threads take panels of the longer side, each laid out while what the next is made of is fetched. The shorter one each of
them lays out for itself: what one thread writes and another reads takes longer. No row of what comes out depends on
others, nor on how many threads there are.
"""

from typing import Any

from llvmlite import ir
from numba import carray  # type: ignore[attr-defined]
from numba.core import types
from numba.extending import intrinsic

from llamactl.model.kernels import tiles, vectors
from llamactl.model.kernels.plans import COLUMNS, HEIGHT, REGISTER
from llamactl.model.kernels.plans import MATMUL as PLAN
from llamactl.model.kernels.products import compiled, fetch_lines, floats, up
from llamactl.model.kernels.shared import ticket
from llamactl.model.kernels.vectors import fetch, narrow

__all__ = ["PLAN", "work"]
SOON = 16  # units that are laid out before those that are asked for
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
        both = (vectors.load(builder, at, _WORD(0), _HALVES, 2) for at in (source, builder.add(source, row)))
        vectors.store(builder, vectors.joined(builder, *both), out, _WORD(0))
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
        for line in range(0, whole, COLUMNS):
            for unit in range(units):
                soon = source + 2 * (line + 2 * (unit + SOON) * step)
                fetch(soon)
                fetch(soon + 2 * step)
                for first in range(line, min(line + COLUMNS, whole), REGISTER):
                    at = out + 4 * (first // REGISTER * group + unit * REGISTER)
                    join(source + 2 * (first + 2 * unit * step), 2 * step, at)
    for first in range(0, rows, REGISTER):
        begun = units if first < whole else 0
        lay_singly(source + 2 * first * row, row, step, rows - first, begun, depth, out + 4 * first // REGISTER * group)


@compiled
def side(plan, longer):
    """The matrix that has more rows, or the other one: where it is, its steps, and its rows."""
    if plan.tall == longer:
        return plan.a, plan.a_row, plan.a_step, plan.rows
    return plan.b, plan.b_row, plan.b_step, plan.columns


@compiled
def foresee(plan, first, share, shares):
    """Have a share of what the panel from a row of the longer side on is made of fetched, if there is one."""
    source, row, step, rows = side(plan, 1)
    some = min(plan.panel, rows - first)
    pieces, apart, width = some, 2 * row, 2 * plan.depth
    if step != 1:
        pieces, apart, width = plan.depth, 2 * step, 2 * some
    if some > 0:
        for piece in range(pieces * share // shares, pieces * (share + 1) // shares):
            fetch_lines(source + 2 * first * row + piece * apart, width)


@compiled
def panel_of_rows(plan, first, rows, panel, other):
    """What comes out of some rows, if they are laid out as a panel, and all columns."""
    group, strips = 4 * units(plan) * REGISTER, up(plan.columns, COLUMNS) // COLUMNS
    for strip in range(strips):
        foresee(plan, first + plan.threads * plan.panel, strip, strips)
        column = strip * COLUMNS
        right, columns = other + column // REGISTER * group, min(COLUMNS, plan.columns - column)
        for row in range(0, rows, HEIGHT):
            left = panel + row // REGISTER * group + 4 * (row % REGISTER)
            multiply_tile(plan, left, right, first + row, min(HEIGHT, rows - row), column, columns, aside(plan, panel))


@compiled
def panel_of_columns(plan, first, columns, panel, other):
    """What comes out of all rows and some columns, which are laid out as a panel: some rows with all of it at once."""
    group, groups = 4 * units(plan) * REGISTER, up(plan.rows, REGISTER) // REGISTER
    for number in range(groups):
        foresee(plan, first + plan.threads * plan.panel, number, groups)
        start = number * REGISTER
        for column in range(0, columns, COLUMNS):
            right, wide = panel + column // REGISTER * group, min(COLUMNS, columns - column)
            for row in range(start, min(start + REGISTER, plan.rows), HEIGHT):
                left = other + number * group + 4 * (row - start)
                rows = min(HEIGHT, plan.rows - row)
                multiply_tile(plan, left, right, row, rows, first + column, wide, aside(plan, panel))


@compiled
def units(plan):
    """Of a row."""
    return (plan.depth + 1) // 2


@compiled
def aside(plan, panel):
    """Room for a tile."""
    return panel + 4 * units(plan) * plan.panel


@compiled
def multiply_tile(plan, a, b, row, rows, column, columns, room):
    """Rows and columns of what comes out, of which there is a tile, or less: then there is ``room`` to compute it."""
    out = plan.out + (4 if plan.wide else 2) * (row * plan.out_row + column)
    a_row, a_step, b_row, b_next = 1, REGISTER, REGISTER, units(plan) * REGISTER
    if plan.direct:
        a, a_row, a_step = plan.a + 2 * row * plan.a_row, plan.a_row // 2, 1
    if rows < HEIGHT or columns < COLUMNS:
        if plan.add:
            copy(plan, room, rows, columns, out, True)
        _wide(a, a_row, a_step, b, b_row, b_next, units(plan), room, COLUMNS, plan.add)
        copy(plan, room, rows, columns, out, False)
    elif plan.wide:
        _wide(a, a_row, a_step, b, b_row, b_next, units(plan), out, plan.out_row, plan.add)
    else:
        _rounded(a, a_row, a_step, b, b_row, b_next, units(plan), out, plan.out_row, False)


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
    """All of the shorter side with panels of the longer one, until all are taken."""
    other = plan.scratch + 4 * plan.room * ticket(plan.shared)
    source, row, step, rows = side(plan, 0)
    panel = other + 4 * units(plan) * up(rows, COLUMNS)
    if plan.tall or not plan.direct:
        lay(source, row, step, rows, plan.depth, other)
    source, row, step, rows = side(plan, 1)
    while True:
        first = plan.panel * ticket(plan.shared + 8)
        if first >= rows:
            return
        some = min(plan.panel, rows - first)
        if not (plan.tall and plan.direct):
            lay(source + 2 * first * row, row, step, some, plan.depth, panel)
        if plan.tall:
            panel_of_rows(plan, first, some, panel, other)
        else:
            panel_of_columns(plan, first, some, panel, other)


def work(address: Any) -> None:
    """What each thread does of a product by the plan at an address."""
    multiply(carray(address, 1)[0])
