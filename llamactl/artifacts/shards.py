"""Token shards: a corpus as ids in safetensors files, written once and mapped many times.

A directory of ``shard-00000.safetensors`` ... with ``tokens`` (uint16, or uint32 above 65,536 ids) and ``starts``
(int64, the first token of each document), a copy of ``tokenizer.model``, and ``run.json``. Each document is BOS, its
text, EOS. Parts of a job array write into one directory: part i of n owns the shards whose number is i modulo n and
leaves ``part-i-of-n.json`` when it is whole; the part that finds all others there writes ``run.json``.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llamactl.artifacts import files, manifest, tensors
from llamactl.artifacts.records import Shard
from llamactl.artifacts.run import Run
from llamactl.errors import Fault

TOKENS_PER_SHARD = 1 << 26  # 128 MiB of uint16: what a writer holds in memory

_NAME = re.compile(r"shard-(\d{5,})\.safetensors")


class Writer:
    """Documents in, shard files out; holds one shard in memory."""

    def __init__(self, directory: Path, dtype: np.dtype[Any], part: Shard, limit: int = TOKENS_PER_SHARD) -> None:
        self.directory, self.part, self.limit = directory, part, limit
        self.outputs: list[dict[str, Any]] = []
        self.documents = self.tokens = 0
        self._buffer, self._used = np.empty(limit, dtype=dtype), 0
        self._starts: list[np.ndarray[Any, Any]] = []

    def add(self, ids: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> None:
        """Append documents: their ids one after the other, and the length of each."""
        starts = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        if self._used + len(ids) <= self.limit:
            self._append(ids, starts[:-1])
            return
        for start, end in pairwise(starts):
            if self._used and self._used + (end - start) > self.limit:
                self._flush()
            if end - start > self.limit:  # one document longer than a shard has a shard of its own
                self._write(ids[start:end], np.zeros(1, np.int64))
            else:
                self._append(ids[start:end], np.zeros(1, np.int64))

    def _append(self, ids: np.ndarray[Any, Any], starts: np.ndarray[Any, Any]) -> None:
        self._starts.append(starts + self._used)
        self._buffer[self._used : self._used + len(ids)] = ids
        self._used += len(ids)

    def _flush(self) -> None:
        self._write(self._buffer[: self._used], np.concatenate(self._starts))
        self._used, self._starts = 0, []

    def _write(self, ids: np.ndarray[Any, Any], starts: np.ndarray[Any, Any]) -> None:
        number = len(self.outputs) * self.part.count + self.part.index
        name = f"shard-{number:05d}.safetensors"
        written = tensors.write(self.directory / name, {"tokens": ids, "starts": starts})
        self.outputs.append({**files.entry(self.directory / name, "shard", written), "tokens": len(ids)})
        self.tokens += len(ids)
        self.documents += len(starts)

    def close(self) -> list[dict[str, Any]]:
        """Write what is left; the manifest's entries of all shards."""
        if self._used:
            self._flush()
        return self.outputs


def part_name(part: Shard) -> str:
    """The file that says a part is whole."""
    return f"part-{part.index:05d}-of-{part.count:05d}.json"


def parts(directory: Path) -> list[dict[str, Any]]:
    """The manifests of the parts that are there, in order; one that is taken back as we look is not."""
    there = []
    for path in sorted(directory.glob("part-*-of-*.json")):
        try:
            there.append(manifest.load(path))
        except Fault:
            if path.exists():  # it is damaged, or was made anew meanwhile
                there.append(manifest.load(path))
    return there


def missing(directory: Path) -> list[Shard]:
    """The parts of a job array that have not been written yet; empty where all are there, or it is no array."""
    there = parts(directory)
    counts = sorted({part["part"]["count"] for part in there})
    if len(counts) > 1:
        raise Fault(directory, f"holds parts of arrays of {counts} parts", "write each array to a directory of its own")
    done = {part["part"]["index"] for part in there}
    return [Shard(i, count) for count in counts for i in range(count) if i not in done]


def check_siblings(directory: Path, part: Shard, run: Run, overwrite: bool) -> None:
    """Raise Fault where ``directory`` is no place for this part: whole already, or of an array made otherwise.

    An array may be made anew part by part (``overwrite``); its size stays. What a part is made of that comes through a
    pipe is known when it has: then it is to be asked again.
    """
    if not directory.is_dir():
        return
    there = parts(directory)
    if not there and (directory / manifest.FILE).exists():
        raise Fault(directory, "is whole, and was not made in parts", "name another directory with -o")
    known = all(one["sha256"] for one in run.inputs)
    for other in there:
        difference = run.difference(other, but=("shard",)) if known and not overwrite else ""
        if other["part"]["count"] != part.count:
            difference = f"in {other['part']['count']} parts"
        if difference:
            raise Fault(
                directory, f"its other parts were made otherwise ({difference})", "name another directory with -o"
            )


def complete(directory: Path) -> bool:
    """Write ``run.json`` of the whole array if all its parts are there and alike; whether they are.

    Every part leaves its mark before it looks, so whichever comes last sees all; two that see all write the same, so
    one leaves it to the other.
    """
    there = parts(directory)
    if {part["part"]["count"] for part in there} != {len(there)} or not _alike(there):
        return False
    path, whole = directory / manifest.FILE, manifest.dumps(manifest.merged(there))
    if not path.exists() or path.read_bytes() != whole:
        with suppress(Fault), files.whole_file(path) as file:
            file.write(whole)
    return True


def _alike(there: list[dict[str, Any]]) -> bool:
    """Whether parts were made with the same settings and from the same inputs."""
    made = [{**part["settings"], "shard": "", "inputs": [i["sha256"] for i in part["inputs"]]} for part in there]
    return all(one == made[0] for one in made)


class Shards:
    """The tokens of a complete shards directory as one array, memory-mapped.

    Raises Fault where parts are missing or a file is damaged.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            problem = "is no shards directory" if path.exists() else "no such directory"
            raise Fault(path, problem, "make one with llamactl tokenize")
        if not (path / manifest.FILE).exists():
            if gaps := missing(path):
                listed = ", ".join(map(str, gaps[:8])) + (" ..." if len(gaps) > 8 else "")
                remedy = f"run llamactl tokenize --shard {gaps[0]} for it"
                raise Fault(path, f"{len(gaps)} of {gaps[0].count} parts are missing: {listed}", remedy)
            if parts(path):
                problem = "its parts were made with different settings or from different inputs"
                raise Fault(path, problem, "make them again with --overwrite")
            raise Fault(path, "is no shards directory (it has no run.json)", "make one with llamactl tokenize")
        self.path = path
        self.manifest = manifest.load(path / manifest.FILE)
        names = sorted(out["path"] for out in self.manifest["outputs"] if _NAME.fullmatch(out["path"]))
        if not names:
            raise Fault(path, "holds no shards", "make it with llamactl tokenize")
        opened = {name: tensors.opened(path / name, "np") for name in names}
        if bare := [name for name, file in opened.items() if "tokens" not in file.keys()]:  # noqa: SIM118
            raise Fault(path / bare[0], "holds no tokens", "copy it again, or make the artifact again")
        self._slices = [file.get_slice("tokens") for file in opened.values()]
        lengths = [piece.get_shape()[0] for piece in self._slices]
        self._ends = np.cumsum(lengths, dtype=np.int64)
        self.tokens = int(self._ends[-1])

    def read(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Tokens ``start`` to ``stop`` of all shards in a row."""
        pieces = list(self._pieces(start, stop))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _pieces(self, start: int, stop: int) -> Iterator[np.ndarray[Any, Any]]:
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            first = int(self._ends[shard - 1]) if shard else 0
            end = min(stop, int(self._ends[shard]))
            yield self._slices[shard][start - first : end - first]
            start, shard = end, shard + 1
