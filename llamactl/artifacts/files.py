"""Files that appear whole or not at all.

An artifact is written beside its name (``.NAME.partial``), synced, and renamed; so *it exists* means *it is complete*.
The partial file or directory is locked while it is written: a second run with the same output refuses, and one left by
a killed run is taken over. A crash at any moment leaves the old artifact or the new one, never a mixture.
"""

import ctypes
import fcntl
import hashlib
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from llamactl.errors import Fault

CHUNK = 4 << 20  # bytes read at once while hashing
PARTIALS = ".*.partial"  # what artifacts are called while they are written


class Stamp(NamedTuple):
    """What tells one file's bytes from another's."""

    size: int
    sha256: str


def stamp(path: Path) -> Stamp:
    """Size in bytes and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Stamp(size, digest.hexdigest())


def stamps(paths: Iterable[Path]) -> list[Stamp]:
    """``stamp`` of many files, in order, on all cores (hashing releases the interpreter's lock)."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(stamp, paths))


def entry(path: Path, kind: str, written: Stamp | None = None) -> dict[str, Any]:
    """A file as manifests list it among their outputs; ``written`` is its stamp where that is known already."""
    return {"path": path.name, "kind": kind, **(written or stamp(path))._asdict()}


def sync(path: Path) -> None:
    """Have the operating system write a file or a directory's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def partial(path: Path) -> Path:
    """What an artifact is called while it is written."""
    return path.with_name(f".{path.name}.partial")


def journal(path: Path) -> Path:
    """Where it is written down what an artifact is to be made of, until it is whole."""
    return path.with_name(f".{path.name}.journal")


@contextmanager
def locked(path: Path, artifact: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Hold ``path`` (a file or a directory) for this process alone; yields its descriptor.

    Raises Fault, naming the ``artifact``, where another process holds it. A lock dies with its process, so a killed run
    leaves none.
    """
    while True:
        handle = os.open(path, flags, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise Fault(artifact, "another run is writing here", "wait for it, or write elsewhere with -o") from None
        try:  # the name may have been renamed away between opening and locking
            same = os.path.samestat(os.fstat(handle), path.stat())
        except FileNotFoundError:
            same = False
        if same:
            break
        os.close(handle)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Have an error of the operating system that names no file (a full disk) name the artifact."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def followed(path: Path) -> Path:
    """Where a link leads to, which need not be there yet; anything else is itself."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def make_room(path: Path) -> None:
    """See that a file can have this name; raises Fault where it is a directory's, a device's or a pipe's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise Fault(path, f"is a {'directory' if path.is_dir() else 'device or a pipe'}", "name a file with -o")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it gets its name when the block ends well, and is removed when it does not."""
    make_room(path)
    with named(path), locked(partial(path), path, os.O_RDWR | os.O_CREAT) as handle:
        os.ftruncate(handle, 0)
        try:
            with os.fdopen(os.dup(handle), "wb") as file:
                yield file
                file.flush()
                os.fsync(handle)
            partial(path).replace(path)
        except BaseException:
            partial(path).unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to fill; it gets its name, all files synced, when the block ends well.

    What has the name already is replaced in one step: whether that is wanted is for the caller to ask. A link stays,
    and what it leads to is filled: somebody wants it to lie there, on another disk for example.
    """
    place = followed(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    filling = partial(place)
    filling.mkdir(exist_ok=True)
    with named(path), locked(filling, path):
        clear(filling)
        try:
            yield filling
            settle(filling, place)
        except BaseException:
            shutil.rmtree(filling, ignore_errors=True)
            raise


def settle(filling: Path, path: Path) -> None:
    """Give a filled directory its name, all files synced; what has the name already is replaced in one step."""
    for file in sorted(filling.rglob("*")):
        sync(file)
    sync(filling)
    if path.exists():
        _exchange(filling, path)
    else:
        filling.rename(path)
    try:
        sync(path.parent)
    finally:
        remove(filling)  # what was replaced


def _exchange(new: Path, old: Path) -> None:
    """Have two names change places at once (Linux); elsewhere one after the other, and back where that fails."""
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None and renameat2(at_cwd, os.fsencode(new), at_cwd, os.fsencode(old), exchange) == 0:
        return
    aside = old.with_name(f".{old.name}.old")
    remove(aside)
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    aside.rename(new)


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear(directory: Path, but: Collection[str] = ()) -> None:
    """Remove everything in a directory ``but`` some names, and not itself (so that a lock on it stays)."""
    for entry in directory.iterdir():
        if entry.name not in but:
            remove(entry)
