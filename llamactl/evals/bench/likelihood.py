"""How likely a model finds each of several endings: log p, summed over the ending's tokens.

What endings have in common is computed once: a question for its options, and examples for the questions behind them,
where each question has one place to look at, as those have whose options are letters.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import torch

from llamactl.evals.bench.questions import Ending, alike
from llamactl.model.llama import Llama
from llamactl.model.trees import BATCH_TOKENS, KEYS, Tree, forests

ROWS = 512  # whose scores over the vocabulary are there at once


def log_probs(model: Llama, endings: Iterable[Ending]) -> dict[Ending, float]:
    """log p of each ending, in nats."""
    wanted: dict[tuple[int, ...], list[Ending]] = {}  # by what is read: all but the last id of an ending
    for one in dict.fromkeys(endings):
        wanted.setdefault((*one.given, *one.ids[:-1]), []).append(one)
    device = model.norm.weight.device
    found: dict[Ending, float] = {}
    for sequences, forest in forests(_trees(wanted), device):
        ends = forest.ends.tolist()
        read = [(one, end) for sequence, end in zip(sequences, ends, strict=True) for one in wanted[sequence]]
        places = [place for one, end in read for place in range(end + 1 - len(one.ids), end + 1)]
        targets = [token for one, _ in read for token in one.ids]
        with torch.inference_mode():
            hidden = model(forest.tokens, documents=forest.documents).flatten(0, 1)
            logs: list[float] = []
            for start in range(0, len(places), ROWS):
                rows = slice(start, start + ROWS)
                scores = model.logits(hidden[torch.tensor(places[rows], device=device)])
                ids = torch.tensor(targets[rows], device=device)[:, None]
                logs += (scores.gather(1, ids)[:, 0] - scores.logsumexp(1)).tolist()
        left = iter(logs)
        found.update({one: sum(islice(left, len(one.ids))) for one, _ in read})
    return found


def _trees(wanted: Mapping[tuple[int, ...], Sequence[Ending]]) -> Iterator[Tree]:
    """What is to be read: each branch holds all places that are looked at, the last given id's and those after it."""
    beginnings = {sequence: min(len(one.given) for one in some) - 1 for sequence, some in wanted.items()}
    by_stem: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for sequence, length in beginnings.items():
        by_stem.setdefault(sequence[:length], []).append(sequence)
    for stem, several in by_stem.items():
        if len(several) > 1:
            yield Tree(stem, [sequence[len(stem) :] for sequence in several])
    yield from _joined(sorted(several[0] for several in by_stem.values() if len(several) == 1), beginnings)


def _joined(sequences: Sequence[tuple[int, ...]], most: Mapping[tuple[int, ...], int]) -> Iterator[Tree]:
    """Neighbours that share half of what they are, as one tree, whose stem is no longer than ``most`` of each."""
    some: list[tuple[int, ...]] = []
    stem: tuple[int, ...] = ()
    for one in sequences:
        shared = one[: min(most[one], alike(stem, one) if some else len(one))]
        tree = Tree(shared, [sequence[len(shared) :] for sequence in [*some, one]])
        fits = tree.places <= BATCH_TOKENS and tree.keys <= KEYS * BATCH_TOKENS
        if some and not (fits and 2 * len(shared) >= len(one)):
            yield Tree(stem, [sequence[len(stem) :] for sequence in some])
            some, shared = [], one[: most[one]]
        some, stem = [*some, one], shared
    if some:
        yield Tree(stem, [sequence[len(stem) :] for sequence in some])
