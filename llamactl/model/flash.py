"""Causal attention on a CPU by compiled kernels: when they are there, what they are told, and what autograd is.

They compute a head in the cache of one core, and keep two numbers a row for the backward pass where ``attention``'s
blocks of plain products keep all probabilities. Models ask for them once (``prepare``), so that all passes of a run are
computed alike; where numba is not installed, or for widths of heads that they are not for, blocks take their place.
"""

from typing import Any

import torch
from torch import Tensor

from llamactl.model.kernels.making import Lone, installed
from llamactl.model.kernels.plans import ATTENTION, PAIRS, SIDE, TILES, WIDTHS, room

STORED = (torch.float32, torch.bfloat16)


KERNEL = Lone("attention", "attention", ATTENTION)


def serves(head_dim: int) -> bool:
    """Whether there can be kernels for heads of a width, where something can compile them."""
    return head_dim % WIDTHS == 0 and installed()


def prepare(device: torch.device, head_dim: int) -> None:
    """Have the kernels made, if there can be any."""
    if serves(head_dim):
        KERNEL.prepare(device)


def suits(q: Tensor) -> bool:
    """Whether kernels are there for queries ``[B, T, H, E]``."""
    return KERNEL.kernel is not None and q.device.type == "cpu" and q.shape[-1] % WIDTHS == 0 and q.dtype in STORED


def attention(q: Tensor, k: Tensor, v: Tensor, longest: int, ends: Tensor | None, key_ends: Tensor | None) -> Tensor:
    """Of each token to those before it, ``[B, T, H, E]``; ``ends`` are those of ``attention.Documents``.

    ``longest`` is how many keys one document has.
    """
    return torch.ops.llamactl.flash_attention(q, k, v, longest, ends, key_ends)[0]  # type: ignore[no-any-return]


def _forward(
    q: Tensor, k: Tensor, v: Tensor, longest: int, ends: Tensor | None, key_ends: Tensor | None
) -> tuple[Tensor, Tensor]:
    out, softmax = _shapes(q, k, v, longest, ends, key_ends)
    _compute(q, k, v, longest, ends, key_ends, out=out, softmax=softmax)
    return out, softmax


def _shapes(
    q: Tensor, k: Tensor, v: Tensor, longest: int, ends: Tensor | None, key_ends: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, time, heads, _ = q.shape
    softmax = torch.empty(2, batch * time, heads, dtype=torch.float32, device=q.device)
    return torch.empty_like(q, memory_format=torch.contiguous_format), softmax


def _backward(
    q: Tensor, k: Tensor, v: Tensor, softmax: Tensor, grad: Tensor, longest: int, ends: Tensor | None,
    key_ends: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    of_q, of_k, of_v = _shapes_of_backward(q, k, v, softmax, grad, longest, ends, key_ends)
    _compute(q, k, v, longest, ends, key_ends, softmax=softmax, grad=grad, of_q=of_q, of_k=of_k, of_v=of_v)
    return of_q, of_k, of_v


def _shapes_of_backward(
    q: Tensor, k: Tensor, v: Tensor, softmax: Tensor, grad: Tensor, longest: int, ends: Tensor | None,
    key_ends: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    of_q, of_k, of_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return of_q, of_k, of_v


def _compute(
    q: Tensor, k: Tensor, v: Tensor, longest: int, ends: Tensor | None, key_ends: Tensor | None, **named: Tensor
) -> None:
    """A pass, by as many threads as torch's operators have."""
    batch, time, heads, width = q.shape
    if ends is None:
        ends = torch.arange(0, (batch + 1) * time, time)
    key_ends = ends if key_ends is None else key_ends
    tensors = {"q": q, "k": k, "v": v, "ends": ends.long(), "key_ends": key_ends.long(), **named}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    backward, narrow = "grad" in named, q.dtype == torch.bfloat16
    documents, pairs = len(ends) - 1, narrow and PAIRS
    squares = pairs and TILES and width % (2 * SIDE) == 0
    threads = max(1, min(torch.get_num_threads(), documents * k.shape[2]))
    size = room(longest, width, pairs, backward)
    tensors["scratch"], tensors["shared"] = torch.empty(threads * size), torch.zeros(2, 8, dtype=torch.int64)
    KERNEL.work(
        threads, documents=documents, tokens=batch * time, heads=heads, kv_heads=k.shape[2], head_dim=width,
        narrow=narrow, pairs=pairs, squares=squares, backward=backward, room=size, scale=width**-0.5,
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
    )  # fmt: skip


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, longest, ends, key_ends = inputs
    ctx.longest = longest
    ctx.save_for_backward(q, k, v, output[1], *([] if ends is None else [ends, key_ends]))
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    q, k, v, softmax, *ends = ctx.saved_tensors
    found = torch.ops.llamactl.flash_attention_backward(q, k, v, softmax, grad, ctx.longest, *(ends or (None, None)))
    return *found, None, None, None


_LIBRARY: Any = torch.library.Library("llamactl", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "flash_attention(Tensor q, Tensor k, Tensor v, SymInt longest, Tensor? ends, Tensor? key_ends) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "flash_attention_backward(Tensor q, Tensor k, Tensor v, Tensor softmax, Tensor grad, SymInt longest, Tensor? ends, "
    "Tensor? key_ends) -> (Tensor, Tensor, Tensor)"
)
for _name, _function, _told in (
    ("flash_attention", _forward, _shapes),
    ("flash_attention_backward", _backward, _shapes_of_backward),
):
    _LIBRARY.impl(_name, _function, "CPU")
    torch.library.register_fake(f"llamactl::{_name}", _told, lib=_LIBRARY)
torch.library.register_autograd(
    "llamactl::flash_attention", _differentiate, setup_context=_keep_for_backward, lib=_LIBRARY
)
