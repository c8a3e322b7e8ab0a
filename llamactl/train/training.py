"""A training as it stands: a model, its optimizer, how many steps they have made; saved to and resumed from disk.

PPO trains a second model beside it, its critic, which is part of the same state.
"""

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from llamactl import ui
from llamactl.artifacts import state
from llamactl.artifacts.run import Run
from llamactl.artifacts.tensors import Later
from llamactl.errors import Fault, Interrupted
from llamactl.model import sharded
from llamactl.model.llama import Transformer
from llamactl.train.halves import Parted
from llamactl.train.optim import AdamW
from llamactl.train.parallel import Job

STATE = "state"
REFUSED = "refused steps"
MOMENTS = ("exp_avg", "exp_avg_sq")


class Training:
    """A model, its optimizer and where they are in a run; saved to and resumed from ``directory/state``."""

    def __init__(
        self,
        model: Transformer,
        optimizer: AdamW,
        run: Run,
        directory: Path,
        job: Job,
        keep: int,
        beside: Mapping[str, AdamW] = {},
    ) -> None:
        self.model, self.optimizer, self.run, self.directory, self.job = model, optimizer, run, directory, job
        self._optimizers = {"": optimizer, **{f"{name}/": other for name, other in beside.items()}}
        self.facts: dict[str, Any] = {}  # what else is part of the state: JSON
        self.step = self.refused = 0
        self.saver = state.Saver(directory / STATE, job.rank, keep)
        self.stalled = 0.0  # seconds spent waiting for states to be saved

    @property
    def attempts(self) -> int:
        """Batches used: for updates, and refused."""
        return self.step + self.refused

    def save(self) -> None:
        """Begin to save the state of this moment; the one before is finished first."""
        self.finish_saving()
        with self._stall():
            asked = {"stage": self.run.stage, "settings": self.run.settings, "inputs": self.run.inputs}
            self.job.read_meters(self.run)
            facts = {
                "refused": self.refused,
                "updates": [each.updates for each in self._optimizers.values()],
                "beside": self.facts,
                "job": self.job.facts(),
                "device_seconds": self.run.effort.spent(),
                "joules": self.run.effort.joules(),
                "account": self.run.effort.account(),
            }
            pieces = {
                name: state.Piece(_later(held), sharded.box(parameter).offset, tuple(parameter.shape))
                for name, parameter, held in self.tensors()
                if sharded.first_copy(parameter) and sharded.local(parameter).numel()
            }
            self.saver.begin(self.step, pieces, {**facts, "asked": asked})

    def finish_saving(self) -> None:
        """Wait until all processes have saved what they have begun to save."""
        if self.saver.busy:
            with self._stall():
                self.saver.wait()
                self.job.agreed(True)
            self.commit()
            self.job.agreed(True)

    def commit(self) -> None:
        """Have the state that all have written count, if it does not yet."""
        if self.saver.busy:
            with self._stall():
                self.saver.commit()

    def stop(self, unit: str = "step") -> NoReturn:
        """Leave after a signal to any process, the state saved: raises Interrupted."""
        self.finish_saving()
        first = next(iter(self.job.caught), signal.SIGTERM)
        name = signal.Signals(first).name if self.job.caught else "a signal to another process"
        raise Interrupted(f"{self.directory}: stopped by {name} after {unit} {self.step}; run me again to go on", first)

    def before_update(self) -> None:
        """What is being saved from the memory of a CPU must not change: wait until it is written."""
        if self.saver.busy and self.job.device.type == "cpu":
            with self._stall():
                self.saver.wait()

    @contextmanager
    def _stall(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.stalled += time.perf_counter() - began

    def resume(self) -> bool:
        """Take up the newest state, of however many processes; whether there was one, which is said.

        One of a run that was asked for otherwise is overwritten if that was asked for, else a Fault is raised.
        """
        if self.job.told(self.run.stale):
            self._start_over()
            return False
        found = state.newest(self.directory / STATE, self.job.rank, self.job.world, self.job.agreed)
        if found is None:
            return False
        if difference := self.run.difference(found.facts["asked"]):
            if not self.run.overwrite:
                problem = f"was begun otherwise ({difference})"
                raise Fault(self.directory, problem, "ask for the same, or --no-resume to start over")
            self._start_over()
            return False
        self.step, self.refused = found.facts["step"], found.facts["refused"]
        self.run.effort.go_on(found.facts["device_seconds"], found.facts.get("joules"))
        self.run.skipped.update({REFUSED: self.refused} if self.refused else {})
        if (then := found.facts["job"]) != self.job.facts():
            ui.note(f"{found.place}: saved by {_shape(then)}, goes on as {_shape(self.job.facts())}: equal to rounding")
        wanted = set()
        for name, parameter, held in self.tensors():
            tensor = whole(held)
            found.read(name, sharded.box(parameter).offset, tensor)
            if isinstance(held, Parted):
                held.fill(tensor)
            wanted.add(name)
        if more := sorted(found.facts["tensors"].keys() - wanted):
            raise Fault(found.place, f"holds a tensor that this model has not: {more[0]}", "--no-resume to start over")
        for optimizer, updates in zip(self._optimizers.values(), found.facts["updates"], strict=True):
            optimizer.counted(updates)
        self.facts |= found.facts["beside"]
        ui.note(f"{self.directory}: going on after step {self.step:,}")
        return True

    def _start_over(self) -> None:
        self.job.agreed(True)  # all have read what the first now removes
        if self.job.rank == 0:
            self.run.clear()

    def tensors(self) -> Iterator[tuple[str, Tensor, Tensor | Parted]]:
        """All that makes up the state: its name, the parameter it belongs to, what this process holds of it."""
        for whose, optimizer in self._optimizers.items():
            for name, parameter in optimizer.parameters.items():
                yield f"{whose}parameter/{name}", parameter, optimizer.parted.get(name) or sharded.local(parameter)
                for moment, tensor in zip(MOMENTS, optimizer.moments[name], strict=True):
                    yield f"{whose}{moment}/{name}", parameter, tensor


def whole(held: Tensor | Parted) -> Tensor:
    """What is held, in fp32: itself, or made of its two parts."""
    return held.whole() if isinstance(held, Parted) else held


def _later(held: Tensor | Parted) -> Tensor | Later:
    """What is held, as it is saved: of two parts it is made piece by piece when its turn comes."""
    return Later(torch.float32, tuple(held.high.shape), held.pieces) if isinstance(held, Parted) else held


def _shape(job: Mapping[str, int]) -> str:
    number = job["processes"]
    return f"{number} process{'es' * (number > 1)} ({job['replicas']} x {job['shards']} x {job['tensor']})"
