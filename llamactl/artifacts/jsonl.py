"""JSON lines, in and out: plain, ``.zst`` or ``.gz``, ``-`` for stdin and stdout.

Lines are split on ``\\n`` alone. Compression is told by a file's first bytes when reading, and by the suffix when
writing. Reading is strict: a bad record is a ``Fault`` that names ``FILE:LINE: FIELD``, handed to the caller's
``refuse``, which raises it or counts it.
"""

import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Generic, NamedTuple, NoReturn, TypeVar, cast

import orjson
import zstandard

from llamactl import ui
from llamactl.artifacts import streams
from llamactl.artifacts.records import R, Score, Shard, checked, converting, measured
from llamactl.errors import Fault, ReaderGone

DEEPEST = 200  # levels of a record; orjson reads 1,024, and writes 254
BLOCK = 1 << 20  # bytes of whole lines handed on at once
MAX_LINE = 16 << 20  # bytes; a longer line is refused before it is parsed
MAX_WINDOW = 1 << 27  # bytes a zstd frame may ask us to keep (the format's own `--long` limit)
ZSTD_BITE = 512  # bytes of packed data unpacked at once: bounds what a hostile frame can unfold to (16 MiB)
STDIN = streams.STDIN
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG = b"0" * 19  # digits: an integer of fewer fits in 64 bits

Refuse = Callable[[Fault], None]
T = TypeVar("T")


def refuse(fault: Fault) -> NoReturn:
    """The strict way with a bad record: raise it, with what to do."""
    raise fault if fault.remedy else Fault(fault.subject, fault.problem, "mend it")


def by_every_process(names: Iterable[str]) -> None:
    """Raise Fault where several processes are each to read what can be read once."""
    if ui.world_size() > 1 and STDIN in names:
        raise Fault("stdin", "cannot be read by every process", "write it to a file first")


class Block(NamedTuple):
    """Whole lines of one file. ``line`` numbers its first line in the file from 1; ``number``, in all input, from 0."""

    path: str
    line: int
    number: int
    data: bytes
    oversized: bool = False  # the one line that stood here was over the limit, and was passed over
    disk: int = 0  # bytes of the file, as it lies on the disk, read since the block before


class Input(NamedTuple):
    """An open file: its bytes, unpacked, and how far it has been read as it lies on the disk."""

    stream: BinaryIO
    tell: Callable[[], int]

    def beginning(self) -> tuple[bytes, "Input"]:
        """Its first ``BLOCK`` bytes, and the same file with nothing read yet."""
        head = self.stream.read(BLOCK)
        whole = _Stream(chain([head], iter(lambda: self.stream.read(BLOCK), b"")))
        return head, Input(io.BufferedReader(whole, BLOCK), self.tell)


class _Stream(io.RawIOBase):
    """Bytes of an iterator as something to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _chunks(head: bytes, raw: streams.Stream | BinaryIO, size: int = BLOCK) -> Iterator[bytes]:
    yield head
    while chunk := raw.read(size):
        yield chunk


def _unpacked(packed: Iterator[bytes]) -> Iterator[bytes]:
    """The content of zstd frames; raises EOFError where the last is cut short (the library's own reader does not)."""
    frame = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()
    begun = False
    for chunk in packed:
        while chunk:
            yield frame.decompress(chunk)
            begun = True
            chunk = frame.unused_data
            if frame.eof:
                frame = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()
                begun = False
    if begun:
        raise EOFError("the last frame has no end")


@contextmanager
def open_input(path: str) -> Iterator[Input]:
    """The bytes of a file or of stdin, unpacked; raises Fault where they are missing, empty or damaged."""
    try:
        raw = streams.opened(path) if streams.is_one(path) else Path(path).open("rb")  # noqa: SIM115
    except FileNotFoundError:
        raise Fault(path, "no such file", "name one that is there") from None
    except IsADirectoryError:
        raise Fault(path, "is a directory, not a file", "name the files in it") from None
    try:
        magic = raw.read(4)
        if not magic:
            raise Fault(path if path != STDIN else "stdin", "is empty", "give it something to read, or leave it out")
        tell = int if isinstance(raw, streams.Stream) or not raw.seekable() else raw.tell
        if magic == b"\x28\xb5\x2f\xfd" or magic[1:] == b"\x2a\x4d\x18":  # pzstd begins with a frame to be skipped
            yield Input(io.BufferedReader(_Stream(_unpacked(_chunks(magic, raw, ZSTD_BITE))), BLOCK), tell)
        elif magic[:2] == b"\x1f\x8b":
            yield Input(
                cast(BinaryIO, gzip.GzipFile(fileobj=io.BufferedReader(_Stream(_chunks(magic, raw)), BLOCK))), tell
            )
        else:
            yield Input(io.BufferedReader(_Stream(_chunks(magic, raw)), BLOCK), tell)
    except (zstandard.ZstdError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Fault(path, f"the compressed data is damaged or cut short ({error})", "copy it again") from None
    finally:
        raw.close()


def blocks(paths: Iterable[str], max_line: int = MAX_LINE) -> Iterator[Block]:
    """All lines of ``paths`` in blocks of about 1 MiB, numbered on across files, in memory that does not grow."""
    number = 0
    for path in paths:
        for block in _blocks_of(path, number, max_line):
            yield block
            number = block.number + (block.data.count(b"\n") or 1)


def _blocks_of(path: str, number: int, max_line: int) -> Iterator[Block]:
    with open_input(path) as given:
        blank = True
        for block in blocks_in(given, path, number, max_line):
            blank = blank and not block.oversized and block.data.isspace()
            yield block
        if blank:
            raise Fault(path, "holds blank lines only", "leave it out")


def blocks_in(given: Input, path: str, number: int = 0, max_line: int = MAX_LINE) -> Iterator[Block]:
    """The lines of one open file in blocks; ``number`` is that of its first line."""
    line, disk = 1, 0
    rest: list[bytes] = []  # of a line whose end has not come yet
    length, skipping = 0, False  # of the rest; skipping: inside a line over the limit
    while chunk := given.stream.read(BLOCK):
        if line == 1 and not rest:
            chunk = chunk.removeprefix(b"\xef\xbb\xbf")
        end = chunk.rfind(b"\n") + 1
        if end and skipping:
            yield Block(path, line, number, b"", oversized=True)
            line, number, skipping = line + 1, number + 1, False
            chunk = chunk[chunk.find(b"\n") + 1 :]
            end = chunk.rfind(b"\n") + 1
        if end:
            data = b"".join((*rest, chunk[:end]))
            yield Block(path, line, number, data, disk=given.tell() - disk)
            disk, lines = given.tell(), data.count(b"\n")
            line, number = line + lines, number + lines
            rest, length, chunk = [], 0, chunk[end:]
        if chunk and not skipping:
            rest.append(chunk)
            length += len(chunk)
            if length > max_line:
                rest, length, skipping = [], 0, True
    if skipping:
        yield Block(path, line, number, b"", oversized=True)
    elif rest:
        yield Block(path, line, number, b"".join((*rest, b"\n")))
    elif line == 1:
        raise Fault(path, "is empty", "leave it out")


class Line(NamedTuple):
    """One line that is not blank: its place for messages, its number in all input, its bytes."""

    where: str
    number: int
    data: bytes


def lines(block: Block, shard: Shard, max_line: int = MAX_LINE) -> Iterator[Line | Fault]:
    """The lines of a block that are in ``shard`` and not blank; a Fault for one that was over the limit."""
    if block.oversized:
        remedy = "split it, or skip it with --skip-bad"
        if shard.holds(block.number):
            yield Fault(f"{block.path}:{block.line}", f"the line is longer than {max_line:,} bytes", remedy)
        return
    for index, data in enumerate(block.data.split(b"\n")[:-1]):
        if shard.holds(block.number + index) and not data.isspace() and data:
            where = f"{block.path}:{block.line + index}"
            if len(data) > max_line:
                yield Fault(
                    where, f"the line is longer than {max_line:,} bytes", "split it, or skip it with --skip-bad"
                )
            else:
                yield Line(where, block.number + index, data)


def parsed(line: Line) -> Any:
    """The JSON value of a line; raises Fault, also where it is too deep to be written again."""
    try:
        value = loads(line.data)
    except orjson.JSONDecodeError as error:
        raise Fault(line.where, what_is_wrong(line.data, error)) from None
    except RecursionError:
        raise Fault(line.where, "is nested too deeply") from None
    if line.data.count(b"{") + line.data.count(b"[") > DEEPEST and _depth(value) > DEEPEST:
        raise Fault(line.where, "is nested too deeply")
    return value


def loads(data: bytes) -> Any:
    """The value of JSON; an integer of more than 64 bits, which would become a float, is kept as it is written."""
    value = orjson.loads(data)
    return json.loads(data, parse_int=_integer) if _LONG in data.translate(_DIGITS) else value


def _integer(digits: str) -> int | orjson.Fragment:
    if len(digits) <= 20 and -(1 << 63) <= int(digits) < 1 << 64:
        return int(digits)
    return orjson.Fragment(digits)


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        inside = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level, depth = list(chain.from_iterable(inside)), depth + 1
    return depth


def what_is_wrong(data: bytes, error: Exception) -> str:
    """Why a line is no JSON, in words a person can act on."""
    try:
        data.decode()
    except UnicodeDecodeError as bad:
        return f"byte {bad.start} is not UTF-8"
    if b"\0" in data:
        return f"byte {data.index(0)} is NUL: this is no JSON"
    return f"is no JSON ({str(error).split(': line')[0]})"


class Found(NamedTuple, Generic[R]):
    """A record that was read: checked, raw (with the fields we do not know), and where it stood."""

    record: R
    raw: dict[str, Any]
    where: str


def read(
    paths: Iterable[str],
    *kinds: type[R],
    shard: Shard = Shard(),
    refuse: Refuse = refuse,
    max_line: int = MAX_LINE,
) -> Iterator[Found[R]]:
    """Records of one of ``kinds`` from files or stdin, in order."""
    for block in blocks(paths, max_line):
        for line in lines(block, shard, max_line):
            try:
                if isinstance(line, Fault):
                    raise line
                raw = parsed(line)
                yield Found(checked(raw, kinds, line.where), raw, line.where)
            except Fault as fault:
                refuse(_foreign(fault, line, kinds))


def values(paths: Iterable[str], made: Callable[[Any, str], T], refuse: Refuse = refuse) -> Iterator[tuple[str, T]]:
    """What is ``made`` of each line's value and its place, in order, and where it stands."""
    for block in blocks(paths):
        for line in lines(block, Shard()):
            try:
                if isinstance(line, Fault):
                    raise line
                yield line.where, made(parsed(line), line.where)
            except Fault as fault:
                refuse(fault)


def scores(paths: Iterable[str], refuse: Refuse = refuse) -> Iterator[tuple[str, Score]]:
    """Scores from files or stdin, in order, and where each stands; other fields than theirs are passed over."""
    return values(paths, measured, refuse)


def _foreign(fault: Fault, line: Line | Fault, kinds: Iterable[type[R]]) -> Fault:
    """A Fault, with what to do where it is of a file's first line and that is no object: an array, or CSV."""
    if fault.remedy or isinstance(line, Fault) or not line.where.endswith(":1") or line.data.lstrip()[:1] == b"{":
        return fault
    return Fault(fault.subject, fault.problem, converting(line.where, kinds))


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Where the reader of our stdout has closed it, ReaderGone is raised."""
    try:
        yield
    except BrokenPipeError:
        # the interpreter would complain once more when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ReaderGone from None


def stdout() -> BinaryIO:
    """Standard output as bytes; raises Fault where it is closed."""
    if sys.stdout is None:
        raise Fault("stdout", "is closed", "name a file with -o")
    return sys.stdout.buffer


class Writer:
    """Records out, one JSON line each, to an open binary stream; ``eager`` hands each to the next program in a pipe."""

    def __init__(self, stream: BinaryIO, eager: bool = False) -> None:
        self._stream, self._eager = stream, eager

    def write(self, record: Any) -> None:
        """Write one record; raises ReaderGone where the next program has left."""
        try:
            line = orjson.dumps(record, default=_plain, option=orjson.OPT_APPEND_NEWLINE)
        except orjson.JSONEncodeError as error:  # also in the place of what `default` has raised, as Ctrl-C does
            raise error.__cause__ or error from None
        if self._eager:
            with reader_may_leave():
                self._stream.write(line)
                self._stream.flush()
        else:
            self._stream.write(line)


def _plain(value: object) -> object:
    import msgspec

    return msgspec.to_builtins(value)


@contextmanager
def compressed(stream: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """``stream`` to write to, through zstd or gzip where ``name`` ends in ``.zst`` or ``.gz``."""
    if name.endswith(".zst"):
        with zstandard.ZstdCompressor().stream_writer(stream, closefd=False) as packed:
            yield cast(BinaryIO, packed)
    elif name.endswith(".gz"):
        with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0, filename="") as packed_gz:
            yield cast(BinaryIO, packed_gz)
    else:
        yield stream
