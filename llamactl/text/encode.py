"""Tokenizing a corpus on all cores, in order, in memory that does not grow with it.

This process reads and unpacks the corpus in blocks; workers parse, check and encode them; what comes back is arrays of
ids. Only a few blocks a worker are under way at once.
"""

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np

from llamactl.artifacts import corpus
from llamactl.artifacts.jsonl import Block
from llamactl.errors import Fault
from llamactl.signals import serve
from llamactl.text.tokenizer import BOS, EOS, SPACE, Tokenizer

AHEAD = 3  # blocks under way for each worker


class Encoded(NamedTuple):
    """A block's documents: BOS, ids, EOS of each in a row, their lengths, what was counted, what was refused."""

    ids: np.ndarray[Any, Any]
    lengths: np.ndarray[Any, Any]
    done: Counter[str]
    noted: Counter[str]
    faults: list[Fault]
    disk: int


def encode_block(tokenizer: Tokenizer, block: Block, reading: corpus.Reading) -> Encoded:
    """Parse, check and encode one block."""
    done: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    faults: list[Fault] = []
    pieces: list[bytes] = []
    lengths: list[int] = []
    width = tokenizer.dtype.itemsize
    bos, eos = (np.asarray([token], tokenizer.dtype).tobytes() for token in (BOS, EOS))
    for found in corpus.documents(block, reading):
        if isinstance(found, Fault):
            faults.append(found)
            continue
        text = found.document.text
        ids = tokenizer.encode_bytes(text)
        pieces += (bos, ids, eos)
        lengths.append(len(ids) // width + 2)
        done.update(documents=1, bytes=len(text.encode()), tokens=lengths[-1])
        if found.as_encoding:
            noted[f"documents read as {found.as_encoding}"] += 1
        if SPACE in text:
            noted["documents with U+2581, which SentencePiece takes for a space"] += 1
    ids_array = np.frombuffer(b"".join(pieces), dtype=tokenizer.dtype)
    return Encoded(ids_array, np.asarray(lengths, np.int64), done, noted, faults, block.disk)


_tokenizer: Tokenizer  # of a worker process


def _start_worker(proto: bytes, parent: int) -> None:
    global _tokenizer
    _tokenizer = Tokenizer(proto)
    serve(parent)


def _work(block: Block, reading: corpus.Reading) -> Encoded:
    return encode_block(_tokenizer, block, reading)


def _result(future: "Future[Encoded]", processes: Iterable[BaseProcess], pool: ProcessPoolExecutor) -> Encoded:
    """What a worker has sent. Where one was killed while it sent, the pool waits for ever for the rest of that, as long
    as anybody could send it, itself included: so nobody can any more, and the pool finds itself broken.
    """
    while True:
        try:
            return future.result(timeout=1.0)
        except TimeoutError:
            if not all(process.is_alive() for process in processes):
                _end(processes, pool)


def _end(processes: Iterable[BaseProcess], pool: ProcessPoolExecutor) -> None:
    """Have a pool find itself broken now, not when its workers are through with what they have begun."""
    for process in processes:
        process.kill()
    pool._result_queue._writer.close()  # type: ignore[attr-defined]


def encode_corpus(
    blocks: Iterable[Block], tokenizer: Tokenizer, reading: corpus.Reading, workers: int | None = None
) -> Iterator[Encoded]:
    """All blocks in order, encoded by ``workers`` processes (one a core unless told otherwise)."""
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        yield from (encode_block(tokenizer, block, reading) for block in blocks)
        return
    context = get_context("fork" if hasattr(os, "fork") else "spawn")
    start, others = (tokenizer.proto, os.getpid()), active_children()
    processes: list[BaseProcess] = []

    def started() -> list[BaseProcess]:
        return [child for child in active_children() if child not in others]

    with ProcessPoolExecutor(workers, context, _start_worker, start) as pool:
        under_way: deque[Future[Encoded]] = deque()
        try:
            for block in blocks:
                under_way.append(pool.submit(_work, block, reading))
                processes = processes or started()
                if len(under_way) >= AHEAD * workers:
                    yield _result(under_way.popleft(), processes, pool)
            while under_way:
                yield _result(under_way.popleft(), processes, pool)
        except BrokenProcessPool:
            raise Fault("tokenize", "a worker process was killed (out of memory?)", "use fewer --workers") from None
        except BaseException:  # Ctrl-C, or a record that is refused: nobody waits for the rest
            _end(started(), pool)
            raise
