"""Runs that are killed, stopped or asked otherwise: what the next attempt goes on from, and what it makes."""

import gzip
import json
import os
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import PATIENCE, SERVER, written
from test_cli import Run as Command
from test_cli import command, one_line
from test_parallel import ended, environment, meeting

from llamactl.artifacts import files, journal, manifest
from llamactl.artifacts.jsonl import loads
from llamactl.artifacts.run import Run
from llamactl.errors import Fault, Interrupted

assert command  # a fixture

RECORDS = 7


def work(
    place: Path,
    out: Path | None,
    during: Callable[[int], object] = lambda number: None,
    source: str = "given.txt",
    order: Callable[[list[int]], list[int]] = sorted,
    **settings: Any,
) -> tuple[int, list[dict[str, Any]]]:
    """A stage: two lines to each record but the third, of which it makes none. How many it had to do, and all facts."""
    run = Run("double", {"seed": 0, **settings}, {"given": [str(place / source) if source != "-" else "-"]}, out)
    if run.already_made(announce=False):
        return 0, []
    run.skipped["bad records"] += 2  # found by each attempt anew, as the input is read
    with journal.kept(run) as done:
        left = done.left(RECORDS)
        for number in order(left):
            during(number)
            records = [{"id": number, "é": [half, 0.1 * number]} for half in (0, 1) if number != 2]
            run.done.update(records=1, lines=len(records))
            if number % 3 == 0:
                run.noted["cut"] += 2
            if number == 2:
                run.skipped["empty"] += 1
            done.add(number, records, {"score": 1 / (number + 1)})
        facts = done.facts
    return len(left), facts


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "given.txt").write_text("given")
    (tmp_path / "other.txt").write_text("other")
    return tmp_path


def stop(at: int, how: BaseException) -> Callable[[int], None]:
    def during(number: int) -> None:
        if number == at:
            raise how

    return during


def killed(place: Path, out: Path, at: int, number: signal.Signals = signal.SIGKILL, before: bytes = b"") -> int:
    """The exit status of a process that gets a signal at a record; ``before`` is half a line that it has written."""
    process = SERVER.Process(target=_sent, args=(place, out, at, number, before))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode is not None
    return process.exitcode


def _sent(place: Path, out: Path, at: int, number: signal.Signals, before: bytes) -> None:
    def during(record: int) -> None:
        if record == at:
            with files.journal(out).open("ab") as file:
                file.write(before)
            os.kill(os.getpid(), number)

    try:
        work(place, out, during)
    except Interrupted as stopped:
        Path(f"{out}.said").write_text(str(stopped))
        os._exit(75)


def facts_of(out: Path) -> dict[str, Any]:
    """A manifest without what differs from attempt to attempt."""
    made = manifest.load(manifest.beside(out))
    return {key: made[key] for key in made.keys() - {"start", "end", "device_hours", "sha256", "outputs"}}


def whole(place: Path) -> tuple[bytes, dict[str, Any], list[dict[str, Any]]]:
    """What an undisturbed run makes."""
    out = place / "whole.jsonl"
    todo, facts = work(place, out)
    assert todo == RECORDS
    return out.read_bytes(), facts_of(out), facts


def test_an_undisturbed_run_leaves_the_artifact_and_nothing_else(place: Path) -> None:
    written, made, facts = whole(place)
    lines = [json.loads(line) for line in written.splitlines()]
    assert [line["id"] for line in lines] == [n for n in range(RECORDS) if n != 2 for _ in (0, 1)]
    assert made["done"] == {"records": RECORDS, "lines": 12}
    assert made["noted"] == {"cut": 6}
    assert made["skipped"] == {"bad records": 2, "empty": 1}
    assert facts == [{"score": 1 / (number + 1)} for number in range(RECORDS)]
    assert {path.name for path in place.iterdir()} == {
        "given.txt", "other.txt", "whole.jsonl", "whole.jsonl.run.json"
    }  # fmt: skip


@pytest.mark.parametrize("at", [1, 2, 3, RECORDS - 1])
@pytest.mark.parametrize("torn", [b"", b'{"records": [{"id": 1', b"\0" * 40, b'{"records": []}'])
def test_a_killed_run_goes_on_after_the_last_whole_record(
    place: Path, at: int, torn: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    out = place / "out.jsonl"
    assert killed(place, out, at, before=torn) == -signal.SIGKILL
    assert not out.exists()
    todo, facts = work(place, out)
    assert todo == RECORDS - at
    assert (out.read_bytes(), facts_of(out), facts) == whole(place)
    assert f"{out}: going on after {at} records" in capfd.readouterr().err
    assert not files.journal(out).exists()


def test_killed_again_and_again(place: Path) -> None:
    out = place / "out.jsonl"
    for at in (1, 1, 4, 6):
        killed(place, out, at)
    todo, facts = work(place, out)
    assert todo == 1
    assert (out.read_bytes(), facts_of(out), facts) == whole(place)


def shuffled(numbers: list[int]) -> list[int]:
    return random.Random(0).sample(numbers, len(numbers))


@pytest.mark.parametrize("stopped", [0, 2, 4])
def test_records_may_be_through_in_any_order(
    place: Path, stopped: int, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The output is in theirs, also on stdout, and so are the facts; what is left is done once."""
    out, todo = place / "out.jsonl", shuffled([*range(RECORDS)])
    with pytest.raises(KeyboardInterrupt):
        work(place, out, stop(todo[stopped], KeyboardInterrupt()), order=shuffled)
    done: list[int] = []
    left, facts = work(place, out, done.append, order=lambda numbers: sorted(numbers, reverse=True))
    assert done == sorted(todo[stopped:], reverse=True)
    assert left == RECORDS - stopped
    wanted = whole(place)
    assert (out.read_bytes(), facts_of(out), facts) == wanted
    capfdbinary.readouterr()
    assert work(place, None, order=shuffled) == (RECORDS, facts)
    assert capfdbinary.readouterr().out == wanted[0]


def test_killed_before_the_first_record_is_through(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = place / "out.jsonl"
    killed(place, out, 0)
    assert work(place, out)[0] == RECORDS
    assert "going on" not in capfd.readouterr().err
    assert out.read_bytes() == whole(place)[0]


def test_a_line_that_was_damaged_ends_what_is_kept(place: Path) -> None:
    out = place / "out.jsonl"
    killed(place, out, 5)
    lines = files.journal(out).read_bytes().splitlines(keepends=True)
    assert len(lines) == 6  # what was asked, and five records
    lines[3] = lines[3][:-9] + b"\n"
    files.journal(out).write_bytes(b"".join(lines))
    assert work(place, out)[0] == RECORDS - 2
    assert out.read_bytes() == whole(place)[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_the_run_and_says_that_it_goes_on(place: Path, number: signal.Signals) -> None:
    out = place / "out.jsonl"
    assert killed(place, out, 4, number) == 75
    said = Path(f"{out}.said").read_text()
    assert said == f"{out}: stopped by {number.name} after 4 records; run me again to go on"
    assert work(place, out)[0] == RECORDS - 4


def test_handlers_are_put_back(place: Path) -> None:
    before, during = signal.getsignal(signal.SIGTERM), []
    work(place, place / "out.jsonl", lambda _: during.append(signal.getsignal(signal.SIGTERM)))
    assert before not in during
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("how", [KeyboardInterrupt(), RuntimeError("out of memory"), OSError(28, "No space left")])
def test_whatever_ends_a_run_leaves_what_is_through(
    place: Path, how: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    out = place / "out.jsonl"
    with pytest.raises(type(how)):
        work(place, out, stop(3, how))
    assert capfd.readouterr().err == f"{out}: 3 records are through: the same command goes on after them\n"
    assert work(place, out)[0] == RECORDS - 3


def test_where_nothing_is_through_nothing_is_left(place: Path) -> None:
    before = set(place.iterdir())
    with pytest.raises(Fault):
        work(place, place / "deep" / "out.jsonl", stop(0, Fault("x", "is bad")))
    assert set((place / "deep").iterdir()) == set()
    assert set(place.iterdir()) == before | {place / "deep"}


def test_the_output_cannot_be_written_and_the_records_stay(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up at the very end: nothing has to be made again."""
    out = place / "out.jsonl"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        work(place, out)
    todo, facts = work(place, out)
    assert todo == 0
    assert (out.read_bytes(), facts_of(out), facts) == whole(place)


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"seed": 1}, "with seed 0, not 1"), ({"source": "other.txt"}, "from other inputs"), ({"k": 2}, "with k None")],
)
def test_a_run_that_is_asked_otherwise_is_refused_and_loses_nothing(
    place: Path, asked: dict[str, Any], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Unless it is to overwrite what there is: then it starts over."""
    out = place / "out.jsonl"
    killed(place, out, 4)
    left = files.journal(out).read_bytes()
    with pytest.raises(Fault) as refused:
        work(place, out, **asked)
    began = f"{out}: an interrupted run was begun otherwise ({said}"
    assert str(refused.value).startswith(began)
    assert str(refused.value).endswith("); ask for the same to go on, or --overwrite to start over")
    assert files.journal(out).read_bytes() == left
    assert work(place, out, **asked, overwrite=True)[0] == RECORDS
    (line,) = capfd.readouterr().err.splitlines()[:1]
    assert line.startswith(began) and line.endswith("): starting over")


def test_flags_that_do_not_matter_may_differ(place: Path) -> None:
    out = place / "out.jsonl"
    killed(place, out, 4)
    assert work(place, out, quiet=True, overwrite=True)[0] == RECORDS - 4


def test_an_overwriting_run_goes_on_as_well(place: Path) -> None:
    """The old artifact is there until the new one is whole."""
    out = place / "out.jsonl"
    work(place, out, seed=5)
    old = out.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        work(place, out, stop(4, KeyboardInterrupt()), seed=6, overwrite=True)
    assert out.read_bytes() == old
    assert work(place, out, seed=6, overwrite=True)[0] == RECORDS - 4
    assert facts_of(out)["settings"]["seed"] == 6
    assert work(place, out, seed=6, overwrite=True)[0] == RECORDS  # of a finished one nothing is kept


def test_what_a_run_has_left_that_was_killed_as_it_finished_is_cleared_away(place: Path) -> None:
    out = place / "out.jsonl"
    work(place, out)
    files.journal(out).write_bytes(b"{}\n")
    assert work(place, out) == (0, [])
    assert not files.journal(out).exists()


def test_stdin_cannot_be_compared(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = place / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        work(place, out, stop(4, KeyboardInterrupt()), source="-")
    assert "goes on" not in capfd.readouterr().err
    assert not files.journal(out).exists()
    killed(place, out, 4)
    left = files.journal(out).read_bytes().splitlines(keepends=True)
    header = orjson.loads(left[0])
    header["inputs"] = Run("double", {}, {"given": ["-"]}).inputs
    files.journal(out).write_bytes(orjson.dumps(header) + b"\n" + b"".join(left[1:]))
    assert work(place, out, source="-")[0] == RECORDS
    assert "(from stdin): starting over" in capfd.readouterr().err


def test_a_second_run_is_refused_while_the_first_goes_on(place: Path) -> None:
    out = place / "out.jsonl"

    def another(number: int) -> None:
        if number == 3:
            with pytest.raises(Fault, match="another run is writing here"):
                work(place, out)

    assert work(place, out, another)[0] == RECORDS
    assert out.read_bytes() == whole(place)[0]


def test_a_directory_is_refused_before_the_work(place: Path) -> None:
    (place / "out").mkdir()
    with pytest.raises(Fault, match="is a directory; name a file with -o"):
        work(place, place / "out", lambda _: pytest.fail("it has begun"))
    assert not files.journal(place / "out").exists()


def test_device_seconds_of_all_attempts_count(place: Path) -> None:
    out = place / "out.jsonl"
    killed(place, out, 4)
    lines = files.journal(out).read_bytes().splitlines()
    last = orjson.loads(lines[-1])
    ((device, seconds),) = last["seconds"].items()
    assert 0 <= seconds < 60
    last["seconds"] = {device: 7200.0}
    files.journal(out).write_bytes(b"\n".join([*lines[:-1], orjson.dumps(last), b""]))
    work(place, out)
    assert 2 <= manifest.load(manifest.beside(out))["device_hours"] < 2.02


def test_a_compressed_artifact_is_compressed(place: Path) -> None:
    out = place / "out.jsonl.gz"
    killed(place, out, 4)
    work(place, out)
    assert gzip.decompress(out.read_bytes()) == whole(place)[0]


def test_integers_of_any_size_pass(place: Path) -> None:
    run = Run("pass", {}, {"given": [str(place / "given.txt")]}, place / "out")
    with journal.kept(run) as done:
        done.add(0, [loads(b'{"n":123456789012345678901234567890}')])
    assert (place / "out").read_bytes() == b'{"n":123456789012345678901234567890}\n'


def test_without_a_file_records_are_out_at_once(place: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """And nothing is kept beside."""
    seen: list[bytes] = []
    before = set(place.iterdir())
    todo, facts = work(place, None, lambda _: seen.append(capfdbinary.readouterr().out))
    seen.append(capfdbinary.readouterr().out)
    assert set(place.iterdir()) == before
    assert todo == RECORDS
    assert [part.count(b"\n") for part in seen] == [0, 2, 2, 0, 2, 2, 2, 2]
    written, _, facts_then = whole(place)
    assert (b"".join(seen), facts) == (written, facts_then)


# -- a stage, and what it comes to


def struck(arguments: Sequence[object], moment: str, count: int, number: int = signal.SIGKILL) -> int | None:
    """The exit status of the command in a process that sends itself a signal at its ``count``-th ``moment``."""
    process = SERVER.Process(target=_striking, args=([*map(str, arguments)], {}, moment, count, number))
    process.start()
    process.join(PATIENCE)
    return process.exitcode


def together(arguments: Sequence[object], *moment: Any) -> list[int | None]:
    """Exit statuses of the command on two processes; ``moment`` is of the first one, as in ``struck``."""
    store, processes = meeting(), []
    for rank in (0, 1):
        when = moment if moment and rank == 0 else ("add", 0, 0)
        given = [*map(str, arguments)], environment(rank, 2, store.port), *when
        processes.append(SERVER.Process(target=_striking, args=given))
    for process in processes:
        process.start()
    return ended(processes)


def _striking(arguments: list[str], env: dict[str, str], moment: str, count: int, number: int) -> None:
    import torch

    from llamactl import cli
    from llamactl.model.heads import RewardModel

    os.environ.update(env)
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    left = [count]

    def striking(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)
            return real(*given, **named)

        return call

    holder, name = {
        "add": (journal.Journal, "add"), "score": (RewardModel, "judge"), "sync": (os, "fsync"),
        "rename": (Path, "replace"), "remove": (Path, "unlink"),
    }[moment]  # fmt: skip
    setattr(holder, name, striking(getattr(holder, name)))
    cli.app(arguments)


def test_generate_goes_on_to_the_same_bytes(base_model: Path, tmp_path: Path, command: Command) -> None:
    texts = ["def ", "Return", "class A", "x", "import os"]
    asked = written(tmp_path / "asked.jsonl", ({"text": text, "id": n} for n, text in enumerate(texts)))
    flags = [base_model, asked, "-k", 3, "--temperature", 1, "--max-new-tokens", 8, "--device", "cpu"]
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert command("generate", *flags, "-o", whole).status == 0
    for count in (2, 3):  # the second time two more are through
        assert struck(["generate", *flags, "-o", out], "add", count) == -signal.SIGKILL
    again = command("generate", *flags, "-o", out)
    assert f"{out}: going on after 3 records" in again.stderr
    assert out.read_bytes() == whole.read_bytes()
    assert facts_of(out) | {"command": 0} == facts_of(whole) | {"command": 0}


def test_generate_on_two_processes_is_as_on_one(base_model: Path, tmp_path: Path, command: Command) -> None:
    """Also where the first is killed, and one goes on with what both have left."""
    asked = written(tmp_path / "asked.jsonl", ({"text": text} for text in ("def ", "Return", "class A", "x", "import")))
    flags = [base_model, asked, "-k", 3, "--temperature", 1, "--max-new-tokens", 8, "--device", "cpu"]
    whole = command("generate", *flags).stdout
    out = tmp_path / "out.jsonl"
    assert together(["generate", *flags, "-o", out]) == [0, 0]
    assert out.read_text() == whole
    sharing = tmp_path / "sharing.jsonl"
    assert together(["generate", *flags, "--tensor-parallel", 2, "-o", sharing]) == [0, 0]
    assert sharing.read_text() == whole
    alone = command("generate", *flags, "--tensor-parallel", 2)
    assert one_line(alone) == "--tensor-parallel: 2 does not divide the 1 processes; choose a divisor"
    cut = tmp_path / "cut.jsonl"
    assert together(["generate", *flags, "-o", cut], "add", 3, signal.SIGKILL)[0] == -signal.SIGKILL
    assert "going on after 2 records" in command("generate", *flags, "-o", cut).stderr
    assert cut.read_text() == whole


def test_parts_of_generate_put_together_are_the_whole(base_model: Path, tmp_path: Path, command: Command) -> None:
    asked = written(tmp_path / "asked.jsonl", ({"text": text} for text in "abcdefg"))
    flags = [base_model, asked, "-k", 2, "--temperature", 1, "--max-new-tokens", 8, "--device", "cpu"]
    whole = command("generate", *flags).stdout.splitlines()
    parts = [command("generate", *flags, "--shard", f"{n}/3").stdout.splitlines() for n in range(3)]
    assert sorted(line for part in parts for line in part) == sorted(whole)
    assert len(whole) == 14
