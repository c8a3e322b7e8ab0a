"""Attention of the newest token of samples, in a step of decoding: a head of one sample after the other."""

import numpy as np

from llamactl.model.kernels.plans import COLUMNS, LANES, SIDE
from llamactl.model.kernels.products import compiled, fetch_lines, floats, integers, units, up
from llamactl.model.kernels.queries import blend, blend_pairs, match, match_pairs
from llamactl.model.kernels.tiles import highest, powers
from llamactl.model.kernels.vectors import exponentials, largest, narrow

HEADS = 4  # in a part, where keys and values are bf16
_powers = powers(False)
_ZERO, _ONE = np.float32(0), np.float32(1)


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
def kept(plan, layer, number):
    """A head, its sample; keys, values, and how many: of its prompt, and its own but for the newest."""
    head, sample = number // plan.n, integers(plan.order, plan.n)[number % plan.n]
    prompt, said = integers(plan.prompt, plan.n)[sample], integers(plan.said, plan.n)[sample]
    at, width = integers(plan.kept + 32 * layer, 4), (2 if plan.narrow_kept else 4) * plan.head_dim
    far = (integers(plan.lane, plan.n)[sample] * plan.kv_heads + head) * plan.far * width
    near = (sample * plan.kv_heads + head) * plan.near * width
    return head, sample, (at[0] + far, at[1] + far, prompt), (at[2] + near, at[3] + near, said)


@compiled
def attend(plan, layer, part, scratch):
    """Keep the newest key and value of a sample's head; attention of the queries that share it."""
    head, sample, (keys, values, prompt), (own_keys, own_values, said) = kept(plan, layer, part)
    width, group, lanes = plan.head_dim, plan.heads // plan.kv_heads, plan.lanes
    panel, lane = sample // lanes, sample % lanes
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
def attend_pairs(plan, layer, part, scratch):
    """The same of some heads where keys and values are bf16: queries are rounded, too, one sample's after the other's.

    What the next head reads is fetched meanwhile: it is too little for the processor to see where it goes on.
    """
    total = plan.n * plan.kv_heads
    first, stop = part * HEADS, min((part + 1) * HEADS, total)
    foresee(plan, layer, first)
    for number in range(first, stop):
        if number + 1 < stop:
            foresee(plan, layer, number + 1)
        attend_one(plan, layer, number, scratch)


@compiled
def foresee(plan, layer, number):
    """Have what a head of a sample reads fetched."""
    _, _, of_prompt, own = kept(plan, layer, number)
    for keys, values, tokens in (of_prompt, own):
        size = 2 * plan.head_dim * tokens
        fetch_lines(keys, size)
        fetch_lines(values, size)


@compiled
def attend_one(plan, layer, number, scratch):
    """One of them."""
    head, sample, (keys, values, prompt), (own_keys, own_values, said) = kept(plan, layer, number)
    width, group = plan.head_dim, plan.heads // plan.kv_heads
    cos = floats(plan.cos + 4 * (prompt + said) * width, width)
    sin = floats(plan.sin + 4 * (prompt + said) * width, width)
    turned, q, scores = scratch, scratch + 4 * width, scratch + 8 * width
    newest, tokens = 4 * (sample * plan.kv_heads + head) * width, prompt + said + 1
    columns, scale = up(tokens, COLUMNS), np.float32(np.float64(width) ** -0.5)

    rotate(floats(plan.k + newest, width), cos, sin, floats(turned, width))
    narrow(turned, width, own_keys + 2 * said * width)
    narrow(plan.v + newest, width, own_values + 2 * said * width)
    for g in range(group):
        query = (sample * plan.kv_heads + head) * group + g
        rotate(floats(plan.q + 4 * query * width, width), cos, sin, floats(turned, width))
        narrow(turned, width, q)
        match_pairs(q, keys, width, prompt, scores)
        match_pairs(q, own_keys, width, said + 1, scores + 4 * prompt)
        total = _powers(scores, columns, tokens, highest(scores, columns, tokens), scale, scores)
        mixed = floats(turned, width)
        mixed[:] = _ZERO
        blend_pairs(scores, values, width, prompt, turned)
        blend_pairs(scores + 4 * prompt, own_values, width, said + 1, turned)
        for i in range(width):
            mixed[i] /= total
        if plan.pairs:
            narrow(turned, width, q)
            lie, to = units(q, width // 2), (query - sample * plan.heads) * width // 2
            out = units(plan.mixed + 2 * (sample // SIDE) * SIDE * plan.heads * width, plan.heads * width // 2 * SIDE)
            for i in range(width // 2):
                out[(to + i) * SIDE + sample % SIDE] = lie[i]
        else:
            out = floats(plan.mixed + 4 * query * width, width)
            for i in range(width):
                out[i] = mixed[i]
