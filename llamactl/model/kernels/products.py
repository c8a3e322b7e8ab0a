"""Products of weights with the numbers of one sample, or with panels of eight."""

from typing import Any

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]

from llamactl.model.kernels import vectors
from llamactl.model.kernels.plans import DEPTH, LANES
from llamactl.model.kernels.vectors import pointer

OPTIONS: Any = {"error_model": "numpy", "boundscheck": False}
jit: Any = njit  # has no types for what it is given
compiled = jit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)  # a part of a kernel

_tile_6_2, _tile_2_2, _tile_1_2 = vectors.tile(6, 2), vectors.tile(2, 2), vectors.tile(1, 2)
_tile_12_1, _tile_4_1, _tile_1_1 = vectors.tile(12, 1), vectors.tile(4, 1), vectors.tile(1, 1)
_dot_wide, _dot_narrow = vectors.dot(False), vectors.dot(True)


@compiled
def floats(address, length):
    """Numbers at an address."""
    return carray(pointer(address), length, np.float32)


@compiled
def integers(address, length):
    return carray(pointer(address), length, np.int64)


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
    """Rows by all panels; ``out_panel`` is how many numbers lie between those of what comes out."""
    pieces = (row + DEPTH - 1) // DEPTH
    depth = (row + pieces - 1) // pieces
    for start in range(0, row, depth):
        some, more = min(depth, row - start), start > 0
        w, stride = weights + 4 * start, row
        if plan.narrow:
            widen(weights, row, rows, start, some, scratch)
            w, stride = scratch, some
        panel = 0
        while panel + 2 <= plan.panels:
            inputs, target, done = x + 4 * LANES * (panel * row + start), out + 4 * panel * out_panel, 0
            while done + 6 <= rows:
                _tile_6_2(
                    w + 4 * done * stride, stride, inputs, row * LANES, some, target + 4 * LANES * done, out_panel, more
                )
                done += 6
            while done + 2 <= rows:
                _tile_2_2(
                    w + 4 * done * stride, stride, inputs, row * LANES, some, target + 4 * LANES * done, out_panel, more
                )
                done += 2
            if done < rows:
                _tile_1_2(
                    w + 4 * done * stride, stride, inputs, row * LANES, some, target + 4 * LANES * done, out_panel, more
                )
            panel += 2
        if panel < plan.panels:
            inputs, target, done = x + 4 * LANES * (panel * row + start), out + 4 * panel * out_panel, 0
            while done + 12 <= rows:
                _tile_12_1(w + 4 * done * stride, stride, inputs, 0, some, target + 4 * LANES * done, 0, more)
                done += 12
            while done + 4 <= rows:
                _tile_4_1(w + 4 * done * stride, stride, inputs, 0, some, target + 4 * LANES * done, 0, more)
                done += 4
            while done < rows:
                _tile_1_1(w + 4 * done * stride, stride, inputs, 0, some, target + 4 * LANES * done, 0, more)
                done += 1
