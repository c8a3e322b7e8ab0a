"""AdamW (paper, section 2.2): betas 0.9 and 0.95, eps 1e-5, decay 0.1, clipping 1.0."""

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from llamactl.model import sharded
from llamactl.train.schedule import Cosine

BETAS = (0.9, 0.95)
EPS = 1e-5
WEIGHT_DECAY = 0.1
CLIP = 1.0


class AdamW:
    """AdamW (Loshchilov and Hutter, 2019) on what this process holds of each parameter that learns, in one kernel.

    Norms (one-dimensional) are not decayed, which the paper leaves open. The count of updates, the learning rate and
    whether an update is refused stay on the device, so that a step waits for nothing.
    """

    def __init__(self, model: nn.Module, schedule: Cosine, weight_decay: float = WEIGHT_DECAY) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.groups: dict[float, list[str]] = {}  # names of parameters by their decay
        for name, parameter in self.parameters.items():
            self.groups.setdefault(weight_decay if parameter.dim() > 1 else 0.0, []).append(name)
        self.moments = {
            name: (torch.zeros_like(sharded.local(p)), torch.zeros_like(sharded.local(p)))
            for name, p in self.parameters.items()
        }
        device = next(iter(self.moments.values()))[0].device
        self._counts = {name: torch.zeros((), device=device) for name in self.parameters}
        rates = [schedule.at(step) for step in range(schedule.steps)]
        self._rates = torch.tensor(rates, device=device)

    @property
    def updates(self) -> int:
        """How many have been made."""
        return int(next(iter(self._counts.values())))

    def counted(self, updates: int) -> None:
        """Set how many updates have been made."""
        for count in self._counts.values():
            count.fill_(updates)

    @torch.no_grad()
    def step(self, divisor: Tensor, refused: Tensor) -> None:
        """Update with the gradients over ``divisor``, or not at all where ``refused`` is true."""
        clipped = divisor.device.type != "cpu" or divisor.item() != 1.0  # a CPU saves writing the gradients back
        count = next(iter(self._counts.values()))
        rate = torch.take(self._rates, count.long().clamp_max(len(self._rates) - 1))  # an index would be waited for
        for decay, names in self.groups.items():
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

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def squares(self) -> Tensor:
        """The part of the gradients' squared norm that this process accounts for; over all it adds up to the whole."""
        total = torch.zeros((), dtype=torch.float64, device=next(iter(self._counts.values())).device)
        for held in sorted({sharded.copies(p) for p in self.parameters.values()}):
            gradients = [p.grad for p in self.parameters.values() if sharded.copies(p) == held]
            mine = [sharded.local(gradient) for gradient in gradients if gradient is not None]
            total += torch.nn.utils.get_total_norm(mine).double().square() / held
        return total
