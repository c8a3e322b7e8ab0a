"""AdamW (paper, section 2.2): betas 0.9 and 0.95, eps 1e-5, decay 0.1, clipping 1.0."""

import torch
from torch import nn

BETAS = (0.9, 0.95)
EPS = 1e-5
WEIGHT_DECAY = 0.1
CLIP = 1.0


def adamw(model: nn.Module, weight_decay: float = WEIGHT_DECAY) -> torch.optim.AdamW:
    """AdamW over all parameters; norms (one-dimensional) are not decayed, which the paper leaves open."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPS, fused=True)
