"""Examples packed into sequences (paper, section 3.1): which tokens a step of fine-tuning sees, and which it learns.

An example is a dialogue as ids, of which some carry loss. Examples share sequences of ``context`` tokens, best fit
first, the longest first; the order of the sequences is another in each epoch, a function of (seed, global sample
index). T tokens of a sequence; a token is followed by its target, so an example of n ids takes n - 1 places.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from llamactl.model.attention import Documents
from llamactl.model.config import PAD
from llamactl.model.llama import Llama
from llamactl.train.batches import place


class Examples:
    """Dialogues as ids, one after the other in memory, with what of them carries loss."""

    def __init__(self) -> None:
        self._ids, self._loss, self._starts = array("I"), bytearray(), array("Q", [0])

    def add(self, ids: Sequence[int], loss: Sequence[bool]) -> None:
        """One more, with at least one id that carries loss beside the first."""
        self._ids.extend(ids)
        self._loss.extend(loss)
        self._starts.append(len(self._ids))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> "tuple[array[int], bytearray]":
        """Ids of one, and for each whether it carries loss."""
        here = slice(self._starts[number], self._starts[number + 1])
        return self._ids[here], self._loss[here]

    def places(self) -> list[int]:
        """How many places each takes: one for each id that is followed by another."""
        return [int(n) - 1 for n in np.diff(np.frombuffer(self._starts, dtype=np.uint64))]

    @property
    def tokens(self) -> int:
        """Ids of all."""
        return len(self._ids)


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Pack things of ``lengths``, none above ``room``, into as few bins as best fit decreasing finds: their numbers.

    Each goes, the longest first, into the fullest bin that has room for it. The bins' free places are the bits of one
    number, so that looking for one costs no search.
    """
    bins: list[list[int]] = []
    free: list[list[int]] = [[] for _ in range(room + 1)]  # bins by how much room they have
    some = 0  # bit n: there is a bin with n places free
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        length = lengths[number]
        fitting = some >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            one = free[left].pop()
            some &= ~(1 << left) if not free[left] else -1
        else:
            left, one = room, len(bins)
            bins.append([])
        bins[one].append(number)
        free[left - length].append(one)
        some |= 1 << (left - length)
    return bins


def balanced(lengths: Sequence[int], most: int, fewest: int = 1) -> list[list[int]]:
    """At most so many things of ``lengths`` together, in as few parts as can be, as long as each other as can be.

    Their numbers; there are ``fewest`` parts at least. The longest come first, each into the part that is the shortest
    so far.
    """
    parts: list[list[int]] = [[] for _ in range(max(fewest, -(-len(lengths) // most)))]
    totals = [0] * len(parts)
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        shortest = min((n for n, part in enumerate(parts) if len(part) < most), key=totals.__getitem__)
        parts[shortest].append(number)
        totals[shortest] += lengths[number]
    return parts


class Row(NamedTuple):
    """One sequence: ids ``[T]``, where in it something is learned ``[M]`` and what ``[M]``, the lengths of examples."""

    tokens: np.ndarray[tuple[int], np.dtype[np.int64]]
    learned: np.ndarray[tuple[int], np.dtype[np.int64]]
    targets: np.ndarray[tuple[int], np.dtype[np.int64]]
    lengths: list[int]


class Packed(NamedTuple):
    """Sequences of a batch. They become tensors when the loss is taken, each micro-batch by itself."""

    rows: tuple[Row, ...]
    apart: bool  # whether examples do not see each other
    device: torch.device = torch.device("cpu")

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """To be trained on there."""
        return self._replace(device=device)

    def split(self, size: int) -> list[Self]:
        """Batches of at most ``size`` sequences."""
        return [self._replace(rows=self.rows[n : n + size]) for n in range(0, len(self.rows), size)]


def answer_loss(model: Llama, batch: Packed) -> Tensor:
    """Sum of -log p, in fp32, over all tokens that carry loss."""
    time, device = len(batch.rows[0].tokens), batch.device

    def there(arrays: Iterable[np.ndarray[tuple[int], np.dtype[np.int64]]]) -> Tensor:
        return torch.from_numpy(np.concatenate(list(arrays))).to(device, non_blocking=True)

    tokens = there(row.tokens for row in batch.rows).view(len(batch.rows), time)
    learned = there(row.learned + number * time for number, row in enumerate(batch.rows))
    documents = Documents.of([row.lengths for row in batch.rows], device) if batch.apart else None
    return model.nll(tokens, there(row.targets for row in batch.rows), documents, learned).sum()


class Packs:
    """Packed examples as sequences by global index; ``apart``: by a document mask and positions from 0 in each."""

    def __init__(self, examples: Examples, context: int, seed: int, apart: bool) -> None:
        self.examples, self.context, self.seed, self.apart = examples, context, seed, apart
        lengths = examples.places()
        self.packs = best_fit(lengths, context)
        self.fill = sum(lengths) / (len(self.packs) * context)
        self._targets = [sum(sum(examples[number][1][1:]) for number in pack) for pack in self.packs]

    def row(self, number: int) -> Row:
        """Pack ``number``."""
        tokens = np.full(self.context, PAD, dtype=np.int64)
        learned, targets, lengths, start = [], [], [], 0
        for example in self.packs[number]:
            ids, loss = self.examples[example]
            end = start + len(ids) - 1
            tokens[start:end] = ids[:-1]
            where = np.flatnonzero(np.frombuffer(loss, dtype=np.uint8)[1:])
            learned.append(where + start)
            targets.append(np.asarray(ids[1:], dtype=np.int64)[where])
            lengths.append(end - start)
            start = end
        if start < self.context:
            lengths.append(self.context - start)
        return Row(tokens, np.concatenate(learned), np.concatenate(targets), lengths)

    def pack(self, index: int) -> int:
        """Which pack a global sample is: all of them in each epoch, in an order of its own."""
        return place(index, len(self.packs), f"{self.seed} packs")

    def batch(self, start: int, size: int) -> Packed:
        """Global samples ``start`` to ``start + size``."""
        return Packed(tuple(self.row(self.pack(index)) for index in range(start, start + size)), self.apart)

    def targets(self, start: int, size: int) -> int:
        """How many tokens of these samples carry loss."""
        return self.weight(self.pack(index) for index in range(start, start + size))

    def seen(self, start: int, size: int) -> int:
        """How many tokens these samples have, padding not among them."""
        packs = (self.packs[self.pack(index)] for index in range(start, start + size))
        return sum(len(self.examples[number][0]) for pack in packs for number in pack)

    def __len__(self) -> int:
        return len(self.packs)

    def some(self, numbers: Iterable[int], device: torch.device) -> Packed:
        """These packs."""
        return Packed(tuple(map(self.row, numbers)), self.apart, device)

    def weight(self, numbers: Iterable[int]) -> int:
        """How many of their tokens carry loss."""
        return sum(self._targets[number] for number in numbers)

    @property
    def learned(self) -> int:
        """How many tokens of an epoch carry loss."""
        return sum(self._targets)

    def rows(self) -> list[tuple[str, str]]:
        """What a person should know before training on them."""
        return [
            ("examples", f"{len(self.examples):,}, of {self.examples.tokens:,} tokens; {self.learned:,} carry loss"),
            ("packed", f"into {len(self.packs):,} sequences of {self.context:,}; {self.fill:.1%} of the places filled"),
        ]
