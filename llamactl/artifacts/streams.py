"""What comes through a pipe: it can be read but once, so its size and digest are taken as it is read.

By them it is known whether the same came through again: to a run that is to go on, or has made what it would make.
"""

import sys
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from llamactl.artifacts.files import CHUNK, Stamp
from llamactl.errors import Fault

STDIN = "-"


class Stream:
    """Bytes of stdin or of a named pipe, and what is known of those that have been read."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._digest, self._size = raw, sha256(), 0
        self.stamp: Stamp | None = None  # once all has come through

    def read(self, size: int) -> bytes:
        """The next ones; none at the end."""
        data = self._raw.read(size)
        self._digest.update(data)
        self._size += len(data)
        if not data:
            self.stamp = Stamp(self._size, self._digest.hexdigest())
        return data

    def close(self) -> None:
        """A pipe; stdin is left open."""
        if self._raw is not getattr(sys.stdin, "buffer", None):
            self._raw.close()


_opened: dict[str, Stream] = {}


def is_one(path: str) -> bool:
    """Whether it can be read but once."""
    return path == STDIN or Path(path).is_fifo()


def opened(path: str) -> Stream:
    """Raises Fault where there is no stdin."""
    if path == STDIN and sys.stdin is None:
        raise Fault("stdin", "is closed", "give a file, or pipe something in")
    _opened[path] = Stream(sys.stdin.buffer if path == STDIN else Path(path).open("rb"))  # noqa: SIM115
    return _opened[path]


def forgotten(path: str) -> None:
    """What was read of it is nothing to whoever asks from now on."""
    _opened.pop(path, None)


def stamp(path: str) -> Stamp | None:
    """Size and digest of what has come through; None as long as it has not come to an end."""
    return _opened[path].stamp if path in _opened else None


def read_out(path: str) -> None:
    """Read what is left of it."""
    stream = _opened.get(path) or opened(path)
    while stream.stamp is None:
        stream.read(CHUNK)
    stream.close()
