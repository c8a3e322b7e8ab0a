"""JSON lines as strangers write them: compression, line ends, encodings, damage, and lines too long to hold."""

import gzip
import io
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
import zstandard
from conftest import DATA

from llamactl.artifacts import jsonl
from llamactl.artifacts.records import Dialogue, Document, Message, Prompt, Shard
from llamactl.artifacts.run import Run
from llamactl.errors import Fault

MIB = 1 << 20


def packed_zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def streamed_zst(data: bytes) -> bytes:
    """As ``zstd`` does from a pipe: a frame that does not state its size."""
    out = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(out, closefd=False) as writer:
        writer.write(data)
    return out.getvalue()


def pzstd(data: bytes) -> bytes:
    """As ``pzstd`` does: each frame after one that is to be skipped, which says how long it is."""
    frame = packed_zst(data)
    return b"\x50\x2a\x4d\x18\x04\x00\x00\x00" + len(frame).to_bytes(4, "little") + frame


def lines(*texts: str) -> bytes:
    return b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts)


def texts(path: Path, **how: object) -> list[str]:
    return [found.record.text for found in jsonl.read([str(path)], Document, **how)]  # type: ignore[arg-type]


def refused(path: Path, *kinds: type[Document] | type[Dialogue]) -> str:
    """What is said about the first bad record."""
    with pytest.raises(Fault) as caught:
        list(jsonl.read([str(path)], *(kinds or (Document,))))
    return str(caught.value)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# -- compression


@pytest.mark.parametrize(
    "pack", [bytes, packed_zst, streamed_zst, pzstd, gzip.compress], ids=["plain", "zst", "piped", "pzstd", "gz"]
)
@pytest.mark.parametrize("suffix", ["", ".zst", ".gz"])
def test_compression_is_told_by_the_first_bytes_not_by_the_name(
    tmp_path: Path, pack: Callable[[bytes], bytes], suffix: str
) -> None:
    path = written(tmp_path / f"a.jsonl{suffix}", pack(lines("one", "two")))
    assert texts(path) == ["one", "two"]


@pytest.mark.parametrize("pack", [packed_zst, pzstd, gzip.compress])
def test_files_that_were_concatenated(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    whole = pack(lines("one")) + pack(lines("two", "three"))
    assert texts(written(tmp_path / "a", whole)) == ["one", "two", "three"]


@pytest.mark.parametrize("pack", [packed_zst, streamed_zst, pzstd, gzip.compress], ids=["zst", "piped", "pzstd", "gz"])
def test_a_file_cut_short_is_refused_wherever_it_was_cut(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Also where what is left unpacks to whole lines: records that are missing at the end must not go unnoticed."""
    noise = os.urandom(600_000).hex()
    whole = pack(lines(*(noise[start : start + 1000] for start in range(0, len(noise), 1000))))
    for cut in (5, 20, len(whole) // 3, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        message = refused(written(tmp_path / f"{cut}", whole[:cut]))
        assert "damaged or cut short" in message, f"cut at {cut} of {len(whole)}"
        assert message.startswith(str(tmp_path / f"{cut}"))


@pytest.mark.parametrize("pack", [packed_zst, gzip.compress])
def test_a_file_that_is_damaged_is_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    whole = bytearray(pack(lines(*map(str, range(5000)))))
    whole[len(whole) // 2 : len(whole) // 2 + 8] = b"\xff" * 8
    with pytest.raises(Fault):
        texts(written(tmp_path / "a", bytes(whole)))


@pytest.mark.parametrize("pack", [packed_zst, gzip.compress])
def test_junk_after_the_end_is_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    assert "damaged" in refused(written(tmp_path / "a", pack(lines("one")) + b"junk junk junk"))


@pytest.mark.parametrize("suffix", ["", ".zst", ".gz"])
def test_output_is_compressed_by_its_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    with Run("a test", {}, {}, path).records() as writer:
        for number in range(100):
            writer.write({"text": f"über {number}", "more": [1, None]})
    raw = path.read_bytes()
    unpack = {
        "": lambda: raw,
        ".zst": lambda: zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True).read(),
        ".gz": lambda: gzip.decompress(raw),
    }[suffix]
    data = unpack()
    assert (data == raw) == (suffix == "")
    assert data.count(b"\n") == 100
    assert data.endswith(b"\n")
    assert json.loads(data.split(b"\n")[99]) == {"text": "über 99", "more": [1, None]}
    assert texts(path) == [f"über {number}" for number in range(100)]


def test_neither_time_nor_name_is_in_a_gz(tmp_path: Path) -> None:
    """So that the same records make the same bytes."""
    with Run("a test", {}, {}, tmp_path / "a.gz").records() as writer:
        writer.write({"text": "x"})
    header = (tmp_path / "a.gz").read_bytes()
    assert (header[3], header[4:8]) == (0, b"\0\0\0\0")  # flags, time


def test_an_output_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    run = Run("a test", {}, {}, tmp_path / "a.jsonl.zst")
    with pytest.raises(ValueError, match="stop"), run.records() as writer:
        writer.write({"text": "half"})
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []


# -- lines


def test_lines_end_at_newlines_and_nothing_else(tmp_path: Path) -> None:
    odd = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\rh"
    raw = json.dumps({"text": odd}, ensure_ascii=False).encode()
    assert b"\xe2\x80\xa8" in raw  # really there, not escaped
    assert texts(written(tmp_path / "a", raw + b"\n" + raw + b"\n")) == [odd, odd]


@pytest.mark.parametrize(
    "data",
    [
        b'{"text":"one"}\n{"text":"two"}\n',
        b'{"text":"one"}\n{"text":"two"}',
        b'{"text":"one"}\r\n{"text":"two"}\r\n',
        b'\xef\xbb\xbf{"text":"one"}\n{"text":"two"}\n',
        b'\xef\xbb\xbf{"text":"one"}\r\n\r\n{"text":"two"}',
        b'\n\n  \n{"text":"one"}\n \t \n{"text":"two"}\n\n\n',
        b'  {"text":"one"}  \n\t{"text":"two"}\t\n',
    ],
    ids=["plain", "no final newline", "CRLF", "BOM", "BOM, CRLF and no end", "blank lines", "white space"],
)
@pytest.mark.parametrize("pack", [bytes, packed_zst, gzip.compress], ids=["plain", "zst", "gz"])
def test_line_ends(tmp_path: Path, data: bytes, pack: Callable[[bytes], bytes]) -> None:
    assert texts(written(tmp_path / "a", pack(data))) == ["one", "two"]


def test_places_count_blank_lines_and_start_anew_in_each_file(tmp_path: Path) -> None:
    one = written(tmp_path / "one", b'\n{"text":"a"}\n\n{"text":"b"}')
    two = written(tmp_path / "two", b'{"text":"c"}\r\n')
    found = list(jsonl.read([str(one), str(two)], Document))
    assert [(Path(f.where).name, f.record.text) for f in found] == [("one:2", "a"), ("one:4", "b"), ("two:1", "c")]


def test_places_are_right_far_into_a_large_file(tmp_path: Path) -> None:
    """Past many blocks, with lines that straddle their ends."""
    many = [f"{number} " + "x" * (number * 37 % 5000) for number in range(3000)]
    path = written(tmp_path / "a", lines(*many))
    assert path.stat().st_size > 5 * jsonl.BLOCK
    found = list(jsonl.read([str(path)], Document))
    assert [f.record.text for f in found] == many
    assert [f.where for f in found] == [f"{path}:{number}" for number in range(1, 3001)]


def test_a_line_longer_than_a_block(tmp_path: Path) -> None:
    many = ["x" * (3 * jsonl.BLOCK), "y", "z" * (jsonl.BLOCK + 1)]
    found = list(jsonl.read([str(written(tmp_path / "a", lines(*many)))], Document))
    assert [f.record.text for f in found] == many
    assert [f.where.rpartition(":")[2] for f in found] == ["1", "2", "3"]


@pytest.mark.parametrize("size", [-1, 0, 1])
def test_a_line_that_ends_with_a_block(tmp_path: Path, size: int) -> None:
    frame = len(lines(""))
    many = ["x" * (jsonl.BLOCK - frame + size), "y"]
    assert texts(written(tmp_path / "a", lines(*many))) == many


def test_fields_that_are_not_known_are_kept(tmp_path: Path) -> None:
    raw = {"text": "a", "id": 7, "extra": {"nested": [1, {"deep": None}]}, "ключ": "значение"}
    (found,) = jsonl.read([str(written(tmp_path / "a", orjson.dumps(raw)))], Document)
    assert found.raw == raw
    assert list(found.raw) == list(raw)
    assert found.record.id == 7


WHOLE = ["18446744073709551615", "18446744073709551616", "-9223372036854775808", "-9223372036854775809", "7" * 300]


@pytest.mark.parametrize("digits", WHOLE)
def test_an_integer_of_any_size_passes_as_it_is_written(tmp_path: Path, digits: str) -> None:
    """One of more than 64 bits would become a float: another number."""
    record = f'{{"text":"a","n":[{digits},1.5,-1,{{"é":{digits}}}],"said":"{digits}"}}\n'.encode()
    (found,) = jsonl.read([str(written(tmp_path / "a", record))], Document)
    with Run("a test", {}, {}, tmp_path / "b").records() as writer:
        writer.write(found.raw)
    assert (tmp_path / "b").read_bytes() == record


def test_an_id_of_more_than_64_bits_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a", b'{"text":"a","id":18446744073709551616}')
    assert refused(path).startswith(f"{path}:1: id: expected `int | str | null`, got an integer of more than 64 bits")


# -- what cannot be used


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text":"a', "is no JSON"),
        (b'{"text":"a"} {"text":"b"}', "is no JSON"),
        (b"{'text':'a'}", "is no JSON"),
        (b'{"text":"\\ud800"}', "is no JSON"),
        (b'{"text":"caf\xe9"}', "byte 12 is not UTF-8"),
        (b'{"text":"a\xed\xa0\x80"}', "byte 10 is not UTF-8"),
        (b'{"text":"a\x00b"}', "byte 10 is NUL: this is no JSON"),
        (b"\x00\x00\x00\x00", "byte 0 is NUL: this is no JSON"),
        ('{"text":"a"}'.encode("utf-16-le"), "byte 1 is NUL: this is no JSON"),
        (b'["text"]', "is an array, not an object"),
        (b'"text"', "is a string, not an object"),
        (b"12.5", "is a number, not an object"),
        (b"true", "is a boolean, not an object"),
        (b"null", "is null, not an object"),
        (b'{"txt":"a","id":1}', "text: missing (the record has: id, txt)"),
        (b"{}", "text: missing (the record has: nothing)"),
        (b'{"text":null}', "text: expected `str`, got `null`"),
        (b'{"text":5}', "text: expected `str`, got `int`"),
        (b'{"text":"a","id":[]}', "id: expected `"),
    ],
)
def test_a_bad_line_is_refused_with_its_place(tmp_path: Path, line: bytes, problem: str) -> None:
    path = written(tmp_path / "a.jsonl", lines("good") + b"\n" + line + b"\n" + lines("good"))
    assert refused(path).startswith(f"{path}:3: {problem}")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"messages":"a"}', "messages: expected `array`, got `str`"),
        (b'{"messages":[{"role":"user","content":5}]}', "messages[0].content: expected `str`, got `int`"),
        (b'{"messages":[{"role":"user","content":"a"},{"role":"assistant"}]}', "messages[1].content: missing"),
        (b'{"messages":[{"role":"bot","content":"a"}]}', "messages[0].role: invalid enum value 'bot'"),
        (b'{"messages":[{"role":"assistant","content":"a","weight":0.5}]}', "messages[0].weight: "),
        (b'{"messages":[null]}', "messages[0]: expected `object`, got `null`"),
        (b'{"messages":[],"safety":"yes"}', "safety: expected `bool`, got `str`"),
    ],
)
def test_a_wrong_type_is_named_by_its_path(tmp_path: Path, line: bytes, problem: str) -> None:
    path = written(tmp_path / "a.jsonl", line)
    assert refused(path, Prompt, Document).startswith(f"{path}:1: {problem}")


def test_records_of_two_kinds_are_told_apart_by_their_key(tmp_path: Path) -> None:
    both = b'{"text":"a"}\n{"messages":[{"role":"user","content":"b"}],"safety":true}\n'
    found = list(jsonl.read([str(written(tmp_path / "a", both))], Prompt, Document))
    assert [type(f.record) for f in found] == [Document, Prompt]
    path = written(tmp_path / "b", b"{}")
    convert = f"llamactl convert {path} --to prompts|documents makes ours of other people's files"
    assert refused(path, Prompt, Document).endswith(f"messages or text: missing (the record has: nothing); {convert}")


@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"text":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
                                  b'{"text":"a","x":' + b'{"x":' * 50_000 + b"1" + b"}" * 50_000 + b"}"])  # fmt: skip
def test_deep_nesting_is_refused(tmp_path: Path, deep: bytes) -> None:
    path = written(tmp_path / "a", lines("good") + deep + b"\n")
    assert refused(path).startswith(f"{path}:2: ")


@pytest.mark.parametrize(("value", "problem"), [
    ('{"a":' * 190 + "1" + "}" * 190, ""),
    ('{"a":' * 300 + "1" + "}" * 300, "is nested too deeply"),
    ("[" * 300 + "]" * 300, "is nested too deeply"),
    ("[18446744073709551615, -9223372036854775808, 1e30, 1.5e300]", ""),
    ('"123456789012345678901234567890"', ""),
    ("123456789012345678901234567890", ""),
    ("[" * 190 + "12345678901234567890123" + "]" * 190, ""),
    ("[" * 300 + "12345678901234567890123" + "]" * 300, "is nested too deeply"),
])  # fmt: skip
def test_what_could_not_be_written_as_it_was_is_refused(tmp_path: Path, value: str, problem: str) -> None:
    """Fields that pass through come out with all their digits, however deep they are, or the record is refused."""
    line = f'{{"text":"a","x":{value}}}\n'.encode()
    path = written(tmp_path / "a", line)
    if problem:
        assert refused(path).startswith(f"{path}:1: {problem}")
        return
    out = io.BytesIO()
    for found in jsonl.read([str(path)], Document):
        jsonl.Writer(out).write(found.raw)
    assert json.loads(out.getvalue()) == json.loads(line)


def test_bad_records_can_be_passed_over_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "a", b'{"text":"a"}\n[]\nnope\n{"text":"b"}\n{"text":1}\n{"text":"c"}')
    faults: list[Fault] = []
    assert texts(path, refuse=faults.append) == ["a", "b", "c"]
    assert [fault.subject.rpartition(":")[2] for fault in faults] == ["2", "3", "5"]


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"], ids=["nothing", "only a BOM"])
@pytest.mark.parametrize("pack", [bytes, packed_zst, gzip.compress], ids=["plain", "zst", "gz"])
def test_an_empty_file_is_refused(tmp_path: Path, data: bytes, pack: Callable[[bytes], bytes]) -> None:
    path = written(tmp_path / "a", pack(data))
    assert refused(path).startswith(f"{path}: is empty")


@pytest.mark.parametrize("data", [b"\n", b" ", b"\xef\xbb\xbf\r\n", b" \n" * MIB], ids=["line", "space", "BOM", "many"])
def test_a_file_of_blank_lines_is_refused(tmp_path: Path, data: bytes) -> None:
    """Whoever made it made no record, and should hear of it."""
    path = written(tmp_path / "a", data)
    assert refused(path).startswith(f"{path}: holds blank lines only; ")


def test_missing_files_and_directories_are_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent").startswith(f"{tmp_path / 'absent'}: no such file; ")
    assert refused(tmp_path).startswith(f"{tmp_path}: is a directory, not a file; ")


# -- parts


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_part_the_records(tmp_path: Path, count: int) -> None:
    """Every record is in one part, record i in part i modulo n, also past blocks, blank lines and files."""
    one = written(tmp_path / "one", b"\n".join(lines(f"a{i} " + "x" * 900) for i in range(2000)))
    two = written(tmp_path / "two", packed_zst(lines(*(f"b{i}" for i in range(50)))))
    paths = [str(one), str(two)]
    parts = [[f.where for f in jsonl.read(paths, Document, shard=Shard(i, count))] for i in range(count)]
    whole = [f.where for f in jsonl.read(paths, Document)]
    assert len(whole) == 2050
    assert sorted(where for part in parts for where in part) == sorted(whole)
    order = {where: number for number, where in enumerate(whole)}
    for part in parts:
        assert all(order[a] < order[b] for a, b in pairwise(part))


def test_a_bad_record_is_refused_by_the_one_part_that_holds_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a", b'{"text":"a"}\nbad\n{"text":"b"}\n')
    assert texts(path, shard=Shard(0, 2)) == ["a", "b"]
    with pytest.raises(Fault, match="a:2: is no JSON"):
        texts(path, shard=Shard(1, 2))


def test_an_oversized_line_takes_one_number(tmp_path: Path) -> None:
    """So that the parts agree on all that follows it."""
    path = written(tmp_path / "a", lines("a", "x" * 5 * MIB, "b", "y" * 3 * MIB, "c"))
    for count in (1, 2, 3):
        faults: list[Fault] = []
        parts = [texts(path, max_line=MIB, shard=Shard(i, count), refuse=faults.append) for i in range(count)]
        assert sorted(text for part in parts for text in part) == ["a", "b", "c"]
        assert sorted(fault.subject.rpartition(":")[2] for fault in faults) == ["2", "4"]


# -- memory


def grown(code: str, *arguments: object) -> tuple[int, str]:
    """MiB by which a process grows that runs ``code``, from its imports to its peak, and what it prints."""
    program = """
    import sys
    from pathlib import Path
    from llamactl.artifacts import jsonl
    from llamactl.artifacts.records import Document
    from llamactl.errors import Fault
    def peak():
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])
    before = peak()
    """
    text = textwrap.dedent(program) + textwrap.dedent(code) + "\nprint((peak() - before) >> 10, file=sys.stderr)\n"
    command = [sys.executable, "-c", text, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return int(done.stderr.split("\n")[-2]), done.stdout


def big_line(path: Path, pack: bool) -> Path:
    """A good record, a line of 100 MB, a good record; memory-friendly to write."""
    with path.open("wb") as raw:
        packer = zstandard.ZstdCompressor().stream_writer(raw, closefd=False) if pack else raw
        packer.write(lines("before") + b'{"text":"')
        for _ in range(100):
            packer.write(b"x" * 1_000_000)
        packer.write(b'"}\n' + lines("after"))
        if pack:
            packer.close()
    return path


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "zst"])
def test_a_line_of_100_mb_is_refused_in_little_memory(tmp_path: Path, pack: bool) -> None:
    path = big_line(tmp_path / "big.jsonl", pack)
    code = """
    try:
        for found in jsonl.read([sys.argv[1]], Document): print(found.record.text)
    except Fault as fault: print(fault)
    faults = []
    for found in jsonl.read([sys.argv[1]], Document, refuse=faults.append): print(found.record.text, found.where)
    print(*faults)
    """
    mib, out = grown(code, path)
    said = f"{path}:2: the line is longer than 16,777,216 bytes; split it, or skip it with --skip-bad"
    assert out.splitlines() == ["before", said, f"before {path}:1", f"after {path}:3", said]
    assert mib < 80


def test_a_small_file_that_unfolds_to_much_is_read_in_little_memory(tmp_path: Path) -> None:
    """A frame that states its size: 512 MB in 50 kB; the library's one-shot call would make room for all of it."""
    path = tmp_path / "bomb.zst"
    with path.open("wb") as file:
        size = 512 * MIB
        packer = zstandard.ZstdCompressor().stream_writer(file, closefd=False, size=size)
        for _ in range(512):
            packer.write(b" " * MIB)
        packer.close()
    assert path.stat().st_size < 100_000
    code = """
    try: print(len(list(jsonl.read([sys.argv[1]], Document))))
    except Fault as fault: print(fault)
    """
    mib, out = grown(code, path)
    assert out.startswith(f"{path}:1: the line is longer than")
    assert mib < 80


def test_a_frame_that_asks_for_a_huge_window_is_refused(tmp_path: Path) -> None:
    """A window of 2 GiB, which the frame's header may ask for, would be allocated before anything is unpacked."""
    content = lines("x")
    block = (len(content) << 3 | 1).to_bytes(3, "little") + content  # the last block, raw
    path = written(tmp_path / "a", b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([21 << 3]) + block)
    assert refused(path).startswith(f"{path}: the compressed data is damaged")
    allowed = written(tmp_path / "b", b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([10 << 3]) + block)
    assert texts(allowed) == ["x"]


# -- pipes

COPY = """
import sys
from llamactl.artifacts import jsonl
from llamactl.artifacts.records import Document
writer = jsonl.Writer(jsonl.stdout(), eager=True)
for found in jsonl.read(["-"], Document): writer.write(found.raw)
"""


@pytest.mark.parametrize("pack", [bytes, packed_zst, gzip.compress], ids=["plain", "zst", "gz"])
def test_stdin_may_be_compressed_and_stdout_is_plain(pack: Callable[[bytes], bytes]) -> None:
    data = lines(*(f"über {i}" for i in range(1000)))
    done = subprocess.run([sys.executable, "-c", COPY], input=pack(data), capture_output=True, check=True)
    assert done.stdout == data


@pytest.mark.parametrize("pack", [bytes, packed_zst, gzip.compress], ids=["plain", "zst", "gz"])
def test_stdin_that_comes_byte_by_byte(pack: Callable[[bytes], bytes]) -> None:
    """The first read of a pipe may hold one byte only: too few to tell what it is."""
    data = b"\xef\xbb\xbf" + lines("one", "two")
    process = subprocess.Popen([sys.executable, "-c", COPY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    time.sleep(0.2)  # so that it is waiting
    for byte in pack(data)[:6]:
        process.stdin.write(bytes([byte]))
        process.stdin.flush()
        time.sleep(0.02)
    out, _ = process.communicate(pack(data)[6:])
    assert out == lines("one", "two")


def test_ctrl_c_while_a_record_is_written_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """orjson has what is raised in its callback be a TypeError."""
    interrupted = KeyboardInterrupt()

    def plain(value: object) -> object:
        raise interrupted

    monkeypatch.setattr(jsonl, "_plain", plain)
    with pytest.raises(KeyboardInterrupt) as raised:
        jsonl.Writer(io.BytesIO()).write({"messages": [Message(role="user", content="q")]})
    assert raised.value is interrupted


def test_each_record_is_handed_on_at_once() -> None:
    """The next program in the pipe need not wait until a buffer is full."""
    code = (
        "import sys\nfrom llamactl.artifacts import jsonl\n"
        "jsonl.Writer(jsonl.stdout(), eager=True).write({'a': 1})\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b'{"a":1}\n'
        process.communicate()


# -- real files


@pytest.mark.shared
@pytest.mark.skipif(not DATA.exists(), reason="the development data is not beside the checkout")
def test_real_files_are_read_line_by_line() -> None:
    counts = {"pretrain/web/c4_demo.jsonl": ("text", 240), "eval/triviaqa/triviaqa_sm_sub.jsonl": ("context", 2000)}
    for name, (field, count) in counts.items():
        found: Sequence[jsonl.Line | Fault] = [
            line for block in jsonl.blocks([str(DATA / name)]) for line in jsonl.lines(block, Shard())
        ]
        assert len(found) == count
        assert all(field in jsonl.parsed(line) for line in found if isinstance(line, jsonl.Line))
