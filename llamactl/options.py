"""The shared vocabulary of flags: one name, one meaning, in every stage.

Stages use these aliases as types and give their own defaults. Nothing here imports torch.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from llamactl import ui
from llamactl.artifacts.records import Shard


def _shard(text: str | Shard) -> Shard:
    if isinstance(text, Shard):
        return text
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise typer.BadParameter(f"{text}: give i/n with i from 0 to n-1, for example 0/4")
    return Shard(int(index), int(count))


def _kept(text: str) -> str:
    if text not in ("best", "all") and not (text.isdigit() and int(text)):
        raise typer.BadParameter(f"{text}: give best, all, or how many")
    return text


def _truncated(text: str) -> str:
    try:
        fine = text == "judged" or math.isfinite(float(text))
    except ValueError:
        fine = False
    if not fine:
        raise typer.BadParameter(f"{text}: give judged, or a number")
    return text


def _encoding(name: str | None) -> str | None:
    try:
        "a".encode("utf-8" if name is None else name)
    except (LookupError, UnicodeError):
        raise typer.BadParameter(f"{name} is no text encoding that Python knows, as latin-1 or utf-16 are") from None
    return name


def _file(path: Path | None) -> Path | None:
    return None if path == Path("-") else path


def _hush(quiet: bool) -> bool:
    ui.set_quiet(quiet)
    return quiet


def _option(*names: str, text: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, show_default=more.pop("show_default", True), **more)


# -- everywhere
Out = Annotated[Path, _option("--out", "-o", text="Where the result goes. It appears whole or not at all.")]
Records = Annotated[
    Path | None,
    _option("--out", "-o", text="A file instead of stdout (.zst and .gz are compressed).", callback=_file),
]
Seed = Annotated[int, _option("--seed", text="Same seed, same result, to rounding.", min=0, max=2**32 - 1)]
Quiet = Annotated[bool, _option("--quiet", "-q", text="No progress and no notes.", callback=_hush, is_eager=True)]
Overwrite = Annotated[bool, _option("--overwrite", text="Redo it where it is there already.")]
Report = Annotated[Path | None, _option("--report", text="A JSON file for what is also shown as tables.")]
SkipBad = Annotated[bool, _option("--skip-bad", text="Skip and count records that cannot be used.")]
ShardOf = Annotated[
    Shard,
    _option(
        "--shard",
        text="Every n-th record, starting at i (from 0): one part of a job array.",
        parser=_shard,
        metavar="I/N",
    ),
]

# -- what goes in
Corpus = Annotated[
    list[str], typer.Argument(help=".txt (one document a file), .jsonl of Documents, a directory of either, or -.")
]
Model = Annotated[Path, typer.Argument(help="A model directory in Hugging Face layout.")]
_TOKENIZER = "A tokenizer.model, or a directory that holds one."
Tokenizer = Annotated[Path, _option("--tokenizer", text=_TOKENIZER)]
OptionalTokenizer = Annotated[Path | None, _option("--tokenizer", text=_TOKENIZER, show_default="lengths in bytes")]
Encoding = Annotated[
    str | None,
    _option("--encoding", text="Read what is not UTF-8 in this encoding (latin-1, ...).", callback=_encoding),
]
MaxLine = Annotated[int, _option("--max-line", text="Longest JSON line, in bytes.", min=1)]
Workers = Annotated[int | None, _option("--workers", text="Processes.", show_default="one a core", min=1)]

# -- sampling
Temperature = Annotated[float, _option("--temperature", text="0 is greedy.", min=0.0)]
Temperatures = Annotated[
    list[float], _option("--temperature", text="0 is greedy. Repeatable: samples are divided among them.", min=0.0)
]
TopP = Annotated[
    float, _option("--top-p", text="Sample from the smallest set of tokens of this probability.", min=0.0, max=1.0)
]
TopK = Annotated[int, _option("--top-k", text="Sample from this many likeliest tokens; 0 is all.", min=0)]
MaxNewTokens = Annotated[int, _option("--max-new-tokens", text="Longest answer, in tokens.", min=1)]
CacheMemory = Annotated[
    float | None,
    _option(
        "--cache-memory",
        text="Memory for keys and values, in GiB. Less is slower; in fp32 what is sampled stays the same, and its "
        "log-probabilities to rounding.",
        show_default="half of what is free",
        min=0.0,
    ),
]
Samples = Annotated[int, _option("-k", text="Samples a prompt.", min=1)]
Kept = Annotated[
    str,
    _option(
        "--keep", text="Of each prompt's answers: the best, all, or the N best.", parser=_kept, metavar="best|all|N"
    ),
]
TruncatedReward = Annotated[
    str,
    _option(
        "--truncated",
        text="What an answer that is cut off gets in place of its whitened score (0 is the mean, 1 a standard "
        "deviation): a number, or judged to score it like the others. Ours: as Stiennon et al. had it.",
        parser=_truncated,
        metavar="judged|NUMBER",
    ),
]
Constraints = Annotated[
    Path | None,
    _option("--constraints", text="JSON lines of what instructions are made of.", show_default="a list of ours"),
]
Place = Annotated[
    Literal["user", "system"],
    _option("--place", text="Where the instruction is written: in the user's first message, or as the system message."),
]
AllowTags = Annotated[bool, _option("--allow-tags", text="Accept [INST] and <<SYS>> inside messages.")]

# -- training
Size = Annotated[str, _option("--size", text="A row of the size table; every number of it can be overridden.")]
LR, ABOVE_0, _BATCH = "Peak learning rate.", "NUMBER>0", "Sequences, or pairs, a step, over all processes."
LearningRate = Annotated[float, _option("--lr", text=LR, metavar=ABOVE_0)]
LearningRateBySize = Annotated[float | None, _option("--lr", text=LR, metavar=ABOVE_0, show_default="by size")]
BatchSize = Annotated[int, _option("--batch-size", text=_BATCH, min=1)]
BatchSizeBySize = Annotated[int | None, _option("--batch-size", text=_BATCH, show_default="by size", min=1)]
MicroBatch = Annotated[
    int | None, _option("--micro-batch", text="Of them at once.", show_default="4,096 tokens' worth", min=1)
]
Truncate = Annotated[
    bool,
    _option(
        "--truncate",
        text="Cut what is longer than the context. To be learned from, a dialogue loses its end; to be scored, its "
        "oldest turns, but for a system message, then the answer its end, but for its EOS.",
    ),
]
Evaluation = Annotated[Path | None, _option("--eval", text="Records that are held out: measured as training goes on.")]
EvalEvery = Annotated[
    int | None,
    _option(
        "--eval-every", text="Steps, or iterations, between measurements.", show_default="a tenth of the run", min=1
    ),
]
Context = Annotated[int | None, _option("--context", text="Tokens a sequence.", show_default="by size", min=2)]
Steps = Annotated[int | None, _option("--steps", text="Optimizer steps, instead of --tokens or --epochs.", min=1)]
_TOKENS = "Tokens to train on, for example 2e12."
Tokens = Annotated[float | None, _option("--tokens", text=_TOKENS)]
TokensBySize = Annotated[float | None, _option("--tokens", text=_TOKENS, show_default="by size")]
EPOCHS = "Passes over the data, instead of --tokens or --steps; the last step is made full."
Epochs = Annotated[float | None, _option("--epochs", text=EPOCHS)]
Precision = Annotated[
    Literal["bf16", "fp32"],
    _option(
        "--precision",
        text="bf16 (compute; weights and optimizer stay fp32) or fp32: faster on a CPU without bf16 instructions.",
    ),
]
StoredPrecision = Annotated[
    Literal["bf16", "fp32"] | None, _option("--precision", text="bf16 or fp32.", show_default="as the model is stored")
]
Checkpointing = Annotated[
    Literal["none", "selective", "full"],
    _option("--activation-checkpointing", text="What is computed again in the backward pass, to save memory."),
]
TensorParallel = Annotated[
    int, _option("--tensor-parallel", text="Processes that share each matrix product (under torchrun).", min=1)
]
Replicas = Annotated[
    int,
    _option(
        "--replicas", text="Copies of the model; each is sharded over its processes. For example one a node.", min=1
    ),
]
SaveEvery = Annotated[
    int | None,
    _option(
        "--save-every",
        text="Steps, or iterations, between states.",
        show_default="a tenth of the run, at most 1,000",
        min=1,
    ),
]
Keep = Annotated[int, _option("--keep", text="States kept; the oldest go first.", min=1)]
LogEvery = Annotated[int, _option("--log-every", text="Steps, or iterations, between lines of metrics.jsonl.", min=1)]
Resume = Annotated[bool, _option("--resume/--no-resume", text="Go on from the newest state in the output directory.")]
DryRun = Annotated[bool, _option("--dry-run", text="Print the plan; train nothing.")]
Compile = Annotated[bool, _option("--compile", text="Compile each block (slow start, faster steps).")]
Verify = Annotated[bool, _option("--verify/--no-verify", text="Hold the inputs' bytes against their manifests first.")]
Device = Annotated[str | None, _option("--device", text="cpu, cuda, cuda:1.", show_default="a GPU where there is one")]

# -- planning
DeviceOrPlanned = Annotated[
    str | None,
    _option(
        "--device",
        text="cpu, cuda, cuda:1; with --dry-run also a device to plan for: a100-80gb, h100, h200, l4, ...",
        show_default="a GPU where there is one",
    ),
]
Devices = Annotated[int | None, _option("--devices", text="With --dry-run: plan for so many.", show_default="1", min=1)]
Mfu = Annotated[
    float | None,
    _option(
        "--mfu",
        text="With --dry-run: the share of the device's peak FLOP/s to reckon with.",
        show_default="0.4",
        min=0.001,
        max=1.0,
    ),
]
