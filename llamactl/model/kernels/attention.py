"""Causal attention, forward and backward, compiled by numba: all of one head in the caches of one core.

Rows of a head are computed some at a time, each with all keys that it sees, so that neither scores nor probabilities
leave the cache; the backward pass computes them again (Dao et al., 2022; but whole rows at once: no softmax has to be
corrected as more of it is seen). Threads take one head of one document after the other: what comes out is the same by
any number of them.

Products are those of ``tiles``, or of ``squares``. Letters as in ``llama.py``; R rows of queries, S keys, U numbers in
a unit.
"""

from typing import Any

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from llamactl.model.kernels import tiles
from llamactl.model.kernels.plans import ATTENTION as PLAN
from llamactl.model.kernels.plans import COLUMNS, HEIGHTS, LINE, REGISTER, ROWS, SIDE
from llamactl.model.kernels.products import compiled, fetch_lines, floats, integers, units, up
from llamactl.model.kernels.shared import ticket
from llamactl.model.kernels.squares import begin_squares, end_squares, square
from llamactl.model.kernels.tiles import against, highest, powers, slopes, turn
from llamactl.model.kernels.vectors import narrow, widen

__all__ = ["PLAN", "work"]
SOON = 16  # rows that are gathered before those that are asked for
DEPTH = 128  # units that a product adds up at once, so that what it reads stays in the fastest cache

_TALL, _LOW = HEIGHTS
_tall, _low = (tiles.tile(rows, False) for rows in HEIGHTS)
_tall_pairs, _low_pairs = (tiles.tile(rows, True) for rows in HEIGHTS)
_two_squares, _square = (square(rows, COLUMNS) for rows in (2 * SIDE, SIDE))
_powers, _powers_as_pairs = powers(False), powers(True)
_slopes, _slopes_as_pairs = slopes(False), slopes(True)
_LOWER, _HIGHER, _HALF = np.uint32(0xFFFF), np.uint32(0xFFFF0000), np.uint32(16)
_ONE = np.float32(1)


@compiled
def stride(columns):
    """Units from one row to the next: an odd number of lines, or rows would drive each other from the cache."""
    lines = up(columns, COLUMNS) // LINE
    return LINE * (lines + 1 - lines % 2)


@compiled
def multiply(plan, a, a_row, rows, b, b_row, depth, columns, out, out_row, add):
    """``[rows, depth]`` by ``[depth, columns]``, as far as whole tiles go."""
    if plan.squares:
        multiply_squares(a, a_row, rows, b, b_row, depth, columns, out, out_row, add)
        return
    for start in range(0, depth, DEPTH):
        some, more = min(DEPTH, depth - start), add or start > 0
        for column in range(0, columns, COLUMNS):
            right, row = b + 4 * (start * b_row + column), 0
            while row < rows:
                left, target = a + 4 * (row * a_row + start), out + 4 * (row * out_row + column)
                if row + _TALL <= rows:
                    if plan.pairs:
                        _tall_pairs(left, a_row, 1, right, b_row, REGISTER, some, target, out_row, more)
                    else:
                        _tall(left, a_row, 1, right, b_row, REGISTER, some, target, out_row, more)
                    row += _TALL
                else:
                    if plan.pairs:
                        _low_pairs(left, a_row, 1, right, b_row, REGISTER, some, target, out_row, more)
                    else:
                        _low(left, a_row, 1, right, b_row, REGISTER, some, target, out_row, more)
                    row += _LOW


@compiled
def multiply_squares(a, a_row, rows, b, b_row, depth, columns, out, out_row, add):
    """The same by tiles that the processor has, of pairs."""
    for column in range(0, columns, COLUMNS):
        right, row = b + 4 * column, 0
        while row + 2 * SIDE <= rows:
            left, target = a + 4 * row * a_row, out + 4 * (row * out_row + column)
            _two_squares(left, a_row, right, b_row, SIDE, depth, target, out_row, add)
            row += 2 * SIDE
        if row < rows:
            left, target = a + 4 * row * a_row, out + 4 * (row * out_row + column)
            _square(left, a_row, right, b_row, SIDE, depth, target, out_row, add)


@compiled
def lowest(plan):
    """Rows of the lowest tile."""
    return SIDE if plan.squares else _LOW


@compiled
def gather(plan, source, heads, head, first, rows, out):
    """Rows of a head as units, ``[R, E / U]``."""
    width, stored = plan.head_dim, 2 if plan.narrow else 4
    for row in range(rows):
        at = ((first + row) * heads + head) * width
        if row + SOON < rows:  # they lie far from each other
            fetch_lines(source + stored * (at + SOON * heads * width), stored * width)
        if plan.narrow and not plan.pairs:
            widen(source + 2 * at, width, out + 4 * row * width)
        else:
            size = 2 if plan.pairs else 4
            number = size * width // 4
            some, target = units(source + size * at, number), units(out + 4 * row * number, number)
            for i in range(number):
                target[i] = some[i]


@compiled
def scatter(plan, source, target, heads, head, first, rows, row, factor):
    """fp32 rows, so many units from each other, times a factor (also where they lie), as a head's of a tensor."""
    width = plan.head_dim
    for number in range(rows):
        at = ((first + number) * heads + head) * width
        some = floats(source + 4 * number * row, width)
        for i in range(width):
            some[i] *= factor
        if plan.narrow:
            narrow(source + 4 * number * row, width, target + 2 * at)
        else:
            wide = floats(target + 4 * at, width)
            for i in range(width):
                wide[i] = some[i]


@compiled
def clear(address, first, stop):
    some = floats(address, stop)
    for i in range(first, stop):
        some[i] = np.float32(0)


@compiled
def transpose(source, rows, columns, out, out_row):
    """``[rows, columns]`` to ``[columns, rows]``, with nothing behind them up to a whole tile."""
    turn(source, columns, rows, columns, out, out_row)
    for column in range(columns):
        clear(out + 4 * column * out_row, rows, up(rows, COLUMNS))


@compiled
def stack(pairs, source, rows, width, out, out_row):
    """``[rows, E / U]`` to ``[rows / U, E]``: units of what follows each other from row to row."""
    if not pairs:
        for row in range(rows):
            some, target = units(source + 4 * row * width, width), units(out + 4 * row * out_row, width)
            for i in range(width):
                target[i] = some[i]
        return
    half = width // 2
    for row in range(0, rows, 2):
        first, second = units(source + 4 * row * half, half), units(source + 4 * (row + 1) * half, half)
        target, alone = units(out + 4 * (row // 2) * out_row, width), row + 1 == rows
        for i in range(half):
            a, b = first[i], np.uint32(0) if alone else second[i]
            target[2 * i] = (a & _LOWER) | (b << _HALF)
            target[2 * i + 1] = (a >> _HALF) | (b & _HIGHER)


@compiled
def forward(plan, document, head, scratch):
    """What a document's tokens attend to, by the query heads of one key head."""
    first, rows, first_key, keys = place(plan, document)
    stem, pairs, width = keys - rows, plan.pairs, plan.head_dim
    in_unit = 2 if pairs else 1
    deep, whole = width // in_unit, up(keys, COLUMNS) // in_unit
    by_keys, by_width, by_units = stride(keys), stride(width), stride(whole)
    gathered = scratch
    keys_t = gathered + 4 * up(keys * width, LINE)
    values = keys_t + 4 * deep * by_keys
    p = values + 4 * whole * by_width
    halves = p + 4 * ROWS * by_keys
    queries = halves + 4 * ROWS * by_units
    mixed = queries + 4 * ROWS * width
    gather(plan, plan.k, plan.kv_heads, head, first_key, keys, gathered)
    transpose(gathered, keys, deep, keys_t, by_keys)
    gather(plan, plan.v, plan.kv_heads, head, first_key, keys, gathered)
    stack(pairs, gathered, keys, width, values, by_width)
    clear(values, (keys + in_unit - 1) // in_unit * by_width, whole * by_width)
    if not pairs:
        halves, by_units = p, by_keys
    largest = floats(plan.softmax, plan.tokens * plan.heads)
    inverse = floats(plan.softmax + 4 * plan.tokens * plan.heads, plan.tokens * plan.heads)
    group = plan.heads // plan.kv_heads
    for query_head in range(head * group, (head + 1) * group):
        for start in range(0, rows, ROWS):
            some, token = min(ROWS, rows - start), first + start
            tall, columns = up(some, lowest(plan)), up(stem + start + some, COLUMNS)
            gather(plan, plan.q, plan.heads, query_head, token, some, queries)
            multiply(plan, queries, deep, tall, keys_t, by_keys, deep, columns, p, by_keys, False)
            for row in range(some):
                at, seen, which = p + 4 * row * by_keys, stem + start + row + 1, (token + row) * plan.heads + query_head
                top = highest(at, columns, seen)
                if pairs:
                    total = _powers_as_pairs(at, columns, seen, top, scale_of(plan), halves + 4 * row * by_units)
                else:
                    total = _powers(at, columns, seen, top, scale_of(plan), at)
                largest[which], inverse[which] = top, _ONE / total
            multiply(plan, halves, by_units, tall, values, by_width, columns // in_unit, width, mixed, by_width, False)
            for row in range(some):
                factor = inverse[(token + row) * plan.heads + query_head]
                line = mixed + 4 * row * by_width
                scatter(plan, line, plan.out, plan.heads, query_head, token + row, 1, by_width, factor)


@compiled
def backward(plan, document, head, scratch):
    """Gradients of a document's queries, keys and values, by the query heads of one key head."""
    first, rows, first_key, keys = place(plan, document)
    stem, pairs, width, scale = keys - rows, plan.pairs, plan.head_dim, scale_of(plan)
    in_unit = 2 if pairs else 1
    deep, whole, by_rows = width // in_unit, up(keys, COLUMNS) // in_unit, ROWS // in_unit
    by_keys, by_width, by_units = stride(keys), stride(width), stride(whole)
    gathered = scratch
    keys_t = gathered + 4 * up(keys * width, LINE)
    values_t = keys_t + 4 * deep * by_keys
    stacked = values_t + 4 * deep * by_keys
    of_k = stacked + 4 * whole * by_width
    of_v = of_k + 4 * width * by_keys
    p = of_v + 4 * width * by_keys
    of_p = p + 4 * ROWS * by_keys
    halves = of_p + 4 * ROWS * by_keys
    p_across = halves + 4 * ROWS * by_units
    slopes_across = p_across + 4 * ROWS * by_units
    queries = slopes_across + 4 * ROWS * by_units
    grads = queries + 4 * ROWS * width
    turning = grads + 4 * ROWS * width
    queries_t = turning + 4 * ROWS * width
    grads_t = queries_t + 4 * ROWS * width
    of_q = grads_t + 4 * ROWS * width
    known = of_q + 4 * ROWS * by_width
    gather(plan, plan.v, plan.kv_heads, head, first_key, keys, gathered)
    transpose(gathered, keys, deep, values_t, by_keys)
    gather(plan, plan.k, plan.kv_heads, head, first_key, keys, gathered)
    transpose(gathered, keys, deep, keys_t, by_keys)
    stack(pairs, gathered, keys, width, stacked, by_width)
    clear(stacked, (keys + in_unit - 1) // in_unit * by_width, whole * by_width)
    clear(of_k, 0, width * by_keys)
    clear(of_v, 0, width * by_keys)
    if not pairs:
        halves, by_units, p_across, slopes_across = of_p, by_keys, p, of_p
    facts = floats(known, 2 * ROWS)
    largest = floats(plan.softmax, plan.tokens * plan.heads)
    inverse = floats(plan.softmax + 4 * plan.tokens * plan.heads, plan.tokens * plan.heads)
    group = plan.heads // plan.kv_heads
    for query_head in range(head * group, (head + 1) * group):
        for start in range(0, rows, ROWS):
            some, token = min(ROWS, rows - start), first + start
            tall, columns = up(some, lowest(plan)), up(stem + start + some, COLUMNS)
            gather(plan, plan.q, plan.heads, query_head, token, some, queries)
            gather(plan, plan.grad, plan.heads, query_head, token, some, grads)
            multiply(plan, queries, deep, tall, keys_t, by_keys, deep, columns, p, by_keys, False)
            multiply(plan, grads, deep, tall, values_t, by_keys, deep, columns, of_p, by_keys, False)
            for row in range(some):
                at, seen, which = 4 * row * by_keys, stem + start + row + 1, (token + row) * plan.heads + query_head
                sum_ = against(p + at, columns, seen, largest[which], scale, of_p + at)
                facts[2 * row], facts[2 * row + 1] = inverse[which], inverse[which] * sum_
            if pairs and some % 2:
                clear(p + 4 * some * by_keys, 0, columns)
                clear(of_p + 4 * some * by_keys, 0, columns)
                clear(known, 2 * some, 2 * some + 2)
            for row in range(0, some, in_unit):
                at, fact = 4 * row * by_keys, known + 8 * row
                if pairs:
                    across = 4 * (row // 2) * by_keys
                    _slopes_as_pairs(
                        p + at, of_p + at, by_keys, columns, fact,
                        halves + 4 * row * by_units, by_units, p_across + across, slopes_across + across,
                    )  # fmt: skip
                else:
                    _slopes(p + at, of_p + at, by_keys, columns, fact, 0, 0, 0, 0)
            multiply(plan, halves, by_units, tall, stacked, by_width, columns // in_unit, width, of_q, by_width, False)
            scatter(plan, of_q, plan.of_q, plan.heads, query_head, token, some, by_width, scale)
            lines = (some + in_unit - 1) // in_unit
            whole_lines = up(lines, SIDE) if plan.squares else lines
            clear(p_across, lines * by_keys, whole_lines * by_keys)
            clear(slopes_across, lines * by_keys, whole_lines * by_keys)
            clear(turning, lines * width, whole_lines * width)
            stack(pairs, grads, some, width, turning, width)
            turn(turning, width, whole_lines, width, grads_t, by_rows)
            multiply(plan, grads_t, by_rows, width, p_across, by_keys, whole_lines, columns, of_v, by_keys, True)
            stack(pairs, queries, some, width, turning, width)
            turn(turning, width, whole_lines, width, queries_t, by_rows)
            multiply(plan, queries_t, by_rows, width, slopes_across, by_keys, whole_lines, columns, of_k, by_keys, True)
    for start in range(0, keys, ROWS):
        some, token = min(ROWS, keys - start), first_key + start
        turn(of_k + 4 * start, by_keys, width, some, turning, width)
        scatter(plan, turning, plan.of_k, plan.kv_heads, head, token, some, width, scale)
        turn(of_v + 4 * start, by_keys, width, some, turning, width)
        scatter(plan, turning, plan.of_v, plan.kv_heads, head, token, some, width, _ONE)


@compiled
def place(plan, document):
    """A document's first token, and how many; its first key, and how many, of which the last are those tokens'."""
    ends, key_ends = integers(plan.ends, plan.documents + 1), integers(plan.key_ends, plan.documents + 1)
    first, first_key = ends[document], key_ends[document]
    return first, ends[document + 1] - first, first_key, key_ends[document + 1] - first_key


@compiled
def scale_of(plan):
    return np.float32(plan.scale)


@compiled
def heads(plan):
    """One after the other, until all are taken."""
    scratch = plan.scratch + 4 * plan.room * ticket(plan.shared + 64)
    begin_squares(0)
    while True:
        number = ticket(plan.shared)
        if number >= plan.documents * plan.kv_heads:
            end_squares()
            return
        document, head = number // plan.kv_heads, number % plan.kv_heads
        if plan.backward:
            backward(plan, document, head, scratch)
        else:
            forward(plan, document, head, scratch)


def work(address: Any) -> None:
    """What each thread does by the plan at an address."""
    heads(carray(address, 1)[0])
