"""Steps of decoding on a CPU by compiled kernels: when they are there, what they are told, and the threads that do it.

They take the place of some thirty calls a layer, each of which costs more than the numbers of a few samples do. They
read the model's own weights, and the cache as it lies there: nothing is copied but the norms.

numba compiles them, if it is installed: once, for it keeps what it has made. That takes seconds, in which samples are
drawn without them. In fp32 that changes no token.
"""

import ctypes
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from llamactl.model import drawing
from llamactl.model.cache import Cache, Step
from llamactl.model.compiling import Making, installed
from llamactl.model.drawing import Sampling
from llamactl.model.llama import Llama, rotary
from llamactl.model.slices import WHOLE, Slice

MOST = 256  # threads
FACTS = (np.float32, np.int64, np.int64)  # temperature, key and tokens said of a sample
STORED = (torch.float32, torch.bfloat16)  # what weights may be


class Made(NamedTuple):
    """The module of kernels, and those that are called: for a step, and to draw tokens by its scores."""

    module: Any
    work: Any
    draw: Any


def _make() -> Made | None:
    from llamactl.model import kernels

    made = kernels.make()
    return Made(kernels, *made) if made else None


@cache
def _making() -> Making[Made]:
    return Making("what samples are drawn by", _make)


def serves(device: torch.device, part: Slice) -> bool:
    """Whether there can be kernels for a model, or a part of it, on a device."""
    return device.type == "cpu" and part == WHOLE and installed()


def kernels(patience: float = 0) -> Made | None:
    """Those that are made within so many seconds, if they are. The first call begins with it."""
    return _making().within(patience) if installed() else None


def suits(model: Llama, kept: torch.dtype) -> bool:
    """Whether there are kernels for a model and a cache of this dtype: those of a CPU that compute in fp32."""
    weights = [*model.parameters()]
    kinds = {weight.dtype for weight in weights}
    return (
        model.dtype == kept == torch.float32
        and model.part.parts == 1
        and len(kinds) == 1
        and kinds <= set(STORED)
        and all(weight.device.type == "cpu" and weight.is_contiguous() for weight in weights)
    )


class Threads:
    """Those that compute; the one that asks is the first of them. Steps are done one at a time."""

    def __init__(self, made: Made) -> None:
        self._made, self._lock, self._there = made, threading.Lock(), 1
        self._plans = np.zeros(1, made.module.PLAN)
        # Each in a cache line of its own: what is under way, how much of it is done, a semaphore for each thread.
        self._shared = np.zeros((2 + MOST, 8), np.int64)
        self._ticket, self._done, self._wake = (self._shared[line:].ctypes.data for line in range(3))
        for thread in range(MOST):
            ctypes.CDLL(None).sem_init(ctypes.c_void_p(self._wake + 64 * thread), 0, 0)

    def step(self, plan: Any, number: int) -> None:
        """Compute what a plan says by so many threads."""
        with self._lock:
            plan["ticket"], plan["done"], plan["wake"] = self._ticket, self._done, self._wake
            plan["threads"], plan["phase"] = number, self._made.module.DONE
            self._plans[0] = plan
            for thread in range(self._there, number):
                self._there += 1
                given = self._plans, thread
                threading.Thread(target=self._made.work, args=given, name="llamactl-decoding", daemon=True).start()
            self._made.work(self._plans, 0)


_threads = cache(Threads)


class Decoder:
    """Scores of what follows samples, by a model's weights and a cache, both as they are at each step."""

    def __init__(self, made: Made, model: Llama, kept: Cache) -> None:
        self._threads, self._draw, module = _threads(made), made.draw, made.module
        self._lanes: int = module.LANES
        self._read = model, kept  # whose memory must stay where it is
        config, size, threads = model.config, kept.size, min(torch.get_num_threads(), MOST)
        blocks: list[Any] = list(model.layers)
        rows = -(-size.places // module.LANES) * module.LANES
        own, shared = config.heads * config.head_dim, config.kv_heads * config.head_dim
        room = max(module.ROWS * (module.DEPTH + rows), module.PART, 3 * config.head_dim + size.prompt + size.room)
        tables = rotary(torch.arange(config.context), config.head_dim, config.rope_theta)
        widths = {
            "x": config.dim, "normed": config.dim, "q": own, "k": shared, "v": shared, "mixed": own,
            "gate": config.ffn, "up": config.ffn,
        }  # fmt: skip
        self._columns = np.zeros((len(module.COLUMNS), size.places), np.int64)
        self._logits = torch.empty(size.places, config.vocab)
        self._scratch = torch.empty(threads, module.ROWS * module.DEPTH + room)
        norms = [norm.weight for block in blocks for norm in (block.attention_norm, block.ffn_norm)]
        self._held: dict[str, Tensor] = {
            "norms": torch.stack([*norms, model.norm.weight]).float(),
            "weights": _addresses([_projections(block) for block in blocks]),
            "kept": _addresses(kept.by_layer()),
            "embeddings": model.tok_embeddings.weight, "output": model.output.weight,
            "cos": tables[0].contiguous(), "sin": tables[1].contiguous(),
            "scratch": self._scratch, "logits": self._logits,
            **{name: torch.zeros(width * rows) for name, width in widths.items()},
        }  # fmt: skip
        plan = self._plan = np.zeros((), module.PLAN)
        for name, tensor in self._held.items():
            plan[name] = tensor.data_ptr()
        for name, column in zip(module.COLUMNS, self._columns, strict=True):
            plan[name] = column.ctypes.data
        for name in ("dim", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab"):
            plan[name] = getattr(config, name)
        plan["narrow"] = model.output.weight.dtype == torch.bfloat16
        plan["far"], plan["near"] = size.prompt, size.room
        plan["room"], plan["eps"] = self._scratch.shape[1], config.norm_eps

    def __call__(self, tokens: list[int], step: Step) -> Tensor:
        """Scores ``[n, V]`` of what follows the newest tokens; they are overwritten by the next call."""
        number, plan = len(tokens), self._plan
        order = sorted(range(number), key=step.lanes.__getitem__)
        self._columns[:, :number] = (tokens, *step, order)
        lanes = 1 if number == 1 else self._lanes
        plan["n"], plan["lanes"], plan["panels"] = number, lanes, -(-number // lanes)
        self._threads.step(plan, len(self._scratch))
        return self._logits[:number]

    def draw(
        self, logits: Tensor, of_samples: Sequence[tuple[float, int, int]], sampling: Sampling
    ) -> tuple[list[int], list[float], list[bool]] | None:
        """What ``drawing.draw`` finds: tokens, log p, doubt; None where it takes top-k. Scores are overwritten."""
        if 0 < sampling.top_k < logits.shape[-1]:
            return None
        found = tuple(np.empty(len(of_samples), kind) for kind in (np.int64, np.float64, np.bool_))
        drawn_by = (np.array(field, kind) for field, kind in zip(zip(*of_samples, strict=True), FACTS, strict=True))
        rows, vocab = logits.contiguous(), logits.shape[-1]
        self._draw(rows.data_ptr(), vocab, float(sampling.top_p), drawing.NOISE, *drawn_by, *found)
        tokens, log_probs, doubtful = (column.tolist() for column in found)
        return tokens, log_probs, doubtful


def _projections(block: Any) -> list[Tensor]:
    """The weights of a layer, in the kernels' order."""
    a, f = block.attention, block.feed_forward
    linears: list[nn.Linear] = [a.wq, a.wk, a.wv, a.wo, f.w1, f.w2, f.w3]
    return [linear.weight for linear in linears]


def _addresses(tensors: Any) -> Tensor:
    """Of each layer's."""
    return torch.tensor([[tensor.data_ptr() for tensor in some] for some in tensors])
