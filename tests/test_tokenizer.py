"""The tokenizer: text to ids and back without loss, and ids that are SentencePiece's own, however they are computed."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing import popen_fork
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import sentencepiece
from conftest import DATA, LIBRARY, Command, with_pieces

from llamactl.artifacts import manifest
from llamactl.errors import Fault
from llamactl.text import tokenizer as tokenizers
from llamactl.text.tokenizer import BOS, EOS, UNK, Tokenizer

AWKWARD = [
    " ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", "\t\t", "\x0b", "\x0c", "\x85", "\u2028", "\u00a0", "\u3000", "\0",
    "a", "the", "The", "return", "self", "def ", "    return ", "\n    ", "x", "é", "e\u0301", "ñ", "ß", "Ω", "ж", "中",
    "中文", "日本語", "한국어", "अनु", "עברית", "\u200b", "\u200d", "\ufeff", "\ufffd", "😀", "👩‍👩‍👧", "🇨🇿", "𝔘",
    "0", "1", "42", "3.14", "1,000", "٣", "²", ".", ",", "!", "()", "[INST]", "[/INST]", "<<SYS>>", "<s>", "</s>",
    "<unk>", "<0x0A>", "<0x41>", "_", "__init__", "▅", "⁇", "\x01", "\x7f", "a b", "'s", '"', "\\n", "://",
]  # fmt: skip


def trained(texts: Iterable[str], vocab_size: int, lines: int) -> bytes:
    return tokenizers.learned(tokenizers.sampled(texts, lines, 0).kept, vocab_size)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_path)


@pytest.fixture(scope="module")
def prose() -> Tokenizer:
    """A tokenizer of words without any indentation: its only piece of white space is the single space."""
    words = " ".join((LIBRARY / "this.py").read_text().split() + (LIBRARY / "textwrap.py").read_text().split())
    return Tokenizer(trained([words] * 3, 600, 1000))


@pytest.fixture(scope="module")
def code() -> Tokenizer:
    """A tokenizer of indented code: it has pieces of many spaces, and of spaces before words."""
    sources = [(LIBRARY / name).read_text(encoding="utf-8") for name in ("argparse.py", "ast.py", "difflib.py")]
    return Tokenizer(trained(sources, 2000, 100_000))


def strings(seed: int, count: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(rng.choices(AWKWARD, k=rng.randint(0, 12)))


# -- what it is


def test_specials_and_bytes_have_their_ids(tokenizer: Tokenizer) -> None:
    assert (UNK, BOS, EOS) == (0, 1, 2)
    assert [tokenizer.piece(token) for token in range(3)] == ["<unk>", "<s>", "</s>"]
    assert [tokenizer.piece(3 + byte) for byte in range(256)] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert tokenizer.vocab == 512


def test_no_piece_is_a_pad(tokenizer: Tokenizer) -> None:
    assert tokenizer._processor.pad_id() == -1


def test_every_digit_is_a_piece_of_its_own(tokenizer: Tokenizer) -> None:
    digits = "".join(random.Random(0).choices("0123456789", k=200))
    ids = tokenizer.encode(f"a{digits}")
    assert [tokenizer.piece(token) for token in ids[-200:]] == list(digits)
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab)]
    assert not [piece for piece in pieces if len(piece) > 1 and any(c.isdigit() for c in piece) and piece[0] != "<"]


@pytest.mark.parametrize("text", AWKWARD)
def test_text_comes_back_as_it_was(tokenizer: Tokenizer, text: str) -> None:
    for around in ("{}", "a{}b", " {} ", "{0}{0}", "\n{}\n", "  {}", "{}  "):
        whole = around.format(text)
        assert tokenizer.decode(tokenizer.encode(whole)) == whole


def test_random_text_comes_back_as_it_was(tokenizer: Tokenizer, prose: Tokenizer, code: Tokenizer) -> None:
    for one in (tokenizer, prose, code):
        for text in strings(1, 3000):
            assert one.decode(one.encode(text)) == text


def test_every_character_comes_back(tokenizer: Tokenizer) -> None:
    """All of Unicode's planes in use, but for surrogates, and U+2581, by which SentencePiece spells a space."""
    for start in (*range(0, 0x3000, 0x100), 0xAC00, 0xD700, 0xE000, 0xFE00, 0xFF00, 0x1F300, 0x1F600, 0x10FF00):
        text = "".join(chr(c) for c in range(start, start + 0x100) if c != 0x2581 and not 0xD800 <= c < 0xE000)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_nothing_in_a_text_is_a_special(tokenizer: Tokenizer) -> None:
    for text in ("</s>", "<s>", "<unk>", "a</s>b", "[INST] <<SYS>> </s><s>", "<0x00>", "<0x41>"):
        ids = tokenizer.encode(text)
        assert not {UNK, BOS, EOS} & set(ids)
        assert not any(tokenizer._processor.is_byte(token) for token in ids)
        assert tokenizer.decode(ids) == text


def test_specials_are_left_out_when_decoding(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two")
    assert tokenizer.decode([BOS, *ids, EOS]) == "one two"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([3 + 0xE4, 3 + 0xB8]) == "\ufffd\ufffd"  # two bytes of three


def test_a_literal_u2581_is_read_as_a_space(tokenizer: Tokenizer) -> None:
    """SentencePiece's own limit: the ids are those of one call to it, and the caller notes such documents."""
    for text in ("▁", "a▁b", "▁▁a ▁"):
        assert tokenizer.encode(text) == tokenizer.encode_whole(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


# -- encode == encode_whole


def test_encoding_in_units_is_encoding_whole(tokenizer: Tokenizer, prose: Tokenizer, code: Tokenizer) -> None:
    """Many thousand strings of awkward parts: spaces of any number, newlines, bytes, anything at the ends."""
    for one in (tokenizer, prose, code):
        assert one.units  # the fast way is the one that is tried
        for text in strings(2, 6000):
            assert one.encode(text) == one.encode_whole(text), repr(text)


def test_the_code_tokenizer_has_what_makes_it_hard(code: Tokenizer) -> None:
    pieces = [code.piece(token) for token in range(code.vocab)]
    assert [len(piece) for piece in pieces if set(piece) == {"▁"} and len(piece) >= 8]


def test_pieces_that_begin_with_several_spaces(tokenizer_path: Path) -> None:
    """SentencePiece's trainer makes none, other trainers do; they lie within a unit, so units still serve."""
    other = Tokenizer(
        with_pieces(tokenizer_path.read_bytes(), ["▁▁t", "▁▁th", "▁▁the", "▁▁▁▁a", "▁▁▁", "▁▁(", "▁▁▁中"])
    )
    assert other.units
    assert "▁▁the" in map(other.piece, other.encode("a  the"))
    for text in strings(6, 3000):
        assert other.encode(text) == other.encode_whole(text), repr(text)


def test_encoding_real_sources_is_encoding_whole(tokenizer: Tokenizer, prose: Tokenizer, code: Tokenizer) -> None:
    paths = sorted(LIBRARY.glob("[a-d]*.py"))
    assert len(paths) > 20
    for number, path in enumerate(paths):
        text = path.read_text(encoding="utf-8")
        one = (tokenizer, prose, code)[number % 3]
        assert one.encode(text) == one.encode_whole(text), path


def test_a_vocabulary_that_crosses_words_is_not_cut_into_units(tokenizer_path: Path) -> None:
    """A piece that goes on after a space: encoding must fall back to the whole text."""
    crossing = Tokenizer(with_pieces(tokenizer_path.read_bytes(), ["e▁t"]))
    assert not crossing.units
    assert "e▁t" in map(crossing.piece, crossing.encode_whole("the time"))
    for text in ["the time e t", *strings(3, 300)]:
        assert crossing.encode(text) == crossing.encode_whole(text)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_long_texts_are_cut_where_nothing_changes(
    tokenizer: Tokenizer, code: Tokenizer, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(tokenizers, "PIECE", size)
    for one in (tokenizer, code):
        for text in strings(4, 1500):
            assert one.encode(text) == one.encode_whole(text), repr(text)


def test_around_the_real_cut(code: Tokenizer) -> None:
    """A text of several pieces of 2^20 characters, with each awkward thing standing across a cut."""
    for shift, across in enumerate(("\n    ", "        ", "\n\n\n", "word word", " \n ", "é中 😀")):
        text = ("ab cd\n" * (tokenizers.PIECE // 6 + 1))[: tokenizers.PIECE - 1 - shift] + across + " end\n"
        assert code.encode(text) == code.encode_whole(text), repr(across)


def test_a_word_longer_than_a_piece(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "PIECE", 100)
    for text in ("x" * 1000, "a b " + "x" * 1000 + " c d", "x" * 1000 + "\n", " " * 1000, "\n" * 1000):
        assert tokenizer.encode(text) == tokenizer.encode_whole(text)


def test_a_full_cache_changes_nothing(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "CACHED_UNITS", 3)
    one = Tokenizer.load(tokenizer_path)
    for text in strings(5, 500):
        assert one.encode(text) == one.encode_whole(text)
    assert len(one._encoder) <= 3


@pytest.mark.shared
@pytest.mark.skipif(not DATA.exists(), reason="the development data is not beside the checkout")
def test_encoding_real_text_in_many_languages_is_encoding_whole(tokenizer: Tokenizer, code: Tokenizer) -> None:
    import zipfile

    with zipfile.ZipFile(DATA / "pretrain" / "multilingual" / "udhr2.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".txt")]
        assert len(names) > 300
        for number, name in enumerate(names):
            text = archive.read(name).decode("utf-8-sig")
            one = (tokenizer, code)[number % 2]
            ids = one.encode(text)
            assert ids == one.encode_whole(text), name
            assert one.decode(ids) == text, name


# -- ids as bytes


@pytest.mark.parametrize(("vocab", "dtype"), [(65_536, "<u2"), (65_537, "<u4")])
def test_ids_are_as_wide_as_the_vocabulary_asks(tokenizer_path: Path, vocab: int, dtype: str) -> None:
    wide = Tokenizer(with_pieces(tokenizer_path.read_bytes(), [f"▁qqq{n:x}" for n in range(vocab - 512)]))
    assert (wide.vocab, wide.dtype.str) == (vocab, dtype)
    ids = wide.encode("qqq1")
    assert ids == wide.encode_whole("qqq1")
    assert len(wide.encode_bytes("qqq1")) == len(ids) * wide.dtype.itemsize


# -- training


def test_training_is_a_function_of_corpus_and_seed(corpus_dir: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted(corpus_dir.glob("*.txt"))]
    assert trained(texts, 450, 10_000) == trained(texts, 450, 10_000)
    first = tokenizers.sampled(texts, 10_000, 0)
    assert tokenizers.sampled(texts, 10_000, 0) == first
    assert first.lines == len(first.kept) == sum(len(list(filter(None, text.split("\n")))) for text in texts)
    assert first.cut == 0


def test_a_sample_of_the_lines(tmp_path: Path, corpus_dir: Path, llamactl: Command) -> None:
    """Fewer lines than there are: a uniform sample by seed, and the manifest says so.

    Each in a process of its own: SentencePiece takes a seed once a process.
    """
    source = corpus_dir / "heapq.py.txt"
    lines = len(list(filter(None, source.read_text(encoding="utf-8").split("\n"))))
    made = {}
    for name, sample, seed in (("a", 150, 0), ("again", 150, 0), ("other", 150, 1), ("all", lines, 0)):
        out = tmp_path / name
        llamactl(
            "train-tokenizer", source, "-o", out, "--vocab-size", 400, "--sample", sample, "--seed", seed, status=0
        )
        made[name] = out.read_bytes()
        facts = manifest.load(tmp_path / f"{name}.run.json")
        assert facts["done"]["lines"] == lines
        sampled = "all lines" if name == "all" else "a uniform sample of 150 of the lines (reservoir)"
        assert facts["sampled"]["how"] == sampled
    assert made["a"] == made["again"]
    assert len(set(made.values())) == 3
    text = source.read_text(encoding="utf-8")
    sampled_one = Tokenizer(made["a"])
    assert sampled_one.decode(sampled_one.encode(text)) == text


def test_long_lines_are_cut_not_dropped() -> None:
    """SentencePiece drops a line over its limit in silence; here all of it is learned from."""
    sample = tokenizers.sampled(["abcabc " * 10_000], 1000, 0)
    assert sample.cut == 1
    assert sample.lines == -(-70_000 // (tokenizers.LONGEST_SENTENCE // 4))
    assert sample.bytes == 70_000
    learned = Tokenizer(tokenizers.learned(sample.kept, 280))
    assert [learned.piece(token) for token in learned.encode("abcabc")] != list("▁abcabc")


@pytest.mark.parametrize("odd", ["▅", "\0", "⁇", "▁", "\t"])
def test_lines_with_odd_characters_are_learned_from(odd: str) -> None:
    """SentencePiece passes over lines that hold U+2585, its own mark for the unknown, without a word."""
    learned = Tokenizer(trained([f"{odd}abcabc abcabc\n" * 50], 272, 1000))
    assert len(learned.encode("abcabc abcabc")) < 8


@pytest.mark.parametrize("early", [False, True], ids=["learning", "beginning"])
def test_learning_is_ended_by_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    """However long it would take: SentencePiece does not hear of it until it is through."""
    begun = tmp_path / "begun"

    def for_ever(*_: object) -> None:
        begun.write_text(str(os.getpid()))
        time.sleep(600)

    def press() -> None:
        while not begun.exists() or not begun.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    launch = popen_fork.Popen._launch  # type: ignore[attr-defined]

    def pressed_at_once(self: popen_fork.Popen, process: BaseProcess) -> None:
        launch(self, process)
        press()

    monkeypatch.setattr(tokenizers, "_learn", for_ever)
    if early:
        monkeypatch.setattr(popen_fork.Popen, "_launch", pressed_at_once)
    else:
        threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        tokenizers.learned(["a"], 300)
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


def test_a_process_that_is_killed_as_it_learns_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "_learn", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(Fault, match=r"train-tokenizer: its process was killed .* --sample"):
        tokenizers.learned(["a"], 300)


def test_a_vocabulary_too_large_says_what_is_possible() -> None:
    with pytest.raises(Fault) as caught:
        trained(["hello there"], 32_000, 1000)
    said = str(caught.value)
    assert said.startswith("--vocab-size: the corpus is too small for 32,000 pieces: it yields ")
    possible = int(said.rpartition("--vocab-size ")[2])
    assert f"it yields {possible:,}, {32_000 - possible:,} fewer" in said
    assert Tokenizer(trained(["hello there"], possible, 1000)).vocab == possible


def test_a_vocabulary_too_small_says_what_is_needed() -> None:
    characters = "\n".join(chr(0x4E00 + n) for n in range(300))
    with pytest.raises(Fault) as caught:
        trained([characters], 300, 1000)
    said = str(caught.value)
    assert said.startswith("--vocab-size: 300 pieces do not hold the specials, the 256 bytes and the characters")
    needed = int(said.rpartition("--vocab-size ")[2])
    assert needed > 300 + 259
    assert Tokenizer(trained([characters], needed, 1000)).vocab == needed


def test_a_corpus_without_a_line_is_named_as_such() -> None:
    """In words about the corpus, not about a line of SentencePiece's sources."""
    with pytest.raises(Fault) as caught:
        trained(["\n\n", "\n"], 300, 1000)
    assert "INTERNAL" not in str(caught.value)
    assert ".cc" not in str(caught.value)


@pytest.mark.parametrize("failure", [Fault("a.jsonl:3", "is no JSON"), ValueError("a bug"), OSError(28, "full")])
def test_what_fails_while_reading_arrives_as_it_is(failure: Exception) -> None:
    def texts() -> Iterator[str]:
        yield "some text\n" * 20
        raise failure

    with pytest.raises(type(failure)) as caught:
        trained(texts(), 280, 1000)
    assert caught.value is failure


def test_the_command_names_the_bad_line_and_leaves_nothing(tmp_path: Path, llamactl: Command) -> None:
    (tmp_path / "in.jsonl").write_text('{"text":"good text"}\n{"text":5}\n')
    out = tmp_path / "t.model"
    done = llamactl("train-tokenizer", tmp_path / "in.jsonl", "-o", out, "--vocab-size", 300, status=1)
    assert done.stderr.startswith(f"llamactl: {tmp_path / 'in.jsonl'}:2: text: expected `str`, got `int`")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


# -- loading


def test_what_is_no_tokenizer_is_named(tmp_path: Path, tokenizer_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = tokenizer_path.read_bytes()
    for name, data in {"junk": b"junk", "cut": whole[: len(whole) // 2], "empty": b"", "json": b'{"a": 1}'}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(Fault) as caught:
            Tokenizer.load(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: is no SentencePiece model"), name
    with pytest.raises(Fault, match=r"absent: no such file"):
        Tokenizer.load(tmp_path / "absent")
    assert capfd.readouterr().err == ""


def test_other_ids_for_specials_are_refused(tmp_path: Path) -> None:
    """As T5 and others have them: unk 2, bos -1, eos 1, pad 0."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words to learn from"] * 3), model_prefix=str(tmp_path / "t5"), vocab_size=25,
        model_type="bpe", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(Fault, match="has other ids than unk 0, bos 1, eos 2"):
        Tokenizer.load(tmp_path / "t5.model")


def test_a_directory_stands_for_the_tokenizer_in_it(tmp_path: Path, tokenizer_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
    assert Tokenizer.load(tmp_path).proto == tokenizer_path.read_bytes()


def test_directories_must_share_one_tokenizer(tmp_path: Path, tokenizer_path: Path, prose: Tokenizer) -> None:
    for name, proto in {"a": tokenizer_path.read_bytes(), "b": tokenizer_path.read_bytes(), "c": prose.proto}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(proto)
    assert Tokenizer.shared([tmp_path / "a", tmp_path / "b"]).vocab == 512
    with pytest.raises(Fault, match=r"/c: its tokenizer is not that of .*/a"):
        Tokenizer.shared([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
