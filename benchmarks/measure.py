"""What the benchmarks share: peers' interpreters and sources, medians, memory, tables, JSON lines, how quiet it was."""

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ENVS = Path(__file__).resolve().parent / ".envs"
QUIET = 0.05  # share of the machine's CPU time that others may take before a result is doubtful


def python_of(environment: str | None) -> str:
    """The interpreter of a peer's environment, which ``run.sh`` makes; None is the one that runs this."""
    if environment is None:
        return sys.executable
    python = ENVS / environment / "bin" / "python"
    if not python.exists():
        sys.exit(f"{python} is missing: benchmarks/run.sh makes the environments of the peers")
    return str(python)


def source_of(peer: str) -> Path:
    """The sources of a peer that is no package, which ``run.sh`` fetches."""
    folder = ENVS / "sources" / peer
    if not folder.is_dir():
        sys.exit(f"{folder} is missing: benchmarks/run.sh fetches the sources of the peers")
    return folder


def memory(what: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the peak (getrusage's begins with what the parent process took)."""
    return int(Path("/proc/self/status").read_text().partition(f"{what}:")[2].split()[0]) * 1024


class Spread(NamedTuple):
    """A median, and between what it lies."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def show(self, digits: int = 1, unit: float = 1.0) -> str:
        """``median (low..high)``."""
        median, low, high = (f"{value / unit:,.{digits}f}" for value in self)
        return f"{median} ({low}..{high})"


class Clock(NamedTuple):
    """A moment: the wall's time, the CPU time of the whole machine (NaN where it does not tell) and that of ours."""

    wall: float
    all: float
    ours: float

    @classmethod
    def now(cls) -> "Clock":
        """Ours are this process and its children that have ended."""
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        ours = sum(one.ru_utime + one.ru_stime for one in used)
        try:
            numbers = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
        except OSError:
            return cls(time.perf_counter(), float("nan"), ours)
        idle = numbers[3] + numbers[4]
        return cls(time.perf_counter(), (sum(numbers) - idle) / os.sysconf("SC_CLK_TCK"), ours)

    def others(self) -> float:
        """The share of the machine's CPU time since then that other work has taken."""
        end = Clock.now()
        spent = (end.all - self.all) - (end.ours - self.ours)
        return max(0.0, spent / ((end.wall - self.wall) * (os.cpu_count() or 1)))


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], others: float) -> None:
    """A table on stdout, which is also Markdown, and how far it can be trusted."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    print(f"\n{title}\n")
    for first, *rest in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        print(f"| {' | '.join(cells)} |")
    doubt = " NOT QUIET: measure again." if others > QUIET else ""
    print(f"\nOther work took {others:.1%} of the machine's CPU time meanwhile.{doubt}", flush=True)


def count_of_threads(number: int) -> str:
    """In words."""
    return f"{number} thread{'s' * (number > 1)}"


def note(text: str) -> None:
    """A line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def append_json(path: Path | None, record: dict[str, Any]) -> None:
    """One more JSON line, where ``--json`` was given."""
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
