"""AdamW and its schedule (paper, section 2.2): betas 0.9 and 0.95, eps 1e-5, decay 0.1, clipping 1.0, cosine."""

import math
from typing import NamedTuple

import torch
from torch import nn

BETAS = (0.9, 0.95)
EPS = 1e-5
WEIGHT_DECAY = 0.1
CLIP = 1.0
WARMUP = 2000  # steps; a shorter run warms up over a tenth of its own


class Cosine(NamedTuple):
    """The learning rate as a function of the step: linear warm-up to ``peak``, a cosine down to ``floor`` x peak."""

    peak: float
    warmup: int
    steps: int
    floor: float = 0.1

    def at(self, step: int) -> float:
        """Learning rate of step 0, 1, ...: never 0, ``peak`` at the end of the warm-up, ``floor`` at the last step."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step + 1 - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def adamw(model: nn.Module, weight_decay: float = WEIGHT_DECAY) -> torch.optim.AdamW:
    """AdamW over all parameters; norms (one-dimensional) are not decayed, which the paper leaves open."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPS, fused=True)
