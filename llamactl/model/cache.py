"""The key/value cache of samples that are decoded together. Letters as in ``llama.py``; G = H / K.

A prompt's keys and values are kept once, in a lane, for all of its samples; what each sample has said so far is kept in
a place of its own. Lanes and places that are in use stand at the front, without gaps, and are computed with as they lie
there: nothing is copied to be attended to.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from llamactl.model.attention import Documents, causal_attention
from llamactl.model.config import Config


class Attending(Protocol):
    """What a ``Transformer`` can be called with, to attend in the place of plain causal attention."""

    positions: Tensor  # of the tokens that it is called with, [B, T] or [T]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What queries ``[B, T, H, E]`` of a layer mix, by its keys and values ``[B, T, K, E]``: as the queries."""


class Size(NamedTuple):
    """Of a cache: how many prompts of so many tokens, and how many samples of so many."""

    lanes: int
    prompt: int
    places: int
    room: int

    def bytes(self, config: Config, dtype: torch.dtype, parts: int = 1) -> int:
        """What it takes of memory, in a dtype, of each of so many processes that share the heads."""
        token = 2 * config.layers * (config.kv_heads // parts) * config.head_dim * dtype.itemsize
        return token * (self.lanes * self.prompt + self.places * self.room)


class Step(NamedTuple):
    """Where the samples of one step stand, one token each: their lanes, and how much they have said before it."""

    lanes: Sequence[int]
    prompts: Sequence[int]  # tokens of each one's prompt
    said: Sequence[int]


class Layout(NamedTuple):
    """A step as it is computed: numbers that decide on the shapes of its tensors, and ``[n]`` for its samples."""

    live: int  # lanes
    most: int  # samples of one lane
    far: int  # tokens of a prompt that are attended to, masked or not
    near: int  # and of a sample
    spots: Tensor  # which row each sample is of ``live most``; ``live most`` itself for one that stands for none
    prompts: Tensor
    said: Tensor


class Cache:
    """Keys and values of every layer: of prompts ``[lanes, K, prompt, E]``, of samples ``[places, K, room, E]``.

    It is what a ``Transformer`` is called with: either for whole prompts (``read``), or for the next token of samples,
    those of the first places (``go_on``). K is this process's part of the heads, where several share them.
    """

    def __init__(self, config: Config, size: Size, dtype: torch.dtype, device: torch.device, parts: int = 1) -> None:
        def zeros(count: int, tokens: int) -> list[Tensor]:  # what is masked must be numbers, or 0 times it is none
            shape = (count, config.kv_heads // parts, tokens, config.head_dim)
            return [torch.zeros(shape, dtype=self.dtype, device=device) for _ in range(config.layers)]

        self.size, self.dtype, self.device = size, dtype, device
        self._prompts = zeros(size.lanes, size.prompt), zeros(size.lanes, size.prompt)
        self._said = zeros(size.places, size.room), zeros(size.places, size.room)
        self._documents: Documents | None = None
        self.positions = torch.zeros(1, 0, dtype=torch.int64, device=device)

    # -- what is computed next

    def read(self, lengths: Sequence[int], first: int) -> None:
        """Whole prompts, one after the other in one row, into the lanes from ``first`` on."""
        self._documents = Documents.of([lengths], self.device)
        self.positions = self._documents.positions
        self._lengths, self._first = lengths, first

    def layout(self, step: Step, padded: bool) -> Layout:
        """How to compute a step; ``padded``, so that few shapes come up, with more samples and tokens than it has."""
        nth = [0] * (max(step.lanes) + 1)
        places = []
        for lane in step.lanes:
            places.append((lane, nth[lane]))
            nth[lane] += 1
        live, most, far, near, spare = len(nth), max(nth), max(step.prompts), max(step.said) + 1, 0
        if padded:
            live, far = self.size.lanes, self.size.prompt
            most, near = _power(most), min(_power(near), self.size.room)
            spare = min(_power(len(places)), self.size.places) - len(places)
        spots = [lane * most + at for lane, at in places] + [live * most] * spare
        columns = (spots, [*step.prompts, *[0] * spare], [*step.said, *[0] * spare])
        given = (torch.tensor(column).to(self.device, non_blocking=True) for column in columns)
        return Layout(live, most, far, near, *given)

    def go_on(self, layout: Layout) -> None:
        """The next token of each sample, one after the other in one row."""
        self._documents, self._layout = None, layout
        self.positions = (layout.prompts + layout.said)[None]
        self._places = torch.arange(len(layout.said), device=self.device)
        far, near = (torch.arange(length, device=self.device) for length in (layout.far, layout.near))
        unseen = torch.cat((far >= layout.prompts[:, None], near > layout.said[:, None]), -1)
        self._bias = torch.zeros(unseen.shape, device=self.device).masked_fill_(unseen, -torch.inf)[:, None, None]

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
        return causal_attention(q, k, v, self._documents)

    def _attend_on(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        count, heads, width = k.shape
        live, far, near = self._layout.live, self._layout.far, self._layout.near
        for kept, new in zip(self._said, (k, v), strict=True):
            kept[layer][self._places, :, self._layout.said] = new.to(self.dtype)
        keys, values = (kept[layer].flatten(0, 1)[: count * heads, :near] for kept in self._said)
        stems = [kept[layer].flatten(0, 1)[: live * heads, :far] for kept in self._prompts]
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
        live, most, *_ = self._layout
        if live == most == len(x) == 1:
            return x[0]
        # rows that stand for no sample are not looked at, but must be numbers: torch's products of bf16 by AMX may read
        # on into the next row, and multiply that with 0
        laid = x.new_zeros(live * most + 1, *x.shape[1:])
        laid[self._layout.spots] = x
        return laid[:-1].view(live, most, *x.shape[1:]).transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def _by_sample(self, x: Tensor) -> Tensor:
        """The way back."""
        live, most, *_ = self._layout
        if live == most == len(self._layout.spots) == 1:
            return x[None]
        laid = x.view(live, len(x) // live, most, -1, x.shape[-1]).transpose(1, 2).flatten(0, 1)
        return laid[self._layout.spots.clamp_max(live * most - 1)]

    def by_layer(self) -> Iterator[tuple[Tensor, ...]]:
        """Keys and values of prompts ``[lanes, K, prompt, E]``, and of samples ``[places, K, room, E]``."""
        return zip(*self._prompts, *self._said, strict=True)

    # -- between

    def move_lane(self, start: int, end: int) -> None:
        """A prompt to another lane."""
        for kept in (*self._prompts[0], *self._prompts[1]):
            kept[end] = kept[start]

    def move_place(self, start: int, end: int, said: int) -> None:
        """A sample, which has ``said`` tokens, to another place."""
        for kept in (*self._said[0], *self._said[1]):
            kept[end, :, :said] = kept[start, :, :said]


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()
