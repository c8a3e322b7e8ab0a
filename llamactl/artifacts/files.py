"""Files that appear whole or not at all.

An artifact is written beside its name (``.NAME.partial``), synced, and renamed; so *it exists* means *it is complete*.
The partial file or directory is locked while it is written: a second run with the same output refuses, and one left by
a killed run is taken over. A crash at any moment leaves the old artifact or the new one, never a mixture.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from llamactl.errors import Fault

CHUNK = 4 << 20  # bytes read at once while hashing


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


def sync(path: Path) -> None:
    """Have the operating system write a file or a directory's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Hold ``path`` (a file or a directory) for this process alone; yields its descriptor.

    Raises Fault where another process holds it. A lock dies with its process, so a killed run leaves none.
    """
    while True:
        handle = os.open(path, flags, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise Fault(path, "another run is writing here", "wait for it, or write elsewhere with -o") from None
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


def _partial(path: Path) -> Path:
    if not path.parent.is_dir():
        raise Fault(path, f"there is no directory {path.parent}", f"mkdir -p {path.parent}")
    return path.with_name(f".{path.name}.partial")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it gets its name when the block ends well, and is removed when it does not."""
    partial = _partial(path)
    if path.is_dir():
        raise Fault(path, "is a directory", "name a file with -o")
    with locked(partial, os.O_RDWR | os.O_CREAT) as handle:
        os.ftruncate(handle, 0)
        try:
            with os.fdopen(os.dup(handle), "wb") as file:
                yield file
                file.flush()
                os.fsync(handle)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to fill; it gets its name, all files synced, when the block ends well.

    A directory that has the name already is replaced: whether that is wanted is for the caller to ask.
    """
    partial = _partial(path)
    partial.mkdir(exist_ok=True)
    with locked(partial):
        clear(partial)
        try:
            yield partial
            for file in sorted(partial.rglob("*")):
                sync(file)
            sync(partial)
            old = path.with_name(f".{path.name}.old")
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)
            partial.rename(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)


def clear(directory: Path) -> None:
    """Remove everything in a directory but not itself (so that a lock on it stays)."""
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
