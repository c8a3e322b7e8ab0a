"""Numbers that threads share: int64 at an address, read and written as a whole, in an order that others see, too."""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_WORD = ir.IntType(64)


def _shared(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _WORD.as_pointer())


@intrinsic
def seen(typing: Any, address: Any) -> Any:
    """What a number is."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.load_atomic(_shared(builder, given[0]), "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def tell(typing: Any, address: Any, value: Any) -> Any:
    """Set a number; who sees it sees what was written before."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.store_atomic(given[1], _shared(builder, given[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def count(typing: Any, address: Any) -> Any:
    """Add 1."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.atomic_rmw("add", _shared(builder, given[0]), _WORD(1), "acq_rel")
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def ticket(typing: Any, address: Any) -> Any:
    """Add 1; what the number was before."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.atomic_rmw("add", _shared(builder, given[0]), _WORD(1), "acq_rel")

    return types.int64(types.int64), generate


@intrinsic
def take(typing: Any, address: Any, number: Any) -> Any:
    """Add 1 if it is ``number``; whether it was."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        address, number = given
        more = builder.add(number, _WORD(1))
        found = builder.cmpxchg(_shared(builder, address), number, more, "acq_rel", "acquire")
        return builder.extract_value(found, 1)

    return types.boolean(types.int64, types.int64), generate
