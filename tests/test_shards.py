"""Token shards: the ids of a naive encoding, the same bytes however they are made, and no damage goes unnoticed."""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import sentencepiece
from conftest import Command, with_pieces
from safetensors.numpy import load_file
from test_files import Disk, disk_of

from llamactl.artifacts import corpus, files, manifest, tensors
from llamactl.artifacts.jsonl import Block
from llamactl.artifacts.records import Shard
from llamactl.artifacts.shards import Shards, Writer, complete, missing
from llamactl.errors import Fault
from llamactl.text import encode
from llamactl.text.tokenizer import Tokenizer
from stages.pretrain import pretrain
from stages.tokenize import tokenize


def documents_of(directory: Path) -> list[list[int]]:
    """The ids of each document, read with the safetensors library, not with ours."""
    found = []
    for path in sorted(directory.glob("shard-*.safetensors")):
        arrays = load_file(path)
        ends = [*arrays["starts"][1:], len(arrays["tokens"])]
        found += [arrays["tokens"][start:end].tolist() for start, end in zip(arrays["starts"], ends, strict=True)]
    return found


def naive(names: Sequence[Path | str], tokenizer: Path) -> list[list[int]]:
    """BOS, SentencePiece's ids and EOS of each document."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    found = []
    for name in corpus.files([str(name) for name in names])[0]:
        text = Path(name).read_bytes().decode()
        texts = [text] if name.endswith(".txt") else [orjson.loads(line)["text"] for line in text.split("\n") if line]
        found += [[1, *processor.encode(one), 2] for one in texts]
    return found


def bytes_of(directory: Path) -> dict[str, bytes]:
    """All files of a directory but the manifests, which name times and hosts."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.suffix != ".json"}


def made(out: Path, corpus_dir: Path, tokenizer: Path, **how: Any) -> Path:
    tokenize([str(corpus_dir)], tokenizer, out, workers=how.pop("workers", 1), quiet=True, **how)
    return out


def dry_run(*directories: Path) -> None:
    """What of pretraining reads shards and checks them, without training."""
    pretrain(size="tiny", data=[str(path) for path in directories], steps=1, dry_run=True, quiet=True)


def refused(directory: Path, out: Path) -> str:
    """What pretraining says of a shards directory."""
    with pytest.raises(Fault) as caught:
        pretrain(size="tiny", data=[str(directory)], out=out, steps=1, batch_size=1, context=32, device="cpu")
    assert not (out / "run.json").exists()
    return str(caught.value)


# -- round trip


def test_shards_hold_a_naive_encoding(shards_dir: Path, corpus_dir: Path, tokenizer_path: Path) -> None:
    expected = naive([corpus_dir], tokenizer_path)
    assert len(expected) > 200
    assert documents_of(shards_dir) == expected
    assert len(list(shards_dir.glob("shard-*.safetensors"))) > 3
    read = Shards(shards_dir)
    flat = [token for document in expected for token in document]
    assert read.tokens == len(flat)
    assert read.read(0, read.tokens).tolist() == flat
    assert (shards_dir / "tokenizer.model").read_bytes() == tokenizer_path.read_bytes()


def test_any_stretch_can_be_read(shards_dir: Path) -> None:
    """Within a shard, across one border and across several, at the very ends."""
    read = Shards(shards_dir)
    whole = read.read(0, read.tokens)
    borders = np.cumsum([0] + [out["tokens"] for out in read.manifest["outputs"] if out["kind"] == "shard"])
    points = sorted({min(max(0, int(b) + d), read.tokens) for b in borders for d in (-2, -1, 0, 1, 2)})
    for start in points:
        for stop in (p for p in points if p > start):
            assert np.array_equal(read.read(start, stop), whole[start:stop])


def test_arrays_have_the_dtypes_of_the_contract(shards_dir: Path) -> None:
    for path in shards_dir.glob("shard-*.safetensors"):
        arrays = load_file(path)
        assert {name: array.dtype.str for name, array in arrays.items()} == {"tokens": "<u2", "starts": "<i8"}
        assert arrays["starts"][0] == 0
        assert np.all(np.diff(arrays["starts"]) > 0)


def test_counts_are_those_of_the_files(shards_dir: Path, corpus_dir: Path, tokenizer_path: Path) -> None:
    facts = manifest.load(shards_dir / "run.json")
    expected = naive([corpus_dir], tokenizer_path)
    assert facts["done"]["documents"] == len(expected)
    assert facts["done"]["tokens"] == sum(map(len, expected))
    sizes = [out["tokens"] for out in facts["outputs"] if out["kind"] == "shard"]
    assert sizes == [len(load_file(path)["tokens"]) for path in sorted(shards_dir.glob("shard-*"))]
    texts = sum(len(orjson.loads(line)["text"].encode()) for line in (corpus_dir / "docstrings.jsonl").open("rb"))
    assert facts["done"]["bytes"] == texts + sum(path.stat().st_size for path in corpus_dir.glob("*.txt"))


# -- writer


@pytest.mark.parametrize(
    ("limit", "blocks", "shards"),
    [
        (10, [[3, 3, 3]], [[3, 3, 3]]),
        (10, [[3, 3, 4]], [[3, 3, 4]]),
        (10, [[3, 3, 5]], [[3, 3], [5]]),
        (10, [[3], [3], [3], [3]], [[3, 3, 3], [3]]),
        (10, [[10], [10]], [[10], [10]]),
        (10, [[11]], [[11]]),
        (10, [[4, 25, 4, 4]], [[4], [25], [4, 4]]),
        (10, [[4], [25], [4]], [[4], [25], [4]]),
        (10, [[2, 2], [7, 2, 2]], [[2, 2], [7, 2], [2]]),
        (1, [[2, 2], [2]], [[2], [2], [2]]),
        (10, [[], [3], []], [[3]]),
    ],
)
def test_a_shard_is_closed_before_it_would_pass_the_limit(
    tmp_path: Path, limit: int, blocks: list[list[int]], shards: list[list[int]]
) -> None:
    """Documents are never cut; one longer than a shard has a shard of its own."""
    writer = Writer(tmp_path, np.dtype("<u2"), Shard(), limit)
    ids, lengths = iter(range(1 << 16)), [length for block in blocks for length in block]
    for block in blocks:
        tokens = np.asarray([next(ids) for _ in range(sum(block))], np.uint16)
        writer.add(tokens, np.asarray(block, np.int64))
    outputs = writer.close()
    found = documents_of(tmp_path)
    assert [token for document in found for token in document] == list(range(sum(lengths)))
    assert [len(document) for document in found] == lengths
    files = [load_file(path) for path in sorted(tmp_path.iterdir())]
    ends = [np.diff([*array["starts"], len(array["tokens"])]).tolist() for array in files]
    assert ends == shards
    assert (writer.documents, writer.tokens) == (len(lengths), sum(lengths))
    assert [out["tokens"] for out in outputs] == [sum(shard) for shard in shards]


def test_a_part_numbers_its_shards_by_itself(tmp_path: Path) -> None:
    writer = Writer(tmp_path, np.dtype("<u2"), Shard(2, 5), 4)
    writer.add(np.arange(12).astype(np.uint16), np.asarray([4, 4, 4]))
    assert [out["path"] for out in writer.close()] == [f"shard-{n:05d}.safetensors" for n in (2, 7, 12)]


# -- the same bytes


def test_any_number_of_workers_gives_the_same_bytes(
    tmp_path: Path, corpus_dir: Path, tokenizer_path: Path, llamactl: Command
) -> None:
    """Of a corpus of many blocks, and small shards."""
    with (tmp_path / "large.jsonl").open("wb") as file:
        for number in range(8):
            for line in (corpus_dir / "docstrings.jsonl").open("rb"):
                file.write(orjson.dumps(orjson.loads(line) | {"text": f"{number} " + orjson.loads(line)["text"] * 3}))
                file.write(b"\n")
    (tmp_path / "zlast.txt").write_text("the end")
    assert (tmp_path / "large.jsonl").stat().st_size > 2 << 20
    digests = {}
    for workers in (1, 2, 3):
        out = tmp_path / f"out{workers}"
        llamactl(
            "tokenize", tmp_path / "large.jsonl", tmp_path / "zlast.txt", "--tokenizer", tokenizer_path, "-o", out,
            "--shard-tokens", 200_000, "--workers", workers, status=0,
        )  # fmt: skip
        digests[workers] = bytes_of(out)
    assert len(digests[1]) > 5
    assert digests[1] == digests[2] == digests[3]


def test_who_stops_does_not_wait_for_workers(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ctrl-C, or for a record that is refused: though each has begun a block that takes minutes."""
    really = encode.encode_block

    def slowly(tokenizer: Tokenizer, block: Block, reading: corpus.Reading) -> encode.Encoded:
        if block.number:
            time.sleep(900)
        return really(tokenizer, block, reading)

    monkeypatch.setattr(encode, "encode_block", slowly)
    blocks = (Block("a.jsonl", 1, number, b'{"text": "a"}\n') for number in range(6))
    encoded = encode.encode_corpus(blocks, Tokenizer.load(tokenizer_path), corpus.Reading(), workers=2)
    assert next(encoded).done["documents"] == 1
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        encoded.throw(KeyboardInterrupt())
    assert time.monotonic() - began < 300


def test_compression_changes_no_byte(tmp_path: Path, corpus_dir: Path, tokenizer_path: Path, shards_dir: Path) -> None:
    import gzip

    (tmp_path / "in").mkdir()
    for path in corpus_dir.iterdir():
        (tmp_path / "in" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    out = made(tmp_path / "out", tmp_path / "in", tokenizer_path, shard_tokens=30_000)
    assert bytes_of(out) == bytes_of(shards_dir)


# -- parts of a job array


@pytest.fixture(scope="module")
def array(tmp_path_factory: pytest.TempPathFactory, corpus_dir: Path, tokenizer_path: Path) -> Path:
    """Three parts, written last to first."""
    out = tmp_path_factory.mktemp("array") / "out"
    for index in (2, 1, 0):
        made(out, corpus_dir, tokenizer_path, shard=Shard(index, 3), shard_tokens=10_000)
    return out


def test_parts_together_are_the_whole(array: Path, shards_dir: Path, corpus_dir: Path, tokenizer_path: Path) -> None:
    expected = naive([corpus_dir], tokenizer_path)
    assert sorted(documents_of(array)) == sorted(expected)
    read = Shards(array)
    assert read.tokens == sum(map(len, expected))
    facts, whole = manifest.load(array / "run.json"), manifest.load(shards_dir / "run.json")
    assert facts["done"] == whole["done"]
    assert [i["sha256"] for i in facts["inputs"]] == [i["sha256"] for i in whole["inputs"]]
    assert sorted(path.name for path in array.glob(".*")) == []
    listed = {out["path"] for out in facts["outputs"]}
    assert listed == {path.name for path in array.iterdir() if path.suffix != ".json"}
    dry_run(array)


def test_a_part_holds_every_nth_document(array: Path, corpus_dir: Path, tokenizer_path: Path) -> None:
    """Counting text files and lines, in the order in which the corpus is read."""
    expected = naive([corpus_dir], tokenizer_path)
    for index in range(3):
        part = manifest.load(array / f"part-0000{index}-of-00003.json")
        paths = [array / out["path"] for out in part["outputs"] if out["kind"] == "shard"]
        found = []
        for path in paths:
            arrays = load_file(path)
            found += [piece.tolist() for piece in np.split(arrays["tokens"], arrays["starts"][1:])]
        assert found == expected[index::3]


def test_missing_parts_are_named(tmp_path: Path, corpus_dir: Path, tokenizer_path: Path) -> None:
    for index in (1, 3):
        made(tmp_path / "out", corpus_dir, tokenizer_path, shard=Shard(index, 4))
    assert not (tmp_path / "out" / "run.json").exists()
    assert missing(tmp_path / "out") == [Shard(0, 4), Shard(2, 4)]
    said = refused(tmp_path / "out", tmp_path / "model")
    assert said.startswith(f"{tmp_path / 'out'}: 2 of 4 parts are missing: 0/4, 2/4; ")
    assert "--shard 0/4" in said


def test_a_part_that_is_there_is_not_made_again(array: Path, corpus_dir: Path, tokenizer_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in array.iterdir()}
    made(array, corpus_dir, tokenizer_path, shard=Shard(1, 3), shard_tokens=10_000)
    assert {path.name: path.stat().st_mtime_ns for path in array.iterdir()} == before


def test_parts_made_with_other_settings_are_refused(tmp_path: Path, corpus_dir: Path, tokenizer_path: Path) -> None:
    out = made(tmp_path / "out", corpus_dir, tokenizer_path, shard=Shard(0, 2))
    with pytest.raises(Fault, match=r"made otherwise \(with skip-bad"):
        made(out, corpus_dir, tokenizer_path, shard=Shard(1, 2), skip_bad=True)
    with pytest.raises(Fault):
        Shards(out)


def test_parts_made_from_another_corpus_are_refused(tmp_path: Path, corpus_dir: Path, tokenizer_path: Path) -> None:
    out = made(tmp_path / "out", corpus_dir, tokenizer_path, shard=Shard(0, 2))
    (tmp_path / "a.txt").write_text("another text")
    with pytest.raises(Fault, match=r"made otherwise \(from other inputs"):
        made(out, tmp_path / "a.txt", tokenizer_path, shard=Shard(1, 2))
    with pytest.raises(Fault):
        Shards(out)


def test_parts_of_what_comes_through_a_pipe(tmp_path: Path, tokenizer_path: Path, llamactl: Command) -> None:
    """What comes is known at the end: a part of the same is one, a part of another is refused then."""
    text, out = '{"text":"one"}\n{"text":"two"}\n{"text":"three"}\n', tmp_path / "out"
    how = ("tokenize", "-", "--tokenizer", tokenizer_path, "-o", out, "--shard")
    llamactl(*how, "0/3", stdin=text, status=0)
    assert "(from other inputs)" in llamactl(*how, "1/3", stdin=text + text, status=1).stderr
    for part in ("1/3", "2/3"):
        llamactl(*how, part, stdin=text, status=0)
    assert len(documents_of(out)) == 3
    assert Shards(out).tokens > 6


def test_a_part_of_another_array_is_refused_and_harms_nothing(
    tmp_path: Path, corpus_dir: Path, tokenizer_path: Path
) -> None:
    """Part 0 of 3 would write the shards of part 0 of 2."""
    out = made(tmp_path / "out", corpus_dir, tokenizer_path, shard=Shard(0, 2), shard_tokens=10_000)
    before = bytes_of(out)
    with pytest.raises(Fault):
        made(out, corpus_dir, tokenizer_path, shard=Shard(0, 3), shard_tokens=10_000)
    assert bytes_of(out) == before
    made(out, corpus_dir, tokenizer_path, shard=Shard(1, 2), shard_tokens=10_000)
    assert sorted(documents_of(out)) == sorted(naive([corpus_dir], tokenizer_path))
    dry_run(out)


def test_a_part_does_not_write_into_a_whole(
    tmp_path: Path, shards_dir: Path, corpus_dir: Path, tokenizer_path: Path
) -> None:
    """A finished directory that was made in one go has the names that the part's shards would take."""
    out = Path(shutil.copytree(shards_dir, tmp_path / "out"))
    before = bytes_of(out)
    with pytest.raises(Fault):
        made(out, corpus_dir, tokenizer_path, shard=Shard(0, 2))
    assert bytes_of(out) == before
    assert not list(out.glob("part-*"))


def test_a_whole_does_not_write_into_parts(tmp_path: Path, corpus_dir: Path, tokenizer_path: Path) -> None:
    out = made(tmp_path / "out", corpus_dir, tokenizer_path, shard=Shard(0, 2))
    before = bytes_of(out)
    with pytest.raises(Fault):
        made(out, corpus_dir, tokenizer_path)
    assert bytes_of(out) == before


def test_more_parts_than_documents(tmp_path: Path, tokenizer_path: Path) -> None:
    """Some parts then hold nothing, and that is no fault."""
    (tmp_path / "a.jsonl").write_text('{"text":"one"}\n{"text":"two"}\n')
    for index in range(4):
        made(tmp_path / "out", tmp_path / "a.jsonl", tokenizer_path, shard=Shard(index, 4))
    assert len(documents_of(tmp_path / "out")) == 2
    assert Shards(tmp_path / "out").tokens > 4


def test_a_part_that_fails_leaves_the_others_whole(tmp_path: Path, tokenizer_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text":"one"}\nbad\n{"text":"three"}\n')
    out = made(tmp_path / "out", tmp_path / "a.jsonl", tokenizer_path, shard=Shard(0, 2))
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(Fault, match=r"a\.jsonl:2: "):
        made(out, tmp_path / "a.jsonl", tokenizer_path, shard=Shard(1, 2))
    assert sorted(path.name for path in out.iterdir()) == before


def test_overwriting_a_part_leaves_none_of_its_old_shards(
    tmp_path: Path, corpus_dir: Path, tokenizer_path: Path
) -> None:
    """Made again with larger shards there are fewer: those beyond must not stay."""
    for index in (0, 1):
        made(tmp_path / "out", corpus_dir, tokenizer_path, shard=Shard(index, 2), shard_tokens=10_000)
    many = len(list((tmp_path / "out").glob("shard-*")))
    for index in (0, 1):
        made(tmp_path / "out", corpus_dir, tokenizer_path, shard=Shard(index, 2), overwrite=True)
        if index == 0:  # halfway the two parts do not go together
            with pytest.raises(Fault, match="different settings"):
                Shards(tmp_path / "out")
    facts = manifest.load(tmp_path / "out" / "run.json")
    assert len(list((tmp_path / "out").glob("shard-*"))) == 2 < many
    assert facts["done"]["tokens"] == sum(map(len, documents_of(tmp_path / "out")))
    dry_run(tmp_path / "out")


def test_an_array_whose_tasks_are_killed_at_any_call_is_made_by_the_same_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_path: Path
) -> None:
    """A task that is killed as it finishes leaves shards without its mark, or the last mark without the whole."""
    (tmp_path / "a.jsonl").write_text('{"text":"one"}\n{"text":"two"}\n')
    disk = Disk(monkeypatch, lambda: os._exit(9))
    for at in range(1, 100):
        out = tmp_path / str(at)
        child = os.fork()
        if child == 0:
            disk.fail(at)
            try:
                for index in (0, 1):
                    made(out, tmp_path / "a.jsonl", tokenizer_path, shard=Shard(index, 2))
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        for index in (1, 0):
            made(out, tmp_path / "a.jsonl", tokenizer_path, shard=Shard(index, 2))
        assert len(documents_of(out)) == 2, f"killed at call {at}"
        assert Shards(out).tokens > 4
        if os.waitstatus_to_exitcode(status) == 0:
            break
    assert at > 16  # it was killed at all of them


def test_a_part_that_is_taken_back_as_another_looks_is_not_there(
    array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tasks of an array that is made anew begin at once."""
    out, load = Path(shutil.copytree(array, tmp_path / "out")), manifest.load

    def late(path: Path) -> dict[str, Any]:
        (out / "part-00001-of-00003.json").unlink(missing_ok=True)
        return load(path)

    monkeypatch.setattr(manifest, "load", late)
    assert missing(out) == [Shard(1, 3)]


def test_the_whole_is_made_of_all_parts_that_are_there_at_one_moment(
    array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is written while another looks is there the next time it looks: the whole must not be without it."""
    out, load = Path(shutil.copytree(array, tmp_path / "out")), manifest.load
    (out / "run.json").unlink()
    (out / "part-00001-of-00003.json").rename(tmp_path / "late")

    def back(path: Path) -> dict[str, Any]:
        if not (out / "part-00001-of-00003.json").exists():
            (tmp_path / "late").rename(out / "part-00001-of-00003.json")
        return load(path)

    monkeypatch.setattr(manifest, "load", back)
    assert not complete(out) and not (out / "run.json").exists()
    assert complete(out)
    assert Shards(out).tokens == Shards(array).tokens


def test_a_disk_that_is_full_names_the_array(tmp_path: Path, corpus_dir: Path, tokenizer_path: Path) -> None:
    with disk_of(1000), pytest.raises(OSError, match="File too large") as caught:
        made(tmp_path / "out", corpus_dir, tokenizer_path, shard=Shard(0, 2))
    assert caught.value.filename == str(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_of_two_parts_that_end_at_once_one_leaves_the_whole_to_the_other(array: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(array, tmp_path / "out"))
    (out / "run.json").unlink()
    with files.whole_file(out / "run.json") as theirs:
        assert complete(out)
        theirs.write((array / "run.json").read_bytes())
    assert (out / "run.json").read_bytes() == (array / "run.json").read_bytes()


# -- damage


@pytest.fixture
def copy(tmp_path: Path, shards_dir: Path) -> Path:
    return Path(shutil.copytree(shards_dir, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "tokenizer.model"])
@pytest.mark.parametrize("at", [0.0, 0.5, 0.999])
def test_a_flipped_byte_is_named(copy: Path, tmp_path: Path, name: str, at: float) -> None:
    data = bytearray((copy / name).read_bytes())
    data[int(len(data) * at)] ^= 1
    (copy / name).write_bytes(data)
    assert name in refused(copy, tmp_path / "out")


def test_without_verifying_a_flipped_byte_of_the_payload_passes(copy: Path) -> None:
    """What --no-verify is for, and why verifying is the default: safetensors has no checksum."""
    data = bytearray((copy / "shard-00001.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "shard-00001.safetensors").write_bytes(data)
    manifest.described("data", str(copy), verify=False)
    with pytest.raises(Fault, match=r"shard-00001\.safetensors: its bytes differ"):
        manifest.described("data", str(copy))


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "tokenizer.model"])
def test_a_file_cut_short_is_named(copy: Path, tmp_path: Path, name: str) -> None:
    os.truncate(copy / name, (copy / name).stat().st_size - 10)
    assert name in refused(copy, tmp_path / "out")


def test_a_name_of_a_tensor_that_is_damaged_is_one_line(copy: Path, tmp_path: Path) -> None:
    """The header is read before any digest is held against the manifest."""
    path = copy / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"tokens"', b'"tokenr"', 1))
    assert refused(copy, tmp_path / "out").startswith(f"{path}: holds no tokens")


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "tokenizer.model"])
def test_a_missing_file_is_named(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / name).unlink()
    assert name in refused(copy, tmp_path / "out")


def test_a_missing_manifest_is_named(copy: Path, tmp_path: Path) -> None:
    (copy / "run.json").unlink()
    assert refused(copy, tmp_path / "out").startswith(f"{copy}: is no shards directory (it has no run.json)")


def test_files_that_the_manifest_does_not_name_are_not_read(copy: Path) -> None:
    before = Shards(copy).tokens
    shutil.copy(copy / "shard-00000.safetensors", copy / "shard-00099.safetensors")
    assert Shards(copy).tokens == before


def test_a_tokenizer_of_another_source_is_refused(copy: Path, shards_dir: Path) -> None:
    proto = (copy / "tokenizer.model").read_bytes()
    (copy / "tokenizer.model").write_bytes(with_pieces(proto, ["qzq"]))
    with pytest.raises(Fault, match="its tokenizer is not that of"):
        dry_run(shards_dir, copy)


# -- wide ids


def test_ids_beyond_16_bits_are_written_and_read(tmp_path: Path) -> None:
    writer = Writer(tmp_path, np.dtype("<u4"), Shard())
    ids = np.asarray([1, 65_999, 65_535, 65_536, 2], "<u4")
    writer.add(ids, np.asarray([5]))
    writer.close()
    assert load_file(tmp_path / "shard-00000.safetensors")["tokens"].tolist() == ids.tolist()


def test_a_vocabulary_of_more_than_65_536_takes_four_bytes(tmp_path: Path, tokenizer_path: Path) -> None:
    proto = with_pieces(tokenizer_path.read_bytes(), (f"▁q{number:05x}" for number in range(66_000 - 512)))
    (tmp_path / "wide.model").write_bytes(proto)
    (tmp_path / "a.txt").write_text("a text")
    out = made(tmp_path / "out", tmp_path / "a.txt", tmp_path / "wide.model")
    assert load_file(out / "shard-00000.safetensors")["tokens"].dtype.str == "<u4"
    assert Shards(out).read(0, 3).dtype.str == "<u4"
    assert documents_of(out) == naive([tmp_path / "a.txt"], tmp_path / "wide.model")


# -- our writer of safetensors


def test_our_files_are_read_by_the_library(tmp_path: Path) -> None:
    """All dtypes, scalars, empty arrays, views that are not contiguous; and the digest is the file's."""
    from llamactl.artifacts import files

    kinds = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"]
    arrays: dict[str, np.ndarray[Any, Any]] = {k: np.arange(7).astype(k).reshape(7, 1) for k in kinds}
    arrays |= {"bool": np.asarray([True, False, True]), "scalar": np.asarray(5.0), "empty": np.zeros((0, 3), "int32")}
    arrays |= {"view": np.arange(24).reshape(4, 6)[::2, ::3], "transposed": np.arange(6.0).reshape(2, 3).T}
    written = tensors.write(tmp_path / "a", arrays, {"format": "np"})
    back = load_file(tmp_path / "a")
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(back[name], array)
    assert written == files.stamp(tmp_path / "a")


def test_our_files_of_torch_tensors_are_read_by_the_library(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch

    base = torch.arange(12.0).reshape(3, 4)
    given = {
        "bf16": base.bfloat16(),
        "view": base.T,
        "scalar": torch.tensor(3),
        "b": torch.tensor([True]),
        "h": base.half(),
    }
    tensors.write(tmp_path / "a", given)
    back = load_torch(tmp_path / "a")
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in given.items())
