"""The choice of tokens by their scores on a CPU, compiled by numba: what ``drawing.draw`` does, in one pass a sample.

The same numbers, the same three choices, the same margins of doubt; sums are rounded otherwise, by far less than those
margins. There is no top-k here.
"""

import math

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from llamactl.model.drawing import CHOICES, MIX, PATIENCE, STEP, TRIES
from llamactl.model.kernels.plans import DRAW as PLAN
from llamactl.model.kernels.products import compiled, floats, integers
from llamactl.model.kernels.vectors import exponentials, largest, pointer

__all__ = ["PLAN", "work"]
PIECE = 512  # weights that are added up in fp32
_STEP, _SCALE = np.uint64(STEP), 2.0**-53
(_SHIFT_1, _FACTOR_1), (_SHIFT_2, _FACTOR_2) = ((np.uint64(shift), np.uint64(factor)) for shift, factor in MIX)
_LAST, _HIGH = np.uint64(31), np.uint64(11)


@compiled
def doubles(address, length):
    return carray(pointer(address), length, np.float64)


@compiled
def number(key, said, index):
    """One in [0, 1), as ``drawing.numbers``."""
    z = np.uint64(key) + (np.uint64(said) * np.uint64(TRIES) + np.uint64(index)) * _STEP
    z = (z ^ (z >> _SHIFT_1)) * _FACTOR_1
    z = (z ^ (z >> _SHIFT_2)) * _FACTOR_2
    return np.float64((z ^ (z >> _LAST)) >> _HIGH) * _SCALE


@compiled
def among(weights, start, size, count, u, error, scratch):
    """One of ``count`` runs of ``size`` weights by a number in [0, 1), and whether an error could change it."""
    bounds, total = doubles(scratch, count), 0.0
    for place in range(count):
        first = start + place * size
        for i in range(first, min(first + size, len(weights))):
            total += weights[i]
        bounds[place] = total
    found, doubtful = 0, False
    for place in range(count):
        bound = bounds[place] / total
        found += bound <= u
        doubtful |= abs(bound - u) < error * bound * (1 - bound)
    return found, doubtful


@compiled
def one_of_three(weights, side, key, said, attempt, error, scratch):
    """A token, and whether it is in doubt."""
    first = CHOICES * attempt + 1
    size = side * side
    one, a = among(weights, 0, size, side, number(key, said, first), error, scratch)
    two, b = among(weights, one * size, side, side, number(key, said, first + 1), error, scratch)
    start = one * size + two * side
    three, c = among(weights, start, 1, side, number(key, said, first + 2), error, scratch)
    return start + three, a or b or c


@compiled
def likeliest(weights, error):
    """The one of the largest weight, and whether an error could make it another."""
    token, first, second = 0, np.float32(-1), np.float32(-1)
    for i in range(len(weights)):
        if weights[i] > first:
            token, first, second = i, weights[i], first
        elif weights[i] > second:
            second = weights[i]
    return token, second * (1 + error) > first


@compiled
def nucleus(weights, total, top_p, side, key, said, error, scratch):
    """A token that top-p lets in, as ``drawing`` finds it: drawn again until one is."""
    token, doubtful = one_of_three(weights, side, key, said, 0, error, scratch)
    attempt = 0
    while True:
        own, before, close = weights[token], 0.0, 0.0
        low, high = own / (1 + error), own * (1 + error)
        for i in range(len(weights)):
            if weights[i] > own:
                before += weights[i]
            if low < weights[i] < high and weights[i] != own:
                close += weights[i]
        before, close = before / total, close / total
        doubtful |= abs(before - top_p) < close + error * (before + close) * (1 - before + close)
        if before < top_p or before <= 0:
            return token, doubtful
        attempt += 1
        if attempt > PATIENCE:
            for i in range(len(weights)):
                if weights[i] <= own:
                    weights[i] = 0
            doubtful |= close > 0
        token, unsure = one_of_three(weights, side, key, said, attempt, error, scratch)
        doubtful |= unsure


def work(address):
    """A token for each row of scores; where they are no numbers, log p is none.

    ``noise`` is how far rounding may have moved one.
    """
    plan = carray(address, 1)[0]
    vocab, rows = plan.vocab, plan.rows
    side, bounds = plan.side, plan.bounds
    temperatures, keys, said = floats(plan.temperatures, rows), integers(plan.keys, rows), integers(plan.said, rows)
    tokens, log_probs, doubtful = (
        integers(plan.tokens, rows), doubles(plan.log_probs, rows), integers(plan.doubtful, rows),
    )  # fmt: skip
    for row in range(rows):
        at, temperature = plan.logits + 4 * row * vocab, temperatures[row]
        weights = floats(at, vocab)
        greedy = temperature == 0
        if greedy:
            temperature = np.float32(1)
        top, total = largest(at, vocab), 0.0
        for start in range(0, vocab, PIECE):
            total += exponentials(at + 4 * start, min(PIECE, vocab - start), top, np.float32(1) / temperature)
        tokens[row], log_probs[row], doubtful[row] = 0, np.nan, False
        if np.isnan(total):
            continue
        error = min(math.expm1(2 * plan.noise / temperature), 1e30)
        if greedy:
            tokens[row], doubtful[row] = likeliest(weights, error)
        elif plan.top_p == 1:
            tokens[row], doubtful[row] = one_of_three(weights, side, keys[row], said[row], 0, error, bounds)
        else:
            found = nucleus(weights, total, plan.top_p, side, keys[row], said[row], error, bounds)
            tokens[row], doubtful[row] = found
        log_probs[row] = math.log(weights[tokens[row]] / total)
