"""Reward models (paper, section 3.2.2): a Llama whose head gives one number, an answer's score at its last token."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Self, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llamactl.model import sharded
from llamactl.model.attention import Documents
from llamactl.model.config import SCORED, Config
from llamactl.model.llama import Linear, Llama, Transformer
from llamactl.model.trees import Forest, Tree

SCORE = "score.weight"
BATCH_TOKENS = 8192  # scored at once
KEYS = 8  # times as many keys, at most: those of a prompt are there once for each answer that attends to them


class Scalar(Linear):
    """One number a hidden state, in fp32, whatever the rest computes in."""

    def __init__(self, inputs: int) -> None:
        super().__init__(inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float())


class RewardModel(Transformer):
    """``score`` in the place of the language model's head."""

    architecture = SCORED
    loss = "scores"
    wide = frozenset({SCORE})

    def __init__(self, config: Config, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, dtype)
        self.score = Scalar(config.dim)

    def scores(self, forest: Forest) -> Tensor:
        """Raw scores, fp32 ``[n]``, of the forest's sequences, each at its last token."""
        hidden = self.forward(forest.tokens, documents=forest.documents)
        return cast(Tensor, self.score(hidden.flatten(0, 1)[forest.ends]))[:, 0]

    @torch.inference_mode()
    def judge(self, groups: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        """Scores of groups of sequences that begin alike, about ``BATCH_TOKENS`` at a time, the longest first."""
        device = self.norm.weight.device
        trees = sorted((tree for group in groups for tree in _trees(group)), key=lambda tree: -tree.places)
        found: dict[tuple[int, ...], float] = {}
        while trees:
            size = max(1, BATCH_TOKENS // trees[0].places)
            keys = accumulate(tree.keys for tree in trees[:size])
            size = max(1, sum(number <= KEYS * BATCH_TOKENS for number in keys))
            some, trees = trees[:size], trees[size:]
            sequences = ((*tree.stem, *branch) for tree in some for branch in tree.branches)
            found.update(zip(sequences, self.scores(Forest.of(some, device)).tolist(), strict=True))
        return [[found[tuple(sequence)] for sequence in group] for group in groups]

    @classmethod
    def begun(
        cls, path: Path, dtype: torch.dtype, device: torch.device, arrange: Callable[[Self], None] = lambda model: None
    ) -> Self:
        """A language model's directory to be trained as a reward model: its head is dropped, the score starts at 0."""
        config, _ = Llama.described(path)
        model = cls._empty(replace(config, scored=True), dtype, device, arrange)
        model.fill(path, without=SCORE, beside="lm_head.weight")
        sharded.local(model.score.weight).zero_()
        return model


class Critic(RewardModel):
    """A reward model that says of each place what the score will come to: the value model of PPO (section 3.2.3)."""

    loss = "values"

    def values(self, tokens: Tensor, documents: Documents, learned: Tensor) -> Tensor:
        """Values, fp32 ``[M]``, at places ``learned [M]`` of tokens ``[B, T]``, in rows laid one after the other."""
        hidden = self.forward(tokens, documents=documents)
        return cast(Tensor, self.score(hidden.flatten(0, 1)[learned]))[:, 0]


def _trees(group: Sequence[Sequence[int]]) -> Iterator[Tree]:
    """Sequences that begin alike as trees, each sequence once: several where one is more than is scored at once."""
    stem, branches = Tree.of(list(dict.fromkeys(map(tuple, group))))
    some = Tree(stem, [])
    for branch in branches:
        more = Tree(stem, [*some.branches, branch])
        if some.branches and (more.places > BATCH_TOKENS or more.keys > KEYS * BATCH_TOKENS):
            yield some
            more = Tree(stem, [branch])
        some = more
    yield some
