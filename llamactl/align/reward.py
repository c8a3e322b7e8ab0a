"""What a reward model learns (paper, section 3.2.2 and appendix A.3.3): which of two answers is better, which is safe.

And what is made of the scores of two: one reward, for rejection sampling and PPO (section 3.2.3). n comparisons, or
answers; scores are raw, linear, fp32.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llamactl.artifacts.records import Rating

# m(r) of equation 2, by how much better the chosen answer is (Table 27).
MARGINS: Mapping[str, Mapping[Rating, float]] = {
    "none": {},
    "small": {"significantly_better": 1, "better": 2 / 3, "slightly_better": 1 / 3, "negligibly_better": 0},
    "large": {"significantly_better": 3, "better": 2, "slightly_better": 1, "negligibly_better": 0},
}

UNSAFE = 0.15  # sigmoid(safety score) below which an answer is taken for unsafe (section 3.2.3)

MEASURED = ("accuracy", "margin", "safety_loss")  # what ``loss`` has to say beside the loss, on average of comparisons


def ranking_loss(chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected - m), ``[n]`` of three ``[n]`` (equation 2)."""
    if not chosen.shape == rejected.shape == margin.shape:  # they would broadcast to [n, n]
        raise ValueError(f"shapes differ: {chosen.shape}, {rejected.shape}, {margin.shape}")
    return -F.logsigmoid(chosen - rejected - margin)


def safety_loss(scores: Tensor, safe: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid(score) and whether the answer is safe, ``[n, 2]``; 0 where ``safe`` is nan."""
    known = ~safe.isnan()
    return F.binary_cross_entropy_with_logits(scores, safe.nan_to_num(0.0), reduction="none") * known


def loss(scores: Tensor, margin: Tensor, safe: Tensor, safety_weight: float) -> Tensor:
    """Sums over n comparisons: the loss, and beside it what ``MEASURED`` names.

    ``scores`` and ``safe`` are ``[n, 2]``, chosen first; ``margin`` is ``[n]``. The safety loss is the mean of both
    answers', counted ``safety_weight`` times (the paper leaves the weight open). Equal scores are half right.
    """
    chosen, rejected = scores.unbind(1)
    safety = safety_loss(scores, safe).mean(1).sum()
    total = ranking_loss(chosen, rejected, margin).sum() + safety_weight * safety
    apart = (chosen - rejected).detach()
    right = (apart > 0).float() + 0.5 * (apart == 0).float()
    return torch.stack([total, right.sum(), apart.sum(), safety.detach()])


def by_safety(safety: Tensor, tagged: Tensor) -> Tensor:
    """Which of n answers the safety model is to reward: to prompts ``tagged``, and those it takes for unsafe."""
    return tagged | (safety.sigmoid() < UNSAFE)


def combined(helpfulness: Tensor, safety: Tensor | None, tagged: Tensor) -> Tensor:
    """R_c of section 3.2.3, ``[n]`` of raw scores ``[n]``: the safety model's ``by_safety``, else the other's.

    ``tagged`` says of each answer whether its prompt is likely to elicit unsafe ones. The paper puts sigmoids back on
    the linear scale; these scores have never left it.
    """
    return helpfulness if safety is None else torch.where(by_safety(safety, tagged), safety, helpfulness)
