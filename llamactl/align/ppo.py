"""PPO with the paper's reward (section 3.2.3; Schulman et al., 2017): rewards, advantages, clipped losses.

n answers of at most T tokens; ``mask [n, T]`` says which tokens are there. In a loss M tokens stand in a row, whatever
answers they are of. All numbers are fp32. A score is one number an answer, raw and linear, as the reward models give
it: the paper's logit(sigmoid) is that score.

What the paper leaves open is decided here as by those who have looked closest (Stiennon et al., 2020; Huang et al.,
2024, "The N+ implementation details of RLHF with PPO"): advantages by GAE with gamma 1 and lambda 0.95, whitened;
values clipped as the policy is.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

OF_POLICY = ("clip_fraction", "approx_kl", "ratio_off")  # what ``policy_loss`` has to say beside it, a token
NEAR = 1e-4  # how near 1 the ratios are while the policy is the one that answered


def whitened(values: Tensor) -> Tensor:
    """``[n]`` less their mean, over their standard deviation (of n - 1); zeros where they are all equal."""
    wide = values.double()
    if len(wide) < 2 or bool((wide == wide[0]).all()):
        return torch.zeros_like(values)
    return ((wide - wide.mean()) / wide.std()).to(values.dtype)


def rewards(scores: Tensor, counted: Tensor, otherwise: float) -> Tensor:
    """What each answer gets, ``[n]``: its whitened score; ``otherwise`` where it is not ``counted``, as it was cut off.

    Scores are whitened before KL is taken off (pitfall of others: after), over those that count alone.
    """
    of = torch.full_like(scores, otherwise)
    of[counted] = whitened(scores[counted])
    return of


def shaped(answers: Tensor, log_ratios: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Rewards of tokens ``[n, T]``: -beta log(pi / pi_0) each, and on an answer's last token its own ``[n]`` as well.

    ``log_ratios [n, T]`` are of the policy that was sampled from to the reference: their sum over an answer is an
    estimate of KL(pi || pi_0) (equation 4 and what follows it).
    """
    of_tokens = -beta * log_ratios * mask
    last = mask.sum(1, keepdim=True) - 1
    return of_tokens.scatter_add(1, last, answers[:, None])


def advantages(of_tokens: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns ``[n, T]`` by GAE (Schulman et al., 2016, equation 16); nothing follows the last token.

    ``values [n, T]`` are expectations before each token is said.
    """
    found = torch.zeros_like(of_tokens)
    following = running = torch.zeros_like(of_tokens[:, 0])
    for time in reversed(range(of_tokens.shape[1])):
        here = mask[:, time]
        error = of_tokens[:, time] + gamma * following - values[:, time]
        found[:, time] = running = (error + gamma * lam * running) * here
        following = values[:, time] * here
    return found, (found + values) * mask


def lessons(
    answers: Tensor, known: Mapping[str, Tensor], mask: Tensor, beta: float, gamma: float, lam: float
) -> dict[str, Tensor]:
    """What policy and critic learn from rewards of answers ``[n]``: whitened advantages, and returns, ``[n, T]``.

    ``known`` are log p of the tokens by the policy, before it learns, and by the reference, and the critic's values.
    """
    of_tokens = shaped(answers, known["log_probs"] - known["reference"], mask, beta)
    gains, returns = advantages(of_tokens, known["values"], mask, gamma, lam)
    return {"advantages": torch.zeros_like(gains).masked_scatter(mask, whitened(gains[mask])), "returns": returns}


def policy_loss(log_probs: Tensor, before: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Sums over M tokens: the clipped loss (Schulman et al., 2017, equation 7), and what ``OF_POLICY`` names.

    Those are tokens whose ratio is beyond the clip, an estimate of KL(before || now) that is never negative
    (Schulman's k3), and tokens whose ratio is not 1, to ``NEAR``.
    """
    log_ratio = log_probs - before
    ratio = log_ratio.exp()
    loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).sum()
    with torch.no_grad():
        off = (ratio - 1).abs()
        beside = [(off > clip).float().sum(), (ratio - 1 - log_ratio).sum(), (off > NEAR).float().sum()]
    return torch.stack([loss, *beside])


def value_loss(values: Tensor, before: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Sum over M tokens of half the squared error, the larger of that of the value and of the value kept near before.

    A coefficient would change nothing: the critic has an optimizer of its own, and Adam's steps do not see scale.
    """
    near = torch.clamp(values, before - clip, before + clip)
    return 0.5 * torch.max((values - returns).square(), (near - returns).square()).sum()


def explained(values: Tensor, returns: Tensor) -> float:
    """The share of the variance of returns ``[M]`` that values explain: 1 is all, 0 no better than their mean."""
    variance = returns.double().var()
    return float(1 - (returns - values).double().var() / variance) if variance > 0 else 0.0
