"""Sequences that begin alike, laid out so that what they share is computed once.

A pair of answers to one prompt is a tree: the prompt is its stem, the answers are its branches. Each branch attends to
the stem and to itself, at the positions it has behind the stem, so its hidden states are those of stem and branch
written out. N places, n sequences.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import NamedTuple, Self

import torch
from torch import Tensor

from llamactl.model.attention import Documents, Segment
from llamactl.model.config import PAD

MULTIPLE = 8  # of which the number of places is one, for tensor parallelism and for the shapes of products
BATCH_TOKENS = 8192  # places computed at once
KEYS = 8  # times as many keys, at most: those of a stem are there once for each branch that attends to them


class Tree(NamedTuple):
    """Ids that some sequences have in common, and how each goes on."""

    stem: Sequence[int]
    branches: Sequence[Sequence[int]]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Self:
        """Sequences, of which none is the beginning of another."""
        columns = enumerate(zip(*sequences, strict=False)) if len(sequences) > 1 else ()
        shared = next((number for number, column in columns if len(set(column)) > 1), 0)
        return cls(sequences[0][:shared], [sequence[shared:] for sequence in sequences])

    @property
    def places(self) -> int:
        """What it takes."""
        return len(self.stem) + sum(map(len, self.branches))

    @property
    def keys(self) -> int:
        """What its branches attend to: the stem once for each."""
        return self.places + len(self.stem) * (len(self.branches) - 1)

    @property
    def sequences(self) -> Iterator[tuple[int, ...]]:
        """Stem and branch written out."""
        return ((*self.stem, *branch) for branch in self.branches)

    def parts(self) -> Iterator["Tree"]:
        """Itself, or several of its stem where it is more than is computed at once."""
        some = Tree(self.stem, [])
        for branch in self.branches:
            more = Tree(self.stem, [*some.branches, branch])
            if some.branches and (more.places > BATCH_TOKENS or more.keys > KEYS * BATCH_TOKENS):
                yield some
                more = Tree(self.stem, [branch])
            some = more
        yield some


class Forest(NamedTuple):
    """Trees in one row, one after the other."""

    tokens: Tensor  # [1, N]
    documents: Documents
    ends: Tensor  # int64 [n]: where each sequence has its last token

    @classmethod
    def of(cls, trees: Sequence[Tree], device: torch.device) -> Self:
        """Of trees, in order; the row is filled up to a multiple of ``MULTIPLE``.

        A stem and the first branch, which follows it, are one segment: fewer products, of more rows.
        """
        segments: list[Segment] = []
        ends: list[int] = []
        start = 0
        for tree in trees:
            first, *others = tree.branches
            whole = Segment(start, len(tree.stem) + len(first))
            segments.append(whole)
            start += whole.length
            ends.append(start - 1)
            for branch in others:
                segments.append(Segment(start, len(branch), whole.start, len(tree.stem)))
                start += len(branch)
                ends.append(start - 1)
        pads = -start % MULTIPLE
        if pads:
            segments.append(Segment(start, pads))
        ids = list(chain.from_iterable(chain(tree.stem, *tree.branches) for tree in trees))
        tokens = torch.tensor([[*ids, *[PAD] * pads]])
        where = torch.tensor(ends)
        return cls(
            tokens.to(device, non_blocking=True),
            Documents.branching(segments, device),
            where.to(device, non_blocking=True),
        )


def forests(trees: Iterable[Tree], device: torch.device) -> Iterator[tuple[list[tuple[int, ...]], Forest]]:
    """Trees, the longest first, about ``BATCH_TOKENS`` at a time: the sequences of each forest, and the forest."""
    left = sorted((part for tree in trees for part in tree.parts()), key=lambda tree: -tree.places)
    while left:
        size = max(1, BATCH_TOKENS // left[0].places)
        keys = accumulate(tree.keys for tree in left[:size])
        size = max(1, sum(number <= KEYS * BATCH_TOKENS for number in keys))
        some, left = left[:size], left[size:]
        yield [sequence for tree in some for sequence in tree.sequences], Forest.of(some, device)
