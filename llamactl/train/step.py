"""One optimizer step: forward and backward over the global batch in micro-batches, clip, update.

B sequences of a micro-batch, T tokens of a sequence.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from llamactl.model.llama import Llama

Loss = Callable[[Llama, Tensor], Tensor]


class Outcome(NamedTuple):
    """What a step came to. ``loss`` is nats per target token over the global batch; ``applied``: not refused."""

    loss: float
    grad_norm: float
    applied: bool


def next_token_loss(model: Llama, ids: Tensor) -> Tensor:
    """Sum over all tokens of -log p(next), in fp32, for ids ``[B, T + 1]``."""
    return model.nll(ids[:, :-1], ids[:, 1:]).sum()


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
