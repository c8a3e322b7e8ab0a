"""PPO: seconds per iteration and peak memory, of ``llamactl ppo`` and of TRL's PPOTrainer in its modes.

What is measured: whole iterations on the CPU, at the shapes of pretraining.py. An iteration samples an answer to each
of 16 prompts, scores the answers, and learns from each once: in one optimizer step, or in as many as --mini-batch
makes of them; AdamW, fused, over policy and value model. Policy, reference, reward and value model are four networks
of the shape, the latter two with a head of one number. Policy and reference start from the same weights, and so do
reward and value model, for all candidates. Prompts are docstrings and sources of Python's standard library in the
format of ``llamactl ppo``, cut so that each has exactly 64 ids: there is nothing to pad. Answers are sampled at
temperature 1 from the whole distribution, up to 128 tokens. An answer ends before that only where chance draws EOS,
about once in as many tokens as there are in the vocabulary; the table has how many tokens were sampled. (TRL goes on
to sample, and computes, all 128 places as long as one answer has not ended.) The candidates:

    llamactl                    the command ``llamactl ppo``, with --truncated judged: here it is the rule that an
                                answer runs into its limit
    llamactl, compiled          the same with --compile, for which its first two iterations wait
    TRL                         PPOTrainer with the whole batch at once: sampled, scored and learned
    TRL, static cache           the same, but that it samples with the static cache of keys and values, which is
                                allocated once, in place of the dynamic one
    TRL, learned in four parts  the same as the first, but that a step's gradients are accumulated: less memory. Not
    TRL, learned one by one     with --mini-batch: PPOTrainer steps when it has accumulated a whole batch
    TRL, bf16 weights           in bf16 only: policy, value model, their gradients and moments are bf16, too, without
                                fp32 master weights: less precise
    TRL, fp32                   in the table of bf16: the first one in fp32, which is the faster one where the processor
                                has no instructions for bf16

TRL's models have sdpa attention; they sample with a cache of keys and values, and make none where they score and learn.
Sampled and scored in parts they take longer, and hardly less memory. There is no activation checkpointing: PPOTrainer
does not look at the setting. In bf16 reference and reward model are bf16, and the step runs under autocast over fp32
master weights, by ACCELERATE_MIXED_PRECISION, since PPOTrainer does not pass ``bf16=True`` on; it samples, and computes
the values that rewards are held against, in fp32 then.

How: each candidate is a process of its own, so that its peak memory is its own; the processes take turns, in rounds,
and each runs a few iterations that are not timed, and then some that are. An iteration lasts from the end of the one
before to its own end: of llamactl that is when a line is added to metrics.jsonl, of TRL when on_step_end is called.
Figures are medians over the timed iterations of all turns, with the fastest and the slowest, and ratios are of medians.
An iteration has these parts:

    sample     llamactl's sample_seconds; TRL's batch_generation
    score      llamactl's score_seconds; TRL's from there to the first forward pass with gradients: what reference,
               value and reward model say, rewards and advantages (and a collection of Python's garbage)
    update     llamactl's update_seconds; TRL's from there to on_step_end, with its metrics
    rest       what is left: TRL's is another collection of garbage

To note the time, two functions of TRL's module, batch_generation and forward, are replaced by ones that do so and call
them. Memory is the peak of the process up to the last iteration, before anything is saved.

What is not equal: to score, llamactl computes the policy's log-probabilities anew, where TRL takes them from the scores
that it keeps of sampling. llamactl clips the norm of gradients, which PPOTrainer does not, and has an optimizer each
for policy and value model, where TRL has one. TRL computes the scores of the next token at all places of the prompt,
which nobody needs, and the entropy at those of the answer, which it logs.

The check that the work is equal, before the rounds: for the answers of random ids that 16 prompts are given, the
log-probabilities of the policy and the scores of the reward model must be those that llamactl finds in fp32; TRL's are
by the functions that PPOTrainer calls. "Off" is the largest difference of an answer, relative to the largest of them.
In fp32 that shows that the networks are the same (1e-4), and TRL is checked in fp32 whatever the table is of. In bf16
(2e-2) it is what rounding does to each: two that round in another order differ by more from each other. After the
rounds, all must have sampled about as many tokens.

Run: benchmarks/run.sh makes TRL's environment and runs this with its defaults; or, once it is there,

    python benchmarks/ppo.py --shape A --precision fp32 --threads 2 --rounds 3 --json results.jsonl
    python benchmarks/ppo.py --shape tiny --rounds 1 --steps 2    # to try it out
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from measure import Clock, Spread, append_json, count_of_threads, memory, note, table
from pretraining import SEED
from runs import Job, documented, make_tokenizer, metrics
from tuning import CORPUS, OURS, SHAPES, save_sharper_weights, turn

BATCH = 16
PROMPTS = 64
LR = 1e-6
EOS = 2
POLL = 0.01  # seconds
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}  # relative to the largest, of the numbers of the check, to those in fp32
EXACT = "TRL, fp32"  # checked in any case
TOKENS = 0.05  # relative, of the tokens sampled
PARTS = ("sample", "score", "update", "rest")


class Load(NamedTuple):
    """Tokens of a prompt, the chat format's among them, and of an answer."""

    prompt: int
    answer: int


LOADS = {"A": Load(64, 128), "B": Load(64, 128), "tiny": Load(32, 16)}


class Mode(NamedTuple):
    """How TRL goes about it."""

    parts: int = 1  # of a step
    static: bool = False  # the cache
    frozen: str = "fp32"  # reference and reward model
    trained: str = "fp32"
    autocast: bool = False


class Iteration(NamedTuple):
    """Seconds in all, and of its parts; tokens sampled."""

    seconds: float
    sample: float
    score: float
    update: float
    tokens: int

    @property
    def rest(self) -> float:
        """What is in none of the parts."""
        return self.seconds - self.sample - self.score - self.update


MINE: dict[str, Sequence[str]] = {OURS: (), f"{OURS}, compiled": ("--compile",)}  # and their flags
FP32 = {
    "TRL": Mode(),
    "TRL, static cache": Mode(static=True),
    "TRL, learned in four parts": Mode(parts=4),
    "TRL, learned one by one": Mode(parts=BATCH),
}
BF16 = {name: mode._replace(frozen="bf16", autocast=True) for name, mode in FP32.items()}
BF16 |= {"TRL, bf16 weights": Mode(frozen="bf16", trained="bf16"), EXACT: Mode()}
MODES = {"fp32": FP32, "bf16": BF16}


class Check(NamedTuple):
    """Of each answer of the check."""

    log_probs: list[float]
    scores: list[float]

    def off(self, right: "Check") -> float:
        """The largest difference, relative to the largest number."""
        return max(
            max(abs(a - b) for a, b in zip(mine, its, strict=True)) / max(map(abs, its))
            for mine, its in zip(self, right, strict=True)
        )


class Task(NamedTuple):
    """What a worker is given: a folder of models, prompts and the check's answers, and how much to do."""

    folder: Path
    load: Load
    precision: str
    mini_batch: int
    seed: int
    iterations: int

    def model(self, which: str) -> Path:
        """Its directory: the policy's, which is the reference, too, or the reward model's, which is the critic."""
        return self.folder / which

    def ids(self, which: str) -> list[list[int]]:
        """Those of the prompts, or of the answers to the first of them that the check has."""
        return json.loads((self.folder / f"{which}.json").read_text())


# --- the prompts and the models ---


def make_folder(name: str, precision: str, folder: Path) -> None:
    """What a Task needs; prompts are the same for one Python and one SentencePiece.

    Models are stored in the precision that they are trained in, as the stages before PPO store them: llamactl scores in
    what a reward model is stored in, TRL in what it is told to load it as.
    """
    shape, load = SHAPES[name], LOADS[name]
    tokenizer = make_tokenizer(folder, CORPUS[name], shape.vocab)[1]
    for which in ("policy", "reward"):
        (folder / which).mkdir()
        save_sharper_weights(shape, folder / which, scored=which == "reward", precision=precision)
        shutil.copy(tokenizer, folder / which)
    texts, ids = zip(*make_prompts(tokenizer, load.prompt), strict=True)
    records = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    dice = random.Random(SEED)
    answers = [[dice.randrange(EOS + 1, shape.vocab) for _ in range(load.answer)] for _ in range(BATCH)]
    for which, content in (("prompts", ids), ("answers", answers)):
        (folder / f"{which}.json").write_text(json.dumps(content))


def make_prompts(tokenizer: Path, length: int) -> list[tuple[str, list[int]]]:
    """Texts and their ids, exactly so many each."""
    from llamactl.artifacts.records import Message
    from llamactl.text.dialogue import encode
    from llamactl.text.tokenizer import Tokenizer

    encoder = Tokenizer.load(tokenizer)
    found = list(documented())
    random.Random(SEED).shuffle(found)
    made: list[tuple[str, list[int]]] = []
    for what, docstring, source in found:
        text = f"What is {what} for?\n{docstring}\n{source}"
        for end in range(1, len(text)):
            ids = encode([Message(role="user", content=text[:end])], encoder).ids
            if len(ids) >= length:
                break
        if len(ids) == length:
            made.append((text[:end], ids))
        if len(made) == PROMPTS:
            return made
    sys.exit(f"this Python has too little to say for {PROMPTS} prompts: {len(made)}")


# --- the candidates ---


def llamactl(task: Task, threads: int, flags: Sequence[str]) -> dict[str, Any]:
    """A run of the command, and its iterations."""
    arguments: list[Any] = ["ppo", task.model("policy"), task.folder / "prompts.jsonl"]
    with tempfile.TemporaryDirectory(dir=task.folder) as made:
        out = Path(made) / "out"
        settings = {
            "helpfulness": task.model("reward"), "out": out, "iterations": task.iterations, "batch-size": BATCH,
            "mini-batch-size": task.mini_batch, "max-new-tokens": task.load.answer, "truncated": "judged",
            "precision": task.precision, "save-every": task.iterations, "seed": task.seed,
        }  # fmt: skip
        arguments += [part for key, value in settings.items() for part in (f"--{key}", value)]
        job = Job([*arguments, *flags, "--quiet"], 1, threads, task.folder / "llamactl.log")
        moments = [time.perf_counter()]
        running = True
        while running:
            running = job.process.poll() is None
            moments += [time.perf_counter()] * (1 + len(metrics(out)) - len(moments))
            time.sleep(POLL)
        job.finish()
        lines = metrics(out)
    done = [
        Iteration(after - before, *(line[f"{part}_seconds"] for part in PARTS[:-1]), line["tokens"])
        for (before, after), line in zip(pairwise(moments), lines, strict=True)
    ]
    return {"iterations": [one._asdict() for one in done], "peak": lines[-1]["memory_bytes"]}


def llamactl_check(task: Task) -> Check:
    """By its plain forward pass, and by what judges answers."""
    import torch

    from llamactl.model.device import PRECISIONS
    from llamactl.model.heads import RewardModel
    from llamactl.model.llama import Llama

    where = torch.device("cpu"), PRECISIONS[task.precision]
    answers = task.ids("answers")
    both = [prompt + answer for prompt, answer in zip(task.ids("prompts"), answers, strict=False)]
    model = Llama.load(task.model("policy"), *where)
    with torch.inference_mode():
        scores = model.logits(model(torch.tensor(both)))[:, task.load.prompt - 1 : -1].float().log_softmax(-1)
    log_probs = scores.gather(-1, torch.tensor(answers)[..., None])[..., 0].sum(1)
    judged = RewardModel.load(task.model("reward"), *where).judge([[one] for one in both])
    return Check(log_probs.tolist(), [score for [score] in judged])


def trl(task: Task, mode: Mode) -> Any:
    """The trainer."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if mode.autocast else "no"
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast, PrinterCallback
    from transformers.utils import logging
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    logging.disable_progress_bar()
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}

    def loaded(kind: Any, which: str, precision: str) -> Any:
        model = kind.from_pretrained(task.model(which), dtype=dtypes[precision], attn_implementation="sdpa")
        model.config.use_cache = False
        return model

    policy = loaded(LlamaForCausalLM, "policy", mode.trained)
    policy.generation_config.use_cache, policy.generation_config.pad_token_id = True, EOS
    if mode.static:
        policy.generation_config.cache_implementation = "static"
    # an id that is never drawn, or TRL would take what chance draws for padding; it is asked for nothing else
    pad = policy.config.vocab_size
    words = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": EOS, "<pad>": pad}, "<unk>"))
    names = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")
    arguments = PPOConfig(
        str(task.folder / "trl"), use_cpu=True, bf16=mode.autocast, seed=task.seed, learning_rate=LR,
        lr_scheduler_type="constant", optim="adamw_torch_fused", weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.95,
        adam_epsilon=1e-5, total_episodes=BATCH * task.iterations, num_ppo_epochs=1,
        num_mini_batches=BATCH // task.mini_batch, per_device_train_batch_size=BATCH // mode.parts,
        gradient_accumulation_steps=mode.parts, local_rollout_forward_batch_size=BATCH,
        response_length=task.load.answer, temperature=1.0, stop_token="eos", num_sample_generations=0,
        logging_strategy="no", save_strategy="no", eval_strategy="no", report_to="none", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = PPOTrainer(
        arguments, names, policy, loaded(LlamaForCausalLM, "policy", mode.frozen),
        loaded(LlamaForSequenceClassification, "reward", mode.frozen),
        Dataset.from_dict({"input_ids": task.ids("prompts")}),
        loaded(LlamaForSequenceClassification, "reward", mode.trained),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def trl_turn(task: Task, mode: Mode) -> list[Iteration]:
    """The trainer as it is, but for a note of when its functions are called."""
    import torch
    from transformers import TrainerCallback
    from trl.experimental.ppo import ppo_trainer

    done: list[Iteration] = []
    marks: list[float] = []  # the end before, the beginning and end of sampling, the beginning of the update
    drawn: list[Any] = []

    def noting_generation(*given: Any, generation: Callable[..., Any] = ppo_trainer.batch_generation) -> Any:
        marks.append(time.perf_counter())
        ids, scores = generation(*given)
        marks.append(time.perf_counter())
        drawn.append(ids[:, task.load.prompt :])
        return ids, scores

    def noting_forward(*given: Any, forward: Callable[..., Any] = ppo_trainer.forward) -> Any:
        if torch.is_grad_enabled() and len(marks) == 3:
            marks.append(time.perf_counter())
        return forward(*given)

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            before, sampling, scoring, updating = marks
            end = time.perf_counter()
            ends = drawn.pop() == EOS
            tokens = torch.where(ends.any(-1), ends.int().argmax(-1) + 1, ends.shape[1])
            split = scoring - sampling, updating - scoring, end - updating
            done.append(Iteration(end - before, *split, int(tokens.sum())))
            marks[:] = [end]

    ppo_trainer.batch_generation, ppo_trainer.forward = noting_generation, noting_forward
    trainer = trl(task, mode)
    trainer.add_callback(Watch())
    trainer.train()
    return done


def trl_check(task: Task, mode: Mode) -> Check:
    """By the functions that PPOTrainer calls."""
    import torch
    from trl.experimental.ppo.ppo_trainer import forward, get_reward, selective_log_softmax

    trainer = trl(task, mode)
    answers = torch.tensor(task.ids("answers"))
    both = torch.cat([torch.tensor(task.ids("prompts")[:BATCH]), answers], 1)
    pad = trainer.processing_class.pad_token_id
    with torch.inference_mode():
        output, _ = forward(trainer.model, both, pad)
        log_probs = selective_log_softmax(output.logits[:, task.load.prompt - 1 : -1], answers)
        scores = get_reward(trainer.reward_model, both, pad, task.load.prompt)[1]
    return Check(log_probs.float().sum(1).tolist(), scores.float().tolist())


def work(asked: argparse.Namespace) -> None:
    """A worker: the check, or a turn; a JSON line on stdout."""
    import torch

    out, sys.stdout = sys.stdout, sys.stderr  # what a peer prints is no result
    torch.set_num_threads(asked.threads)
    mode = MODES[asked.precision].get(asked.work)
    task = task_of(asked, asked.folder, asked.seed)
    if asked.check:
        print(json.dumps(trl_check(task, mode) if mode else llamactl_check(task)), file=out)
        return
    done = trl_turn(task, mode)
    print(json.dumps({"iterations": [one._asdict() for one in done], "peak": memory("VmHWM")}), file=out)


# --- the driver ---


class Measured(NamedTuple):
    """By candidate: how far off its check is, and its turns; and what others took of the machine meanwhile."""

    off: dict[str, float]
    turns: dict[str, list[dict[str, Any]]]
    others: float


def task_of(asked: argparse.Namespace, folder: Path, seed: int) -> Task:
    """Of the command line."""
    return Task(folder, LOADS[asked.shape], asked.precision, asked.mini_batch, seed, asked.warmup + asked.steps)


def measured(candidates: list[str], asked: argparse.Namespace) -> Measured:
    """The check, and the rounds."""
    turns: dict[str, list[dict[str, Any]]] = {candidate: [] for candidate in candidates}
    what = f"{asked.shape} {asked.precision} {count_of_threads(asked.threads)}"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_folder(asked.shape, asked.precision, folder)

        def worker(candidate: str, seed: int, *switches: str, precision: str = asked.precision) -> Any:
            given = {key: getattr(asked, key) for key in ("shape", "threads", "warmup", "steps")}
            given |= {"precision": precision, "mini-batch": asked.mini_batch, "folder": folder, "seed": seed}
            words = [str(part) for key, value in given.items() for part in (f"--{key}", value)]
            return turn(__file__, candidate, [*words, *switches], asked.threads, folder, "trl-ppo")

        def check(candidate: str, precision: str) -> Check:
            note(f"check: {candidate}, {precision}")
            return Check(*worker(candidate, SEED, "--check", precision=precision))

        right = check(OURS, "fp32")
        off = {EXACT: check("TRL", "fp32").off(right)}
        off |= {one: check(one, asked.precision).off(right) for one in candidates if one not in off}
        clock = Clock.now()
        for number in range(asked.rounds):
            for candidate in candidates:
                note(f"{what}, round {number + 1}/{asked.rounds}: {candidate}")
                if candidate in MINE:
                    turns[candidate].append(llamactl(task_of(asked, folder, number), asked.threads, MINE[candidate]))
                else:
                    turns[candidate].append(worker(candidate, number))
        return Measured(off, turns, clock.others())


def report(found: Measured, asked: argparse.Namespace) -> None:
    """The table, its JSON lines, and what of it is no equal work."""
    load = LOADS[asked.shape]
    facts = {
        "benchmark": "ppo", "shape": asked.shape, "precision": asked.precision, "threads": asked.threads,
        "others": found.others, "batch": BATCH, "mini_batch": asked.mini_batch, **load._asdict(),
    }  # fmt: skip
    times: dict[str, dict[str, Spread]] = {}
    peaks: dict[str, int] = {}
    tokens: dict[str, float] = {}
    allowed = {one: TOLERANCE["fp32" if one == EXACT else asked.precision] for one in found.off}
    doubts = [
        f"NOT EQUAL WORK: {one}: the numbers of the check are off by {off:.1e}"
        for one, off in found.off.items()
        if not off <= allowed[one]
    ]
    rows = []
    for candidate, turns in found.turns.items():
        timed = [Iteration(**line) for one in turns for line in one["iterations"][asked.warmup :]]
        its = times[candidate] = {
            "all": Spread.of([one.seconds for one in timed]),
            **{part: Spread.of([getattr(one, part) for one in timed]) for part in PARTS},
        }
        peak = peaks[candidate] = max(one["peak"] for one in turns)
        tokens[candidate] = statistics.mean(one.tokens for one in timed)
        off, ratio, of_memory = found.off[candidate], None, None
        if OURS in times and candidate != OURS:
            ratio, of_memory = its["all"].median / times[OURS]["all"].median, peaks[OURS] / peak
            if not abs(tokens[candidate] - tokens[OURS]) <= TOKENS * tokens[OURS]:
                doubts.append(f"NOT EQUAL WORK: {candidate}: it has sampled another number of tokens")
        rows.append(
            [
                candidate,
                its["all"].show(2),
                f"{ratio:.2f}" if ratio else "",
                *(its[part].show(2) for part in PARTS),
                f"{tokens[candidate]:,.0f}",
                f"{peak / 2**20:,.0f}",
                f"{of_memory:.2f}" if of_memory else "",
                f"{off:.1e}",
            ]
        )
        numbers = {
            "candidate": candidate, **{f"{part}_seconds": spread._asdict() for part, spread in its.items()},
            "llamactl_over_it": ratio, "tokens": tokens[candidate], "peak_bytes": peak, "memory_of_it": of_memory,
            "off": off, "iterations": len(timed),
        }  # fmt: skip
        append_json(asked.json, facts | numbers)
    title = (
        f"Shape {asked.shape}, {asked.precision}, {count_of_threads(asked.threads)}: an iteration of {BATCH} prompts "
        f"of {load.prompt} tokens, answers of up to {load.answer}, {asked.mini_batch} of them a step; seconds"
    )
    head = ["", "iteration", "llamactl / it", *PARTS, "tokens", "peak MiB", "llamactl's of it", "check: off"]
    table(title, head, rows, found.others)
    there = [candidate for candidate in times if candidate not in MINE]
    if OURS in times and there:
        best = min(there, key=lambda candidate: times[candidate]["all"].median)
        least = min(there, key=lambda candidate: peaks[candidate])
        speeds = {part: times[best][part].median / times[OURS][part].median for part in ("all", *PARTS[:-1])}
        print(f"TRL's fastest: {best}; llamactl / it {', '.join(f'{part} {one:.2f}' for part, one in speeds.items())}")
        print(f"Peak memory: llamactl's is {peaks[OURS] / peaks[best]:.2f} of that", end="")
        print("" if least == best else f"; {peaks[OURS] / peaks[least]:.2f} of the least, {least}")
    print("\n".join(doubts), end="\n" * bool(doubts))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*MINE, *FP32, *(name for name in BF16 if name not in FP32)]
    parser.add_argument("--shape", choices=SHAPES, default="A")
    parser.add_argument("--precision", choices=MODES, default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--candidate", choices=every, action="append", help="default: all")
    parser.add_argument("--mini-batch", type=int, default=BATCH, help=f"answers of a step; default: all {BATCH}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=2, help="iterations of each turn that are not timed, at least 1")
    parser.add_argument("--steps", type=int, default=5, help="iterations of each turn that are timed")
    parser.add_argument("--json", type=Path, help="append the results to this file, as JSON lines")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked)
        return
    if asked.warmup < 1:
        parser.error("--warmup: the first iteration has no beginning that could be seen")
    modes = MODES[asked.precision]
    there = [*MINE, *(name for name, mode in modes.items() if mode.parts == 1 or asked.mini_batch == BATCH)]
    report(measured([one for one in there if one in (asked.candidate or there)], asked), asked)


if __name__ == "__main__":
    main()
