"""A corpus of files as they lie about: every document is used, or skipped and counted, never lost."""

import errno
import gzip
import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import orjson
import pytest
import zstandard
from conftest import DATA, Command

from llamactl.artifacts import corpus
from llamactl.artifacts.corpus import Reading
from llamactl.artifacts.records import Document, Shard
from llamactl.artifacts.run import Run
from llamactl.errors import Fault
from stages.tokenize import tokenize


def read(*names: object, run: Run | None = None, **how: object) -> list[Document]:
    paths, passed_over = corpus.files([str(name) for name in names])
    run = run or counting(skip_bad=False)
    run.skipped.update(passed_over)
    return list(corpus.read(paths, Reading(**how), run))  # type: ignore[arg-type]


def texts(*names: object, **how: object) -> list[str]:
    return [document.text for document in read(*names, **how)]


def counting(skip_bad: bool) -> Run:
    return Run("a test", {"skip_bad": skip_bad}, {})


def refused(*names: object, **how: object) -> str:
    with pytest.raises(Fault) as caught:
        read(*names, **how)
    return str(caught.value)


def written(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def lines(*many: str) -> bytes:
    return b"".join(orjson.dumps({"text": text}) + b"\n" for text in many)


# -- which files


def test_a_directory_is_walked_in_order_with_all_its_kinds(tmp_path: Path) -> None:
    written(tmp_path / "b.txt", "b")
    written(tmp_path / "a" / "z.txt.gz", gzip.compress(b"z"))
    written(tmp_path / "a" / "y.jsonl.zst", zstandard.compress(lines("y1", "y2")))
    written(tmp_path / "c.jsonl", lines("c"))
    written(tmp_path / "d.txt.zst", zstandard.compress(b"d"))
    written(tmp_path / "e.jsonl.gz", gzip.compress(lines("e")))
    assert texts(tmp_path) == ["y1", "y2", "z", "b", "c", "d", "e"]


def test_files_and_directories_come_in_the_order_they_were_named(tmp_path: Path) -> None:
    one, two = written(tmp_path / "one.txt", "1"), written(tmp_path / "two" / "2.txt", "2")
    assert texts(two.parent, one) == ["2", "1"]
    assert texts(one, two.parent) == ["1", "2"]


def test_what_is_passed_over_in_a_directory_is_counted(tmp_path: Path) -> None:
    """What an editor or git left behind is no document; but nothing is passed over in silence."""
    written(tmp_path / "a.txt", "a")
    written(tmp_path / "b.pdf", "b")
    written(tmp_path / "c" / "d.json", "{}")
    written(tmp_path / ".a.txt.swp.txt", "hidden")
    written(tmp_path / ".git" / "b.txt", "hidden")
    run = counting(skip_bad=False)
    assert [document.text for document in read(tmp_path, run=run)] == ["a"]
    assert run.skipped == {"files neither .txt nor .jsonl": 2, "hidden files": 2}


def test_links_that_are_not_followed_are_counted(tmp_path: Path) -> None:
    elsewhere, corpus_dir = tmp_path / "elsewhere", tmp_path / "corpus"
    written(elsewhere / "b.txt", "b")
    written(corpus_dir / "sub" / "a.txt", "a")
    (corpus_dir / "linked.txt").symlink_to(elsewhere / "b.txt")
    (corpus_dir / "nowhere.txt").symlink_to("absent.txt")
    (corpus_dir / "more").symlink_to(elsewhere)
    os.mkfifo(corpus_dir / "pipe.txt")
    run = counting(skip_bad=False)
    assert [document.text for document in read(corpus_dir, run=run)] == ["b", "a"]
    assert run.skipped == {"links to directories or to nothing, and pipes": 3}


def test_a_directory_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its documents would be missing, and nobody would know."""
    written(tmp_path / "a.txt", "a")
    written(tmp_path / "locked" / "b.txt", "b")
    real = os.scandir, os.listdir

    def denied(which: int, path: str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real[which](path)

    monkeypatch.setattr(os, "scandir", partial(denied, 0))
    monkeypatch.setattr(os, "listdir", partial(denied, 1))
    with pytest.raises(PermissionError) as caught:
        read(tmp_path)
    assert caught.value.filename == str(tmp_path / "locked")


def test_a_hidden_file_or_directory_that_is_named_is_read(tmp_path: Path) -> None:
    written(tmp_path / ".cache" / "a.txt", "a")
    assert texts(tmp_path / ".cache") == ["a"]
    assert texts(written(tmp_path / ".b.txt", "b")) == ["b"]


def test_what_is_no_corpus_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    written(tmp_path / "foreign" / "a.pdf", "x")
    written(tmp_path / "a.pdf", "x")
    written(tmp_path / "b.txt", "b")
    assert refused(tmp_path / "absent.txt").startswith(f"{tmp_path / 'absent.txt'}: no such file")
    assert refused(tmp_path / "empty").startswith(f"{tmp_path / 'empty'}: holds no .txt and no .jsonl files")
    assert refused(tmp_path / "foreign").startswith(f"{tmp_path / 'foreign'}: holds no .txt")
    assert refused(tmp_path / "a.pdf").startswith(f"{tmp_path / 'a.pdf'}: is neither .txt nor .jsonl")
    assert refused("-", "-").startswith("-: is named twice")
    assert refused(tmp_path, f"{tmp_path}/../{tmp_path.name}/b.txt").startswith(f"{tmp_path / 'b.txt'}: is named twice")


# -- text files


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gz", "zst"])
def test_a_text_file_is_one_document_as_it_is(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """But for a BOM, nothing is taken away: line ends, spaces at the ends and the last newline are text."""
    text = "\n  One.\r\n\r\nTwo\u2028three\u0085 \n\n"
    assert texts(written(tmp_path / "a.txt", pack(text.encode()))) == [text]
    assert texts(written(tmp_path / "b.txt", pack(b"\xef\xbb\xbf" + text.encode()))) == [text]


def test_only_the_first_bom_is_no_text(tmp_path: Path) -> None:
    assert texts(written(tmp_path / "a.txt", "\ufeff\ufeffa\ufeff")) == ["\ufeffa\ufeff"]
    assert texts(written(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + lines("\ufeffa"))) == ["\ufeffa"]


def test_white_space_alone_is_a_text(tmp_path: Path) -> None:
    assert texts(written(tmp_path / "a.txt", "\n \n")) == ["\n \n"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"caf\xe9", "byte 3 is not UTF-8"),
        (b"a\0b", "character 1 is NUL: this is no text"),
        (b"\x89PNG\r\n\x1a\n\0\0", "byte 0 is not UTF-8"),
        (gzip.compress(b"text")[:-9], "the compressed data is damaged or cut short"),
        (zstandard.compress(b"text" * 100)[:-3], "the compressed data is damaged or cut short"),
        (zstandard.compress(bytes(range(32, 127)) * 9000)[:-3], "the compressed data is damaged or cut short"),
    ],
    ids=["empty", "BOM", "latin-1", "NUL", "PNG", "cut gz", "cut zst", "cut larger zst"],
)
def test_a_text_file_that_cannot_be_used(tmp_path: Path, data: bytes, problem: str) -> None:
    path = written(tmp_path / "a.txt", data)
    good = written(tmp_path / "b.txt", "good")
    assert refused(path, good).startswith(f"{path}: {problem}")
    run = counting(skip_bad=True)
    assert [document.text for document in read(path, good, run=run)] == ["good"]
    assert (run.done["documents"], run.skipped) == (1, {"bad records": 1})


def test_a_text_that_unfolds_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "MAX_TEXT", 1000)
    path = written(tmp_path / "a.txt.zst", zstandard.compress(b"x" * 1001))
    assert refused(path).startswith(f"{path}: one document of over 1,000 bytes")
    assert texts(written(tmp_path / "a.txt.zst", zstandard.compress(b"x" * 1000))) == ["x" * 1000]


# -- JSON lines


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_json_lines_of_documents(tmp_path: Path, end: str, bom: bytes) -> None:
    data = bom + end.join(['{"text":"a","id":"x","source":"s"}', "", '{"text":"b\\r\\n"}', '{"text":" c "}']).encode()
    documents = read(written(tmp_path / "a.jsonl", data))
    assert [document.text for document in documents] == ["a", "b\r\n", " c "]
    assert (documents[0].id, documents[0].source) == ("x", "s")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text":""}', "text: is empty"),
        (b'{"txt":"a"}', "text: missing"),
        (b'{"text":7}', "text: expected `str`, got `int`"),
        (b"[]", "expected `object`, got `array`"),
        (b'{"text":"a"', "is no JSON"),
        (b'{"text":"\xe9"}', "byte 9 is not UTF-8"),
        (b'{"text":"a\0"}', "byte 10 is NUL: this is no JSON"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"text":"a"}', "is nested too deeply"),
        (b'{"text":"\\udc00"}', "is no JSON (invalid high surrogate in string)"),
        (b'{"text":"a\\ud83d"}', "is no JSON (no low surrogate in string)"),
    ],
    ids=["empty", "missing", "number", "array", "cut", "latin-1", "NUL", "deep", "second half", "first half"],
)
def test_a_line_that_cannot_be_used(tmp_path: Path, line: bytes, problem: str) -> None:
    path = written(tmp_path / "a.jsonl", lines("a") + line + b"\n" + lines("b"))
    said = refused(path)
    assert said.startswith(f"{path}:2: ")
    assert said.removeprefix(f"{path}:2: ").lower().startswith(problem.lower())
    run = counting(skip_bad=True)
    assert [document.text for document in read(path, run=run)] == ["a", "b"]
    assert (run.done["documents"], run.skipped) == (2, {"bad records": 1})


def test_encodings_are_suggested_only_where_they_may_help(tmp_path: Path) -> None:
    assert "--encoding" in refused(written(tmp_path / "a.jsonl", b'{"text":"\xe9"}'))
    assert "--encoding" not in refused(written(tmp_path / "b.jsonl", b'{"text":"e"'))
    assert "--encoding" not in refused(written(tmp_path / "c.jsonl", b'{"text":NaN}'))


# -- encodings


def test_another_encoding_is_used_where_it_is_needed_and_counted(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", "café".encode("latin-1"))
    written(tmp_path / "b.txt", "café")  # UTF-8 stays UTF-8
    written(tmp_path / "c.jsonl", '{"text":"naïve"}\n'.encode("latin-1") + lines("naïve"))
    run = counting(skip_bad=False)
    assert texts(tmp_path, encoding="latin-1", run=run) == ["café", "café", "naïve", "naïve"]
    assert run.noted == {"documents read as latin-1": 2}
    assert run.done["documents"] == 4
    assert not run.skipped


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_of_text_files(tmp_path: Path, encoding: str) -> None:
    """Plain ASCII in UTF-16 without a BOM is UTF-8 as well, full of NULs: what the refusal suggests must help."""
    for number, text in enumerate(("plain words", "žluťoučký kůň")):
        path = written(tmp_path / f"{number}.txt", text.encode(encoding))
        assert refused(path).startswith(f"{path}: ")
        assert texts(path, encoding=encoding) == [text]


def test_an_encoding_that_can_spell_half_a_character(tmp_path: Path) -> None:
    text = written(tmp_path / "a.txt", b"\xe9 \\ud800")
    assert refused(text, encoding="unicode_escape").startswith(f"{text}: holds a lone surrogate (character 2); ")
    line = written(tmp_path / "a.jsonl", b'{"text":"\xe9 \\ud800"}')
    assert refused(line, encoding="unicode_escape").startswith(f"{line}:1: ")


def test_what_is_in_neither_encoding_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"\x81\x8d")
    assert refused(path, encoding="cp1252").startswith(f"{path}: is neither UTF-8 nor cp1252 (byte 0)")
    path = written(tmp_path / "a.jsonl", b'{"text":"\x81"}')
    assert refused(path, encoding="cp1252").startswith(f"{path}:1: ")


# -- nothing lost


@pytest.mark.parametrize("count", [1, 2, 5])
def test_parts_hold_every_document_once(tmp_path: Path, count: int) -> None:
    """Text files count as one document each, between and behind JSON lines of any length."""
    for number in range(7):
        written(tmp_path / f"{number}.txt", f"text {number}")
        written(
            tmp_path / f"{number}x.jsonl", lines(*(f"line {number} {i} " + "x" * 700 * i for i in range(number * 9)))
        )
        if not number:
            written(tmp_path / "0x.jsonl", b"\n" + lines("after a blank line"))
    whole = texts(tmp_path)
    assert len(whole) == 7 + sum(9 * n for n in range(7)) + 1
    parts = [texts(tmp_path, shard=Shard(i, count)) for i in range(count)]
    assert sorted(text for part in parts for text in part) == sorted(whole)


def test_documents_in_are_documents_out_and_skips(tmp_path: Path, tokenizer_path: Path, llamactl: Command) -> None:
    """Through the command, from all kinds of files and stdin at once."""
    written(tmp_path / "in" / "a.txt", "a text")
    written(tmp_path / "in" / "b.txt", b"\xff\xfe")
    written(tmp_path / "in" / "c.txt.gz", gzip.compress(b"c"))
    written(tmp_path / "in" / "d.txt", b"")
    written(tmp_path / "in" / "e.jsonl", lines("e", "", "f") + b"nope\n\n" + lines("g"))
    written(tmp_path / "in" / "long.jsonl", lines("x" * 3000, "h"))
    stdin = lines("i") + b'{"text":null}\r\n' + lines("j")
    done = llamactl(
        "tokenize", tmp_path / "in", "-", "--tokenizer", tokenizer_path, "-o", tmp_path / "out", "--skip-bad",
        "--max-line", 2000, stdin=stdin, status=0,
    )  # fmt: skip
    made = orjson.loads((tmp_path / "out" / "run.json").read_bytes())
    assert made["done"]["documents"] == 8  # a, c, e, f, g, h, i, j
    assert made["skipped"] == {"bad records": 6}  # b, d, the empty one, nope, the long one, null
    assert "tokenize: skipped 6 bad records" in done.stderr
    for place in ("b.txt", "d.txt", "e.jsonl:2", "e.jsonl:4", "long.jsonl:1"):
        assert place in done.stderr  # the first five are named


def test_stdin_is_json_lines_and_may_be_compressed(tmp_path: Path, tokenizer_path: Path, llamactl: Command) -> None:
    data = lines("one", "two", "three")
    digests = set()
    for number, packed in enumerate((data, gzip.compress(data), zstandard.compress(data))):
        out = tmp_path / str(number)
        llamactl("tokenize", "-", "--tokenizer", tokenizer_path, "-o", out, stdin=packed, status=0)
        digests.add((out / "shard-00000.safetensors").read_bytes())
    assert len(digests) == 1


def test_a_pipe_that_the_shell_names_is_as_stdin(tmp_path: Path, tokenizer_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, lines("one", "two"))
    os.close(writing)
    tokenize([f"/dev/fd/{reading}"], tokenizer_path, tmp_path / "out", workers=1, quiet=True)
    os.close(reading)
    made = orjson.loads((tmp_path / "out" / "run.json").read_bytes())
    assert made["done"]["documents"] == 2
    assert (made["inputs"][0]["kind"], made["inputs"][0]["size"]) == ("stream", len(lines("one", "two")))


def test_empty_stdin_is_refused(tmp_path: Path, tokenizer_path: Path, llamactl: Command) -> None:
    done = llamactl("tokenize", "-", "--tokenizer", tokenizer_path, "-o", tmp_path / "out", stdin=b"", status=1)
    assert done.stderr.startswith("llamactl: stdin: is empty")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.shared
@pytest.mark.skipif(not DATA.exists(), reason="the development data is not beside the checkout")
def test_real_books_in_their_encodings() -> None:
    """CRLF, BOMs, ISO-8859-1, .gz and .zst: every byte of them arrives."""
    books = sorted((DATA / "pretrain" / "books").iterdir())
    run = counting(skip_bad=False)
    documents = read(DATA / "pretrain" / "books", encoding="latin-1", run=run)
    assert len(documents) == len(books)
    assert run.noted == {"documents read as latin-1": 1}  # the Wealth of Nations
    for book, document in zip(books, documents, strict=True):
        raw = book.read_bytes()
        if book.suffix == ".gz":
            raw = gzip.decompress(raw)
        elif book.suffix == ".zst":
            raw = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(raw)).read()
        assert not document.text.startswith("\ufeff")
        back = document.text.encode("latin-1" if book.name == "3300-8.txt" else "utf-8")
        assert back == raw.removeprefix(b"\xef\xbb\xbf")
    assert "3300-8.txt: byte " in refused(DATA / "pretrain" / "books")
