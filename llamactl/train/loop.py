"""The loop that a training stage iterates: take a step, save, resume, stop.

``steps`` yields after each optimizer step; what happens between steps is in sight in the stage. The number of steps is
of updates that were made: a batch whose loss or gradient is not finite is refused, counted and passed over, and ten in
a row end the run with the state saved.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import count
from typing import Any, NamedTuple

from torch import Tensor

from llamactl import ui
from llamactl.errors import Fault
from llamactl.model.device import peak_flops, peak_memory
from llamactl.signals import first_ctrl_c
from llamactl.train.parallel import Job
from llamactl.train.schedule import Plan
from llamactl.train.step import Loss, Sent, take
from llamactl.train.training import REFUSED, Training

LAG = {"cuda": 1}  # steps that are launched before the outcome of one is read, by device
PATIENCE = 10  # refused steps in a row that end a run

Batch = Callable[[int, int], Any]  # samples from a global index on, and how many: ids, Packed, or Compared
Count = Callable[[int, int], int]  # of these samples: what their loss is divided by


class Step(NamedTuple):
    """One line of metrics.jsonl. ``tokens`` are the places trained on so far; ``tokens_per_second`` is of this step.

    A comparison counts in both as many places as one has on average.
    ``save_seconds`` is what training has waited for the saving of states since the step before.
    """

    step: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    mfu: float
    memory_bytes: int
    refused: int
    save_seconds: float
    beside: Mapping[str, float]  # what else the loss has to say, by name

    def line(self) -> dict[str, Any]:
        """All of it, by name."""
        facts = {name: value for name, value in self._asdict().items() if name != "beside"}
        return {**facts, **self.beside}


def _prefetched(
    batch: Batch, targets: Count | None, first: int, plan: Plan, job: Job
) -> Generator[tuple[Any, int], None, None]:
    """This process's part of one batch after the other, the next one read while the last is trained on.

    With each the number of targets in the whole batch.
    """
    share = job.share(plan.batch_size)
    with ThreadPoolExecutor(1) as reader:

        def read(number: int) -> Future[Any]:
            return reader.submit(batch, number * plan.batch_size + share.first, share.size)

        coming = read(first)
        for number in count(first):
            part, coming = coming.result(), read(number + 1)
            if job.device.type == "cuda" and isinstance(part, Tensor):  # packs and pairs are little to copy
                part = part.pin_memory()
            whole = targets(number * plan.batch_size, plan.batch_size) if targets else plan.targets
            yield part.to(job.device, non_blocking=True), whole


def steps(
    training: Training,
    batch: Batch,
    loss_of: Loss,
    plan: Plan,
    targets: Count | None = None,
    beside: Sequence[str] = (),
    looked_at: Callable[[int], bool] = lambda step: False,
) -> Iterator[Step]:
    """Train from where ``training`` stands to the last step of the schedule.

    ``batch(start, size)`` gives samples from a global index on, ``targets(start, size)`` what the sum of their losses
    is divided by; without it the plan's number of tokens. ``beside`` names the sums that come with the loss, and
    ``looked_at`` the steps after which the stage looks at the model, which must be as they have left it. Raises
    Interrupted after a signal to any process, with the state saved, and Fault after ten refused steps in a row.

    On a GPU the outcome of a step is read when the next one has been launched, so that the device never waits for
    Python; but not across a step after which the state is saved, or the model is looked at.
    """
    job, device = training.job, training.job.device
    peak = peak_flops(device, training.model.dtype) * job.world
    lag = LAG.get(device.type, 0)
    total, micro_batch = plan.schedule.steps, min(plan.micro_batch, job.share(plan.batch_size).size)
    row = 0  # refused steps in a row
    launched: deque[Sent] = deque()
    with (
        first_ctrl_c(job.noted),
        closing(_prefetched(batch, targets, training.attempts, plan, job)) as batches,
    ):

        def launch() -> Sent:
            def tells() -> tuple[bool, bool]:
                return bool(job.caught), training.saver.busy and training.saver.written()

            model, optimizer = training.model, training.optimizer
            part, whole = next(batches)
            return Sent.off(
                take(model, optimizer, loss_of, part, whole, micro_batch, job, tells, training.before_update)
            )

        clock, stalled, stopping = time.perf_counter(), training.stalled, False
        while training.step < total:
            ahead = training.step + len(launched)
            waiting = ahead % plan.save_every == 0 or looked_at(ahead) or row
            if ahead < total and not stopping and not (launched and waiting):
                launched.append(launch())
                if len(launched) <= lag:
                    continue
            outcome = launched.popleft().outcome(len(beside))
            asked_to_stop, written = outcome.told
            stopping = stopping or asked_to_stop > 0
            if outcome.applied:
                row, training.step = 0, training.step + 1
                now, stalled_before = time.perf_counter(), stalled
                rate, clock, stalled = plan.targets / (now - clock), now, training.stalled
                yield Step(
                    step=training.step,
                    tokens=training.step * plan.targets,
                    loss=outcome.loss,
                    lr=plan.schedule.at(training.step - 1),
                    grad_norm=outcome.grad_norm,
                    tokens_per_second=round(rate, 1),
                    mfu=round(rate * training.model.config.flops_per_token / peak, 4),
                    memory_bytes=peak_memory(device),
                    refused=training.refused,
                    save_seconds=round(stalled - stalled_before, 4),
                    beside=dict(zip(beside, outcome.beside, strict=True)),
                )
                clock += time.perf_counter() - now  # what the stage has done meanwhile is not training
            else:
                row, training.refused = row + 1, training.refused + 1
                what = f"loss {outcome.loss:.4g}, gradient norm {outcome.grad_norm:.4g}"
                ui.warn(f"step {training.step + 1} refused: {what}; its batch is passed over ({row} in a row)")
                training.run.skipped[REFUSED] += 1
            if written == job.world:
                training.commit()
            if launched:
                continue
            last = training.step == total
            if stopping or row >= PATIENCE or last or (outcome.applied and training.step % plan.save_every == 0):
                training.save()
            if row >= PATIENCE:
                training.finish_saving()
                problem = f"{PATIENCE} steps in a row were not finite; the state of step {training.step} is saved"
                raise Fault(
                    training.directory, problem, "look at the data, or lower --lr and start over with --no-resume"
                )
            if stopping and not last:
                training.stop()
        training.finish_saving()
