"""What both benchmarks share: the environments of the peers, medians, tables, JSON lines, memory of a process tree."""

import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ENVS = HERE / ".envs"


def python_of(environment: str | None) -> str:
    """The interpreter of a peer's environment, which ``run.sh`` makes; None is the one that runs this."""
    if environment is None:
        return sys.executable
    python = ENVS / environment / "bin" / "python"
    if not python.exists():
        sys.exit(f"{python} is missing: benchmarks/run.sh makes the environments of the peers")
    return str(python)


class Spread(NamedTuple):
    """A median, and between what it lies."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def show(self, digits: int = 1) -> str:
        """``median (low..high)``."""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}..{self.high:,.{digits}f})"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout: the first column to the left, numbers to the right. It is also Markdown."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    print(f"\n{title}\n")
    for number, line in enumerate(lines):
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        print("| " + " | ".join(cells) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths)) + "|")
    sys.stdout.flush()


def note(text: str) -> None:
    """A line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def append_json(path: Path | None, record: dict[str, Any]) -> None:
    """One more JSON line, where ``--json`` was given."""
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
