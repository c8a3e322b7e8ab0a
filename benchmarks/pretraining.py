"""Training steps: tokens per second and peak memory, of llamactl and of its peers, on this machine's CPU.

What is measured: whole optimizer steps (forward, backward, clip to norm 1, fused AdamW) on the same batches of random
ids, from the same initial weights, at two shapes, in fp32 and bf16. The candidates:

    llamactl                    as ``llamactl pretrain`` does: fp32 master weights, compute in --precision, freed memory
                                kept for the next step
    llamactl, compiled          the same with --compile (each layer)
    transformers                LlamaForCausalLM with sdpa attention and its own loss in a plain loop; in bf16 this is
                                torch.autocast over fp32 master weights, which is equal precision to llamactl's
    transformers, compiled      the same under torch.compile
    litgpt                      litgpt.model.GPT with the chunked loss of its pretraining script in a plain loop; in
                                bf16 under torch.autocast, too (what litgpt calls bf16-mixed)
    litgpt, compiled            the same under torch.compile, which its pretraining script always does
    transformers, bf16 weights  bf16 only: weights, gradients and both moments in bf16 and no fp32 master copy. Less
    litgpt, bf16 weights        work, and less precise: updates smaller than 1/512 of a weight are lost

How: each candidate is a process of its own, so that its peak memory is its own; the processes take turns, in rounds
(A B C, A B C, ...), and each runs a few warm-up steps and then steps that are timed one by one. The figure is the
median over the timed steps of all rounds, with the slowest and the fastest. Ratios are of medians, and compare eager
with eager, compiled with compiled. That equal work is compared is checked by the losses of the first and the last step,
which must agree with llamactl's. All candidates have OMP_WAIT_POLICY=passive, which llamactl's command sets for itself:
without it other work on the machine can make a step many times slower. Without a C++ compiler the compiled candidates
are left out.

The limits, measured in the same rounds by a process of their own:

    square     FLOP/s of a product of two 2048 x 2048 matrices
    own        FLOP/s over the products of the model's own linear layers, forward and backward, one after the other

against which a candidate's rate is 6 x N x tokens/s, where N counts the weights that multiply (all but the embedding
table and the norms). Attention's own products are not counted, so 100 % is out of reach.

Run: benchmarks/run.sh makes the peers' environments and runs this with its defaults; or, once they are there,

    python benchmarks/pretraining.py --shape A --precision bf16 --threads 2 --rounds 3 --json results.jsonl
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from measure import Clock, Spread, append_json, note, python_of, table


class Shape(NamedTuple):
    """A Llama, and a batch for it."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    batch: int
    context: int = 512

    @property
    def products(self) -> list[tuple[int, int, int]]:
        """Inputs, outputs and number of its linear layers."""
        kv = self.dim // self.heads * self.kv_heads
        return [
            (self.dim, self.dim, 2 * self.layers),  # wq, wo
            (self.dim, kv, 2 * self.layers),  # wk, wv
            (self.dim, self.ffn, 2 * self.layers),  # w1, w3
            (self.ffn, self.dim, self.layers),  # w2
            (self.dim, self.vocab, 1),  # output
        ]

    @property
    def weights(self) -> int:
        """N: those that multiply."""
        return sum(inputs * outputs * number for inputs, outputs, number in self.products)


SHAPES = {
    "A": Shape(dim=256, layers=6, heads=8, kv_heads=4, ffn=688, vocab=4096, batch=4),
    "B": Shape(dim=768, layers=12, heads=12, kv_heads=12, ffn=2048, vocab=32000, batch=1),
}
ENVIRONMENT = {"llamactl": None, "transformers": "transformers", "litgpt": "litgpt", "limits": None}
EAGER, COMPILED, BF16_WEIGHTS = "", ", compiled", ", bf16 weights"
CANDIDATES = {
    "fp32": [peer + how for how in (EAGER, COMPILED) for peer in ("llamactl", "transformers", "litgpt")],
    "bf16": [peer + how for how in (EAGER, COMPILED) for peer in ("llamactl", "transformers", "litgpt")]
    + [peer + BF16_WEIGHTS for peer in ("transformers", "litgpt")],
}
LR, SEED = 3e-4, 0
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}  # relative, of the losses

Step = Callable[[Any], float]  # ids [batch, context + 1] to their loss


# --- the candidates: each runs in its own environment, and gives a function that takes one step ---


def llamactl(shape: Shape, precision: str, how: str, weights: Path) -> Step:
    """As ``stages/pretrain.py`` and ``llamactl/train/loop.py`` do, without the logs and the saving."""
    import torch

    from llamactl.model import device
    from llamactl.model.config import Config
    from llamactl.model.llama import Llama
    from llamactl.train import loop, optim
    from llamactl.train.step import next_token_loss, take

    device.keep_freed_memory()
    size = Config(shape.dim, shape.layers, shape.heads, shape.kv_heads, shape.ffn, shape.vocab, shape.context)
    model = Llama.create(size, device.PRECISIONS[precision], torch.device("cpu"), SEED)
    optimizer = optim.adamw(model)
    if how == COMPILED:
        model.compile_blocks()
    micro = min(shape.batch, max(1, loop.MICRO_TOKENS // shape.context))
    targets = shape.batch * shape.context
    return lambda ids: take(model, optimizer, next_token_loss, ids, targets, micro, LR, optim.CLIP).loss


def transformers(shape: Shape, precision: str, how: str, weights: Path) -> Step:
    """The usual loop around LlamaForCausalLM."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = torch.bfloat16 if how == BF16_WEIGHTS else torch.float32
    model = LlamaForCausalLM.from_pretrained(weights, dtype=dtype, attn_implementation="sdpa").train()
    called = torch.compile(model) if how == COMPILED else model
    autocast = _autocast(precision, how)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        with autocast():
            return called(input_ids=inputs, labels=inputs, shift_labels=targets, use_cache=False).loss

    return _plain_loop(model, loss_of)


def litgpt(shape: Shape, precision: str, how: str, weights: Path) -> Step:
    """The loop of litgpt's pretraining script without Fabric around it."""
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import chunked_cross_entropy
    from safetensors.torch import load_file

    size = Config(
        name="llama", block_size=shape.context, vocab_size=shape.vocab, padded_vocab_size=shape.vocab,
        n_layer=shape.layers, n_head=shape.heads, n_query_groups=shape.kv_heads, n_embd=shape.dim,
        intermediate_size=shape.ffn, rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="RMSNorm", norm_eps=1e-5, mlp_class_name="LLaMAMLP",
    )  # fmt: skip
    model, state = GPT(size), {}
    copy_weights_hf_llama(size, {}, state, load_file(weights / "model.safetensors"))
    model.load_state_dict(state)
    if how == BF16_WEIGHTS:
        model.to(torch.bfloat16)
    called = torch.compile(model) if how == COMPILED else model
    autocast = _autocast(precision, how)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        with autocast():
            logits = called(ids[:, :-1])
        return chunked_cross_entropy(logits.float(), ids[:, 1:])

    return _plain_loop(model, loss_of)


def _autocast(precision: str, how: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    import torch

    if precision == "bf16" and how != BF16_WEIGHTS:
        return lambda: torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext


def _plain_loop(model: Any, loss_of: Callable[[Any], Any]) -> Step:
    import torch

    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-5, fused=True)

    def step(ids: torch.Tensor) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


# --- the worker: one candidate, one turn; JSON lines on stdout ---


def work(candidate: str, shape: Shape, precision: str, threads: int, weights: Path, warmup: int, steps: int) -> None:
    """One JSON line a step: seconds, loss, peak memory so far."""
    import torch

    torch.set_num_threads(threads)
    if candidate == "limits":
        print(json.dumps(limits(shape, precision)))
        return
    peer, comma, how = candidate.partition(",")
    step = {"llamactl": llamactl, "transformers": transformers, "litgpt": litgpt}[peer](
        shape, precision, comma + how, weights
    )
    for number in range(warmup + steps):
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(0, shape.vocab, (shape.batch, shape.context + 1), generator=generator)
        start = time.perf_counter()
        loss = step(ids)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "loss": loss, "peak": peak, "warmup": number < warmup}), flush=True)


def limits(shape: Shape, precision: str) -> dict[str, float]:
    """FLOP/s of matrix products: of large squares, and of the model's own layers."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tokens = shape.batch * shape.context

    def seconds_of(rows: int, inner: int, columns: int, repeats: int = 9) -> float:
        """The median over products of fresh matrices, the first one not counted."""
        a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
        out = torch.empty(rows, columns, dtype=dtype)
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            taken.append(time.perf_counter() - start)
        return sorted(taken[1:])[len(taken) // 2]

    own = sum(
        number * (seconds_of(tokens, i, o) + seconds_of(tokens, o, i) + seconds_of(i, tokens, o))
        for i, o, number in shape.products
    )
    return {"square": 2 * 2048**3 / seconds_of(2048, 2048, 2048), "own": 6 * tokens * shape.weights / own}


def save_weights(shape: Shape, directory: Path) -> None:
    """The initial weights as a Hugging Face directory, for the peers to start from."""
    import torch
    from safetensors.torch import save_file

    from llamactl.model.config import Config
    from llamactl.model.llama import Llama

    size = Config(shape.dim, shape.layers, shape.heads, shape.kv_heads, shape.ffn, shape.vocab, shape.context)
    model = Llama.create(size, torch.float32, torch.device("cpu"), SEED)
    save_file(dict(model.hf_state(torch.float32)), directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(size.to_hf("float32")))


# --- the driver ---


def turn(candidate: str, worker: list[str], threads: int) -> Iterator[dict[str, Any]]:
    """A candidate's process, from its start to its end."""
    python = python_of(ENVIRONMENT[candidate.partition(",")[0]])
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, __file__, *worker, "--work", candidate], stdout=subprocess.PIPE, env=env, check=True)
    return map(json.loads, done.stdout.splitlines())


def cell(name: str, precision: str, threads: int, candidates: list[str], asked: argparse.Namespace) -> None:
    """One table: a shape in a precision on a number of threads."""
    shape = SHAPES[name]
    lines: dict[str, list[dict[str, Any]]] = {candidate: [] for candidate in [*candidates, "limits"]}
    clock = Clock.now()
    with tempfile.TemporaryDirectory() as weights:
        save_weights(shape, Path(weights))
        worker = ["--shape", name, "--precision", precision, "--threads", str(threads), "--weights", weights]
        worker += ["--warmup", str(asked.warmup), "--steps", str(asked.steps)]
        for number in range(asked.rounds):
            for candidate in lines:
                note(f"{name} {precision} {threads} threads, round {number + 1}/{asked.rounds}: {candidate}")
                lines[candidate] += turn(candidate, worker, threads)
    report(name, precision, threads, lines, clock.others(), asked.json)


def report(
    name: str, precision: str, threads: int, lines: dict[str, list[dict[str, Any]]], others: float, out: Path | None
) -> None:
    """The table of a cell, and its JSON lines."""
    shape = SHAPES[name]
    facts = {"benchmark": "pretraining", "shape": name, "precision": precision, "threads": threads, "others": others}
    limit = {key: Spread.of([line[key] for line in lines["limits"]]) for key in ("square", "own")}
    speeds: dict[str, Spread] = {}
    rows = []
    for candidate in [key for key in lines if key != "limits"]:
        timed = [line for line in lines[candidate] if not line["warmup"]]
        speed = speeds[candidate] = Spread.of([shape.batch * shape.context / line["seconds"] for line in timed])
        losses = lines[candidate][0]["loss"], lines[candidate][-1]["loss"]
        peak = max(line["peak"] for line in timed)
        rate = 6 * shape.weights * speed.median
        ours = speeds.get("llamactl" + (COMPILED if candidate.endswith(COMPILED) else EAGER))
        ratio = ours.median / speed.median if ours else None
        rows.append(
            [
                candidate,
                speed.show(0),
                f"{ratio:.2f}" if ratio else "",
                f"{peak / 2**20:,.0f}",
                f"{rate / limit['own'].median:.0%}",
                f"{rate / limit['square'].median:.0%}",
                f"{losses[0]:.4f}",
                f"{losses[1]:.4f}",
            ]
        )
        numbers = {
            "candidate": candidate, "tokens_per_second": speed._asdict(), "llamactl_over_it": ratio,
            "peak_bytes": peak, "first_loss": losses[0], "last_loss": losses[1], "steps": len(timed),
            "of_own_products": rate / limit["own"].median, "of_square_products": rate / limit["square"].median,
        }  # fmt: skip
        append_json(out, facts | numbers)
    append_json(out, facts | {"candidate": "limits"} | {f"{key}_flops": one._asdict() for key, one in limit.items()})
    rates = ", ".join(f"{key} {spread.show(0, 1e9)}" for key, spread in limit.items())
    title = f"Shape {name}, {precision}, {threads} thread{'s' * (threads > 1)}; GFLOP/s of products: {rates}"
    head = ["", "tokens/s", "llamactl / it", "peak MiB", "of own", "of square", "first loss", "last loss"]
    table(title, head, rows, others)
    check_losses(lines, TOLERANCE[precision])


def check_losses(lines: dict[str, list[dict[str, Any]]], tolerance: float) -> None:
    """Say so where a candidate did other work than llamactl."""
    for candidate, mine in lines.items():
        if candidate == "limits" or "llamactl" not in lines:
            continue
        for which, place in (("first", 0), ("last", -1)):
            a, b = lines["llamactl"][place]["loss"], mine[place]["loss"]
            if not abs(a - b) <= tolerance * abs(a):
                print(f"NOT EQUAL WORK: {candidate}: {which} loss {b:.5f}, llamactl's {a:.5f}")


def has_compiler() -> bool:
    """Whether torch.compile can work on a CPU here."""
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++", "clang++")))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = CANDIDATES["bf16"]
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all")
    parser.add_argument("--precision", choices=CANDIDATES, action="append", help="default: all")
    parser.add_argument("--threads", type=int, action="append", help="default: 2 and 1")
    parser.add_argument("--candidate", choices=every, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=2, help="steps of each turn that are not timed")
    parser.add_argument("--steps", type=int, default=6, help="steps of each turn that are timed")
    parser.add_argument("--json", type=Path, help="append the results to this file, as JSON lines")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        shape, precision, threads = SHAPES[asked.shape[0]], asked.precision[0], asked.threads[0]
        work(asked.work, shape, precision, threads, asked.weights, asked.warmup, asked.steps)
        return
    wanted = asked.candidate or [one for one in every if COMPILED not in one or has_compiler()]
    for threads in asked.threads or [2, 1]:
        for name in asked.shape or SHAPES:
            for precision in asked.precision or CANDIDATES:
                chosen = [one for one in CANDIDATES[precision] if one in wanted]
                cell(name, precision, threads, chosen, asked)


if __name__ == "__main__":
    main()
