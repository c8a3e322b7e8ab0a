"""The command line as a user meets it: help, flags, exit statuses, and one line for whatever can go wrong."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest
import typer
from conftest import PATIENCE, Command
from safetensors.numpy import load_file, save_file

from llamactl import __version__, cli
from llamactl.artifacts import files, manifest, tensors

LLAMACTL = [sys.executable, "-m", "llamactl"]


class Ended(NamedTuple):
    status: int
    stdout: str
    stderr: str


Run = Callable[..., Ended]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, which imports torch once; what it lets through is a traceback to its user."""

    def run(*arguments: object) -> Ended:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.app([str(argument) for argument in arguments])
        return Ended(int(end.value.code or 0), *capfd.readouterr())

    return run


def tree(directory: Path) -> dict[str, int]:
    """All that is in a directory, hidden files too, by name, with when it was changed."""
    return {str(path): path.lstat().st_mtime_ns for path in sorted(directory.rglob("*"))}


def one_line(ended: Ended) -> str:
    """What was said, where the run failed as it should."""
    assert ended.status == 1, ended
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("llamactl: ")
    return line.removeprefix("llamactl: ")


def wait_for(what: Callable[[], bool], process: "subprocess.Popen[Any]") -> None:
    until = time.monotonic() + PATIENCE
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


# -- help and flags


def test_help_imports_neither_torch_nor_rich() -> None:
    """Of no command, so that it is there at once."""
    code = """
import sys, typer
from llamactl import cli
def helps(command, path):
    for name, sub in getattr(command, "commands", {}).items():
        helps(sub, [*path, name])
    try:
        cli.app([*path, "--help"])
    except SystemExit as end:
        assert not end.code
helps(typer.main.get_command(cli.app), [])
print(*sorted(set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("Usage: ") >= 7
    assert not {"torch", "rich", "transformers"} & set(done.stderr.split())


def test_one_process_loads_nothing_that_only_many_need(tmp_path: Path, base_model: Path) -> None:
    """torch's tensors that many processes share take a second to load, with all the algebra behind them."""
    asked = ["generate", str(base_model), "--text", "a", "--max-new-tokens", "2", "-o", str(tmp_path / "out.jsonl")]
    code = f"""
import sys
from llamactl import cli
cli.app({asked}, standalone_mode=False)
print(*sorted(set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (tmp_path / "out.jsonl").exists()
    loaded = set(done.stderr.split())
    assert "llamactl.train.parallel" in loaded
    assert not {"torch.distributed.tensor", "torch.distributed.fsdp", "sympy"} & loaded


def test_help_lists_the_stages_in_the_recipes_order(llamactl: Command) -> None:
    shown = llamactl("--help", status=0).stdout
    listed = [line.split()[0] for line in shown.partition("Commands:")[2].splitlines() if line[2:3].strip()]
    assert listed == [
        "convert",
        "validate",
        "train-tokenizer",
        "tokenize",
        "pretrain",
        "sft",
        "rm-train",
        "generate",
        "score",
        "reject-sample",
        "ppo",
        "gatt-synth",
        "distill-safety",
        "chat",
        "carbon",
        "lineage",
        "plot",
        "eval",
    ]


def test_every_command_shows_an_example_that_it_accepts() -> None:
    for path, sub in commands():
        example = sub.help.partition("Example: ")[2].split("\n\n")[0].strip()
        assert example.startswith(f"llamactl {path} "), path
        flags = {word.partition("=")[0] for word in example.split() if word.startswith("-") and word != "-"}
        known = {name for parameter in sub.params for name in parameter.opts}
        assert flags <= known, path


def test_version(command: Run) -> None:
    assert command("--version") == (0, f"llamactl {__version__}\n", "")


def commands() -> Iterator[tuple[str, Any]]:
    """Each command by the words that call it."""

    def walk(group: Any, words: list[str]) -> Iterator[tuple[str, Any]]:
        for name, sub in group.commands.items():
            if hasattr(sub, "commands"):
                yield from walk(sub, [*words, name])
            else:
                yield " ".join([*words, name]), sub

    yield from walk(typer.main.get_command(cli.app), [])


# Arguments, then flags. A change here is a decision, and a line of the CHANGELOG.
FLAGS = {
    "convert": (
        "files",
        "--allow-tags --formats --from --max-line --out/-o --overwrite --quiet/-q --safety --shard --skip-bad --source "
        "--to",
    ),
    "validate": ("files", "--allow-tags --context --held-out --json --max-line --quiet/-q --tokenizer"),
    "train-tokenizer": (
        "corpus",
        "--encoding --max-line --out/-o --overwrite --quiet/-q --sample --seed --skip-bad --vocab-size",
    ),
    "tokenize": (
        "corpus",
        "--encoding --max-line --out/-o --overwrite --quiet/-q --shard --shard-tokens --skip-bad --tokenizer --workers",
    ),
    "pretrain": (
        "",
        "--activation-checkpointing --batch-size --compile --context --data --device --devices --dim --dry-run "
        "--epochs --ffn --heads --keep --kv-heads --layers --log-every --lr --mfu --micro-batch --out/-o --overwrite "
        "--precision --quiet/-q --replicas --resume/--no-resume --save-every --seed --size --steps --tensor-parallel "
        "--tokens --verify-resume --verify/--no-verify --vocab-size --warmup --weight-decay",
    ),
    "sft": (
        "model dialogues",
        "--activation-checkpointing --allow-tags --batch-size --compile --context --device --devices "
        "--document-mask/--no-document-mask --dry-run --epochs --eval --eval-every --keep --log-every --loss --lr "
        "--max-line --mfu --micro-batch --out/-o --overwrite --precision --quiet/-q --replicas --resume/--no-resume "
        "--save-every --seed --skip-bad --steps --tensor-parallel --tokens --truncate --verify/--no-verify --warmup "
        "--weight-decay",
    ),
    "rm-train": (
        "model comparisons",
        "--activation-checkpointing --allow-tags --batch-size --compile --context --device --devices --dry-run "
        "--epochs --eval --eval-every --hold-out --keep --kind --log-every --lr --margin --max-line --mfu "
        "--micro-batch --mix --mix-share --out/-o --overwrite --precision --quiet/-q --replicas "
        "--resume/--no-resume --safety-loss --save-every --seed --skip-bad --steps --tensor-parallel --tokens "
        "--truncate --verify/--no-verify --warmup --weight-decay",
    ),
    "score": (
        "samples",
        "--allow-tags --device --max-line --out/-o --overwrite --precision --quiet/-q --reward --shard --skip-bad "
        "--tensor-parallel --truncate",
    ),
    "generate": (
        "model prompts",
        "--allow-tags --cache-memory --device --log-probs --max-new-tokens --out/-o --overwrite --precision --quiet/-q "
        "--seed --shard --skip-bad --temperature --tensor-parallel --text --top-k --top-p -k",
    ),
    "reject-sample": (
        "model prompts",
        "--allow-tags --cache-memory --device --helpfulness --keep --max-new-tokens --out/-o --overwrite --pool "
        "--precision --quiet/-q --report --safety --seed --shard --skip-bad --temperature --tensor-parallel --top-k "
        "--top-p --truncate -k",
    ),
    "ppo": (
        "model prompts",
        "--activation-checkpointing --allow-tags --batch-size --cache-memory --clip --compile --context --critic "
        "--critic-lr --device --devices --dry-run --eval --eval-every --frozen-layers --gae-lambda --gamma --general "
        "--helpfulness --iterations --keep --kl --kl-stop --length-stop --log-every --lr --max-new-tokens --mfu "
        "--micro-batch --mini-batch-size --model-every --offload --out/-o --overwrite --patience --precision "
        "--quiet/-q --reference --replicas --resume/--no-resume --safety --samples-every --save-every --seed "
        "--skip-bad --temperature --tensor-parallel --truncate --truncated --value-clip --verify/--no-verify "
        "--weight-decay",
    ),
    "gatt-synth": (
        "model dialogues",
        "--allow-tags --cache-memory --constraints --device --earlier --make-constraints --max-new-tokens --out/-o "
        "--overwrite --place --precision --quiet/-q --seed --shard --skip-bad --temperature --tensor-parallel --top-k "
        "--top-p --turns",
    ),
    "distill-safety": (
        "model prompts",
        "--allow-tags --cache-memory --default-templates --device --max-new-tokens --only-tagged --out/-o --overwrite "
        "--precision --quiet/-q --report --safety --seed --shard --skip-bad --temperature --templates "
        "--tensor-parallel --top-k --top-p --truncate",
    ),
    "chat": (
        "model",
        "--allow-tags --device --max-new-tokens --precision --quiet/-q --seed --system --temperature --top-k --top-p",
    ),
    "lineage": (
        "artifact folders",
        "--card --dot --json --license --overwrite --quiet/-q --scores --verify",
    ),
    "plot": ("kind files", "--label --out/-o --overwrite --quiet/-q --seed --skip-bad --text --title"),
    "carbon": (
        "paths",
        "--compare --country --format --intensity --lineage --offset --paper --pue --quiet/-q --skip-bad --tables "
        "--watts",
    ),
    "eval perplexity": (
        "model corpus",
        "--device --encoding --max-line --out/-o --overwrite --precision --quiet/-q --skip-bad --stride "
        "--tensor-parallel --window",
    ),
    "eval bench": (
        "model benchmarks",
        "--answers --cache-memory --device --limit --out/-o --overwrite --precision --quiet/-q --run-code --seed "
        "--shots --temperature --tensor-parallel --top-p -k",
    ),
    "eval gatt": (
        "models",
        "--allow-tags --attention --cache-memory --constraints --data --device --max-line --max-new-tokens --out/-o "
        "--overwrite --place --plot --precision --quiet/-q --samples --seed --skip-bad --temperature --top-k --top-p "
        "--turns --unseen",
    ),
    "eval refusals": (
        "samples",
        "--allow-tags --max-line --out/-o --overwrite --quiet/-q --seed --skip-bad",
    ),
    "eval reward": (
        "models",
        "--allow-tags --data --device --max-line --out/-o --overwrite --precision --quiet/-q --seed --skip-bad "
        "--tensor-parallel --truncate",
    ),
}


def test_the_flags_of_all_commands() -> None:
    found = {}
    for path, sub in commands():
        arguments = [p.name for p in sub.params if p.param_type_name == "argument"]
        flags = ["/".join([*p.opts, *p.secondary_opts]) for p in sub.params if p.param_type_name == "option"]
        found[path] = (" ".join(arguments), " ".join(sorted(flag for flag in flags if flag != "--help")))
    assert found == FLAGS


def test_a_flag_means_the_same_everywhere() -> None:
    """The same words of help, wherever it is not a stage's own."""
    # of a tokenizer or a model; a file or a directory; stored or not; to plan for or not; of a batch or a record;
    # shards or comparisons; states or answers; a tag or a model; one or several; of a step or an iteration; a
    # Document or a drawing; turns that a dialogue has or that are played
    own = {"--vocab-size", "--out/-o", "--precision", "--device", "--context", "--data"}
    own |= {"--keep", "--safety", "--temperature", "--batch-size", "--json", "--text", "--turns"}
    meanings: dict[str, set[str]] = {}
    for _, sub in commands():
        for parameter in sub.params:
            if parameter.param_type_name == "option":
                meanings.setdefault("/".join([*parameter.opts, *parameter.secondary_opts]), set()).add(parameter.help)
    assert {flag for flag, texts in meanings.items() if len(texts) > 1} <= own
    assert all(text for texts in meanings.values() for text in texts)


# -- exit statuses


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nosuch"],
        ["tokenize"],
        ["tokenize", "a.txt"],
        ["tokenize", "a.txt", "--tokenizer", "t.model", "--nosuch"],
        ["tokenize", "a.txt", "--tokenizer", "t.model", "--encoding", "latin-2000"],
        ["tokenize", "a.txt", "--tokenizer", "t.model", "--encoding", "rot13"],
        ["tokenize", "a.txt", "--tokenizer", "t.model", "--encoding", ""],
        ["tokenize", "a.txt", "--tokenizer", "t.model", "--encoding", "undefined"],
        ["tokenize", "a.txt", "--tokenizer", "t.model", "--shard", "4/4"],
        ["tokenize", "a.txt", "--tokenizer", "t.model", "--shard", "-1/4"],
        ["tokenize", "a.txt", "--tokenizer", "t.model", "--shard", "1"],
        ["tokenize", "a.txt", "--tokenizer", "t.model", "--workers", "0"],
        ["train-tokenizer", "a.txt", "--vocab-size", "many"],
        ["pretrain", "--steps", "0"],
        ["pretrain", "--precision", "fp8"],
        ["generate", "model", "--top-p", "1.5"],
        ["generate", "model", "-k", "0"],
        ["reject-sample", "model"],
        ["reject-sample", "model", "--helpfulness", "rm", "-k", "0"],
        ["reject-sample", "model", "--helpfulness", "rm", "--keep", "0"],
        ["reject-sample", "model", "--helpfulness", "rm", "--keep", "worst"],
        ["carbon", "--paper", "--pue", "0.9"],
        ["carbon", "--paper", "--intensity", "385"],
        ["carbon", "--paper", "--offset", "1.5"],
        ["carbon", "--paper", "--format", "yaml"],
        ["eval"],
    ],
    ids=" ".join,
)
def test_usage_errors_are_2(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = command(*arguments)
    assert ended.status == 2
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


@contextmanager
def tokenizing(out: Path, tokenizer: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """``llamactl tokenize -`` that has read some of its input, and waits for more."""
    arguments = ["tokenize", "-", "--tokenizer", str(tokenizer), "-o", str(out), "--workers", "2", "-q"]
    process = subprocess.Popen(
        [*LLAMACTL, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    try:
        process.stdin.write(b'{"text":"some words to encode"}\n' * 200_000)  # several blocks: the workers have begun
        process.stdin.flush()
        wait_for((out.parent / f".{out.name}.partial").exists, process)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_is_130_and_leaves_nothing(tmp_path: Path, tokenizer_path: Path) -> None:
    with tokenizing(tmp_path / "out", tokenizer_path) as process:
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
    assert (stdout, stderr.decode()) == (b"", "llamactl: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_runs_is_refused_and_the_first_goes_on(
    tmp_path: Path, tokenizer_path: Path, corpus_dir: Path, command: Run
) -> None:
    out = tmp_path / "out"
    with tokenizing(out, tokenizer_path) as process:
        said = one_line(command("tokenize", corpus_dir, "--tokenizer", tokenizer_path, "-o", out, "-q"))
        assert said == f"{out}: another run is writing here; wait for it, or write elsewhere with -o"
        stdout, _ = process.communicate(timeout=PATIENCE)
        assert (process.returncode, stdout.decode()) == (0, f"{out}\n")
    assert manifest.load(out / "run.json")["done"]["documents"] == 200_000
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_worker_that_the_system_has_killed(tmp_path: Path, tokenizer_path: Path) -> None:
    """As it does where memory runs out: one line, and nothing is left."""
    with tokenizing(tmp_path / "out", tokenizer_path) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_for(lambda: len(children.read_text().split()) >= 2, process)
        os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    *progress, last = stderr.decode().splitlines()
    assert last.startswith("llamactl: ")
    assert all("=" in line for line in progress)  # on a busy machine it comes before
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_trainings_is_refused(tmp_path: Path, shards_dir: Path, command: Run) -> None:
    out = tmp_path / "out"
    arguments = ["pretrain", "--size", "tiny", "--data", str(shards_dir), "-o", str(out), "--steps", "100000"]
    arguments += ["--batch-size", "1", "--context", "32", "--save-every", "20", "--device", "cpu", "-q"]
    with subprocess.Popen([*LLAMACTL, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            wait_for(lambda: any(out.glob("state/step-*")), process)
            assert one_line(command(*arguments)).startswith(f"{out}: another run is writing here")
            for flag in ("--no-resume", "--overwrite"):
                assert "another run" in one_line(command(*arguments, flag))
            process.terminate()
            _, stderr = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 75
    assert f"{out}: stopped by SIGTERM after step " in stderr.decode()
    assert len((out / "metrics.jsonl").read_bytes().splitlines()) > 20


def ended_without_a_reader(arguments: list[str]) -> tuple[int, bytes]:
    """Exit status and stderr of the command when its stdout is closed before it writes."""
    process = subprocess.Popen([*LLAMACTL, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=PATIENCE)
    return process.returncode, stderr


def test_a_reader_that_leaves_is_141_in_silence(base_model: Path) -> None:
    """As in ``llamactl generate ... | head -1``."""
    arguments = ["generate", str(base_model), "--text", "def", "-k", "5", "--max-new-tokens", "2", "--device", "cpu"]
    assert ended_without_a_reader(arguments) == (141, b"")


LISTS = (["carbon", "--tables"], ["convert", "--formats"], ["distill-safety", "--default-templates"])


@pytest.mark.parametrize("arguments", LISTS, ids=" ".join)
def test_a_reader_that_leaves_a_list(arguments: list[str]) -> None:
    assert ended_without_a_reader(arguments) == (141, b"")


def test_a_reader_that_leaves_before_the_path_is_announced(
    tmp_path: Path, corpus_dir: Path, tokenizer_path: Path
) -> None:
    arguments = ["tokenize", str(corpus_dir), "--tokenizer", str(tokenizer_path), "-o", str(tmp_path / "out"), "-q"]
    assert ended_without_a_reader(arguments) == (141, b"")
    assert (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize("arguments", [*LISTS, ["--help"], ["generate"]], ids=" ".join)
def test_a_full_disk_behind_stdout_is_1_and_one_line(base_model: Path, arguments: list[str]) -> None:
    if arguments == ["generate"]:
        arguments = [*arguments, str(base_model), "--text", "def", "--max-new-tokens", "2", "--device", "cpu"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*LLAMACTL, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "No space left on device" in done.stderr


def test_a_closed_stdin_is_no_traceback(tmp_path: Path, tokenizer_path: Path) -> None:
    """As under some daemons: ``<&-``."""
    line = f'"$0" -m llamactl tokenize - --tokenizer {tokenizer_path} -o {tmp_path / "out"} -q <&-'
    done = subprocess.run(["bash", "-c", line, sys.executable], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stderr.startswith("llamactl: ")
    assert len(done.stderr.splitlines()) == 1


# -- bad inputs: exit 1, one line that names the file and what to do, and nothing is left


class Given(NamedTuple):
    """What a case starts from; ``tmp`` is its own."""

    tmp: Path
    corpus: Path
    tokenizer: Path
    shards: Path
    model: Path

    def file(self, name: str, data: bytes | str) -> Path:
        path = self.tmp / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def copy(self, source: Path, *without: str) -> Path:
        """A model or shards directory of its own, with its manifest."""
        return Path(shutil.copytree(source, self.tmp / "copy", ignore=shutil.ignore_patterns("state", *without)))

    def foreign(self, **config: object) -> Path:
        """A model from elsewhere: no manifest of ours vouches for its bytes. ``config`` changes its config.json."""
        model = self.copy(self.model, "run.json", "metrics.jsonl")
        raw = orjson.loads((model / "config.json").read_bytes()) | config
        (model / "config.json").write_bytes(orjson.dumps(raw))
        return model

    def replaced(self, name: str, data: bytes) -> Path:
        """A model from elsewhere with other bytes for one of its files."""
        (self.foreign() / name).write_bytes(data)
        return self.tmp / "copy"

    def lacking(self, name: str) -> Path:
        """A model from elsewhere without one of its files."""
        (self.foreign() / name).unlink()
        return self.tmp / "copy"

    def tokenize(self, corpus: object, tokenizer: object = None, *more: object) -> list[object]:
        return ["tokenize", corpus, "--tokenizer", tokenizer or self.tokenizer, "-o", self.tmp / "out", *more]

    def pretrain(self, data: object, *more: object) -> list[object]:
        size = ["--size", "tiny", "--steps", 2, "--batch-size", 2, "--context", 32, "--device", "cpu"]
        return ["pretrain", "--data", data, "-o", self.tmp / "out", *size, *more]

    def generate(self, model: object, *more: object) -> list[object]:
        prompts = more or ("--text", "def")
        return ["generate", model, *prompts, "-o", self.tmp / "out", "--max-new-tokens", 1, "--device", "cpu"]

    def shards_of(self, *ids: int) -> Path:
        """A shards directory with a valid manifest around any ids."""
        made = self.tmp / "copy"
        made.mkdir()
        arrays = {"tokens": np.asarray(ids, np.uint16), "starts": np.zeros(1, np.int64)}
        outputs = [{"path": "shard-00000.safetensors", "kind": "shard"}]
        outputs[0] |= tensors.write(made / "shard-00000.safetensors", arrays)._asdict()  # type: ignore[arg-type]
        shutil.copy(self.tokenizer, made / "tokenizer.model")
        outputs.append({"path": "tokenizer.model", "kind": "tokenizer"})
        outputs[1] |= files.stamp(made / "tokenizer.model")._asdict()  # type: ignore[arg-type]
        facts = manifest.load(self.shards / "run.json") | {"outputs": outputs}
        (made / "run.json").write_bytes(manifest.dumps(facts))
        return made

    def index(self, weight_map: object, keep: bool = False) -> Path:
        """A model from elsewhere with an index of weights."""
        model = self.foreign()
        (model / "model.safetensors.index.json").write_bytes(orjson.dumps({"weight_map": weight_map}))
        if not keep:
            (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
        return model

    def weights(self, change: Callable[[dict[str, Any]], object]) -> Path:
        """A model from elsewhere whose tensors were changed."""
        model = self.foreign()
        arrays = load_file(model / "model.safetensors")
        change(arrays)
        save_file(arrays, model / "model.safetensors")
        return model

    def meta(self, tokenizer: bool) -> Path:
        """A model in Meta's own layout; its tokenizer may lie beside the directory."""
        model = self.tmp / "llama-2-7b"
        model.mkdir()
        (model / "params.json").write_text('{"dim": 4096, "n_heads": 32, "n_layers": 32}')
        (model / "consolidated.00.pth").write_bytes(b"PK\x03\x04")
        if tokenizer:
            shutil.copy(self.tokenizer, model / "tokenizer.model")
        return model

    def pickled(self, name: str) -> Path:
        model = self.foreign()
        (model / "model.safetensors").rename(model / name)
        return model


def flipped(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return path


def shortened(path: Path, size: float) -> Path:
    os.truncate(path, int(path.stat().st_size * size))
    return path


def big_line(path: Path) -> Path:
    with path.open("wb") as file:
        file.write(b'{"text":"before"}\n{"text":"')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n')
    return path


def smaller(given: Given) -> Path:
    """A model with fewer rows than its tokenizer has ids."""
    model = given.foreign(vocab_size=500)
    arrays = load_file(model / "model.safetensors")
    arrays |= {name: arrays[name][:500].copy() for name in (EMBEDDING, "lm_head.weight")}
    save_file(arrays, model / "model.safetensors")
    return model


NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
ANSWER = '{"messages":[{"role":"assistant","content":"a"}]}'
NUMBER = '\n{"messages":[{"role":"user","content":5}]}'
LINEAR = {"type": "linear", "factor": 2.0}

# What is asked, and the words that the line must hold, the name of the file first.
BAD: dict[str, tuple[Callable[..., list[object]], str, *tuple[str, ...]]] = {
    # files
    "corpus that is not there": (lambda g: g.tokenize("no.txt"), "no.txt: no such file"),
    "tokenizer that is not there": (lambda g: g.tokenize(g.corpus, "no.model"), "no.model: no such file"),
    "prompts that are not there": (
        lambda g: g.generate(g.model, "no.jsonl"),
        "no.jsonl: no such file or directory; name",
    ),
    "model that is not there": (lambda g: g.generate("no"), "no: no such"),
    "shards that are not there": (lambda g: g.pretrain("no"), "no: no such directory"),
    "empty text": (lambda g: g.tokenize(g.file("a.txt", "")), "a.txt: is empty"),
    "empty .jsonl": (lambda g: g.tokenize(g.file("a.jsonl", "")), "a.jsonl: is empty"),
    "empty prompts": (lambda g: g.generate(g.model, g.file("a.jsonl", "")), "a.jsonl: is empty"),
    "text in latin-1": (lambda g: g.tokenize(g.file("a.txt", b"\xe9")), "a.txt: byte 0", "--encoding"),
    "line of 100 MB": (
        lambda g: g.tokenize(big_line(g.tmp / "a.jsonl")),
        "a.jsonl:2: the line is longer",
        "--skip-bad",
    ),
    "wrong type": (lambda g: g.generate(g.model, g.file("p.jsonl", NUMBER)), "p.jsonl:2: messages[0].content: "),
    "answer for a prompt": (
        lambda g: g.generate(g.model, g.file("p.jsonl", ANSWER)),
        "p.jsonl:1: messages[0].role: is assistant, where user is due",
    ),
    "prompt beyond the context": (lambda g: g.generate(g.model, "--text", "x" * 500), "--text: is ", "context"),
    # tokenizers
    "text for a tokenizer": (lambda g: g.tokenize(g.corpus, g.file("t", "words")), "t: is no SentencePiece model"),
    "empty tokenizer": (lambda g: g.tokenize(g.corpus, g.file("t", "")), "t: is no SentencePiece model"),
    "tokenizer cut short": (
        lambda g: g.tokenize(g.corpus, shortened(Path(shutil.copy(g.tokenizer, g.tmp / "t")), 0.5)),
        "t: is no SentencePiece model",
    ),
    "vocabulary beyond the corpus": (
        lambda g: ["train-tokenizer", g.file("a.txt", "few words"), "-o", g.tmp / "out"],
        "--vocab-size: the corpus is too small for 32,000 pieces",
        "ask for --vocab-size",
    ),
    "vocabulary smaller than the tokenizer's": (
        lambda g: g.pretrain(g.shards, "--vocab-size", 100),
        "--vocab-size: a model of 100 ids does not fit a tokenizer of 512",
    ),
    # shards
    "directory that is no shards": (lambda g: g.pretrain(g.corpus), ": is no shards directory"),
    "model for shards": (lambda g: g.pretrain(g.model), "base: holds no shards"),
    "shard whose bytes differ": (
        lambda g: g.pretrain(flipped(g.copy(g.shards) / "shard-00001.safetensors").parent),
        "shard-00001.safetensors: its bytes differ from what run.json says",
    ),
    "shard cut short": (
        lambda g: g.pretrain(shortened(g.copy(g.shards) / "shard-00001.safetensors", 0.5).parent),
        "shard-00001.safetensors: ",
    ),
    "shard that is missing": (
        lambda g: g.pretrain(g.copy(g.shards, "shard-00001.safetensors")),
        "shard-00001.safetensors: is missing",
    ),
    "fewer tokens than a sample": (lambda g: g.pretrain(g.shards_of(*[5] * 32)), "copy: holds 32 tokens"),
    "weight that is none": (lambda g: g.pretrain(f"{g.shards}=much"), "--data: 'much' is no weight"),
    # sizes
    "heads not divided by the key/value heads": (
        lambda g: g.pretrain(g.shards, "--kv-heads", 3),
        "--kv-heads: 3 key/value heads do not divide 4 heads",
    ),
    "width not divided by the heads": (lambda g: g.pretrain(g.shards, "--heads", 3), "--heads: 3 heads do not divide"),
    "size that there is not": (lambda g: g.pretrain(g.shards, "--size", "8b"), "--size: ", "tiny, 15m"),
    "steps and tokens": (lambda g: g.pretrain(g.shards, "--tokens", 100), "--steps: given together"),
    "GPU that there is not": (lambda g: [*g.generate(g.model), "--device", "cuda:77"], "--device: "),
    "window beyond the context": (
        lambda g: ["eval", "perplexity", g.model, g.file("a.txt", "a"), "-o", g.tmp / "out", "--window", 999],
        "--window: 999",
    ),
    # config.json
    "config: key/value heads": (
        lambda g: g.generate(g.foreign(num_key_value_heads=3)),
        "copy/config.json: 3 key/value heads do not divide 4 heads",
    ),
    "config: word for a number": (lambda g: g.generate(g.foreign(hidden_size="128")), "config.json: ", "hidden_size"),
    "config: null": (lambda g: g.generate(g.foreign(intermediate_size=None)), "config.json: ", "intermediate_size"),
    "config: fraction": (lambda g: g.generate(g.foreign(num_hidden_layers=4.5)), "config.json: ", "num_hidden_layers"),
    "config: word for theta": (lambda g: g.generate(g.foreign(rope_theta="large")), "config.json: ", "rope_theta"),
    "config: another type": (lambda g: g.generate(g.foreign(model_type="mistral")), "config.json: ", "'mistral'"),
    "config: another architecture": (
        lambda g: g.generate(g.foreign(architectures=["MistralForCausalLM"])),
        "copy: is a MistralForCausalLM, where a LlamaForCausalLM is wanted",
    ),
    "config: scaled positions": (lambda g: g.generate(g.foreign(rope_scaling=LINEAR)), "config.json: rope_scaling is "),
    "config: nothing": (lambda g: g.generate(g.replaced("config.json", b"{}")), "copy/config.json: model_type"),
    "config: no JSON": (lambda g: g.generate(g.replaced("config.json", b"{no")), "copy/config.json: is no JSON"),
    "config: list": (lambda g: g.generate(g.replaced("config.json", b"[]")), "copy/config.json: is no JSON object"),
    "manifest that is a list": (lambda g: g.generate(g.replaced("run.json", b"[]")), "copy/run.json: is no manifest"),
    # weights
    "weights cut short": (
        lambda g: g.generate(shortened(g.foreign() / "model.safetensors", 0.5).parent),
        "model.safetensors: cannot be read",
    ),
    "weights that are empty": (
        lambda g: g.generate(g.replaced("model.safetensors", b"")),
        "model.safetensors: cannot be read",
    ),
    "weights whose bytes differ": (
        lambda g: g.generate(flipped(g.copy(g.model) / "model.safetensors").parent),
        "model.safetensors: its bytes differ from what run.json says",
    ),
    "weights that are missing": (
        lambda g: g.generate(g.lacking("model.safetensors")),
        "copy: holds no model.safetensors",
    ),
    "tensor that is missing": (
        lambda g: g.generate(g.weights(lambda w: w.pop(NORM))),
        "copy: 1 tensors are missing",
        NORM,
    ),
    "tensor that is not expected": (
        lambda g: g.generate(g.weights(lambda w: w.update({"model.layers.9.x.weight": w[NORM]}))),
        "model.safetensors: ",
        "model.layers.9.x.weight",
    ),
    "tensor of another shape": (
        lambda g: g.generate(g.weights(lambda w: w.update({EMBEDDING: w[EMBEDDING][:-1].copy()}))),
        "model.safetensors: ",
        f"{EMBEDDING} is [511, 128], config.json says [512, 128]",
    ),
    "weights and an index": (
        lambda g: g.generate(g.index({NORM: "model.safetensors"}, keep=True)),
        "copy: holds both model.safetensors and model.safetensors.index.json",
    ),
    "index that leads out": (
        lambda g: g.generate(g.index({NORM: "../x.safetensors"})),
        "index.json: ",
        "../x.safetensors",
    ),
    "index that leads to the root": (
        lambda g: g.generate(g.index({NORM: "/etc/x.safetensors"})),
        "index.json: ",
        "/etc/x.safetensors",
    ),
    "index of pickles": (lambda g: g.generate(g.index({NORM: "model.bin"})), "index.json: ", "'model.bin'"),
    "index of missing files": (
        lambda g: g.generate(g.index({NORM: "model-00002-of-00002.safetensors"})),
        "model-00002-of-00002.safetensors: is missing",
    ),
    "index without a map": (lambda g: g.generate(g.index(None)), "index.json: is no index of weights"),
    "index of nothing": (lambda g: g.generate(g.index({})), "copy: 39 tensors are missing"),
    "pickle for weights": (
        lambda g: g.generate(g.pickled("pytorch_model.bin")),
        "copy: its weights are Python pickles (pytorch_model.bin)",
        "safetensors",
    ),
    "Meta's layout": (lambda g: g.generate(g.meta(tokenizer=True)), "llama-2-7b: is Meta's own layout", "pickles"),
    "Meta's layout, tokenizer above": (
        lambda g: g.generate(g.meta(tokenizer=False)),
        "llama-2-7b: is Meta's own layout",
        "pickles",
    ),
    "shards for a model": (lambda g: g.generate(g.shards), "shards: holds no config.json"),
    "text for a model": (lambda g: g.generate(g.file("a.txt", "x")), "a.txt: is no model directory"),
    "directory that is no model": (lambda g: g.generate(g.corpus), ": holds no config.json"),
    "model without its tokenizer": (
        lambda g: g.generate(g.lacking("tokenizer.model")),
        "tokenizer.model: no such file",
    ),
    "model smaller than its tokenizer": (
        lambda g: g.generate(smaller(g)),
        "copy: a model of 500 ids does not fit a tokenizer of 512",
    ),
    # places
    "output that is a stranger's": (
        lambda g: ["train-tokenizer", g.corpus, "-o", g.file("mine", "precious")],
        "mine: exists, and not by llamactl",
    ),
    "a file where shards are to be": (
        lambda g: [*g.tokenize(g.corpus), "-o", g.file("mine", "precious")],
        "mine: is a file, and a directory is to be made; name another -o",
    ),
    "a file where a model is to be": (
        lambda g: [*g.pretrain(g.shards), "-o", g.file("mine", "precious"), "--overwrite"],
        "mine: is a file, and a directory is to be made; name another -o",
    ),
    "place where no file can be": (
        lambda g: ["train-tokenizer", g.corpus, "-o", "/proc/out", "--vocab-size", 450],
        "/proc/",
    ),
    "place where no shards can be": (lambda g: [*g.tokenize(g.corpus), "-o", "/proc/out"], "/proc/"),
    "place where no model can be": (lambda g: [*g.pretrain(g.shards), "-o", "/proc/out"], "/proc/"),
}
SAYS_ENOUGH = {name for name in BAD if name.endswith(("that are not there", "that is not there"))}


@pytest.fixture
def given(tmp_path: Path, corpus_dir: Path, tokenizer_path: Path, shards_dir: Path, base_model: Path) -> Given:
    return Given(tmp_path, corpus_dir, tokenizer_path, shards_dir, base_model)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_one_line_and_leaves_nothing(
    given: Given, command: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(given.tmp)
    ask, *words = BAD[name]
    arguments = ask(given)
    before = tree(given.tmp)
    line = one_line(command(*arguments, "-q"))
    for word in words:
        assert word in line
    assert tree(given.tmp) == before
    assert "; " in line or name in SAYS_ENOUGH, f"it does not say what to do: {line}"


def documents(given: Given) -> Path:
    return given.file("d.jsonl", '{"text": "a b"}\n')


def dialogues(given: Given) -> Path:
    return given.file("d.jsonl", '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n')


READ_AND_WRITTEN: dict[str, Callable[[Given], list[object]]] = {
    "a file": lambda g: ["convert", documents(g), "--to", "documents", "-o", g.tmp / "d.jsonl"],
    "by another spelling": lambda g: ["generate", g.model, documents(g), "-o", g.tmp / ".." / g.tmp.name / "d.jsonl"],
    "by a link": lambda g: ["generate", g.model, linked(documents(g)), "-o", g.tmp / "d.jsonl"],
    "a file for a directory": lambda g: ["sft", g.model, dialogues(g), "-o", g.tmp / "d.jsonl"],
    "a directory": lambda g: ["sft", g.copy(g.model), dialogues(g), "-o", g.tmp / "copy"],
    "a file in a directory": lambda g: ["tokenize", documents(g), "--tokenizer", g.tokenizer, "-o", g.tmp],
    "a manifest": lambda g: ["convert", documents(g).rename(g.tmp / "d.run.json"), "-o", g.tmp / "d"],
}


def linked(path: Path) -> Path:
    link = path.with_name("link.jsonl")
    link.symlink_to(path)
    return link


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("name", READ_AND_WRITTEN)
def test_what_is_read_is_not_written(given: Given, command: Run, name: str, overwrite: bool) -> None:
    arguments = READ_AND_WRITTEN[name](given)
    before = tree(given.tmp)
    ended = command(*arguments, *["--overwrite"] * overwrite)
    assert (ended.status, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert "read" in line and "replace" in line and line.endswith("; name another -o")
    assert tree(given.tmp) == before


@pytest.mark.parametrize(
    "flags",
    [
        ["generate", "model", "--temperature", "inf"],
        ["generate", "model", "--temperature", "nan"],
        ["reject-sample", "model", "--helpfulness", "rm", "--temperature", "1", "--temperature", "inf"],
        ["generate", "model", "--cache-memory", "inf"],
        ["sft", "model", "d.jsonl", "--lr", "inf"],
        ["sft", "model", "d.jsonl", "--epochs", "nan"],
        ["ppo", "model", "d.jsonl", "--helpfulness", "rm", "--kl-stop", "nan"],
    ],
    ids=" ".join,
)
def test_a_number_without_end_is_no_number(command: Run, flags: list[str]) -> None:
    ended = command(*flags)
    assert ended.status == 2
    assert flags[-2] in ended.stderr and "Traceback" not in ended.stderr


def test_numbers_are_called_as_their_flags_are() -> None:
    """So that one without end can be named by its parameter; the exceptions are texts and integers."""
    for _, sub in commands():
        for one in sub.params:
            if one.param_type_name == "option" and one.name not in ("from_", "k", "kept", "licence"):
                assert f"--{one.name.replace('_', '-')}" in one.opts


def test_ids_beyond_the_model_are_found_while_training(given: Given, command: Run) -> None:
    """By a shards directory that is sound but for its ids; the training is left unfinished, and says why."""
    shards = given.shards_of(*[5] * 100, 9999, *[5] * 100)
    line = one_line(command(*given.pretrain(shards, "--steps", 20), "-q"))
    assert line.startswith(f"{shards}: holds id 9999, the model has 512 (near token ")
    assert line.endswith("; tokenize again")
    left = {path.name for path in (given.tmp / "out").iterdir()}
    assert not left & {"run.json", "config.json", "model.safetensors"}


@pytest.mark.parametrize("tokens", ["-5", "0", "nan", "inf"])
def test_a_number_of_tokens_that_is_none_is_refused(given: Given, command: Run, tokens: str) -> None:
    """Rather than to train on none of them and call it a model, or on as many as the size's row says."""
    sizes = ["--size", "tiny", "--batch-size", 1, "--context", 32, "--device", "cpu"]
    arguments = ["pretrain", "--data", given.shards, "-o", given.tmp / "out", *sizes, "--tokens", tokens, "-q"]
    if tokens == "0":
        arguments.append("--dry-run")
    ended = command(*arguments)
    assert ended.status in (1, 2)
    assert list(given.tmp.iterdir()) == []


def test_a_learning_rate_of_0_is_used_or_refused(given: Given, command: Run) -> None:
    ended = command(*given.pretrain(given.shards, "--lr", 0), "-q")
    if not ended.status:
        assert manifest.load(given.tmp / "out" / "run.json")["settings"]["peak"] == 0


def test_a_probability_below_0_is_refused(given: Given, command: Run) -> None:
    assert command(*given.generate(given.model, "--text", "a", "--top-p", -1), "-q").status in (1, 2)


def test_out_may_be_stdout_by_its_sign(given: Given, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(given.tmp)
    before = set(given.tmp.iterdir())
    arguments = ["generate", given.model, "--text", "def", "-k", 2, "--max-new-tokens", 1, "--device", "cpu", "-q"]
    plain, signed = command(*arguments), command(*arguments, "-o", "-")
    assert (signed.status, signed.stdout) == (0, plain.stdout)
    assert plain.stdout.count("\n") == 2
    assert set(given.tmp.iterdir()) == before


def test_prompts_are_not_passed_over_where_text_is_given(given: Given, command: Run) -> None:
    prompts = given.file("p.jsonl", '{"text":"b"}')
    assert command(*given.generate(given.model, prompts, "--text", "a"), "-q").status in (1, 2)


@pytest.mark.parametrize("seed", [-1, 1 << 40, 1 << 70])
def test_any_seed_is_used_or_refused(given: Given, command: Run, seed: int) -> None:
    for arguments in (
        ["train-tokenizer", given.corpus, "-o", given.tmp / "t", "--vocab-size", 450],
        given.generate(given.model),
    ):
        assert command(*arguments, "--seed", seed, "-q").status in (0, 1, 2)


@pytest.mark.parametrize("name", ["train-tokenizer", "eval perplexity"])
def test_a_corpus_of_nothing_but_bad_records(given: Given, command: Run, name: str) -> None:
    """All skipped, as was asked: but nothing can be made of it, and that is said."""
    bad = given.file("bad.jsonl", "[]\n{}\n")
    before = tree(given.tmp)
    model = [given.model] if name == "eval perplexity" else []
    ended = command(*name.split(), *model, bad, "-o", given.tmp / "out", "--skip-bad", "-q")
    assert (ended.status, ended.stdout) == (1, "")
    assert ended.stderr.splitlines()[-1].startswith("llamactl: ")
    assert "INTERNAL" not in ended.stderr
    assert tree(given.tmp) == before


def test_a_text_that_is_not_utf_8(given: Given, command: Run) -> None:
    line = one_line(command(*given.generate(given.model, "--text", "a" + os.fsdecode(b"\xff")), "-q"))
    assert "--text" in line


def test_tokens_do_not_replace_the_directory_one_is_in(
    given: Given, command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who stands in it would go on standing in the old one, which is removed, and see nothing."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in (".", tmp_path / "here"):
        line = one_line(command("tokenize", given.corpus, "--tokenizer", given.tokenizer, "-o", name, "-q"))
        assert line.endswith("here: is the directory you are in, which would be replaced; name another -o")
    assert Path.cwd().exists()
    done = command("tokenize", given.corpus, "--tokenizer", given.tokenizer, "-o", ".", "--shard", "0/2", "-q")
    assert (done.status, (tmp_path / "here" / "part-00000-of-00002.json").exists()) == (0, True)


def test_names_that_are_not_utf_8(given: Given, command: Run) -> None:
    """An old disk holds such file names: used, or refused before the work, but not a traceback after it."""
    path = given.tmp / os.fsdecode(b"caf\xe9.txt")
    path.write_text("some text")
    ended = command(*given.tokenize(path), "-q")
    if ended.status:
        assert one_line(ended)
        assert not (given.tmp / "out").exists()
    else:
        assert manifest.load(given.tmp / "out" / "run.json")["done"]["documents"] == 1


# -- disks


@contextmanager
def disk(place: Path, options: str) -> Iterator[Path]:
    """A small disk of its own; skips where this user may not mount one."""
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_fills_up_while_tokenizing(given: Given, command: Run) -> None:
    with disk(given.tmp / "disk", "size=128k") as small:
        out = small / "shards"
        ended = command("tokenize", given.corpus, "--tokenizer", given.tokenizer, "-o", out, "-q", "--workers", 1)
        line = one_line(ended)
        assert "No space left on device" in line
        assert list(small.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
        ended = command("tokenize", given.corpus, "--tokenizer", given.tokenizer, "-o", out, "-q", "--workers", 1)
        assert (ended.status, ended.stdout) == (0, f"{out}\n")
        assert str(out) in line


def test_a_disk_that_fills_up_while_state_is_saved(given: Given, command: Run) -> None:
    """The last good state stays; with room again the same command goes on from it, to the same bits."""
    arguments = [*given.pretrain(given.shards, "--steps", 8, "--save-every", 2, "--precision", "fp32"), "-q"]
    with disk(given.tmp / "disk", "size=26m") as small:  # room for two states of 10.4 MB, not for the third
        out = small / "model"
        line = one_line(command(*arguments, "-o", out))
        assert "No space left on device" in line
        assert sorted(path.name for path in (out / "state").glob("step-*")) == ["step-00000002", "step-00000004"]
        assert not any(any(left.iterdir()) for left in (out / "state").glob(".*"))  # the room is given back
        assert not (out / "run.json").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        ended = command(*[a for a in arguments if a != "-q"], "-o", out)
        assert (ended.status, ended.stdout) == (0, f"{out}\n")
        assert "going on after step 4" in ended.stderr
        assert command(*arguments).status == 0
        for name in ("model.safetensors", "config.json"):
            assert (out / name).read_bytes() == (given.tmp / "out" / name).read_bytes()
        steps = [orjson.loads(step) for step in (out / "metrics.jsonl").open("rb")]
        assert [step["step"] for step in steps] == list(range(1, 9))
        assert str(out) in line


def test_a_disk_that_cannot_be_written(given: Given, command: Run) -> None:
    with disk(given.tmp / "disk", "ro,size=4m") as fixed:
        for arguments in (
            ["train-tokenizer", given.corpus, "--vocab-size", 450],
            ["tokenize", given.corpus, "--tokenizer", given.tokenizer],
            given.pretrain(given.shards),
            given.generate(given.model),
        ):
            line = one_line(command(*arguments, "-o", fixed / "out", "-q"))
            assert "Read-only file system" in line
            assert str(fixed) in line


def test_threads_wait_asleep_only_beside_others(tmp_path: Path) -> None:
    statistics = tmp_path / "stat"
    for running, busy in ((1, False), (2, True), (17, True)):
        statistics.write_text(f"cpu  1 2 3\nprocs_running {running}\nprocs_blocked 4\n")
        assert cli.others_run(statistics) is busy
    assert not cli.others_run(tmp_path / "none")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        wait_for(cli.others_run, process)
        process.kill()
