"""How much a dialogue attends to its instruction (paper, Figure 10): the maximum over all layers and heads.

In: a conversation as ids, and which of them are the instruction's. Out: of each token after the instruction the
largest weight that any head of any layer gives to any token of it; and of bins of tokens to bins of tokens, as in the
figure.
Weights are those that the model attends with: behind the rotation, over all that a token sees. BOS, to which much
attention goes whatever is said, and the tags of the chat format are no part of an instruction.

Nothing is kept that grows as the square of the length: a layer at a time, a few rows of it at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llamactl.artifacts.records import Message
from llamactl.bootstrap import Estimate, ratios
from llamactl.evals.gatt import Conversation
from llamactl.evals.reward import Measurement
from llamactl.model.attention import causal_attention, weights
from llamactl.model.llama import Llama
from llamactl.text.dialogue import END_SYS, INST, SYS
from llamactl.text.tokenizer import BOS, Tokenizer

BINS = 64  # of a full context
AT_ONCE = 1 << 24  # weights computed at once: 64 MiB


class Instructed(NamedTuple):
    """A conversation as ids, and which of them are the instruction's."""

    ids: Sequence[int]
    instruction: range

    def turns(self) -> list[int]:
        """Of each token after the instruction its turn, from 1: each pair of messages begins with BOS."""
        turn, found = 0, []
        for token in self.ids:
            turn += token == BOS
            found.append(turn)
        return found[self.instruction.stop :]


def instructed(messages: Sequence[Message], ids: Sequence[int], instruction: str, tokenizer: Tokenizer) -> Instructed:
    """A conversation whose system message ends with the instruction, or whose first message begins with it."""
    before = f"{INST} "
    if messages[0].role == "system":
        system = messages[0].content
        inside = system.endswith(instruction)
        before += SYS + (system.removesuffix(instruction) if inside else system + END_SYS)
    parts = (tokenizer.encode(before), tokenizer.encode(before + instruction))
    first, end = (1 + _alike(part, ids[1:]) for part in parts)
    return Instructed(ids, range(first, end))


def _alike(some: Sequence[int], others: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(some, others, strict=False)) if a != b), min(len(some), len(others)))


class Watching:
    """What a model is called with to see what it attends to, while it attends as it does without.

    Of the tokens after the instruction, to the instruction ``[N]``, and to each bin of keys ``[N, bins]``: the largest
    weight so far, of all layers. Bins begin with the instruction and anew behind it, ``width`` tokens each.
    """

    def __init__(self, one: Instructed, width: int, device: torch.device) -> None:
        total, self._span = len(one.ids), one.instruction
        self.positions = torch.arange(total, device=device)
        self.own = -(-len(self._span) // width)  # bins of the instruction itself
        after = total - self._span.stop
        to_bins = torch.arange(total - self._span.start, device=device) // width
        to_bins[len(self._span) :] = self.own + torch.arange(after, device=device) // width
        self._to_bins = to_bins
        self.most = torch.zeros(after, device=device)
        self.map = torch.zeros(after, self.own - (-after // width), device=device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention; q, k and v are those of one conversation."""
        first, end = self._span.start, self._span.stop
        rows = max(1, AT_ONCE // (q.shape[1] * q.shape[2]))
        for start, found in weights(q, k, rows):
            most = found[0].amax(0)[max(0, end - start) :]  # [R, S], of all heads; those after the instruction
            if len(most):
                some = slice(max(0, start - end), max(0, start - end) + len(most))
                self.most[some] = torch.maximum(self.most[some], most[:, first:end].amax(-1))
                index = self._to_bins[: most.shape[1] - first].expand(len(most), -1)
                self.map[some].scatter_reduce_(1, index, most[:, first:], "amax")
        return causal_attention(q, k, v)


@torch.inference_mode()
def watched(model: Llama, one: Instructed, width: int) -> Watching:
    """What a model attends to in a conversation."""
    device = model.norm.weight.device
    seen = Watching(one, width, device)
    model(torch.tensor([list(one.ids)], device=device), seen)
    return seen


class Map(NamedTuple):
    """Bins of tokens after the instruction by bins of what they attend to, of which ``own`` are the instruction's.

    A bin holds the mean over its tokens of the largest weight that each gives to a token of the other bin. ``turns``
    are the tokens after the instruction at which the second turn and later ones begin.
    """

    width: int
    own: int
    turns: list[int]
    rows: list[list[float]]

    @classmethod
    def of(cls, one: Instructed, seen: Watching, width: int) -> "Map":
        """From one conversation."""
        turns = one.turns()
        begun = [place for place in range(1, len(turns)) if turns[place] > turns[place - 1]]
        rows = [[round(value, 5) for value in part.mean(0).tolist()] for part in torch.split(seen.map, width)]
        return cls(width, seen.own, begun, rows)


Sums = dict[int, tuple[float, int]]  # of values, and how many they are, by place


class Mean(NamedTuple):
    """Of the tokens at a place: how many there are, and the mean over them."""

    place: int
    n: int
    estimate: Estimate


class Curve:
    """Maximum attention to the instruction, summed up over conversations: by distance from it, and by turn."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._dialogues: list[bytes] = []
        self._bins: list[Sums] = []
        self._turns: list[Sums] = []
        self._all: list[Sums] = []

    def add(self, dialogue: bytes, one: Instructed, seen: Watching) -> None:
        """One more conversation, of a dialogue that others may be of as well."""
        most = seen.most.tolist()
        self._dialogues.append(dialogue)
        self._bins.append(_summed([place // self.width for place in range(len(most))], most))
        self._turns.append(_summed(one.turns(), most))
        self._all.append(_summed([0] * len(most), most))

    def by_distance(self, seed: int) -> list[Mean]:
        """Of each bin that has a token, the mean over these; it begins at ``width`` times its place."""
        return self._means(self._bins, seed)

    def by_turn(self, seed: int) -> list[Mean]:
        """Of each turn."""
        return self._means(self._turns, seed)

    def overall(self, seed: int) -> Mean:
        """Of all tokens."""
        return self._means(self._all, seed)[0]

    def _means(self, parts: Sequence[Sums], seed: int) -> list[Mean]:
        places = sorted({place for one in parts for place in one})
        sums = np.array([[one.get(place, (0.0, 0)) for place in places] for one in parts], np.float64)
        found = ratios(self._dialogues, sums[:, :, 0], sums[:, :, 1], seed)
        counts = sums[:, :, 1].sum(0)
        return [Mean(place, int(n), one) for place, n, one in zip(places, counts, found, strict=True) if one]


class Looked(NamedTuple):
    """What there is of a model: the curve of all conversations, the map of one, tokens that the context left out."""

    curve: Curve
    map: Map
    left_out: int


def looked(model: Llama, tokenizer: Tokenizer, conversations: Sequence[Conversation], width: int, shown: int) -> Looked:
    """What a model attends to in conversations, the ``shown``-th of which is mapped; bins are ``width`` tokens."""
    curve, maps, left_out = Curve(width), [], 0
    for number, talk in enumerate(conversations):
        ids, beyond = talk.ids()
        one = instructed(talk.messages, ids, talk.case.instruction.text, tokenizer)
        seen = watched(model, one, width)
        curve.add(talk.case.key, one, seen)
        left_out += beyond
        if number == shown:
            maps.append(Map.of(one, seen, width))
    return Looked(curve, maps[0], left_out)


def measured(curve: Curve, seed: int) -> Iterator[Measurement]:
    """The mean of the maximum attention to the instruction: of all tokens, in bins by distance from it; by turn."""
    _, n, estimate = curve.overall(seed)
    bins = [
        {"low": float(place * curve.width), "high": float((place + 1) * curve.width), **_described(n, one)}
        for place, n, one in curve.by_distance(seed)
    ]
    yield Measurement("attention", estimate.value, n, estimate.stderr, estimate.interval, None, None, bins)
    for turn, n, one in curve.by_turn(seed):
        yield Measurement("attention", one.value, n, one.stderr, one.interval, {"turn": str(turn)})


def _described(n: int, one: Estimate) -> dict[str, float]:
    least, most = one.interval or (one.value, one.value)
    return {"n": n, "attention": one.value, "least": least, "most": most}


def data(found: Mapping[str, tuple[Looked, Sequence[Conversation]]], shown: int, seed: int) -> dict[str, Any]:
    """What is to be written of models, by their names, and their conversations; the figure is drawn of it."""
    return {
        "conversations": max(len(talks) for _, talks in found.values()),
        "models": [
            {
                "name": name,
                "curve": next(measured(one.curve, seed)).bins,
                "turns": [{"turn": turn, **_described(n, mean)} for turn, n, mean in one.curve.by_turn(seed)],
                "map": one.map._asdict(),
                "mapped": talks[shown].record(name),
            }
            for name, (one, talks) in found.items()
        ],
    }


def _summed(places: Sequence[int], values: Sequence[float]) -> Sums:
    found: Sums = {}
    for place, value in zip(places, values, strict=True):
        total, n = found.get(place, (0.0, 0))
        found[place] = total + value, n + 1
    return found
