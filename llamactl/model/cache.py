"""The key/value cache of samples that are decoded together. Letters as in ``llama.py``; G = H / K.

A prompt's keys and values are kept once, in a lane, for all of its samples; what each sample has said so far is kept in
a place of its own. Lanes and places that are in use stand at the front, without gaps, and are computed with as they lie
there: nothing is copied to be attended to.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llamactl.model import functions
from llamactl.model.config import Config
from llamactl.model.functions import Documents


class Size(NamedTuple):
    """Of a cache: how many prompts of so many tokens, and how many samples of so many."""

    lanes: int
    prompt: int
    places: int
    room: int

    def bytes(self, config: Config, dtype: torch.dtype) -> int:
        """What it takes of memory, in a dtype."""
        token = 2 * config.layers * config.kv_heads * config.head_dim * dtype.itemsize
        return token * (self.lanes * self.prompt + self.places * self.room)


class Step(NamedTuple):
    """Where the samples of one step stand, one token each: their lanes, and how much they have said before it."""

    lanes: Sequence[int]
    prompts: Sequence[int]  # tokens of each one's prompt
    said: Sequence[int]


class Cache:
    """Keys and values of every layer: of prompts ``[lanes, K, prompt, E]``, of samples ``[places, K, room, E]``.

    It is what a ``Transformer`` is called with: either for whole prompts (``reading``), or for the next token of
    samples, those of the first places (``going_on``).
    """

    def __init__(self, config: Config, size: Size, dtype: torch.dtype, device: torch.device) -> None:
        def zeros(count: int, tokens: int) -> list[Tensor]:  # what is masked must be numbers, or 0 times it is none
            shape = (count, config.kv_heads, tokens, config.head_dim)
            return [torch.zeros(shape, dtype=self.dtype, device=device) for _ in range(config.layers)]

        self.size, self.dtype, self.device = size, dtype, device
        self._prompts = zeros(size.lanes, size.prompt), zeros(size.lanes, size.prompt)
        self._said = zeros(size.places, size.room), zeros(size.places, size.room)
        self._documents: Documents | None = None

    # -- what is computed next

    def reading(self, lengths: Sequence[int], first: int) -> None:
        """Whole prompts, one after the other in one row, into the lanes from ``first`` on."""
        self._documents = Documents.of([lengths], self.device)
        self.positions = self._documents.positions
        self._lengths, self._first = lengths, first

    def going_on(self, step: Step) -> None:
        """The next token of each sample, one after the other in one row."""
        self._documents = None
        count, live = len(step.lanes), max(step.lanes) + 1
        nth, spots = [0] * live, []
        for lane in step.lanes:
            spots.append(nth[lane])
            nth[lane] += 1
        self._live, self._most = live, max(nth)
        self._spots = self._indices([lane * self._most + at for lane, at in zip(step.lanes, spots, strict=True)])
        self._places = torch.arange(count, device=self.device)
        self._ends = self._indices(step.said)
        prompts = self._indices(step.prompts)
        self.positions = (prompts + self._ends)[None]
        self._longest = max(step.prompts), max(step.said) + 1
        far, near = (torch.arange(length, device=self.device) for length in self._longest)
        unseen = torch.cat((far >= prompts[:, None], near > self._ends[:, None]), -1)
        self._bias = torch.zeros(unseen.shape, device=self.device).masked_fill_(unseen, -torch.inf)[:, None, None]

    def _indices(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64).to(self.device, non_blocking=True)

    # -- while it is

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep keys and values ``[1, T, K, E]`` of the newest tokens; attention of queries ``[1, T, H, E]``."""
        if self._documents is None:
            return self._attend_on(layer, q[0], k[0], v[0])[None]
        start = 0
        for lane, length in enumerate(self._lengths, self._first):
            for kept, new in zip(self._prompts, (k, v), strict=True):
                kept[layer][lane, :, :length] = new[0, start : start + length].transpose(0, 1)
            start += length
        return functions.causal_attention(q, k, v, self._documents)

    def _attend_on(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        count, heads, width = k.shape
        far, near = self._longest
        keys, values = (kept[layer] for kept in self._said)
        keys[self._places, :, self._ends] = k.to(self.dtype)
        values[self._places, :, self._ends] = v.to(self.dtype)
        keys, values = (x.flatten(0, 1)[: count * heads, :near] for x in (keys, values))
        stems = [kept[layer].flatten(0, 1)[: self._live * heads, :far] for kept in self._prompts]
        queries = (q.to(self.dtype) * width**-0.5).view(count, heads, -1, width)
        scores = torch.cat(
            (
                self._by_sample(torch.bmm(self._by_lane(queries), stems[0].mT)),
                torch.bmm(queries.flatten(0, 1), keys.mT).view(count, heads, -1, near),
            ),
            -1,
        )
        p = (scores.float() + self._bias).softmax(-1).to(self.dtype)
        mixed = self._by_sample(torch.bmm(self._by_lane(p[..., :far]), stems[1]))
        mixed += torch.bmm(p[..., far:].flatten(0, 1), values).view(mixed.shape)
        return mixed.view(q.shape).to(q.dtype)

    def _by_lane(self, x: Tensor) -> Tensor:
        """``[n, K, G, X]`` of samples as rows of products with their prompts, ``[lanes K, most G, X]``."""
        laid = x.new_zeros(self._live * self._most, *x.shape[1:])
        laid[self._spots] = x
        return laid.view(self._live, self._most, *x.shape[1:]).transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def _by_sample(self, x: Tensor) -> Tensor:
        """The way back."""
        heads = len(x) // self._live
        return x.view(self._live, heads, self._most, -1, x.shape[-1]).transpose(1, 2).flatten(0, 1)[self._spots]

    # -- between

    def move_lane(self, start: int, end: int) -> None:
        """A prompt to another lane."""
        for kept in (*self._prompts[0], *self._prompts[1]):
            kept[end] = kept[start]

    def move_place(self, start: int, end: int, said: int) -> None:
        """A sample, which has ``said`` tokens, to another place."""
        for kept in (*self._said[0], *self._said[1]):
            kept[end, :, :said] = kept[start, :, :said]
