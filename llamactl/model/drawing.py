"""The choice of tokens by their scores: temperature, top-k, top-p, and numbers that depend on nothing but the sample.

A token is drawn by three choices, each among about V^(1/3) parts of the vocabulary, and each by a number of its own. So
a rounding error of the scores moves few bounds, and by little. Where a number lies so close to a bound that such an
error could decide, the draw is in doubt: then the scores are computed again, in a way that depends on the sample alone.

Top-p takes no sorting (as in FlashInfer's sampler): what was drawn is kept if the tokens likelier than it have less
than top-p of the probability together; if not, it is drawn again.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

CHOICES = 3
PATIENCE = 8  # draws from the whole distribution
NOISE = 1e-5  # how far rounding may move a score in fp32: three times the most that was seen, of 5,000 tokens

# SplitMix64 (Steele, Lea and Flood, 2014): a number is a function of a key and of how many were drawn before it.
STEP, MIX = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
TRIES = 1 << 20  # numbers set aside for each token


class Sampling(NamedTuple):
    """How tokens are chosen, at whatever temperature. ``top_k`` 0 and ``top_p`` 1 leave the distribution whole."""

    top_p: float
    top_k: int
    max_new_tokens: int
    seed: int


class Drawing(NamedTuple):
    """What some samples draw their next tokens by: ``[B]`` each."""

    temperatures: Tensor  # fp32; 0 is greedy
    keys: Tensor  # int64
    said: Tensor  # int64: tokens before this one

    @classmethod
    def of(cls, samples: Sequence[tuple[float, int, int]], device: torch.device) -> "Drawing":
        """From temperature, key and tokens said of each."""
        temperatures, keys, said = zip(*samples, strict=True)
        return cls(
            torch.tensor(temperatures, dtype=torch.float32).to(device, non_blocking=True),
            torch.tensor(keys, dtype=torch.int64).to(device, non_blocking=True),
            torch.tensor(said, dtype=torch.int64).to(device, non_blocking=True),
        )

    def among(self, rows: Tensor) -> "Drawing":
        """Some of them."""
        return Drawing(*(field[rows] for field in self))


class Drawn(NamedTuple):
    """Tokens ``[B]``, the logarithms of their probabilities, and whether rounding could have decided."""

    tokens: Tensor
    log_probs: Tensor
    doubtful: Tensor


def key(seed: int, ids: Sequence[int], index: int) -> int:
    """What the numbers of sample ``index`` of a prompt are a function of."""
    digest = hashlib.sha256(f"{seed} {index} ".encode() + np.asarray(ids, "<u4").tobytes()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def numbers(drawing: Drawing, attempt: int) -> Tensor:
    """Numbers in [0, 1), fp64 ``[B, CHOICES]``."""
    steps = torch.arange(1, CHOICES + 1, device=drawing.keys.device) + attempt * CHOICES
    z = drawing.keys[:, None] + (drawing.said[:, None] * TRIES + steps) * _signed(STEP)
    for shift, factor in MIX:
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return _shifted(z ^ _shifted(z, 31), 11).double() * 2.0**-53


def _shifted(z: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in (torch has integers with a sign only)."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def draw(logits: Tensor, drawing: Drawing, sampling: Sampling) -> Drawn:
    """A token for each row of fp32 ``[B, V]``, which are overwritten.

    Temperature first, then top-k, then top-p (Holtzman et al., 2020), as in the reference release; tokens as likely as
    the last that either lets in are let in, too. The probabilities that are given are those at the temperature, without
    top-k and top-p; greedy tokens have those of temperature 1.
    """
    greedy = drawing.temperatures == 0
    temperatures = drawing.temperatures.masked_fill(greedy, 1.0)[:, None]
    logits -= logits.amax(-1, keepdim=True)
    weights = logits.div_(temperatures).exp_()
    totals = weights.sum(-1, keepdim=True)
    error = torch.expm1(2 * NOISE / temperatures[:, 0]).clamp_max(1e30)  # relative, of the ratio of two probabilities
    if bool(greedy.all()):
        tokens, doubtful = _likeliest(weights, error)
    else:
        tokens, doubtful = _tokens(weights, totals, drawing, sampling, error)
        if bool(greedy.any()):
            likeliest = _likeliest(weights, error)
            tokens, doubtful = (torch.where(greedy, *pair) for pair in zip(likeliest, (tokens, doubtful), strict=True))
    chances = weights.gather(1, tokens[:, None]) / totals
    return Drawn(tokens, chances[:, 0].log(), doubtful)


def _likeliest(weights: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    (first, second), (token, _) = (x.unbind(-1) for x in weights.topk(2, -1))
    return token, second * (1 + error) > first


def _tokens(
    weights: Tensor, totals: Tensor, drawing: Drawing, sampling: Sampling, error: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens of those that top-k and top-p let in, and whether each is in doubt."""
    unclear = torch.zeros_like(error, dtype=torch.bool)  # who is let in
    if 0 < sampling.top_k < weights.shape[-1]:
        last = weights.topk(sampling.top_k, -1).values[:, -1:]
        unclear = _like(weights, last, error) > 0
        weights = weights.masked_fill(weights < last, 0.0)
        totals = weights.sum(-1, keepdim=True)
    tokens, doubtful = _one_of_three(weights, numbers(drawing, 0), error)
    doubtful |= unclear
    if sampling.top_p == 1:
        return tokens, doubtful
    rows, left, attempt = torch.arange(len(weights), device=weights.device), weights, 0
    while True:
        own = left.gather(1, tokens[rows, None])
        before, close = (left * (left > own)).sum(-1) / totals[rows, 0], _like(left, own, error[rows]) / totals[rows, 0]
        margin = close + error[rows] * (before + close) * (1 - before + close)
        doubtful[rows] |= (before - sampling.top_p).abs() < margin
        beyond = ((before >= sampling.top_p) & (before > 0)).nonzero()[:, 0]
        if not len(beyond):
            return tokens, doubtful
        rows, left, attempt = rows[beyond], left[beyond], attempt + 1
        if attempt > PATIENCE:  # of a small top-p: what is no likelier than this one cannot be meant either
            left = left * (left > own[beyond])
            doubtful[rows] |= close[beyond] > 0
        tokens[rows], unsure = _one_of_three(left, numbers(drawing.among(rows), attempt), error[rows])
        doubtful[rows] |= unsure


def _like(weights: Tensor, one: Tensor, error: Tensor) -> Tensor:
    """The weight of what a row of ``[B, V]`` has beside ``one [B, 1]`` that an error could put before or behind it."""
    band = 1 + error[:, None]
    return (weights * ((weights * band > one) & (weights < one * band) & (weights != one))).sum(-1)


def fan_out(vocabulary: int) -> int:
    """Among how many parts each choice is."""
    return math.ceil(math.pow(vocabulary, 1 / CHOICES) - 1e-9)


def _one_of_three(weights: Tensor, u: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens ``[B]`` by weights ``[B, V]`` and numbers ``[B, CHOICES]``, and whether each is in doubt."""
    vocabulary = weights.shape[-1]
    side = fan_out(vocabulary)
    leaves = F.pad(weights, (0, side**CHOICES - vocabulary)).view(-1, side, side, side)
    branches = leaves.sum(-1)
    rows = torch.arange(len(weights), device=weights.device)
    first, one = _among(branches.sum(-1), u[:, 0], error)
    second, two = _among(branches[rows, first], u[:, 1], error)
    third, three = _among(leaves[rows, first, second], u[:, 2], error)
    return (first * side + second) * side + third, one | two | three


def _among(weights: Tensor, u: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """One of each row of ``[B, n]`` by a number in [0, 1), and whether an error of the weights could change it."""
    bounds = weights.double().cumsum(-1)
    bounds = bounds / bounds[:, -1:]
    distance = bounds - u[:, None]
    return (distance <= 0).sum(-1), (distance.abs() < error[:, None] * bounds * (1 - bounds)).any(-1)
