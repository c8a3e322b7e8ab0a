"""The items of a file of any shape: JSON lines, one array, one object of objects, CSV, or lines of text.

Other people's files are read as they are, as a stream, in memory that does not grow with the file; the shape is told
from the beginning. A bad item is a Fault in its place, and the next one is read: an array of a million with one bad
element still has the others. (Libraries that stream arrays stop at the first error and name no line, so the splitting
is ours.)
"""

import csv
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

import orjson

from llamactl.artifacts import jsonl
from llamactl.artifacts.jsonl import Input, Line
from llamactl.artifacts.records import Shard
from llamactl.errors import Fault

Shape = Literal["lines", "values", "array", "members", "csv", "tsv", "text"]  # values: objects, over several lines each

BOM = b"\xef\xbb\xbf"
_BY_NAME: dict[str, Shape] = {".jsonl": "lines", ".ndjson": "lines", ".csv": "csv", ".tsv": "tsv", ".txt": "text"}
_DELIMITERS = {"csv": ",", "tsv": "\t"}
# Up to the next bracket that is in no string; possessive, so that looking on in more data costs no backtracking.
_TO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+([\[\]{}])', re.DOTALL)
_NESTED = re.compile(rb'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{', re.DOTALL)  # an object whose first value is an object
_MEMBER = re.compile(rb'("(?:[^"\\]|\\.)*")\s*:', re.DOTALL)
_ELEMENT = re.compile(rb'(?:[^",]++|"(?:[^"\\]++|\\.)*+")++', re.DOTALL)  # up to the next comma that is in no string


class Item(NamedTuple):
    """One item: its place for messages, its value, and its name in an object of objects."""

    where: str
    value: Any
    name: str | None = None


class File:
    """An open file as a stream of items. ``tell()`` is how far it was read as it lies on the disk."""

    def __init__(self, given: Input, path: str, shard: Shard = Shard(), max_line: int = jsonl.MAX_LINE) -> None:
        head, self._given = given.beginning()
        self.path, self.shape, self.tell = path, shape(head, path), given.tell
        self._shard, self._max_line = shard, max_line

    def __iter__(self) -> Iterator[Item | Fault]:
        if self.shape == "lines":
            yield from map(_parsed, self._lines(self._shard))
            return
        if self.shape == "text":
            every: Iterator[Item | Fault] = map(_text, self._lines(Shard()))
        else:
            every = self._rows() if self.shape in _DELIMITERS else self._values()
        yield from (item for number, item in enumerate(every) if self._shard.holds(number))

    def _lines(self, shard: Shard) -> Iterator[Line | Fault]:
        for block in jsonl.blocks_in(self._given, self.path, max_line=self._max_line):
            yield from jsonl.lines(block, shard, self._max_line)

    def _rows(self) -> Iterator[Item | Fault]:
        csv.field_size_limit(min(self._max_line, sys.maxsize))
        text = io.TextIOWrapper(self._given.stream, "utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.reader(text, strict=True, delimiter=_DELIMITERS[self.shape])
        header: list[str] = []
        while True:
            where = f"{self.path}:{rows.line_num + 1}"
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if not header:  # what follows would be read by the names of another row
                    raise Fault(where, f"the header is no CSV: {error}", "mend the file") from None
                yield Fault(where, f"is no CSV: {error}")
                continue
            if not header:
                header = row
                if any(map(_undecoded, header)):
                    raise Fault(where, "the name of a column is not UTF-8", "convert the file to UTF-8")
                if twice := [name for name in header if header.count(name) > 1]:
                    raise Fault(where, f"two columns are named {twice[0]!r}", "name them apart")
            elif row:
                yield _row(where, header, row)

    def _values(self) -> Iterator[Item | Fault]:
        """Each value parsed by itself, and what stands between them checked."""
        base = 0 if self.shape == "values" else 1
        for number, (line, before, value) in enumerate(self._split(base)):
            where, name = f"{self.path}:{line}", None
            strays = list(_strays(before, line - before.count(b"\n")))
            if self.shape == "members" and value and strays and (member := _MEMBER.fullmatch(strays[-1][1])):
                name = member[1]
                strays.pop()
            if base and number and value and b"," not in _ELEMENT.sub(b"", before):
                yield Fault(where, "no comma stands before it")
            for own, stray in strays:
                yield Fault(f"{self.path}:{own}", f"is no object: {_shown(stray)}")
            if len(value) > self._max_line:
                problem = f"the item is longer than {self._max_line:,} bytes"
                yield Fault(where, problem, "allow more with --max-line, or skip it with --skip-bad")
            elif value:
                yield _parsed(Line(where, number, value), name)

    def _split(self, base: int) -> Iterator[tuple[int, bytes, bytes]]:
        """Values in brackets with ``base`` brackets open around them: their line, what stood before, their bytes.

        The last is empty: what stood after all of them.
        """
        stream = self._given.stream
        data, line, start, at, depth = b"", 1, 0, 0, 0  # start: of a value, or of what stands before one
        before = b""
        while True:
            found = _TO_BRACKET.match(data, at)
            if not found:
                if len(data) - start > self._max_line:
                    problem = f"an item of more than {self._max_line:,} bytes, or a quote or bracket in it has no end"
                    raise Fault(f"{self.path}:{line}", problem, "mend it, or allow more with --max-line")
                more = stream.read(jsonl.BLOCK)
                if not more:
                    break
                data, at, start = (data[start:] + more).removeprefix(BOM), at - start, 0
                continue
            at, opens = found.end(), found[1] in b"[{"
            if opens and depth == base:
                before, start = data[start : at - 1], at - 1
                line += before.count(b"\n")
            depth += 1 if opens else -1
            if opens and depth == base:  # the one around all of them
                line, start = line + data.count(b"\n", start, at), at
            elif not opens and depth == base:
                yield line, before, data[start:at]
                line, start = line + data.count(b"\n", start, at), at
            elif depth < base:
                before = data[start : at - 1]
                yield line + before.count(b"\n"), before, b""
                line, start = line + data.count(b"\n", start, at), at - (depth < 0)  # one too many is shown
                break
        rest = data[start:]
        while not rest.strip() and (more := stream.read(jsonl.BLOCK)):
            line, rest = line + rest.count(b"\n"), more
        if depth >= max(base, 1):
            raise Fault(f"{self.path}:{line}", "is cut short: what begins here has no end", "copy the file again")
        if depth < 0 or rest.strip():
            line += rest[: len(rest) - len(rest.lstrip())].count(b"\n")
            raise Fault(f"{self.path}:{line}", f"is no part of what came before: {_shown(rest)}", "mend the file")


@contextmanager
def opened(path: str, shard: Shard = Shard(), max_line: int = jsonl.MAX_LINE) -> Iterator[File]:
    """A file, or stdin, as a stream of items; raises Fault where it is missing, empty or damaged."""
    with jsonl.open_input(path) as given:
        yield File(given, path, shard, max_line)


def shape(head: bytes, path: str) -> Shape:
    """What kind of file begins like this: told by its name for lines, CSV and text, by its first brackets else."""
    stem = path.removesuffix(".gz").removesuffix(".zst")
    if named := _BY_NAME.get(PurePath(stem).suffix):
        return named
    head = head.removeprefix(BOM)
    if head.lstrip()[:1] == b"[":
        return "array"
    if head.lstrip()[:1] == b"{":
        return _shape_of_objects(head)
    first = head.partition(b"\n")[0]
    return "tsv" if b"\t" in first else "csv" if b"," in first else "text"


def _shape_of_objects(head: bytes) -> Shape:
    end = _end_of_object(head)
    if end is not None and head[end:].strip():
        return "values" if b"\n" in head[:end].strip() else "lines"
    try:
        only = orjson.loads(head[:end])
    except orjson.JSONDecodeError:  # damaged, or larger than what was looked at
        return "members" if _NESTED.match(head) else "values" if b"\n" in head else "lines"
    return "members" if only and all(isinstance(value, dict) for value in only.values()) else "values"


def _end_of_object(head: bytes) -> int | None:
    depth = at = 0
    while found := _TO_BRACKET.match(head, at):
        at, depth = found.end(), depth + (1 if found[1] in b"[{" else -1)
        if depth <= 0:
            return at
    return None


def _strays(before: bytes, line: int) -> Iterator[tuple[int, bytes]]:
    """What stands between the commas of ``before``, which begins in ``line``, each with its line."""
    for found in _ELEMENT.finditer(before):
        if stray := found[0].strip():
            yield line + before.count(b"\n", 0, found.end() - len(found[0].lstrip())), stray


def _shown(data: bytes) -> str:
    """The beginning of it, in one line."""
    return b" ".join(data.strip()[:60].split()).decode(errors="replace")


def _parsed(line: Line | Fault, name: bytes | None = None) -> Item | Fault:
    if isinstance(line, Fault):
        return line
    try:
        return Item(line.where, jsonl.parsed(line), jsonl.parsed(line._replace(data=name)) if name else None)
    except Fault as fault:
        return fault


def _text(line: Line | Fault) -> Item | Fault:
    if isinstance(line, Fault):
        return line
    try:
        return Item(line.where, line.data.decode())
    except UnicodeDecodeError as error:
        return Fault(line.where, jsonl.what_is_wrong(line.data, error))


def _row(where: str, header: list[str], row: list[str]) -> Item | Fault:
    if len(row) != len(header):
        return Fault(where, f"has {len(row)} cells, the header {len(header)}")
    for name, cell in zip(header, row, strict=True):
        if _undecoded(cell):
            return Fault(where, f"{name}: is not UTF-8")
    return Item(where, dict(zip(header, row, strict=True)))


def _undecoded(cell: str) -> bool:
    """Whether a byte of it was no UTF-8, and so was read as a surrogate."""
    try:
        cell.encode()
    except UnicodeEncodeError:
        return True
    return False
