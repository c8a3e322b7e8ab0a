"""Everything a person sees while a stage works. It goes to stderr, and only rank 0 speaks.

Where stderr is a terminal, long work shows a bar; where it is not, a ``key=value`` line every 30 seconds. ``--quiet``
silences both, but never a count of what was skipped nor an error.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY = 30.0  # seconds between lines where stderr is not a terminal
SHOW_EVERY = 0.1  # seconds between changes of a bar: to write it out anew takes longer than some records
UNFOLDED = 10_000  # columns of what a program reads, which looks for names in whole
LABEL = 48  # characters of a label that are shown: beside more of them there would be no room for a bar

_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}  # of C0
_SIGNS |= dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)  # DEL and C1

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence progress and notes for the rest of the process."""
    global _quiet
    _quiet = quiet


def first_rank() -> bool:
    """Whether this process is the one that speaks (torchrun numbers them in RANK)."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """Processes of this job, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def machines() -> int:
    """Machines of this job, as torchrun says."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def warn(text: str) -> None:
    """One line that even ``--quiet`` does not silence: something was skipped, refused or lost."""
    if first_rank():
        print(text, file=sys.stderr, flush=True)


def alarm(text: str) -> None:
    """One line that any process may say, by its rank."""
    print(speaker() + text, file=sys.stderr, flush=True)


def speaker() -> str:
    """Who speaks, where there are many processes: ``rank 3: ``."""
    return f"rank {os.environ.get('RANK')}: " if world_size() > 1 else ""


def note(text: str) -> None:
    """One line of what is going on."""
    if not _quiet:
        warn(text)


def dim(text: str) -> str:
    """A line that stands back behind a conversation, where stderr is a terminal that can show it."""
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[2m{text}\x1b[0m"


def harmless(text: str) -> str:
    """A text for a terminal: control characters, which it would obey, become signs for them."""
    return text.translate(_SIGNS)


def table(title: str, rows: Iterable[Sequence[object]], header: Sequence[str] = (), asked: bool = False) -> None:
    """A small table on stderr; the first column is left-aligned, the others right-aligned unless they hold words.

    One that was ``asked`` for, and is all of a command's output, goes to stdout, however quiet; with a header it is as
    wide as it is, also where the terminal is narrower.
    """
    if (_quiet and not asked) or not first_rank():
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, show_header=bool(header), pad_edge=False, show_edge=False)
    cells = [[harmless(str(cell)) for cell in row] for row in rows]
    for column in range(max((len(row) for row in cells), default=0)):
        numeric = all(row[column][:1].isdigit() or row[column][:1] in "-−≥" for row in cells if column < len(row))
        grid.add_column(
            header[column] if column < len(header) else "",
            justify="right" if column and numeric else "left",
            overflow="fold",
        )
    for row in cells:
        grid.add_row(*row)
    console = Console(stderr=not asked, soft_wrap=False, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = UNFOLDED
    elif asked and header:
        console.width = 200
    with console.capture() as shown:
        console.print(harmless(title))
        console.print(grid)
    print("\n".join(line.rstrip() for line in shown.get().splitlines()), file=console.file, flush=True)


def count(n: float) -> str:
    """A number a person can read: 1,234 · 12.3 M · 2.0 T."""
    for bound, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(n) >= bound:
            return f"{n / bound:.1f} {unit}"
    return f"{n:,.0f}" if n == int(n) or abs(n) >= 100 else f"{n:.3g}"


def size(n: float) -> str:
    """Bytes a person can read, in binary units."""
    for bound, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n >= bound:
            return f"{n / bound:.1f} {unit}"
    return f"{n:.0f} B"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03, or 4.2 s when short."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _within(text: str, most: int) -> str:
    """A text of at most so many characters: its beginning and its end."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most - most // 2 - 1) :]}"


class Working:
    """Progress of one long piece of work: ``with Working("tokenize", total=n, unit="B") as bar: bar.advance(k)``.

    ``total`` may be None where the length of the input is not known. ``facts`` are shown beside the bar.
    """

    def __init__(self, label: str, total: float | None, unit: str = "", start: float = 0) -> None:
        self.label, self.total, self.unit, self.done = _within(harmless(label), LABEL), total, unit, start
        self._began, self._first, self._spoke = time.monotonic(), start, time.monotonic()
        self._facts: dict[str, Any] = {}
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if not _quiet and first_rank() and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[done]}", markup=False),
                TextColumn("{task.fields[facts]}", markup=False),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                refresh_per_second=4,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, completed=int(self.done), done="", facts="")
        return self

    def advance(self, n: float = 1, **facts: object) -> None:
        """Count ``n`` more as done; ``facts`` replace the ones shown, numbers as ``count`` writes them."""
        self.done += n
        self._facts.update(facts)
        now = time.monotonic()
        if self._bar is not None and now - self._spoke >= SHOW_EVERY:
            self._spoke = now
            self._show()
        elif self._bar is None and not _quiet and now - self._spoke >= LINE_EVERY:
            self._spoke = now
            self._line()

    def _show(self) -> None:
        if self._bar is not None and self._task is not None:
            shown = "  ".join(f"{k} {v}" for k, v in self._written())
            self._bar.update(self._task, completed=self.done, done=self._progress(), facts=shown)

    def _progress(self) -> str:
        shown = size if self.unit == "B" else count
        return shown(self.done) + (f"/{shown(self.total)}" if self.total is not None else "")

    def _written(self) -> Iterator[tuple[str, str]]:
        for name, value in self._facts.items():
            yield name, count(value) if isinstance(value, int) else str(value)

    def _line(self) -> None:
        pairs = {f"{self.unit or 'done'}": self._progress().replace(" ", "")}
        pairs |= {name: value.replace(" ", "") for name, value in self._written()}
        spent = time.monotonic() - self._began
        if self.total and self.done > self._first:
            left = spent * (self.total - self.done) / (self.done - self._first)
            pairs["left"] = duration(left).replace(" ", "")
        warn(f"{self.label} " + " ".join(f"{k.replace(' ', '_')}={v}" for k, v in pairs.items()))

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._show()
            self._bar.stop()
