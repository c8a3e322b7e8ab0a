"""The loss on what is held out, as training goes on, and a warning where it rises: over-fitting."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from llamactl import ui
from llamactl.errors import Fault
from llamactl.model.llama import Transformer
from llamactl.train.parallel import Job
from llamactl.train.schedule import Plan
from llamactl.train.step import Loss

PATIENCE = 2  # measurements since the best, notably above it, before a warning
NOTABLE = 1.01  # times the best


class Samples(Protocol):
    """Things to measure a loss on: Packs, Pairs."""

    def __len__(self) -> int:
        """How many."""

    def some(self, numbers: Iterable[int], device: torch.device) -> Any:
        """A batch of these."""

    def weight(self, numbers: Sequence[int]) -> int:
        """What the sum of their losses is divided by."""


class HeldOut:
    """Samples that are never trained on, if there are any; ``beside`` names the sums that come with their loss."""

    def __init__(
        self,
        samples: Samples | None,
        loss_of: Loss,
        job: Job,
        plan: Plan,
        every: int | None,
        measured: Sequence[tuple[int, float | None]] = (),
        beside: Sequence[str] = (),
    ) -> None:
        self.samples, self.loss_of, self.job, self.at_once = samples, loss_of, job, plan.micro_batch
        self.last = plan.schedule.steps
        self.every = every or max(1, self.last // 10)
        # step and loss, also of an attempt that was interrupted, in whose log NaN is null
        self.measured = [(step, math.nan if loss is None else loss) for step, loss in measured]
        self.names = ["eval_loss", *(f"eval_{name}" for name in beside)]

    def due(self, step: int) -> bool:
        """Whether there is something to measure after a step."""
        return bool(self.samples) and (step % self.every == 0 or step == self.last)

    def at(self, model: Transformer, step: int) -> dict[str, float]:
        """The losses after a step by name, where they are due: ``every`` so many steps, and after the last.

        A signal that asks to stop is not kept waiting for them, but after the last step: they are ``missed`` then.
        """
        if not self.samples or not self.due(step):
            return {}
        losses = self.losses(model, self.samples, step == self.last)
        return self.noted(losses, step) if losses else {}

    def missed(self, model: Transformer, step: int) -> dict[str, float]:
        """The losses after the step that training goes on from, if an earlier attempt was stopped before it had them.

        Those before the first step were never asked for.
        """
        known = self.job.told(not step or any(step == measured for measured, _ in self.measured))
        return {} if known else self.at(model, step)

    @torch.no_grad()
    def losses(self, model: Transformer, samples: Samples, to_the_end: bool) -> list[float]:
        """The loss, and what comes beside it, over all samples; they are shared out to the processes.

        There are none where a signal asks one of these to stop meanwhile, unless they go on ``to_the_end``.
        """
        job, count = self.job, len(samples)
        total = torch.zeros(len(self.names) + 1, dtype=torch.float64, device=job.device)
        for start in range(0, count, self.at_once * job.data):
            if not to_the_end and not job.agreed(not job.caught):
                return []
            first = start + job.rank // job.tensor * self.at_once
            numbers = range(first, min(first + self.at_once, count))
            # a process whose share is used up goes along, since all of them gather the weights together
            sums = self.loss_of(model, samples.some(numbers or [0], job.device)).flatten()
            if numbers:
                total[:-1] += sums
                total[-1] += samples.weight(numbers)
        *losses, weight = job.sum(total).tolist()
        return [each / weight for each in losses]

    def noted(self, losses: Sequence[float], step: int) -> dict[str, float]:
        """The losses after ``step``, by name; says where the first has risen, or is not finite."""
        self.measured.append((step, losses[0]))
        finite = [one for one in self.measured if math.isfinite(one[1])]
        best, lowest = min(finite, key=lambda one: one[1], default=(step, losses[0]))
        since = [loss for at, loss in finite if at > best and loss > NOTABLE * lowest]
        if not math.isfinite(losses[0]):
            ui.warn(f"held-out loss after step {step:,} is {losses[0]}: look at the data, or lower --lr")
        if len(since) == PATIENCE and since[-1] == losses[0]:
            change = f"from {lowest:.4f} after step {best:,} to {since[-1]:.4f} after step {step:,}"
            ui.warn(f"held-out loss has risen {change}: over-fitting; fewer --epochs, or more data")
        return dict(zip(self.names, losses, strict=True))

    def check(self, directory: Path) -> None:
        """Raise Fault where the loss after the last step, whose state is saved, is not finite."""
        if self.job.told(not all(math.isfinite(loss) for _, loss in self.measured[-1:])):
            problem = f"the last held-out loss is not finite; the state of step {self.last:,} is saved"
            raise Fault(directory, problem, "look at the data, or lower --lr and start over with --no-resume")
