"""What rows of numbers come to, number by number, compiled by numba: norms, rotation, SwiGLU, slopes, updates.

What torch does in several passes over memory is one here, rounded once at its end where autograd's is at each. Threads
take some rows after the other: what comes out is the same by any number of them. Letters as in ``llama.py``.
"""

from typing import Any

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from llamactl.model.kernels import plans
from llamactl.model.kernels.formulas import LARGEST, SUM, Value, Words, exp, joined, loop, parted, sigmoid
from llamactl.model.kernels.plans import FUSED as PLAN
from llamactl.model.kernels.products import compiled, floats, integers
from llamactl.model.kernels.shared import ticket

__all__ = ["PLAN", "work"]
_ZERO, _ONE = np.float32(0), np.float32(1)


def silu_slopes(a: Value, b: Value, grad: Value) -> tuple[Value, Value]:
    """Gradients of a and b, of silu(a) b."""
    share = sigmoid(a)
    return grad * b * share * (a * (1.0 - share) + 1.0), grad * a * share


def update(
    high: Words, rest: Words, grad: Value, first: Value, second: Value,
    divisor: Value, decay: Value, beta_1: Value, beta_2: Value, rate: Value, root: Value, eps: Value,
) -> tuple[Words | Value, ...]:  # fmt: skip
    """AdamW (Loshchilov and Hutter, 2019): weights in their two parts, and both moments."""
    grad = grad / divisor
    first = first + (grad - first) * (1.0 - beta_1)
    second = second * beta_2 + grad * grad * (1.0 - beta_2)
    new = joined(high, rest) * decay - first * rate / (second.sqrt() * root + eps)
    return *parted(new), first, second


def operations(narrow: bool) -> Any:
    """The operations on some rows, of bf16 if ``narrow``, as a function of (plan, part)."""
    size = 2 if narrow else 4

    def stored(x: Value) -> Value:
        return x.as_bf16() if narrow else x

    def made(formula: Any, reads: str, writes: str = "", over: str = "") -> Any:
        return loop(formula, reads, writes, over, narrow)

    _squares = made(lambda x: [x * x], "s", over=SUM)
    _scaled = made(lambda x, w, inverse: [stored(x * inverse) * stored(w)], "sw", "s")
    _along = made(lambda x, w, grad: [grad * stored(w) * x], "sws", over=SUM)
    _of_norm = made(
        lambda x, w, grad, total, inverse, back: [grad * stored(w) * inverse - x * back, total + grad * x * inverse],
        "swsw", "sw",
    )  # fmt: skip
    _turned = made(lambda x, y, cos, sin, sign: [x * cos + y * sin * sign], "ssww", "s")
    _swiglu = made(lambda a, b: [a * sigmoid(a) * b], "ss", "s")
    _of_swiglu = made(silu_slopes, "sss", "ss")
    _top = made(lambda x: [x], "s", over=LARGEST)
    _powers = made(lambda x, top: [exp(x - top)], "s", over=SUM)
    _shares = made(lambda x, top, inverse: [exp(x - top) * inverse], "s", "s")
    _value = made(lambda x: [x], "s", over=SUM)
    _put = made(lambda x, value: [value], "s", "s")
    _updated = made(update, "hhsww", "hhww")

    @compiled
    def norm(plan, first, stop):
        width, inverse = plan.columns, floats(plan.inverse, plan.rows)
        for row in range(first, stop):
            at = size * row * width
            total = _squares((plan.x + at,), (), width)
            inverse[row] = np.float32(1 / np.sqrt(np.float64(total) / width + plan.eps))
            _scaled((plan.x + at, plan.weight, plan.out + at), (inverse[row],), width)

    @compiled
    def norm_backward(plan, first, stop):
        width, inverse = plan.columns, floats(plan.inverse, plan.rows)
        of_weight = plan.of_weight + 4 * (first // plan.some) * width
        floats(of_weight, width)[:] = _ZERO
        for row in range(first, stop):
            at = size * row * width
            x, grad, of_x = plan.x + at, plan.grad + at, plan.of_x + at
            factor = inverse[row]
            back = _along((x, plan.weight, grad), (), width) * factor * factor * factor / np.float32(width)
            _of_norm((x, plan.weight, grad, of_weight, of_x, of_weight), (factor, back), width)

    @compiled
    def rotate(plan, first, stop):
        width, half = plan.columns, plan.columns // 2
        for row in range(first, stop):
            turn = 4 * (row % plan.table) * width
            cos, sin = plan.cos + turn, plan.sin + turn
            for head in range(plan.heads):
                at = size * (row * plan.heads + head) * width
                x, out, behind = plan.x + at, plan.out + at, size * half
                _turned((x, x + behind, cos, sin, out), (np.float32(plan.sign),), half)
                cos_, sin_ = cos + 4 * half, sin + 4 * half
                _turned((x + behind, x, cos_, sin_, out + behind), (np.float32(plan.sign),), half)

    @compiled
    def slopes(plan, first, stop):
        width, targets, losses = plan.columns, integers(plan.targets, plan.rows), floats(plan.losses, plan.rows)
        for row in range(first, stop):
            x = plan.x + size * row * width
            target = x + size * targets[row]
            score, top = _value((target,), (), 1), _top((x,), (), width)
            total = _powers((x,), (top,), width)
            losses[row] = np.log(total) + top - score
            if plan.learning:
                _shares((x, x), (top, _ONE / total), width)
                _put((target, target), (np.exp(score - top) / total - _ONE,), 1)

    @compiled
    def adamw(plan, first, length):
        high, rest, grad = plan.high + 2 * first, plan.rest + 2 * first, plan.grad + size * first
        one, two = plan.first + 4 * first, plan.second + 4 * first
        given = (
            np.float32(plan.divisor), np.float32(plan.decay), np.float32(plan.beta_1), np.float32(plan.beta_2),
            np.float32(plan.rate), np.float32(plan.root), np.float32(plan.eps),
        )  # fmt: skip
        _updated((high, rest, grad, one, two, high, rest, one, two), given, length)

    @compiled
    def part(plan, first, stop):
        at, length = size * first * plan.columns, (stop - first) * plan.columns
        if plan.operation == plans.NORM:
            norm(plan, first, stop)
        elif plan.operation == plans.NORM_BACKWARD:
            norm_backward(plan, first, stop)
        elif plan.operation == plans.ROTATE:
            rotate(plan, first, stop)
        elif plan.operation == plans.SWIGLU:
            _swiglu((plan.x + at, plan.y + at, plan.out + at), (), length)
        elif plan.operation == plans.SWIGLU_BACKWARD:
            _of_swiglu((plan.x + at, plan.y + at, plan.grad + at, plan.of_x + at, plan.of_y + at), (), length)
        elif plan.operation == plans.SLOPES:
            slopes(plan, first, stop)
        elif plan.operation == plans.SQUARES:
            floats(plan.sums + 4 * (first // plan.some), 1)[0] = _squares((plan.x + at,), (), length)
        else:
            adamw(plan, first * plan.columns, length)

    return part


_narrow, _wide = operations(True), operations(False)


@compiled
def parts(plan):
    """One after the other, until all are taken."""
    while True:
        first = ticket(plan.shared) * plan.some
        if first >= plan.rows:
            return
        stop = min(first + plan.some, plan.rows)
        if plan.narrow:
            _narrow(plan, first, stop)
        else:
            _wide(plan, first, stop)


def work(address: Any) -> None:
    """What each thread does by the plan at an address."""
    parts(carray(address, 1)[0])
