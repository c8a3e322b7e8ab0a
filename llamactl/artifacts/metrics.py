"""``metrics.jsonl`` of a training: what can be plotted. And other files that have lines of steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from llamactl import ui
from llamactl.artifacts import files

FILE = "metrics.jsonl"


class Metrics:
    """One object a logged step, in order, also across interruptions."""

    def __init__(self, directory: Path, step: int, last: int, every: int = 1, name: str = FILE) -> None:
        """Open it to go on after ``step``: what an interrupted attempt has written beyond it is taken out.

        A line is written ``every`` so many steps, and of the ``last``. Of many processes the first one writes.
        """
        self.path, self._last, self._every = directory / name, last, every
        if not ui.first_rank():
            return
        kept = []
        if self.path.exists():
            for line in self.path.read_bytes().split(b"\n"):
                try:
                    if orjson.loads(line)["step"] <= step:
                        kept.append(line + b"\n")
                except (orjson.JSONDecodeError, KeyError):
                    continue  # the last line of a run that was killed while it wrote
        elif step > 0:
            ui.warn(f"{self.path}: is gone, and with it what was logged up to step {step:,}")
        with files.whole_file(self.path) as file:
            file.writelines(kept)
        self._file = self.path.open("ab", buffering=0)

    def column(self, name: str) -> list[tuple[int, float]]:
        """Step and value of all lines that have a value of this name; nothing but on the first process."""
        lines = [] if not ui.first_rank() else map(orjson.loads, self.path.read_bytes().splitlines())
        return [(line["step"], line[name]) for line in lines if name in line]

    def log(self, values: Mapping[str, Any], due: bool = False) -> None:
        """Append one line, if its step is ``due``, or of those that are logged."""
        step = values["step"]
        if ui.first_rank() and (due or step == self._last or step % self._every == 0):
            self._file.write(orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE))

    def amend(self, values: Mapping[str, Any]) -> None:
        """Add values to the newest line if it is of their step; else they have a line of their own."""
        if not ui.first_rank():
            return
        *lines, newest = [b"", *self.path.read_bytes().splitlines(keepends=True)]
        if not newest or orjson.loads(newest)["step"] != values["step"]:
            self.log(values, due=True)
            return
        self._file.close()
        with files.whole_file(self.path) as file:
            file.writelines(lines)
            file.write(orjson.dumps(orjson.loads(newest) | values, option=orjson.OPT_APPEND_NEWLINE))
        self._file = self.path.open("ab", buffering=0)

    def close(self) -> dict[str, Any]:
        """Sync it; its entry for the manifest."""
        if not ui.first_rank():
            return {}
        self._file.close()
        files.sync(self.path)
        return files.entry(self.path, self.path.stem)
