"""Steps of decoding on a CPU by compiled kernels: when they are there, what they are told, and the threads that do it.

They take the place of some thirty calls a layer, each of which costs more than the numbers of a few samples do. They
read the model's own weights, and the cache as it lies there: nothing is copied but the norms.

numba compiles them, if it is installed: once for a machine. That takes seconds, in which samples are drawn without
them. In fp32 that changes no token.
"""

import ctypes
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llamactl.model import drawing
from llamactl.model.cache import Cache, Step
from llamactl.model.config import Config
from llamactl.model.drawing import Sampling
from llamactl.model.kernels import plans
from llamactl.model.kernels.making import Kernel, Making, installed
from llamactl.model.llama import Llama, rotary
from llamactl.model.slices import WHOLE, Slice

MOST = 256  # threads
FACTS = (np.float32, np.int64, np.int64)  # temperature, key and tokens said of a sample
FOUND = (np.int64, np.float64, np.int64)  # token, log p, whether in doubt
COLUMNS = ("temperatures", "keys", "said", "tokens", "log_probs", "doubtful", "bounds")
STORED = (torch.float32, torch.bfloat16)  # what weights may be


@cache
def _making() -> Making:
    return Making("what samples are drawn by", ["step", "drawing"])


def serves(device: torch.device, part: Slice) -> bool:
    """Whether there can be kernels for a model, or a part of it, on a device."""
    return device.type == "cpu" and part == WHOLE and installed()


def kernels(patience: float = 0) -> list[Kernel] | None:
    """For a step, and to draw tokens by its scores, if made within so many seconds. The first call begins with it."""
    return _making().within(patience) if installed() else None


def multiplies_pairs(config: Config) -> bool:
    """Whether kernels multiply bf16 numbers as they are, for a model of a shape: all of it in whole registers."""
    return plans.PAIRS and not (
        config.head_dim % (2 * plans.SIDE) or any(n % plans.SIDE for n in (config.dim, config.ffn, config.vocab))
    )


def suits(model: Llama, kept: torch.dtype) -> bool:
    """Whether there are kernels for a model and a cache of this dtype: those of a CPU, fp32, or all of it bf16."""
    weights = [*model.parameters()]
    kinds = {weight.dtype for weight in weights}
    rounded = kept == torch.bfloat16 and kinds == {kept} and multiplies_pairs(model.config)
    return (
        model.dtype == kept
        and (kept == torch.float32 or rounded)
        and model.part.parts == 1
        and len(kinds) == 1
        and kinds <= set(STORED)
        and all(weight.device.type == "cpu" and weight.is_contiguous() for weight in weights)
    )


class Threads:
    """Those that compute; the one that asks is the first of them. Steps are done one at a time."""

    def __init__(self, kernel: Kernel) -> None:
        self._work, self._lock, self._there = kernel.work, threading.Lock(), 1
        self._plan, self._seats = np.zeros(1, plans.STEP), np.zeros(MOST, plans.SEAT)
        self._seats["plan"], self._seats["thread"] = self._plan.ctypes.data, range(MOST)
        self._first = self._seats.ctypes.data
        # Each in a cache line of its own: what is under way, how much of it is done, a semaphore for each thread.
        self._shared = np.zeros((2 + MOST, 8), np.int64)
        self._ticket, self._done, self._wake = (self._shared[line:].ctypes.data for line in range(3))
        for thread in range(MOST):
            ctypes.CDLL(None).sem_init(ctypes.c_void_p(self._wake + 64 * thread), 0, 0)

    def step(self, plan: Any, number: int) -> None:
        """Compute what a plan says by so many threads."""
        with self._lock:
            plan["ticket"], plan["done"], plan["wake"] = self._ticket, self._done, self._wake
            plan["threads"], plan["phase"] = number, plans.DONE
            self._plan[0] = plan
            for thread in range(self._there, number):
                self._there += 1
                given = (self._seat(thread),)
                threading.Thread(target=self._work, args=given, name="llamactl-decoding", daemon=True).start()
            self._work(self._seat(0))

    def _seat(self, thread: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._first + thread * plans.SEAT.itemsize)


_threads = cache(Threads)


class Decoder:
    """Scores of what follows samples, by a model's weights and a cache, both as they are at each step."""

    def __init__(self, kernels: Sequence[Kernel], model: Llama, kept: Cache) -> None:
        step, self._draw = kernels
        self._threads = _threads(step)
        self._read = model, kept  # whose memory must stay where it is
        config, size, threads = model.config, kept.size, min(torch.get_num_threads(), MOST)
        blocks: list[Any] = list(model.layers)
        self._pairs = model.dtype == torch.bfloat16
        rows = -(-size.places // plans.SIDE) * plans.SIDE
        own, shared = config.heads * config.head_dim, config.kv_heads * config.head_dim
        room = max(
            plans.WEIGHTS * (plans.DEPTH + rows),
            plans.PART,
            3 * config.head_dim + size.prompt + size.room + plans.COLUMNS,
        )
        tables = rotary(torch.arange(config.context), config.head_dim, config.rope_theta)
        widths = {
            "x": config.dim, "normed": config.dim, "q": own, "k": shared, "v": shared, "mixed": own,
            "gate": config.ffn, "up": config.ffn,
        }  # fmt: skip
        self._columns = np.zeros((len(plans.OF_SAMPLES), size.places), np.int64)
        self._logits = torch.empty(size.places, config.vocab)
        self._scratch = torch.empty(threads, plans.WEIGHTS * plans.DEPTH + room)
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
        plan = self._plan = np.zeros((), plans.STEP)
        for name, tensor in self._held.items():
            plan[name] = tensor.data_ptr()
        for name, column in zip(plans.OF_SAMPLES, self._columns, strict=True):
            plan[name] = column.ctypes.data
        for name in ("dim", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab"):
            plan[name] = getattr(config, name)
        plan["narrow_kept"] = self._pairs
        plan["narrow"] = model.output.weight.dtype == torch.bfloat16
        plan["far"], plan["near"] = size.prompt, size.room
        plan["room"], plan["eps"] = self._scratch.shape[1], config.norm_eps

    def __call__(self, tokens: list[int], step: Step) -> Tensor:
        """Scores ``[n, V]`` of what follows the newest tokens; they are overwritten by the next call."""
        number, plan = len(tokens), self._plan
        order = sorted(range(number), key=step.lanes.__getitem__)
        self._columns[:, :number] = (tokens, *step, order)
        lanes = 1 if number == 1 else plans.SIDE if self._pairs else plans.LANES
        plan["n"], plan["lanes"], plan["panels"] = number, lanes, -(-number // lanes)
        plan["pairs"] = lanes == plans.SIDE
        self._threads.step(plan, len(self._scratch))
        return self._logits[:number]

    def draw(
        self, logits: Tensor, of_samples: Sequence[tuple[float, int, int]], sampling: Sampling
    ) -> tuple[list[int], list[float], list[bool]] | None:
        """What ``drawing.draw`` finds: tokens, log p, doubt; None where it takes top-k. Scores are overwritten."""
        if 0 < sampling.top_k < logits.shape[-1]:
            return None
        logits, (number, vocab), side = logits.contiguous(), logits.shape, drawing.fan_out(logits.shape[-1])
        drawn_by = [np.array(field, kind) for field, kind in zip(zip(*of_samples, strict=True), FACTS, strict=True)]
        found: list[Any] = [np.empty(number, kind) for kind in FOUND]
        bounds, told = np.empty(side), np.zeros(1, plans.DRAW)
        plan = told[0]
        plan["logits"], plan["rows"], plan["vocab"], plan["side"] = logits.data_ptr(), number, vocab, side
        plan["top_p"], plan["noise"] = sampling.top_p, drawing.NOISE
        for name, column in zip(COLUMNS, (*drawn_by, *found, bounds), strict=True):
            plan[name] = column.ctypes.data
        self._draw.work(ctypes.c_void_p(told.ctypes.data))
        tokens, log_probs, doubtful = found
        return tokens.tolist(), log_probs.tolist(), doubtful.astype(bool).tolist()


def _projections(block: Any) -> list[Tensor]:
    """The weights of a layer, in the kernels' order."""
    a, f = block.attention, block.feed_forward
    linears: list[nn.Linear] = [a.wq, a.wk, a.wv, a.wo, f.w1, f.w2, f.w3]
    return [linear.weight for linear in linears]


def _addresses(tensors: Any) -> Tensor:
    """Of each layer's."""
    return torch.tensor([[tensor.data_ptr() for tensor in some] for some in tensors])
