"""A step of decoding on a CPU, compiled by numba: from the newest tokens of n samples to the scores of what follows.

A step is phases one after the other, a phase is parts that do not depend on each other. Threads take parts as they
come to them: one that is late, or not there at all, leaves more to the others, and nobody waits for it.

Activations are panels of fp32 numbers, ``[n / 8, D, 8]``, so that a register holds 8 samples; of one sample alone,
``[1, D, 1]``. Weights are read as they are stored, bf16 as the fp32 numbers that they are. Letters as in ``llama.py``.
"""

import numpy as np
from numba import carray, types  # type: ignore[attr-defined]

from llamactl.model.kernels.plans import DEPTH, DONE, LANES, PART, STEP, WEIGHTS
from llamactl.model.kernels.plans import SEAT as PLAN
from llamactl.model.kernels.products import by_one, by_panels, compiled, floats, integers
from llamactl.model.kernels.shared import count, seen, take, tell
from llamactl.model.kernels.vectors import add, as_float, blend, exponentials, largest, match, pointer, swiglu

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
            narrow = carray(pointer(plan.embeddings + 2 * start), plan.dim, np.uint16)
            for i in range(plan.dim):
                x[i * plan.lanes + lane] = as_float(np.int32(narrow[i]) << np.int32(16))
        else:
            wide = floats(plan.embeddings + 4 * start, plan.dim)
            for i in range(plan.dim):
                x[i * plan.lanes + lane] = wide[i]


@compiled
def norm(plan, number, panel, scratch):
    """RMSNorm of a panel."""
    size = plan.dim * plan.lanes
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
def rotate(x, cos, sin, out):
    """The pairs (i, i + E/2) of a head, as ``llama.rotate``."""
    half = len(x) // 2
    for i in range(half):
        out[i] = x[i] * cos[i] + x[i + half] * sin[i]
        out[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half]


@compiled
def scored(q, keys, width, tokens, scores):
    """Of a query at an address, by keys ``[tokens, E]``."""
    done = 0
    if width % LANES == 0:
        done = tokens // LANES * LANES
        match(q, keys, width, tokens, scores)
    query, out = floats(q, width), floats(scores, tokens)
    for t in range(done, tokens):
        key, total = floats(keys + 4 * t * width, width), _ZERO
        for i in range(width):
            total += query[i] * key[i]
        out[t] = total


@compiled
def mix(p, values, width, tokens, mixed):
    """Add values ``[tokens, E]``, each times its number."""
    if width % (4 * LANES) == 0:
        blend(p, values, width, tokens, mixed)
        return
    factors, out = floats(p, tokens), floats(mixed, width)
    for t in range(tokens):
        value = floats(values + 4 * t * width, width)
        for i in range(width):
            out[i] += factors[t] * value[i]


@compiled
def attend(plan, layer, part, scratch):
    """Keep the newest key and value of a sample's head; attention of the queries that share it."""
    head, sample = part // plan.n, integers(plan.order, plan.n)[part % plan.n]
    width, group, lanes = plan.head_dim, plan.heads // plan.kv_heads, plan.lanes
    panel, lane = sample // lanes, sample % lanes
    prompt, said = integers(plan.prompt, plan.n)[sample], integers(plan.said, plan.n)[sample]
    stem = integers(plan.lane, plan.n)[sample]
    at = integers(plan.kept + 32 * layer, 4)
    keys = at[0] + 4 * (stem * plan.kv_heads + head) * plan.far * width
    values = at[1] + 4 * (stem * plan.kv_heads + head) * plan.far * width
    own_keys = at[2] + 4 * (sample * plan.kv_heads + head) * plan.near * width
    own_values = at[3] + 4 * (sample * plan.kv_heads + head) * plan.near * width
    cos = floats(plan.cos + 4 * (prompt + said) * width, width)
    sin = floats(plan.sin + 4 * (prompt + said) * width, width)

    x, q, mixed = scratch, scratch + 4 * width, scratch + 8 * width
    scores, after = scratch + 12 * width, scratch + 12 * width + 4 * prompt
    wide, heads = floats(x, width), plan.panels * plan.kv_heads * width * lanes
    first = (panel * plan.kv_heads + head) * width * lanes + lane
    k, v = floats(plan.k, heads), floats(plan.v, heads)
    newest = floats(own_values + 4 * said * width, width)
    for i in range(width):
        wide[i], newest[i] = k[first + i * lanes], v[first + i * lanes]
    rotate(wide, cos, sin, floats(own_keys + 4 * said * width, width))

    queries, out = floats(plan.q, group * heads), floats(plan.mixed, group * heads)
    scale = np.float32(np.float64(width) ** -0.5)
    for g in range(group):
        first = (panel * plan.heads + head * group + g) * width * lanes + lane
        for i in range(width):
            wide[i] = queries[first + i * lanes] * scale
        rotate(wide, cos, sin, floats(q, width))
        scored(q, keys, width, prompt, scores)
        scored(q, own_keys, width, said + 1, after)
        tokens = prompt + said + 1
        total = exponentials(scores, tokens, largest(scores, tokens), _ONE)
        sums = floats(mixed, width)
        sums[:] = _ZERO
        mix(scores, values, width, prompt, mixed)
        mix(after, own_values, width, said + 1, mixed)
        inverse = _ONE / total
        for i in range(width):
            out[first + i * lanes] = sums[i] * inverse


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
def multiply(plan, phase, layer, part, scratch):
    """Some rows of a phase's weights by what they are to read, and what is done with that at once."""
    weights, lanes = integers(plan.weights + 56 * layer, 7), plan.lanes
    own, shared = plan.heads * plan.head_dim, plan.kv_heads * plan.head_dim
    x, depth, made, stride = plan.normed, plan.dim, scratch + 4 * WEIGHTS * DEPTH, WEIGHTS * lanes
    if phase == PROJECT:
        rows = rows_of(plan, depth)
        w, total, out = weights[WQ], own, plan.q
        if part >= parts_of(own, rows):
            part -= parts_of(own, rows)
            w, total, out = weights[WK], shared, plan.k
            if part >= parts_of(shared, rows):
                part -= parts_of(shared, rows)
                w, out = weights[WV], plan.v
        made, stride = out + 4 * part * rows * lanes, total * lanes
    elif phase == MIX:
        w, total, x, depth = weights[WO], plan.dim, plan.mixed, own
    elif phase == GATE:
        w, total, stride = weights[W1], plan.ffn, plan.ffn * lanes
        made = plan.gate + 4 * part * rows_of(plan, depth) * lanes
    elif phase == DOWN:
        w, total, x, depth = weights[W2], plan.dim, plan.gate, plan.ffn
    else:
        w, total = plan.output, plan.vocab
        if lanes == 1:
            made = plan.logits + 4 * part * rows_of(plan, depth)
    first = part * rows_of(plan, depth)
    rows = min(rows_of(plan, depth), total - first)

    target = made
    for number in range(2 if phase == GATE else 1):
        if number:
            w, target = weights[W3], made - plan.gate + plan.up
        at = w + first * depth * (2 if plan.narrow else 4)
        if lanes == 1:
            by_one(plan, at, depth, rows, x, target)
        else:
            by_panels(plan, at, depth, rows, x, target, stride, scratch)

    size = rows * lanes
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
def size_of(plan, phase):
    """Parts of a phase."""
    if phase == PROJECT:
        rows = rows_of(plan, plan.dim)
        own, shared = plan.heads * plan.head_dim, plan.kv_heads * plan.head_dim
        return parts_of(own, rows) + 2 * parts_of(shared, rows)
    if phase == ATTEND:
        return plan.n * plan.kv_heads
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
                if phase == ATTEND:
                    attend(plan, layer, part, scratch)
                elif phase in (ATTENTION_NORM, FEED_NORM, LAST_NORM):
                    if phase == ATTENTION_NORM and layer == 0:
                        embed(plan, part)
                    norm(plan, 2 * layer + (phase == FEED_NORM), part, scratch)
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
    for number in range((LAST_NORM - ATTENTION_NORM) * plan.layers + 2):
        layer, phase = number // LAST_NORM, number % LAST_NORM
        if layer == plan.layers:
            phase += LAST_NORM
        announce(plan, phase, layer, size_of(plan, phase))
        if number == 0:
            for other in range(1, plan.threads):
                _post(plan.wake + 64 * other)
        help(plan, thread)
    announce(plan, np.int64(DONE), np.int64(0), np.int64(0))
