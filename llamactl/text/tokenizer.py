"""SentencePiece: train, load, encode, decode (paper, section 2.2.1).

The tokenizer of Llama 1 and 2: byte-pair encoding, numbers split into single digits, unknown characters broken into
UTF-8 bytes, no normalisation, a space put before the text (the dummy prefix) and taken away when decoding. Ids: unk 0,
bos 1, eos 2, then the 256 bytes; there is no pad. Text is never parsed for specials: ``</s>`` in a text is four
ordinary characters. Sentences end at newlines in training, so no piece holds one.

Encoding is exact and faster than one call for the whole text: a text falls into *units* (a newline; letters, or signs,
with the spaces before them) that are encoded apart, each once as long as it is remembered. That no piece of the
vocabulary goes across from a unit to the next is looked up when it is loaded; where one does, units are whole words,
and where one goes across words, the whole text is given to SentencePiece.
"""

import io
import os
import random
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from llamactl.artifacts.files import entry
from llamactl.errors import Fault
from llamactl.signals import ctrl_c_waits, serve

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

UNK, BOS, EOS = 0, 1, 2
FILE = "tokenizer.model"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece spells a space
UNKNOWN = "\N{LOWER FIVE EIGHTHS BLOCK}"  # how its trainer spells an unknown character
LONGEST_SENTENCE = 16_384  # bytes; SentencePiece drops longer ones without a word, so lines are cut before it sees them
CACHED_UNITS = 1_000_000  # units kept by an encoder: about 200 MB when full; then it starts over

PIECE = 1 << 20  # characters encoded at once
MANY = 32  # texts that are encoded sooner by one call than one by one

# Signs, and what is taken for one: too wide or too narrow a range costs speed, never ids (pieces are held against it).
_SIGNS = r"\x00-\x09\x0b-\x1f!-@\[-`{-\u00bf\u00d7\u00f7\u2000-\u2fff\u3000-\u303f\ufe00-\ufe0f\U0001f000-\U0001faff"
_RUN = re.compile(rf"\n| *[^{_SIGNS} \n]+| *[{_SIGNS}]+| +")  # a newline; letters or signs, with the spaces before
_WORD = re.compile(r"\n| *[^ \n]+| +")  # a newline; a word, with the spaces before
_CUT = re.compile(r"(?<=[^ ]) |\n")  # where a unit begins, in either way


class Encoder:
    """Units to their ids, as bytes of ``dtype``, remembered."""

    def __init__(self, processor: Any, dtype: np.dtype[Any]) -> None:
        self._encode, self._code = processor.encode, {2: "H", 4: "I"}[dtype.itemsize]
        self._space = self._bytes([processor.piece_to_id(SPACE)])
        self._known: dict[str, bytes] = {}  # a plain dict: a set's difference from a subclass walks through all of it

    def __len__(self) -> int:
        return len(self._known)

    def encode(self, units: list[str]) -> bytes:
        """All units in a row."""
        known = self._known
        known[" "] = self._space
        new = set(units).difference(known)
        spaced = [unit for unit in new if unit[0] == " "]
        others = [unit for unit in new if unit[0] != " "]
        # SentencePiece's dummy prefix takes the place of a unit's first space; where there is none, a newline is put
        # before, and the ids of both are dropped
        for unit, ids in zip(spaced, self._each([u[1:] for u in spaced]), strict=True):
            known[unit] = self._bytes(ids)
        for unit, ids in zip(others, self._each(["\n" + u for u in others]), strict=True):
            known[unit] = self._bytes(ids[2:])
        found = b"".join(map(known.__getitem__, units))
        if len(known) > CACHED_UNITS:
            known.clear()
        return found

    def _each(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text: of many by one call, which starts a thread, be it for nothing."""
        if len(texts) < MANY:
            return [self._encode(text) for text in texts]
        every: list[list[int]] = self._encode(texts, num_threads=1)
        return every

    def _bytes(self, ids: list[int]) -> bytes:
        return array(self._code, ids).tobytes()


class Tokenizer:
    """A SentencePiece model, and the ids of its specials."""

    def __init__(self, proto: bytes, origin: Path | str = FILE) -> None:
        import sentencepiece

        try:
            if not proto:  # SentencePiece takes it for a model without pieces
                raise ValueError
            self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=proto)
        except (RuntimeError, ValueError):
            raise Fault(origin, "is no SentencePiece model", "make one with llamactl train-tokenizer") from None
        self.proto, self.origin = proto, origin
        self.vocab = int(self._processor.vocab_size())
        self.dtype = np.dtype("<u2" if self.vocab <= 1 << 16 else "<u4")
        if (self._processor.unk_id(), self._processor.bos_id(), self._processor.eos_id()) != (UNK, BOS, EOS):
            raise Fault(origin, "has other ids than unk 0, bos 1, eos 2", "use a Llama 1 or 2 tokenizer")
        self.units = self._way()
        self._encoder = Encoder(self._processor, self.dtype)

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a ``tokenizer.model`` or a directory that holds one."""
        file = path / FILE if path.is_dir() else path
        try:
            proto = file.read_bytes()
        except FileNotFoundError:
            raise Fault(
                file, "no such file", "copy the tokenizer.model there that the model was trained with"
            ) from None
        return cls(proto, file)

    @classmethod
    def shared(cls, directories: Sequence[Path]) -> Self:
        """The tokenizer that all directories hold a copy of; raises Fault where one differs."""
        first = cls.load(directories[0])
        for directory in directories[1:]:
            if cls.load(directory).proto != first.proto:
                problem = f"its tokenizer is not that of {directories[0]}"
                raise Fault(directory, problem, "tokenize all sources with one tokenizer.model")
        return first

    def fitting(self, vocab: int, subject: object) -> int:
        """``vocab``, a model's number of rows, where it holds all ids of this tokenizer; raises Fault where not."""
        if vocab < self.vocab:
            problem = f"a model of {vocab:,} ids does not fit a tokenizer of {self.vocab:,}"
            raise Fault(subject, problem, f"use the model's own {FILE}, or a model of at least {self.vocab:,} ids")
        return vocab

    def save(self, directory: Path) -> dict[str, Any]:
        """Write ``tokenizer.model`` into a directory; its entry for the manifest."""
        (directory / FILE).write_bytes(self.proto)
        return entry(directory / FILE, "tokenizer")

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without specials."""
        ids: list[int] = np.frombuffer(self.encode_bytes(text), dtype=self.dtype).tolist()
        return ids

    def encode_bytes(self, text: str) -> bytes:
        """Ids of a text, without specials, as little-endian uint16 (uint32 above 65,536 pieces)."""
        if not text:
            return b""
        if self.units is None or SPACE in text:  # SentencePiece takes a literal U+2581 for a space
            return np.asarray(self._processor.encode(text), dtype=self.dtype).tobytes()
        return b"".join(self._encode_pieces(" " + text, self.units))

    def _encode_pieces(self, text: str, units: re.Pattern[str]) -> Iterator[bytes]:
        """A long text is cut between units, so that not all of its units are in memory at once."""
        start = 0
        while start < len(text):
            cut = _CUT.search(text, start + PIECE) if len(text) - start > PIECE else None
            end = cut.start() if cut else len(text)
            yield self._encoder.encode(units.findall(text, start, end))
            start = end

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; specials are left out, bytes that are no UTF-8 become U+FFFD, others unknown."""
        return str(self._processor.decode([int(i) if i < self.vocab else UNK for i in ids]))

    def piece(self, token: int) -> str:
        """The piece of an id, as SentencePiece spells it."""
        return str(self._processor.id_to_piece(token))

    def _way(self) -> re.Pattern[str] | None:
        """How a text falls into units that no piece crosses, the finest way first; None where it does not."""
        processor = self._processor
        tokens = range(self.vocab)
        special = {t for t in tokens if processor.is_control(t) or processor.is_unknown(t) or processor.is_byte(t)}
        pieces = [processor.id_to_piece(token).replace(SPACE, " ") for token in tokens if token not in special]
        space, newline = processor.piece_to_id(SPACE), self.encode_whole("\n")
        if space == UNK or newline[:1] != [space] or len(newline) != 2 or sum(map(processor.is_byte, special)) != 256:
            return None
        return next((way for way in (_RUN, _WORD) if all(map(way.fullmatch, pieces))), None)

    def encode_whole(self, text: str) -> list[int]:
        """Ids of a text by one call to SentencePiece: the reference that ``encode`` equals."""
        return [int(i) for i in self._processor.encode(text)]


class Sample(NamedTuple):
    """Lines to learn from, and what the corpus offered: lines, their bytes, and how many lines had to be cut."""

    kept: list[str]
    lines: int
    bytes: int
    cut: int


def sampled(texts: Iterable[str], size: int, seed: int) -> Sample:
    """A uniform sample of ``size`` lines of a stream of texts (a reservoir), in memory; all of them where it has fewer.

    It is ours because SentencePiece's own differs from run to run. Raises Fault where there is no line at all.
    """
    counts = {"lines": 0, "bytes": 0, "cut": 0}
    kept: list[str] = []
    draw = random.Random(seed)
    for text in texts:
        for line in _lines(text, counts):
            if len(kept) < size:
                kept.append(line)
            elif (place := draw.randrange(counts["lines"])) < size:
                kept[place] = line
    if not kept:
        raise Fault("train-tokenizer", "the corpus holds no text", "give it some")
    return Sample(kept, **counts)


def learned(lines: list[str], vocab_size: int) -> bytes:
    """The model that SentencePiece learns; raises Fault where the lines are too few for ``vocab_size``.

    It is learned in another process: for minutes SentencePiece hears no Ctrl-C.
    """
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_learn, args=(sender, lines, vocab_size, os.getpid()), daemon=True)
    try:
        with ctrl_c_waits():
            process.start()
        sender.close()
        found: bytes | str = receiver.recv()
    except EOFError:
        raise Fault(
            "train-tokenizer", "its process was killed (out of memory?)", "keep fewer lines: --sample"
        ) from None
    finally:
        if process.pid:
            process.kill()
            process.join()
    if isinstance(found, str):
        raise _explained(found, vocab_size)
    return found


def _learn(sender: "Connection", lines: list[str], vocab_size: int, parent: int) -> None:
    """Send the model, or what SentencePiece has against it."""
    import sentencepiece

    serve(parent)
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=out,
            model_type="bpe",
            vocab_size=vocab_size,
            max_sentence_length=LONGEST_SENTENCE,
            character_coverage=0.99995,
            split_digits=True,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=True,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            pad_id=-1,
            unk_surface=" ⁇ ",
            minloglevel=2,
        )
    except RuntimeError as error:
        sender.send(str(error))
    else:
        sender.send(out.getvalue())


def _lines(text: str, counts: dict[str, int]) -> Iterator[str]:
    """What SentencePiece can take: lines, cut where they are too long or hold its mark of an unknown character.

    It would drop those without a word.
    """
    for line in filter(None, text.split("\n")):
        length = len(line.encode())
        counts["bytes"] += length
        step = len(line) if length <= LONGEST_SENTENCE else LONGEST_SENTENCE // 4  # a character has at most four bytes
        pieces = [line[start : start + step] for start in range(0, len(line), step)]
        if UNKNOWN in line:
            pieces = [part for piece in pieces for part in piece.split(UNKNOWN) if part]
        counts["cut"] += len(pieces) != 1 or UNKNOWN in line
        for piece in pieces:
            counts["lines"] += 1
            yield piece


def _explained(error: str, asked: int) -> Fault:
    """SentencePiece's message as what a user can act on."""
    if most := re.search(r"set it to a value <= (\d+)", error):
        possible = int(most[1])
        return Fault(
            "--vocab-size",
            f"the corpus is too small for {asked:,} pieces: it yields {possible:,}, {asked - possible:,} fewer",
            f"give more text, or ask for --vocab-size {possible}",
        )
    if least := re.search(r"(\d+) vs (\d+)", error):
        return Fault(
            "--vocab-size",
            f"{asked:,} pieces do not hold the specials, the 256 bytes and the characters of the corpus",
            f"ask for at least --vocab-size {least[2]}",
        )
    return Fault("train-tokenizer", error)
