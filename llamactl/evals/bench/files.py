"""Benchmarks' files as their authors publish them: JSON lines, one JSON value, or CSV; what is otherwise is a Fault."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import orjson

from llamactl.artifacts import jsonl
from llamactl.artifacts.records import in_words
from llamactl.errors import Fault

REMEDY = "give it as its authors publish it"

T = TypeVar("T")


def checked(raw: Any, kind: type[T], where: str) -> T:
    """A value as one of ``kind``."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise Fault(where, in_words(error), REMEDY) from None


def lines(path: Path, kind: type[T]) -> Iterator[tuple[str, T]]:
    """Objects of JSON lines, and where each stands."""
    return jsonl.values([str(path)], lambda raw, where: checked(raw, kind, where))


def content(path: Path) -> str:
    """All that a file says."""
    with jsonl.open_input(str(path)) as given:
        data = given.stream.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Fault(path, f"byte {error.start} is not UTF-8", REMEDY) from None


def whole(path: Path, kind: type[T]) -> T:
    """A file that is one JSON value."""
    data = content(path).encode()
    try:
        return checked(jsonl.loads(data), kind, str(path))
    except orjson.JSONDecodeError as error:
        raise Fault(path, jsonl.what_is_wrong(data, error), REMEDY) from None


def rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Rows of CSV, and where each begins."""
    with jsonl.open_input(str(path)) as given:
        read = csv.reader(io.TextIOWrapper(given.stream, "utf-8-sig", newline=""), strict=True)
        where = f"{path}:1"
        try:
            for row in read:
                if row:
                    yield where, row
                where = f"{path}:{read.line_num + 1}"
        except (csv.Error, UnicodeDecodeError) as error:
            raise Fault(where, f"is no CSV: {error}", REMEDY) from None
