"""What most tests start from: a corpus, a tokenizer, shards and a small base model, each made once a session.

They are shared: a test that changes one works on a copy. Everything is made from Python's own library, by the commands
themselves.
"""

import ast
import inspect
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from llamactl import ui

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch; for tiny models more are slower, on a busy machine by far

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
LIBRARY = Path(inspect.getfile(inspect)).parent  # of Python
SOURCES = ("textwrap.py", "bisect.py", "heapq.py", "csv.py", "string.py", "shlex.py", "cmd.py", "queue.py")
DOCSTRINGS = ("argparse.py", "difflib.py", "calendar.py", "statistics.py", "random.py", "fractions.py", "typing.py")

# Processes that are forked from a server with torch imported already, which saves two seconds each.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "torch",
        "torch._dynamo",
        "torch.distributed.tensor.parallel",
        "sentencepiece",
        "zstandard",
        "rich.table",
        "llamactl.cli",
        "llamactl.model.llama",
        "llamactl.train.loop",
        "llamactl.train.verify",
    ]
)

PATIENCE = 300.0  # seconds after which a test calls what it waits for hung, however busy the machine

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def run(
    *arguments: object,
    stdin: str | bytes = b"",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    status: int | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run the command in a process of its own; ``env`` is added to ours, ``status`` is the exit status to insist on."""
    command = [sys.executable, "-m", "llamactl", *map(str, arguments)]
    given = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        command, input=given, capture_output=True, cwd=cwd, env={**os.environ, **(env or {})}, timeout=PATIENCE
    )
    stdout, stderr = done.stdout.decode(), done.stderr.decode()  # not text=True, which would change \r\n
    assert status is None or done.returncode == status, f"{arguments}: exit {done.returncode}\n{stderr}"
    return subprocess.CompletedProcess(command, done.returncode, stdout, stderr)


NO_UTF8 = os.fsdecode(b"caf\xe9")  # a name that people's files have had since before UTF-8; JSON has no word for it


def turns(*contents: str) -> list[dict[str, Any]]:
    """Messages of a user and an assistant by turns."""
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def written(path: Path, records: Iterable[object]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def with_pieces(proto: bytes, pieces: Iterable[str]) -> bytes:
    """A SentencePiece model with more pieces: the first field of its protobuf, {piece, score}, is repeated."""
    added = []
    for piece in pieces:
        text = piece.encode()
        body = b"\x0a" + bytes([len(text)]) + text + b"\x15\x00\x00\x80\xbf"  # score -1.0
        added.append(b"\x0a" + bytes([len(body)]) + body)
    return proto + b"".join(added)


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """Kernels are compiled before the first test: it is said where that takes long."""
    import torch

    from llamactl.model import decoding, flash, fused, matmul

    decoding.kernels(600)
    flash.prepare(torch.device("cpu"), 64)
    fused.KERNEL.prepare(torch.device("cpu"))
    matmul.prepare(torch.device("cpu"), torch.bfloat16)


@pytest.fixture(autouse=True)
def _speaking() -> None:
    """A command that a test ran in this process with --quiet does not silence the next test's."""
    ui.set_quiet(False)


@pytest.fixture(scope="session")
def llamactl() -> Command:
    """The command: ``llamactl("tokenize", ..., stdin="", cwd=None, env=None, status=None)``, a CompletedProcess."""
    return run


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of Python's own library: sources as .txt, docstrings as one .jsonl, about 250 kB and 300 documents."""
    directory = tmp_path_factory.mktemp("corpus")
    for name in SOURCES:
        (directory / f"{name}.txt").write_bytes((LIBRARY / name).read_bytes())
    with (directory / "docstrings.jsonl").open("w", encoding="utf-8") as file:
        for name in DOCSTRINGS:
            for node in ast.walk(ast.parse((LIBRARY / name).read_text(encoding="utf-8"))):
                kinds = ast.Module | ast.ClassDef | ast.FunctionDef
                if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                    place = f"{name}:{getattr(node, 'name', '')}"
                    file.write(json.dumps({"text": text, "id": place, "source": name}, ensure_ascii=False) + "\n")
    return directory


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory, corpus_dir: Path) -> Path:
    """A tokenizer of 512 pieces, learned from the corpus."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    run("train-tokenizer", corpus_dir, "-o", path, "--vocab-size", 512, status=0)
    return path


@pytest.fixture(scope="session")
def shards_dir(tmp_path_factory: pytest.TempPathFactory, corpus_dir: Path, tokenizer_path: Path) -> Path:
    """The corpus as token shards, in several files."""
    path = tmp_path_factory.mktemp("shards") / "shards"
    run("tokenize", corpus_dir, "--tokenizer", tokenizer_path, "-o", path, "--shard-tokens", 30_000, status=0)
    return path


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory, shards_dir: Path) -> Path:
    """A tiny base model in fp32, trained for 8 steps, with its state (of steps 6 and 8) beside."""
    path = tmp_path_factory.mktemp("base") / "base"
    run(
        "pretrain", "--size", "tiny", "--precision", "fp32", "--data", shards_dir, "-o", path,
        "--steps", 8, "--batch-size", 4, "--context", 128, "--save-every", 3, status=0,
    )  # fmt: skip
    return path


@pytest.fixture(params=[True, False], ids=["bf16 products", "fp32 products"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with bf16 instructions, and on one without."""
    from llamactl.model import functions

    monkeypatch.setattr(functions, "BF16_PRODUCTS", request.param)


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What kernels do on a CPU, by them, and by torch's operations as where there are none."""
    import torch

    from llamactl.model import fused, matmul

    if not request.param:
        monkeypatch.setattr(matmul, "suits", lambda a, b: False)
        monkeypatch.setattr(fused, "suits", lambda x: False)
        monkeypatch.setattr(fused, "there", lambda device: False)
    elif not fused.there(torch.device("cpu")):
        pytest.skip("numba is not installed, or there is no folder for what it compiles")
