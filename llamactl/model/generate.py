"""Sampling from a model: many prompts, several samples of each, as many at once as the cache has places for.

A prompt is computed once; its keys and values serve all of its samples. The place of a sample that has ended is taken
by the next one at once. Which tokens a sample draws is a function of (seed, prompt, index): in fp32 it does not matter
what else is sampled beside it, in which order, or how many (``drawing`` says how).
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from llamactl.errors import Fault
from llamactl.model import decoding, drawing
from llamactl.model import device as devices
from llamactl.model.cache import Cache, Layout, Size, Step
from llamactl.model.config import Config
from llamactl.model.decoding import Decoder
from llamactl.model.drawing import Drawing, Sampling
from llamactl.model.functions import weight_dtype
from llamactl.model.graphs import Graphs
from llamactl.model.llama import Llama
from llamactl.model.slices import WHOLE, Slice
from llamactl.text.tokenizer import EOS

AHEAD = 256  # prompts that are looked at together, to compute long ones with long ones
# Samples at once: enough for matrix products to be fast, and more where their cache is small, so that what a step costs
# beside them is shared by more (on a CPU a model of 5 M parameters drew 40 % more tokens by 256 than by 64).
PLACES = {"cpu": (64, 256), "cuda": (512, 512)}
SMALL = 256 << 20  # bytes
READ = 4096  # tokens of prompts computed at once
PATIENCE = 3.0  # seconds that kernels have to be loaded in; to make them takes longer
ROUND = 64  # tokens: a cache is made for prompts up to a multiple of so many


class Request(NamedTuple):
    """A prompt to go on from, the temperature of each of its samples, and the index that the first of them has.

    ``until`` says of the ids that a sample has so far whether they are enough; it is cut there.
    """

    ids: Sequence[int]
    temperatures: tuple[float, ...]
    first: int = 0
    until: Callable[[Sequence[int]], bool] | None = None


class Answer(NamedTuple):
    """The ids that were sampled, without EOS; whether the model ended by itself; log p of all of them, EOS's last."""

    ids: list[int]
    stopped: bool
    log_probs: list[float]


class Token(NamedTuple):
    """One token of a sample; ``done`` with its last. ``token`` is EOS where the model ended by itself."""

    request: int
    sample: int
    token: int
    log_prob: float
    done: bool


@dataclass
class Prompt:
    """A prompt under way: its number among the requests, which of its samples are still to begin, and its lane."""

    number: int
    ids: Sequence[int]
    temperatures: tuple[float, ...]
    first: int = 0  # index of its first sample, by which that is drawn
    until: Callable[[Sequence[int]], bool] | None = None
    begun: int = 0
    ended: int = 0
    lane: int = -1
    logits: Tensor | None = None  # of what follows it, [V]

    @property
    def left(self) -> int:
        """Samples still to begin."""
        return len(self.temperatures) - self.begun


@dataclass
class Sample:
    """A sample under way."""

    prompt: Prompt
    index: int
    key: int
    room: int  # tokens that it may have
    said: list[int] = field(default_factory=list)


def computing_dtype(
    dtype: torch.dtype, device: torch.device, part: Slice, rounded: Config | None = None
) -> torch.dtype:
    """What a model, or a part of it, whose weights are in ``dtype`` computes in to draw samples.

    Kernels compute in fp32, so that it does not matter what a sample stands beside. Where it may, they are told the
    shape that is ``rounded``, and compute in bf16, if the processor multiplies that. (Without kernels steps of bf16
    products, some thirty operators a layer, are up to ten times slower.)
    """
    if not decoding.serves(device, part) or (rounded and decoding.multiplies_pairs(rounded)):
        return weight_dtype(dtype, device)
    return torch.float32


def load(path: Path, device: torch.device, dtype: torch.dtype, samples: int = 2, part: Slice = WHOLE) -> Llama:
    """A model, or this process's part, to draw so many samples from at once; its weights are what it has in ``dtype``.

    Where kernels read bf16 weights as fp32 numbers they stay as they are, else they are copied. Without kernels one
    sample is drawn by multiplying in bf16, as fast as the weights can be read.
    """
    computing = computing_dtype(dtype, device, part)
    kernels = decoding.serves(device, part)
    if computing == dtype or (samples == 1 and not kernels):
        return Llama.load(path, device, dtype, part=part)
    stored = dtype if kernels and decoding.kernels(PATIENCE) else computing
    return Llama.load(path, device, stored, computing, part)


def generate(
    model: Llama, requests: Iterable[Request], sampling: Sampling, cache_memory: int | None = None
) -> Iterator[list[Answer]]:
    """The answers to each request, in order, as soon as they and those before them are there."""
    waiting: dict[int, list[Answer]] = {}
    first = 0
    for number, answers in finished(model, requests, sampling, cache_memory):
        waiting[number] = answers
        while first in waiting:
            yield waiting.pop(first)
            first += 1


def finished(
    model: Llama, requests: Iterable[Request], sampling: Sampling, cache_memory: int | None = None
) -> Iterator[tuple[int, list[Answer]]]:
    """The answers to each request, and its number, as soon as all are there: the order is that of their ends."""
    under_way: dict[int, list[Answer]] = {}
    missing: dict[int, int] = {}  # samples of each request that have not ended

    def noted() -> Iterator[Request]:
        for number, request in enumerate(requests):
            under_way[number] = [Answer([], False, []) for _ in request.temperatures]
            missing[number] = len(request.temperatures)
            yield request

    for token in decode(model, noted(), sampling, cache_memory):
        answers = under_way[token.request]
        answer = answers[token.sample]
        answer.log_probs.append(token.log_prob)
        if token.token == EOS:
            answers[token.sample] = answer._replace(stopped=True)
        else:
            answer.ids.append(token.token)
        missing[token.request] -= token.done
        if not missing[token.request]:
            del missing[token.request]
            yield token.request, under_way.pop(token.request)


def decode(
    model: Llama, requests: Iterable[Request], sampling: Sampling, cache_memory: int | None = None
) -> Iterator[Token]:
    """All tokens of all samples, as they are drawn. ``cache_memory`` is in bytes, at most half of what is free if None.

    Raises Fault where that cannot hold one sample, and where the scores are no numbers.
    """
    for tokens in _steps(model, requests, sampling, cache_memory):
        yield from tokens


@torch.inference_mode()  # which a generator enters and leaves each time it is asked: 5 us, so not for each token
def _steps(
    model: Llama, requests: Iterable[Request], sampling: Sampling, cache_memory: int | None
) -> Iterator[list[Token]]:
    """The tokens that are drawn together."""
    numbered, batch = enumerate(requests), None
    while block := [Prompt(number, *request) for number, request in islice(numbered, AHEAD)]:
        block.sort(key=lambda prompt: -len(prompt.ids))
        if batch is not None and not batch.holds(block):
            yield from batch.run(deque(), to_the_end=True)
            batch = None  # its cache is freed before there is another
        batch = batch or Batch(model, sampling, block, cache_memory)
        yield from batch.run(deque(block))
    if batch is not None:
        yield from batch.run(deque(), to_the_end=True)


class Batch:
    """Samples that are drawn together; those under way stand in the cache's places by their order."""

    def __init__(self, model: Llama, sampling: Sampling, prompts: Sequence[Prompt], cache_memory: int | None) -> None:
        self._model, self._sampling = model, sampling
        device = model.norm.weight.device
        free = devices.free_memory(device) // 2 if cache_memory is None else cache_memory
        self._memory = model.part.least(free, device)  # neighbours have to compute the same steps
        self._dtype = weight_dtype(model.dtype, device)  # of keys and values
        self._cache = Cache(model.config, self._size(prompts), self._dtype, device, model.part.parts)
        # (sums over neighbours within a graph are possible, and untried here)
        self._graphs = Graphs() if device.type == "cuda" and model.part.parts == 1 else None
        self._decoder: Decoder | None = None
        self._suits = decoding.suits(model, self._dtype)
        self._samples: list[Sample] = []
        self._lanes: list[Prompt] = []
        self._open: deque[Prompt] = deque()  # those of the lanes that have samples to begin

    def holds(self, prompts: Sequence[Prompt]) -> bool:
        """Whether there is room for these, too."""
        size = self._cache.size
        try:
            wanted = self._size(prompts)
        except Fault:  # it is raised again when those under way have ended
            return False
        return wanted.prompt <= size.prompt and wanted.room <= size.room and wanted.places <= 2 * size.places

    def _size(self, prompts: Sequence[Prompt]) -> Size:
        """Of a cache for these prompts, the longest one first, and more of their kind, within the memory."""
        config, device = self._model.config, self._model.norm.weight.device
        longest = min(-(-len(prompts[0].ids) // ROUND) * ROUND, config.context)
        room = min(self._sampling.max_new_tokens, config.context - min(len(prompt.ids) for prompt in prompts))
        fewest = min(len(prompt.temperatures) for prompt in prompts)
        enough, most = PLACES[device.type]
        places = min(most, sum(len(prompt.temperatures) for prompt in prompts))
        while True:
            lanes = min(places, 2 * -(-places // fewest))  # prompts that have nearly ended stand beside new ones
            size = Size(lanes, longest, places, room)
            needed = size.bytes(config, self._dtype, self._model.part.parts)
            if needed <= (self._memory if places <= enough else min(self._memory, SMALL)):
                return size
            if places == 1:
                problem = f"{self._memory:,} bytes cannot hold one sample: {needed:,} are needed"
                raise Fault("--cache-memory", problem, "give it more, or fewer --max-new-tokens")
            places = (
                max(enough, places // 2)
                if places > enough
                else max(1, min(places - 1, places * self._memory // needed))
            )

    def run(self, queue: deque[Prompt], to_the_end: bool = False) -> Iterator[list[Token]]:
        """Draw until all in the queue have begun, or ended."""
        while True:
            yield from self._begin(queue)
            if not (self._samples if to_the_end else queue):
                return
            yield self._go_on()

    def _begin(self, queue: deque[Prompt]) -> Iterator[list[Token]]:
        """Give free places to new samples, and have these draw their first tokens."""
        while free := self._cache.size.places - len(self._samples):
            if not self._open:
                self._read(queue, free)
            begun: list[Sample] = []
            while self._open and len(begun) < free:
                prompt = self._open[0]
                some = range(prompt.begun, prompt.begun + min(prompt.left, free - len(begun)))
                begun += [Sample(prompt, index, *self._own(prompt, index)) for index in some]
                prompt.begun = some.stop
                if not prompt.left:
                    self._open.popleft()
            if not begun:
                return
            logits = torch.stack([cast(Tensor, sample.prompt.logits) for sample in begun])
            tokens = self._drawn(begun, logits)
            self._samples += [sample for sample, token in zip(begun, tokens, strict=True) if not token.done]
            self._leave_lanes()
            yield tokens

    def _own(self, prompt: Prompt, index: int) -> tuple[int, int]:
        room = min(self._sampling.max_new_tokens, self._model.config.context - len(prompt.ids))
        return drawing.key(self._sampling.seed, prompt.ids, prompt.first + index), room

    def _read(self, queue: deque[Prompt], wanted: int) -> None:
        """Compute prompts until there are enough samples to begin, as far as lanes are free."""
        read: list[Prompt] = []
        while queue and wanted > 0 and len(self._lanes) + len(read) < self._cache.size.lanes:
            if read and sum(len(prompt.ids) for prompt in read) + len(queue[0].ids) > READ:
                break
            read.append(queue.popleft())
            wanted -= read[-1].left
        if not read:
            return
        lengths = [len(prompt.ids) for prompt in read]
        self._cache.read(lengths, len(self._lanes))
        hidden = self._model(self._row([token for prompt in read for token in prompt.ids]), self._cache)
        logits = self._model.logits(hidden[0, self._row(lengths)[0].cumsum(0) - 1])
        for prompt, row in zip(read, logits, strict=True):
            prompt.logits, prompt.lane = row, len(self._lanes)
            self._lanes.append(prompt)
        self._open.extend(read)

    def _go_on(self) -> list[Token]:
        """The next token of each sample; those that end leave their places to the last ones."""
        samples = self._samples
        step = Step(
            [sample.prompt.lane for sample in samples],
            [len(sample.prompt.ids) for sample in samples],
            [len(sample.said) - 1 for sample in samples],
        )
        newest = [sample.said[-1] for sample in samples]
        tokens = self._drawn(samples, self._scores(newest, step))
        for place in reversed([place for place, token in enumerate(tokens) if token.done]):
            last = samples.pop()
            if place < len(samples):
                samples[place] = last
                self._cache.move_place(len(samples), place, len(last.said) - 1)
        self._leave_lanes()
        return tokens

    def _scores(self, newest: list[int], step: Step) -> Tensor:
        """Scores ``[n, V]`` of what follows the newest tokens: by a graph on a GPU, on a CPU by kernels once made."""
        if self._suits and self._decoder is None and (made := decoding.kernels()):
            self._decoder = Decoder(made, self._model, self._cache)
        if self._decoder:
            return self._decoder(newest, step)
        layout = self._cache.layout(step, padded=self._graphs is not None)
        tokens = self._row(newest + [EOS] * (len(layout.said) - len(newest)))
        scores = self._graphs(self._compute, tokens, layout) if self._graphs else self._compute(tokens, layout)
        return scores[: len(newest)]

    def _compute(self, tokens: Tensor, layout: Layout) -> Tensor:
        self._cache.go_on(layout)
        return self._model.logits(self._model(tokens, self._cache)[0])

    def _drawn(self, samples: Sequence[Sample], logits: Tensor) -> list[Token]:
        """A token for each of the samples, by its scores ``[n, V]``."""
        facts = [self._facts(sample) for sample in samples]
        columns: Iterable[Iterable[Any]] | None = None
        if self._decoder:
            columns = self._decoder.draw(logits, facts, self._sampling)
        if columns is None:
            found = drawing.draw(logits, Drawing.of(facts, self._cache.device), self._sampling)
            columns = (column.tolist() for column in found)
        tokens = []
        for sample, token, log_prob, doubtful in zip(samples, *columns, strict=True):
            if math.isnan(log_prob):
                raise Fault("the model", "its scores are no numbers (NaN or infinite)", "look at how it was trained")
            if doubtful and self._model.dtype == torch.float32:
                token, log_prob = self._again(sample)
            sample.said.append(token)
            until = sample.prompt.until
            done = token == EOS or len(sample.said) == sample.room or bool(until and until(sample.said))
            sample.prompt.ended += done
            tokens.append(Token(sample.prompt.number, sample.index, token, log_prob, done))
        return tokens

    def _again(self, sample: Sample) -> tuple[int, float]:
        """The token and its log p, by scores that are computed from the sample's own ids alone."""
        hidden = self._model(self._row([*sample.prompt.ids, *sample.said]))
        one = Drawing.of([self._facts(sample)], self._cache.device)
        found = drawing.draw(self._model.logits(hidden[:, -1]), one, self._sampling)
        return int(found.tokens), float(found.log_probs)

    def _facts(self, sample: Sample) -> tuple[float, int, int]:
        """What its next token is drawn by."""
        return sample.prompt.temperatures[sample.index], sample.key, len(sample.said)

    def _row(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor([numbers]).to(self._cache.device, non_blocking=True)

    def _leave_lanes(self) -> None:
        """Free the lanes of prompts whose samples have all ended, and have the last ones move up."""
        for lane in reversed([lane for lane, one in enumerate(self._lanes) if one.ended == len(one.temperatures)]):
            last = self._lanes.pop()
            if lane < len(self._lanes):
                self._lanes[lane] = last
                self._cache.move_lane(last.lane, lane)
                last.lane = lane
