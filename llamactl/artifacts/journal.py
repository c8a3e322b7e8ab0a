"""What has come of each input record so far, so that a run that was interrupted goes on with those that are left.

Beside the artifact, as ``.NAME.journal``, lie JSON lines: what the run was asked for, then a line a record with the
output records that came of it, what else there is to say of it, what was counted so far, and the device-seconds and
joules. Each is handed to the operating system at once, so that a killed process loses none; one that a crash has torn
is cut off. When all are through, the artifact is written from them, whole and in order, and the journal removed.

Without ``--out`` what comes of a record goes to stdout in its turn, and there is nothing to go on from.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from signal import Signals
from types import FrameType
from typing import Any, BinaryIO, NoReturn

import orjson

from llamactl import ui
from llamactl.artifacts import files
from llamactl.artifacts.jsonl import Writer, loads
from llamactl.artifacts.run import Run
from llamactl.errors import Fault, Interrupted
from llamactl.signals import handled


class Journal:
    """Input records that are through, by their number; in whatever order they are, the output is in theirs."""

    def __init__(self, run: Run, put: Callable[[dict[str, Any]], object]) -> None:
        self._facts: dict[int, dict[str, Any]] = {}
        self._run, self._put = run, put
        # what was counted while the input was read is counted anew by each attempt
        self._before = {name: Counter(counts) for name, counts in _counts(run).items()}

    def __len__(self) -> int:
        return len(self._facts)

    @property
    def facts(self) -> list[dict[str, Any]]:
        """What there is to say of each record that is through, earlier attempts' included, in order."""
        return [facts for _, facts in sorted(self._facts.items())]

    def left(self, total: int) -> list[int]:
        """Of so many input records the numbers of those that are not through."""
        return [number for number in range(total) if number not in self._facts]

    def add(self, number: int, records: Sequence[Mapping[str, Any]], facts: dict[str, Any] | None = None) -> None:
        """One more input record is through: the output ``records`` that came of it, its ``facts``."""
        counts = {
            name: {what: n - self._before[name][what] for what, n in counts.items()}
            for name, counts in _counts(self._run).items()
        }
        self._facts[number] = facts or {}
        seconds = {device: round(seconds, 3) for device, seconds in self._run.effort.spent().items()}
        spent = {"seconds": seconds, "joules": self._run.effort.joules(within=1.0)}
        entry = {"number": number, "records": records, "facts": facts or {}, "counts": counts, **spent}
        self._put(entry)

    def take_up(self, stream: BinaryIO) -> None:
        """Go on from what an interrupted run has left, if it was asked the same.

        One that was asked otherwise raises Fault, unless it is to be overwritten; from stdin all begins anew.
        """
        run, lines = self._run, _whole(stream)
        asked, last = next(lines, None), None
        for last in lines:
            self._facts[last["number"]] = last["facts"]
        difference = run.difference(asked) if asked else ""
        if difference and last and not run.overwrite:
            problem = f"an interrupted run was begun otherwise ({difference})"
            raise Fault(run.out, problem, "ask for the same to go on, or --overwrite to start over")
        difference = difference or ("" if _comparable(run) else "from stdin")
        if difference and last:
            ui.warn(f"{run.out}: an interrupted run was begun otherwise ({difference}): starting over")
        elif last:
            for name, counts in _counts(run).items():
                counts.update(last["counts"][name])
            run.effort.go_on(last["seconds"], last.get("joules"))
            ui.note(f"{run.out}: going on after {len(self):,} records")
        if difference or not last:
            self._facts.clear()
            stream.seek(0)
            stream.truncate()
            self._put({"stage": run.stage, "settings": run.settings, "inputs": run.inputs})


def _counts(run: Run) -> dict[str, Counter[str]]:
    return {"done": run.done, "skipped": run.skipped, "noted": run.noted}


def _comparable(run: Run) -> bool:
    """Whether all that is read has a digest; stdin has none."""
    return all(one["sha256"] for one in run.inputs)


def _whole(stream: BinaryIO) -> Iterator[Any]:
    """What stands in its lines up to the first that is torn, where it is cut off."""
    end = 0
    for line in stream:
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError:
            break
        if not line.endswith(b"\n"):
            break
        end += len(line)
        yield entry
    stream.seek(end)
    stream.truncate()


@contextmanager
def kept(run: Run) -> Iterator[Journal]:
    """The journal of a run, with what an interrupted one has left; the output is whole when the block ends well."""
    if not ui.first_rank():  # what comes of its records is the first process's to keep
        yield Journal(run, lambda entry: None)
        return
    if run.out is None:
        with run.records() as writer:
            yield Journal(run, _in_order(writer))
        return
    path, lasting = files.journal(run.out), _comparable(run)
    files.make_room(run.out)
    with (
        files.named(run.out),
        files.locked(path, run.out, os.O_RDWR | os.O_CREAT) as handle,
        os.fdopen(os.dup(handle), "r+b") as stream,
    ):

        def put(entry: dict[str, Any]) -> None:
            stream.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
            stream.flush()

        journal = Journal(run, put)
        journal.take_up(stream)
        try:
            with handled(partial(_stop, journal, run)) if lasting else nullcontext():
                yield journal
                with run.records() as writer:
                    for place in _places(stream):
                        stream.seek(place)
                        _write(writer, loads(stream.readline()))
        except BaseException as error:
            if not (lasting and len(journal)):
                path.unlink()
            elif not isinstance(error, Interrupted):
                ui.note(f"{run.out}: {len(journal):,} records are through: the same command goes on after them")
            raise
        path.unlink(missing_ok=True)


def _in_order(writer: Writer) -> Callable[[dict[str, Any]], None]:
    """Write what came of a record as soon as that of all before it is written."""
    waiting: dict[int, dict[str, Any]] = {}
    following = 0

    def put(entry: dict[str, Any]) -> None:
        nonlocal following
        waiting[entry["number"]] = entry
        while following in waiting:
            _write(writer, waiting.pop(following))
            following += 1

    return put


def _places(stream: BinaryIO) -> list[int]:
    """Where a journal's records begin, in the order of their numbers."""
    stream.seek(0)
    place = len(next(stream))
    found: dict[int, int] = {}
    for line in stream:
        found[orjson.loads(line)["number"]] = place
        place += len(line)
    return [place for _, place in sorted(found.items())]


def _write(writer: Writer, entry: Mapping[str, Any]) -> None:
    for record in entry["records"]:
        writer.write(record)


def _stop(journal: Journal, run: Run, number: int, frame: FrameType | None) -> NoReturn:
    """End the run after a signal, at once: there is nothing to be saved first."""
    name, through = Signals(number).name, f"{len(journal):,} records"
    raise Interrupted(f"{run.out}: stopped by {name} after {through}; run me again to go on")
