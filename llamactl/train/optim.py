"""AdamW (paper, section 2.2): betas 0.9 and 0.95, eps 1e-5, decay 0.1, clipping 1.0."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from llamactl.model import functions, fused, sharded
from llamactl.model.llama import Transformer
from llamactl.train.halves import Parted
from llamactl.train.schedule import Cosine

BETAS = (0.9, 0.95)
EPS = 1e-5
WEIGHT_DECAY = 0.1
CLIP = 1.0


class AdamW:
    """AdamW (Loshchilov and Hutter, 2019) on what this process holds of each parameter that learns, in one kernel.

    Norms (one-dimensional) are not decayed, which the paper leaves open. The count of updates, the learning rate and
    whether an update is refused stay on the device, so that a step waits for nothing.

    A process that trains alone on a CPU, in bf16, has matrices in two parts from here on: the model computes with one.
    """

    def __init__(self, model: Transformer, schedule: Cosine, weight_decay: float = WEIGHT_DECAY) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.groups: dict[float, list[str]] = {}  # names of parameters by their decay
        for name, parameter in self.parameters.items():
            self.groups.setdefault(weight_decay if parameter.dim() > 1 else 0.0, []).append(name)
        self.parted = {name: Parted.of(p) for name, p in self.parameters.items() if _can_be_parted(model, name, p)}
        self.moments = {name: (_zeros(p), _zeros(p)) for name, p in self.parameters.items()}
        device = next(iter(self.moments.values()))[0].device
        self._count = torch.zeros((), device=device)  # torch's kernel wants one of each parameter, too
        self._counts = {name: torch.zeros((), device=device) for name in self.parameters if name not in self.parted}
        rates = map(schedule.at, range(schedule.steps))
        self._rates = torch.from_numpy(np.fromiter(rates, np.float64, schedule.steps)).to(device, torch.float32)

    @property
    def updates(self) -> int:
        """How many have been made."""
        return int(self._count)

    def counted(self, updates: int) -> None:
        """Set how many updates have been made."""
        for count in (self._count, *self._counts.values()):
            count.fill_(updates)

    @torch.profiler.record_function("Optimizer.step")  # as profiles name those of torch
    @torch.no_grad()
    def step(self, divisor: Tensor, refused: Tensor) -> None:
        """Update with the gradients over ``divisor``, or not at all where ``refused`` is true."""
        clipped = divisor.device.type != "cpu" or divisor.item() != 1.0  # a CPU saves writing the gradients back
        place = self._count.long().clamp_max(len(self._rates) - 1)
        rate = torch.take(self._rates, place)  # an index would be waited for
        if self.parted and not refused:
            self._update_parted(divisor.item(), rate.item())
        for decay, names in self.groups.items():
            names = [name for name in names if name not in self.parted]
            gradients = [self.parameters[name].grad for name in names]
            adamw(
                [sharded.local(self.parameters[name]) for name in names],
                [sharded.local(gradient) for gradient in gradients if gradient is not None],
                [self.moments[name][0] for name in names],
                [self.moments[name][1] for name in names],
                [],
                [self._counts[name] for name in names],
                fused=True,
                grad_scale=divisor if clipped else None,
                found_inf=refused.float(),
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=rate,
                weight_decay=decay,
                eps=EPS,
                maximize=False,
            )
        self._count += ~refused

    def _update_parted(self, divisor: float, rate: float) -> None:
        corrected = [1 - beta ** (self.updates + 1) for beta in BETAS]
        numbers = {
            "divisor": divisor, "beta_1": BETAS[0], "beta_2": BETAS[1], "rate": rate / corrected[0],
            "root": corrected[1] ** -0.5, "eps": EPS,
        }  # fmt: skip
        for decay, names in self.groups.items():
            for name in names:
                gradient = self.parameters[name].grad
                if name in self.parted and gradient is not None:
                    decayed = {**numbers, "decay": 1 - rate * decay}
                    fused.adamw(self.parted[name], gradient.contiguous(), self.moments[name], decayed)

    def zero_grad(self, adding_up: bool = False) -> None:
        """Drop the gradients; those that come are in fp32, or in what their weights are in, if none are to add up."""
        for parameter in self.parameters.values():
            parameter.grad = None
        for parted in self.parted:
            self.parameters[parted].grad_dtype = torch.float32 if adding_up else torch.bfloat16

    @torch.profiler.record_function("clip_grad_norm")
    def squares(self) -> Tensor:
        """The part of the gradients' squared norm that this process accounts for; over all it adds up to the whole."""
        total = torch.zeros((), dtype=torch.float64, device=self._count.device)
        for held in sorted({sharded.copies(p) for p in self.parameters.values()}):
            gradients = [p.grad for p in self.parameters.values() if sharded.copies(p) == held]
            mine = [sharded.local(gradient) for gradient in gradients if gradient is not None]
            if all(map(fused.suits, mine)):
                total += sum(map(fused.squares, mine)) / held
            else:
                total += torch.nn.utils.get_total_norm(mine).double().square() / held
        return total


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(sharded.local(parameter), dtype=torch.float32)


def _can_be_parted(model: Transformer, name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix that this process has for itself, and rounds to bf16 where it computes."""
    device = parameter.device
    rounded = model.dtype == torch.bfloat16 == functions.weight_dtype(model.dtype, device)
    if not rounded or sharded.spread(parameter) or name in model.wide or parameter.dim() < 2:
        return False
    return parameter.dtype == torch.float32 and fused.there(device)
