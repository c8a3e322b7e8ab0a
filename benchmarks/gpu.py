"""Training steps on one GPU: tokens a second, share of its matrix rate, peak memory; llamactl beside its peers.

What is measured: whole optimizer steps (micro-batches forward and backward, clip to norm 1, fused AdamW) at the layer
shape of the 7b (width 4096, 32 heads, feed-forward 11008, context 4096, vocabulary 32000), with as many layers as the
device's memory holds of the hungriest candidate, one sequence a micro-batch. All compute in bf16 over fp32 master
weights and fp32 moments, start from the same weights and see the same random ids; the losses must agree.

    llamactl                    as ``llamactl pretrain`` does
    llamactl, compiled          the same with --compile (each layer)
    plain torch                 a Llama as one writes it with what torch brings: nn.Linear, nn.RMSNorm, sdpa,
                                F.cross_entropy, in a plain loop under torch.autocast
    transformers                LlamaForCausalLM with sdpa attention and its own loss in the same loop, if it can be
                                imported (4.53 or later)
    torchtitan                  the model of torchtitan 0.2.0 (not later: pip install --no-deps, and what it then asks
                                for) in the same loop, if it can be imported
    ..., compiled               under torch.compile: the whole model at once; torchtitan, as it does itself, each layer

How: each candidate is a process of its own; they take turns in rounds, each a few warm-up steps and then steps that are
timed one by one between CUDA events, synchronised. The figure is the median over all rounds with its range. After the
first round another one is begun only if it will end within --minutes. A candidate that fails, or whose first turn would
begin later than that, is named and left out; where one runs out of memory, everything begins again with two layers
less. All have expandable segments in torch's allocator. The peak is the allocator's (on a CPU, the process's).

The rates that a candidate's 6 x N x tokens/s is held against, measured in the same rounds in bf16 (N: the weights that
multiply, all but the embedding table and the norms):

    own        the products of the model's own linear layers, forward and backward, one after the other
    square     products of two 8192 x 8192 matrices
    sheet      the vendor's dense bf16 rate, where llamactl lists it

The products of attention are not counted; the title says how much those below the diagonal would add (MFU as the PaLM
paper counts it adds twice that).

Needed: torch with CUDA and what llamactl itself needs (pip install msgspec orjson rich safetensors sentencepiece typer
zstandard; all light). Run from the root of the repository, in less than 8 minutes:

    PYTHONPATH=. python benchmarks/gpu.py --json gpu.jsonl
    PYTHONPATH=. python benchmarks/gpu.py --device cpu --tiny      # the same code in seconds, for trying it out
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from measure import Clock, Spread, append_json, note, table
from pretraining import COMPILED, EAGER, LR, Shape, Step, check_losses, plain_loop
from torch import Tensor, nn

from llamactl import hardware
from llamactl.artifacts.checkpoint import hf_name
from llamactl.model.config import Config
from llamactl.model.llama import Llama
from llamactl.train.optim import AdamW
from llamactl.train.parallel import Job
from llamactl.train.schedule import Cosine
from llamactl.train.step import Outcome, next_token_loss, take

FULL = Shape(dim=4096, layers=0, heads=32, kv_heads=32, ffn=11008, vocab=32000, batch=1, context=4096)
TINY = Shape(dim=64, layers=2, heads=4, kv_heads=4, ffn=176, vocab=512, batch=1, context=128)
MOST_LAYERS = 32
PEERS = {"llamactl": None, "plain torch": None, "transformers": "transformers", "torchtitan": "torchtitan"}
OUT_OF_MEMORY = 77  # exit status of a worker
TOLERANCE = 1e-2  # relative, of the losses
EPS, STD = 1e-5, 0.02


# --- the candidates ---


def llamactl(shape: Shape, device: torch.device, how: str) -> Step:
    """As ``stages/pretrain.py`` and ``llamactl/train/loop.py`` do, without the logs and the saving."""
    with torch.device("meta"):
        model = Llama(config_of(shape), torch.bfloat16)
    job = Job(None, device)
    job.arrange(model, checkpointing="none", compiled=how == COMPILED)
    fill(model.to_empty(device=device), hf_name)
    optimizer = AdamW(model, Cosine(LR, 0, 1, floor=1.0))

    def step(ids: Tensor) -> float:
        targets = len(ids) * shape.context
        return Outcome.read(take(model, optimizer, next_token_loss, ids, targets, shape.batch, job)).loss

    return step


class PlainLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.dim // shape.heads
        kv = self.head_dim * shape.kv_heads
        self.attention_norm, self.ffn_norm = (nn.RMSNorm(shape.dim, eps=EPS) for _ in range(2))
        self.attention = nn.ModuleDict(
            {name: nn.Linear(shape.dim, out, bias=False) for name, out in zip(
                ("wq", "wk", "wv", "wo"), (shape.dim, kv, kv, shape.dim), strict=True)}
        )  # fmt: skip
        self.feed_forward = nn.ModuleDict({
            "w1": nn.Linear(shape.dim, shape.ffn, bias=False),
            "w2": nn.Linear(shape.ffn, shape.dim, bias=False),
            "w3": nn.Linear(shape.dim, shape.ffn, bias=False),
        })  # fmt: skip

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        one, two = x.chunk(2, -1)
        return (x * cos + torch.cat((-two, one), -1) * sin).to(x.dtype)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        w, normed = self.attention, self.attention_norm(x)
        q, k, v = (w[n](normed).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for n in ("wq", "wk", "wv"))
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        x = x + w["wo"](mixed.transpose(1, 2).flatten(2))
        w, normed = self.feed_forward, self.ffn_norm(x)
        return x + w["w2"](F.silu(w["w1"](normed)) * w["w3"](normed))


class Plain(nn.Module):
    """Ids to their loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(shape.vocab, shape.dim)
        self.layers = nn.ModuleList(PlainLayer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.dim, eps=EPS)
        self.output = nn.Linear(shape.dim, shape.vocab, bias=False)
        head_dim = shape.dim // shape.heads
        steps = torch.arange(0, head_dim, 2).float() / head_dim
        angles = torch.outer(torch.arange(shape.context).float(), 10_000.0**-steps).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_embeddings(ids[:, :-1])
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return F.cross_entropy(self.output(self.norm(x)).float().flatten(0, 1), ids[:, 1:].flatten())


def plain(shape: Shape, device: torch.device, how: str) -> Step:
    """The loop that every page about training has."""
    with torch.device(device):
        model = Plain(shape)
    fill(model, hf_name)
    called = torch.compile(model) if how == COMPILED else model
    return plain_loop(model, under_autocast(called, device), shape.batch)


def transformers(shape: Shape, device: torch.device, how: str) -> Step:
    """The usual loop around LlamaForCausalLM."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**config_of(shape).to_hf("float32"), "use_cache": False})
    config._attn_implementation = "sdpa"
    with torch.device(device):
        model = LlamaForCausalLM(config).train()
    fill(model, str)
    called = torch.compile(model) if how == COMPILED else model

    def loss_of(ids: Tensor) -> Tensor:
        inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        return called(input_ids=inputs, labels=inputs, shift_labels=targets, use_cache=False).loss

    return plain_loop(model, under_autocast(loss_of, device), shape.batch)


def torchtitan(shape: Shape, device: torch.device, how: str) -> Step:
    """The model of its 0.2 releases, whose rotation is Meta's: pairs (2i, 2i + 1) of a head."""
    from torchtitan.models.llama3 import Transformer, TransformerModelArgs
    from torchtitan.models.llama3.model.args import RoPEScalingArgs

    size = TransformerModelArgs(
        dim=shape.dim, n_layers=shape.layers, n_heads=shape.heads, n_kv_heads=shape.kv_heads, vocab_size=shape.vocab,
        multiple_of=shape.ffn, norm_eps=EPS, rope_scaling_args=RoPEScalingArgs(scaling_factor=1.0),
        max_seq_len=shape.context,
    )  # fmt: skip
    with torch.device(device):
        model = Transformer(size)
    fill(model, hf_name, pairs=shape.dim // shape.heads // 2)
    if how == COMPILED:
        for layer in model.layers.values():
            layer.compile(fullgraph=True)

    def loss_of(ids: Tensor) -> Tensor:
        return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())

    return plain_loop(model, under_autocast(loss_of, device), shape.batch)


MAKERS = {"llamactl": llamactl, "plain torch": plain, "transformers": transformers, "torchtitan": torchtitan}


def config_of(shape: Shape) -> Config:
    """As llamactl knows it."""
    return Config(shape.dim, shape.layers, shape.heads, shape.kv_heads, shape.ffn, shape.vocab, shape.context)


def under_autocast(loss_of: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    """bf16 over fp32 master weights."""

    def inside(ids: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return loss_of(ids)

    return inside


def fill(model: nn.Module, name_of: Callable[[str], str], pairs: int | None = None) -> None:
    """Weights that depend on the tensor's name (Hugging Face's) alone, made where they are."""
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name_of(name).encode()))
            parameter.normal_(0.0, STD, generator=generator)
            if pairs and name.endswith(("wq.weight", "wk.weight")):
                parameter.copy_(parameter.unflatten(0, (-1, 2, pairs)).transpose(1, 2).flatten(0, 2))


# --- the worker: one candidate, one turn; JSON lines on stdout ---


class Stopwatch:
    """Seconds between two moments of the device: CUDA events there, the clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def mark(self) -> Any:
        """This moment, in the order of the device's work."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Waits for the later one."""
        if not self.cuda:
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000


def work(candidate: str, shape: Shape, device: torch.device, asked: argparse.Namespace) -> None:
    """One JSON line a step: seconds, loss, peak memory so far."""
    out, sys.stdout = sys.stdout, sys.stderr  # what a peer prints is no result
    if candidate == "limits":
        print(json.dumps(limits(shape, device)), file=out)
        return
    peer, comma, how = candidate.partition(",")
    try:
        step = MAKERS[peer](shape, device, comma + how)
        watch = Stopwatch(device)
        for number in range(asked.warmup + asked.steps):
            size = (asked.micro_batches * shape.batch, shape.context + 1)
            ids = torch.randint(0, shape.vocab, size, generator=torch.Generator().manual_seed(number)).to(device)
            start = watch.mark()
            loss = step(ids)
            seconds = watch.between(start, watch.mark())
            if device.type == "cuda":
                peak = torch.cuda.max_memory_allocated(device)
            else:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            line = {"seconds": seconds, "loss": loss, "peak": peak, "warmup": number < asked.warmup}
            print(json.dumps(line), file=out, flush=True)
    except torch.OutOfMemoryError:
        sys.exit(OUT_OF_MEMORY)


def limits(shape: Shape, device: torch.device, enough: float = 0.2) -> dict[str, float]:
    """FLOP/s of bf16 products: of large squares, and of the model's own layers."""
    watch, tokens = Stopwatch(device), shape.batch * shape.context

    def seconds_of(rows: int, inner: int, columns: int) -> float:
        """The median over ``enough`` seconds of products, the first ones not counted."""
        a = torch.randn(rows, inner, device=device).bfloat16()
        b = torch.randn(inner, columns, device=device).bfloat16()
        out = torch.empty(rows, columns, dtype=torch.bfloat16, device=device)
        taken: list[float] = []
        while sum(taken) < enough and len(taken) < 300:
            start = watch.mark()
            torch.mm(a, b, out=out)
            taken.append(watch.between(start, watch.mark()))
        return statistics.median(taken[3:] or taken)

    own = sum(
        number * (seconds_of(tokens, i, o) + seconds_of(tokens, o, i) + seconds_of(i, tokens, o))
        for i, o, number in shape.products
    )
    side = 8192 if device.type == "cuda" else 256
    return {"square": 2 * side**3 / seconds_of(side, side, side), "own": 6 * tokens * shape.weights / own}


# --- the driver ---


class OutOfMemory(Exception):
    """A candidate did not fit."""


def turn(candidate: str, shape: Shape, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """A candidate's process, from its start to its end; nothing where it failed or took too long."""
    worker = ["--work", candidate, "--device", asked.device, "--layers", str(shape.layers)]
    worker += ["--warmup", str(asked.warmup), "--steps", str(asked.steps), "--micro-batches", str(asked.micro_batches)]
    worker += ["--tiny"] * asked.tiny
    env = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "HF_HUB_OFFLINE": "1", **os.environ}
    command = [sys.executable, __file__, *worker]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, env=env, timeout=asked.patience, check=False)
    except subprocess.TimeoutExpired:
        note(f"{candidate}: left out, after {asked.patience:.0f} s")
        return []
    if done.returncode == OUT_OF_MEMORY:
        raise OutOfMemory(candidate)
    if done.returncode != 0:
        note(f"{candidate}: left out, failed with status {done.returncode}")
        return []
    return list(map(json.loads, done.stdout.splitlines()))


def layers_that_fit(device: torch.device) -> int:
    """An estimate for the hungriest candidate: an eager one whose norms, residuals and rotation are in fp32."""
    memory = 0.9 * torch.cuda.get_device_properties(device).total_memory
    tokens = FULL.batch * FULL.context
    weights = 4 * FULL.dim**2 + 3 * FULL.dim * FULL.ffn
    layer = 18 * weights + tokens * (70 * FULL.dim + 12 * FULL.ffn)  # fp32: weight, gradient, moments; bf16: the cast
    rest = 18 * 2 * FULL.vocab * FULL.dim + 16 * tokens * FULL.vocab
    return int(max(1, min(MOST_LAYERS, (memory - rest) // layer)))


def rounds(shape: Shape, candidates: list[str], asked: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """What all candidates and the limits have said, in as many rounds as there is time for."""
    begin = time.monotonic()
    lines: dict[str, list[dict[str, Any]]] = {candidate: [] for candidate in ["limits", *candidates]}
    for number in range(asked.rounds):
        passed = time.monotonic() - begin
        if number and passed + passed / number > asked.minutes * 60:
            note(f"{number} round(s) in {passed / 60:.1f} minutes; another one would pass {asked.minutes:g}")
            break
        for candidate in list(lines):
            if time.monotonic() - begin > asked.minutes * 60 and not lines[candidate]:
                note(f"{candidate}: left out, there is no time")
                del lines[candidate]
                continue
            note(f"{shape.layers} layers, round {number + 1}/{asked.rounds}: {candidate}")
            said = turn(candidate, shape, asked)
            if said:
                lines[candidate] += said
            elif candidate == "limits":
                sys.exit("the rate of matrix products could not be measured")
            else:
                del lines[candidate]
    return lines


def report(lines: dict[str, list[dict[str, Any]]], shape: Shape, others: float, asked: argparse.Namespace) -> None:
    """The table, and its JSON lines."""
    cuda = asked.device.startswith("cuda")
    name = torch.cuda.get_device_name(asked.device) if cuda else "CPU"
    listed = hardware.DEVICES.get(hardware.found(name))
    sheet = listed.flops if listed else None
    limit = {key: Spread.of([line[key] for line in lines["limits"]]) for key in ("own", "square")}
    tokens = asked.micro_batches * shape.batch * shape.context
    facts = {"benchmark": "gpu", "device": name, "torch": torch.__version__, **shape._asdict(), "tokens": tokens}
    speeds: dict[str, Spread] = {}
    rows = []
    for candidate in [key for key in lines if key != "limits"]:
        timed = [line for line in lines[candidate] if not line["warmup"]]
        speed = speeds[candidate] = Spread.of([tokens / line["seconds"] for line in timed])
        rate = 6 * shape.weights * speed.median
        ours = speeds.get("llamactl" + (COMPILED if candidate.endswith(COMPILED) else EAGER))
        ratio = ours.median / speed.median if ours else None
        peak, losses = max(line["peak"] for line in timed), (lines[candidate][0]["loss"], lines[candidate][-1]["loss"])
        shares = [rate / limit["own"].median, rate / limit["square"].median, rate / sheet if sheet else None]
        row = [candidate, speed.show(0), f"{ratio:.2f}" if ratio else "", f"{peak / 2**30:,.1f}", f"{rate / 1e12:,.1f}"]
        rows.append([*row, *("" if s is None else f"{s:.1%}" for s in shares), *(f"{loss:.4f}" for loss in losses)])
        numbers = {
            "candidate": candidate, "tokens_per_second": speed._asdict(), "llamactl_over_it": ratio,
            "peak_bytes": peak, "flops": rate, "of_own_products": shares[0], "of_square_products": shares[1],
            "of_sheet": shares[2], "first_loss": losses[0], "last_loss": losses[1], "steps": len(timed),
        }  # fmt: skip
        append_json(asked.json, facts | numbers)
    append_json(asked.json, facts | {"candidate": "limits"} | {f"{key}_flops": s._asdict() for key, s in limit.items()})
    attention = shape.layers * shape.dim * shape.context / shape.weights  # 6 x L x D x T over 6 x N
    made = ", ".join(f"{key} {spread.show(1, 1e12)}" for key, spread in limit.items())
    title = (
        f"{name}, torch {torch.__version__}: {shape.layers} layers, {6 * shape.weights / 1e9:.1f} GFLOP a token "
        f"(attention, not counted: {attention:.0%} more), {tokens:,} tokens a step\n"
        f"TFLOP/s of bf16 products: {made}" + (f", sheet {sheet / 1e12:.0f}" if sheet else "")
    )
    head = ["", "tokens/s", "llamactl / it", "peak GiB", "TFLOP/s", "of own", "of square", "of sheet", "first", "last"]
    table(title, head, rows, others)
    check_losses(lines, TOLERANCE)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [peer + how for how in (EAGER, COMPILED) for peer in PEERS]
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="another shape, for trying this out")
    parser.add_argument("--candidate", choices=every, action="append", help="default: all that can be imported")
    parser.add_argument("--layers", type=int, help="default: as many as fit")
    parser.add_argument("--micro-batches", type=int, default=4, help="of a step, one sequence each")
    parser.add_argument("--rounds", type=int, default=3, help="at most")
    parser.add_argument("--minutes", type=float, default=7.0, help="no round is begun that would end later")
    parser.add_argument("--patience", type=float, default=180.0, help="seconds that a turn may take")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each turn that are not timed")
    parser.add_argument("--steps", type=int, default=4, help="steps of each turn that are timed")
    parser.add_argument("--json", type=Path, help="append the results to this file, as JSON lines")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    device = torch.device(asked.device)
    shape = TINY if asked.tiny else FULL
    shape = shape._replace(layers=asked.layers or shape.layers or layers_that_fit(device))
    if asked.work:
        work(asked.work, shape, device, asked)
        return
    missing = [peer for peer, module in PEERS.items() if module and importlib.util.find_spec(module) is None]
    for peer in missing:
        note(f"{peer}: skipped, it is not installed")
    candidates = [one for one in asked.candidate or every if one.partition(",")[0] not in missing]
    clock = Clock.now()
    while True:
        try:
            lines = rounds(shape, candidates, asked)
            break
        except OutOfMemory as error:
            note(f"{error}: out of memory with {shape.layers} layers")
            if shape.layers <= 1:
                sys.exit("not even one layer fits")
            shape = shape._replace(layers=max(1, shape.layers - 2))
    report(lines, shape, clock.others(), asked)


if __name__ == "__main__":
    main()
