"""How long a training goes and how fast it learns (paper, section 2.2): steps, batches, warm-up, cosine. No torch."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from llamactl import ui
from llamactl.errors import Fault
from llamactl.model.config import Size

WARMUP = 2000  # steps; a shorter run warms up over a tenth of its own
MICRO_TOKENS = 4096  # tokens computed at once unless told otherwise
MOST = 1 << 24  # steps: optimizers count updates in fp32, which stays there
MORE = 1.1  # times the passes over the data that were asked for: so many are said


class Cosine(NamedTuple):
    """The learning rate as a function of the step: linear warm-up to ``peak``, a cosine down to ``floor`` x peak."""

    peak: float
    warmup: int
    steps: int
    floor: float = 0.1

    def at(self, step: int) -> float:
        """Learning rate of step 0, 1, ...: never 0, ``peak`` at the end of the warm-up, ``floor`` at the last step.

        Without a warm-up ``peak`` is that of the first step.
        """
        warmup = max(1, self.warmup)
        if step < warmup:
            return self.peak * (step + 1) / warmup
        done = (step + 1 - warmup) / max(1, self.steps - warmup)
        return self.peak * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Plan(NamedTuple):
    """How a training goes, apart from what it trains."""

    schedule: Cosine
    batch_size: int  # sequences a step
    targets: int  # tokens that carry loss in a step
    micro_batch: int
    save_every: int
    keep: int
    unit: str = "sequences"  # what a batch is made of

    def settings(self) -> dict[str, Any]:
        """What of it decides the result but for rounding, for the manifest."""
        return {**self.schedule._asdict(), "batch_size": self.batch_size}

    def rows(self, epoch: int = 0) -> list[tuple[str, str]]:
        """It in words, for a person; how often the data is passed through where an ``epoch``, in samples, is given."""
        s = self.schedule
        passes = f": {s.steps * self.batch_size / epoch:,.2f} epochs" if epoch else ""
        return [
            ("steps", f"{s.steps:,} of {self.batch_size:,} {self.unit}, {ui.count(self.targets)} tokens{passes}"),
            ("tokens", ui.count(s.steps * self.targets)),
            ("learning rate", f"{s.peak:g} after {s.warmup:,} steps, cosine to {s.peak * s.floor:g}"),
            ("saves state", f"every {self.save_every:,} steps, keeps {self.keep}"),
        ]


def checked(steps: int, flag: str) -> int:
    """The steps, if they can be counted."""
    if steps > MOST:
        raise Fault(flag, f"makes {steps:,} steps, where {MOST:,} can be counted", "make fewer, of larger batches")
    return steps


def _smaller(batch_size: int, samples: float, world: int) -> int:
    """The largest smaller batch that all processes can share, whose full steps come to little more than ``samples``."""
    most = min(batch_size - 1, int(samples))
    sizes = range(most - most % world, 0, -world)
    return next((size for size in sizes if math.ceil(samples / size) * size <= MORE * samples), world)


def planned(
    context: int,
    row: Size,
    *,
    lr: float | None,
    warmup: int | Callable[[int], int] | None,
    steps: int | None,
    tokens: float | None,
    epochs: float | None,
    epoch: int,
    batch_size: int | None,
    micro_batch: int | None,
    save_every: int | None,
    keep: int,
    devices: int | None = None,
    unit: str = "sequences",
) -> Plan:
    """A training's plan: what was asked for, and for the rest the size's row. An ``epoch`` is so many samples.

    ``context`` is the tokens of a sample, or of one on average; ``warmup`` may be a function of the steps. ``devices``
    are those of a plan, where they are not those of this job.
    """
    lengths = {"--steps": steps, "--tokens": tokens, "--epochs": epochs}
    if len(given := [flag for flag, value in lengths.items() if value is not None]) > 1:
        raise Fault(given[0], f"given together with {given[1]}", "give one of them")
    if epochs and not epoch:
        raise Fault("--epochs", "there is no data here whose passes could be counted", "give --tokens or --steps")
    for flag, value in {"--lr": lr, **lengths}.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise Fault(flag, f"{value} is no number above 0", "leave it out for the default")
    batch_size, lr = batch_size or row.batch, lr or row.lr
    samples = epochs * epoch if epochs else (tokens or row.tokens) / context
    steps = checked(steps or math.ceil(samples / batch_size), next(iter(given), "--batch-size"))
    if epochs and steps * batch_size > MORE * samples:
        fewer = _smaller(batch_size, samples, devices or ui.world_size())
        remedy = f"; a smaller --batch-size, as {fewer:,}, comes nearer" if fewer < batch_size else ""
        made = steps * batch_size / epoch
        ui.warn(f"--epochs {epochs:g}: whole steps of {batch_size:,} {unit} make {made:.2f}{remedy}")
    warmup = min(WARMUP, steps // 10) if warmup is None else warmup(steps) if callable(warmup) else warmup
    return Plan(
        schedule=Cosine(lr, warmup, steps),
        batch_size=batch_size,
        targets=batch_size * context,
        micro_batch=min(batch_size, micro_batch or max(1, MICRO_TOKENS // context)),
        save_every=save_every or max(1, min(1000, steps // 10)),
        keep=keep,
        unit=unit,
    )
