"""The answers of a PPO iteration as it trains on them (paper, section 3.2.3), cut into mini-batches.

n answers of at most T tokens; what is known of each token stands in columns ``[n, T]``, the same on all processes. A
mini-batch is shared out to the processes, and computed in parts of whole answers that stand in one row, each behind its
prompt and none seeing another: M tokens of answers. The same parts are taken before the update and in it, so that not
even rounding tells the policy that was sampled from and the one that is about to learn apart.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from llamactl.model.trees import Forest, Tree
from llamactl.train.batches import place
from llamactl.train.packing import balanced
from llamactl.train.parallel import Job


class Rollout(NamedTuple):
    """A prompt and an answer to it, as ids, and what the sampler says that log p of the answer's tokens is."""

    prompt: Sequence[int]
    answer: Sequence[int]
    log_probs: Sequence[float]


def asked(iteration: int, batch_size: int, prompts: int, seed: int) -> list[tuple[int, int]]:
    """Which of so many prompts an iteration, from 1 on, asks, and the number of the sample of each: never one twice.

    All are asked once before any is asked again.
    """
    numbers = range((iteration - 1) * batch_size, iteration * batch_size)
    return [(place(number, prompts, f"{seed} prompts"), number // prompts) for number in numbers]


class Rollouts:
    """Answers, and the columns of what is known of their tokens; ``known`` adds one."""

    def __init__(self, each: Sequence[Rollout], job: Job) -> None:
        self.each, self.job = each, job
        self.lengths = [len(rollout.answer) for rollout in each]
        time = torch.arange(max(self.lengths))
        self.mask = (time < torch.tensor(self.lengths)[:, None]).to(job.device)
        self.columns: dict[str, Tensor] = {}

    def batches(self, size: int, key: str, tokens: int | None = None) -> list["Part"]:
        """This process's share of each mini-batch, in an order that is a function of ``key``.

        With ``tokens`` they are split so that no part has more of them, prompts included, or is one answer.
        """
        share = self.job.share(size)
        order = [place(index, len(self.each), key) for index in range(len(self.each))]
        some = [order[start : start + size] for start in range(0, len(order), size)]
        return [
            Part(
                self,
                tuple(numbers[share.first : share.first + share.size]),
                sum(self.lengths[n] for n in numbers),
                self._cuts(numbers, share.size, tokens) if tokens else 1,
            )
            for numbers in some
        ]

    def _cuts(self, numbers: Sequence[int], size: int, tokens: int) -> int:
        """In how many parts of so many tokens every process, whose shares have one ``size``, can compute its own.

        All compute as many: those that shard a model wait for each other in each.
        """
        shares = [self.whole(numbers[start : start + size]) for start in range(0, len(numbers), size)]
        fewest = max(-(-sum(lengths) // tokens) for lengths in shares)
        for cuts in range(fewest, size):
            parts = ((lengths, part) for lengths in shares for part in balanced(lengths, size, cuts))
            if all(sum(lengths[n] for n in part) <= tokens for lengths, part in parts):
                return cuts
        return size

    def whole(self, numbers: Sequence[int]) -> list[int]:
        """Tokens of some answers, their prompts' among them."""
        return [len(self.each[n].prompt) + self.lengths[n] for n in numbers]

    @torch.no_grad()
    def known(self, name: str, batches: Sequence["Part"], micro_batch: int, tell: Callable[["Part"], Tensor]) -> None:
        """Have a column of what ``tell`` says, ``[M]``, of the parts of all mini-batches."""
        column = torch.zeros(self.mask.shape, device=self.job.device)
        for batch in batches:
            for part in batch.split(micro_batch):
                column.view(-1)[part.places] = tell(part)
        if self.job.rank % self.job.tensor:  # tensor neighbours have the same
            column.zero_()
        self.columns[name] = self.job.sum(column)

    def flat(self, name: str) -> Tensor:
        """What a column says of all tokens, one after the other."""
        return self.columns[name][self.mask]

    def seen(self) -> dict[str, float]:
        """Of the policy before it learns: KL to the reference, in nats an answer and a token; entropy a token.

        Both are estimates by the tokens that were drawn: log(pi / pi_0), and -log pi. ``mismatch`` is by how much the
        sampler's log p of a token differs, on average.
        """
        said = self.columns["log_probs"]
        of_answers = ((said - self.columns["reference"]) * self.mask).double().sum(1)
        sampled = torch.tensor([log_prob for one in self.each for log_prob in one.log_probs], dtype=torch.float64)
        tokens = sum(self.lengths)
        return {
            "kl": float(of_answers.mean()),
            "kl_stderr": float(of_answers.std() / len(of_answers) ** 0.5),
            "kl_token": float(of_answers.sum() / tokens),
            "entropy": float(-(said * self.mask).double().sum() / tokens),
            "mismatch": float((self.flat("log_probs").cpu().double() - sampled).abs().mean()),
        }


class Part(NamedTuple):
    """Some of the answers, and how many tokens the mini-batch has that they are of, on all processes."""

    rollouts: Rollouts
    numbers: tuple[int, ...]
    targets: int
    cuts: int = 1  # the fewest parts that they are split into

    @property
    def device(self) -> torch.device:
        """Where they are trained on."""
        return self.rollouts.job.device

    def split(self, size: int) -> list[Self]:
        """Parts of at most ``size`` answers."""
        parts = balanced(self.rollouts.whole(self.numbers), size, self.cuts)
        return [self._replace(numbers=tuple(self.numbers[n] for n in numbers)) for numbers in parts]

    @property
    def places(self) -> Tensor:
        """Where their tokens stand in columns, laid out row after row: int64 ``[M]``."""
        width = self.rollouts.mask.shape[1]
        return torch.cat([torch.arange(n * width, n * width + self.rollouts.lengths[n]) for n in self.numbers]).to(
            self.device, non_blocking=True
        )

    def column(self, name: str) -> Tensor:
        """What a column says of their tokens, ``[M]``."""
        return self.rollouts.columns[name].view(-1)[self.places]

    def row(self) -> tuple[Forest, Tensor, Tensor]:
        """Prompts and answers in one row; where in it a token of an answer is to follow, and which: int64 ``[M]``."""
        some = [self.rollouts.each[number] for number in self.numbers]
        forest = Forest.of([Tree([], [[*one.prompt, *one.answer[:-1]]]) for one in some], self.device)
        learned, start = [], 0
        for one in some:
            end = start + len(one.prompt) + len(one.answer) - 1
            learned.append(torch.arange(start + len(one.prompt) - 1, end))
            start = end
        targets = torch.tensor([token for one in some for token in one.answer])
        where = torch.cat(learned).to(self.device, non_blocking=True)
        return forest, where, targets.to(self.device, non_blocking=True)
