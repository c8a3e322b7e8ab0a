"""What a figure is asked to be made from; what all readers of files share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llamactl.artifacts import jsonl, manifest, metrics
from llamactl.artifacts.records import Shard
from llamactl.artifacts.run import Run
from llamactl.errors import Fault


class Asked(NamedTuple):
    """Files, in the order in which they were given; labels; the run, which counts what is left out; a seed."""

    paths: list[str]
    labels: list[str]
    run: Run
    seed: int

    def refusing(self, remedy: str) -> jsonl.Refuse:
        """How records that cannot be used are refused, with the stage that writes such as can be."""

        def refuse(fault: Fault) -> None:
            self.run.refuse(Fault(fault.subject, fault.problem, remedy))

        return refuse


def objects(path: str, remedy: str) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, and where each stands; raises Fault.

    A last line that is cut short is passed over: its program was killed, or is still writing.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    broken: Fault | None = None
    for line in _lines(path):
        if broken:
            raise broken
        try:
            raw = jsonl.parsed(line)
        except Fault as fault:
            broken = Fault(fault.subject, fault.problem, remedy)
            continue
        if not isinstance(raw, dict):
            raise Fault(line.where, "is no object", remedy)
        found.append((line.where, raw))
    if not found:
        raise broken or Fault(path, "holds no line", remedy)
    return found


def _lines(path: str) -> Iterator[jsonl.Line]:
    for block in jsonl.blocks([path]):
        for line in jsonl.lines(block, Shard()):
            if isinstance(line, Fault):
                raise line
            yield line


def place(path: str) -> str:
    """What a path is told by: a training's metrics by its directory."""
    return str(Path(path).absolute().parent) if Path(path).name == metrics.FILE else path


def source(path: str) -> Path:
    """What a manifest names: a training under way, whose directory tells nothing yet, by its metrics."""
    log = Path(path) / metrics.FILE
    return log if log.exists() and not (Path(path) / manifest.FILE).exists() else Path(path)
