"""Training steps: tokens per second and peak memory, of llamactl and of its peers, on this machine's CPU.

What is measured: whole optimizer steps (forward, backward, clip to norm 1, fused AdamW) on the same batches of random
ids, from the same initial weights, at two shapes, in fp32 and bf16. The candidates:

    llamactl                    as ``llamactl pretrain`` does: fp32 master weights, compute in --precision, freed memory
                                kept for the next step
    llamactl, compiled          the same with --compile (each layer)
    transformers                LlamaForCausalLM with sdpa attention and its own loss in a plain loop; in bf16 this is
                                torch.autocast over fp32 master weights, which is equal precision to llamactl's
    HF Trainer                  transformers.Trainer around the same model, with bf16=True, adamw_torch_fused, no
                                logging, saving or evaluation: what its users run. A step is timed from on_step_begin
                                to on_step_end, so that what the Trainer does between steps is not counted
    litgpt                      litgpt.model.GPT with the chunked loss of its pretraining script in a plain loop; in
                                bf16 under torch.autocast, too (what litgpt calls bf16-mixed)
    llama2.c                    the model of karpathy/llama2.c in a plain loop, embedding and output untied, under
                                torch.autocast in bf16 (its train.py does so on a GPU, and on a CPU computes in fp32)
    nanochat                    the model of karpathy/nanochat, which casts its weights at each use, in a plain loop.
                                NOT THE SAME NETWORK (squared ReLU, norms of queries and keys, capped logits): it has
                                our width, depth, heads and vocabulary, full attention as in its CPU recipe, and is
                                compared by FLOPs. So that it is, its value embeddings are left out (they multiply
                                nothing, and the optimizer would work on twice the parameters) and its embedding is
                                kept in fp32. Its losses are not checked
    ..., compiled               under torch.compile, the whole model at once: as the training scripts of all four
                                projects do, and the Trainer with torch_compile=True
    transformers, bf16 weights  bf16 only: weights, gradients and both moments in bf16 and no fp32 master copy. Less
    litgpt, bf16 weights        work, and less precise: updates smaller than 1/512 of a weight are lost

All have the same optimizer: AdamW, fused, with the same groups and numbers (nanochat's own is Muon).

How: each candidate is a process of its own, so that its peak memory is its own; the processes take turns, in rounds
(A B C, A B C, ...), and each runs a few warm-up steps and then steps that are timed one by one. The figure is the
median over the timed steps of all rounds, with the slowest and the fastest. Ratios are of medians, and compare eager
with eager, compiled with compiled. That equal work is compared is checked by the losses of the first and the last step,
which must agree with llamactl's (but for nanochat). All candidates' threads wait as torch has it, by spinning, and so
do those of llamactl's command on a quiet machine: on a busy one a step can be many times slower. Without a C++ compiler
the compiled candidates are left out.

The limits, measured in the same rounds by a process of their own:

    square     FLOP/s of a product of two 2048 x 2048 matrices
    own        FLOP/s over the products of the model's own linear layers, forward and backward, one after the other

against which a candidate's rate is 6 x N x tokens/s, where N counts the weights that multiply (all but the embedding
table and the norms). Ratios are of these rates; between candidates of one N, which is all but nanochat, that is the
ratio of tokens/s. Attention's own products are not counted, so 100 % is out of reach.

Run: benchmarks/run.sh makes the peers' environments and runs this with its defaults; or, once they are there,

    python benchmarks/pretraining.py --shape A --precision bf16 --threads 2 --rounds 3 --json results.jsonl
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from measure import Clock, Spread, append_json, note, python_of, source_of, table


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
    "tiny": Shape(dim=64, layers=2, heads=4, kv_heads=2, ffn=176, vocab=512, batch=2, context=64),
}
MEASURED = ("A", "B")  # tiny is for trying this out
ENVIRONMENT = {
    "llamactl": None,
    "transformers": "transformers",
    "HF Trainer": "transformers",
    "litgpt": "litgpt",
    "llama2.c": "transformers",
    "nanochat": "transformers",
    "limits": None,
}
EAGER, COMPILED, BF16_WEIGHTS = "", ", compiled", ", bf16 weights"
BOTH = [peer + how for how in (EAGER, COMPILED) for peer in ENVIRONMENT if peer != "limits"]
CANDIDATES = {"fp32": BOTH, "bf16": BOTH + [peer + BF16_WEIGHTS for peer in ("transformers", "litgpt")]}
OTHER_NETWORK = "nanochat"
LR, SEED = 3e-4, 0
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}  # relative, of the losses

Step = Callable[[Any], float]  # ids [batch, context + 1] to their loss


class Candidate(NamedTuple):
    """What a candidate does with batches of ids: seconds and loss of each; and how many weights multiply in it."""

    steps: Callable[[list[Any]], Iterable[tuple[float, float]]]
    weights: int


# --- the candidates: each runs in its own environment ---


def llamactl(shape: Shape, precision: str, how: str, weights: Path) -> Candidate:
    """As ``stages/pretrain.py`` and ``llamactl/train/loop.py`` do, without the logs and the saving."""
    import torch

    from llamactl.model import device
    from llamactl.model.config import Config
    from llamactl.model.llama import Llama
    from llamactl.train.optim import AdamW
    from llamactl.train.parallel import Job
    from llamactl.train.schedule import MICRO_TOKENS, Cosine
    from llamactl.train.step import Outcome, next_token_loss, take

    device.keep_freed_memory()
    size = Config(shape.dim, shape.layers, shape.heads, shape.kv_heads, shape.ffn, shape.vocab, shape.context)
    job = Job(None, torch.device("cpu"))
    arrange = partial(job.arrange, checkpointing="none", compiled=how == COMPILED)
    model = Llama.create(size, device.PRECISIONS[precision], job.device, SEED, arrange)
    optimizer = AdamW(model, Cosine(LR, 0, 1, floor=1.0))
    micro = min(shape.batch, max(1, MICRO_TOKENS // shape.context))
    targets = shape.batch * shape.context

    def step(ids: Any) -> float:
        return Outcome.read(take(model, optimizer, next_token_loss, ids, targets, micro, job)).loss

    return Candidate(timed(step), shape.weights)


def transformers(shape: Shape, precision: str, how: str, weights: Path) -> Candidate:
    """The usual loop around LlamaForCausalLM."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = torch.bfloat16 if how == BF16_WEIGHTS else torch.float32
    model = LlamaForCausalLM.from_pretrained(weights, dtype=dtype, attn_implementation="sdpa").train()
    called = torch.compile(model) if how == COMPILED else model
    autocast = autocast_of(precision, how)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        with autocast():
            return called(input_ids=inputs, labels=inputs, shift_labels=targets, use_cache=False).loss

    return Candidate(timed(plain_loop(model, loss_of)), shape.weights)


def trainer(shape: Shape, precision: str, how: str, weights: Path) -> Candidate:
    """``transformers.Trainer`` as it is, but for a note of each step's seconds and loss."""
    import torch
    from transformers import LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = LlamaForCausalLM.from_pretrained(weights, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    losses, seconds, began = [], [], []

    class WithLosses(Trainer):
        def training_step(self, *given: Any, **named: Any) -> Any:
            loss = super().training_step(*given, **named)
            losses.append(float(loss))
            return loss

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            began.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - began[-1])

    def steps(batches: list[Any]) -> Iterable[tuple[float, float]]:
        rows = torch.cat(batches)
        data = [{"input_ids": row[:-1], "labels": row[:-1], "shift_labels": row[1:]} for row in rows]
        with tempfile.TemporaryDirectory() as out:
            arguments = TrainingArguments(
                out, use_cpu=True, bf16=precision == "bf16", torch_compile=how == COMPILED,
                per_device_train_batch_size=shape.batch, max_steps=len(batches), train_sampling_strategy="sequential",
                optim="adamw_torch_fused", learning_rate=LR, lr_scheduler_type="constant", weight_decay=0.1,
                adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-5, max_grad_norm=1.0, remove_unused_columns=False,
                logging_strategy="no", save_strategy="no", eval_strategy="no", report_to="none", disable_tqdm=True,
                dataloader_pin_memory=False,
            )  # fmt: skip
            noting = WithLosses(model, arguments, train_dataset=data, callbacks=[Watch()])
            noting.remove_callback(PrinterCallback)
            noting.train()
        return zip(seconds, losses, strict=True)

    return Candidate(steps, shape.weights)


def litgpt(shape: Shape, precision: str, how: str, weights: Path) -> Candidate:
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
    autocast = autocast_of(precision, how)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        with autocast():
            logits = called(ids[:, :-1])
        return chunked_cross_entropy(logits.float(), ids[:, 1:])

    return Candidate(timed(plain_loop(model, loss_of)), shape.weights)


def llama2_c(shape: Shape, precision: str, how: str, weights: Path) -> Candidate:
    """The loop of llama2.c's train.py, without its logs."""
    import torch
    from safetensors.torch import load_file

    sys.path.append(str(source_of("llama2.c")))
    from model import ModelArgs, Transformer

    size = ModelArgs(
        dim=shape.dim, n_layers=shape.layers, n_heads=shape.heads, n_kv_heads=shape.kv_heads, vocab_size=shape.vocab,
        hidden_dim=shape.ffn, max_seq_len=shape.context,
    )  # fmt: skip
    model = Transformer(size)
    model.tok_embeddings.weight = torch.nn.Parameter(model.output.weight.detach().clone())  # tied there, not in Llama 2
    model.load_state_dict(dict(_meta_names(load_file(weights / "model.safetensors"), shape.dim // shape.heads)))
    called = torch.compile(model) if how == COMPILED else model
    autocast = autocast_of(precision, how)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        with autocast():
            called(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        return model.last_loss

    return Candidate(timed(plain_loop(model, loss_of)), shape.weights)


def _meta_names(state: dict[str, Any], head_dim: int) -> Iterator[tuple[str, Any]]:
    """Hugging Face's tensors by Meta's names; a pair to rotate is (2i, 2i + 1) of a head there, not (i, i + E/2)."""
    parts = {
        "model.": "", "embed_tokens": "tok_embeddings", "lm_head": "output", "self_attn": "attention",
        "q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "o_proj": "wo", "mlp": "feed_forward", "gate_proj": "w1",
        "down_proj": "w2", "up_proj": "w3", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, tensor in state.items():
        if "q_proj" in name or "k_proj" in name:
            tensor = tensor.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
        for old, new in parts.items():
            name = name.replace(old, new)
        yield name, tensor


def nanochat(shape: Shape, precision: str, how: str, weights: Path) -> Candidate:
    """A network of its own: as many FLOPs a token, not the same ones."""
    import torch

    os.environ["NANOCHAT_DTYPE"] = {"bf16": "bfloat16", "fp32": "float32"}[precision]
    sys.path.append(str(source_of("nanochat")))
    from nanochat.gpt import GPT, GPTConfig

    size = GPTConfig(
        sequence_len=shape.context, vocab_size=shape.vocab, n_layer=shape.layers, n_head=shape.heads,
        n_kv_head=shape.kv_heads, n_embd=shape.dim, window_pattern="L",
    )  # fmt: skip
    torch.manual_seed(SEED)
    model = GPT(size)
    model.init_weights()
    model.value_embeds.clear()
    for block in model.transformer.h:
        block.attn.ve_gate = None
    model.transformer.wte.float()
    called = torch.compile(model, dynamic=False) if how == COMPILED else model

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        return called(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    return Candidate(timed(plain_loop(model, loss_of)), model.num_matmul_params())


def autocast_of(precision: str, how: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    import torch

    if precision == "bf16" and how != BF16_WEIGHTS:
        return lambda: torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext


def plain_loop(model: Any, loss_of: Callable[[Any], Any], micro: int | None = None) -> Step:
    """Zero, forward and backward (``micro`` sequences at once, or all), clip, update."""
    import torch

    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-5, fused=True)

    def step(ids: torch.Tensor) -> float:
        optimizer.zero_grad(set_to_none=True)
        pieces = ids.split(micro or len(ids))
        total = torch.zeros((), device=ids.device)
        for piece in pieces:
            loss = loss_of(piece) / len(pieces)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(total)

    return step


def timed(step: Step) -> Callable[[list[Any]], Iterator[tuple[float, float]]]:
    """Each batch's seconds and loss."""

    def steps(batches: list[Any]) -> Iterator[tuple[float, float]]:
        for ids in batches:
            start = time.perf_counter()
            loss = step(ids)
            yield time.perf_counter() - start, loss

    return steps


MAKERS = {
    "llamactl": llamactl,
    "transformers": transformers,
    "HF Trainer": trainer,
    "litgpt": litgpt,
    "llama2.c": llama2_c,
    "nanochat": nanochat,
}


# --- the worker: one candidate, one turn; JSON lines on stdout ---


def work(candidate: str, shape: Shape, precision: str, threads: int, weights: Path, warmup: int, steps: int) -> None:
    """One JSON line a step: seconds, loss, peak memory so far, N."""
    import torch

    out, sys.stdout = sys.stdout, sys.stderr  # what a peer prints is no result
    torch.set_num_threads(threads)
    if candidate == "limits":
        print(json.dumps(limits(shape, precision)), file=out)
        return
    made = make(candidate, shape, precision, weights)
    for number, (seconds, loss) in enumerate(made.steps(random_batches(shape, warmup + steps))):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        line = {"seconds": seconds, "loss": loss, "peak": peak, "weights": made.weights, "warmup": number < warmup}
        print(json.dumps(line), file=out, flush=True)


def make(candidate: str, shape: Shape, precision: str, weights: Path) -> Candidate:
    """By its name in the table."""
    peer, comma, how = candidate.partition(",")
    return MAKERS[peer](shape, precision, comma + how, weights)


def random_batches(shape: Shape, number: int) -> list[Any]:
    """The same ones in every process."""
    import torch

    size = (shape.batch, shape.context + 1)
    return [torch.randint(0, shape.vocab, size, generator=torch.Generator().manual_seed(n)) for n in range(number)]


def limits(shape: Shape, precision: str) -> dict[str, float]:
    """FLOP/s of matrix products: of large squares, and of the model's own layers."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tokens = shape.batch * shape.context

    def seconds_of(rows: int, inner: int, columns: int, repeats: int = 9, enough: float = 5.0) -> float:
        """The median over products of fresh matrices, the first one not counted, unless it took ``enough`` seconds."""
        a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
        out = torch.empty(rows, columns, dtype=dtype)
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            taken.append(time.perf_counter() - start)
            if sum(taken) > enough:  # bf16 on a CPU that has no instructions for it
                break
        return statistics.median(taken[1:] or taken)

    own = sum(
        number * (seconds_of(tokens, i, o) + seconds_of(tokens, o, i) + seconds_of(i, tokens, o))
        for i, o, number in shape.products
    )
    side = 2048 if shape.dim > 64 else 256
    return {"square": 2 * side**3 / seconds_of(side, side, side), "own": 6 * tokens * shape.weights / own}


def save_weights(shape: Shape, directory: Path, scored: bool = False) -> None:
    """The initial weights as a Hugging Face directory, for the peers to start from; ``scored`` is a reward model."""
    import torch
    from safetensors.torch import save_file

    from llamactl.model.config import Config
    from llamactl.model.heads import RewardModel
    from llamactl.model.llama import Llama

    numbers = shape.dim, shape.layers, shape.heads, shape.kv_heads, shape.ffn, shape.vocab, shape.context
    size = Config(*numbers, scored=scored)
    model = (RewardModel if scored else Llama).create(size, torch.float32, torch.device("cpu"), SEED)
    save_file(
        {name: later.make() for name, later in model.hf_state(torch.float32)},
        directory / "model.safetensors",
        {"format": "pt"},
    )
    (directory / "config.json").write_text(json.dumps(size.to_hf("float32")))


# --- the driver ---


def turn(candidate: str, worker: list[str], threads: int) -> Iterator[dict[str, Any]]:
    """A candidate's process, from its start to its end."""
    python = python_of(ENVIRONMENT[candidate.partition(",")[0]])
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
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
    rates: dict[str, float] = {}
    rows = []
    for candidate in [key for key in lines if key != "limits"]:
        timed = [line for line in lines[candidate] if not line["warmup"]]
        speed = Spread.of([shape.batch * shape.context / line["seconds"] for line in timed])
        losses = lines[candidate][0]["loss"], lines[candidate][-1]["loss"]
        peak = max(line["peak"] for line in timed)
        rate = rates[candidate] = 6 * timed[0]["weights"] * speed.median
        ours = rates.get("llamactl" + (COMPILED if candidate.endswith(COMPILED) else EAGER))
        ratio = ours / rate if ours else None
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
            "weights": timed[0]["weights"],
            "of_own_products": rate / limit["own"].median, "of_square_products": rate / limit["square"].median,
        }  # fmt: skip
        append_json(out, facts | numbers)
    append_json(out, facts | {"candidate": "limits"} | {f"{key}_flops": one._asdict() for key, one in limit.items()})
    made = ", ".join(f"{key} {spread.show(0, 1e9)}" for key, spread in limit.items())
    title = f"Shape {name}, {precision}, {threads} thread{'s' * (threads > 1)}; GFLOP/s of products: {made}"
    head = ["", "tokens/s", "llamactl / it", "peak MiB", "of own", "of square", "first loss", "last loss"]
    table(title, head, rows, others)
    if any(candidate.startswith(OTHER_NETWORK) for candidate in rates):
        theirs = next(mine[0]["weights"] for candidate, mine in lines.items() if candidate.startswith(OTHER_NETWORK))
        share = f"{theirs / shape.weights:.1%} of the weights that multiply"
        print(f"{OTHER_NETWORK} is not the same network ({share}): compared by FLOPs, losses not checked.")
    check_losses(lines, TOLERANCE[precision])


def check_losses(lines: dict[str, list[dict[str, Any]]], tolerance: float) -> None:
    """Say so where a candidate did other work than llamactl."""
    for candidate, mine in lines.items():
        if candidate == "limits" or candidate.startswith(OTHER_NETWORK) or "llamactl" not in lines:
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
    parser.add_argument("--shape", choices=SHAPES, action="append", help=f"default: {MEASURED}")
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
        for name in asked.shape or MEASURED:
            for precision in asked.precision or CANDIDATES:
                chosen = [one for one in CANDIDATES[precision] if one in wanted]
                cell(name, precision, threads, chosen, asked)


if __name__ == "__main__":
    main()
