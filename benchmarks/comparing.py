"""Reward models on comparisons: pairs of answers a second and peak memory, of llamactl and of TRL's RewardTrainer.

What is measured: whole optimizer steps (forward, backward, clip to norm 1, fused AdamW) that learn which of two answers
is the better one, from the same initial weights, on the CPU, at the shapes of pretraining.py with a head of one number
in the place of the output layer. The loss is -log sigmoid of the difference of the scores, without a margin, divided by
the pairs of the step. The pairs are texts of Python's standard library, in the format of ``llamactl rm-train``, cut to
lengths as Anthropic's helpful and harmless pairs have them, log-normal at a context of 512: prompts of several turns,
half of them below 100 tokens, none above 350, and answers, half below 55, none above 200. All candidates are given the
same ids. A step takes 16 pairs at shape A, 4 at B. The candidates:

    llamactl                    as ``llamactl rm-train`` does: what both sides of a pair begin with is computed once,
                                and pairs stand one after the other in rows without padding, of about 4,096 places
    llamactl, in four parts     with --micro-batch of a fourth of the step's pairs: gradients accumulated
    llamactl, written out       each side by itself, from its first token on: what llamactl would be without sharing.
                                Rows of about 4,096 places as well, so that a step of A has two
    TRL padded                  RewardTrainer as it comes: all sides of a step in one batch, padded to its longest
    TRL padded, by length       the same, with pairs of like lengths put together: train_sampling_strategy
                                "group_by_length", by the longer side. That takes a column of lengths, and that
                                remove_unused_columns, which would drop it, is off. It begins with long ones
    TRL padded, in four parts   a fourth of the step's pairs at a time, gradients accumulated: less to pad
    TRL padded, one by one      a pair at a time: only the shorter side is padded

RewardTrainer has no way without padding, and computes the prompt for each side. TRL's candidates have sdpa attention
(with a mask, where there is padding); activation checkpointing, which TRL has on by default, is off, unless
``--checkpointing`` turns it on for all. bf16 is what RewardTrainer calls it: autocast over fp32 master weights, as is
llamactl's; but the scores themselves are fp32 in llamactl, and bf16 in TRL.

How: each candidate is a process of its own, so that its peak memory is its own; the processes take turns, in rounds,
and each runs a few warm-up steps and then steps that are timed. Each round has an order of the pairs of its own, by
which all of its turns are seeded. A turn's rate is the tokens of both sides of all pairs that its timed steps were
given, written out and without padding, over the seconds they took; pairs a second are that over the tokens of a pair,
on average of all there are, so that nobody loses by drawing longer ones. The table has the median of the turns, with
the slowest and the fastest, and ratios are of medians. The Trainer is timed from on_step_begin to on_step_end: that
leaves out the making of its batches; llamactl's is counted. "Places" are what is computed for a pair of average
length, and "filled" is the share of them that hold a token. All candidates' threads wait as torch has it, by spinning,
as do those of llamactl's command on a quiet machine. Memory is the peak of the process, and beside it what it had
before the first step: libraries, model, data.

The check that the work is equal, before the rounds: each candidate takes two steps on the pairs of one step, the same
ones in both, from weights four times as large as fresh ones, so that it shows in the loss who sees what; those of the
head are among them, which ``llamactl rm-train`` begins at 0. Both losses must agree with llamactl's, and the second
must differ from the first by more than that. The timed steps have the same weights.

Run: benchmarks/run.sh makes TRL's environment and runs this with its defaults; or, once it is there,

    python benchmarks/comparing.py --shape A --precision fp32 --threads 2 --rounds 3 --json results.jsonl
    python benchmarks/comparing.py --shape tiny --rounds 1 --steps 2    # to try it out
"""

import argparse
import math
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from measure import Spread, append_json, count_of_threads, table
from pretraining import SEED, Shape
from runs import documented, make_tokenizer
from tuning import (
    CORPUS,
    OURS,
    READY,
    SHAPES,
    Measured,
    Task,
    check_losses,
    options,
    save_sharper_weights,
    trained,
    work,
)

A_STEP = {"A": 16, "B": 4, "tiny": 4}  # pairs
PAIRS = {"A": 960, "B": 960, "tiny": 96}  # whole steps
LR = 1e-5  # rm-train's
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-3}  # relative, of the losses
PARTS = 4

IN_PARTS, WRITTEN_OUT = (OURS + how for how in (", in four parts", ", written out"))
MODES: dict[str, tuple[dict[str, Any], int]] = {  # RewardTrainer's settings, and a step's parts; 0: each pair is one
    "TRL padded": ({}, 1),
    "TRL padded, by length": ({"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}, 1),
    "TRL padded, in four parts": ({}, PARTS),
    "TRL padded, one by one": ({}, 0),
}
CANDIDATES = [OURS, IN_PARTS, WRITTEN_OUT, *MODES]


class Lengths(NamedTuple):
    """Log-normal, in contexts."""

    median: float
    longest: float
    shortest: float
    spread: float = 0.7

    def draw(self, dice: random.Random, shape: Shape) -> int:
        """One in tokens."""
        while True:
            drawn = math.exp(dice.gauss(math.log(self.median), self.spread))
            if self.shortest <= drawn <= self.longest:
                return round(shape.context * drawn)


PROMPT = Lengths(100 / 512, 350 / 512, 16 / 512)
ANSWER = Lengths(55 / 512, 200 / 512, 8 / 512)  # too long beside its prompt: all three are drawn again


class Taken(NamedTuple):
    """What a step has taken, and seen: tokens of both sides written out, places computed, and those that hold one."""

    seconds: float
    loss: float
    tokens: int
    places: int
    held: int


# --- the pairs ---


def make_pairs(name: str, folder: Path) -> list[tuple[list[int], list[int]]]:
    """Ids of both sides; the same ones for one Python and one SentencePiece."""
    from llamactl.artifacts.records import Message
    from llamactl.text.dialogue import encode
    from llamactl.text.tokenizer import BOS, EOS, Tokenizer

    shape = SHAPES[name]
    tokenizer = Tokenizer.load(make_tokenizer(folder, CORPUS[name], shape.vocab)[1])
    dice = random.Random(SEED)
    found = list(documented())

    def shuffled() -> Iterator[tuple[str, str, str]]:
        return cycle(dice.sample(found, len(found)))

    def prompt(what: str, docstring: str, source: str) -> list[int]:
        turns = [("user", f"What is {what} for?"), ("assistant", docstring), ("user", f"{source}\nWhat does it say?")]
        return encode([Message(role=role, content=content) for role, content in turns], tokenizer).ids

    prompts = (prompt(*one) for one in shuffled())
    answers = (tokenizer.encode(f"{docstring}\n{source}") for _, docstring, source in shuffled())
    made: list[tuple[list[int], list[int]]] = []
    while len(made) < PAIRS[name]:
        asked, *both = (lengths.draw(dice, shape) for lengths in (PROMPT, ANSWER, ANSWER))
        if asked + max(both) > shape.context:
            continue
        stem = [BOS, *next(ids for ids in prompts if len(ids) >= asked)[1 - asked :]]  # the oldest is cut off
        ends = [[*next(ids for ids in answers if len(ids) >= n)[: n - 1], EOS] for n in both]
        if ends[0] != ends[1]:
            made.append((stem + ends[0], stem + ends[1]))
    return made


# --- the candidates: each runs in its own environment ---


def llamactl(task: Task, how: str) -> Iterator[Any]:
    """As ``stages/rm_train.py`` and ``llamactl/train/loop.py`` do, without the logs and the saving."""
    import torch

    from llamactl.align import reward
    from llamactl.model import device
    from llamactl.model.heads import RewardModel
    from llamactl.model.trees import Forest, Tree
    from llamactl.train.optim import AdamW
    from llamactl.train.pairs import Compared, Pairs, compared
    from llamactl.train.parallel import Job
    from llamactl.train.schedule import MICRO_TOKENS, Cosine
    from llamactl.train.step import Outcome, take

    checkpointing = "full" if task.checkpointing else "none"
    device.keep_freed_memory(checkpointing)
    job = Job(None, torch.device("cpu"))
    arrange = partial(job.arrange, checkpointing=checkpointing, compiled=False)
    model = RewardModel.trainable(task.weights, device.PRECISIONS[task.precision], job.device, arrange)
    optimizer = AdamW(model, Cosine(LR, 0, 1, floor=1.0))
    loss = partial(compared, objective=partial(reward.loss, safety_weight=0.0))
    pairs = Pairs(task.seed)
    for chosen, rejected in task.examples:
        pairs.add(chosen, rejected, 0.0, None)
    size = task.a_step or len(pairs)

    def written_out(batch: Compared) -> Compared:
        apart = (Tree((), [[*pair.tree.stem, *end] for end in pair.tree.branches]) for pair in batch.pairs)
        return batch._replace(
            pairs=tuple(pair._replace(tree=tree) for pair, tree in zip(batch.pairs, apart, strict=True))
        )

    places = pairs.tokens if how == WRITTEN_OUT else pairs.places
    micro = size // PARTS if how == IN_PARTS else min(size, max(1, MICRO_TOKENS // -(-places // len(pairs))))
    yield READY
    for number in range(task.steps):
        start = time.perf_counter()
        batch = pairs.batch(number * size, size)
        if how == WRITTEN_OUT:
            batch = written_out(batch)
        seen = take(model, optimizer, loss, batch, size, micro, job)
        value = Outcome.read(seen, len(reward.MEASURED)).loss
        seconds = time.perf_counter() - start
        trees = [pair.tree for pair in batch.pairs]
        forests = [Forest.of([pair.tree for pair in part.pairs], job.device) for part in batch.split(micro)]
        yield Taken(
            seconds,
            value,
            sum(len(tree.stem) + len(branch) for tree in trees for branch in tree.branches),
            sum(forest.tokens.numel() for forest in forests),
            sum(tree.places for tree in trees),
        )


def trl(task: Task, how: str) -> Iterator[Any]:
    """``trl.RewardTrainer`` in a mode."""
    from transformers import LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    settings, parts = MODES[how]
    size = task.a_step or len(task.examples)
    parts = parts or size
    rows = [
        {"chosen_ids": chosen, "rejected_ids": rejected, "length": max(len(chosen), len(rejected))}
        for chosen, rejected in task.examples
    ]
    kinds = RewardTrainer, RewardConfig, LlamaForSequenceClassification
    settings = {"max_length": task.shape.context, "learning_rate": LR, **settings}
    steps = trained(task, kinds, rows, size // parts, parts, settings)
    yield next(steps)  # READY
    for step in steps:
        yield Taken(*step, held=step.tokens)


# --- the driver ---


def training(candidates: list[str], asked: argparse.Namespace) -> None:
    """The table of steps."""
    name, shape = asked.shape, SHAPES[asked.shape]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        save_sharper_weights(shape, folder, scored=True)
        pairs = make_pairs(name, folder)
        measured = Measured.of(__file__, candidates, pairs[: A_STEP[name]], pairs, A_STEP[name], asked, folder)
    report(pairs, measured, asked)


def report(pairs: list[tuple[list[int], list[int]]], measured: Measured, asked: argparse.Namespace) -> None:
    """The table, its JSON lines, and what of it is no equal work."""
    losses, turns, others = measured
    a_pair = statistics.mean(len(chosen) + len(rejected) for chosen, rejected in pairs)
    longest = max(len(side) for pair in pairs for side in pair)
    facts = {
        "benchmark": "comparing", "shape": asked.shape, "precision": asked.precision, "threads": asked.threads,
        "checkpointing": asked.checkpointing, "others": others, "pairs": len(pairs),
        "pairs_a_step": A_STEP[asked.shape], "tokens_a_pair": a_pair,
    }  # fmt: skip
    speeds: dict[str, Spread] = {}
    rows = []
    for candidate, mine in turns.items():
        sums = [
            {key: sum(step[key] for step in one["steps"]) for key in ("seconds", "tokens", "places", "held")}
            for one in mine
        ]
        rates = [one["tokens"] / one["seconds"] for one in sums]
        speed = speeds[candidate] = Spread.of([rate / a_pair for rate in rates])
        tokens, places, held = (sum(one[key] for one in sums) for key in ("tokens", "places", "held"))
        peak, at_start = (max(one[key] for one in mine) for key in ("peak", "at_start"))
        ratio = speeds[OURS].median / speed.median if OURS in speeds else None
        first, second = losses[candidate]
        rows.append(
            [
                candidate,
                speed.show(2),
                f"{ratio:.2f}" if ratio else "",
                f"{statistics.median(rates):,.0f}",
                f"{places / tokens * a_pair:,.0f}",
                f"{held / places:.0%}",
                f"{peak / 2**20:,.0f}",
                f"{at_start / 2**20:,.0f}",
                f"{first:.4f}",
                f"{second:.4f}",
            ]
        )
        numbers = {
            "candidate": candidate, "pairs_per_second": speed._asdict(), "tokens_per_second": rates,
            "llamactl_over_it": ratio, "places_a_pair": places / tokens * a_pair, "filled": held / places,
            "peak_bytes": peak, "bytes_at_start": at_start, "check_losses": losses[candidate],
            "steps": sum(len(one["steps"]) for one in mine),
        }  # fmt: skip
        append_json(asked.json, facts | numbers)
    checkpointed = ", activation checkpointing" * asked.checkpointing
    how = f"Shape {asked.shape}, {asked.precision}, {count_of_threads(asked.threads)}{checkpointed}"
    title = (
        f"{how}: {len(pairs):,} pairs of {a_pair:.0f} tokens on average, both sides written out (the longest side has "
        f"{longest}); a step takes {A_STEP[asked.shape]}"
    )
    head = [
        "", "pairs/s", "llamactl / it", "tokens/s written out", "places a pair", "filled", "peak MiB", "at start",
        "check: 1st loss", "2nd loss",
    ]  # fmt: skip
    table(title, head, rows, others)
    there = [candidate for candidate in speeds if candidate in MODES]
    if OURS in speeds and there:
        best = max(there, key=lambda candidate: speeds[candidate].median)
        print(f"TRL's fastest: {best}; llamactl / it {speeds[OURS].median / speeds[best].median:.2f}")
    tolerance = TOLERANCE[asked.precision]
    check_losses(losses, tolerance)
    for candidate, (first, second) in losses.items():
        if abs(first - second) <= tolerance * abs(first):
            print(f"NO CHECK: {candidate}: its first step has changed too little")


def main() -> None:
    """The command line."""
    parser = options(__doc__, CANDIDATES, CANDIDATES)
    parser.add_argument("--steps", type=int, default=20, help="steps of each turn that are timed")
    asked = parser.parse_args()
    if asked.work:
        work(asked.work, asked, lambda task, how: (trl if how in MODES else llamactl)(task, how))
    else:
        training(asked.candidate or CANDIDATES, asked)


if __name__ == "__main__":
    main()
