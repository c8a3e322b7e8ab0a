"""A corpus: ``.txt`` (one document a file), ``.jsonl`` of Documents, a directory of either, or a pipe of JSON lines.

Files may be compressed. A corpus is read as blocks, so that the reading (decompressing, splitting) happens once and the
rest (parsing, checking, tokenizing) can be done by other processes: ``documents(block)`` needs nothing but the block.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from llamactl.artifacts import jsonl, streams
from llamactl.artifacts.jsonl import Block
from llamactl.artifacts.records import Document, Shard, in_words
from llamactl.artifacts.run import Run
from llamactl.errors import Fault

PACKED = ("", ".gz", ".zst")
TEXT = tuple(f".txt{suffix}" for suffix in PACKED)
LINES = tuple(f".jsonl{suffix}" for suffix in PACKED)
MAX_TEXT = 1 << 30  # bytes of one .txt document, unpacked

_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which encodings with escapes can spell
_decoder = msgspec.json.Decoder(Document)


class Reading(NamedTuple):
    """How to read: what is not UTF-8 as ``encoding`` (None: refuse it), which records, and the longest line allowed."""

    encoding: str | None = None
    shard: Shard = Shard()
    max_line: int = jsonl.MAX_LINE


class Place(NamedTuple):
    """A document and where it stood; ``as_encoding`` where it had to be read in another encoding than UTF-8."""

    document: Document
    where: str
    as_encoding: str | None


def files(corpus: Sequence[str]) -> tuple[list[str], Counter[str]]:
    """The files of a corpus, directories walked in sorted order, and how many in them were passed over, by reason.

    Raises Fault for one that is missing, no corpus, or named twice.
    """
    found: list[str] = []
    passed_over: Counter[str] = Counter()
    for name in corpus:
        path = Path(name)
        if (streams.is_one(name) and not name.endswith(TEXT)) or (path.is_file() and name.endswith(TEXT + LINES)):
            found.append(name)
        elif path.is_dir():
            inside = sorted(_inside(path))
            seen = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)]
            there = [p for p in seen if p.is_file()]
            readable = [str(p) for p in there if str(p).endswith(TEXT + LINES)]
            if not readable:
                raise Fault(name, "holds no .txt and no .jsonl files (plain, .gz or .zst)", "name another directory")
            passed_over["hidden files"] += len(inside) - len(seen)
            passed_over["links to directories or to nothing, and pipes"] += len(seen) - len(there)
            passed_over["files neither .txt nor .jsonl"] += len(there) - len(readable)
            found += readable
        elif path.exists():
            raise Fault(name, "is neither .txt nor .jsonl (plain, .gz or .zst)", "rename it, or convert it")
        else:
            raise Fault(name, "no such file or directory", "name one that is there")
    places = [os.path.normpath(Path(name).absolute()) for name in found]  # ./a.txt is a.txt; links are not followed
    times = Counter(places)
    if twice := [name for name, place in zip(found, places, strict=True) if times[place] > 1]:
        raise Fault(twice[0], "is named twice, or lies in a directory that is named too", "name it once")
    return found, +passed_over


def _inside(directory: Path) -> Iterator[Path]:
    """All that lies in a directory and below; links to others are not followed. OSError where one cannot be read."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _inside(path)
        else:
            yield path


def blocks(names: Sequence[str], reading: Reading = Reading()) -> Iterator[Block]:
    """The files of a corpus in blocks: about 1 MiB of JSON lines, or a whole text file by its name (``data`` empty)."""
    number = 0
    for path in names:
        if path.endswith(TEXT):
            if reading.shard.holds(number):
                yield Block(path, 0, number, b"", disk=Path(path).stat().st_size)
            number += 1
        else:
            first = number
            for block in jsonl.blocks([path], reading.max_line):
                number = first + block.number + (block.data.count(b"\n") or 1)
                yield block._replace(number=first + block.number)


def documents(block: Block, reading: Reading = Reading()) -> Iterator[Place | Fault]:
    """The documents of a block, in order; a Fault in the place of one that cannot be used."""
    if block.line == 0:
        yield _text(block.path, reading.encoding)
        return
    for line in jsonl.lines(block, reading.shard, reading.max_line):
        yield line if isinstance(line, Fault) else _document(line, reading.encoding)


def _document(line: jsonl.Line, encoding: str | None) -> Place | Fault:
    used = None
    try:
        try:
            document = _decoder.decode(line.data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if encoding is None or not _foreign(line.data):
                raise
            document = _decoder.decode(line.data.decode(encoding).encode())
            used = encoding
    except msgspec.ValidationError as error:
        return Fault(line.where, in_words(error))
    except (msgspec.DecodeError, UnicodeError) as error:
        remedy = "" if encoding or not _foreign(line.data) else "name the encoding, for example --encoding latin-1"
        try:
            jsonl.parsed(line)
        except Fault as fault:  # in clearer words: half a character is "truncated" input to msgspec
            return Fault(line.where, fault.problem, remedy)
        return Fault(line.where, jsonl.what_is_wrong(line.data, error), remedy)
    except RecursionError:
        return Fault(line.where, "is nested too deeply")
    if not document.text:
        return Fault(line.where, "text: is empty")
    return Place(document, line.where, used)


def _foreign(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return True
    return False


def _text(path: str, encoding: str | None) -> Place | Fault:
    try:
        with jsonl.open_input(path) as (file, _):
            data = file.read(MAX_TEXT + 1)
    except Fault as fault:
        return fault
    if len(data) > MAX_TEXT:
        return Fault(path, f"one document of over {MAX_TEXT:,} bytes", "split it, or make it JSON lines")
    used = None
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode()
        if encoding and "\0" in text:  # UTF-16 of English is valid UTF-8 full of NULs
            text, used = data.decode(encoding), encoding
    except UnicodeDecodeError as bad:
        if encoding is None:
            return Fault(path, f"byte {bad.start} is not UTF-8", "name the encoding, for example --encoding latin-1")
        try:
            text, used = data.decode(encoding), encoding
        except UnicodeDecodeError as worse:
            return Fault(path, f"is neither UTF-8 nor {encoding} (byte {worse.start})", "name another --encoding")
    if "\0" in text:
        return Fault(
            path, f"character {text.index(chr(0))} is NUL: this is no text", "leave it out, or --encoding utf-16"
        )
    if used and (lone := _SURROGATE.search(text)):
        return Fault(path, f"holds a lone surrogate (character {lone.start()})", "name another --encoding")
    if not text:
        return Fault(path, "is empty", "leave it out")
    return Place(Document(text=text, source=path), path, used)


def read(names: Sequence[str], reading: Reading, run: Run) -> Iterator[Document]:
    """All documents of a corpus in order, in this process; ``run`` counts them and the bad ones."""
    for block in blocks(names, reading):
        for found in documents(block, reading):
            if isinstance(found, Fault):
                run.refuse(found)
                continue
            run.done["documents"] += 1
            if found.as_encoding:
                run.noted[f"documents read as {found.as_encoding}"] += 1
            yield found.document


def total_bytes(names: Sequence[str]) -> int | None:
    """Bytes on disk of a corpus, or None where a stream is part of it: for progress."""
    return None if any(map(streams.is_one, names)) else sum(Path(name).stat().st_size for name in names)
