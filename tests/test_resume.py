"""A pretraining that was stopped, killed or damaged goes on to the same bits as one that was left alone.

The runs are processes of their own. Most are forked from a server that has torch imported already, which saves two
seconds each; what they run is the command.
"""

import hashlib
import json
import os
import pkgutil
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import PATIENCE, SERVER

from llamactl.artifacts import manifest

STEPS, SAVE_EVERY = 12, 3
DAMAGE = 40  # bytes from the end of a file: in the last tensor


# What happens in a run, by what is called then.
EVENTS = {
    "line": ["llamactl.artifacts.metrics:Metrics.log"],
    "step": ["llamactl.train.loop:take"],
    "disk": ["os:fsync", "os:replace", "os:rename", "os:unlink"],
    "token": ["llamactl.model.generate:Batch._drawn"],
    "score": ["llamactl.model.heads:RewardModel.judge"],
    "update": ["llamactl.train.actor_critic:take"],
    "measure": ["llamactl.train.versions:Versions.measured"],
    "end": ["llamactl.artifacts.metrics:Metrics.close"],
}


class Moment(NamedTuple):
    """When a process sends itself which signal: just before its ``count``-th ``event``, from 1."""

    event: str
    count: int
    signal: signal.Signals

    def send(self) -> None:
        os.kill(os.getpid(), self.signal)

    def prepare(self, patch: Callable[[Any, str, Any], object]) -> None:
        """Have the signal sent; ``patch`` is like ``setattr``."""
        left = [self.count]

        def counting(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    self.send()
                return real(*given, **named)

            return call

        for place in EVENTS[self.event]:
            module, _, path = place.partition(":")
            holder, _, name = path.rpartition(".")
            owner = pkgutil.resolve_name(f"{module}:{holder}")
            patch(owner, name, counting(getattr(owner, name)))


class Elsewhere(NamedTuple):
    """Another machine, whose clock is years behind."""

    host: str
    behind: float = 20 * 365 * 86400.0

    def prepare(self, patch: Callable[[Any, str, Any], object]) -> None:
        """As of ``Moment``."""
        import socket

        from llamactl.artifacts import effort

        now = time.time
        patch(socket, "gethostname", lambda: self.host)
        patch(time, "time", lambda: now() - self.behind)
        patch(effort, "_now", lambda: datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds"))


def child(arguments: list[str], streams: tuple[Path, Path], moment: Moment | Elsewhere | None) -> None:
    """What a forked process does: become the command."""
    import torch

    from llamactl import cli
    from llamactl.model import device

    torch.set_num_threads(1)
    device._PROBE = 32  # measuring this machine takes a second
    for stream, path in zip((1, 2), streams, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    if moment:
        moment.prepare(setattr)
    sys.argv = ["llamactl", *arguments]
    cli.main()


class Pretraining:
    """The command with all its flags, to be started over and over in one directory."""

    def __init__(self, shards: Path, out: Path, precision: str = "fp32") -> None:
        self.out, self.streams = out, (out.with_suffix(".stdout"), out.with_suffix(".stderr"))
        self.flags: dict[str, object] = {
            "--size": "tiny", "--data": shards, "-o": out, "--precision": precision, "--steps": STEPS,
            "--save-every": SAVE_EVERY, "--batch-size": 4, "--micro-batch": 2, "--context": 32, "--layers": 2,
            "--dim": 32, "--heads": 4, "--kv-heads": 2, "--ffn": 48, "--lr": 0.01,
        }  # fmt: skip

    def arguments(self, *more: object, **changed: object) -> list[str]:
        flags = self.flags | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
        return ["pretrain", *(str(word) for pair in flags.items() for word in pair), *map(str, more)]

    def start(self, *more: object, moment: Moment | Elsewhere | None = None, **changed: object) -> BaseProcess:
        process = SERVER.Process(target=child, args=(self.arguments(*more, **changed), self.streams, moment))
        process.start()
        return process

    def run(
        self, *more: object, moment: Moment | Elsewhere | None = None, status: int | None = 0, **changed: object
    ) -> int:
        process = self.start(*more, moment=moment, **changed)
        process.join(PATIENCE)
        assert process.exitcode is not None, "still running"
        assert status in (None, process.exitcode), self.stderr()
        return process.exitcode

    def stderr(self) -> str:
        return self.streams[1].read_text()

    def lines(self) -> list[dict[str, Any]]:
        path = self.out / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def logged(self) -> int:
        """Lines of metrics so far, while they are being written."""
        path = self.out / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def states(self) -> list[int]:
        return sorted(int(place.name.removeprefix("step-")) for place in (self.out / "state").glob("step-*"))

    def result(self) -> tuple[list[tuple[int, float, float]], str]:
        """Steps, losses and gradient norms to the last bit, and the digest of the weights."""
        digest = hashlib.sha256((self.out / "model.safetensors").read_bytes()).hexdigest()
        return [(line["step"], line["loss"], line["grad_norm"]) for line in self.lines()], digest

    def manifest(self) -> dict[str, Any]:
        return manifest.load(self.out / "run.json")


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def whole(request: pytest.FixtureRequest, shards_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Pretraining:
    """A run that nobody disturbed."""
    pretraining = Pretraining(shards_dir, tmp_path_factory.mktemp("whole") / "out", request.param)
    pretraining.run()
    assert len(pretraining.lines()) == STEPS
    return pretraining


@pytest.fixture
def another(whole: Pretraining, tmp_path: Path) -> Pretraining:
    """The same, not yet begun."""
    return Pretraining(Path(str(whole.flags["--data"])), tmp_path / "out", str(whole.flags["--precision"]))


@pytest.fixture(scope="module")
def fp32(shards_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Pretraining:
    """A run that nobody disturbed, in fp32."""
    pretraining = Pretraining(shards_dir, tmp_path_factory.mktemp("fp32") / "out")
    pretraining.run()
    return pretraining


@pytest.fixture(scope="module")
def stopped_once(shards_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Pretraining:
    """A run in fp32 that a signal stopped after step 7, with the states of steps 6 and 7."""
    pretraining = Pretraining(shards_dir, tmp_path_factory.mktemp("stopped") / "out")
    pretraining.run(moment=Moment("step", 7, signal.SIGTERM), status=75)
    assert pretraining.states() == [6, 7]
    return pretraining


@pytest.fixture
def stopped(stopped_once: Pretraining, tmp_path: Path) -> Pretraining:
    """A copy of it, to be harmed and gone on with."""
    copy = Pretraining(Path(str(stopped_once.flags["--data"])), tmp_path / "out")
    shutil.copytree(stopped_once.out, copy.out)
    return copy


def eventually(what: Callable[[], object], process: "BaseProcess | subprocess.Popen[Any]") -> None:
    """Wait until something is so, as long as the process lives."""
    while not what():
        alive = process.is_alive() if isinstance(process, BaseProcess) else process.poll() is None
        assert alive, "ended early"
        time.sleep(0.005)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-DAMAGE] ^= 4
    path.write_bytes(data)


# -- stopped


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 6), (signal.SIGTERM, 8)])
def test_a_stopped_run_goes_on_to_the_same_bits(
    whole: Pretraining, another: Pretraining, number: signal.Signals, step: int
) -> None:
    another.run(moment=Moment("step", step, number), status=75)
    assert f"stopped by {number.name} after step {step}; run me again to go on" in another.stderr()
    assert another.states()[-1] == step
    assert [line["step"] for line in another.lines()] == list(range(1, step + 1))
    assert not (another.out / "run.json").exists()
    another.run()
    assert f"going on after step {step}" in another.stderr()
    assert another.result() == whole.result()


def test_stopped_after_every_step(fp32: Pretraining, tmp_path: Path) -> None:
    another = Pretraining(Path(str(fp32.flags["--data"])), tmp_path / "out")
    for step in range(1, STEPS):
        another.run(moment=Moment("step", 1, signal.SIGUSR1), status=75)
        assert another.states()[-1] == step
    another.run()
    assert another.result() == fp32.result()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_between_steps_stops_after_the_next(fp32: Pretraining, tmp_path: Path, number: signal.Signals) -> None:
    """Processes agree on it with the sum of a step."""
    another = Pretraining(Path(str(fp32.flags["--data"])), tmp_path / "out")
    another.run(moment=Moment("line", 4, number), status=75)
    assert f"stopped by {number.name} after step 5; run me again to go on" in another.stderr()
    another.run()
    assert another.result() == fp32.result()


@pytest.mark.parametrize("event", ["step", "line"])
def test_a_signal_in_the_last_step_does_not_stop_what_is_done(fp32: Pretraining, tmp_path: Path, event: str) -> None:
    another = Pretraining(Path(str(fp32.flags["--data"])), tmp_path / "out")
    another.run(moment=Moment(event, STEPS, signal.SIGTERM))
    assert another.result() == fp32.result()


def test_the_real_command_stops_at_a_signal_and_goes_on(shards_dir: Path, tmp_path: Path) -> None:
    """As a batch system does it: a process of its own, a signal from outside, the exit status."""
    long = Pretraining(shards_dir, tmp_path / "out")
    command = [sys.executable, "-m", "llamactl", *long.arguments(steps=10**6, save_every=10**5)]
    steps = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        seen = long.logged()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        eventually(lambda seen=seen: long.logged() > seen + 2, process)  # type: ignore[misc]
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=PATIENCE)
        assert (process.returncode, stdout) == (75, "")
        steps.append(long.states()[-1])
        assert f"llamactl: {long.out}: stopped by {number.name} after step {steps[-1]}" in stderr
        assert [line["step"] for line in long.lines()] == list(range(1, steps[-1] + 1))
    assert steps[1] > steps[0] > 0


# -- killed


def test_killed_at_every_touch_of_the_disk(whole: Pretraining, another: Pretraining) -> None:
    """The n-th attempt is killed before its n-th sync, renaming or removal, until the model is there."""
    attempt, half_saved = 0, 0
    while not (another.out / "run.json").exists():
        attempt += 1
        how = Moment("disk", attempt, signal.SIGKILL)
        status = another.run(moment=how, save_every=1, status=None)
        assert status in (0, -signal.SIGKILL), f"attempt {attempt}: {another.stderr()}"
        half_saved += any((another.out / "state").glob(".*.partial"))
    assert another.result() == whole.result()
    assert attempt > 15
    assert half_saved > 3
    assert not any(another.out.rglob(".*"))
    another.run(save_every=1)
    assert "already made" in another.stderr()


def test_what_a_kill_has_left_is_cleared_away(fp32: Pretraining, stopped: Pretraining) -> None:
    """A half-saved state has the size of a whole one, and no later state need have its name."""
    left = stopped.out / "state" / ".step-00000005.partial"
    left.mkdir()
    (left / "rank-00000.safetensors").write_bytes(bytes(1000))
    stopped.run()
    assert stopped.result() == fp32.result()
    assert not any(stopped.out.rglob(".*"))


def test_killed_at_random_until_it_is_done(fp32: Pretraining, tmp_path: Path) -> None:
    another = Pretraining(Path(str(fp32.flags["--data"])), tmp_path / "out")
    chance = random.Random(1)
    kills = 0
    while not (another.out / "run.json").exists():
        process = another.start(save_every=1)
        process.join(chance.uniform(0.03, 0.2) + kills * 0.01)  # longer and longer, so that there is an end
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL), another.stderr()
    another.run(save_every=1)
    assert another.result() == fp32.result()


@pytest.mark.parametrize("torn", [b'{"step":8,"tokens":10', b"{", b"\n", b'{"step":8}\n{"st', b"\x00\x00\x00"])
def test_a_torn_line_of_metrics_is_taken_out(fp32: Pretraining, stopped: Pretraining, torn: bytes) -> None:
    with (stopped.out / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    stopped.run()
    assert stopped.result() == fp32.result()


def test_a_half_written_model_is_written_anew(fp32: Pretraining, stopped: Pretraining) -> None:
    whole = (fp32.out / "model.safetensors").read_bytes()
    (stopped.out / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (stopped.out / "tokenizer.model").write_bytes(b"")
    stopped.run()
    assert stopped.result() == fp32.result()
    for name in ("tokenizer.model", "config.json", "tokenizer_config.json", "generation_config.json"):
        assert (stopped.out / name).read_bytes() == (fp32.out / name).read_bytes()


# -- damaged

DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": lambda state: flip(state / "rank-00000.safetensors"),
    "cut": lambda state: os.truncate(state / "rank-00000.safetensors", 5000),
    "longer": lambda state: (state / "rank-00000.safetensors").open("ab").write(b"x"),
    "no tensors": lambda state: (state / "rank-00000.safetensors").unlink(),
    "no manifest": lambda state: (state / "manifest.json").unlink(),
    "half a manifest": lambda state: os.truncate(state / "manifest.json", 100),
    "an edited manifest": lambda state: (state / "manifest.json").write_text(
        (state / "manifest.json").read_text().replace('"step": 7', '"step": 8')
    ),
    "an empty directory": lambda state: [path.unlink() for path in state.iterdir()],
    "no directory": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_named_and_the_older_one_used(fp32: Pretraining, stopped: Pretraining, damage: str) -> None:
    DAMAGES[damage](stopped.out / "state" / "step-00000007")
    stopped.run()
    assert "going on after step 6" in stopped.stderr()
    if damage != "no directory":
        assert "state refused" in stopped.stderr()
        assert "step-00000007" in stopped.stderr()
    assert stopped.result() == fp32.result()


def test_without_a_whole_state_a_run_is_refused_and_can_start_over(fp32: Pretraining, stopped: Pretraining) -> None:
    flip(stopped.out / "state" / "step-00000006" / "rank-00000.safetensors")
    (stopped.out / "state" / "step-00000007" / "manifest.json").unlink()
    stopped.run(status=1)
    assert "holds no state that is whole; --no-resume to start over" in stopped.stderr()
    assert len(stopped.lines()) == 7, "nothing was touched"
    stopped.run("--no-resume")
    assert stopped.result() == fp32.result()


def test_a_new_state_is_not_pruned_for_a_damaged_one(fp32: Pretraining, stopped: Pretraining) -> None:
    """The damaged state of step 7 stands in the way of none that is saved after going on from step 6."""
    shutil.copytree(stopped.out / "state" / "step-00000007", stopped.out / "state" / "step-00000011")
    flip(stopped.out / "state" / "step-00000011" / "rank-00000.safetensors")
    shutil.rmtree(stopped.out / "state" / "step-00000007")
    stopped.run(keep=1, moment=Moment("step", 2, signal.SIGTERM), status=75)
    assert 8 in stopped.states()
    stopped.run(keep=1)
    assert "going on after step 8" in stopped.stderr()
    assert stopped.result() == fp32.result()


# -- asked for otherwise


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("lr", 0.02, "peak 0.01, not 0.02"),
        ("batch_size", 8, "batch-size 4, not 8"),
        ("steps", 13, "steps 12, not 13"),
        ("seed", 1, "seed 0, not 1"),
        ("context", 16, "context 32, not 16"),
        ("precision", "bf16", "precision fp32, not bf16"),
        ("warmup", 3, "warmup 1, not 3"),
        ("weight_decay", 0.0, "weight-decay 0.1, not 0.0"),
        ("kv_heads", 4, "kv-heads 2, not 4"),
    ],
)
def test_other_settings_are_refused_by_name(stopped: Pretraining, flag: str, value: object, said: str) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in stopped.out.rglob("*"))
    stopped.run(**{flag: value}, status=1)
    assert f"was begun otherwise (with {said}); ask for the same, or --no-resume to start over" in stopped.stderr()
    after = sorted((path, path.stat().st_mtime_ns) for path in stopped.out.rglob("*"))
    assert after == before


def test_other_data_is_refused(stopped: Pretraining, shards_dir: Path, tmp_path: Path, llamactl: Any) -> None:
    text = tmp_path / "other.txt"
    text.write_text("something else entirely. " * 500)
    llamactl("tokenize", text, "--tokenizer", shards_dir / "tokenizer.model", "-o", tmp_path / "other", status=0)
    stopped.run(data=tmp_path / "other", status=1)
    assert "was begun otherwise (from other inputs); ask for the same" in stopped.stderr()


def test_on_another_host_whose_clock_is_behind(fp32: Pretraining, stopped: Pretraining) -> None:
    """The newest state is the one of the last step, whatever times files have; and what is spent is never negative."""
    for number, step in enumerate(stopped.states()):
        for path in (stopped.out / "state" / f"step-{step:08d}").iterdir():
            os.utime(path, (1e9 - 1e6 * number, 1e9 - 1e6 * number))
    stopped.run(moment=Elsewhere("n2"))
    assert "going on after step 7" in stopped.stderr()
    assert stopped.result() == fp32.result()
    run = stopped.manifest()
    assert run["host"] == "n2"
    assert datetime.fromisoformat(run["start"]) < datetime.fromisoformat(fp32.manifest()["start"])
    assert 0 < run["device_hours"] < 0.2
    assert all(line["tokens_per_second"] > 0 for line in stopped.lines())


def test_data_that_was_moved_is_the_same_data(fp32: Pretraining, stopped: Pretraining, tmp_path: Path) -> None:
    shutil.copytree(str(stopped.flags["--data"]), tmp_path / "moved")
    stopped.run(data=tmp_path / "moved")
    assert stopped.result() == fp32.result()


def test_what_does_not_change_the_result_may_change(fp32: Pretraining, stopped: Pretraining) -> None:
    stopped.run("--quiet", save_every=1, keep=5)
    assert stopped.states() == [8, 9, 10, 11, 12]
    assert stopped.stderr() == ""
    assert stopped.result() == fp32.result()


def test_micro_batches_may_be_cut_otherwise(fp32: Pretraining, stopped: Pretraining) -> None:
    """To rounding."""
    stopped.run(micro_batch=4)
    for ours, theirs in zip(stopped.lines(), fp32.lines(), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


def test_no_resume_starts_over(fp32: Pretraining, stopped: Pretraining) -> None:
    (stopped.out / "state" / "step-00000007" / "extra").write_text("left by the attempt before")
    stopped.run("--no-resume")
    assert "going on" not in stopped.stderr()
    assert stopped.states() == [9, 12]
    assert stopped.result() == fp32.result()
    assert not any(stopped.out.rglob("extra"))


@pytest.mark.parametrize(("keep", "left"), [(1, [12]), (3, [6, 9, 12]), (9, [3, 6, 9, 12])])
def test_as_many_states_are_kept_as_asked(shards_dir: Path, tmp_path: Path, keep: int, left: list[int]) -> None:
    pretraining = Pretraining(shards_dir, tmp_path / "out")
    pretraining.run(keep=keep)
    assert pretraining.states() == left


# -- two at once, and twice


def test_a_second_run_in_the_same_directory_refuses(shards_dir: Path, tmp_path: Path) -> None:
    first = Pretraining(shards_dir, tmp_path / "out")
    process = first.start(steps=10**6)
    eventually(lambda: first.logged() > 2, process)
    for more in ((), ("--no-resume",), ("--overwrite",)):
        second = Pretraining(shards_dir, tmp_path / "out")
        second.streams = (tmp_path / "second.stdout", tmp_path / "second.stderr")
        second.run(*more, steps=10**6, status=1)
        assert "another run is writing here" in second.stderr()
    steps = first.logged()
    eventually(lambda: first.logged() > steps, process)  # the first is not disturbed
    process.terminate()
    process.join()
    assert process.exitcode == 75


def test_a_finished_run_does_nothing(fp32: Pretraining, tmp_path: Path) -> None:
    again = Pretraining(Path(str(fp32.flags["--data"])), tmp_path / "out")
    shutil.copytree(fp32.out, again.out)
    before = sorted((path, path.stat().st_mtime_ns) for path in again.out.rglob("*"))
    for more in ((), ("--no-resume",)):
        again.run(*more)
        assert "already made" in again.stderr()
        assert again.streams[0].read_text() == f"{again.out}\n"
        assert sorted((path, path.stat().st_mtime_ns) for path in again.out.rglob("*")) == before
    again.run(status=1, lr=0.5)
    assert "exists and was made otherwise (with peak 0.01, not 0.5)" in again.stderr()
    again.run("--overwrite", lr=0.5)
    assert again.manifest()["settings"]["peak"] == 0.5
    assert again.result() != fp32.result()


def test_an_unfinished_run_is_no_model(stopped: Pretraining, llamactl: Any) -> None:
    done = llamactl("generate", stopped.out, "--text", "x", status=1)
    assert "is a training that has not finished; run its command again to go on" in done.stderr


# -- what is told of it


def test_the_manifest_adds_up_the_attempts(fp32: Pretraining, stopped: Pretraining) -> None:
    """As if the first attempt had taken an hour."""
    place = stopped.out / "state" / "step-00000007" / "manifest.json"
    facts = manifest.load_signed(place)
    ((device, seconds),) = facts["device_seconds"].items()
    assert 0 < seconds < 600
    place.write_bytes(manifest.dumps(facts | {"device_seconds": {device: 3600.0}}))
    stopped.run()
    run, alone = stopped.manifest(), fp32.manifest()
    assert 1 < run["device_hours"] < 1.2
    assert run["sources"] == alone["sources"]
    assert run["done"] == alone["done"]
    assert run["settings"] == alone["settings"]
    assert [(i["as"], i["sha256"]) for i in run["inputs"]] == [(i["as"], i["sha256"]) for i in alone["inputs"]]
    outputs = (
        [(out["path"], out["sha256"]) for out in one["outputs"] if out["kind"] == "weights"] for one in (run, alone)
    )
    assert next(outputs) == next(outputs)


def test_every_output_is_what_the_manifest_says(fp32: Pretraining) -> None:
    for out in fp32.manifest()["outputs"]:
        data = (fp32.out / out["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (out["size"], out["sha256"])


def test_nothing_of_a_state_is_a_pickle(stopped: Pretraining) -> None:
    files = [path for path in (stopped.out / "state").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert not any(path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK") for path in files)
