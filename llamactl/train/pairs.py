"""Comparisons as a reward model trains on them (paper, section 3.2.2): pairs of answers, and which pairs a step sees.

A pair is a tree: what both sides have in common is computed once (``model/trees.py``). A step takes whole pairs, in
rows as long as they come to, so that no place is wasted; the order is another in each epoch, a function of (seed,
global sample index).
"""

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from llamactl.model.heads import RewardModel
from llamactl.model.trees import Forest, Tree
from llamactl.train.batches import place
from llamactl.train.packing import balanced

UNKNOWN = math.nan  # whether an answer is safe that has no label

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]  # of scores and safety [n, 2], margins [n]: sums over pairs


class Pair(NamedTuple):
    """Two answers to one prompt, the chosen one first."""

    tree: Tree
    margin: float
    safe: tuple[float, float]  # 1, 0 or ``UNKNOWN``


class Compared(NamedTuple):
    """Pairs of a batch, still as they are kept: a step makes a row of tensors of them when their turn comes."""

    pairs: tuple[Pair, ...]
    device: torch.device = torch.device("cpu")

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """To be trained on there."""
        return self._replace(device=device)

    def split(self, size: int) -> list[Self]:
        """Batches of at most ``size`` pairs, as few as can be, and as long as each other as can be: longest first."""
        parts = balanced([pair.tree.places for pair in self.pairs], size)
        return [self._replace(pairs=tuple(self.pairs[number] for number in part)) for part in parts]


def compared(model: RewardModel, batch: Compared, objective: Objective) -> Tensor:
    """The objective's sums over the pairs of a batch."""
    forest = Forest.of([pair.tree for pair in batch.pairs], batch.device)
    margin = torch.tensor([pair.margin for pair in batch.pairs]).to(batch.device, non_blocking=True)
    safe = torch.tensor([pair.safe for pair in batch.pairs]).to(batch.device, non_blocking=True)
    return objective(model.scores(forest).view(-1, 2), margin, safe)


class Pairs:
    """Comparisons as ids, one after the other in memory."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._ids, self._ends = array("I"), array("Q", [0])  # where in ids a stem or a branch ends: three of each pair
        self._margins, self._safe = array("f"), array("f")
        self._some: Sequence[int] | None = None  # only these count

    def add(
        self, chosen: Sequence[int], rejected: Sequence[int], margin: float, safe: tuple[float, float] | None
    ) -> None:
        """One more; the sides differ."""
        tree = Tree.of([chosen, rejected])
        for part in (tree.stem, *tree.branches):
            self._ids.extend(part)
            self._ends.append(len(self._ids))
        self._margins.append(margin)
        self._safe.extend(safe or (UNKNOWN, UNKNOWN))

    def only(self, numbers: Sequence[int]) -> Self:
        """These pairs of it, in this order; they are not copied."""
        part = copy(self)
        part._some = array("Q", numbers)
        return part

    def __len__(self) -> int:
        return len(self._margins) if self._some is None else len(self._some)

    def __getitem__(self, number: int) -> Pair:
        number = number if self._some is None else self._some[number]
        begin, stem, chosen, rejected = self._ends[3 * number : 3 * number + 4]
        tree = Tree(self._ids[begin:stem], [self._ids[stem:chosen], self._ids[chosen:rejected]])
        safe = self._safe[2 * number : 2 * number + 2]
        return Pair(tree, self._margins[number], (safe[0], safe[1]))

    def _lengths(self) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """Tokens of the stem and of both branches of each pair, ``[n, 3]``."""
        ends = np.frombuffer(self._ends, dtype=np.int64)
        lengths = (ends[1:] - ends[:-1]).reshape(-1, 3)
        return lengths if self._some is None else lengths[np.asarray(self._some, dtype=np.int64)]

    @property
    def tokens(self) -> int:
        """Of both sides, written out."""
        return int((self._lengths() @ (2, 1, 1)).sum())

    @property
    def places(self) -> int:
        """What all of them take, common beginnings counted once."""
        return int(self._lengths().sum())

    @property
    def labelled(self) -> int:
        """How many have a safety label."""
        known = ~np.isnan(np.frombuffer(self._safe, dtype=np.float32)[::2])
        return int((known if self._some is None else known[np.asarray(self._some, dtype=np.int64)]).sum())

    def some(self, numbers: Iterable[int], device: torch.device) -> Compared:
        """A batch of these."""
        return Compared(tuple(map(self.__getitem__, numbers)), device)

    def weight(self, numbers: Sequence[int]) -> int:
        """What the loss of these is divided by."""
        return len(numbers)

    def seen(self, start: int, size: int) -> int:
        """How many tokens these global samples take, common beginnings counted once."""
        lengths = self._lengths().sum(1)
        return int(sum(lengths[self.pair(index)] for index in range(start, start + size)))

    def rows(self) -> list[tuple[str, str]]:
        """What a person should know before training on them."""
        tokens, places = self.tokens, self.places
        shared = f"{places:,} computed, since {1 - places / tokens:.0%} stand on both sides"
        rows = [("pairs", f"{len(self):,}, of {tokens:,} tokens: {shared}")]
        return [*rows, ("safety labels", f"{self.labelled:,}")] if self.labelled else rows

    def pair(self, index: int) -> int:
        """Which pair a global sample is: all of them in each epoch, in an order of its own."""
        return place(index, len(self), f"{self.seed} pairs")

    def batch(self, start: int, size: int) -> Compared:
        """Global samples ``start`` to ``start + size``."""
        return Compared(tuple(self[self.pair(index)] for index in range(start, start + size)))
