"""An artifact appears whole or not at all: two writers, killed writers, and a disk that fails at every call in turn."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from llamactl.artifacts import files
from llamactl.errors import Fault

CALLS = ("fsync", "rename", "replace", "mkdir")  # of os: what a disk can refuse, writes apart
OLD = {"a": b"old " * 5000, "b": b"old"}
NEW = {"a": b"new " * 3000, "c": b"new", "sub/d": b"new"}


class Disk:
    """Makes the ``at``-th call of those in CALLS end as ``ending`` says; ``calls`` names those that were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ending: Callable[[], None]) -> None:
        self.monkeypatch, self.ending = monkeypatch, ending
        self.calls: list[str] = []

    def fail(self, at: int) -> None:
        self.calls.clear()

        def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **named: object) -> object:
                self.calls.append(name)
                if len(self.calls) == at:
                    self.ending()
                return real(*arguments, **named)

            return call

        for name in CALLS:
            self.monkeypatch.setattr(os, name, counted(name, getattr(os, name)))

    def mend(self) -> None:
        self.monkeypatch.undo()


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes: the write fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_file(path: Path, content: bytes) -> None:
    with files.whole_file(path) as file:
        for start in range(0, len(content), 1000):
            file.write(content[start : start + 1000])


def write_directory(path: Path, content: dict[str, bytes]) -> None:
    with files.whole_directory(path) as partial:
        for name, data in content.items():
            if not (partial / name).parent.exists():
                (partial / name).parent.mkdir()
            (partial / name).write_bytes(data)


def contents(path: Path) -> dict[str, bytes] | None:
    """The files of a directory by name, or None where there is none."""
    if not path.is_dir():
        return None
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


# -- whole


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with files.whole_file(path) as file:
        file.write(b"all")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"all"
    assert names(tmp_path) == ["out"]


def test_a_directory_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with files.whole_directory(path) as partial:
        (partial / "a").write_bytes(b"all")
        assert not path.exists()
    assert contents(path) == {"a": b"all"}
    assert names(tmp_path) == ["out"]


def test_a_file_keeps_the_old_content_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with files.whole_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_directory_is_replaced_not_merged(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_directory(path, OLD)
    write_directory(path, NEW)
    assert contents(path) == NEW
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), files.whole_file(tmp_path / "file") as file:
        file.write(b"half")
        raise failure
    with pytest.raises(failure), files.whole_directory(tmp_path / "directory") as partial:
        (partial / "a").write_bytes(b"half")
        raise failure
    assert names(tmp_path) == []


def test_an_exception_leaves_the_old(tmp_path: Path) -> None:
    write_file(tmp_path / "file", OLD["a"])
    write_directory(tmp_path / "directory", OLD)
    with pytest.raises(ValueError, match="stop"), files.whole_file(tmp_path / "file") as file:
        file.write(b"half")
        raise ValueError("stop")
    with pytest.raises(ValueError, match="stop"), files.whole_directory(tmp_path / "directory") as partial:
        (partial / "a").write_bytes(b"half")
        raise ValueError("stop")
    assert (tmp_path / "file").read_bytes() == OLD["a"]
    assert contents(tmp_path / "directory") == OLD
    assert names(tmp_path) == ["directory", "file"]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    """An artifact can be read by whom its owner's umask lets read, unlike most temporary files."""
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "file", b"x")
        write_directory(tmp_path / "directory", {"a": b"x"})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "directory").stat().st_mode) == 0o750


def test_missing_parents_are_made(tmp_path: Path) -> None:
    write_file(tmp_path / "absent" / "file", b"x")
    write_directory(tmp_path / "other" / "below" / "directory", NEW)
    assert (tmp_path / "absent" / "file").read_bytes() == b"x"
    assert contents(tmp_path / "other" / "below" / "directory") == NEW


def test_a_file_does_not_replace_a_directory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(Fault, match="is a directory"):
        write_file(tmp_path / "out", b"x")
    assert names(tmp_path) == ["out"]


def test_a_file_does_not_replace_a_pipe_or_a_device(tmp_path: Path) -> None:
    """``-o /dev/null`` of somebody who may write there would leave the machine without one."""
    os.mkfifo(tmp_path / "out")
    for path in (tmp_path / "out", Path("/dev/null")):
        with pytest.raises(Fault, match="is a device or a pipe"):
            files.make_room(path)
    with pytest.raises(Fault, match="is a device or a pipe"):
        write_file(tmp_path / "out", b"x")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").is_fifo()


def test_a_directory_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"a file")
    write_directory(tmp_path / "out", NEW)
    assert contents(tmp_path / "out") == NEW
    assert names(tmp_path) == ["out"]


def test_a_link_inside_is_not_followed_when_a_directory_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_bytes(b"x")
    write_directory(tmp_path / "out", OLD)
    (tmp_path / "out" / "link").symlink_to(tmp_path / "mine")
    write_directory(tmp_path / "out", NEW)
    assert names(tmp_path / "mine") == ["precious"]


@pytest.mark.parametrize("there", [True, False], ids=["full", "dangling"])
def test_a_link_to_a_directory_stays_and_what_it_leads_to_is_filled(tmp_path: Path, there: bool) -> None:
    (tmp_path / "disk").mkdir()
    if there:
        write_directory(tmp_path / "disk" / "out", OLD)
    (tmp_path / "link").symlink_to(Path("disk") / "out")
    write_directory(tmp_path / "link", NEW)
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "disk" / "out") == NEW
    assert names(tmp_path) == ["disk", "link"]
    assert names(tmp_path / "disk") == ["out"]


def test_stamp_is_size_and_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = files.Stamp(3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert files.stamp(tmp_path / "a") == expected
    assert files.stamps([tmp_path / "a"] * 3) == [expected] * 3


# -- locked

HOLD = """
import sys
from pathlib import Path
from llamactl.artifacts import files
with getattr(files, sys.argv[1])(Path(sys.argv[2])) as it:
    if hasattr(it, "write"):
        it.write(b"stale " * 10000); it.flush()
    else:
        (it / "stale").write_bytes(b"stale")
    print("writing", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_run(kind: str, path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that writes ``path`` until its stdin is closed."""
    command = [sys.executable, "-c", HOLD, kind, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        yield process
        process.kill()


@pytest.mark.parametrize("kind", ["whole_file", "whole_directory"])
def test_the_second_writer_is_refused_and_the_first_goes_on(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    with another_run(kind, path) as process:
        with pytest.raises(Fault, match="another run is writing"), getattr(files, kind)(path):
            pytest.fail("two writers at once")
        process.communicate()
    assert process.returncode == 0
    stale = b"stale " * 10000
    assert path.read_bytes() == stale if kind == "whole_file" else contents(path) == {"stale": b"stale"}
    assert names(tmp_path) == ["out"]


def test_the_second_writer_is_told_the_name_that_it_gave(tmp_path: Path) -> None:
    with another_run("whole_file", tmp_path / "out"):
        with pytest.raises(Fault) as caught:
            write_file(tmp_path / "out", b"x")
        assert caught.value.subject == str(tmp_path / "out")


@pytest.mark.parametrize("kind", ["whole_file", "whole_directory"])
def test_what_a_killed_run_left_is_taken_over(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    with another_run(kind, path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert names(tmp_path) == [".out.partial"]
    if kind == "whole_file":
        write_file(path, b"new")
        assert path.read_bytes() == b"new"
    else:
        write_directory(path, NEW)
        assert contents(path) == NEW
    assert names(tmp_path) == ["out"]


def test_a_lock_taken_on_a_name_that_has_moved_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our open and our lock the other run may finish and rename the file away: what we hold is then its."""
    path, real = tmp_path / "lock", files.fcntl.flock
    path.write_bytes(b"theirs")

    def slow(handle: int, how: int) -> None:
        monkeypatch.setattr(files.fcntl, "flock", real)
        path.rename(tmp_path / "finished")
        path.write_bytes(b"ours")
        real(handle, how)

    monkeypatch.setattr(files.fcntl, "flock", slow)
    with files.locked(path, os.O_RDWR | os.O_CREAT) as handle:
        assert os.read(handle, 10) == b"ours"


# -- a disk that fails


@pytest.mark.parametrize("old", [None, OLD["a"]], ids=["new", "replaced"])
def test_a_file_survives_a_failure_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes | None
) -> None:
    disk, failed = Disk(monkeypatch, full), set()
    for at in range(1, 100):
        directory = tmp_path / str(at)
        directory.mkdir()
        path = directory / "out"
        if old is not None:
            path.write_bytes(old)
        disk.fail(at)
        with suppress(OSError):
            write_file(path, NEW["a"])
        disk.mend()
        if len(disk.calls) < at:
            break
        failed.add(disk.calls[at - 1])
        assert (path.read_bytes() if path.exists() else None) in (old, NEW["a"]), f"call {at} of {disk.calls}"
        assert names(directory) in ([], ["out"]), f"call {at} of {disk.calls}"
    assert failed >= {"fsync", "replace"}
    assert path.read_bytes() == NEW["a"]


@pytest.mark.parametrize("old", [None, OLD], ids=["new", "replaced"])
def test_a_directory_survives_a_failure_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: dict[str, bytes] | None
) -> None:
    disk, failed = Disk(monkeypatch, full), set()
    for at in range(1, 100):
        directory = tmp_path / str(at)
        directory.mkdir()
        path = directory / "out"
        if old is not None:
            write_directory(path, old)
        disk.fail(at)
        with suppress(OSError):
            write_directory(path, NEW)
        disk.mend()
        if len(disk.calls) < at:
            break
        failed.add(disk.calls[at - 1])
        assert contents(path) in (old, NEW), f"call {at} of {disk.calls}"
        assert names(directory) in ([], ["out"]), f"call {at} of {disk.calls}"
    assert failed >= {"fsync", "mkdir"}
    assert contents(path) == NEW


@pytest.mark.parametrize("old", [None, OLD], ids=["new", "replaced"])
def test_a_run_killed_at_any_call_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: dict[str, bytes] | None
) -> None:
    """As ``kill -9`` or a power cut would, at each call in turn; the next run then goes through."""
    disk = Disk(monkeypatch, lambda: os._exit(9))
    for at in range(1, 100):
        directory = tmp_path / str(at)
        directory.mkdir()
        path = directory / "out"
        if old is not None:
            write_directory(path, old)
            write_file(directory / "file", old["a"])
        child = os.fork()
        if child == 0:
            disk.fail(at)
            try:
                write_directory(path, NEW)
                write_file(directory / "file", NEW["a"])
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert contents(path) in (old, NEW), f"killed at call {at}"
        file = directory / "file"
        assert (file.read_bytes() if file.exists() else None) in (old["a"] if old else None, NEW["a"])
        write_directory(path, NEW)
        write_file(file, NEW["a"])
        assert (contents(path), file.read_bytes()) == (NEW, NEW["a"])
        assert names(directory) == ["file", "out"]
        if os.waitstatus_to_exitcode(status) == 0:
            break
    assert at > 6  # it was killed at all of them


@pytest.mark.parametrize("size", [0, 1, 4096, 8191, 11_999])
def test_a_disk_that_is_full_leaves_the_old(tmp_path: Path, size: int) -> None:
    write_file(tmp_path / "file", OLD["a"])
    write_directory(tmp_path / "directory", OLD)
    with disk_of(size):
        with pytest.raises(OSError, match="File too large"):
            write_file(tmp_path / "file", NEW["a"])
        with pytest.raises(OSError, match="File too large"):
            write_directory(tmp_path / "directory", NEW)
    assert (tmp_path / "file").read_bytes() == OLD["a"]
    assert contents(tmp_path / "directory") == OLD
    assert names(tmp_path) == ["directory", "file"]


def test_everything_is_synced_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file, then the directory, then the rename, then the parent: no crash can show a name without its bytes."""
    order: list[str] = []
    inodes: dict[int, str] = {}
    real_sync, real_rename = os.fsync, os.rename

    def sync(handle: int) -> None:
        order.append(inodes.get(os.fstat(handle).st_ino, "?"))
        real_sync(handle)

    def rename(source: Path, target: Path) -> None:
        order.append("rename")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    inodes[tmp_path.stat().st_ino] = "parent"
    with files.whole_directory(tmp_path / "out") as partial:
        for name in ("a", "b"):
            (partial / name).write_bytes(b"x")
            inodes[(partial / name).stat().st_ino] = name
        inodes[partial.stat().st_ino] = "directory"
    assert sorted(order[:2]) == ["a", "b"]
    assert order[2:] == ["directory", "rename", "parent"]
