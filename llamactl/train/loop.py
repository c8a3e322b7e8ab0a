"""The loop that a training stage iterates: take a step, save, resume, stop.

``steps`` yields after each optimizer step; what happens between steps is in sight in the stage. The number of steps is
of updates that were made: a batch whose loss or gradient is not finite is refused, counted and passed over, and ten in
a row end the run with the state saved.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from llamactl import ui
from llamactl.artifacts import files, state
from llamactl.artifacts.manifest import Run
from llamactl.errors import Fault, Interrupted
from llamactl.model.device import peak_flops, peak_memory
from llamactl.model.llama import Llama
from llamactl.train import optim
from llamactl.train.schedule import Plan
from llamactl.train.step import Loss, take

PATIENCE = 10  # refused steps in a row that end a run
STATE = "state"
REFUSED = "refused steps"
MOMENTS = ("exp_avg", "exp_avg_sq")


class Step(NamedTuple):
    """One line of metrics.jsonl. ``tokens`` are those trained on so far; ``tokens_per_second`` is of this step."""

    step: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    mfu: float
    memory_bytes: int
    refused: int


class Training:
    """A model, its optimizer and where they are in a run; saved to and resumed from ``directory/state``."""

    def __init__(self, model: Llama, optimizer: torch.optim.Optimizer, run: Run, directory: Path) -> None:
        self.model, self.optimizer, self.run, self.directory = model, optimizer, run, directory
        self.step = self.refused = 0

    def save(self, keep: int) -> None:
        """Write the state of this moment."""
        asked = {"stage": self.run.stage, "settings": self.run.settings, "inputs": self.run.inputs}
        facts = {"refused": self.refused, "seconds": self.run.seconds(), "asked": asked}
        state.save(self.directory / STATE, self.step, self._tensors(), facts, keep)

    def resume(self) -> bool:
        """Take up the newest state; whether there was one.

        One of a run that was asked for otherwise is overwritten if that was asked for, else a Fault is raised.
        """
        found = state.load(self.directory / STATE)
        if found is None:
            return False
        if difference := self.run.difference(found.facts["asked"]):
            if not self.run.overwrite:
                problem = f"was begun otherwise ({difference})"
                raise Fault(self.directory, problem, "ask for the same, or --no-resume to start over")
            files.clear(self.directory)
            return False
        self.step, self.refused = found.facts["step"], found.facts["refused"]
        self.run.earlier_seconds = found.facts["seconds"]
        self.run.skipped.update({REFUSED: self.refused} if self.refused else {})
        for name, parameter in self.model.named_parameters():
            with torch.no_grad():
                parameter.copy_(found.tensors[f"parameter/{name}"])
            if self.step:  # before the first update there are no moments
                moments = {m: found.tensors[f"{m}/{name}"].to(parameter.device) for m in MOMENTS}
                count = torch.tensor(float(self.step), device=parameter.device)
                self.optimizer.state[parameter] = {"step": count, **moments}
        return True

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"parameter/{name}"] = parameter.detach()
            if parameter in self.optimizer.state:
                tensors |= {f"{m}/{name}": self.optimizer.state[parameter][m] for m in MOMENTS}
        return tensors


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """SIGTERM and SIGUSR1 are noted in the list, for the loop to read after the step."""
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda n, _: caught.append(n)) for number in (signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def steps(training: Training, batch: Callable[[int, int], Tensor], loss_of: Loss, plan: Plan) -> Iterator[Step]:
    """Train from where ``training`` stands to the last step of the schedule.

    ``batch(start, size)`` gives sequences from a global sample index on. Raises Interrupted after a signal, with the
    state saved, and Fault after ten refused steps in a row.
    """
    device = training.model.tok_embeddings.weight.device
    peak = peak_flops(device, training.model.dtype) * training.run.devices
    row = 0  # refused steps in a row
    with stop_signals() as caught:
        while training.step < plan.schedule.steps:
            began = time.perf_counter()
            ids = batch((training.step + training.refused) * plan.batch_size, plan.batch_size).to(device)
            lr = plan.schedule.at(training.step)
            outcome = take(
                training.model, training.optimizer, loss_of, ids, plan.targets, plan.micro_batch, lr, optim.CLIP
            )
            if outcome.applied:
                row, training.step = 0, training.step + 1
                rate = plan.targets / (time.perf_counter() - began)
                yield Step(
                    step=training.step,
                    tokens=training.step * plan.targets,
                    loss=outcome.loss,
                    lr=lr,
                    grad_norm=outcome.grad_norm,
                    tokens_per_second=round(rate, 1),
                    mfu=round(rate * training.model.config.flops_per_token / peak, 4),
                    memory_bytes=peak_memory(device),
                    refused=training.refused,
                )
            else:
                row, training.refused = row + 1, training.refused + 1
                what = f"loss {outcome.loss:.4g}, gradient norm {outcome.grad_norm:.4g}"
                ui.warn(f"step {training.step + 1} refused: {what}; its batch is passed over ({row} in a row)")
                training.run.skipped[REFUSED] += 1
            last = training.step == plan.schedule.steps
            if caught or row >= PATIENCE or last or (outcome.applied and training.step % plan.save_every == 0):
                training.save(plan.keep)
            if row >= PATIENCE:
                problem = f"{PATIENCE} steps in a row were not finite; the state of step {training.step} is saved"
                raise Fault(
                    training.directory, problem, "look at the data, or lower --lr and start over with --no-resume"
                )
            if caught and not last:
                name = signal.Signals(caught[0]).name
                raise Interrupted(
                    f"{training.directory}: stopped by {name} after step {training.step}; run me again to go on"
                )
