"""Perplexity of a text under a model, by a sliding window.

Every token of a document is predicted once, from BOS and what stands before it in a window of ``window`` tokens; the
window moves on by ``stride``, so a token has at least ``window - stride`` tokens of context, except at the beginning.
EOS is not predicted. Base: bits per byte count the UTF-8 bytes, words are separated by white space; both are comparable
across tokenizers, nats per token are not.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from llamactl.model.llama import Llama
from llamactl.text.tokenizer import BOS, Tokenizer

BATCH_TOKENS = 8192


@dataclass
class Measured:
    """What was read: sums over tokens of -log p (nats) and of its square, and the units to divide by."""

    nats: float = 0.0
    squares: float = 0.0
    tokens: int = 0
    bytes: int = 0
    words: int = 0

    def add(self, other: "Measured") -> None:
        """Count what another has measured as well."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def metrics(self) -> Iterator[tuple[str, float, int, float | None]]:
        """Name, value, number of units and standard error of each metric (tokens taken as independent)."""
        mean = self.nats / self.tokens
        spread = math.sqrt(max(self.squares / self.tokens - mean**2, 0.0) / self.tokens)
        yield "nats_per_token", mean, self.tokens, spread
        yield (
            "bits_per_byte",
            self.nats / math.log(2) / self.bytes,
            self.bytes,
            self.tokens * spread / math.log(2) / self.bytes,
        )
        if self.words:
            yield "word_perplexity", math.exp(min(self.nats / self.words, 700.0)), self.words, None


class Window(NamedTuple):
    """Consecutive ids; the last ``scored`` of them are predicted."""

    ids: list[int]
    scored: int


def windows(ids: list[int], window: int, stride: int) -> Iterator[Window]:
    """Windows of at most ``window`` + 1 of a document's ids (BOS first), that predict each id but the first once."""
    end = min(window + 1, len(ids))
    yield Window(ids[:end], end - 1)
    while end < len(ids):
        scored = min(stride, len(ids) - end)
        end += scored
        yield Window(ids[max(0, end - window - 1) : end], scored)


@torch.inference_mode()
def score(model: Llama, batch: list[Window]) -> Measured:
    """-log p of the scored ids of some windows; padding stands on the right, where nothing attends to it."""
    longest = max(len(window.ids) for window in batch)
    device = model.tok_embeddings.weight.device
    ids = torch.tensor([window.ids + [0] * (longest - len(window.ids)) for window in batch], device=device)
    logits = model.logits(model(ids[:, :-1]))
    nats = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(batch), -1).double()
    column = torch.arange(longest - 1, device=device)
    ends = torch.tensor([len(window.ids) - 1 for window in batch], device=device)[:, None]
    scored = torch.tensor([window.scored for window in batch], device=device)[:, None]
    nats = nats[(column < ends) & (column >= ends - scored)]
    return Measured(float(nats.sum()), float(nats.square().sum()), nats.numel())


def measure(model: Llama, tokenizer: Tokenizer, texts: Iterable[str], window: int, stride: int) -> Iterator[Measured]:
    """Measure texts, in batches of about ``BATCH_TOKENS`` tokens; the parts add up to the whole."""
    rows = max(1, BATCH_TOKENS // window)
    batch: list[Window] = []
    for text in texts:
        yield Measured(bytes=len(text.encode()), words=len(text.split()))
        for one in windows([BOS, *tokenizer.encode(text)], window, stride):
            batch.append(one)
            if len(batch) == rows:
                yield score(model, batch)
                batch = []
    if batch:
        yield score(model, batch)
