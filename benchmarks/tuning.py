"""Fine-tuning on dialogues: useful tokens per second and peak memory, of llamactl and of TRL's SFTTrainer in its modes.

What is measured: whole optimizer steps (forward, backward, clip to norm 1, fused AdamW) that learn the answers of
dialogues, from the same initial weights, on the CPU, at the shapes of pretraining.py. The dialogues are questions about
functions and classes of Python's standard library, answered by their docstrings, and then by their sources, in the
format of ``llamactl sft``. They are cut to lengths as instruction data has: log-normal, half of them below 150 tokens,
all between 30 and 500, at a context of 512. All candidates are given the same ids and labels. A step takes
``batch`` sequences of 512 where dialogues are packed, and as many dialogues as make about so many tokens where they are
not. The candidates:

    llamactl                        as ``llamactl sft`` does: dialogues packed best fit, none sees another, scores of
                                    the next token only where one is learned
    llamactl, row by row            with --micro-batch 1: a packed sequence at a time, gradients accumulated
    llamactl, no document mask      with --no-document-mask: dialogues in a sequence see each other
    llamactl, compiled              with --compile; only if asked for
    TRL padded                      SFTTrainer as it comes: a step's dialogues in one batch, padded to its longest
    TRL padded, by length           the same, with dialogues of like lengths put together: train_sampling_strategy
                                    "group_by_length". It takes the longest of a few hundred first: at shape A with
                                    the default of steps, a turn is once through those
    TRL padded, one by one          a dialogue at a time, gradients accumulated: nothing to pad
    TRL padding-free                padding_free=True: a step's dialogues one after the other in a single row
    TRL padding-free, in parts      the same in as many rows as the batch has sequences, one at a time, accumulated
    TRL bfd                         packing=True, which is packed best fit; then as padding-free, all in a single row
    TRL bfd, row by row             the same, a packed sequence at a time, gradients accumulated
    TRL wrapped                     packing_strategy="wrapped": dialogues are cut wherever a sequence is full, and those
                                    in a sequence see each other

TRL's candidates have sdpa attention: of the others flash attention needs a GPU, flex_attention has no backward pass on
a CPU, and eager attention keeps all squares in memory. In a row without padding transformers finds by the positions
where each dialogue begins, and gives sdpa a mask as large as the square of the row. Activation checkpointing, which TRL
has on by default, is off, unless ``--checkpointing`` turns it on for all. bf16 is what SFTTrainer calls it: autocast
over fp32 master weights, as is llamactl's.

How: each candidate is a process of its own, so that its peak memory is its own; the processes take turns, in rounds,
and each runs a few warm-up steps and then steps that are timed. Each round has an order of the dialogues of its own, by
which all of its turns are seeded. A turn's figure is the tokens of the dialogues that its timed steps were given,
without padding, over the seconds they took (steps differ in length, so a median of steps would not do); the table has
the median of the turns, with the slowest and the fastest, and ratios are of medians. The Trainer is timed from
on_step_begin to on_step_end: that leaves out the making of its batches; llamactl's is counted. A token is one of a
dialogue's ids (of which the last one is only a target to llamactl, and takes no place). "Filled" is the share of the
places computed that hold a token. All candidates' threads wait as torch has it, by spinning, as do those of llamactl's
command on a quiet machine. Memory is the peak of the process, and beside it what it had before the first step:
libraries, model, data.

The check that the work is equal, before the rounds: each candidate takes two steps on the dialogues of one batch of
llamactl's, the same ones in both, from weights four times as large as fresh ones, so that it shows in the loss who sees
whom. Both losses must agree with llamactl's; those of candidates whose dialogues see each other must not. The timed
steps have the same weights.

With ``--attention``, in place of this: what it costs to keep documents apart. Attention alone, forward and backward, at
the shape's heads, of as many tokens as a batch has, in four ways that take turns in one process:

    documents   packed in sequences, kept apart
    each        the same documents, one call after the other
    batches     the same documents, those of one length in one call
    whole       the sequences, plainly causal

Ratios are those of the first to the others. It should cost about what the same documents cost by themselves, and of the
whole sequences the share that the squares of the documents are of the squares of the sequences (the last column). The
last row has the lengths of llamactl's first batch of dialogues.

Run: benchmarks/run.sh makes TRL's environment and runs both with their defaults; or, once it is there,

    python benchmarks/tuning.py --shape A --precision fp32 --threads 2 --rounds 3 --json results.jsonl
    python benchmarks/tuning.py --attention
    python benchmarks/tuning.py --shape tiny --rounds 1 --steps 2    # to try it out
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from measure import Clock, Spread, append_json, count_of_threads, memory, note, python_of, table
from pretraining import LR, SEED, SHAPES, Shape, save_weights
from runs import documented, make_tokenizer

SHAPES = {**SHAPES, "tiny": SHAPES["tiny"]._replace(context=256)}
PRECISIONS = ("fp32", "bf16")
DIALOGUES = {"A": 1000, "B": 1000, "tiny": 100}
CORPUS = {"A": 4.0, "B": 12.0, "tiny": 0.5}  # megabytes that the tokenizer learns from
MEDIAN, SPREAD, SHORTEST, LONGEST = 160 / 512, 0.65, 30 / 512, 500 / 512  # of dialogues, in contexts
SHARPER = 4.0  # times fresh weights
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-3}  # relative, of the losses
CLOSE = {"fp32": 1e-4, "bf16": 2e-2}  # of the largest element, results of attention
IGNORED = -100  # a label where nothing is learned, to Hugging Face
ENOUGH = 10_000  # more than a batch of the check has of anything


class Mode(NamedTuple):
    """SFTTrainer's settings, and into how many parts it takes a batch: one, as many as it has rows, each by itself."""

    settings: dict[str, Any]
    parts: str = "one"

    @property
    def packed(self) -> bool:
        """Whether its examples are sequences of several dialogues."""
        return bool(self.settings.get("packing"))


PADDING_FREE = {"padding_free": True, "max_length": None}
MODES = {
    "TRL padded": Mode({}),
    "TRL padded, by length": Mode({"train_sampling_strategy": "group_by_length"}),
    "TRL padded, one by one": Mode({}, "each"),
    "TRL padding-free": Mode(PADDING_FREE),
    "TRL padding-free, in parts": Mode(PADDING_FREE, "rows"),
    "TRL bfd": Mode({"packing": True, "packing_strategy": "bfd"}),
    "TRL bfd, row by row": Mode({"packing": True, "packing_strategy": "bfd"}, "rows"),
    "TRL wrapped": Mode({"packing": True, "packing_strategy": "wrapped"}),
}
OURS, BY_ROW, MASKLESS, COMPILED = (
    "llamactl" + how for how in ("", ", row by row", ", no document mask", ", compiled")
)
CANDIDATES = [OURS, BY_ROW, MASKLESS, COMPILED, *MODES]
TOGETHER = (MASKLESS, "TRL wrapped")  # their dialogues see each other
LENGTHS = {  # of the documents in a sequence, for a context of 512
    "1 x 512": [512],
    "2 x 256": [256] * 2,
    "4 x 128": [128] * 4,
    "8 x 64": [64] * 8,
    "16 x 32": [32] * 16,
    "384, 8 x 16": [384] + [16] * 8,
}


class Step(NamedTuple):
    """What a step has taken, and seen: ids of dialogues, and places computed."""

    seconds: float
    loss: float
    tokens: int
    places: int


PEERS = ("TRL", "lm-eval")  # how those are called that have an environment of their own
READY = Step(0.0, 0.0, 0, 0)  # comes before the first step: everything is there


class Task(NamedTuple):
    """What a worker is to do: so many steps on these examples, of about so many each, in an order by this seed."""

    shape: Shape
    precision: str
    checkpointing: bool
    weights: Path
    examples: list[Any]  # dialogues: ids, and which of them are learned
    a_step: int  # how many; 0: all of them in each step, which is the check
    seed: int
    steps: int


# --- the dialogues ---


def make_dialogues(name: str, folder: Path) -> list[tuple[list[int], list[bool]]]:
    """Ids, and which of them are learned; the same ones for one Python and one SentencePiece."""
    from llamactl.artifacts.records import Message
    from llamactl.text.dialogue import encode
    from llamactl.text.tokenizer import EOS, Tokenizer

    shape = SHAPES[name]
    tokenizer = Tokenizer.load(make_tokenizer(folder, CORPUS[name], shape.vocab)[1])
    dice = random.Random(SEED)
    found = list(documented())
    dice.shuffle(found)
    made: list[tuple[list[int], list[bool]]] = []
    length = 0
    for what, docstring, source in found:
        turns = [("user", f"What is {what} for?"), ("assistant", docstring)]
        turns += [("user", "How is it done?"), ("assistant", source)]
        ids, learned = encode([Message(role=role, content=content) for role, content in turns], tokenizer)
        while not length:
            drawn = math.exp(dice.gauss(math.log(MEDIAN), SPREAD))
            length = round(shape.context * drawn) if SHORTEST <= drawn <= LONGEST else 0
        end = max(length, learned.index(True) + 8) - 1  # some of the answer at least
        if end < len(ids):  # what is too short is passed over
            made.append(([*ids[:end], EOS], [*learned[:end], True]))
            length = 0
        if len(made) == DIALOGUES[name]:
            return made
    sys.exit(f"this Python has too little to say for {DIALOGUES[name]} dialogues at shape {name}: {len(made)}")


# --- the candidates: each runs in its own environment ---


def llamactl(task: Task, how: str) -> Iterator[Step]:
    """As ``stages/sft.py`` and ``llamactl/train/loop.py`` do, without the logs and the saving."""
    import torch

    from llamactl.model import device
    from llamactl.model.llama import Llama
    from llamactl.train import packing
    from llamactl.train.optim import AdamW
    from llamactl.train.parallel import Job
    from llamactl.train.schedule import MICRO_TOKENS, Cosine
    from llamactl.train.step import Outcome, take

    checkpointing = "full" if task.checkpointing else "none"
    device.keep_freed_memory(checkpointing)
    shape = task.shape
    job = Job(None, torch.device("cpu"))
    arrange = partial(job.arrange, checkpointing=checkpointing, compiled=how == COMPILED)
    model = Llama.trainable(task.weights, device.PRECISIONS[task.precision], job.device, arrange)
    optimizer = AdamW(model, Cosine(LR, 0, 1, floor=1.0))
    examples = packing.Examples()
    for ids, learned in task.examples:
        examples.add(ids, learned)
    packs = packing.Packs(examples, shape.context, task.seed, how != MASKLESS)
    size = shape.batch if task.a_step else len(packs.packs)
    micro = 1 if how == BY_ROW else min(size, max(1, MICRO_TOKENS // shape.context))
    yield READY
    for number in range(task.steps):
        first = number * size
        start = time.perf_counter()
        batch = packs.batch(first, size)
        seen = take(model, optimizer, packing.answer_loss, batch, packs.targets(first, size), micro, job)
        loss = Outcome.read(seen).loss
        seconds = time.perf_counter() - start
        here = [example for index in range(first, first + size) for example in packs.packs[packs.pack(index)]]
        yield Step(seconds, loss, sum(len(examples[example][0]) for example in here), size * shape.context)


def trl(task: Task, how: str) -> Iterator[Step]:
    """``trl.SFTTrainer`` in a mode."""
    from transformers import LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    mode, shape = MODES[how], task.shape
    units = shape.batch if mode.packed else task.a_step or len(task.examples)  # of a step: sequences, or dialogues
    parts = {"one": 1, "rows": shape.batch, "each": units}[mode.parts]
    of_a_part = max(1, round(units / parts))
    if not task.a_step:  # whatever there is
        of_a_part, parts = (ENOUGH, 1) if parts == 1 else (of_a_part, ENOUGH)
    rows = [
        {"input_ids": ids, "labels": [i if on else IGNORED for i, on in zip(ids, learned, strict=True)]}
        for ids, learned in task.examples
    ]
    settings = {"max_length": shape.context, "learning_rate": LR, **mode.settings}
    yield from trained(task, (SFTTrainer, SFTConfig, LlamaForCausalLM), rows, of_a_part, parts, settings)


def trained(
    task: Task,
    kinds: tuple[Any, Any, Any],
    rows: list[dict[str, Any]],
    of_a_part: int,
    parts: int,
    settings: dict[str, Any],
) -> Iterator[Step]:
    """A Trainer of TRL's as it is, but for a note of each step's seconds, loss and tokens.

    ``kinds`` are of the Trainer, its settings, and the model; a step takes ``parts`` batches of so many rows each.
    """
    import torch
    from datasets import Dataset, disable_progress_bars
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    kind, settings_of, model_of = kinds
    model = model_of.from_pretrained(task.weights, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    words = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, "<unk>"))  # asked for nothing but the id of padding
    names = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="<unk>")
    done: list[Step] = []
    began: list[float] = []
    sums: list[tuple[float, int, int]] = []  # of the parts of a step

    class Noting(kind):
        def training_step(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
            places = inputs["input_ids"].numel()
            tokens = int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else places
            loss = super().training_step(model, inputs, *given, **named)
            sums.append((float(loss), tokens, places))
            return loss

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            sums.clear()
            began.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            losses, tokens, places = zip(*sums, strict=True)
            done.append(Step(time.perf_counter() - began[-1], sum(losses), sum(tokens), sum(places)))

    with tempfile.TemporaryDirectory() as out:
        arguments = settings_of(
            out, use_cpu=True, bf16=task.precision == "bf16", activation_checkpointing=task.checkpointing,
            per_device_train_batch_size=of_a_part, gradient_accumulation_steps=parts, max_steps=task.steps,
            optim="adamw_torch_fused", lr_scheduler_type="constant", weight_decay=0.1,
            adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-5, max_grad_norm=1.0, logging_strategy="no",
            save_strategy="no", eval_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
            seed=task.seed, **settings,
        )  # fmt: skip
        data = Dataset.from_list(rows)
        trainer = Noting(model, arguments, train_dataset=data, processing_class=names, callbacks=[Watch()])
        trainer.remove_callback(PrinterCallback)
        yield READY
        trainer.train()
    yield from done


# --- attention ---


def attention(
    shape: Shape, precision: str, cases: dict[str, list[list[int]]], warmup: int, steps: int
) -> dict[str, dict[str, Any]]:
    """Seconds of forward and backward, by case and way, taken in turns; and how far documents are off batches."""
    import torch

    from llamactl.model import device
    from llamactl.model.attention import Documents, causal_attention

    device.keep_freed_memory()
    head = shape.dim // shape.heads
    generator = torch.Generator().manual_seed(SEED)

    def random_of(heads: int, rows: int) -> torch.Tensor:
        made = torch.randn(rows, shape.context, heads, head, generator=generator)
        return made.to(device.PRECISIONS[precision]).requires_grad_()

    def both(given: tuple[torch.Tensor, ...], documents: Documents | None = None) -> tuple[torch.Tensor, ...]:
        q, k, v, grad = given
        out = causal_attention(q, k, v, documents)
        return out, *torch.autograd.grad(out, (q, k, v), grad)

    def part(tensor: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        return tensor.detach().flatten(0, 1)[where].requires_grad_()

    found = {}
    for name, lengths in cases.items():
        rows = len(lengths)
        packed = (*(random_of(n, rows) for n in (shape.heads, *[shape.kv_heads] * 2)), random_of(shape.heads, rows))
        documents = Documents.of(lengths, torch.device("cpu"))
        alike: dict[int, list[torch.Tensor]] = {}  # the places of documents by their length
        for start, end in pairwise(documents.ends.tolist()):
            alike.setdefault(end - start, []).append(torch.arange(start, end))
        places = [torch.stack(some) for some in alike.values()]
        batches = [tuple(part(tensor, where) for tensor in packed) for where in places]
        each = [tuple(part(tensor, row[None]) for tensor in packed) for where in places for row in where]
        ways = {
            "documents": lambda packed=packed, documents=documents: both(packed, documents),
            "each": lambda each=each: [both(given) for given in each],
            "batches": lambda batches=batches: [both(given) for given in batches],
            "whole": lambda packed=packed: both(packed),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(warmup + steps):
            for way, run in ways.items():
                start = time.perf_counter()
                run()
                if number >= warmup:
                    seconds[way].append(time.perf_counter() - start)
        off = 0.0
        for where, theirs in zip(places, ways["batches"](), strict=True):
            for one, other in zip(ways["documents"](), theirs, strict=True):
                difference = one.detach().flatten(0, 1)[where] - other.detach()
                off = max(off, float(difference.abs().max() / other.detach().abs().max()))
        found[name] = {"seconds": seconds, "off": off}
    return found


# --- the worker: one candidate, one turn; a JSON line on stdout ---


def work(candidate: str, asked: argparse.Namespace, steps_of: Callable[[Task, str], Iterator[Any]]) -> None:
    """All steps of a turn, and memory before the first of them and at its peak."""
    import torch

    out, sys.stdout = sys.stdout, sys.stderr  # what a peer prints is no result
    torch.set_num_threads(asked.threads)
    shape = SHAPES[asked.shape]
    if candidate == "attention":
        lengths = json.loads(asked.examples.read_text())
        print(json.dumps(attention(shape, asked.precision, lengths, asked.warmup, asked.steps)), file=out)
        return
    task = Task(
        shape, asked.precision, asked.checkpointing, asked.weights, json.loads(asked.examples.read_text()),
        asked.a_step, asked.seed, asked.warmup + asked.steps,
    )  # fmt: skip
    steps = steps_of(task, candidate)
    next(steps)  # READY
    at_start = memory("VmRSS")
    taken = [step._asdict() for step in steps]
    line = {"at_start": at_start, "peak": memory("VmHWM"), "warmup": taken[: asked.warmup]}
    print(json.dumps({**line, "steps": taken[asked.warmup :]}), file=out)


# --- the driver ---


def turn(
    script: str, candidate: str, worker: list[str], threads: int, folder: Path, peers: str = "trl"
) -> dict[str, Any]:
    """A candidate's process, from its start to its end; ``peers`` is the environment of those that are not ours."""
    python = python_of(peers if candidate.startswith(PEERS) else None)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    env |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(folder / "hugging-face")}
    done = subprocess.run([python, script, *worker, "--work", candidate], stdout=subprocess.PIPE, env=env, check=True)
    return json.loads(done.stdout)


def packs_of(shape: Shape, dialogues: list[tuple[list[int], list[bool]]]) -> tuple[list[int], list[list[int]]]:
    """Of llamactl's first batch: which dialogues it holds, and the lengths of documents in its sequences."""
    from llamactl.train import packing

    examples = packing.Examples()
    for ids, learned in dialogues:
        examples.add(ids, learned)
    packs = packing.Packs(examples, shape.context, SEED, True)
    first = [packs.pack(index) for index in range(shape.batch)]
    return [example for pack in first for example in packs.packs[pack]], [packs.row(pack).lengths for pack in first]


def save_sharper_weights(shape: Shape, folder: Path, scored: bool = False, precision: str = "fp32") -> None:
    """What all start from; matrices are ``SHARPER`` times fresh ones."""
    from safetensors.torch import load_file, save_file

    from llamactl.model.device import PRECISIONS, STORED

    save_weights(shape, folder, scored)
    file, config = folder / "model.safetensors", folder / "config.json"
    state = {name: tensor * (SHARPER if tensor.dim() > 1 else 1.0) for name, tensor in load_file(file).items()}
    save_file({name: tensor.to(PRECISIONS[precision]) for name, tensor in state.items()}, file, {"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | {"torch_dtype": STORED[precision]}))


def training(candidates: list[str], asked: argparse.Namespace) -> None:
    """The table of steps."""
    name, shape = asked.shape, SHAPES[asked.shape]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        save_sharper_weights(shape, folder)
        dialogues = make_dialogues(name, folder)
        lengths = sorted(len(ids) for ids, _ in dialogues)
        learned = sum(sum(on) for _, on in dialogues) / sum(lengths)
        a_step = max(1, round(shape.batch * shape.context / statistics.mean(lengths)))
        numbers, _ = packs_of(shape, dialogues)
        checked = [dialogues[number] for number in numbers]
        measured = Measured.of(__file__, candidates, checked, dialogues, a_step, asked, folder)
    half, mean = statistics.median(lengths), statistics.mean(lengths)
    about = (
        f"{len(lengths):,} dialogues of {lengths[0]} to {lengths[-1]} tokens (half below {half:.0f}, {mean:.0f} on "
        f"average), {learned:.0%} of them learned; a step takes {a_step}, or {shape.batch} x {shape.context} packed"
    )
    report(about, measured, asked)


class Measured(NamedTuple):
    """By candidate: the losses of its check, and its turns; and the share of the machine that others took meanwhile."""

    losses: dict[str, list[float]]
    turns: dict[str, list[dict[str, Any]]]
    others: float

    @classmethod
    def of(
        cls,
        script: str,
        candidates: list[str],
        checked: list[Any],
        examples: list[Any],
        a_step: int,
        asked: argparse.Namespace,
        folder: Path,
    ) -> "Measured":
        """By candidates taking turns, each in processes of ``script``; ``folder`` has the weights."""
        for which, content in (("check", checked), ("all", examples)):
            (folder / f"{which}.json").write_text(json.dumps(content))

        def worker(which: str, a_step: int, seed: int, warmup: int, steps: int) -> list[str]:
            given = {
                "shape": asked.shape, "precision": asked.precision, "threads": asked.threads, "weights": folder,
                "examples": folder / f"{which}.json", "a-step": a_step, "seed": seed, "warmup": warmup, "steps": steps,
            }  # fmt: skip
            switches = ["--checkpointing"] if asked.checkpointing else []
            return [*switches, *(str(part) for key, value in given.items() for part in (f"--{key}", value))]

        losses: dict[str, list[float]] = {}
        for candidate in candidates:
            note(f"check: {candidate}")
            seen = turn(script, candidate, worker("check", 0, SEED, 0, 2), asked.threads, folder)
            losses[candidate] = [step["loss"] for step in seen["steps"]]
        turns: dict[str, list[dict[str, Any]]] = {candidate: [] for candidate in candidates}
        what = f"{asked.shape} {asked.precision} {count_of_threads(asked.threads)}"
        clock = Clock.now()
        for number in range(asked.rounds):
            for candidate in candidates:
                note(f"{what}, round {number + 1}/{asked.rounds}: {candidate}")
                given = worker("all", a_step, number, asked.warmup, asked.steps)
                turns[candidate].append(turn(script, candidate, given, asked.threads, folder))
        return cls(losses, turns, clock.others())


def report(about: str, measured: Measured, asked: argparse.Namespace) -> None:
    """The table, its JSON lines, and what of it is no equal work."""
    losses, turns, others = measured
    facts = {
        "benchmark": "tuning", "shape": asked.shape, "precision": asked.precision, "threads": asked.threads,
        "checkpointing": asked.checkpointing, "others": others,
    }  # fmt: skip
    speeds: dict[str, Spread] = {}
    rows = []
    for candidate, mine in turns.items():
        steps = [step for one in mine for step in one["steps"]]
        rates = [sum(s["tokens"] for s in one["steps"]) / sum(s["seconds"] for s in one["steps"]) for one in mine]
        speed = speeds[candidate] = Spread.of(rates)
        filled = sum(step["tokens"] for step in steps) / sum(step["places"] for step in steps)
        peak, at_start = (max(one[key] for one in mine) for key in ("peak", "at_start"))
        ratio = speeds[OURS].median / speed.median if OURS in speeds else None
        first, second = losses[candidate]
        rows.append(
            [
                candidate,
                speed.show(0),
                f"{ratio:.2f}" if ratio else "",
                f"{filled:.0%}",
                f"{sum(step['tokens'] for step in steps) / len(steps):,.0f}",
                f"{peak / 2**20:,.0f}",
                f"{at_start / 2**20:,.0f}",
                f"{first:.4f}",
                f"{second:.4f}",
                "see each other" if candidate in TOGETHER else "apart",
            ]
        )
        numbers = {
            "candidate": candidate, "tokens_per_second": speed._asdict(), "turns": rates, "llamactl_over_it": ratio,
            "filled": filled, "tokens_a_step": sum(step["tokens"] for step in steps) / len(steps),
            "peak_bytes": peak, "bytes_at_start": at_start, "check_losses": losses[candidate], "steps": len(steps),
            "apart": candidate not in TOGETHER,
        }  # fmt: skip
        append_json(asked.json, facts | numbers)
    checkpointed = ", activation checkpointing" * asked.checkpointing
    head = [
        "", "useful tokens/s", "llamactl / it", "filled", "tokens a step", "peak MiB", "at start", "check: 1st loss",
        "2nd loss", "dialogues",
    ]  # fmt: skip
    table(
        f"Shape {asked.shape}, {asked.precision}, {count_of_threads(asked.threads)}{checkpointed}: {about}",
        head,
        rows,
        others,
    )
    for what, peers in (("whose dialogues are apart", set(MODES) - set(TOGETHER)), ("at all", set(MODES))):
        there = [candidate for candidate in speeds if candidate in peers]
        if OURS in speeds and there:
            best = max(there, key=lambda candidate: speeds[candidate].median)
            print(f"TRL's fastest {what}: {best}; llamactl / it {speeds[OURS].median / speeds[best].median:.2f}")
    check_losses(losses, TOLERANCE[asked.precision])


def check_losses(losses: dict[str, list[float]], tolerance: float) -> None:
    """Say so where a candidate did other work than llamactl, or where the check would not have seen it."""
    if OURS not in losses:
        return
    for candidate, mine in losses.items():
        pairs = list(zip(losses[OURS], mine, strict=True))
        same = [abs(ours - its) <= tolerance * abs(ours) for ours, its in pairs]
        if candidate in TOGETHER and all(same):
            print(f"NO CHECK: {candidate}: its losses are llamactl's, though its dialogues see each other")
        elif candidate not in TOGETHER and not all(same):
            ours, its = (" and ".join(f"{loss:.5f}" for loss in one) for one in zip(*pairs, strict=True))
            print(f"NOT EQUAL WORK: {candidate}: losses {its}, llamactl's {ours}")


def attention_alone(asked: argparse.Namespace) -> None:
    """The table of ``--attention``."""
    shape = SHAPES[asked.shape]
    cases = {name: [lengths] * shape.batch for name, lengths in LENGTHS.items()}
    if asked.shape == "tiny":
        cases = {
            name: [[max(1, n * shape.context // 512) for n in row] for row in rows] for name, rows in cases.items()
        }
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        cases["packed dialogues"] = packs_of(shape, make_dialogues(asked.shape, folder))[1]
        (folder / "lengths.json").write_text(json.dumps(cases))
        given = {
            "shape": asked.shape, "precision": asked.precision, "threads": asked.threads, "warmup": asked.warmup,
            "examples": folder / "lengths.json", "steps": asked.steps,
        }  # fmt: skip
        worker = [str(part) for key, value in given.items() for part in (f"--{key}", value)]
        clock = Clock.now()
        taken = []
        for number in range(asked.rounds):
            note(f"attention, round {number + 1}/{asked.rounds}")
            taken.append(turn(__file__, "attention", worker, asked.threads, folder))
        others = clock.others()
    rows, doubts = [], []
    for name, lengths in cases.items():
        spreads = {
            way: Spread.of([seconds for one in taken for seconds in one[name]["seconds"][way]])
            for way in ("documents", "each", "batches", "whole")
        }
        documents, each, batches, whole = spreads.values()
        squares = sum(n * n for row in lengths for n in row) / (len(lengths) * shape.context**2)
        rows.append(
            [
                name,
                documents.show(1, 1e-3),
                each.show(1, 1e-3),
                f"{documents.median / each.median:.2f}",
                batches.show(1, 1e-3),
                f"{documents.median / batches.median:.2f}",
                whole.show(1, 1e-3),
                f"{documents.median / whole.median:.2f}",
                f"{squares:.2f}",
            ]
        )
        off = max(one[name]["off"] for one in taken)
        if off > CLOSE[asked.precision]:
            doubts.append(f"NOT EQUAL WORK: {name}: documents are off batches by {off:.1e} of the largest")
        append_json(
            asked.json,
            {
                "benchmark": "tuning --attention", "shape": asked.shape, "precision": asked.precision,
                "threads": asked.threads, "others": others, "lengths": name, "rows": lengths, "squares": squares,
                "off": off, **{f"{way}_seconds": spread._asdict() for way, spread in spreads.items()},
            },
        )  # fmt: skip
    title = (
        f"Attention alone, shape {asked.shape} ({shape.batch} x {shape.context}, {shape.heads} heads of "
        f"{shape.dim // shape.heads}, {shape.kv_heads} of keys and values), {asked.precision}, "
        f"{count_of_threads(asked.threads)}, forward and backward, ms"
    )
    head = ["in a sequence", "documents", "each", "ratio", "batches", "ratio", "whole", "ratio", "squares"]
    table(title, head, rows, others)
    print("\n".join(doubts), end="\n" * bool(doubts))


def options(about: str | None, candidates: list[str], usual: list[str]) -> argparse.ArgumentParser:
    """Of a command line, those of its workers among them."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="A")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--candidate", choices=candidates, action="append", help=f"default: {', '.join(usual)}")
    parser.add_argument(
        "--checkpointing", action="store_true", help="activation checkpointing, of every layer, for all"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=2, help="steps of each turn that are not timed")
    parser.add_argument("--json", type=Path, help="append the results to this file, as JSON lines")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--examples", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--a-step", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """The command line."""
    usual = [one for one in CANDIDATES if one != COMPILED]
    parser = options(__doc__, CANDIDATES, usual)
    parser.add_argument("--attention", action="store_true", help="attention alone, in place of whole steps")
    parser.add_argument("--steps", type=int, help="steps of each turn that are timed; default: 20, of attention 30")
    asked = parser.parse_args()
    asked.steps = asked.steps or (30 if asked.attention else 20)
    if asked.work:
        work(asked.work, asked, lambda task, how: (trl if how in MODES else llamactl)(task, how))
    elif asked.attention:
        attention_alone(asked)
    else:
        training(asked.candidate or usual, asked)


if __name__ == "__main__":
    main()
