"""Files of any shape as a stream of items: what is read, from which line, and what a damaged item costs."""

import csv
import gzip
import io
import itertools
import json
import random
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard

from llamactl.artifacts import jsonl
from llamactl.artifacts.records import Shard
from llamactl.errors import Fault
from llamactl.formats import items
from llamactl.formats.items import Item

MIB = 1 << 20
BOM = b"\xef\xbb\xbf"

# Texts that a reader may stumble over; each of them is one value.
TEXTS = [
    "plain", 'a "quote"', "a backslash at the end\\", '\\"', "\\\\", "[{]}", "]", "}{", "a, b: c", "one\ntwo\r\nthree",
    "one\u2028two\u2029three\u0085four", "über 漢字 😀", "", " ",
]  # fmt: skip
OBJECTS = [{"text": text, "more": {text: [text, [1, None, {}]], "n": -1.5e3}} for text in TEXTS]


def dumps(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def members(values: Sequence[object]) -> dict[str, object]:
    """Values in one object; the names are as odd as the texts."""
    return {f"{number} {text}": value for number, (text, value) in enumerate(zip(TEXTS * 9, values, strict=False))}


# JSON, as it is laid out by different writers, and the shape that it has.
LAYOUTS: dict[str, tuple[items.Shape, Callable[[Sequence[object]], str]]] = {
    "lines": ("lines", lambda many: "\n".join(map(dumps, many))),
    "lines with blank ones": ("lines", lambda many: "\n\n" + "\n \t\n".join(map(dumps, many)) + "\n\n"),
    "objects over several lines": ("values", lambda many: "\n".join(dumps(one, 2) for one in many)),
    "objects with a comma between": ("values", lambda many: "\n,".join(dumps(one, 0) for one in many) + "\n"),
    "an array": ("array", lambda many: dumps(many)),
    "an array over several lines": ("array", lambda many: "\n " + dumps(many, 1) + "\n\n"),
    "an array of lines": ("array", lambda many: "[\n" + ",\n".join(map(dumps, many)) + "\n]\n"),
    "an object of objects": ("members", lambda many: dumps(members(many))),
    "an object of objects over several lines": ("members", lambda many: dumps(members(many), 3)),
}
PACKS = pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gz", "zst"])


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(path: Path | str, **how: Any) -> list[Item | Fault]:
    with items.opened(str(path), **how) as file:
        return list(file)


def values(path: Path | str, **how: Any) -> list[Any]:
    """The values of a file in which all is well."""
    found = read(path, **how)
    assert not [item for item in found if isinstance(item, Fault)]
    return [item.value for item in found if isinstance(item, Item)]


def told(path: Path, block: int = jsonl.BLOCK, **how: Any) -> list[Any]:
    """Of each item its line and value, of a bad one ``LINE: what is wrong``; last what has ended the file, if any.

    When the shape has been told, the file is read in blocks of ``block`` bytes.
    """
    found: list[Any] = []
    with items.opened(str(path), **how) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "BLOCK", block)
        try:
            for item in file:
                if isinstance(item, Fault):
                    found.append(str(item).removeprefix(f"{path}:"))
                else:
                    found.append((int(item.where.removeprefix(f"{path}:")), item.value))
        except Fault as fault:
            found.append("the end: " + str(fault).removeprefix(f"{path}:"))
    return found


# -- shapes


@PACKS
@pytest.mark.parametrize("bom", [b"", BOM], ids=["", "BOM"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_json_in_any_layout(tmp_path: Path, layout: str, bom: bytes, pack: Callable[[bytes], bytes]) -> None:
    shape, written_as = LAYOUTS[layout]
    text = written_as(OBJECTS)
    for number, end in enumerate(["\n", "\r\n"]):
        path = written(tmp_path / f"{number}.json", pack(bom + text.replace("\n", end).encode()))
        with items.opened(str(path)) as file:
            found = list(file)
            assert file.shape == shape
        assert [item.value for item in found if isinstance(item, Item)] == OBJECTS
        names = list(members(OBJECTS)) if shape == "members" else [None] * len(OBJECTS)
        assert [item.name for item in found if isinstance(item, Item)] == names


@PACKS
@pytest.mark.parametrize("bom", [b"", BOM], ids=["", "BOM"])
@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t"), ("", ","), ("", "\t")])
def test_tables(tmp_path: Path, suffix: str, delimiter: str, bom: bytes, pack: Callable[[bytes], bytes]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, delimiter=delimiter)  # which ends rows with \r\n
    writer.writerow(["text", "with, a comma\tand a tab"])
    writer.writerows([[text, text * 2] for text in TEXTS])
    path = written(tmp_path / f"a{suffix}", pack(bom + table.getvalue().encode()))
    expected = [{"text": text, "with, a comma\tand a tab": text * 2} for text in TEXTS]
    if suffix:
        assert values(path) == expected
    else:  # told by its first line
        plain = written(tmp_path / "b", pack(bom + f"a{delimiter}b\n1{delimiter}2\n".encode()))
        assert values(plain) == [{"a": "1", "b": "2"}]


@PACKS
def test_lines_of_text(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    data = BOM + " one [{\n\n \t\ntwo\u2028\\n-\nthree".encode()
    for name in ("a.txt", "a.txt.gz", "a"):
        assert told(written(tmp_path / name, pack(data))) == [(1, " one [{"), (4, "two\u2028\\n-"), (5, "three")]


@pytest.mark.parametrize(
    ("name", "data", "shape"),
    [
        ("a.jsonl", b"[1]", "lines"),
        ("a.jsonl.zst", b"[1]", "lines"),
        ("a.ndjson", b"x", "lines"),
        ("a.csv", b"[1]", "csv"),
        ("a.csv.gz", b"x", "csv"),
        ("a.tsv", b"x", "tsv"),
        ("a.txt", b'{"a": 1}', "text"),
        ("a.json", b'{"a": 1}\n{"a": 2}', "lines"),
        ("a.json", b'{"a": 1}\n{"a":\n2}', "lines"),  # told by the first
        ("a.json", b'{"a":\n1}\n{"a": 2}', "values"),
        ("a.json", b'\n\n{"a": 1}\n\n{"a": 2}', "lines"),
        ("a.json", b'{"a": 1}', "values"),
        ("a.json", b'{"a": {}}', "members"),
        ("a.json", b'{"a": {}}\n{"a": {}}', "lines"),
        ("a.json", b'{"a": {}, "b": 1}', "values"),
        ("a.json", b"{}", "values"),
        ("a.json", b" \r\n[", "array"),
        ("-", b'[{"a": 1}]', "array"),
        ("-", b"a,b\n", "csv"),
        ("-", b"a\tb, c\n", "tsv"),
        ("-", b"a\nb, c\n", "text"),
    ],
)  # fmt: skip
def test_the_shape_is_told_by_the_name_or_by_the_beginning(name: str, data: bytes, shape: str) -> None:
    assert items.shape(data, name) == shape
    assert items.shape(BOM + data, name) == shape


@pytest.mark.parametrize(
    ("begins", "shape"),
    [
        ('{"a": {"b": "', "members"),
        ('{\n"a]\\"": {"b": "', "members"),
        ('{"a": ["', "lines"),
        ('{\n"a": ["', "values"),
    ],
)
def test_the_shape_of_an_object_larger_than_what_is_looked_at(begins: str, shape: str) -> None:
    assert items.shape(begins.encode() + b"x" * 100, "a.json") == shape


@pytest.mark.parametrize("layout", LAYOUTS)
@PACKS
def test_standard_input(monkeypatch: pytest.MonkeyPatch, layout: str, pack: Callable[[bytes], bytes]) -> None:
    text = LAYOUTS[layout][1](OBJECTS)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pack(text.encode()))))
    found = read("-")
    assert [item.value for item in found if isinstance(item, Item)] == OBJECTS
    first = text[: text.index(OBJECTS[0]["text"])].rpartition("{")[0]
    if LAYOUTS[layout][0] != "members":
        assert isinstance(found[0], Item) and found[0].where == f"-:{first.count(chr(10)) + 1}"


# -- places


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", '\n{"a":1}\n\n{"a":2}', [2, 4]),
        ("a.json", '{"a":\n1}\n\n {"a":\n\n2} {"a":\n3}\n{"a":4}', [1, 4, 6, 8]),
        ("a.json", '[{"a":1},{"a":2},\n{"a":3}]', [1, 1, 2]),
        ("a.json", '\n\n[\n{"a":\n1\n},\n\n{"a":2}\n,{"a":3}]\n', [4, 8, 9]),
        ("a.json", '\n{\n\n"x": {"a":\n1},\n"y":\n{"a":2}, "z": {"a":3}}', [4, 7, 7]),
        ("a.csv", 'a\n1\n"2\n2"\n\n3\n', [2, 3, 6]),
        ("a.csv", 'a,b\r\n1,1\r\n"2\r\n2",2\r\n\r\n3,3\r\n', [2, 3, 6]),
        ("a.csv", '\n\n"a\n","b"\n1,1\n', [5]),
        ("a.txt", "\na\n\n\nb", [2, 5]),
    ],
)
def test_places_are_the_lines_where_items_begin(tmp_path: Path, name: str, text: str, expected: list[int]) -> None:
    assert [line for line, _ in told(written(tmp_path / name, text))] == expected


# -- damage


@pytest.mark.parametrize(
    ("element", "problem"),
    [
        ("{bad}", "is no JSON (unexpected character"),
        ('{"a": }', "is no JSON (unexpected character"),
        ('{"a": 1, }', "is no JSON"),
        ('{"a": "\t"}', "is no JSON"),
        ('{"a": "\\x"}', "is no JSON"),
        ('{"a": "\\ud800"}', "is no JSON"),
        ('{"a": "\udce9"}', "byte 7 is not UTF-8"),
        ('{"a": "\0"}', "byte 7 is NUL: this is no JSON"),
        ("{" * 2000 + "}" * 2000, "is no JSON"),
        ("5", "is no object: 5"),
        ("null", "is no object: null"),
        ('"a, b"', 'is no object: "a, b"'),
        ('"[{\\", "', 'is no object: "[{\\", "'),
        ('"' + "x" * 100 + '"', f'is no object: "{"x" * 59}'),
        ("a\tb", "is no object: a b"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_element_is_one_fault_in_its_place(tmp_path: Path, element: str, problem: str, place: int) -> None:
    elements = ['{"n": 1}', '{"n": 2}']
    elements.insert(place, element)
    text = "[\n" + ",\n".join(elements) + "\n]"
    found = told(written(tmp_path / "a.json", text.encode(errors="surrogateescape")))
    assert found.pop(place).startswith(f"{place + 2}: {problem}")
    assert [value for _, value in found] == [{"n": 1}, {"n": 2}]
    assert [line for line, _ in found] == [line for line in (2, 3, 4) if line != place + 2]


def test_a_comma_that_is_missing(tmp_path: Path) -> None:
    found = told(written(tmp_path / "a.json", '[{"n": 1}\n{"n": 2}, {"n": 3}]'))
    assert found == [(1, {"n": 1}), "2: no comma stands before it", (2, {"n": 2}), (2, {"n": 3})]
    found = told(written(tmp_path / "a.json", '{"x": {"n": 1},\n"y": {"n": 2} "z, z": {"n": 3}}'))
    assert found == [(1, {"n": 1}), (2, {"n": 2}), "2: no comma stands before it", (2, {"n": 3})]


def test_several_bad_elements_beside_each_other(tmp_path: Path) -> None:
    text = '[1,\n"two, [2]",\n{"n": 3}, true\n,\n\nx,\n {"n": 4}, 5]'
    assert told(written(tmp_path / "a.json", text)) == [
        "1: is no object: 1", '2: is no object: "two, [2]"', (3, {"n": 3}), "3: is no object: true",
        "6: is no object: x", (7, {"n": 4}), "7: is no object: 5",
    ]  # fmt: skip


def test_a_bad_member_of_an_object_of_objects(tmp_path: Path) -> None:
    """Also before one that is good, which keeps its own name."""
    many = '{"x": {"n": 1},\n"b": {bad},\n"c": 5, "d, e": "f, g",\n"y": {"n": 2}}'
    found = read(written(tmp_path / "a.json", many))
    assert [(item.name, item.value) for item in found if isinstance(item, Item)] == [("x", {"n": 1}), ("y", {"n": 2})]
    problems = [str(item).removeprefix(f"{tmp_path}/a.json:") for item in found if isinstance(item, Fault)]
    assert problems[0].startswith("2: is no JSON")
    assert problems[1:] == ['3: is no object: "c": 5', '3: is no object: "d, e": "f, g"']
    first_is_bad = '{"b": {bad}, "y": {"n": 2}}'
    assert told(written(tmp_path / "a.json", first_is_bad))[1:] == [(1, {"n": 2})]


@pytest.mark.parametrize(
    ("name", "problem"), [(b"\xe9", "byte 1 is not UTF-8"), (b"\\q", "is no JSON (invalid escape")]
)
def test_a_name_that_is_no_text(tmp_path: Path, name: bytes, problem: str) -> None:
    path = written(tmp_path / "a.json", b'{"x": {"n": 1},\n"' + name + b'": {"n": 2},\n"y": {"n": 3}}')
    one, fault, other = told(path)
    assert (one, other) == ((1, {"n": 1}), (3, {"n": 3}))
    assert fault.startswith(f"2: {problem}")


def test_a_bad_object_among_objects_over_several_lines(tmp_path: Path) -> None:
    text = '{\n"n": 1}\n{\n"n": bad}\n5 x\n{"n": 2}\n'
    found = told(written(tmp_path / "a.json", text))
    assert [found[0], *found[2:]] == [(1, {"n": 1}), "5: is no object: 5 x", (6, {"n": 2})]
    assert found[1].startswith("3: is no JSON")
    alone = told(written(tmp_path / "a.json", '\n{\n"n": bad\n}\n'))
    assert [fault.partition(" (")[0] for fault in alone] == ["2: is no JSON"]


def test_a_bad_line_among_lines(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "a"):
        found = told(written(tmp_path / name, b'{"n":1}\nbad\n{"n":"\xe9"}\n[2]\n{"n":3}\n'))
        assert [found[0], *found[3:]] == [(1, {"n": 1}), (4, [2]), (5, {"n": 3})]
        assert found[1].startswith("2: is no JSON")
        assert found[2] == "3: byte 6 is not UTF-8"


def test_a_line_of_text_that_is_not_utf8(tmp_path: Path) -> None:
    assert told(written(tmp_path / "a.txt", b"a\ncaf\xe9\nb")) == [(1, "a"), "2: byte 3 is not UTF-8", (3, "b")]


@pytest.mark.parametrize("layout", ["an array", "an array over several lines", "an object of objects"])
def test_a_file_cut_short_anywhere_says_so(tmp_path: Path, layout: str) -> None:
    """What comes before the cut is right, and the end is never taken for the end of the file."""
    whole = LAYOUTS[layout][1]([{"a": [1, "]"]}, {"b": {"c": '"}'}}, {"d": {}}]).strip()
    expected = values(written(tmp_path / "a.json", whole))
    assert len(expected) == 3
    for cut in range(1, len(whole)):
        *before, last = told(written(tmp_path / "a.json", whole[:cut]))
        assert [value for _, value in before] == expected[: len(before)]
        assert "is cut short: what begins here has no end" in last or "is no JSON" in last, f"cut at {cut}: {last}"


def test_an_array_that_is_cut_short_names_what_has_no_end(tmp_path: Path) -> None:
    begins = '[\n{"n": 1},\n\n{"n": [2,\n '
    end = "the end: 4: is cut short: what begins here has no end; copy the file again"
    assert told(written(tmp_path / "a.json", begins)) == [(2, {"n": 1}), end]
    assert told(written(tmp_path / "a.json", begins + '"]}, {"n": 3}]')) == [(2, {"n": 1}), end]  # a quote


def test_packed_data_that_is_cut_short(tmp_path: Path) -> None:
    text = dumps([{"n": random.Random(number).random()} for number in range(300)])
    for pack in (gzip.compress, zstandard.compress):
        with pytest.raises(Fault, match="damaged or cut short"):
            read(written(tmp_path / "a.json", pack(text.encode())[:-1]))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('[{"n":\n1}]\n\nmore\n', "4: is no part of what came before: more"),
        ('[{"n":\n1}]]', "2: is no part of what came before: ]"),
        ('[{"n":\n1}]\n[{"n": 2}]', '3: is no part of what came before: [{"n": 2}]'),
        ('{\n"n": 1}\n}\n{}', "3: is no part of what came before: } {}"),
        ('{\n"n": 1}\n{\n"n": 1}\nmore', "5: is no part of what came before: more"),
        ('{"x": {"n": 1},\n"y": {bad}}\n\n}', "4: is no part of what came before: }"),
    ],
)
def test_what_stands_after_the_end_is_refused(tmp_path: Path, text: str, shown: str) -> None:
    *_, last = told(written(tmp_path / "a.json", text))
    assert isinstance(last, str)
    assert last.removeprefix("the end: ").startswith(shown)


# -- limits


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_item_over_the_limit_is_one_fault_and_the_others_come(tmp_path: Path, layout: str) -> None:
    many = [{"n": 1}, {"n": "x" * 200}, {"n": 3}]
    found = told(written(tmp_path / "a.json", LAYOUTS[layout][1](many)), max_line=100)
    assert [value for _, value in (found[0], found[2])] == [{"n": 1}, {"n": 3}]
    assert "is longer than 100 bytes" in found[1]


def test_the_limit_holds_to_the_byte(tmp_path: Path) -> None:
    for name, frame in (("a.jsonl", "{}\n"), ("a.json", "[{}]")):
        path = written(tmp_path / name, frame.format('{"n": "%s"}' % ("x" * 11)))  # 20 bytes
        assert len(values(path, max_line=20)) == 1
        assert "longer than 19 bytes" in told(path, max_line=19)[0]


def test_the_limit_is_that_of_an_item_not_of_the_file(tmp_path: Path) -> None:
    many = [{"n": n, "text": "x" * 1000} for n in range(3000)]
    for layout in ("an array of lines", "lines"):
        assert values(written(tmp_path / "a.json", LAYOUTS[layout][1](many)), max_line=1200) == many


def test_an_item_that_does_not_fit_in_memory_is_not_held(tmp_path: Path) -> None:
    """Also one with no end: a quote or a bracket that is never closed."""
    for begins in ('[{"n": 1},\n{"n": "', '[{"n": 1},\n{"n": [', '[{"n": 1},\n"'):
        path = tmp_path / "a.json"
        with path.open("wb") as file:
            file.write(begins.encode())
            for _ in range(24):
                file.write(b'[1],"x\\"",' * (MIB // 10) if begins.endswith("[") else b"x" * MIB)
        one, last = told(path, max_line=2 * MIB)
        assert one == (1, {"n": 1})
        line = 1 if begins.endswith('\n"') else 2  # what is no object begins at the comma
        assert last.startswith(
            f"the end: {line}: an item of more than 2,097,152 bytes, or a quote or bracket in it has"
        )


def test_a_cell_over_the_limit(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "a,b\n1,2\n" + "x" * 101 + ",3\n4,5\n")
    bad = "3: is no CSV: field larger than field limit (100)"
    assert told(path, max_line=100) == [(2, {"a": "1", "b": "2"}), bad, (4, {"a": "4", "b": "5"})]
    assert len(values(path, max_line=101)) == len(values(path, max_line=1 << 70)) == 3


# -- nothing in it


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt", "a"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Fault, match=f"{name}: is empty"):
        read(written(tmp_path / name, b""))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", "[]"),
        ("a.json", " [ \n ]\n"),
        ("a.csv", "a,b\n"),
        ("a.csv", "a,b"),
        ("a.csv", "\n\n"),
        ("a.txt", "\n"),
    ],
)
def test_a_file_without_items(tmp_path: Path, name: str, data: str) -> None:
    assert read(written(tmp_path / name, data)) == []


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="no such file"):
        read(tmp_path / "absent.json")


# -- CSV


def test_rows_with_too_few_or_too_many_cells(tmp_path: Path) -> None:
    text = "a,b\n1,2\n3\n4,5,6\n\n7,8\n"
    bad = ["3: has 1 cells, the header 2", "4: has 3 cells, the header 2"]
    good = [(2, {"a": "1", "b": "2"}), (6, {"a": "7", "b": "8"})]
    assert told(written(tmp_path / "a.csv", text)) == [good[0], *bad, good[1]]


def test_a_cell_that_is_not_utf8(tmp_path: Path) -> None:
    found = told(written(tmp_path / "a.csv", b"a,b\n1,caf\xe9\n2,3\n"))
    assert found == ["2: b: is not UTF-8", (3, {"a": "2", "b": "3"})]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"a,b,a\n1,2,3\n", "1: two columns are named 'a'; name them apart"),
        (b"caf\xe9,b\n1,2\n", "1: the name of a column is not UTF-8; convert the file to UTF-8"),
        (b'"a"x,b\n1,2\n3,4\n', "1: the header is no CSV: ',' expected after '\"'; mend the file"),
    ],
)
def test_a_header_that_names_no_columns_ends_the_file(tmp_path: Path, data: bytes, problem: str) -> None:
    """No row may be read by names that are not its own."""
    assert told(written(tmp_path / "a.csv", data)) == [f"the end: {problem}"]


def test_quotes_in_a_table(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", 'a,b\n"1\n""x""",2\n3,"4\n5,6\n')
    assert told(path) == [(2, {"a": '1\n"x"', "b": "2"}), "4: is no CSV: unexpected end of data"]
    path = written(tmp_path / "a.csv", 'a,b\n"1"x,2\n3,4\n')
    assert told(path) == ["2: is no CSV: ',' expected after '\"'", (3, {"a": "3", "b": "4"})]


def test_a_table_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    table = io.StringIO()
    writer = csv.writer(table)
    rows = [[str(number), "ü, \n" * (number % 90)] for number in range(2000)]
    writer.writerows([["n", "text"], *rows])
    assert [list(row.values()) for row in values(written(tmp_path / "a.csv", table.getvalue()))] == rows


# -- parts of a job array


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((f"{layout}.json", written_as(OBJECTS)) for layout, (_, written_as) in LAYOUTS.items()),
        ("faults.json", '[{"n":1},5,{bad},{"n":2} {"n":3},{"n":4},\n"a, b",{"n":5}]'),
        ("lines with faults.jsonl", '{"n":1}\n\nbad\n\n\n{"n":2}\n{"n":3}'),
        ("a.csv", 'a,b\n1,2\n\n3\n"4\n",5\n6,7\n"8"x,9\n10,11\n'),
        ("a.tsv", "a\tb\n1\t2\n\n3\n4\t5\n6\t7\n"),
        ("a.txt", "a\n\n\nb\nc\nd\n"),
    ],
)
def test_each_item_is_in_one_part(tmp_path: Path, name: str, text: str, count: int) -> None:
    """Good or bad; and a part keeps their order."""
    path = written(tmp_path / name, text)
    whole = told(path)
    parts = [told(path, shard=Shard(index, count)) for index in range(count)]
    assert len(whole) > 3
    assert sorted(map(str, itertools.chain(*parts))) == sorted(map(str, whole))
    for part in parts:
        places = [whole.index(one) for one in part]
        assert places == sorted(places)
    if not name.endswith((".jsonl", "lines.json", "blank ones.json")):  # there, blank lines are counted
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


# -- wherever the file is cut into blocks

ODD = ['"', "\\", "[", "]", "{", "}", ",", ":", "\n", "a", "é", "\u2028", "😀"]


def text_of(chance: random.Random) -> str:
    return "".join(chance.choices(ODD, k=chance.randrange(6)))


def anything(chance: random.Random, depth: int) -> Any:
    """A JSON value, nested up to ``depth``."""
    kind = chance.choice(("text", "other", "list", "object", "object") if depth else ("text", "other"))
    if kind == "text":
        return text_of(chance)
    if kind == "other":
        return chance.choice([None, True, False, 0, -1.5, 2**53])
    many = [anything(chance, depth - 1) for _ in range(chance.randrange(4))]
    return many if kind == "list" else {text_of(chance): value for value in many}


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 7, 11, 16, 31, 64])
def test_blocks_may_end_anywhere(tmp_path: Path, block: int) -> None:
    """Held against ``json.loads`` of the whole, for values of any nesting."""
    chance, read_so = random.Random(block), set()
    for _ in range(10):
        many = [{text_of(chance): anything(chance, 4), "n": n} for n in range(chance.randrange(2, 9))]
        for layout, (shape, written_as) in LAYOUTS.items():
            if layout.startswith("an object of objects") or chance.random() < 0.5:
                many = [one | {"nested": {}} for one in many]
            text = written_as(many)
            bom = BOM if shape != "lines" and chance.random() < 0.5 else b""  # lines look for it in the first block
            found = told(written(tmp_path / "a.json", bom + text.encode()), block)
            whole = json.loads(text) if shape in ("array", "members") else many
            assert [value for _, value in found] == list(whole.values() if shape == "members" else whole)
            assert found == told(tmp_path / "a.json")  # and the same lines
            read_so.add(shape)
    assert read_so == {"lines", "values", "array", "members"}


@pytest.mark.parametrize("block", [1, 2, 3, 5, 8, 13])
def test_damage_is_found_wherever_blocks_end(tmp_path: Path, block: int) -> None:
    text = '\n[1,\n{"n": "]\\""}, {bad}, "a, b"\n {"n": 2}, x,\n\n{"n":\n3} ,4\n]\n\nmore'
    path = written(tmp_path / "a.json", text)
    *expected, last = told(path)
    assert (len(expected), last) == (8, "the end: 10: is no part of what came before: more; mend the file")
    *found, last = told(path, block)
    assert found == expected
    assert last.startswith("the end: 10: is no part of what came before: m")


# -- memory


@pytest.mark.parametrize("shape", ["array", "members", "values"])
def test_a_large_file_is_read_in_memory_that_does_not_grow(tmp_path: Path, shape: str) -> None:
    text = '"' + "x" * 20_000 + '\\"[{"'
    begin, between, end = {
        "array": ('[{"text":', '},\n{"text":', "}]"),
        "members": ('{"a":{"text":', '},\n"b":{"text":', "}}"),
        "values": ('{\n"text":', '}\n{"text":', "}"),
    }[shape]
    path = written(tmp_path / "a.json", begin + between.join([text] * 2000) + end)
    assert path.stat().st_size > 40_000_000
    with items.opened(str(path)) as file:
        assert file.shape == shape
        tracemalloc.start()
        try:
            count = sum(isinstance(item, Item) for item in file)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert count == 2000
    assert peak < 8_000_000
