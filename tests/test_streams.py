"""What comes through a pipe: known by its digest, so that other data are not taken for the same."""

import gzip
import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from llamactl.artifacts import files, jsonl, streams
from llamactl.artifacts.run import Run
from llamactl.errors import Fault, Misuse


class _Stdin:
    """As ``sys.stdin``."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    streams.forgotten("-")


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", _Stdin(data))


LINES = b"".join(b'{"text": "%d"}\n' % number for number in range(200_000))


@pytest.mark.parametrize("packed", [bytes, gzip.compress, zstandard.compress])
def test_what_has_come_through_is_known_when_it_has_all_been_read(
    packed: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stdin: None
) -> None:
    data = packed(LINES)  # type: ignore[operator]
    (tmp_path / "file").write_bytes(data)
    piped(monkeypatch, data)
    run = Run("x", {}, {"records": ["-"]})
    assert run.inputs[0]["sha256"] is None
    blocks = jsonl.blocks(["-"])
    next(blocks)
    assert run.inputs[0]["sha256"] is None
    assert sum(block.data.count(b"\n") for block in blocks) > 0
    assert files.Stamp(run.inputs[0]["size"], run.inputs[0]["sha256"]) == files.stamp(tmp_path / "file")
    assert Run("x", {}, {"records": ["-"]}).inputs[0]["sha256"] is None  # which has read nothing yet


def made(monkeypatch: pytest.MonkeyPatch, out: Path, data: bytes, reads: bool = True, **settings: object) -> bool:
    """A run that writes what it reads, if it is not there; whether it was."""
    piped(monkeypatch, data)
    run = Run("x", settings, {"records": ["-"]}, out)
    if run.already_made(announce=False):
        return True
    with run.file(announce=False) as stream:
        if reads:
            stream.writelines(block.data for block in jsonl.blocks(["-"]))
    return False


def test_other_data_through_a_pipe_are_not_what_was_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stdin: None
) -> None:
    """They were taken for it, in silence: of both there was no digest."""
    out = tmp_path / "out.jsonl"
    assert not made(monkeypatch, out, LINES)
    assert made(monkeypatch, out, LINES)
    with pytest.raises(Fault, match="from other inputs"):
        made(monkeypatch, out, LINES[:-20])
    assert out.read_bytes() == LINES
    assert not made(monkeypatch, out, b"{}\n", overwrite=True)
    assert out.read_bytes() == b"{}\n"


def test_a_pipe_is_not_waited_for_where_it_was_asked_for_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stdin: None
) -> None:
    out = tmp_path / "out.jsonl"
    assert not made(monkeypatch, out, LINES, k=1)
    with pytest.raises(Fault, match="with k 1, not 2"):
        made(monkeypatch, out, LINES, k=2)
    assert sys.stdin.buffer.tell() == 0


def test_what_was_not_read_to_its_end_is_not_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stdin: None
) -> None:
    """Nobody knows what would have come."""
    out = tmp_path / "out.jsonl"
    assert not made(monkeypatch, out, LINES, reads=False)
    with pytest.raises(Fault, match="from other inputs"):
        made(monkeypatch, out, LINES)


def test_a_named_pipe_is_known_as_well(tmp_path: Path) -> None:
    pipe, out = tmp_path / "pipe", tmp_path / "out.jsonl"
    os.mkfifo(pipe)

    def run_of(data: bytes) -> Run:
        threading.Thread(target=pipe.write_bytes, args=[data]).start()
        return Run("x", {}, {"records": [pipe]}, out)

    run = run_of(LINES)
    with run.file(announce=False) as stream:
        stream.writelines(block.data for block in jsonl.blocks([str(pipe)]))
    assert run_of(LINES).already_made(announce=False)
    with pytest.raises(Fault, match="from other inputs"):
        run_of(LINES + b"{}\n").already_made(announce=False)


def test_stdin_is_named_once() -> None:
    with pytest.raises(Misuse, match="stdin: is named twice"):
        Run("x", {}, {"records": ["-"], "pool": ["-"]})
