"""Policy and critic as they learn together in PPO (paper, section 3.2.3), and the reference, which does not."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple

from torch import Tensor

from llamactl.model import sharded
from llamactl.model.device import lent
from llamactl.model.heads import Critic
from llamactl.model.llama import Llama, Transformer
from llamactl.train.optim import AdamW
from llamactl.train.parallel import Job
from llamactl.train.rollouts import Part, Rollouts
from llamactl.train.step import Loss, Outcome, take

Objective = Callable[[Tensor, Part], Tensor]  # of log p, or values, ``[M]`` of a part: sums over its tokens


class Update(NamedTuple):
    """What a gradient step of both models on one mini-batch came to."""

    policy: Outcome
    critic: Outcome

    @property
    def refused(self) -> int:
        """Models that it has left as they were, since a loss or a gradient was not finite."""
        return (not self.policy.applied) + (not self.critic.applied)


class ActorCritic:
    """The three models, and how many answers they compute at once.

    Log p is at ``temperature``. ``beside`` names the sums that come with the policy's loss. The reference may be
    ``away``, in the host's memory, while it does not work.
    """

    def __init__(
        self,
        policy: Llama,
        critic: Critic,
        reference: Llama,
        optimizers: tuple[AdamW, AdamW],
        job: Job,
        micro_batch: int,
        temperature: float,
        beside: Sequence[str],
        away: bool = False,
    ) -> None:
        self.policy, self.critic, self.reference, self.optimizers = policy, critic, reference, optimizers
        self.job, self.micro_batch, self.temperature, self.beside = job, micro_batch, temperature, beside
        self.away = away
        self.zero, self.unit = 0.0, 1.0  # of the critic's values

    def said(self, network: Llama, part: Part) -> Tensor:
        """Logarithms of the probabilities of the tokens, fp32 ``[M]``."""
        forest, learned, targets = part.row()
        return -network.nll(forest.tokens, targets, forest.documents, learned, self.temperature)

    def expected(self, network: Critic, part: Part) -> Tensor:
        """What is expected before each token is said, fp32 ``[M]``, in units of whitened scores."""
        forest, learned, _ = part.row()
        return (network.values(forest.tokens, forest.documents, learned) - self.zero) / self.unit

    def calibrate(self, data: Rollouts, unit: float) -> tuple[float, float]:
        """Have the critic begin in units of whitened scores, by what it says of the first answers; where 0 is, and 1.

        It is a reward model, whose scores are raw: ``unit`` is their standard deviation. Off by a constant, it would
        have to learn that first, and all advantages would be wrong meanwhile, those near an answer's end the most.
        """
        self.zero, self.unit = float(data.flat("values").double().mean()), unit or 1.0
        data.columns["values"] = (data.columns["values"] - self.zero) / self.unit * data.mask
        return self.zero, self.unit

    def shrink(self, data: Rollouts, rewards: Tensor) -> tuple[float, float]:
        """Have what the critic says of the first answers count for as much as it foretells of their rewards ``[n]``.

        A reward model has learned nothing of answers that are not complete: it finds most of them worse than what they
        come to, and ends would look like losses until that is unlearned. Its head is scaled by least squares.
        """
        values = data.flat("values").double()
        worth = rewards[:, None].expand(data.mask.shape)[data.mask].double()
        squares = float(values.square().sum())
        share = min(max(float(values @ (worth - worth.mean())) / squares, 0.0), 1.0) if squares else 1.0
        sharded.local(self.critic.score.weight).mul_(share)
        self.zero *= share
        data.columns["values"] = data.columns["values"] * share
        return self.zero, self.unit

    def look(self, data: Rollouts, minis: Sequence[Part]) -> None:
        """Before they learn from mini-batches: log p of all tokens by policy and reference, and the critic's values."""
        data.known("log_probs", minis, self.micro_batch, partial(self.said, self.policy))
        with lent(self.reference, self.job.device, self.away):
            data.known("reference", minis, self.micro_batch, partial(self.said, self.reference))
        data.known("values", minis, self.micro_batch, partial(self.expected, self.critic))

    def learn(
        self, mini: Part, of_policy: Objective, of_critic: Objective, before_update: Callable[[], None]
    ) -> Update:
        """One gradient step of each; no gradients lie there while another model works."""

        def step(network: Transformer, optimizer: AdamW, loss_of: Loss) -> Tensor:
            how = mini.targets, self.micro_batch, self.job
            seen = take(network, optimizer, loss_of, mini, *how, before_update=before_update)
            optimizer.zero_grad()
            return seen

        ours, theirs = self.optimizers
        policy = step(self.policy, ours, lambda network, part: of_policy(self.said(network, part), part))
        critic = step(self.critic, theirs, lambda network, part: of_critic(self.expected(network, part), part))
        return Update(Outcome.read(policy, len(self.beside)), Outcome.read(critic))


def summary(updates: Sequence[Update], beside: Sequence[str]) -> dict[str, float]:
    """Means over the steps of an iteration that were made, by name."""
    policy = [update.policy for update in updates if update.policy.applied]
    critic = [update.critic for update in updates if update.critic.applied]
    found = {
        **{f"policy_{name}": [getattr(one, name) for one in policy] for name in ("loss", "grad_norm")},
        **{name: [one.beside[number] for one in policy] for number, name in enumerate(beside)},
        **{f"value_{name}": [getattr(one, name) for one in critic] for name in ("loss", "grad_norm")},
    }
    return {name: fmean(values) if values else math.nan for name, values in found.items()}
