"""Formulas of fp32 numbers, in Python, as loops over numbers in memory: LLVM's own instructions, a register at a time.

``loop`` makes of a formula what numba calls. What lies in memory is fp32, or bf16 that is read and written as fp32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from llamactl.model.kernels import vectors
from llamactl.model.kernels.plans import REGISTER
from llamactl.model.kernels.tiles import filled, reduced
from llamactl.model.kernels.vectors import number

_FLOAT, _WORD = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, REGISTER)
_LOWEST = -3.0e38
ABREAST = 4  # registers that do not wait for each other
SUM, LARGEST = "fadd", "fmax"  # what becomes of a formula's last value over a loop


class Value:
    """A number, or a register of them; products and sums of it may be rounded as one."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def _with(self, name: str, other: Any, turned: bool = False) -> Self:
        pair = [self.value, other.value if isinstance(other, Value) else number(self.value.type, other)]
        operation = getattr(self.builder, name)
        return type(self)(self.builder, operation(*(reversed(pair) if turned else pair), flags=("contract",)))

    def __add__(self, other: Any) -> Self:
        return self._with("fadd", other)

    def __sub__(self, other: Any) -> Self:
        return self._with("fsub", other)

    def __rsub__(self, other: Any) -> Self:
        return self._with("fsub", other, turned=True)

    def __mul__(self, other: Any) -> Self:
        return self._with("fmul", other)

    def __truediv__(self, other: Any) -> Self:
        return self._with("fdiv", other)

    def larger(self, other: Self) -> Self:
        """The larger of two; the other one, if this one is none."""
        return type(self)(self.builder, vectors.larger(self.builder, self.value, other.value))

    def sqrt(self) -> Self:
        """Its root."""
        return type(self)(self.builder, vectors.call(self.builder, "sqrt", self.value))

    def as_bf16(self) -> Self:
        """Rounded to the nearest."""
        halves = vectors.halved(self.builder, self.value)
        return type(self)(self.builder, vectors.wide(self.builder, halves, self.value.type))


def exp(x: Value) -> Value:
    """e^x."""
    return Value(x.builder, vectors.exp(x.builder, x.value))


def sigmoid(x: Value) -> Value:
    """1 / (1 + e^-x)."""
    return Value(x.builder, vectors.sigmoid(x.builder, x.value))


class Words(NamedTuple):
    """Integers of 16 bits, in 32."""

    builder: Any
    bits: Any


def joined(high: Words, rest: Words) -> Value:
    """The fp32 numbers that ``parted`` has made of them."""
    builder, kind = high.builder, high.bits.type
    half = vectors.same(kind, 16)
    signed = builder.ashr(builder.shl(rest.bits, half), half)
    return Value(builder, builder.bitcast(builder.add(builder.shl(high.bits, half), signed), _floats(kind)))


def parted(x: Value) -> tuple[Words, Words]:
    """fp32 numbers as the nearest bf16 ones, and how many steps of fp32 are left to each.

    Of two that are as near it is the even one; then those steps are one more than 16 bits can tell, and one is lost.
    """
    builder, kind = x.builder, vectors.words_of(x.value.type, 32)
    bits, half = builder.bitcast(x.value, kind), vectors.same(kind, 16)
    high = vectors.nearest(builder, bits)
    rest, most = builder.sub(bits, builder.shl(high, half)), vectors.same(kind, 0x7FFF)
    rest = builder.select(builder.icmp_signed(">", rest, most), most, rest)
    return Words(builder, high), Words(builder, rest)


def _floats(words: Any) -> Any:
    return ir.VectorType(_FLOAT, words.count) if isinstance(words, ir.VectorType) else _FLOAT


def loop(formula: Callable[..., Any], reads: str, writes: str = "", over: str = "", narrow: bool = False) -> Any:
    """A loop of ``formula(*read, *given)``, called with (places, given, length): addresses, fp32 numbers, how many.

    ``reads`` and ``writes`` have a letter for each place, in their order: ``s`` where numbers lie as they are stored,
    which is as bf16 if ``narrow``, ``w`` where they are wide, ``h`` where 16 bits are ``Words``. The formula's values
    are written; one more than there are places for is what comes out, as a SUM ``over`` all numbers, or the LARGEST.
    """

    @intrinsic
    def looped(typing: Any, places: Any, given: Any, length: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            places, given, length = arguments
            at = cgutils.unpack_tuple(builder, places, len(reads) + len(writes))
            known = cgutils.unpack_tuple(builder, given)
            start = _LOWEST if over == LARGEST else 0.0
            found = vectors.registers(builder, _VECTOR, ABREAST, start) + vectors.registers(builder, _FLOAT, 1, start)

            def compute(place: Any, kind: Any, side: int) -> None:
                values: list[Value | Words] = []
                for base, letter in zip(at, reads, strict=False):
                    if letter == "h":
                        half = vectors.load(builder, base, place, vectors.words_of(kind, 16), 2)
                        values.append(Words(builder, builder.zext(half, vectors.words_of(kind, 32))))
                    else:
                        read = vectors.widened if narrow and letter == "s" else vectors.load
                        values.append(Value(builder, read(builder, base, place, kind)))
                values += [Value(builder, filled(builder, one) if kind == _VECTOR else one) for one in known]
                made = list(formula(*values))
                if over:
                    last, before = made.pop(), Value(builder, builder.load(found[side]))
                    new = last.larger(before) if over == LARGEST else before + last
                    builder.store(new.value, found[side])
                for base, letter, one in zip(at[len(reads) :], writes, made, strict=True):
                    if letter == "h":
                        vectors.store(builder, builder.trunc(one.bits, vectors.words_of(kind, 16)), base, place, 2)
                    elif narrow and letter == "s":
                        vectors.store_halved(builder, one.value, base, place)
                    else:
                        vectors.store(builder, one.value, base, place)

            done = _WORD(0)
            for abreast in (ABREAST, 1):
                step = _WORD(abreast * REGISTER)
                some = builder.udiv(builder.sub(length, done), step)
                with cgutils.for_range(builder, some, intp=_WORD) as registers:
                    first = builder.add(done, builder.mul(registers.index, step))
                    for side in range(abreast):
                        compute(builder.add(first, _WORD(side * REGISTER)), _VECTOR, side)
                done = builder.add(done, builder.mul(some, step))
            with cgutils.for_range(builder, length, start=done, intp=_WORD) as rest:
                compute(rest.index, _FLOAT, ABREAST)
            *lanes, rest = [Value(builder, builder.load(one)) for one in found]
            while len(lanes) > 1:
                pairs = zip(lanes[::2], lanes[1::2], strict=True)
                lanes = [a.larger(b) if over == LARGEST else a + b for a, b in pairs]
            if over == LARGEST:
                return Value(builder, reduced(builder, LARGEST, lanes[0].value)).larger(rest).value
            return reduced(builder, SUM, lanes[0].value, rest.value)

        numbers = [types.UniTuple(types.int64, len(reads) + len(writes)), given, types.int64]
        return types.float32(*numbers), generate

    return looped
