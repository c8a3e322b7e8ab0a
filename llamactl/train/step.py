"""One optimizer step: forward and backward over the global batch in micro-batches, clip, update.

B sequences of a micro-batch, T tokens of a sequence.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llamactl.model.llama import Llama

ROWS = 128  # rows of logits in fp32 at once

Loss = Callable[[Llama, Tensor], Tensor]


class Outcome(NamedTuple):
    """What a step came to. ``loss`` is nats per target token over the global batch; ``applied``: not refused."""

    loss: float
    grad_norm: float
    applied: bool


class _CrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies in fp32 from logits ``[N, V]`` of any dtype, a few rows at a time.

    No fp32 copy of the logits is ever whole, and what is kept for the backward pass is the logits themselves.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        pieces = zip(torch.split(logits, ROWS), torch.split(targets, ROWS), strict=True)
        return torch.stack([F.cross_entropy(some.float(), wanted, reduction="sum") for some, wanted in pieces]).sum()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        grad = torch.empty_like(logits)
        pieces = zip(torch.split(logits, ROWS), torch.split(targets, ROWS), torch.split(grad, ROWS), strict=True)
        for some, wanted, out in pieces:  # softmax - one-hot
            p = some.softmax(-1, dtype=torch.float32)
            p.scatter_add_(1, wanted[:, None], p.new_full((len(wanted), 1), -1.0))
            out.copy_(p.mul_(scale))
        return grad, None


def next_token_loss(model: Llama, ids: Tensor) -> Tensor:
    """Sum over all tokens of -log p(next), in fp32, for ids ``[B, T + 1]``."""
    logits = model.output(model(ids[:, :-1]))
    return cast(Tensor, _CrossEntropy.apply(logits.flatten(0, 1), ids[:, 1:].flatten()))  # type: ignore[no-untyped-call]


def take(
    model: Llama,
    optimizer: torch.optim.Optimizer,
    loss_of: Loss,
    batch: Tensor,
    targets: int,
    micro_batch: int,
    lr: float,
    clip: float,
) -> Outcome:
    """One step on ``batch`` ``[sequences, T + 1]``, whose loss is normalised over its ``targets`` target tokens.

    The sum over micro-batches is divided once, by the targets of the whole batch, so accumulation changes nothing but
    rounding. A loss or gradient that is not finite is refused: parameters and moments stay as they are.
    """
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=batch.device)
    for piece in torch.split(batch, micro_batch):
        loss = loss_of(model, piece) / targets
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    value, size = total.item(), norm.item()
    finite = bool(torch.isfinite(total) & torch.isfinite(norm))
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    return Outcome(value, size, finite)
