"""Two processes against one on two cores: tokens a second; what saving a state costs, and resuming from one.

What is measured: ``llamactl pretrain`` as it is, from its command to its end, on the sources of the standard library;
the same training (same global batch, so the same updates) by

    1 process, 1 thread
    1 process, 2 threads
    2 processes, 1 thread each      under torchrun, gloo

Tokens a second are those of metrics.jsonl, without the first steps of a run. Speed-up is over one process with one
thread, efficiency that by the number of cores in use.

    a save costs        the time of a step in a run that saves after every step, less that in one that saves only at
                        its end; of which the training waited (the rest is writing that took the cores from it)
    to the first step   seconds from the command's start until the first line of metrics.jsonl is there: of a fresh run,
                        and of one that goes on after everything was killed. The difference is what resuming costs more
                        than drawing fresh weights

How: the configurations take turns, in rounds; figures are medians with their ranges. Each table says how much of the
machine other work took meanwhile.

Run (about a quarter of an hour on two quiet cores; --processes 1 leaves torchrun out):

    python benchmarks/scaling.py --json results.jsonl
    python benchmarks/scaling.py --processes 1 --rounds 1 --steps 6 --size tiny     # try it out
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from measure import Clock, Spread, append_json, note, table
from runs import Job, make_shards, metrics, saved_steps

POLL = 0.005
COLD = 2  # steps of a run whose rate is not counted


class Way(NamedTuple):
    """A number of processes, and of threads in each."""

    processes: int
    threads: int

    def __str__(self) -> str:
        each = " each" * (self.processes > 1)
        ways = f"{self.processes} process{'es' * (self.processes > 1)}"
        return f"{ways}, {self.threads} thread{'s' * (self.threads > 1)}{each}"


WAYS = [Way(1, 1), Way(1, 2), Way(2, 1)]


class Seen(NamedTuple):
    """What a round has said of a way."""

    rates: list[float]  # tokens/s of each step
    peak: int  # bytes, of one process
    slowed: list[float]  # seconds of each step that a save went with, over the median of those without
    waited: list[float]  # seconds of each save that the training stood still
    state: int  # bytes of one
    fresh: float  # seconds to the first step
    resumed: float


def first_step(job: Job, run: Path, before: list[dict[str, Any]]) -> float:
    """Seconds from a job's start until metrics.jsonl has a line that was not there ``before``."""
    while all(line in before for line in metrics(run)):
        if job.process.poll() is not None:
            job.finish()
            break
        time.sleep(POLL)
    return job.seconds()


def seconds(lines: list[dict[str, Any]], tokens: int) -> list[float]:
    """Of each step but the first, cold ones."""
    return [tokens / line["tokens_per_second"] for line in lines[COLD:]]


def one_round(way: Way, arguments: list[Any], directory: Path, steps: int, tokens: int) -> Seen:
    """A run that saves at its end, one that saves always, and one that is killed half-way and goes on."""

    def start(run: Path, save_every: int) -> Job:
        flags = ["--steps", steps, "--save-every", save_every, "-o", run]
        return Job([*arguments, *flags], way.processes, way.threads, run.with_suffix(".log"))

    rare, often, broken = (directory / name for name in ("rare", "often", "broken"))
    fresh = first_step(job := start(rare, steps), rare, [])
    job.finish()
    start(often, 1).finish()
    alone = statistics.median(seconds(metrics(rare), tokens))
    saving = metrics(often)
    job = start(broken, 1)
    while len(saved_steps(broken)) < 2 and job.process.poll() is None:
        time.sleep(POLL)
    job.kill()
    job.wait(60.0)
    resumed = first_step(job := start(broken, 1), broken, metrics(broken))
    job.finish()
    lines = metrics(rare)
    newest = rare / "state" / f"step-{saved_steps(rare)[-1]:08d}"
    seen = Seen(
        [line["tokens_per_second"] for line in lines[COLD:]], max(line["memory_bytes"] for line in lines),
        [step - alone for step in seconds(saving, tokens)], [line["save_seconds"] for line in saving[COLD:]],
        sum(file.stat().st_size for file in newest.iterdir()), fresh, resumed,
    )  # fmt: skip
    for run in (rare, often, broken):
        shutil.rmtree(run)
    return seen


def report(seen: dict[Way, list[Seen]], tokens: int, title: str, others: float, out: Path | None) -> None:
    """Both tables, and their JSON lines."""
    speed = {way: Spread.of([rate for one in rounds for rate in one.rates]) for way, rounds in seen.items()}
    rows, costs = [], []
    for way, rounds in seen.items():
        up = speed[way].median / speed[WAYS[0]].median if WAYS[0] in speed else float("nan")
        cores = way.processes * way.threads
        peak, state = max(one.peak for one in rounds), rounds[0].state
        step = tokens / speed[way].median
        slowed, waited = (
            Spread.of([one for round_ in rounds for one in getattr(round_, name)]) for name in ("slowed", "waited")
        )
        fresh, resumed = (Spread.of([getattr(one, name) for one in rounds]) for name in ("fresh", "resumed"))
        rows.append([str(way), speed[way].show(0), f"{up:.2f}", f"{up / cores:.0%}", f"{peak / 2**20:,.0f}"])
        costs.append([
            str(way), f"{step:.2f}", slowed.show(2), f"{waited.median:.2f}", f"{slowed.median / step:.0%}",
            f"{state / 1e6:,.1f}", fresh.show(1), resumed.show(1), f"{resumed.median - fresh.median:+.1f}",
        ])  # fmt: skip
        append_json(out, {
            "benchmark": "scaling", "title": title, "processes": way.processes, "threads": way.threads,
            "tokens_per_second": speed[way]._asdict(), "speed_up": up, "efficiency": up / cores, "peak_bytes": peak,
            "step_seconds": step, "save_seconds": slowed._asdict(),
            "waited_seconds": waited._asdict(), "state_bytes": state,
            "first_step_seconds": fresh._asdict(), "resumed_seconds": resumed._asdict(), "others": others,
        })  # fmt: skip
    table(title, ["", "tokens/s", "speed-up", "efficiency", "peak MiB of one"], rows, others)
    head = [
        "",
        "step, s",
        "a save costs, s",
        "it waits, s",
        "of a step",
        "state, MB",
        "to the first step, s",
        "resumed, s",
        "more, s",
    ]
    table(f"{title}: saving and resuming", head, costs, others)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="15m")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=10, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2, help="at most")
    parser.add_argument("--json", type=Path, help="append the results to this file, as JSON lines")
    asked = parser.parse_args()
    tokens = asked.batch_size * asked.context
    seen: dict[Way, list[Seen]] = {way: [] for way in WAYS if way.processes <= asked.processes}
    with tempfile.TemporaryDirectory() as temporary:
        shards = make_shards(Path(temporary), megabytes=2.0, pieces=4096)
        arguments = [
            "pretrain", "--size", asked.size, "--data", shards, "--context", asked.context, "--batch-size",
            asked.batch_size, "--precision", asked.precision, "--device", "cpu", "-q",
        ]  # fmt: skip
        clock = Clock.now()
        for number in range(asked.rounds):
            for way in seen:
                note(f"round {number + 1}/{asked.rounds}: {way}")
                seen[way].append(one_round(way, arguments, Path(temporary), asked.steps, tokens))
    title = (
        f"pretrain {asked.size}, 4,096 pieces, {asked.precision}, {asked.batch_size} x {asked.context} tokens a step"
    )
    report(seen, tokens, title, clock.others(), asked.json)


if __name__ == "__main__":
    main()
