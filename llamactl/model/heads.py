"""Reward models (paper, section 3.2.2): a Llama whose head gives one number, an answer's score at its last token."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llamactl.model import sharded
from llamactl.model.config import SCORED, Config
from llamactl.model.llama import Linear, Llama, Transformer
from llamactl.model.trees import Forest, Tree

SCORE = "score.weight"
BATCH_TOKENS = 8192  # scored at once


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
        """Scores of groups of sequences that begin alike, some groups at a time, the longest first."""
        device = self.norm.weight.device
        trees = [Tree.of(list(dict.fromkeys(map(tuple, group)))) for group in groups]
        found: list[dict[tuple[int, ...], float]] = [{} for _ in groups]
        order = sorted(range(len(groups)), key=lambda number: -trees[number].places)
        while order:
            size = max(1, BATCH_TOKENS // trees[order[0]].places)
            some, order = order[:size], order[size:]
            scores = iter(self.scores(Forest.of([trees[number] for number in some], device)).tolist())
            for number in some:
                for branch in trees[number].branches:
                    found[number][(*trees[number].stem, *branch)] = next(scores)
        return [[scores[tuple(one)] for one in group] for group, scores in zip(groups, found, strict=True)]

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
