"""The command: one line a stage, in the paper's order. The only module that knows the stages."""

import functools
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from llamactl import __version__, ui
from llamactl.errors import Fault, Interrupted, Misuse, ReaderGone
from stages.carbon import carbon
from stages.chat import chat
from stages.convert import convert
from stages.distill_safety import distill_safety
from stages.eval_bench import bench
from stages.eval_gatt import gatt
from stages.eval_perplexity import perplexity
from stages.eval_refusals import refusals
from stages.eval_reward import reward
from stages.gatt_synth import gatt_synth
from stages.generate import generate
from stages.lineage import lineage
from stages.plot import plot
from stages.ppo import ppo
from stages.pretrain import pretrain
from stages.reject_sample import reject_sample
from stages.rm_train import rm_train
from stages.score import score
from stages.sft import sft
from stages.tokenize import tokenize
from stages.train_tokenizer import train_tokenizer
from stages.validate import validate

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=(
        "The Llama 2 recipe as composable stages: JSON lines and safetensors in and out, so that they pipe into each "
        "other. A stage run with nothing but its inputs does what the paper did for that size."
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"llamactl {__version__}")
        raise typer.Exit


@app.callback()
def _shared(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A stage whose endings have the exit statuses of ``llamactl.errors`` and say what happened in one line."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            _check_numbers(options)
            command(*arguments, **options)
        except Fault as fault:
            _end(f"llamactl: {ui.speaker()}{fault}", fault.status)
        except Interrupted as stop:
            _end(f"llamactl: {stop}" if ui.first_rank() else "", stop.status)
        except ReaderGone:
            _end("", ReaderGone.status)
        except KeyboardInterrupt:
            _end("llamactl: interrupted", 128 + signal.SIGINT)
        except OSError as error:  # the disk is full, the place read-only: a user's to mend, not a bug
            where = error.filename or "output"
            what = error.strerror or error
            _end(f"llamactl: {ui.speaker()}{where}: {what}; mend that and run the same command again", 1)

    return run


def _check_numbers(options: Mapping[str, Any]) -> None:
    """Raise Misuse for a number that is none, or without end: no flag takes one, and JSON has no word for it."""
    for name, value in options.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, float) and not math.isfinite(one):
                raise Misuse(f"--{name.replace('_', '-')}", f"is {one}", "give a finite number")


def _end(line: str, status: int) -> None:
    if line:
        print(line, file=sys.stderr, flush=True)
    raise SystemExit(status)


def _stage(name: str, command: Callable[..., None], group: typer.Typer = app) -> None:
    """Register a stage; its line in ``--help`` is the first of its docstring, whole."""
    group.command(name, short_help=(command.__doc__ or "").partition("\n")[0])(guarded(command))


measures = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure a model: Scores on stdout.")

_stage("convert", convert)
_stage("validate", validate)
_stage("train-tokenizer", train_tokenizer)
_stage("tokenize", tokenize)
_stage("pretrain", pretrain)
_stage("sft", sft)
_stage("rm-train", rm_train)
_stage("generate", generate)
_stage("score", score)
_stage("reject-sample", reject_sample)
_stage("ppo", ppo)
_stage("gatt-synth", gatt_synth)
_stage("distill-safety", distill_safety)
_stage("chat", chat)
app.add_typer(measures, name="eval", short_help="Measure a model: perplexity, bench, reward, refusals, gatt.")
_stage("perplexity", perplexity, measures)
_stage("bench", bench, measures)
_stage("reward", reward, measures)
_stage("refusals", refusals, measures)
_stage("gatt", gatt, measures)
_stage("carbon", carbon)
_stage("lineage", lineage)
_stage("plot", plot)


def others_run(statistics: Path = Path("/proc/stat")) -> bool:
    """Whether other processes are computing on this machine.

    OpenMP's threads wait for each other by spinning, as torch has it. Beside one busy process that makes a step 4 to 15
    times slower than sleeping does; on a quiet machine sleeping, where to wake up takes 50 microseconds, costs up to
    half of a small model's speed. A process counts that runs each of the five times it is looked for.
    """
    try:
        lines = [line for _ in range(5) for line in statistics.read_text().splitlines()]
    except OSError:
        return False
    running = [int(line.split()[1]) for line in lines if line.startswith("procs_running")]
    return bool(running) and min(running) > 1


def main() -> None:
    """Run the command line."""
    if others_run():  # read when torch is loaded, so it is set before
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if ui.world_size() == 1:
        guarded(app)()
        return
    # One process of many leaves at once: gloo's destructors abort now and then, and after a fault they can wait for
    # ever for processes that have left.
    status: object = 1
    try:
        guarded(app)()
    except SystemExit as end:
        status = end.code
    except BaseException:
        ui.alarm("failed:")
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)
