"""Reward models (paper, section 3.2.2): a Llama whose head gives one number, an answer's score at its last token."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llamactl.model import sharded
from llamactl.model.attention import Documents
from llamactl.model.config import SCORED, Config
from llamactl.model.llama import Linear, Llama, Transformer
from llamactl.model.trees import Forest, Tree, forests

SCORE = "score.weight"


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
        trees = (Tree.of(list(dict.fromkeys(map(tuple, group)))) for group in groups)
        found: dict[tuple[int, ...], float] = {}
        for sequences, forest in forests(trees, self.norm.weight.device):
            found.update(zip(sequences, self.scores(forest).tolist(), strict=True))
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
