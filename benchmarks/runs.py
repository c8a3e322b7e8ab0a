"""Texts of the standard library as benchmarks train on them, and a training as a job of one process or of several.

A job is everything that one command has started. Its processes are known by a mark in their environment, since torchrun
gives each worker a session of its own, and orphans it when it is killed itself.
"""

import ast
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARK = "LLAMACTL_BENCHMARK_JOB"
LLAMACTL = [sys.executable, "-m", "llamactl"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]


def make_shards(directory: Path, megabytes: float, pieces: int) -> Path:
    """Sources of the standard library as token shards, in ``directory``; made once."""
    shards = directory / "shards"
    if not shards.exists():
        corpus, tokenizer = make_tokenizer(directory, megabytes, pieces)
        tokenize = ["tokenize", corpus, "--tokenizer", tokenizer, "-o", shards, "-q"]
        subprocess.run([*LLAMACTL, *map(str, tokenize)], check=True, stdout=subprocess.DEVNULL)
    return shards


def make_tokenizer(directory: Path, megabytes: float, pieces: int) -> tuple[Path, Path]:
    """Sources of the standard library as documents, and a tokenizer that has learned from them."""
    corpus, tokenizer = directory / "corpus.jsonl", directory / "tokenizer.model"
    with corpus.open("w") as file:
        for number, text in enumerate(sources(megabytes * 1e6)):
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")
    train = ["train-tokenizer", corpus, "-o", tokenizer, "--vocab-size", pieces, "-q"]
    subprocess.run([*LLAMACTL, *map(str, train)], check=True, stdout=subprocess.DEVNULL)
    return corpus, tokenizer


def sources(left: float) -> Iterator[str]:
    """Texts of the standard library, up to so many bytes."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(errors="replace")
        left -= len(text)
        if left < 0:
            return
        yield text


def documented() -> Iterator[tuple[str, str, str]]:
    """Functions and classes of the standard library: name, docstring, source."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(errors="replace")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            kinds = ast.ClassDef | ast.FunctionDef
            if isinstance(node, kinds) and (docstring := ast.get_docstring(node)) and docstring.strip():
                source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                yield f"{node.name} of the module {path.stem}", docstring, source


class Job:
    """A ``llamactl`` command on one process, or under torchrun on several."""

    def __init__(self, arguments: list[Any], processes: int, threads: int, log: Path) -> None:
        self.mark = uuid.uuid4().hex
        launcher = [*TORCHRUN, "--nproc-per-node", str(processes)] if processes > 1 else []
        env = {**os.environ, MARK: self.mark, "OMP_NUM_THREADS": str(threads)}
        self.started = time.perf_counter()
        with log.open("wb") as file:
            command = [*launcher, *LLAMACTL, *map(str, arguments)]
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=env, start_new_session=True)
        self.processes, self.log = processes, log

    def seconds(self) -> float:
        """Since its start."""
        return time.perf_counter() - self.started

    def alive(self) -> dict[int, int | None]:
        """Its processes, the launcher too, and the rank of each."""
        found: dict[int, int | None] = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                environ = dict(pair.partition(b"=")[::2] for pair in (place / "environ").read_bytes().split(b"\0"))
                gone = (place / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:  # it has ended meanwhile
                continue
            if environ.get(MARK.encode()) == self.mark.encode() and not gone:
                rank = environ.get(b"RANK", b"" if self.processes > 1 else b"0")
                found[int(place.name)] = int(rank) if rank else None
        return found

    def kill(self, rank: int | None = None) -> int:
        """SIGKILL one rank, or, where none is named, everything; how many processes were there to be hit."""
        hit = 0
        for pid, its_rank in self.alive().items():
            if rank is None or rank == its_rank:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                hit += 1
        return hit

    def wait(self, patience: float) -> float | None:
        """Seconds until all of it is gone; None, and everything killed, where it takes longer than ``patience``."""
        start = time.perf_counter()
        while time.perf_counter() - start < patience:
            if self.process.poll() is not None and not self.alive():
                return time.perf_counter() - start
            time.sleep(0.02)
        while self.alive():
            self.kill()
            time.sleep(0.1)
        self.process.wait()
        return None

    def finish(self) -> None:
        """Wait for its good end, or end with what it said."""
        if self.process.wait() != 0:
            sys.exit(f"failed with status {self.process.returncode}:\n{self.log.read_text(errors='replace')[-3000:]}")


def metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a training's metrics.jsonl."""
    try:
        text = (run / "metrics.jsonl").read_bytes()
    except FileNotFoundError:
        return []
    lines = text.split(b"\n")[:-1]
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # cut off by a kill
            continue
    return found


def last_step(run: Path) -> int:
    """The newest step that metrics.jsonl has, 0 where it has none."""
    return max((line["step"] for line in metrics(run)[-1:]), default=0)


def saved_steps(run: Path) -> list[int]:
    """The steps whose states are there."""
    return sorted(int(place.name.removeprefix("step-")) for place in (run / "state").glob("step-*"))


def is_saving(run: Path) -> bool:
    """Whether a state is being written (or was, when its writer died)."""
    return any((run / "state").glob(".step-*.partial"))
