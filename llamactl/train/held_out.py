"""The loss on dialogues that are held out, as training goes on, and a warning where it rises: over-fitting."""

from collections.abc import Sequence

import torch

from llamactl import ui
from llamactl.model.llama import Llama
from llamactl.train.packing import Packed, Packs, answer_loss
from llamactl.train.parallel import Job

PATIENCE = 2  # measurements in a row above the best before a warning


class HeldOut:
    """Packs that are never trained on."""

    def __init__(self, packs: Packs, job: Job, at_once: int, measured: Sequence[tuple[int, float]] = ()) -> None:
        self.packs, self.job, self.at_once = packs, job, at_once
        self.measured = list(measured)  # step and loss, also of an attempt that was interrupted

    @torch.no_grad()
    def loss(self, model: Llama) -> float:
        """-log p per token that carries loss, over all packs; they are shared out to the processes."""
        job, count = self.job, len(self.packs.packs)
        total = torch.zeros(2, dtype=torch.float64, device=job.device)
        for start in range(0, count, self.at_once * job.data):
            first = start + job.rank // job.tensor * self.at_once
            numbers = range(first, min(first + self.at_once, count))
            # a process whose share is used up goes along, since all of them gather the weights together
            batch = Packed(tuple(map(self.packs.row, numbers or [0])), self.packs.apart, job.device)
            loss = answer_loss(model, batch)
            if numbers:
                total[0] += loss
                total[1] += sum(len(row.targets) for row in batch.rows)
        nats, tokens = job.sum(total).tolist()
        return float(nats / tokens)

    def measure(self, model: Llama, step: int) -> float:
        """The loss after ``step``; says where it has risen."""
        self.measured.append((step, self.loss(model)))
        best, lowest = min(self.measured, key=lambda one: one[1])
        since = [loss for at, loss in self.measured if at > best]
        if len(since) == PATIENCE:
            change = f"from {lowest:.4f} after step {best:,} to {since[-1]:.4f} after step {step:,}"
            ui.warn(f"held-out loss has risen {change}: over-fitting; fewer --epochs, or more data")
        return self.measured[-1][1]
