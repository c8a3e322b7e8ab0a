"""Benchmarks' options: questions a second and peak memory, of llamactl and of lm-eval over transformers.

What is measured: from texts to log p of each option, by the same model, on the CPU, in two tables: questions as of

    letters     an examination: five examples with their answers, the same for a subject's 20 questions, then a question
                with four options; one of the letters A to D is to follow. 5 subjects
    endings     commonsense: a text, and four endings of some words. 200 questions

Texts are docstrings and sources of Python's standard library, the shape is A or B of pretraining.py with a context of
2,048. The candidates:

    llamactl            what ``llamactl eval bench`` does: options behind one question, and questions about letters
                        behind one set of examples, are computed once; the rest is packed, without padding
    lm-eval, batch N    HFLM.loglikelihood with batches of so many, which are padded. Of options of one token it
                        computes what stands before them once

How: each candidate is a process of its own, so that its peak memory is its own; the processes take turns, in rounds,
and each computes a tenth of the questions before it is timed. Figures are medians of the turns, with the slowest and
the fastest, and ratios are of medians. Memory is the peak of the process, and beside it what it had before the first
question: libraries and model.

The check that the work is equal: log p of all options must agree with llamactl's of the first round. "Off" is the
largest difference, in nats.

Run: benchmarks/run.sh makes lm-eval's environment and runs this with its defaults; or, once it is there,

    python benchmarks/likelihoods.py --shape A --precision fp32 --threads 2 --rounds 3 --json results.jsonl
    python benchmarks/likelihoods.py --shape tiny --rounds 1    # to try it out
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

from measure import Clock, Spread, append_json, count_of_threads, memory, note, table
from pretraining import SEED
from runs import documented, make_tokenizer
from tuning import CORPUS, OURS, PRECISIONS, SHAPES, save_sharper_weights, turn

CONTEXT = 2048
SUBJECTS, QUESTIONS, EXAMPLES, ENDINGS = 5, 20, 5, 200
LETTERS = (" A", " B", " C", " D")
TOLERANCE = {"fp32": 1e-2, "bf16": 2.0}  # nats, of an option of some ten tokens
BATCHES = {f"lm-eval, batch {size}": size for size in (1, 8, 32)}
CANDIDATES = [OURS, *BATCHES]
KINDS = ("letters", "endings")

Asked = tuple[str, list[str]]  # a text, and how it may go on


# --- the questions and the model ---


def letters() -> list[Asked]:
    """The same ones for one Python."""
    dice = random.Random(SEED)
    found = cycle(dice.sample(list(documented()), 2000))

    def one(answer: str) -> str:
        name, docstring, _ = next(found)
        options = [" ".join(next(found)[1].split()[:8]) for _ in LETTERS]
        lines = [f"What is {name} for? It says: {' '.join(docstring.split()[:40])}"]
        lines += [f"{letter.strip()}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
        return "\n".join([*lines, f"Answer:{answer}"])

    made: list[Asked] = []
    for _ in range(SUBJECTS):
        shots = "\n\n".join(one(dice.choice(LETTERS)) for _ in range(EXAMPLES))
        made += [(f"{shots}\n\n{one('')}", [*LETTERS]) for _ in range(QUESTIONS)]
    return made


def endings() -> list[Asked]:
    """The same."""
    dice = random.Random(SEED)
    found = cycle(dice.sample(list(documented()), 2000))

    def words(first: int, last: int) -> str:
        while len(some := next(found)[2].split()) < last:
            pass
        return " ".join(some[: dice.randint(first, last)])

    return [(words(30, 80), [f" {words(8, 24)}" for _ in range(4)]) for _ in range(ENDINGS)]


def make_folder(name: str, precision: str, folder: Path) -> None:
    """A model directory that both read, and the questions."""
    from llamactl.text.dialogue import tokenizer_config

    shape = SHAPES[name]._replace(context=CONTEXT)
    (folder / "model").mkdir()
    save_sharper_weights(shape, folder / "model", precision=precision)
    shutil.copy(make_tokenizer(folder, CORPUS[name], shape.vocab)[1], folder / "model")
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(CONTEXT)))
    for kind, asked in (("letters", letters()), ("endings", endings())):
        (folder / f"{kind}.json").write_text(json.dumps(asked))


# --- the candidates: each runs in its own environment ---


def llamactl(folder: Path, precision: str) -> Any:
    """As ``stages/eval_bench.py`` does."""
    import torch

    from llamactl.evals.bench.answering import chosen
    from llamactl.evals.bench.known import Likeliest
    from llamactl.evals.bench.questions import Choice, Item
    from llamactl.model import device
    from llamactl.model.llama import Llama
    from llamactl.text.tokenizer import Tokenizer

    device.keep_freed_memory()
    model = Llama.load(folder / "model", torch.device("cpu"), device.PRECISIONS[precision])
    tokenizer = Tokenizer.load(folder / "model")

    def log_p(asked: list[Asked]) -> list[list[float]]:
        items = [
            Item(Choice(where="", text=text, answer=options[0], options=tuple(options), right=0), ())
            for text, options in asked
        ]
        found = dict(chosen(model, tokenizer, Likeliest("log_p"), items))
        return [value["log_p"] for _, value in sorted(found.items()) if value]

    return log_p


def lm_eval(folder: Path, precision: str, size: int) -> Any:
    """HFLM, as the harness calls it."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    where = {"pretrained": str(folder / "model"), "device": "cpu", "dtype": dtype}
    model = HFLM(**where, batch_size=size, add_bos_token=True, max_length=CONTEXT)

    def log_p(asked: list[Asked]) -> list[list[float]]:
        requests = [
            Instance("loglikelihood", {}, (text, option), number)
            for text, options in asked
            for number, option in enumerate(options)
        ]
        found = iter(model.loglikelihood(requests, disable_tqdm=True))
        return [[next(found)[0] for _ in options] for _, options in asked]

    return log_p


def work(candidate: str, asked: argparse.Namespace) -> None:
    """A turn: its seconds, log p, memory."""
    import torch

    out, sys.stdout = sys.stdout, sys.stderr  # what a peer prints is no result
    torch.set_num_threads(asked.threads)
    folder = asked.folder
    questions = json.loads((folder / f"{asked.kind}.json").read_text())
    size = BATCHES.get(candidate)
    log_p = lm_eval(folder, asked.precision, size) if size else llamactl(folder, asked.precision)
    at_start = memory("VmRSS")
    log_p(questions[: len(questions) // 10])
    began = time.perf_counter()
    found = log_p(questions)
    seconds = time.perf_counter() - began
    told = {"seconds": seconds, "log_p": found, "peak": memory("VmHWM"), "at_start": at_start}
    print(json.dumps(told), file=out)


# --- the driver ---


def measured(kind: str, asked: argparse.Namespace, folder: Path) -> None:
    """A table."""
    clock, candidates = Clock.now(), asked.candidate or CANDIDATES
    turns: dict[str, list[dict[str, Any]]] = {candidate: [] for candidate in candidates}
    for number in range(asked.rounds):
        for candidate in candidates:
            note(f"{kind}, round {number + 1} of {asked.rounds}: {candidate}")
            flags = {"--kind": kind, "--folder": folder, "--precision": asked.precision, "--threads": asked.threads}
            words = [str(word) for pair in flags.items() for word in pair]
            turns[candidate].append(turn(__file__, candidate, words, asked.threads, folder, "lmeval"))
    others = clock.others()
    count = len(next(iter(turns.values()))[0]["log_p"])
    speeds = {one: Spread.of([count / turn["seconds"] for turn in mine]) for one, mine in turns.items()}
    rows, unequal = [], []
    for candidate, mine in turns.items():
        off = max(
            abs(a - b)
            for theirs, ours in zip(mine[0]["log_p"], turns[candidates[0]][0]["log_p"], strict=True)
            for a, b in zip(theirs, ours, strict=True)
        )
        if off > TOLERANCE[asked.precision]:
            unequal.append(candidate)
        ratio = speeds[candidates[0]].median / speeds[candidate].median
        peak, at_start = (max(one[key] for one in mine) for key in ("peak", "at_start"))
        cells = (speeds[candidate].show(), f"{ratio:.2f}", f"{peak / 2**20:,.0f}", f"{at_start / 2**20:,.0f}")
        rows.append([candidate, *cells, f"{off:.1e}"])
        facts = {"benchmark": "likelihoods", "shape": asked.shape, "precision": asked.precision, "kind": kind}
        numbers = {"questions_per_second": speeds[candidate]._asdict(), "first_over_it": ratio, "off": off}
        beside = {"threads": asked.threads, "others": others, "candidate": candidate, "peak_bytes": peak}
        append_json(asked.json, facts | beside | numbers)
    how = f"Shape {asked.shape}, {asked.precision}, {count_of_threads(asked.threads)}"
    head = ["", "questions/s", f"{candidates[0]} / it", "peak MiB", "at start", "off, nats"]
    table(f"{how}: {count} questions, {kind}", head, rows, others)
    for candidate in unequal:
        print(f"NOT EQUAL WORK: {candidate}: log p differ")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="A")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--candidate", choices=CANDIDATES, action="append", help="the first is what others are held to")
    parser.add_argument("--json", type=Path, help="append the results to this file, as JSON lines")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=KINDS, help="one table alone")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked.work, asked)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_folder(asked.shape, asked.precision, Path(folder))
        for kind in [asked.kind] if asked.kind else KINDS:
            measured(kind, asked, Path(folder))


if __name__ == "__main__":
    main()
