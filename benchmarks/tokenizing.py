"""Tokenizing a corpus: megabytes of text per second and peak memory, from .jsonl.zst to uint16 ids on all cores.

What is measured, each with the same SentencePiece model (trained first, by ``llamactl train-tokenizer``) on the same
files:

    llamactl      the command ``llamactl tokenize``, timed as a whole process: start, reading, checking, encoding,
                  writing, digests of what it read and wrote
    pool          what a person writes: the parent decompresses and parses the lines, a multiprocessing pool encodes
                  them (``imap``, 64 documents at a time), the parent writes the ids to one file
    sentencepiece the peer library's own limit: all text in memory, one call of ``encode(texts, num_threads=cores)`` to
                  arrays, nothing read and nothing written
    datatrove     its pipeline: JsonlReader, then DocumentTokenizer, not shuffled, one task a core
    datasets      ``load_dataset``, then ``map`` over a Hugging Face tokenizer with ``num_proc=cores``, to Arrow files

The last two need a tokenizer.json. It is converted from the SentencePiece model by transformers (LlamaTokenizer), in
their environment and before any clock starts, with BOS and EOS added as ours are. The clock of all but llamactl starts
when their imports are done and their tokenizer is loaded, which is in their favour.

How: the candidates take turns, in rounds (A B C, A B C, ...), each time as a new process. The figure is the median over
the rounds of UTF-8 bytes of text over seconds, with the slowest and the fastest; ratios are of medians. One round more,
before them, is not timed: there the memory of a candidate is sampled, the largest sum of the proportional set sizes of
all its processes (pages that two share are counted once; 0 where the system does not tell). The ids of llamactl and of
the pool must be identical; of the others the number of tokens is shown.

The corpus: by default the .py files of the running Python's standard library and of its installed packages, each one
once (duplicates are told by their digest), in the order of their digests, up to --megabytes. Text that is repeated
would flatter any cache of words, so none is; the number of words and of distinct words is printed with the results.
With --corpus, files of your own: a directory, or files, of UTF-8 text. Files are cut at line ends into documents of at
most 100,000 characters.

Run: benchmarks/run.sh makes the peers' environment and runs this with its defaults; or, once it is there,

    python benchmarks/tokenizing.py --vocab 32000 --rounds 5 --corpus books/ --json results.jsonl
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from measure import Clock, Spread, append_json, note, python_of, table

ENVIRONMENT = {
    "llamactl": None,
    "pool": None,
    "sentencepiece": None,
    "datatrove": "tokenizing",
    "datasets": "tokenizing",
}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LONGEST = 100_000  # characters of a document
FILES = 4 * CORES  # of the corpus; datatrove shares out whole files
BOS, EOS = 1, 2


# --- the corpus ---


def python_files() -> Iterator[Path]:
    """Sources of the standard library and of the installed packages."""
    paths = sysconfig.get_paths()
    for path in Path(paths["stdlib"]).rglob("*.py"):
        if "site-packages" not in path.parts:
            yield path
    yield from Path(paths["purelib"]).rglob("*.py")


def texts(paths: list[Path], megabytes: float) -> Iterator[str]:
    """Documents of distinct files, in the order of their digests, up to so many megabytes."""
    files = (file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    found: dict[bytes, Path] = {hashlib.sha256(file.read_bytes()).digest(): file for file in files}
    left = megabytes * 1e6
    for _, file in sorted(found.items()):
        try:
            text = file.read_bytes().decode()
        except UnicodeDecodeError:
            continue
        for document in filter(None, documents(text)):
            left -= len(document.encode())
            if left < 0:
                return
            yield document


def documents(text: str) -> Iterator[str]:
    """A text, cut at line ends into pieces that are not too long."""
    while len(text) > LONGEST:
        cut = text.rfind("\n", 1, LONGEST) + 1 or LONGEST
        yield text[:cut]
        text = text[cut:]
    yield text


class Corpus(NamedTuple):
    """A directory of .jsonl.zst files, and what is in it."""

    directory: Path
    documents: int
    bytes: int
    words: int
    distinct: int


def write_corpus(directory: Path, asked: argparse.Namespace) -> Corpus:
    """The corpus as files of about equal size."""
    import zstandard

    words: set[str] = set()
    count = size = documents = 0
    names = [directory / f"{number:03d}.jsonl.zst" for number in range(FILES)]
    directory.mkdir()
    streams = [zstandard.open(name, "wb") for name in names]
    for text in texts(asked.corpus or list(python_files()), asked.megabytes):
        streams[documents % FILES].write(json.dumps({"text": text}).encode() + b"\n")
        documents, size = documents + 1, size + len(text.encode())
        split = text.split()
        count += len(split)
        words.update(split)
    for stream in streams:
        stream.close()
    if documents < FILES:
        sys.exit("the corpus is too small: name more text with --corpus")
    return Corpus(directory, documents, size, count, len(words))


def read_corpus(directory: Path) -> Iterator[str]:
    """The texts, in the order of the files."""
    import orjson
    import zstandard

    for name in sorted(directory.iterdir()):
        with zstandard.open(name, "rt", encoding="utf-8", newline="\n") as lines:
            for line in lines:
                yield orjson.loads(line)["text"]


# --- the candidates but llamactl: each runs in its environment, and gives its seconds and its number of tokens ---


def pool(corpus: Path, tokenizer: Path, out: Path) -> tuple[float, int]:
    """One process reads, the others encode, the first one writes."""
    import multiprocessing

    start = time.perf_counter()
    size = 0
    with (out / "ids.bin").open("wb") as file, multiprocessing.Pool(CORES, load, [str(tokenizer)]) as workers:
        for ids in workers.imap(encode, read_corpus(corpus), chunksize=64):
            file.write(ids.tobytes())
            size += len(ids)
    return time.perf_counter() - start, size


def load(tokenizer: str) -> None:
    """What a worker of the pool starts with."""
    import sentencepiece

    global processor
    processor = sentencepiece.SentencePieceProcessor(model_file=tokenizer)


def encode(text: str) -> Any:
    """A document's ids, between BOS and EOS."""
    import numpy as np

    return np.array([BOS, *processor.encode(text), EOS], dtype=np.uint16)


def sentencepiece(corpus: Path, tokenizer: Path, out: Path) -> tuple[float, int]:
    """Encoding alone."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(tokenizer))
    texts = list(read_corpus(corpus))
    start = time.perf_counter()
    ids = processor.encode(texts, num_threads=CORES, out_type="numpy")  # a little faster than lists
    seconds = time.perf_counter() - start
    return seconds, sum(map(len, ids)) + 2 * len(ids)


def datatrove(corpus: Path, tokenizer: Path, out: Path) -> tuple[float, int]:
    """A pipeline of two steps; its workers are forked, so that they need not import anything."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    fast = str(tokenizer.with_name("tokenizer.json"))
    reader = JsonlReader(str(corpus))
    writer = DocumentTokenizer(str(out / "ids"), fast, shuffle_documents=False, batch_size=1000)
    executor = LocalPipelineExecutor([reader, writer], tasks=CORES, logging_dir=str(out / "logs"), start_method="fork")
    start = time.perf_counter()
    executor.run()
    seconds = time.perf_counter() - start
    return seconds, sum(file.stat().st_size // 2 for file in (out / "ids").glob("*.ds"))


def datasets(corpus: Path, tokenizer: Path, out: Path) -> tuple[float, int]:
    """Load, then map."""
    import pyarrow.compute as compute
    from datasets import Features, Sequence, Value, disable_progress_bars, load_dataset
    from tokenizers import Tokenizer

    disable_progress_bars()
    fast = Tokenizer.from_file(str(tokenizer.with_name("tokenizer.json")))

    def encode_batch(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [encoding.ids for encoding in fast.encode_batch_fast(batch["text"])]}

    start = time.perf_counter()
    loaded = load_dataset("json", data_files=sorted(map(str, corpus.iterdir())), split="train", cache_dir=str(out))
    features = Features({"ids": Sequence(Value("uint16"))})
    made = loaded.map(encode_batch, batched=True, num_proc=CORES, remove_columns=["text"], features=features)
    seconds = time.perf_counter() - start
    return seconds, compute.sum(compute.list_value_length(made.data.column("ids"))).as_py()


def convert(tokenizer: Path) -> None:
    """``tokenizer.json`` beside ``tokenizer.model``, by way of transformers; adds BOS and EOS."""
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaTokenizer

    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer.with_name("tokenizer_config.json").write_text(json.dumps(config))
    fast = LlamaTokenizer.from_pretrained(tokenizer.parent).backend_tokenizer
    fast.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)])
    fast.save(str(tokenizer.with_name("tokenizer.json")))


# --- the driver ---


class Turn(NamedTuple):
    """What came of one process."""

    seconds: float
    peak: int
    tokens: int
    digest: str  # of the ids; empty where their order is another


def turn(candidate: str, corpus: Path, tokenizer: Path, memory: bool) -> Turn:
    """A candidate's process, from its start to its end."""
    with tempfile.TemporaryDirectory(dir=corpus.parent) as temporary:
        out = Path(temporary)
        if candidate == "llamactl":
            shards = out / "shards"
            command = [sys.executable, "-m", "llamactl", "tokenize", str(corpus), "--tokenizer", str(tokenizer)]
            start = time.perf_counter()
            _, peak = watched([*command, "-o", str(shards), "-q"], memory)
            seconds = time.perf_counter() - start
            return Turn(seconds, peak, *ids_of_shards(shards))
        command = [
            python_of(ENVIRONMENT[candidate]),
            __file__,
            "--work",
            candidate,
            str(corpus),
            str(tokenizer),
            temporary,
        ]
        printed, peak = watched(command, memory)
        told = json.loads(printed)
        single = out / "ids.bin"
        digest = hashlib.sha256(single.read_bytes()).hexdigest() if single.exists() else ""
        return Turn(told["seconds"], peak, told["tokens"], digest)


def ids_of_shards(directory: Path) -> tuple[int, str]:
    """Number and digest of all ids of a shards directory."""
    from safetensors import safe_open

    tokens, digest = 0, hashlib.sha256()
    for name in sorted(directory.glob("shard-*.safetensors")):
        with safe_open(name, "np") as shard:
            ids = shard.get_tensor("tokens")
        tokens += len(ids)
        digest.update(ids.tobytes())
    return tokens, digest.hexdigest()


def watched(command: list[str], memory: bool) -> tuple[str, int]:
    """Run a command; what it printed, and where it was asked for the peak memory of it and its children."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    peak = 0
    ended = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.wait(0.05):
            peak = max(peak, session_memory(process.pid))

    sampler = threading.Thread(target=sample)
    if memory:
        sampler.start()
    printed, said = process.communicate()
    ended.set()
    if memory:
        sampler.join()
    if process.returncode:
        sys.exit(f"{said}\n{' '.join(command)}: exit status {process.returncode}")
    return printed, peak


def session_memory(session: int) -> int:
    """Bytes of all processes of a session: the sum of their proportional set sizes."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int((process / "stat").read_text().rpartition(")")[2].split()[3]) != session:
                continue
            rollup = (process / "smaps_rollup").read_text()
        except (OSError, IndexError):  # it has ended meanwhile
            continue
        total += sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def measure(vocab: int, corpus: Corpus, asked: argparse.Namespace) -> None:
    """The rounds and the table of one tokenizer."""
    tokenizer = corpus.directory.parent / str(vocab) / "tokenizer.model"
    tokenizer.parent.mkdir()
    note(f"training a tokenizer of {vocab:,} pieces")
    train = [sys.executable, "-m", "llamactl", "train-tokenizer", str(corpus.directory), "--vocab-size", str(vocab)]
    subprocess.run(
        [*train, "--sample", str(asked.sample), "-o", str(tokenizer), "-q"], check=True, stdout=subprocess.DEVNULL
    )
    if {"datatrove", "datasets"} & set(asked.candidate):
        subprocess.run([python_of("tokenizing"), __file__, "--convert", str(tokenizer)], check=True)
    turns: dict[str, list[Turn]] = {candidate: [] for candidate in asked.candidate}
    clock = Clock.now()
    for number in range(asked.rounds + 1):
        for candidate, done in turns.items():
            done.append(turn(candidate, corpus.directory, tokenizer, memory=number == 0))
            speed = f"{corpus.bytes / 1e6 / done[-1].seconds:.1f} MB/s" if number else "memory"
            note(f"{vocab:,} pieces, round {number}/{asked.rounds}: {candidate} {speed}")
    report(vocab, corpus, turns, clock.others(), asked.json)


def report(vocab: int, corpus: Corpus, turns: dict[str, list[Turn]], others: float, out: Path | None) -> None:
    """The table of one tokenizer, and its JSON lines."""
    facts = {
        "benchmark": "tokenizing", "vocab": vocab, "cores": CORES, "others": others, "text_bytes": corpus.bytes,
        "documents": corpus.documents, "words": corpus.words, "distinct_words": corpus.distinct,
    }  # fmt: skip
    speeds = {
        candidate: Spread.of([corpus.bytes / 1e6 / one.seconds for one in done[1:]])
        for candidate, done in turns.items()
    }
    rows = []
    for candidate, done in turns.items():
        ratios = {
            other: speeds[candidate].median / speeds[other].median
            for other in ("pool", "sentencepiece")
            if other in speeds
        }
        peak, tokens = done[0].peak, done[0].tokens
        shown = [f"{ratios[other]:.2f}" if other in ratios else "" for other in ("pool", "sentencepiece")]
        rows.append([candidate, speeds[candidate].show(1), *shown, f"{peak / 2**20:,.0f}", f"{tokens:,}"])
        numbers = {
            "candidate": candidate, "megabytes_per_second": speeds[candidate]._asdict(), "rounds": len(done) - 1,
            "peak_bytes": peak, "tokens": tokens, "of": ratios,
        }  # fmt: skip
        append_json(out, facts | numbers)
    title = (
        f"{vocab:,} pieces, {CORES} cores; {corpus.bytes / 1e6:,.1f} MB of text in {corpus.documents:,} documents, "
        f"{corpus.words:,} words, of which {corpus.distinct:,} distinct"
    )
    table(title, ["", "MB/s", "/ pool", "/ sentencepiece", "peak MiB", "tokens"], rows, others)
    digests = {one.digest for candidate in ("llamactl", "pool") for one in turns.get(candidate, [])}
    if len(digests) > 1:
        print("NOT EQUAL WORK: llamactl and the pool gave different ids")
    elif {"llamactl", "pool"} <= turns.keys():
        print("The ids of llamactl and of the pool are identical.")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, nargs="+", help="files or directories of text")
    parser.add_argument("--megabytes", type=float, default=100, help="of text, at most")
    parser.add_argument("--vocab", type=int, action="append", help="default: 4096 and 32000")
    parser.add_argument("--sample", type=int, default=300_000, help="lines that the tokenizer is trained on")
    parser.add_argument("--candidate", choices=ENVIRONMENT, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="append the results to this file, as JSON lines")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--convert", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.candidate = asked.candidate or list(ENVIRONMENT)
    if asked.work:
        work = {"pool": pool, "sentencepiece": sentencepiece, "datatrove": datatrove, "datasets": datasets}
        seconds, tokens = work[asked.work[0]](*map(Path, asked.work[1:]))
        print(json.dumps({"seconds": seconds, "tokens": tokens}))
        return
    if asked.convert:
        convert(asked.convert)
        return
    with tempfile.TemporaryDirectory() as temporary:
        corpus = write_corpus(Path(temporary) / "corpus", asked)
        for vocab in asked.vocab or [4096, 32000]:
            measure(vocab, corpus, asked)


if __name__ == "__main__":
    main()
