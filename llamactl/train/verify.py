"""Whether resuming is exact on this machine, with this model, precision and number of processes."""

from collections.abc import Callable
from pathlib import Path

import torch

from llamactl import ui
from llamactl.artifacts import files, state
from llamactl.errors import Fault
from llamactl.model import sharded
from llamactl.train import loop
from llamactl.train.loop import Batch, Count, Step
from llamactl.train.schedule import Plan
from llamactl.train.step import Loss
from llamactl.train.training import STATE, Training, whole

HALF = 10  # steps before the interruption, and after; fewer in a shorter run


def resume_is_exact(
    begin: Callable[[Path], Training],
    batch: Batch,
    loss_of: Loss,
    plan: Plan,
    scratch: Path,
    targets: Count | None = None,
) -> None:
    """Train 2N steps, and N + N from a saved state, and compare every bit; raises Fault where one differs.

    ``begin`` makes a training from the start, in a directory. ``scratch`` holds the states meanwhile.
    """
    half = min(HALF, plan.schedule.steps // 2)
    if half < 1:
        raise Fault("--verify-resume", "a run of one step cannot be interrupted", "give more --steps")
    # states at the half way too, so that on a GPU no step has been launched beyond it when it is saved
    plan = plan._replace(schedule=plan.schedule._replace(steps=2 * half), save_every=half)
    undisturbed, interrupted = scratch / "undisturbed", scratch / "interrupted"
    try:
        training = begin(undisturbed)
        if ui.first_rank():
            files.remove(scratch)
        training.job.agreed(True)  # what an earlier attempt has left is gone
        wanted = _train(training, batch, loss_of, plan, targets, 2 * half)
        del training
        found = _train(begin(interrupted), batch, loss_of, plan, targets, half)
        again = begin(interrupted)
        again.resume()
        found += _train(again, batch, loss_of, plan, targets, 2 * half)
        saved = state.newest(undisturbed / STATE)
        assert saved is not None
        differing = [step for step, a, b in zip(range(1, 2 * half + 1), wanted, found, strict=True) if a != b]
        names = 0
        for name, parameter, held in again.tensors():
            tensor = whole(held)
            other = torch.empty_like(tensor)
            saved.read(name, sharded.box(parameter).offset, other)
            names += 1
            if not torch.equal(other, tensor):
                ui.alarm(f"{name} differs in {int((other != tensor).sum()):,} of {tensor.numel():,} elements")
                differing.append(2 * half)
        if not again.job.agreed(not differing):
            problem = f"{half} + {half} steps differ from {2 * half} (first at step {min(differing, default=half)})"
            raise Fault("--verify-resume", problem, "report it, with this command line")
        ui.note(
            f"resume is exact: {half} + {half} steps equal {2 * half} in every bit of {names} tensors and of all losses"
        )
    finally:
        if ui.first_rank():
            files.remove(scratch)


def _train(
    training: Training, batch: Batch, loss_of: Loss, plan: Plan, targets: Count | None, until: int
) -> list[tuple[float, float]]:
    """Train up to a step and save; losses and gradient norms."""
    taken: list[Step] = []
    for step in loop.steps(training, batch, loss_of, plan, targets):
        taken.append(step)
        if training.step == until < plan.schedule.steps:
            training.save()
            training.finish_saving()
            break
    return [(step.loss, step.grad_norm) for step in taken]
