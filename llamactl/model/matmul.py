"""Products of bf16 matrices on a CPU by a compiled kernel, which takes them as they lie, turned or not.

It is for processors that add up products of pairs of bf16 numbers: with one thread and with two it is faster there than
torch's product by a twentieth. (With more it was never measured.) Processors that multiply whole tiles (AMX) are
faster. Models ask for it once (``prepare``).
"""

import threading
from typing import Any, cast

import torch
from torch import Tensor, nn

from llamactl.model.kernels.making import Lone, installed
from llamactl.model.kernels.plans import COLUMNS, HEIGHT, LINE, MATMUL, PAIRS, REGISTER, TILES

KERNEL = Lone("matmul", "products of matrices", MATMUL)
THREADS = 2  # at most
LITTLE = 1 << 14  # numbers of the second matrix: with less, torch's products are faster
DEEP = 2048  # numbers of a row that are added up at once
PANEL = 128  # rows of it, at most
UNITS = 1 << 16  # of a panel, which stays in the second cache
LAID = 1 << 19  # units of the shorter side, which stay in the third


def serves() -> bool:
    """Whether there can be a kernel, where it can be kept."""
    return PAIRS and not TILES and installed()


def prepare(device: torch.device, dtype: torch.dtype) -> None:
    """Have the kernel made for a model that computes in a dtype, if there can be one."""
    if dtype == torch.bfloat16 and torch.get_num_threads() <= THREADS and serves():
        KERNEL.prepare(device)


def suits(a: Tensor, b: Tensor) -> bool:
    """Whether the kernel is there for a product that is not shared out: of ``[..., D]`` and ``[V, D]``.

    One row aside, it does not look at how many there are: what comes out of a row is the same with any others.
    """
    if KERNEL.kernel is None or type(a) is not Tensor or type(b) not in (Tensor, nn.Parameter):
        return False
    if not torch.compiler.is_compiling() and torch.get_num_threads() > THREADS:  # which the compiler cannot look at
        return False
    alike = a.dtype == b.dtype == torch.bfloat16 and a.device.type == "cpu"
    return alike and b.numel() >= LITTLE and a.numel() > a.shape[-1]


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T of bf16 ``[..., D]`` and ``[V, D]``, added up in fp32 and rounded once."""
    return cast(Tensor, torch.ops.llamactl.product(a, b))


def across(a: Tensor, b: Tensor) -> Tensor:
    """a^T b, likewise, over all rows of ``[..., V]`` and ``[..., D]``."""
    return cast(Tensor, torch.ops.llamactl.product_across(a, b))


def put(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``product`` of ``[R, D]`` into ``out [R, V]``."""
    if not out.numel():
        return out
    depth = a.shape[1]
    a, b = (x if 1 in x.stride() else x.contiguous() for x in (a, b))
    if depth <= DEEP:
        return _compute(a, b, out)
    sums = torch.empty(out.shape)
    pieces = -(-depth // DEEP)
    some = 2 * -(-depth // (2 * pieces))
    for start in range(0, depth, some):
        _compute(a[:, start : start + some], b[:, start : start + some], sums, add=start > 0)
    return out.copy_(sums)


def _compute(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> Tensor:
    """``out`` may be fp32, and added to."""
    threads, depth, tall = torch.get_num_threads(), a.shape[1], len(a) > len(b)
    short, long = sorted((len(a), len(b)))
    units = max(1, (depth + 1) // 2)
    panels = _up(-(-long // min(PANEL, max(1, UNITS // units))), threads)
    panel = max(COLUMNS, long // panels // COLUMNS * COLUMNS)
    some = _up(-(-short // -(-short * units // LAID)), COLUMNS)
    room = _up((some + panel) * units + REGISTER * COLUMNS, LINE)
    direct = a.stride(1) == 1 and not (a.stride(0) % 2 or depth % 2 or len(a) % HEIGHT)
    scratch = _scratch(threads * room)
    for start in range(0, short, some):
        part = slice(start, start + some)
        rows, columns, to = (a, b[part], out[:, part]) if tall else (a[part], b, out[part])
        KERNEL.work(
            threads, a=rows.data_ptr(), b=columns.data_ptr(), out=to.data_ptr(), rows=len(rows), columns=len(columns),
            depth=depth, out_row=out.stride(0), a_row=a.stride(0), a_step=a.stride(1), b_row=b.stride(0),
            b_step=b.stride(1), wide=out.dtype == torch.float32, add=add, tall=tall, direct=direct,
            panel=panel, scratch=scratch.data_ptr(), room=room,
        )  # fmt: skip
    return out


def _up(number: int, to: int) -> int:
    """The next multiple."""
    return -(-number // to) * to


_kept = threading.local()


def _scratch(units: int) -> Tensor:
    """Room that a thread keeps from one product to the next: it is in the caches."""
    kept: Tensor | None = getattr(_kept, "scratch", None)
    if kept is None or len(kept) < units:
        kept = _kept.scratch = torch.empty(units, dtype=torch.int32)
    return kept


def _new(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(*a.shape[:-1], len(b))


def _new_across(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[-1], b.shape[-1])


def _product(a: Tensor, b: Tensor) -> Tensor:
    out = _new(a, b)
    put(a.flatten(0, -2), b, out.flatten(0, -2))
    return out


def _across(a: Tensor, b: Tensor) -> Tensor:
    return put(a.flatten(0, -2).mT, b.flatten(0, -2).mT, _new_across(a, b))


# so that checkpointing sees what it keeps; and with as many axes as they have, since the compiler would take hours over
# the sizes of what is flattened
_LIBRARY: Any = torch.library.Library("llamactl", "FRAGMENT")  # type: ignore[no-untyped-call]
for _name, _by, _like in (("product", _product, _new), ("product_across", _across, _new_across)):
    _LIBRARY.define(f"{_name}(Tensor a, Tensor b) -> Tensor")
    _LIBRARY.impl(_name, _by, "CPU")
    torch.library.register_fake(f"llamactl::{_name}", _like, lib=_LIBRARY)
