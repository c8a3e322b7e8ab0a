"""One optimizer step: forward and backward over this process's part of the batch in micro-batches, clip, update.

B sequences of a micro-batch, T tokens of a sequence.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from llamactl.model.llama import Llama, Transformer
from llamactl.train.optim import CLIP, AdamW
from llamactl.train.parallel import Job

# Of a micro-batch: the sum over its targets, a scalar, or before others that are reported beside it.
Loss = Callable[[Any, Any], Tensor]


class Outcome(NamedTuple):
    """What a step came to, the same on all processes. ``loss`` is nats per target token over the global batch."""

    loss: float
    grad_norm: float
    applied: bool  # not refused
    beside: tuple[float, ...]  # the loss's other sums, a target
    told: tuple[int, ...]  # how many processes have said yes to each thing asked

    @classmethod
    def read(cls, seen: Tensor, beside: int = 0) -> Self:
        """From what ``take`` has left on the device, with so many sums beside the loss; waits for it."""
        norm, refused, loss, *rest = seen.tolist()
        return cls(loss, norm, not refused, tuple(rest[:beside]), tuple(map(round, rest[beside:])))


class Sent(NamedTuple):
    """What ``take`` has left, on its way to the host: a GPU sends it before it does what it is told after that."""

    seen: Tensor
    there: torch.cuda.Event | None  # when it has arrived

    @classmethod
    def off(cls, seen: Tensor) -> Self:
        """Have it sent."""
        if seen.device.type != "cuda":
            return cls(seen, None)
        seen, there = seen.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
        there.record()
        return cls(seen, there)

    def outcome(self, beside: int = 0) -> Outcome:
        """Waits for it, and for nothing that has been launched since."""
        if self.there:
            self.there.synchronize()
        return Outcome.read(self.seen, beside)


def next_token_loss(model: Llama, ids: Tensor) -> Tensor:
    """Sum over all tokens of -log p(next), in fp32, for ids ``[B, T + 1]``."""
    return model.nll(ids[:, :-1], ids[:, 1:]).sum()


def take(
    model: Transformer,
    optimizer: AdamW,
    loss_of: Loss,
    batch: Any,
    targets: int,
    micro_batch: int,
    job: Job,
    tells: Callable[[], tuple[bool, ...]] = tuple,
    before_update: Callable[[], None] = lambda: None,
) -> Tensor:
    """One step on this process's ``batch`` of sequences; the loss is normalised over all ``targets`` of all processes.

    The sum over micro-batches and processes is divided once, by the targets of the whole batch, so how it is cut
    changes nothing but rounding. A loss or gradient that is not finite is refused: parameters and moments stay as they
    are. ``tells`` is asked after the backward pass; its answers are added up over all processes with the loss. The
    result stays on the device: ``Outcome.read`` waits for it.
    """
    pieces = batch.split(micro_batch)
    optimizer.zero_grad(adding_up=len(pieces) > 1)
    total = torch.zeros(1, dtype=torch.float64, device=batch.device)
    for number, piece in enumerate(pieces, 1):
        job.accumulate(model, last=number == len(pieces))
        sums = loss_of(model, piece).flatten() / targets
        (sums[0] * job.data).backward()  # type: ignore[no-untyped-call]  # which sharding averages over
        total = total + sums.detach() / job.tensor
    told = torch.tensor(list(map(float, tells())), dtype=total.dtype).to(total.device, non_blocking=True)
    seen = job.sum(torch.cat([optimizer.squares()[None], total, told]))
    norm, loss = seen[0].sqrt(), seen[1]
    refused = ~torch.isfinite(loss + norm)
    before_update()
    optimizer.step((norm / CLIP).clamp_min(1.0).float(), refused)
    return torch.cat([torch.stack([norm, refused.double()]), seen[1:]])
