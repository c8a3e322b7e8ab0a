"""Sampling from a model, with a key/value cache, many prompts at once.

What is random is settled before anything is computed: sample ``index`` of a prompt draws from a stream of numbers that
is a function of (seed, prompt, index), so it does not matter in which batch, order or shard it is made.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llamactl.model.cache import Cache
from llamactl.model.llama import Llama
from llamactl.text.tokenizer import EOS

BATCH_TOKENS = 32_768  # tokens of cache in one batch: rows x (longest prompt + longest answer)


class Sampling(NamedTuple):
    """How tokens are chosen. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 leave the distribution whole."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Request:
    """One sample to make: the ids it continues, and which of the samples of this prompt it is."""

    ids: list[int]
    index: int


class Answer(NamedTuple):
    """The ids that were sampled, without EOS, and whether the model ended by itself."""

    ids: list[int]
    stopped: bool


def uniforms(sampling: Sampling, request: Request) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The numbers in [0, 1) that one sample draws from: a function of (seed, prompt, index)."""
    key = hashlib.sha256(f"{sampling.seed} {request.index} ".encode() + np.asarray(request.ids, "<u4").tobytes())
    stream = np.random.Philox(key=int.from_bytes(key.digest()[:16], "little"))
    return np.random.Generator(stream).random(sampling.max_new_tokens)


def choose(logits: Tensor, u: Tensor, sampling: Sampling) -> Tensor:
    """Tokens ``[B]`` from logits ``[B, V]`` and uniform numbers ``[B]``, by the inverse of the cumulative distribution.

    Temperature first, then top-k, then top-p (Holtzman et al., 2020), as the reference release does.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scaled = (logits.double() - logits.amax(-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        scaled = scaled.masked_fill(scaled < scaled.topk(sampling.top_k, -1).values[:, -1:], float("-inf"))
    probabilities = scaled.softmax(-1)
    if sampling.top_p < 1:
        ranked, order = probabilities.sort(stable=True, dim=-1, descending=True)
        beyond = ranked.cumsum(-1) - ranked >= sampling.top_p
        beyond[:, 0] = False
        probabilities = probabilities.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    cumulative = probabilities.cumsum(-1)
    token = torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:], right=True)[:, 0]
    last = logits.shape[-1] - 1 - probabilities.flip(-1).gt(0).int().argmax(-1)  # rounding may point past the end
    return torch.minimum(token, last)


class Drawn(NamedTuple):
    """One token of one request; ``done`` with its last. ``token`` is EOS where the model ended by itself."""

    request: int
    token: int
    done: bool


@torch.inference_mode()
def decode(model: Llama, requests: Sequence[Request], sampling: Sampling) -> Iterator[Drawn]:
    """Continue all requests as one batch, token by token, in the order in which they are drawn."""
    device = model.tok_embeddings.weight.device
    longest = max(len(request.ids) for request in requests)
    rooms = [min(sampling.max_new_tokens, model.config.context - len(request.ids)) for request in requests]
    pads = torch.tensor([longest - len(request.ids) for request in requests], device=device)
    cache = Cache(model.config, len(requests), longest + max(rooms), pads, model.dtype)
    padded = [[EOS] * (longest - len(request.ids)) + request.ids for request in requests]
    numbers = torch.tensor(np.stack([uniforms(sampling, request) for request in requests]), device=device)
    tokens = torch.tensor(padded, device=device)
    active = list(range(len(requests)))
    for step in range(max(rooms)):
        logits = model.logits(model(tokens, cache)[:, -1])
        chosen = choose(logits, numbers[:, step], sampling)
        going = []
        for row, (number, token) in enumerate(zip(active, chosen.tolist(), strict=True)):
            done = token == EOS or step + 1 >= rooms[number]
            yield Drawn(number, token, done)
            if not done:
                going.append(row)
        if not going:
            return
        if len(going) < len(active):
            rows = torch.tensor(going, device=device)
            active, numbers, chosen = [active[row] for row in going], numbers[rows], chosen[rows]
            cache.select(rows)
        tokens = chosen[:, None]


def generate(model: Llama, requests: Sequence[Request], sampling: Sampling) -> Iterator[Answer]:
    """An answer to every request, in order, in batches that keep the cache within ``BATCH_TOKENS``."""
    start = 0
    while start < len(requests):
        end, longest = start, 0
        while end < len(requests):
            longest = max(longest, len(requests[end].ids))
            room = min(longest + sampling.max_new_tokens, model.config.context)
            if end > start and (end - start + 1) * room > BATCH_TOKENS:
                break
            end += 1
        answers: list[list[int]] = [[] for _ in range(start, end)]
        stopped = [False] * (end - start)
        for drawn in decode(model, requests[start:end], sampling):
            if drawn.token == EOS:
                stopped[drawn.request] = True
            else:
                answers[drawn.request].append(drawn.token)
        yield from map(Answer, answers, stopped)
        start = end
