"""Kill a training at random moments, many times: does it end with the same bits as one that was left alone?

What is done: a small model is trained undisturbed; then the same training is started again and again until its
``run.json`` is there, and meanwhile killed with SIGKILL at moments drawn from --seed: a fifth while it starts, two
fifths at any time between steps, two fifths within the writing of a state (its ``.step-XXXXXXXX.partial`` is there). Of
several processes (under torchrun) it is either one rank that dies, and the others have to leave by themselves, or
everything at once. A training that ends before enough kills were made is followed by another one of the same.

What is held against the undisturbed one, for each of them: every byte of its safetensors files and those of its last
state (weights and moments), and loss and gradient norm of every step in metrics.jsonl.

What is reported: kills by kind; those that met the writing of a state; resumes; steps lost (in metrics.jsonl, but after
the newest whole state); seconds from one rank's death until the whole job has left; jobs that did not leave within
--patience. The exit status is 0 only if no bit differs and none stayed.

kill -9 does not test a missing fsync: what was written stays in the page cache.

Run (about ten minutes for 50 kills, two processes of one thread each):

    python benchmarks/faults/kill.py --json results.jsonl
    python benchmarks/faults/kill.py --processes 1 --kills 5 --steps 12     # try it out
"""

import argparse
import hashlib
import random
import sys
import tempfile
import time
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import Spread, append_json, note
from runs import Job, is_saving, last_step, make_shards, metrics, saved_steps

MOMENTS = ("start", "step", "step", "save", "save")
POLL = 0.002
LINE = ("loss", "grad_norm", "lr")


class Pace:
    """How long things take in the run that is left alone: what the moments are drawn from."""

    def __init__(self, job: Job, run: Path) -> None:
        saving = first = last = 0.0
        while job.process.poll() is None:
            before = time.perf_counter()
            time.sleep(POLL)
            if not first and last_step(run):
                first = before
            if is_saving(run):
                saving += time.perf_counter() - before
            if not (run / "run.json").exists():
                last = before
        job.finish()
        steps = last_step(run)
        self.start = first - job.started
        self.step = (last - first) / max(1, steps - 1)
        self.save = saving / max(1, self.saves(run))

    def saves(self, run: Path) -> int:
        """How many states a whole run writes, by what the metrics and the newest states tell."""
        saved = saved_steps(run)
        every = saved[-1] - saved[-2] if len(saved) > 1 else saved[-1]
        return -(-saved[-1] // every)


class Drill:
    """One training, killed until it is done or enough kills were made."""

    def __init__(self, run: Path, arguments: list[Any], pace: Pace, dice: random.Random, asked: argparse.Namespace):
        self.run, self.arguments, self.pace, self.dice, self.asked = run, [*arguments, "-o", run], pace, dice, asked
        self.figures: Counter[str] = Counter()
        self.leaving: list[float] = []

    def go(self, kills: int) -> int:
        """How many of so many kills were made before it had ended."""
        made = 0
        while not (self.run / "run.json").exists():
            if saved_steps(self.run):
                self.figures["resumes"] += 1
            job = Job(self.arguments, self.asked.processes, self.asked.threads, self.run.with_suffix(".log"))
            if made < kills and self.strike(job):
                made += 1
            else:
                job.finish()
        return made

    def strike(self, job: Job) -> bool:
        """Kill it at a moment; whether it was there to be killed: not over, and the rank that is meant begun."""
        moment = self.dice.choice(MOMENTS)
        rank = self.dice.choice([None, self.dice.randrange(job.processes)]) if job.processes > 1 else None
        if not self.await_moment(job, moment) or job.process.poll() is not None or (self.run / "run.json").exists():
            return False
        reached, while_saving = last_step(self.run), is_saving(self.run)
        if not job.kill(rank):
            return False
        left = job.wait(self.asked.patience)
        kept = max(saved_steps(self.run), default=0)
        lost = max(0, reached - kept)
        self.figures.update(
            {"kills": 1, f"at {moment}": 1, "of one rank" if rank is not None else "of the whole job": 1,
             "while a state was written": while_saving, "partial states left": is_saving(self.run), "steps lost": lost}
        )  # fmt: skip
        if left is None:
            self.figures["stayed"] += 1
        elif rank is not None:
            self.leaving.append(left)
        whom = ("everything" if rank is None else f"rank {rank}") + " while it saved" * while_saving
        stay = f"gone after {left:.1f} s" if left is not None else "STILL THERE, killed"
        note(f"{self.run.name}: {moment}: {whom} killed after step {reached}, state {kept}: {stay}")
        return True

    def await_moment(self, job: Job, moment: str) -> bool:
        """Whether it has come before the job ended."""
        begin = last_step(self.run)
        if moment == "start":
            time.sleep(self.dice.uniform(0.0, 1.2 * self.pace.start))
            return True
        while not (is_saving(self.run) if moment == "save" else last_step(self.run) != begin):
            if job.process.poll() is not None:
                return False
            time.sleep(POLL)
        span = self.pace.save if moment == "save" else 2 * self.asked.save_every * self.pace.step
        time.sleep(self.dice.uniform(0.0, span))
        return True


def differences(run: Path, reference: Path) -> list[str]:
    """What of a run is not as in the undisturbed one."""
    found = []
    names = sorted({file.relative_to(place) for place in (run, reference) for file in place.rglob("*.safetensors")})
    newest = f"step-{saved_steps(reference)[-1]:08d}"
    for name in names:
        if name.parent.name in ("", newest):
            digests = [
                hashlib.sha256((place / name).read_bytes()).digest() if (place / name).exists() else None
                for place in (run, reference)
            ]
            if digests[0] != digests[1]:
                found.append(str(name))
    ours, theirs = ([[line["step"], *(line[k] for k in LINE)] for line in metrics(place)] for place in (run, reference))
    if ours != theirs:
        found.append(f"metrics.jsonl ({sum(a != b for a, b in zip_longest(ours, theirs))} of {len(theirs)} lines)")
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save-every", type=int, default=4)
    parser.add_argument("--patience", type=float, default=120.0, help="seconds that a job may take to leave")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--directory", type=Path, help="a new one, which stays; default: a temporary one")
    parser.add_argument("--json", type=Path, help="append the results to this file, as JSON lines")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = asked.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=not asked.directory)
        sys.exit(drills(directory, asked))


def drills(directory: Path, asked: argparse.Namespace) -> int:
    """The undisturbed run, then disturbed ones until enough kills were made; the exit status."""
    shards = make_shards(directory, megabytes=1.0, pieces=1024)
    arguments = [
        "pretrain", "--size", "tiny", "--data", shards, "--steps", asked.steps, "--save-every", asked.save_every,
        "--batch-size", 8, "--context", 128, "--precision", asked.precision, "--device", "cpu", "-q",
    ]  # fmt: skip
    reference, dice = directory / "undisturbed", random.Random(asked.seed)
    note("undisturbed")
    job = Job([*arguments, "-o", reference], asked.processes, asked.threads, reference.with_suffix(".log"))
    pace = Pace(job, reference)
    note(f"{pace.start:.1f} s to the first step, {pace.step:.3f} s a step, {pace.save:.3f} s a state")
    figures: Counter[str] = Counter()
    leaving: list[float] = []
    wrong: dict[str, list[str]] = {}
    while figures["kills"] < asked.kills:
        drill = Drill(directory / f"disturbed-{figures['runs'] + 1}", arguments, pace, dice, asked)
        drill.go(asked.kills - figures["kills"])
        figures += drill.figures
        figures["runs"] += 1
        leaving += drill.leaving
        if found := differences(drill.run, reference):
            wrong[drill.run.name] = found
    report(figures, leaving, wrong, asked)
    return 1 if wrong or figures["stayed"] else 0


def report(figures: Counter[str], leaving: list[float], wrong: dict[str, list[str]], asked: argparse.Namespace) -> None:
    """The figures."""
    print(f"\n{asked.processes} processes, {asked.steps} steps, a state every {asked.save_every}, {asked.precision}\n")
    order = ["kills", "of one rank", "of the whole job", "at start", "at step", "at save", "while a state was written",
             "partial states left", "runs", "resumes", "steps lost", "stayed"]  # fmt: skip
    for name in order:
        print(f"| {name:28} | {figures[name]:6} |")
    if leaving:
        print(f"\nSeconds until all had left after one rank's death: {Spread.of(leaving).show(1)}")
    for run, found in wrong.items():
        print(f"DIFFERENT: {run}: {', '.join(found)}")
    if not wrong:
        print(f"\nAll {figures['runs']} disturbed runs ended with the bits of the undisturbed one.")
    facts = {"benchmark": "kill", "processes": asked.processes, "steps": asked.steps, "precision": asked.precision}
    append_json(asked.json, {**facts, **figures, "seconds_to_leave": leaving, "different": wrong})


if __name__ == "__main__":
    main()
