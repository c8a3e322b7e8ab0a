"""One run of a stage, from its command line to its manifest: what is made appears whole, or not at all.

What has the name already is left alone where it is what would be made, and where it is something else.
"""

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from llamactl import __version__, ui
from llamactl.artifacts import files, streams
from llamactl.artifacts.effort import Effort
from llamactl.artifacts.jsonl import BLOCK, STDIN, Writer, compressed, reader_may_leave, stdout
from llamactl.artifacts.manifest import CARD, FILE, FORMAT, beside, described, dumps, kind, load, plain
from llamactl.errors import Fault, Misuse

# Flags that do not change what is made: another value of one of these asks for the same artifact.
NEUTRAL = {
    "out", "report", "quiet", "overwrite", "resume", "dry_run", "log_every", "save_every", "keep", "verify", "workers",
    "cache_memory", "tensor_parallel", "samples_every", "model_every", "kl_stop", "length_stop",
}  # fmt: skip

STDOUT = Path("-")
REPORT = "--report"
WAITING = 1 << 23  # bytes that wait in memory; more do on the disk
STATES = "state/step-*/manifest.json"  # those of a training
BEGUN = ".llamactl"  # lies in a directory that a training has begun to fill: it is ours
SHOWN = 5  # bad records named one by one before they are only counted


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in counts.items())


class Run:
    """One run of a stage, from its command line to its manifest.

    ``settings`` are the stage's own parameters, resolved (``locals()`` will do: inputs and what does not change the
    result are left out). ``inputs`` names the files and directories it reads, by the parameter that named them, and
    ``aside`` the files that it writes beside ``out``, by their flags; ``out`` is a ``directory``, or a file or stdout.
    """

    def __init__(
        self,
        stage: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Iterable[str | Path]],
        out: Path | None = None,
        verify: bool = True,
        directory: bool = False,
        aside: Mapping[str, Path | None] | None = None,
    ) -> None:
        self.stage, self.out = stage, out.resolve() if out and out.name in ("", "..") else out
        self.settings = {k: plain(v) for k, v in sorted(settings.items()) if k not in NEUTRAL and k not in inputs}
        self.aside = {flag: path for flag, path in (aside or {}).items() if path}
        read = [(name, str(path)) for name, paths in inputs.items() for path in paths]
        self._check_places([path for _, path in read], directory)
        verify = verify and ui.first_rank()
        self._read = [(path, described(name, path, verify)) for name, path in read]
        for path, _ in self._read:
            streams.forgotten(path)
        self.done: Counter[str] = Counter()  # documents, tokens, bytes, samples: what was worked through
        self.skipped: Counter[str] = Counter()  # what was not, by reason
        self.noted: Counter[str] = Counter()  # what was used, but not as it was, by reason
        self.facts: dict[str, Any] = {}  # what else the stage has to say for itself
        self.effort = Effort()
        self.stale = False  # whether what lies in a directory that is filled in place is to be replaced
        self.overwrite, self._skip_bad = bool(settings.get("overwrite")), bool(settings.get("skip_bad"))

    # -- before

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """What it reads, as manifests name it; of a stream size and digest once all of it has come through."""
        heard = ((entry, streams.stamp(path)) for path, entry in self._read)
        return [entry | stamp._asdict() if stamp else entry for entry, stamp in heard]

    def _check_places(self, read: Sequence[str], directory: bool) -> None:
        """Raise Fault where what is written would replace what is read, or something else that is written.

        Also under another spelling of its name, or in a directory that is replaced; whatever ``--overwrite`` says.
        """
        outputs = [("-o", self.out), ("-o", beside(self.out))] if self.out else [("-o", STDOUT)]
        if read.count(STDIN) > 1:
            raise Misuse("stdin", "is named twice, and can be read once", "write it to a file first")
        inputs = {os.path.realpath(path): path for path in read if path != STDIN}
        taken: dict[str, str] = {}
        for flag, path in [*outputs, *self.aside.items()]:
            place = str(path) if path == STDOUT else os.path.realpath(path)
            if place in inputs:
                raise Misuse(path, "is read by this command, which would replace it", f"name another {flag}")
            if place in taken:
                what = "stdout, where the result goes" if path == STDOUT else f"what {taken[place]} writes"
                raise Misuse(flag, f"{path} is {what}", "name another file")
            taken[place] = flag
        if self.out and directory:
            own = os.path.realpath(self.out)
            if inside := next((path for real, path in inputs.items() if Path(real).is_relative_to(own)), None):
                raise Misuse(self.out, f"holds {inside}, which is read, and would be replaced", "name another -o")
            if self.out.is_file():
                raise Fault(self.out, "is a file, and a directory is to be made", "name another -o")

    def already_made(self, mark: str | None = None, announce: bool = True) -> bool:
        """Whether ``out`` is there, complete, and what this run would make; says so.

        ``mark`` names the manifest of a part, where ``out`` is a directory of parts. Raises Fault where something else
        has the name, or that of a file beside it.
        """
        if self._made(mark):
            if announce:
                self._announce()
            return True
        for flag, path in self.aside.items():
            if path != STDOUT:
                files.make_room(path)
                if path.exists() and not self.overwrite:
                    raise Fault(path, "exists", f"--overwrite to replace it, or another {flag}")
        return False

    def _made(self, mark: str | None) -> bool:
        """Whether ``out`` is what this run would make; its report is written where it is asked for and not there."""
        if self.out is None or not self.out.exists():
            return False
        own = self.out / mark if mark else beside(self.out)
        if not own.exists():
            if self.out.is_file() and not self.overwrite:
                raise Fault(self.out, "exists, and not by llamactl", "--overwrite to replace it, or another -o")
            return False
        if self.overwrite:
            return False
        made = load(own)
        if self.out.is_file() and files.stamp(self.out).sha256 != made["outputs"][0]["sha256"]:
            raise Fault(self.out, f"its bytes differ from what {own.name} says", "--overwrite to make it again")
        if self.out.is_dir():
            self._check_files(made)
        if not self._otherwise(made):
            self._hear_out()
        if difference := self.difference(made):
            raise Fault(
                self.out, f"exists and was made otherwise ({difference})", "--overwrite to redo it, or another -o"
            )
        files.journal(self.out).unlink(missing_ok=True)  # of a run that was killed as it finished
        ui.note(f"{self.out}: already made on {made['end'][:10]}; nothing to do (--overwrite to redo)")
        if report := self.aside.get(REPORT):
            self.facts["report"] = made["report"]
            if report == STDOUT or not report.exists():
                self.write_report()
            elif report.read_bytes() != self._told():
                raise Fault(report, f"exists, and is not what {self.out} came to", f"name another {REPORT}")
        for flag, path in self.aside.items():
            if flag != REPORT and not path.exists():
                raise Fault(path, f"is not there, and {self.out} was made without it", f"--overwrite to make {flag}")
        return True

    def _check_files(self, made: Mapping[str, Any]) -> None:
        """Raise Fault where a file of a directory is not there, or not as large as was ``made``."""
        assert self.out is not None
        for output in made["outputs"]:
            path = self.out / output["path"]
            if output["path"] != CARD and (not path.is_file() or path.stat().st_size != output["size"]):
                raise Fault(path, f"is not there, or not as {FILE} says", "--overwrite to make it again")

    def _hear_out(self) -> None:
        """Read streams to their end: what came through them is then known."""
        for path, entry in self._read:
            if entry["kind"] == "stream":
                streams.read_out(path)

    def difference(self, made: Mapping[str, Any], but: Sequence[str] = ()) -> str:
        """What this run would do otherwise than ``made``, settings ``but`` some, in words; empty where nothing."""
        if different := self._otherwise(made, but):
            return different
        ours = [(i["as"], i["sha256"]) for i in self.inputs]
        return "from other inputs" if ours != [(i["as"], i["sha256"]) for i in made["inputs"]] else ""

    def _otherwise(self, made: Mapping[str, Any], but: Sequence[str] = ()) -> str:
        """The same of the stage and its settings alone."""
        if made["stage"] != self.stage:
            return f"by {made['stage']}"
        for name in sorted(self.settings.keys() | made["settings"].keys()):
            mine, theirs = self.settings.get(name), made["settings"].get(name)
            if mine != theirs and name not in but:
                return f"with {name.replace('_', '-')} {theirs}, not {mine}"
        return ""

    # -- while

    def refuse(self, fault: Fault) -> None:
        """A record that cannot be used: the end of the run, or with ``--skip-bad`` skipped and counted."""
        if not self._skip_bad:
            if not fault.remedy:
                fault = Fault(fault.subject, fault.problem, "mend it, or leave it out with --skip-bad")
            raise fault
        self.skip(fault, "bad records")

    def skip(self, fault: Fault, reason: str) -> None:
        """Leave out what cannot be used, and count it; the first ones are named."""
        self.skipped[reason] += 1
        if self.skipped[reason] <= SHOWN:
            ui.warn(f"skipped {fault.subject}: {fault.problem}")

    # -- after

    def manifest(self, outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The manifest of what was made."""
        return {
            "format": FORMAT,
            "stage": self.stage,
            "command": [Path(sys.argv[0]).name, *map(plain, sys.argv[1:])],
            "settings": self.settings,
            "version": __version__,
            "seed": self.settings.get("seed"),
            "inputs": self.inputs,
            "outputs": list(outputs),
            **self.effort.account(),
            "done": dict(self.done),
            "skipped": dict(self.skipped),
            "noted": dict(self.noted),
            **self.facts,
        }

    @contextmanager
    def side(self, flag: str) -> Iterator[BinaryIO | None]:
        """The file beside ``out`` that a flag of ``aside`` names, which appears whole; None where it names none."""
        path = self.aside.get(flag) if ui.first_rank() else None
        if path is None:
            yield None
        elif path == STDOUT:
            with reader_may_leave():
                yield stdout()
                stdout().flush()
        else:
            with files.whole_file(path) as stream:
                yield stream

    def _told(self) -> bytes:
        return orjson.dumps(self.facts["report"], option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    def write_report(self) -> None:
        """Write the ``report`` of ``facts``, as JSON that a person can read, where that is asked for."""
        with self.side(REPORT) as stream:
            if stream:
                stream.write(self._told())

    def write(self, directory: Path, outputs: Sequence[Mapping[str, Any]], **more: object) -> None:
        """Write it into a directory that is being filled, with what there is more to say."""
        (directory / FILE).write_bytes(dumps(self.manifest(outputs) | more))

    @contextmanager
    def file(self, announce: bool = True) -> Iterator[BinaryIO]:
        """The output file, which appears whole, its manifest just before it."""
        assert self.out is not None
        with files.whole_file(self.out) as stream:
            yield stream
            stream.flush()
            written = files.stamp(files.partial(self.out))
            output = files.entry(self.out, kind(self.out), written) | {"path": plain(self.out.name)}
            with files.whole_file(beside(self.out)) as own:
                own.write(dumps(self.manifest([output])))
        self._report(announce)

    @contextmanager
    def records(self, read_along: bool = False) -> Iterator[Writer]:
        """Where records go: ``out``, with a manifest, or stdout, without; of several processes the first one's go.

        To stdout each goes at once, but where the input is still being read, ``read_along``, and a bad record would end
        the run: there they wait on the disk until all are sound, so that no program in a pipe takes a part for all.
        """
        if not ui.first_rank():
            with Path(os.devnull).open("wb") as nowhere:
                yield Writer(nowhere)
        elif self.out is None and read_along and not self._skip_bad:
            output = stdout()
            with tempfile.SpooledTemporaryFile(WAITING) as aside:
                yield Writer(cast(BinaryIO, aside))
                aside.seek(0)
                with reader_may_leave():
                    shutil.copyfileobj(aside, output, BLOCK)
                    output.flush()
            self._report(announce=False)
        elif self.out is None:
            yield Writer(stdout(), eager=True)
            self._report(announce=False)
        else:
            with self.file(announce=False) as stream, compressed(stream, self.out.name) as packed:
                yield Writer(packed)

    def _refuse_foreign(self, *marks: str) -> None:
        """Raise Fault where ``out`` is a directory with something in it, and none of ``marks`` (patterns) of ours."""
        assert self.out is not None
        if not self.out.exists():
            return
        left = () if self.out.is_file() else set(self.out.iterdir()) - set(self.out.glob(files.PARTIALS))
        if self.out.is_file() or (left and not any(any(self.out.glob(mark)) for mark in marks)):
            raise Fault(self.out, "exists, and not by llamactl", "remove it yourself, or name another -o")

    @contextmanager
    def directory(self) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
        """A directory that appears whole, and the list of its outputs to fill."""
        assert self.out is not None
        self._refuse_foreign(FILE)
        if self.out.is_dir() and self.out.samefile(os.curdir):  # whoever stands in it would see nothing of the new one
            raise Fault(self.out, "is the directory you are in, which would be replaced", "name another -o")
        outputs: list[dict[str, Any]] = []
        with files.whole_directory(self.out) as partial:
            yield partial, outputs
            self.write(partial, outputs)
        self._report()

    @contextmanager
    def in_place(self, fresh: bool) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
        """A directory that a training fills as it goes, and the list of its outputs; ``run.json`` says it is complete.

        What an earlier attempt has left there is ``stale`` if a ``fresh`` one is asked for, and what a finished one
        has: it is for the training to ``clear``, once all that it needs is loaded. A run that was asked to overwrite,
        and was interrupted, goes on like any other. Where many processes train together the first one does this; the
        others may use the directory when it has.
        """
        assert self.out is not None
        if not ui.first_rank():
            yield self.out, []
            return
        if plain(self.out) != str(self.out):
            raise Fault(self.out, "is not UTF-8: safetensors would read nothing that is saved there", "name another -o")
        files.followed(self.out).mkdir(parents=True, exist_ok=True)
        outputs: list[dict[str, Any]] = []
        with files.locked(self.out, self.out):
            self._refuse_foreign(FILE, BEGUN, STATES)
            for leftover in list(self.out.rglob(files.PARTIALS)):
                files.remove(leftover)
            self.stale = fresh or (self.out / FILE).exists()
            if not (self.out / BEGUN).exists():
                (self.out / BEGUN).touch()
            try:
                yield self.out, outputs
            finally:
                if (self.out / FILE).exists() or any(self.out.glob(STATES)):  # which say so, too
                    (self.out / BEGUN).unlink()
            with files.whole_file(self.out / FILE) as stream:
                stream.write(dumps(self.manifest(outputs)))
        self._report()

    def clear(self) -> None:
        """Remove what lies in ``out``: first what says that it is whole, and not what says that it is ours."""
        assert self.out is not None
        (self.out / FILE).unlink(missing_ok=True)
        files.sync(self.out)
        files.clear(self.out, but=[BEGUN])
        self.stale = False

    @contextmanager
    def part(self, mark: str) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
        """One part of a directory that several runs fill; ``mark`` is the manifest that says the part is whole.

        Its hidden directory is there until the mark is: at any moment one of the two says that ``out`` is ours.
        """
        assert self.out is not None
        files.followed(self.out).mkdir(parents=True, exist_ok=True)
        self._refuse_foreign("part-*", ".part-*")
        hidden = files.partial(self.out / mark)
        hidden.mkdir(exist_ok=True)
        outputs: list[dict[str, Any]] = []
        with files.named(self.out), files.locked(hidden, self.out / mark):
            files.clear(hidden)
            try:
                yield hidden, outputs
                (hidden / mark).write_bytes(dumps(self.manifest(outputs)))
                names = [*(output["path"] for output in outputs), mark]
                for name in names:
                    files.sync(hidden / name)
                self._take_back(mark)
                for name in names:
                    (hidden / name).replace(self.out / name)
                files.sync(self.out)
            finally:
                files.remove(hidden)
        self._report()

    def _take_back(self, mark: str) -> None:
        """Remove an earlier edition of a part, which makes the whole incomplete until this one is there."""
        assert self.out is not None
        if (self.out / mark).exists():
            old = load(self.out / mark)
            (self.out / FILE).unlink(missing_ok=True)
            (self.out / mark).unlink()
            for output in old["outputs"]:
                if output["kind"] == "shard":
                    (self.out / output["path"]).unlink(missing_ok=True)

    def odd(self) -> list[tuple[str, str]]:
        """What was not used so far, or not as it was, as rows of a plan."""
        counts = {"skipped": self.skipped, "not as it was": self.noted}
        return [(what, _listed(+found)) for what, found in counts.items() if +found]

    def _report(self, announce: bool = True) -> None:
        if self.skipped:
            ui.warn(f"{self.stage}: skipped {_listed(self.skipped)}")
        if self.noted:
            ui.warn(f"{self.stage}: {_listed(self.noted)}")
        if announce:
            self._announce()

    def _announce(self) -> None:
        """The path of a finished artifact is the one line on stdout."""
        if ui.first_rank():
            with reader_may_leave():
                print(self.out, flush=True)
