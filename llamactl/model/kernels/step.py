"""A step of decoding on a CPU, compiled by numba: from the newest tokens of n samples to the scores of what follows.

A step is phases one after the other, a phase is parts that do not depend on each other. Threads take parts as they
come to them: one that is late, or not there at all, leaves more to the others, and nobody waits for it.

Activations are panels of fp32 numbers, ``[n / 8, D, 8]``, so that a register holds 8 samples; of one sample alone,
``[1, D, 1]``. Weights are read as they are stored, bf16 as the fp32 numbers that they are. Where those are multiplied
with bf16 numbers (``strips``) panels are of 16 samples. Letters as in ``llama.py``.
"""

import numpy as np
from numba import carray, types  # type: ignore[attr-defined]

from llamactl.model.kernels.heads import HEADS, attend, attend_pairs
from llamactl.model.kernels.matmul import turn
from llamactl.model.kernels.plans import DEPTH, DONE, LANES, PART, SIDE, STEP, WEIGHTS
from llamactl.model.kernels.plans import SEAT as PLAN
from llamactl.model.kernels.products import by_one, by_panels, by_strips, compiled, floats, integers
from llamactl.model.kernels.shared import count, seen, take, tell
from llamactl.model.kernels.squares import begin_squares, end_squares
from llamactl.model.kernels.strips import gated, normed
from llamactl.model.kernels.vectors import add, as_float, pointer, swiglu

__all__ = ["PLAN", "work"]
PATIENCE = 3000  # looks at what another thread does before the processor is offered to others
ATTENTION_NORM, PROJECT, ATTEND, MIX, FEED_NORM, GATE, DOWN, LAST_NORM, SCORE = range(9)  # phases
WQ, WK, WV, WO, W1, W2, W3 = range(7)

_yield = types.ExternalFunction("sched_yield", types.int32())
_wait = types.ExternalFunction("sem_wait", types.int32(types.intp))
_post = types.ExternalFunction("sem_post", types.int32(types.intp))

_ZERO, _ONE = np.float32(0), np.float32(1)


# -- phases, a part each


@compiled
def embed(plan, panel):
    """Rows of the embeddings into a panel; 0 where it has no sample."""
    x = floats(plan.x + 4 * panel * plan.dim * plan.lanes, plan.dim * plan.lanes)
    tokens = integers(plan.tokens, plan.n)
    for lane in range(plan.lanes):
        sample = panel * plan.lanes + lane
        if sample >= plan.n:
            x[lane :: plan.lanes] = _ZERO
            continue
        start = tokens[sample] * plan.dim
        if plan.narrow:
            halves = carray(pointer(plan.embeddings + 2 * start), plan.dim, np.uint16)
            for i in range(plan.dim):
                x[i * plan.lanes + lane] = as_float(np.int32(halves[i]) << np.int32(16))
        else:
            wide = floats(plan.embeddings + 4 * start, plan.dim)
            for i in range(plan.dim):
                x[i * plan.lanes + lane] = wide[i]


@compiled
def norm(plan, number, panel, scratch):
    """RMSNorm of a panel."""
    size = plan.dim * plan.lanes
    if plan.pairs:
        weight = plan.norms + 4 * number * plan.dim
        normed(plan.x + 4 * panel * size, weight, plan.dim, np.float32(plan.eps), plan.normed + 2 * panel * size)
        return
    x, out = floats(plan.x + 4 * panel * size, size), floats(plan.normed + 4 * panel * size, size)
    scale = floats(plan.norms + 4 * number * plan.dim, plan.dim)
    if plan.lanes == 1:
        total = 0.0
        for i in range(plan.dim):
            total += x[i] * x[i]
        inverse = np.float32(1 / np.sqrt(total / plan.dim + plan.eps))
        for i in range(plan.dim):
            out[i] = x[i] * inverse * scale[i]
        return
    totals = floats(scratch, LANES)
    totals[:] = _ZERO
    for i in range(plan.dim):
        for lane in range(LANES):
            totals[lane] += x[i * LANES + lane] * x[i * LANES + lane]
    for lane in range(LANES):
        totals[lane] = np.float32(1 / np.sqrt(np.float64(totals[lane]) / plan.dim + plan.eps))
    for i in range(plan.dim):
        for lane in range(LANES):
            out[i * LANES + lane] = x[i * LANES + lane] * totals[lane] * scale[i]


@compiled
def part(depth):
    return max(16, PART // depth // 4 * 4)


@compiled
def rows_of(plan, depth):
    """Rows of weights in a part: of one sample, as many as make it worth a thread's while."""
    return WEIGHTS if plan.lanes > 1 else part(depth)


@compiled
def parts_of(total, rows):
    return (total + rows - 1) // rows


@compiled
def operands(plan, phase, layer, part):
    """What a part of a phase multiplies: weights, and how many rows those have; what with, and how much that is; the
    part's first row, and how many; where q, k or v are to be.
    """
    weights, out = integers(plan.weights + 56 * layer, 7), 0
    own, shared = plan.heads * plan.head_dim, plan.kv_heads * plan.head_dim
    w, total, x, depth = plan.output, plan.vocab, plan.normed, plan.dim
    if phase == PROJECT:
        rows = rows_of(plan, depth)
        w, total, out = weights[WQ], own, plan.q
        if part >= parts_of(own, rows):
            part -= parts_of(own, rows)
            w, total, out = weights[WK], shared, plan.k
            if part >= parts_of(shared, rows):
                part -= parts_of(shared, rows)
                w, out = weights[WV], plan.v
    elif phase == MIX:
        w, total, x, depth = weights[WO], plan.dim, plan.mixed, own
    elif phase == GATE:
        w, total = weights[W1], plan.ffn
    elif phase == DOWN:
        w, total, x, depth = weights[W2], plan.dim, plan.gate, plan.ffn
    first = part * rows_of(plan, depth)
    return w, total, x, depth, first, min(rows_of(plan, depth), total - first), out


@compiled
def multiply(plan, phase, layer, part, scratch):
    """Some rows of a phase's weights by what they are to read, and what is done with that at once."""
    w, total, x, depth, first, rows, out = operands(plan, phase, layer, part)
    lanes, size = plan.lanes, rows * plan.lanes
    made, stride = scratch + 4 * WEIGHTS * DEPTH, WEIGHTS * lanes
    if phase == PROJECT:
        made, stride = out + 4 * first * lanes, total * lanes
    elif phase == GATE:
        made, stride = plan.gate + 4 * first * lanes, total * lanes
    elif phase == SCORE and lanes == 1:
        made = plan.logits + 4 * first

    target = made
    for number in range(2 if phase == GATE else 1):
        if number:
            w, target = integers(plan.weights + 56 * layer, 7)[W3], made - plan.gate + plan.up
        at = w + first * depth * (2 if plan.narrow else 4)
        if lanes == 1:
            by_one(plan, at, depth, rows, x, target)
        else:
            by_panels(plan, at, depth, rows, x, target, stride, scratch)

    if phase == GATE:
        for panel in range(plan.panels):
            behind = 4 * panel * stride
            swiglu(made + behind, target + behind, size)
    elif phase in (MIX, DOWN):
        for panel in range(plan.panels):
            add(plan.x + 4 * (panel * plan.dim + first) * lanes, made + 4 * panel * stride, size)
    elif phase == SCORE and lanes > 1:
        for sample in range(plan.n):
            new = floats(made + 4 * (sample // LANES) * stride, size)
            out = floats(plan.logits + 4 * (sample * plan.vocab + first), rows)
            for i in range(rows):
                out[i] = new[i * LANES + sample % LANES]


@compiled
def multiply_pairs(plan, phase, layer, part, scratch):
    """The same of pairs, one panel after the other."""
    w, total, x, depth, first, rows, out = operands(plan, phase, layer, part)
    begin_squares(depth // 2 % SIDE)
    at, made, more = 2 * first * depth, scratch, scratch + 4 * rows * SIDE
    for panel in range(plan.panels):
        inputs, behind = x + 2 * panel * depth * SIDE, (panel * total + first) * SIDE
        by_strips(w + at, depth, rows, inputs, made)
        if phase == GATE:
            by_strips(integers(plan.weights + 56 * layer, 7)[W3] + at, depth, rows, inputs, more)
            gated(made, more, rows, plan.gate + 2 * behind)
        elif phase in (MIX, DOWN):
            add(plan.x + 4 * behind, made, rows * SIDE)
        else:
            by_sample(plan, panel, made, rows, (plan.logits if phase == SCORE else out) + 4 * first, total, more)


@compiled
def by_sample(plan, panel, made, rows, out, total, turned):
    """A panel's numbers, one sample after the other: ``[n, total]``, some columns of it."""
    for row in range(0, rows, SIDE):
        turn(made + 4 * row * SIDE, 4 * SIDE, turned)
        for sample in range(panel * SIDE, min((panel + 1) * SIDE, plan.n)):
            new, to = floats(turned + 4 * (sample % SIDE) * SIDE, SIDE), floats(out + 4 * (sample * total + row), SIDE)
            for i in range(SIDE):
                to[i] = new[i]


@compiled
def size_of(plan, phase):
    """Parts of a phase."""
    if phase == PROJECT:
        rows = rows_of(plan, plan.dim)
        own, shared = plan.heads * plan.head_dim, plan.kv_heads * plan.head_dim
        return parts_of(own, rows) + 2 * parts_of(shared, rows)
    if phase == ATTEND:
        return parts_of(plan.n * plan.kv_heads, HEADS if plan.narrow_kept else 1)
    if phase == MIX:
        return parts_of(plan.dim, rows_of(plan, plan.heads * plan.head_dim))
    if phase == GATE:
        return parts_of(plan.ffn, rows_of(plan, plan.dim))
    if phase == DOWN:
        return parts_of(plan.dim, rows_of(plan, plan.ffn))
    if phase == SCORE:
        return parts_of(plan.vocab, rows_of(plan, plan.dim))
    return plan.panels


# -- threads

# A ticket has the number of its phase, how many parts that has, and which is next. In one word: who takes a part of the
# ticket seen knows that the phase is still under way, and so that what is said of it was not yet overwritten.
BITS = 20
MASK = (1 << BITS) - 1


@compiled
def announce(plan, phase, layer, parts):
    """Begin a phase, once the one before is done."""
    plan.phase, plan.layer = phase, layer
    tell(plan.done, 0)
    tell(plan.ticket, (((seen(plan.ticket) >> 2 * BITS) + 1) << 2 * BITS) | (parts << BITS))


@compiled
def help(plan, thread):
    """Take parts as they come; the first thread to the end of a phase, the others to the end of the step."""
    looks = 0
    while True:
        ticket = seen(plan.ticket)
        part, parts = ticket & MASK, (ticket >> BITS) & MASK
        phase, layer = plan.phase, plan.layer  # those of the ticket, if it can be taken
        if thread >= plan.threads:  # woken for a step before, which had more of them
            return
        if part < parts:
            if take(plan.ticket, ticket):
                scratch = plan.scratch + 4 * thread * plan.room
                if phase == ATTEND and plan.narrow_kept:
                    attend_pairs(plan, layer, part, scratch)
                elif phase == ATTEND:
                    attend(plan, layer, part, scratch)
                elif phase in (ATTENTION_NORM, FEED_NORM, LAST_NORM):
                    if phase == ATTENTION_NORM and layer == 0:
                        embed(plan, part)
                    norm(plan, 2 * layer + (phase == FEED_NORM), part, scratch)
                elif plan.pairs:
                    multiply_pairs(plan, phase, layer, part, scratch)
                else:
                    multiply(plan, phase, layer, part, scratch)
                count(plan.done)
                looks = 0
        elif phase == DONE or (thread == 0 and seen(plan.done) == parts):
            return
        else:
            looks += 1
            if looks > PATIENCE:
                _yield()


def work(address):
    """A step, by the first thread; by the others, whatever they can help with, for as long as the process lives."""
    seat = carray(address, 1)[0]
    plan, thread = carray(pointer(seat.plan), 1, STEP)[0], seat.thread
    while thread > 0:
        _wait(plan.wake + 64 * thread)
        help(plan, thread)
        end_squares()
    for number in range((LAST_NORM - ATTENTION_NORM) * plan.layers + 2):
        layer, phase = number // LAST_NORM, number % LAST_NORM
        if layer == plan.layers:
            phase += LAST_NORM
        announce(plan, phase, layer, size_of(plan, phase))
        if number == 0:
            for other in range(1, plan.threads):
                _post(plan.wake + 64 * other)
        help(plan, thread)
    end_squares()
    announce(plan, np.int64(DONE), np.int64(0), np.int64(0))
