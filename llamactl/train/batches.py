"""Which tokens a step trains on: a function of (seed, global sample index), whatever the processes or accumulation.

A source is cut into samples of ``context`` tokens. Sources are interleaved by weight, exactly (after any number of
samples each has had its share to within two), and each pass over a source is in another random order. Nothing is kept
between samples, so a run can go on from any index.
"""

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llamactl import ui
from llamactl.artifacts.manifest import plain
from llamactl.artifacts.shards import Shards
from llamactl.errors import Fault

if TYPE_CHECKING:  # planning counts samples without torch
    from torch import Tensor

ROUNDS = 4
_MASK = (1 << 64) - 1


def _mixed(value: int) -> int:
    """64 bits that each depend on all of the input's (splitmix64's finisher)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def shuffled(index: int, count: int, key: int) -> int:
    """Where ``index`` stands in a random order of ``count`` things: a permutation computed without memory.

    A Feistel network over the next even number of bits, walked until it lands inside (Black and Rogaway, 2002).
    """
    half = max(1, (max(1, count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(ROUNDS):
            left, right = right, left ^ (_mixed(key + turn * 0x9E3779B97F4A7C15 + right & _MASK) & mask)
        index = left << half | right
        if index < count:
            return index


def place(index: int, count: int, key: str) -> int:
    """Which of ``count`` things a global sample is: all of them in each epoch, in an order of its own."""
    epoch, offset = divmod(index, count)
    digest = hashlib.sha256(f"{key} {epoch}".encode()).digest()
    return shuffled(offset, count, int.from_bytes(digest[:8], "little"))


class Source(NamedTuple):
    """Token shards and their share of the samples; the shares of all sources add up to one."""

    shards: Shards
    share: Fraction


class Epochs(NamedTuple):
    """How often a source has been seen."""

    path: str
    share: float
    samples: int
    epochs: float


class Mix:
    """Samples from weighted sources by global index."""

    def __init__(self, sources: Sequence[Source], context: int, vocab: int, seed: int) -> None:
        self.sources, self.context, self.vocab, self.seed = list(sources), context, vocab, seed
        self.counts = [(source.shards.tokens - 1) // context for source in sources]
        for source, count in zip(sources, self.counts, strict=True):
            if count < 1:
                problem = f"holds {source.shards.tokens:,} tokens, fewer than one sample of {context} and its target"
                raise Fault(source.shards.path, problem, "give more text, or a smaller --context")

    def where(self, index: int) -> tuple[int, int]:
        """Source of a global sample, and how many samples of that source came before it.

        Of the first n samples the first source has floor(n x share + 1/2); the rest is shared out in the same way.
        """
        rest = Fraction(1)
        for number, source in enumerate(self.sources[:-1]):
            share = source.share / rest
            before, after = (int(n * share + Fraction(1, 2)) for n in (index, index + 1))
            if after > before:
                return number, before
            index, rest = index - before, rest - source.share
        return len(self.sources) - 1, index

    def sample(self, index: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Global sample ``index``: ``context`` + 1 ids, each of the first ``context`` followed by its target."""
        number, position = self.where(index)
        epoch, offset = divmod(position, self.counts[number])
        key = hashlib.sha256(f"{self.seed} {number} {epoch}".encode()).digest()
        start = shuffled(offset, self.counts[number], int.from_bytes(key[:8], "little")) * self.context
        shards = self.sources[number].shards
        ids = shards.read(start, start + self.context + 1).astype(np.int64)
        if (worst := ids.max()) >= self.vocab:
            raise Fault(
                shards.path, f"holds id {worst}, the model has {self.vocab:,} (near token {start:,})", "tokenize again"
            )
        return ids

    def batch(self, start: int, size: int) -> "Tensor":
        """Global samples ``start`` to ``start + size``: ids ``[size, context + 1]``."""
        import torch

        return torch.from_numpy(np.stack([self.sample(index) for index in range(start, start + size)]))

    def epochs(self, samples: int) -> list[Epochs]:
        """How often each source has been seen after the first ``samples`` global samples."""
        seen = []
        rest, index = Fraction(1), samples
        for source, count in zip(self.sources, self.counts, strict=True):
            had = int(index * (source.share / rest) + Fraction(1, 2)) if source is not self.sources[-1] else index
            seen.append(Epochs(plain(source.shards.path), float(source.share), had, had / count))
            index, rest = index - had, rest - source.share
        return seen

    def rows(self, samples: int) -> list[tuple[str, str]]:
        """What a person should know before training on the first ``samples``: each source's share and its epochs."""
        return [
            (
                str(source.shards.path),
                f"{seen.share:.1%} of the samples: {seen.epochs:.2f} epochs of {ui.count(source.shards.tokens)} tokens "
                f"(the last {source.shards.tokens - count * self.context:,} fill no sample)",
            )
            for source, count, seen in zip(self.sources, self.counts, self.epochs(samples), strict=True)
        ]


def weighted(name: str) -> tuple[Path, Fraction | None]:
    """``DIR`` or ``DIR=WEIGHT``, as ``--data`` takes it."""
    path, equals, weight = name.rpartition("=")
    if not equals or Path(name).exists():
        return Path(name), None
    try:
        return Path(path), Fraction(weight)
    except (ValueError, ZeroDivisionError):
        raise Fault("--data", f"{weight!r} is no weight", "give DIR or DIR=WEIGHT, for example books=0.3") from None


def shares(weights: Sequence[Fraction | None], shards: Sequence[Shards]) -> list[Source]:
    """Sources with their shares of the samples: the weights given, or in proportion to their tokens where none is."""
    if all(weight is None for weight in weights):
        weights = [Fraction(one.tokens) for one in shards]
    if any(weight is None for weight in weights):
        raise Fault("--data", "some sources have a weight and some have none", "give each a weight, or none")
    if any(weight <= 0 for weight in weights if weight is not None):
        raise Fault("--data", "a weight is not above 0", "leave the source out instead")
    total = sum(weight for weight in weights if weight is not None)
    return [Source(one, Fraction(weight or 0) / total) for one, weight in zip(shards, weights, strict=True)]
