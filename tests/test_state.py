"""Training state: written by any number of processes, read by any other, whole or refused by name."""

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PATIENCE
from torch import Tensor

from llamactl.artifacts import manifest, state
from llamactl.artifacts.state import Piece, Saver, State
from llamactl.errors import Fault

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offset and shape


def wholes(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "parameter/a": torch.randn(7, 5, generator=generator),
        "parameter/b": torch.randn(9, generator=generator),
        "exp_avg/b": torch.randn(9, generator=generator).bfloat16(),
    }


def cut(chance: random.Random, offset: tuple[int, ...], shape: tuple[int, ...], times: int) -> list[Box]:
    """Boxes that tile a box: cut in two at a random place of a random dimension, some times over."""
    if times == 0 or all(size < 2 for size in shape):
        return [(offset, shape)]
    axis = chance.choice([axis for axis, size in enumerate(shape) if size > 1])
    at = chance.randrange(1, shape[axis])
    after = (*offset[:axis], offset[axis] + at, *offset[axis + 1 :])
    first = cut(chance, offset, (*shape[:axis], at, *shape[axis + 1 :]), times - 1)
    return first + cut(chance, after, (*shape[:axis], shape[axis] - at, *shape[axis + 1 :]), times - 1)


def of(whole: Tensor, box: Box) -> Tensor:
    return whole[tuple(slice(at, at + size) for at, size in zip(*box, strict=True))]


def saved(
    directory: Path, step: int, tensors: dict[str, Tensor], ranks: int = 2, keep: int = 2, seed: int = 0, **facts: Any
) -> State:
    """A state of some processes, each tensor cut at random into at most a box for each."""
    chance = random.Random(seed)
    pieces: list[dict[str, Piece]] = [{} for _ in range(ranks)]
    for name, whole in tensors.items():
        boxes = cut(chance, (0,) * whole.dim(), tuple(whole.shape), (ranks).bit_length() - 1)
        for rank, box in zip(chance.sample(range(ranks), len(boxes)), boxes, strict=True):
            pieces[rank][name] = Piece(of(whole, box), box[0], tuple(whole.shape))
    savers = [Saver(directory, rank, keep) for rank in range(ranks)]
    for saver, held in zip(savers, pieces, strict=True):
        saver.begin(step, held, facts)
        assert saver.busy
    for saver in savers:
        saver.wait()
        assert saver.written() and saver.busy
    for saver in savers:
        saver.commit()
        assert not saver.busy
    return State(directory / f"step-{step:08d}")


def whole_of(found: State, name: str) -> Tensor:
    dtype = torch.bfloat16 if name == "exp_avg/b" else torch.float32
    into = torch.full(found.facts["tensors"][name]["shape"], torch.nan, dtype=dtype)
    found.read(name, (0,) * into.dim(), into)
    return into


def holds(found: State | None, tensors: dict[str, Tensor]) -> bool:
    assert found is not None
    return all(torch.equal(whole_of(found, name), whole) for name, whole in tensors.items())


def place(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}"


# -- boxes


@pytest.mark.parametrize("shape", [(23, 17), (6, 40), (31,), (5, 7, 6)], ids=str)
def test_any_boxes_are_read_from_any_boxes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    chance = random.Random(str(shape))
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for seed in range(8):
        ranks = 2 ** chance.randrange(4)
        found = saved(tmp_path / str(seed), 1, {"x": whole}, ranks, seed=seed)
        for box in cut(chance, (0,) * len(shape), shape, 4):
            into = torch.full(box[1], torch.nan)
            found.read("x", box[0], into)
            assert torch.equal(into, of(whole, box)), (seed, box)
        held = torch.full([2 * size for size in shape], torch.nan)  # also where it is not contiguous
        strided = held[tuple(slice(None, None, 2) for _ in shape)]
        found.read("x", (0,) * len(shape), strided)
        assert torch.equal(strided, whole)
        assert int(held.isnan().sum()) == held.numel() - whole.numel()


def test_a_box_of_nothing_is_read(tmp_path: Path) -> None:
    found = saved(tmp_path, 1, wholes())
    found.read("parameter/a", (7, 0), torch.empty(0, 5))


def test_every_bit_comes_back(tmp_path: Path) -> None:
    odd = torch.tensor([torch.nan, -0.0, 0.0, torch.inf, -torch.inf, 1e-45, 3.4e38])
    into = torch.empty(7)
    saved(tmp_path, 1, {"x": odd}, 4).read("x", (0,), into)
    assert torch.equal(into.view(torch.int32), odd.view(torch.int32))


def test_what_a_state_does_not_hold_is_named(tmp_path: Path) -> None:
    found = saved(tmp_path, 1, wholes())
    with pytest.raises(Fault, match=r"manifest.json: parameter/c: missing"):
        found.read("parameter/c", (0,), torch.empty(3))
    with pytest.raises(Fault, match=r"manifest.json: parameter/a: holds 35 of the 40 elements wanted"):
        found.read("parameter/a", (0, 0), torch.empty(8, 5))
    with pytest.raises(Fault, match=r"parameter/b: holds 4 of the 9 elements"):
        found.read("parameter/b", (5,), torch.empty(9))


def test_a_piece_that_no_process_has_written_is_missed(tmp_path: Path) -> None:
    saver = Saver(tmp_path, 0, 2)
    saver.begin(1, {"x": Piece(torch.ones(3, 4), (0, 0), (6, 4))}, {})
    saver.wait()
    saver.commit()
    with pytest.raises(Fault, match="x: holds 12 of the 24 elements wanted"):
        State(place(tmp_path, 1)).read("x", (0, 0), torch.empty(6, 4))


# -- what is written


def test_a_manifest_says_what_is_where_and_can_be_read(tmp_path: Path) -> None:
    found = saved(tmp_path, 12, wholes(), 3, refused=4, asked={"stage": "test"})
    facts = json.loads((found.place / state.MANIFEST).read_text())
    assert (facts["format"], facts["step"], facts["refused"], facts["asked"]) == (3, 12, 4, {"stage": "test"})
    assert facts == manifest.load_signed(found.place / state.MANIFEST)
    listed = {file["path"]: file for file in facts["files"]}
    assert listed.keys() | {state.MANIFEST} == {path.name for path in found.place.iterdir()}
    assert {name: tensor["shape"] for name, tensor in facts["tensors"].items()} == {
        name: list(whole.shape) for name, whole in wholes().items()
    }
    assert {chunk["file"] for tensor in facts["tensors"].values() for chunk in tensor["chunks"]} <= listed.keys()
    found.check(0, 1)


def test_nothing_of_it_is_a_pickle(tmp_path: Path) -> None:
    found = saved(tmp_path, 1, wholes())
    for path in found.place.iterdir():
        head = path.read_bytes()[:9]
        assert path.suffix in (".json", ".safetensors")
        assert head[:1] == b"{" if path.suffix == ".json" else head[8:9] == b"{", path
        assert not head.startswith((b"\x80", b"PK"))


def test_all_but_the_newest_are_pruned_and_later_ones_too(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        saved(tmp_path, step, wholes(step), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]
    saved(tmp_path, 5, wholes(5), keep=3)  # by a run that found the state of step 10 damaged
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000005"]
    saved(tmp_path, 5, wholes(6), keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005"]
    assert holds(state.newest(tmp_path), wholes(6))


def test_a_state_counts_when_it_is_committed_and_not_before(tmp_path: Path) -> None:
    saved(tmp_path, 1, wholes(1))
    saver = Saver(tmp_path, 0, 2)
    saver.begin(2, {name: Piece(t, (0,) * t.dim(), tuple(t.shape)) for name, t in wholes(2).items()}, {})
    saver.wait()
    assert holds(state.newest(tmp_path), wholes(1))
    saver.commit()
    assert holds(state.newest(tmp_path), wholes(2))


def test_writing_does_not_hold_up_what_begins_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits on a slow disk in a thread of its own."""
    slow, real = threading.Event(), os.fsync

    def sync(handle: int) -> None:
        slow.wait(PATIENCE)
        real(handle)

    monkeypatch.setattr(os, "fsync", sync)
    saver = Saver(tmp_path, 0, 2)
    saver.begin(1, {"x": Piece(torch.ones(3), (0,), (3,))}, {})
    assert not saver.written()
    slow.set()
    saver.wait()
    assert saver.written()
    saver.commit()


LEAVING = """
import os, signal, sys, threading, torch
from pathlib import Path
from llamactl.artifacts.state import Piece, Saver
from llamactl.artifacts.tensors import Later
begun = threading.Event()
def pieces():
    for _ in range(10**6):
        yield torch.ones(1 << 15) + 1
        begun.set()
saver = Saver(Path(sys.argv[1]), 0, 1)
saver.begin(1, {"x": Piece(Later(torch.float32, (10**6, 1 << 15), pieces), (0, 0), (10**6, 1 << 15))}, {})
begun.wait()
if sys.argv[2] == "waiting":
    threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
    try:
        saver.wait()
    except KeyboardInterrupt:
        sys.exit(3)
sys.exit(3)
"""


@pytest.mark.parametrize("meanwhile", ["training", "waiting"])
def test_a_process_that_ends_while_it_writes_stops_writing_first(meanwhile: str, tmp_path: Path) -> None:
    """Else Python, as it is taken down, aborted it now and then: the thread was in torch's code."""
    command = [sys.executable, "-c", LEAVING, str(tmp_path), meanwhile]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (3, b"")
    assert not any(tmp_path.rglob("rank-*"))
    assert state.newest(tmp_path) is None


# -- damaged


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 16
    path.write_bytes(data)


def edited(path: Path) -> None:
    text = path.read_text()
    assert '"refused": 0' in text
    path.write_text(text.replace('"refused": 0', '"refused": 1'))


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a bit": ("rank-00001.safetensors", flip, "its bytes differ from what manifest.json says"),
    "cut": ("rank-00001.safetensors", lambda path: os.truncate(path, 100), "its bytes differ"),
    "empty": ("rank-00000.safetensors", lambda path: os.truncate(path, 0), "its bytes differ"),
    "longer": ("rank-00000.safetensors", lambda path: path.open("ab").write(b"x"), "its bytes differ"),
    "missing": ("rank-00001.safetensors", Path.unlink, "is missing"),
    "edited": ("manifest.json", edited, "was changed after it was written"),
    "a manifest cut": ("manifest.json", lambda path: os.truncate(path, 50), "is no manifest of llamactl"),
    "a manifest of zeros": ("manifest.json", lambda path: path.write_bytes(bytes(500)), "is no manifest of llamactl"),
    "no manifest": ("manifest.json", Path.unlink, "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_damaged_state_is_named_and_the_older_one_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, parts: int
) -> None:
    """Whoever of the processes that share the checking finds it."""
    name, harm, said = DAMAGES[damage]
    saved(tmp_path, 3, wholes(3), refused=0)
    newest = saved(tmp_path, 6, wholes(6), refused=0)
    harm(newest.place / name)

    def seen(part: int, place: Path) -> bool:
        try:
            State(place).check(part, parts)
        except Fault:
            return False
        return True

    for part in range(parts):
        asked = iter([newest.place, place(tmp_path, 3)])

        def agreed(fine: bool, asked: Iterator[Path] = asked, part: int = part) -> bool:
            where = next(asked)
            assert fine == seen(part, where)
            return all(seen(other, where) for other in range(parts))

        found = state.newest(tmp_path, part, parts, agreed)
        assert found is not None and found.facts["step"] == 3
        assert holds(found, wholes(3))
    assert f"state refused: {newest.place / name}: {said}" in capsys.readouterr().err


def test_no_state_is_none_and_no_whole_state_is_a_fault(tmp_path: Path) -> None:
    assert state.newest(tmp_path / "none") is None
    for step in (1, 2):
        flip(saved(tmp_path, step, wholes()).place / "rank-00000.safetensors")
    with pytest.raises(Fault, match="holds no state that is whole; --no-resume to start over"):
        state.newest(tmp_path)


def test_a_state_of_another_format_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, 1, wholes())
    newer = saved(tmp_path, 2, wholes()).place / state.MANIFEST
    newer.write_bytes(manifest.dumps(manifest.load_signed(newer) | {"format": 4}))
    found = state.newest(tmp_path)
    assert found is not None and found.facts["step"] == 1
    assert "is a state of another version of llamactl" in capsys.readouterr().err


# -- a disk that fails, a process that dies

CALLS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir")


@contextmanager
def failing(at: int, ending: Callable[[], object]) -> Iterator[list[str]]:
    """Have the ``at``-th call that touches the disk end otherwise; the calls so far."""
    calls: list[str] = []
    lock = threading.Lock()

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            with lock:
                calls.append(name)
                now = len(calls) == at
            if now:
                ending()
            return real(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counted(name, getattr(os, name)))
        yield calls


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_process_killed_at_any_call_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    for at in range(1, 100):
        directory = tmp_path / str(at)
        for step in (1, 2):
            saved(directory, step, wholes(step))
        child = os.fork()
        if child == 0:
            try:
                with failing(at, lambda: os._exit(9)):
                    saved(directory, 3, wholes(3))
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        found = state.newest(directory)
        assert found is not None and found.facts["step"] in (2, 3), at
        assert holds(found, wholes(found.facts["step"])), at
        done = os.waitstatus_to_exitcode(status) == 0
        assert os.waitstatus_to_exitcode(status) in (0, 9)
        if done:
            break
    assert found.facts["step"] == 3
    assert at > 12


def test_a_disk_that_fails_at_any_call_leaves_the_old_or_the_new_and_says_where(tmp_path: Path) -> None:
    for at in range(1, 100):
        directory = tmp_path / str(at)
        for step in (1, 2):
            saved(directory, step, wholes(step))
        with failing(at, full) as calls, suppress(OSError):
            saved(directory, 3, wholes(3))
        found = state.newest(directory)
        assert found is not None and found.facts["step"] in (2, 3), at
        assert holds(found, wholes(found.facts["step"])), (at, calls)
        if len(calls) < at:
            break
    assert at > 12
    assert {"fsync", "rename", "unlink"} <= set(calls)


@pytest.mark.parametrize("size", [0, 10, 150, 300])
def test_an_error_in_the_background_is_raised_with_the_file_named(tmp_path: Path, size: int) -> None:
    """As on a full disk: no file of this process can grow beyond some size."""
    saved(tmp_path, 1, wholes(1))
    saver = Saver(tmp_path, 1, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        saver.begin(2, {"x": Piece(torch.ones(100), (0,), (100,))}, {})
        with pytest.raises(OSError, match="File too large") as error:
            saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value.filename).startswith(str(tmp_path / ".step-00000002.partial"))
    with pytest.raises(OSError, match="File too large"):
        saver.written()
    assert holds(state.newest(tmp_path), wholes(1))


def test_what_was_left_half_written_is_not_looked_at(tmp_path: Path) -> None:
    saved(tmp_path, 1, wholes(1))
    shutil.copytree(place(tmp_path, 1), tmp_path / ".step-00000009.partial")
    assert holds(state.newest(tmp_path), wholes(1))
