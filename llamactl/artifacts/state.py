"""Training state: what it takes to go on as if nothing had happened (engine notes, "Training state").

``state/step-00000012/`` holds a safetensors file of each process's part of the tensors and ``manifest.json``: the facts
(step, data position, counters, what was asked for), each tensor's shape and where its chunks lie, and each file's size
and SHA-256, under a digest of its own. So any number of processes can read what any other number has written. A state
appears by renaming a finished, synced directory; older ones are pruned after that. No pickle.

Writing overlaps with training: each process's ``Saver`` writes its file on a thread, and when all have, which the
training loop agrees on at the end of a step, the first process gives the state its name.
"""

import atexit
import math
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import orjson

from llamactl import ui
from llamactl.artifacts import files, manifest, tensors
from llamactl.errors import Fault

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
FORMAT = 3


class Piece(NamedTuple):
    """The part of a tensor that a process holds: its elements, where they begin, and the shape of the whole."""

    elements: "torch.Tensor | tensors.Later"
    offset: tuple[int, ...]
    whole: tuple[int, ...]

    def on_host(self) -> Self:
        """With its elements in the memory of a CPU."""
        return self if isinstance(self.elements, tensors.Later) else self._replace(elements=self.elements.cpu())


class Saver:
    """Writes states of one run, in the background; process ``rank`` of those that write together."""

    def __init__(self, directory: Path, rank: int, keep: int) -> None:
        self.directory, self.rank, self.keep = directory, rank, keep
        self._place: Path | None = None  # the state that is being written
        self._facts: Mapping[str, Any] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._leaving, self._ended = threading.Event(), threading.Event()

    @property
    def busy(self) -> bool:
        """Whether a state is being written, or waits for ``commit``."""
        return self._place is not None

    def begin(self, step: int, pieces: Mapping[str, Piece], facts: Mapping[str, Any]) -> None:
        """Begin to write ``directory/step-...``. Tensors of a GPU are copied first.

        Those of a CPU are not, nor is what is made later: all must stay as it is until ``wait`` has returned.
        """
        assert not self.busy
        self._place, self._facts = self.directory / f"step-{step:08d}", {**facts, "step": step}
        files.partial(self._place).mkdir(parents=True, exist_ok=True)
        self._ended.clear()
        held = {name: piece.on_host() for name, piece in pieces.items()}
        self._thread = threading.Thread(target=self._write, args=(files.partial(self._place), held), daemon=True)
        self._thread.start()
        atexit.register(self._leave)

    def _leave(self) -> None:
        """End the writing as the process ends in its midst: a thread in torch's code would have Python abort.

        A Ctrl-C in ``wait`` has Python take the thread for one that has ended, so that it cannot be joined.
        """
        self._leaving.set()
        self._ended.wait()

    def _go_on(self) -> None:
        if self._leaving.is_set():
            raise SystemExit

    def _write(self, partial: Path, pieces: Mapping[str, Piece]) -> None:
        name = f"rank-{self.rank:05d}"
        try:
            held = {key: piece.elements for key, piece in pieces.items()}
            written = tensors.write(partial / f"{name}.safetensors", held, before_each=self._go_on)
            chunks = {
                key: {"whole": piece.whole, "offset": piece.offset, "shape": list(piece.elements.shape)}
                for key, piece in pieces.items()
            }
            entry = files.entry(partial / f"{name}.safetensors", "state", written)
            (partial / f"{name}.json").write_bytes(orjson.dumps({"file": entry, "chunks": chunks}))
            files.sync(partial / f"{name}.json")
        except BaseException as error:  # told to the training by written() and wait()
            if isinstance(error, OSError):
                error.filename = error.filename or str(partial)
            with suppress(OSError):  # gives the room back; the directory is for other processes, too
                for own in partial.glob(f"{name}.*"):
                    own.unlink()
            self._error = error
        finally:
            self._ended.set()

    def written(self) -> bool:
        """Whether this process has nothing left to write; raises what went wrong."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self.wait()
        return True

    def wait(self) -> None:
        """Until this process has written its part; raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            atexit.unregister(self._leave)
        if self._error is not None:
            raise self._error

    def commit(self) -> None:
        """Give the state its name, after all processes have written; then prune all but the newest ``keep``.

        States of later steps are pruned too: a run that stands at this one has found them damaged.
        """
        assert self._place is not None
        if self.rank == 0:
            partial = files.partial(self._place)
            reports = sorted(partial.glob("rank-*.json"))
            written = [orjson.loads(report.read_bytes()) for report in reports]
            listed: dict[str, dict[str, Any]] = {}
            for part in written:
                for name, chunk in part["chunks"].items():
                    tensor = listed.setdefault(name, {"shape": chunk["whole"], "chunks": []})
                    place = {"file": part["file"]["path"], "offset": chunk["offset"], "shape": chunk["shape"]}
                    tensor["chunks"].append(place)
            entries = [part["file"] for part in written]
            facts = {"format": FORMAT, **self._facts, "files": entries, "tensors": listed}
            (partial / MANIFEST).write_bytes(manifest.dumps(facts))
            for report in reports:
                report.unlink()
            files.settle(partial, self._place)
            states = _newest_first(self.directory)
            older = [one for one in states if one <= self._place]
            for other in [one for one in states if one > self._place] + older[self.keep :]:
                shutil.rmtree(other)
        self._place = None


class State:
    """One moment of a training, as it was saved."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.facts = manifest.load_signed(place / MANIFEST)
        if self.facts.get("format") != FORMAT:
            raise Fault(place, "is a state of another version of llamactl", "go on with that version")
        self._opened: dict[str, Any] = {}

    def check(self, part: int, parts: int) -> None:
        """Hold every ``parts``-th file, from the ``part``-th on, against the manifest; raises Fault by its name."""
        for number, file in enumerate(self.facts["files"]):
            path = self.place / file["path"]
            if not path.is_file():
                raise Fault(path, "is missing")
            if number % parts == part and files.stamp(path) != (file["size"], file["sha256"]):
                raise Fault(path, f"its bytes differ from what {MANIFEST} says")

    def read(self, name: str, offset: tuple[int, ...], into: "torch.Tensor") -> None:
        """Fill ``into`` with the part of tensor ``name`` that begins at ``offset``, wherever its chunks lie.

        Raises Fault where the state does not have all of it.
        """
        if name not in self.facts["tensors"]:
            raise Fault(self.place / MANIFEST, f"{name}: missing", "--no-resume to start over")
        filled = 0
        for file, source, target in self._overlaps(name, offset, tuple(into.shape)):
            into[target].copy_(self._open(file).get_slice(name)[source])
            filled += math.prod(cut.stop - cut.start for cut in target)
        if filled != into.numel():
            problem = f"{name}: holds {filled:,} of the {into.numel():,} elements wanted"
            raise Fault(self.place / MANIFEST, problem, "--no-resume to start over")

    def _overlaps(
        self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]
    ) -> Iterator[tuple[str, tuple[slice, ...], tuple[slice, ...]]]:
        for chunk in self.facts["tensors"][name]["chunks"]:
            cuts = [
                (max(mine, theirs), min(mine + size, theirs + length))
                for mine, size, theirs, length in zip(offset, shape, chunk["offset"], chunk["shape"], strict=True)
            ]
            if all(start < stop for start, stop in cuts):
                source = (slice(a - at, b - at) for (a, b), at in zip(cuts, chunk["offset"], strict=True))
                target = (slice(a - at, b - at) for (a, b), at in zip(cuts, offset, strict=True))
                yield chunk["file"], tuple(source), tuple(target)

    def _open(self, file: str) -> Any:
        if file not in self._opened:
            self._opened[file] = tensors.opened(self.place / file, "pt")
        return self._opened[file]


def newest(
    directory: Path, part: int = 0, parts: int = 1, agreed: Callable[[bool], bool] = lambda fine: fine
) -> State | None:
    """The newest state that is whole; a damaged one is named and passed over. None where there is none at all.

    ``parts`` processes share the checking, and what one finds all know by ``agreed``.
    """
    places = _newest_first(directory)
    for place in places:
        found = None
        try:
            found = State(place)
            found.check(part, parts)
        except (Fault, OSError) as error:
            found = None
            what = f"{error.subject}: {error.problem}" if isinstance(error, Fault) else f"{place}: {error}"
            ui.alarm(f"state refused: {what}")
        if agreed(found is not None):
            return found
    if places:
        raise Fault(directory, "holds no state that is whole", "--no-resume to start over")
    return None


def facts(directory: Path) -> dict[str, Any] | None:
    """What the newest state says of its training; its tensors are not looked at. None where there is none."""
    return next((State(place).facts for place in _newest_first(directory)), None)


def _newest_first(directory: Path) -> list[Path]:
    return sorted((path for path in directory.glob("step-[0-9]*") if path.is_dir()), reverse=True)
