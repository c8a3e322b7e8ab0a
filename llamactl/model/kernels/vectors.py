"""What numba has no word for, as LLVM's own instructions: products in vector registers.

A panel is the numbers of ``LANES`` samples, one vector for each channel: ``[D, LANES]``. Weights are rows ``[O, D]`` at
an address.
"""

import struct
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from llamactl.model.kernels.plans import LANES, LINE, PAIRS, REGISTER

SUMS = 8  # registers that products of one vector are added up in
AHEAD = 1024  # bytes
BYTES = 64  # of a line of the cache
_FLOAT, _WORD, _HALF = ir.FloatType(), ir.IntType(64), ir.IntType(16)
_VECTOR = ir.VectorType(_FLOAT, LANES)


def load(builder: Any, base: Any, offset: Any, kind: Any, size: int = 4) -> Any:
    """What lies so many numbers of ``size`` bytes behind an address."""
    address = builder.add(base, builder.mul(offset, _WORD(size)))
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=size)


def store(builder: Any, value: Any, base: Any, offset: Any, size: int = 4) -> None:
    """Write numbers of ``size`` bytes."""
    address = builder.add(base, builder.mul(offset, _WORD(size)))
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=size)


def call(builder: Any, name: str, *given: Any) -> Any:
    """An instruction that has forms for vectors and for a number."""
    kind = given[0].type
    form = f"llvm.{name}.{f'v{kind.count}' if isinstance(kind, ir.VectorType) else ''}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * len(given)), form)
    return builder.call(function, given)


def madd(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, fused where there is an instruction for it."""
    return call(builder, "fmuladd", a, b, c)


def spread(builder: Any, value: Any) -> Any:
    """A number in all lanes."""
    single = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(single, ir.Constant(_VECTOR, ir.Undefined), order)


def prefetch(builder: Any, address: Any, write: bool = False, near: bool = True) -> None:
    """Have memory fetched that is soon to be read, or written to, as far as the first cache if ``near``.

    It may be nobody's.
    """
    flag = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, flag, flag, flag])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, cgutils.voidptr_t), flag(int(write)), flag(2 + near), flag(1)])


def _added(builder: Any, first: Any, lanes: Any) -> Any:
    """A number and those of a vector."""
    kind = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
    reduce = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fadd.v8f32")
    return builder.call(reduce, (first, lanes), fastmath=("reassoc",))


def registers(builder: Any, kind: Any, count: int, value: float = 0.0) -> list[Any]:
    """So many, all of a number."""
    return [cgutils.alloca_once_value(builder, number(kind, value)) for _ in range(count)]


def tile(rows: int, panels: int) -> Any:
    """A product of fp32 rows and panels: (w, row, x, panel, depth, out, out_panel, add, ahead).

    ``w`` and ``x`` are addresses, ``row`` and the panels numbers from one to the next, ``depth`` is D. What comes out
    is panels ``[rows, LANES]``, to which it is added if ``add``. As many numbers as ``w`` has are asked for ``ahead``.
    """

    @intrinsic
    def product(
        typing: Any, w: Any, row: Any, x: Any, panel: Any, depth: Any, out: Any, out_panel: Any, add: Any, ahead: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            w, row, x, panel, depth, out, out_panel, add, ahead = given
            sums = registers(builder, _VECTOR, rows * panels)

            def more(k: Any) -> None:
                """Add the products of a channel."""
                at = builder.mul(k, _WORD(LANES))
                inputs = [
                    load(builder, x, builder.add(builder.mul(panel, _WORD(p)), at), _VECTOR) for p in range(panels)
                ]
                for r in range(rows):
                    one = load(builder, w, builder.add(builder.mul(row, _WORD(r)), k), _FLOAT)
                    weight = spread(builder, one)
                    for p, values in enumerate(inputs):
                        sum_ = sums[r * panels + p]
                        builder.store(madd(builder, weight, values, builder.load(sum_)), sum_)

            lines = builder.udiv(depth, _WORD(LINE))
            with cgutils.for_range(builder, lines, intp=_WORD) as line:
                first = builder.mul(line.index, _WORD(LINE))
                for number in range(rows):
                    place = builder.add(builder.mul(line.index, _WORD(rows)), _WORD(number))
                    prefetch(builder, builder.add(ahead, builder.mul(place, _WORD(4 * LINE))))
                with cgutils.for_range(builder, _WORD(LINE), intp=_WORD) as loop:
                    more(builder.add(first, loop.index))
            with cgutils.for_range(builder, depth, start=builder.mul(lines, _WORD(LINE)), intp=_WORD) as loop:
                more(loop.index)
            places = [
                builder.add(builder.mul(out_panel, _WORD(p)), _WORD(r * LANES))
                for r in range(rows)
                for p in range(panels)
            ]
            with builder.if_then(builder.icmp_signed("!=", add, _WORD(0))):
                for place, sum_ in zip(places, sums, strict=True):
                    builder.store(builder.fadd(load(builder, out, place, _VECTOR), builder.load(sum_)), sum_)
            for place, sum_ in zip(places, sums, strict=True):
                store(builder, builder.load(sum_), out, place)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return product


def dot(narrow: bool) -> Any:
    """Products of rows, of bf16 if ``narrow``, and one vector: (w, row, x, rows, out).

    One row after the other, as they lie in memory, and asked for ``AHEAD`` bytes before they are needed: nothing else
    is waited for. (Four rows at once were read half as fast, 14 against 30 GB/s.)
    """
    size = 2 if narrow else 4

    def weights(builder: Any, w: Any, offset: Any, kind: Any) -> Any:
        if not narrow:
            return load(builder, w, offset, kind)
        return widened(builder, w, offset, kind)

    @intrinsic
    def product(typing: Any, w: Any, row: Any, x: Any, rows: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            w, row, x, rows, out = given
            sums, rest = registers(builder, _VECTOR, SUMS), registers(builder, _FLOAT, 1)[0]

            def more(first: Any, at: Any, sum_: Any, kind: Any) -> None:
                """Add products of a kind's width."""
                values = weights(builder, w, builder.add(first, at), kind), load(builder, x, at, kind)
                builder.store(madd(builder, *values, builder.load(sum_)), sum_)

            whole, most = builder.udiv(row, _WORD(LANES)), builder.udiv(row, _WORD(SUMS * LANES))
            with cgutils.for_range(builder, rows, intp=_WORD) as line:
                first = builder.mul(line.index, row)
                for sum_ in (*sums, rest):
                    builder.store(ir.Constant(sum_.allocated_type, None), sum_)
                with cgutils.for_range(builder, most, intp=_WORD) as loop:
                    block = builder.mul(loop.index, _WORD(SUMS * LANES))
                    for line_of_cache in range(0, SUMS * LANES * size, 64):
                        here = builder.mul(builder.add(first, block), _WORD(size))
                        prefetch(builder, builder.add(w, builder.add(here, _WORD(AHEAD + line_of_cache))))
                    for number, sum_ in enumerate(sums):
                        more(first, builder.add(block, _WORD(number * LANES)), sum_, _VECTOR)
                with cgutils.for_range(builder, whole, start=builder.mul(most, _WORD(SUMS)), intp=_WORD) as loop:
                    more(first, builder.mul(loop.index, _WORD(LANES)), sums[0], _VECTOR)
                with cgutils.for_range(builder, row, start=builder.mul(whole, _WORD(LANES)), intp=_WORD) as loop:
                    more(first, loop.index, rest, _FLOAT)
                found = [builder.load(sum_) for sum_ in sums]
                while len(found) > 1:
                    found = [builder.fadd(*pair) for pair in zip(found[::2], found[1::2], strict=True)]
                store(builder, _added(builder, builder.load(rest), found[0]), out, line.index)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return product


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    """An address as what ``numba.carray`` takes."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def as_float(typing: Any, bits: Any) -> Any:
    """An fp32 number by its bits."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.bitcast(given[0], _FLOAT)

    return types.float32(types.int32), generate


@intrinsic
def fetch(typing: Any, address: Any) -> Any:
    """Have a line of memory fetched."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        prefetch(builder, given[0], near=False)
        return context.get_dummy_value()

    return types.void(types.int64), generate


# -- numbers one after the other: eight at a time, the last ones singly


def number(kind: Any, value: float) -> Any:
    """An fp32 constant."""
    exact = struct.unpack("f", struct.pack("f", value))[0]
    return ir.Constant(kind, [exact] * kind.count if isinstance(kind, ir.VectorType) else exact)


def _filled(builder: Any, value: Any, kind: Any) -> Any:
    return spread(builder, value) if kind == _VECTOR else value


def _each(builder: Any, length: Any, body: Callable[[Any, Any], None]) -> None:
    """``body(place, kind)`` for all places."""
    whole = builder.udiv(length, _WORD(LANES))
    with cgutils.for_range(builder, whole, intp=_WORD) as loop:
        body(builder.mul(loop.index, _WORD(LANES)), _VECTOR)
    with cgutils.for_range(builder, length, start=builder.mul(whole, _WORD(LANES)), intp=_WORD) as loop:
        body(loop.index, _FLOAT)


def exp(builder: Any, x: Any) -> Any:
    """e^x to two units in the last place; 0 below -87, at most e^88 (Moshier's Cephes)."""
    kind = x.type
    low, high = number(kind, -87.0), number(kind, 88.0)
    small = builder.fcmp_ordered("<", x, low)
    bounded = builder.select(builder.fcmp_ordered(">", x, high), high, x)
    if not _whole(kind):
        bounded = builder.select(small, low, bounded)
    n = call(builder, "floor", madd(builder, bounded, number(kind, 1.44269504), number(kind, 0.5)))
    rest = madd(builder, n, number(kind, -0.693359375), bounded)
    rest = madd(builder, n, number(kind, 2.12194440e-4), rest)
    y = number(kind, 1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = madd(builder, y, rest, number(kind, factor))
    y = madd(builder, builder.fmul(y, rest), rest, builder.fadd(rest, number(kind, 1.0)))
    return builder.select(small, number(kind, 0.0), _scaled(builder, y, n))


def _scaled(builder: Any, y: Any, n: Any) -> Any:
    """y 2^n."""
    kind = y.type
    if _whole(kind):
        return _of_register(builder, "mask.scalef.ps.512", y, n, y, ir.IntType(16)(-1), ir.IntType(32)(4))
    words = words_of(kind, 32)
    of_nan = ir.Constant(words, None)  # whose integer would be anything; y has it already
    whole = builder.select(builder.fcmp_unordered("uno", y, y), of_nan, builder.fptosi(n, words))
    return builder.fmul(y, builder.bitcast(builder.shl(builder.add(whole, same(words, 127)), same(words, 23)), kind))


def _whole(kind: Any) -> bool:
    """Whether it is a register of AVX-512, which has instructions of its own."""
    return REGISTER == 16 and isinstance(kind, ir.VectorType) and kind.count == REGISTER


def _of_register(builder: Any, name: str, *given: Any) -> Any:
    """One of those."""
    function = ir.FunctionType(given[0].type, [one.type for one in given])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.x86.avx512.{name}"), given)


@intrinsic
def widen(typing: Any, source: Any, length: Any, out: Any) -> Any:
    """bf16 numbers as fp32 ones."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        source, length, out = given

        def replace(place: Any, kind: Any) -> None:
            store(builder, widened(builder, source, place, kind), out, place)

        _each(builder, length, replace)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def narrow(typing: Any, source: Any, length: Any, out: Any) -> Any:
    """fp32 numbers as the nearest bf16 ones; what is no number stays none."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        source, length, out = given

        def replace(place: Any, kind: Any) -> None:
            store_halved(builder, load(builder, source, place, kind), out, place)

        _each(builder, length, replace)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def words_of(kind: Any, size: int) -> Any:
    """Integers of so many bits, as many as a kind has numbers."""
    return ir.VectorType(ir.IntType(size), kind.count) if isinstance(kind, ir.VectorType) else ir.IntType(size)


def same(words: Any, value: int) -> Any:
    return ir.Constant(words, [value] * words.count if isinstance(words, ir.VectorType) else value)


class Half(ir.Type):  # type: ignore[misc]
    """A bf16 number, for which llvmlite has no word."""

    def _to_string(self) -> str:
        return "bfloat"


def widened(builder: Any, base: Any, offset: Any, kind: Any) -> Any:
    """bf16 numbers behind an address as a kind's fp32 ones."""
    return wide(builder, load(builder, base, offset, words_of(kind, 16), 2), kind)


def wide(builder: Any, halves: Any, kind: Any) -> Any:
    """bf16 numbers, by their bits, as fp32 ones."""
    words = words_of(kind, 32)
    return builder.bitcast(builder.shl(builder.zext(halves, words), same(words, 16)), kind)


def halved(builder: Any, value: Any) -> Any:
    """The bits of the bf16 numbers nearest to fp32 ones; of what is no number, those of NaN."""
    words, bits = words_of(value.type, 32), words_of(value.type, 16)
    if PAIRS and isinstance(value.type, ir.VectorType) and value.type.count == REGISTER:  # by an instruction
        return builder.bitcast(builder.fptrunc(value, ir.VectorType(Half(), REGISTER)), bits)
    upper = nearest(builder, builder.bitcast(value, words))
    kept = builder.select(builder.fcmp_unordered("uno", value, value), same(words, 0x7FC0), upper)
    return builder.trunc(kept, bits)


def nearest(builder: Any, bits: Any) -> Any:
    """The upper halves of fp32 numbers, by their bits, rounded; of two that are as near the even one."""
    words = bits.type
    half = same(words, 16)
    odd = builder.and_(builder.lshr(bits, half), same(words, 1))
    return builder.lshr(builder.add(builder.add(bits, same(words, 0x7FFF)), odd), half)


def joined(builder: Any, low: Any, high: Any) -> Any:
    """Registers of bf16 numbers, by their bits, as units of two: the first ones lower."""
    units = ir.VectorType(ir.IntType(32), low.type.count)
    return builder.or_(builder.zext(low, units), builder.shl(builder.zext(high, units), same(units, 16)))


def store_halved(builder: Any, value: Any, base: Any, offset: Any) -> None:
    """Write the nearest bf16 numbers."""
    store(builder, halved(builder, value), base, offset, 2)


def larger(builder: Any, a: Any, b: Any) -> Any:
    """The larger of two; the other one, if the first is none."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def largest(typing: Any, x: Any, length: Any) -> Any:
    """The largest of some numbers, of which NaN is none."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        x, length = given
        kinds = (_VECTOR, _FLOAT)
        most = {kind: registers(builder, kind, 1, -3.0e38)[0] for kind in kinds}

        def look(place: Any, kind: Any) -> None:
            builder.store(larger(builder, load(builder, x, place, kind), builder.load(most[kind])), most[kind])

        _each(builder, length, look)
        found = builder.load(most[_FLOAT])
        for lane in range(LANES):
            one = builder.extract_element(builder.load(most[_VECTOR]), ir.Constant(ir.IntType(32), lane))
            found = larger(builder, one, found)
        return found

    return types.float32(types.int64, types.int64), generate


@intrinsic
def exponentials(typing: Any, x: Any, length: Any, shift: Any, scale: Any) -> Any:
    """exp((x - shift) scale) in the place of x; their sum."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        x, length, shift, scale = given
        kinds = (_VECTOR, _FLOAT)
        sums = {kind: registers(builder, kind, 1)[0] for kind in kinds}

        def replace(place: Any, kind: Any) -> None:
            moved = builder.fsub(load(builder, x, place, kind), _filled(builder, shift, kind))
            y = exp(builder, builder.fmul(moved, _filled(builder, scale, kind)))
            store(builder, y, x, place)
            builder.store(builder.fadd(builder.load(sums[kind]), y), sums[kind])

        _each(builder, length, replace)
        return _added(builder, *(builder.load(sums[kind]) for kind in (_FLOAT, _VECTOR)))

    return types.float32(types.int64, types.int64, types.float32, types.float32), generate


def reciprocal(builder: Any, x: Any) -> Any:
    """1 / x, to a unit in the last place: an estimate that is made exact takes less than a division."""
    one = number(x.type, 1.0)
    if not _whole(x.type):
        return builder.fdiv(one, x)
    y = _of_register(builder, "rcp14.ps.512", x, x, ir.IntType(16)(-1))
    return madd(builder, y, madd(builder, builder.fneg(x), y, one), y)


def sigmoid(builder: Any, x: Any) -> Any:
    """1 / (1 + e^-x)."""
    return reciprocal(builder, builder.fadd(exp(builder, builder.fneg(x)), number(x.type, 1.0)))


def silu_times(builder: Any, x: Any, y: Any) -> Any:
    """silu(x) y."""
    return builder.fmul(builder.fmul(x, sigmoid(builder, x)), y)


@intrinsic
def swiglu(typing: Any, a: Any, b: Any, length: Any) -> Any:
    """silu(a) b in the place of a."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        a, b, length = given

        def replace(place: Any, kind: Any) -> None:
            store(builder, silu_times(builder, *(load(builder, base, place, kind) for base in (a, b))), a, place)

        _each(builder, length, replace)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def add(typing: Any, a: Any, b: Any, length: Any) -> Any:
    """a + b in the place of a."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        a, b, length = given

        def replace(place: Any, kind: Any) -> None:
            store(builder, builder.fadd(load(builder, a, place, kind), load(builder, b, place, kind)), a, place)

        _each(builder, length, replace)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate
