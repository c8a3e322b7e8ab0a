"""Products of weights with the numbers of one sample, with panels of eight, or with pairs of sixteen."""

from typing import Any

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]

from llamactl.model.kernels import vectors
from llamactl.model.kernels.plans import DEPTH, LANES, SIDE, STRIP
from llamactl.model.kernels.strips import strip
from llamactl.model.kernels.vectors import BYTES, fetch, pointer

OPTIONS: Any = {"error_model": "numpy", "boundscheck": False}
jit: Any = njit  # has no types for what it is given
compiled = jit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)  # a part of a kernel

_tile_6_2, _tile_2_2, _tile_1_2 = vectors.tile(6, 2), vectors.tile(2, 2), vectors.tile(1, 2)
_tile_12_1, _tile_4_1, _tile_1_1 = vectors.tile(12, 1), vectors.tile(4, 1), vectors.tile(1, 1)
_strip_3, _strip_2, _strip_1 = (strip(sides * SIDE) for sides in (3, 2, 1))
_dot_wide, _dot_narrow = vectors.dot(False), vectors.dot(True)


@compiled
def floats(address, length):
    """Numbers at an address."""
    return carray(pointer(address), length, np.float32)


@compiled
def integers(address, length):
    return carray(pointer(address), length, np.int64)


@compiled
def units(address, length):
    """Units of 32 bits at an address."""
    return carray(pointer(address), length, np.uint32)


@compiled
def fetch_lines(address, size):
    """Have so many bytes of memory fetched."""
    for line in range(address, address + size, BYTES):
        fetch(line)


@compiled
def up(number, to):
    """The next multiple."""
    return (number + to - 1) // to * to


@compiled
def widen(source, row, rows, start, depth, target):
    """Columns of bf16 rows as fp32 ones, laid one after the other."""
    for r in range(rows):
        vectors.widen(source + 2 * (r * row + start), depth, target + 4 * r * depth)


@compiled
def by_one(plan, weights, row, rows, x, out):
    """Rows by one vector, ``[rows]``."""
    if plan.narrow:
        _dot_narrow(weights, row, x, rows, out)
    else:
        _dot_wide(weights, row, x, rows, out)


@compiled
def by_panels(plan, weights, row, rows, x, out, out_panel, scratch):
    """Rows by all panels; ``out_panel`` is how many numbers lie between those of what comes out.

    fp32 weights are read a strip at a time, so that the processor sees where it goes on: steps took twice as long when
    whole parts were read by pieces of their rows.
    """
    height = rows if plan.narrow else STRIP
    for first in range(0, rows, height):
        some, target = min(height, rows - first), out + 4 * LANES * first
        _strip(plan, weights + 4 * first * row, row, some, x, target, out_panel, scratch)


@compiled
def _strip(plan, weights, row, rows, x, out, out_panel, scratch):
    pieces = (row + DEPTH - 1) // DEPTH
    depth = (row + pieces - 1) // pieces
    for start in range(0, row, depth):
        some, more = min(depth, row - start), start > 0
        w, stride, ahead = weights + 4 * start, row, weights + 4 * rows * (row + start)
        if plan.narrow:
            widen(weights, row, rows, start, some, scratch)
            w, stride, ahead = scratch, some, scratch
        panel = 0
        while panel + 2 <= plan.panels:
            inputs, target, done = x + 4 * LANES * (panel * row + start), out + 4 * panel * out_panel, 0
            while done < rows:
                at, to, next_ = w + 4 * done * stride, target + 4 * LANES * done, ahead + 4 * done * some
                if done + 6 <= rows:
                    _tile_6_2(at, stride, inputs, row * LANES, some, to, out_panel, more, next_)
                    done += 6
                elif done + 2 <= rows:
                    _tile_2_2(at, stride, inputs, row * LANES, some, to, out_panel, more, next_)
                    done += 2
                else:
                    _tile_1_2(at, stride, inputs, row * LANES, some, to, out_panel, more, next_)
                    done += 1
            panel += 2
        if panel < plan.panels:
            inputs, target, done = x + 4 * LANES * (panel * row + start), out + 4 * panel * out_panel, 0
            while done < rows:
                at, to, next_ = w + 4 * done * stride, target + 4 * LANES * done, ahead + 4 * done * some
                if done + 12 <= rows:
                    _tile_12_1(at, stride, inputs, 0, some, to, 0, more, next_)
                    done += 12
                elif done + 4 <= rows:
                    _tile_4_1(at, stride, inputs, 0, some, to, 0, more, next_)
                    done += 4
                else:
                    _tile_1_1(at, stride, inputs, 0, some, to, 0, more, next_)
                    done += 1


@compiled
def by_strips(weights, row, rows, x, out):
    """Rows, of which there are as many as a strip has, by one panel of pairs, ``[rows, SIDE]``."""
    units = row // 2
    if rows == 3 * SIDE:
        _strip_3(weights, units, x, units, out)
    elif rows == 2 * SIDE:
        _strip_2(weights, units, x, units, out)
    else:
        _strip_1(weights, units, x, units, out)
