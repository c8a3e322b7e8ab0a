"""Manifests: what they say, that an edit shows, and what a second run with the same output does."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import NO_UTF8, Command

from llamactl import __version__, accounts
from llamactl.artifacts import files, manifest
from llamactl.artifacts.run import SHOWN, Run
from llamactl.errors import Fault

# What the contract asks of every run.json.
FIELDS = {
    "stage", "command", "settings", "version", "seed", "inputs", "outputs", "start", "end", "host", "device", "devices",
    "device_hours", "energy_kwh", "energy_method", "done", "skipped", "noted", "sha256",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    corpus_dir: Path,
    tokenizer_path: Path,
    shards_dir: Path,
    base_model: Path,
    llamactl: Command,
) -> dict[str, Path]:
    """A manifest of every stage."""
    out = tmp_path_factory.mktemp("made")
    text = corpus_dir / "bisect.py.txt"
    (out / "p.jsonl").write_text('{"text":"def"}\n{"messages":[{"role":"user","content":"Hi"}],"id":"x"}\n')
    llamactl(
        "generate", base_model, out / "p.jsonl", "-o", out / "samples.jsonl.zst", "--max-new-tokens", 2, "--seed", 5,
        "--device", "cpu", status=0,
    )  # fmt: skip
    llamactl("eval", "perplexity", base_model, text, "-o", out / "scores.jsonl", "--device", "cpu", status=0)
    return {
        "train-tokenizer": tokenizer_path.with_name("tokenizer.model.run.json"),
        "tokenize": shards_dir / "run.json",
        "pretrain": base_model / "run.json",
        "generate": out / "samples.jsonl.zst.run.json",
        "eval perplexity": out / "scores.jsonl.run.json",
    }


STAGES = ("train-tokenizer", "tokenize", "pretrain", "generate", "eval perplexity")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- what they say


@pytest.mark.parametrize("stage", STAGES)
def test_all_fields_of_the_contract_are_there(made: dict[str, Path], stage: str) -> None:
    facts = manifest.load(made[stage])
    assert facts.keys() >= FIELDS
    assert facts["stage"] == stage
    assert facts["command"][1] == stage.split()[0]
    assert facts["version"] == __version__
    assert facts["host"]
    assert facts["device"]
    assert facts["devices"] == 1
    start, end = (datetime.fromisoformat(facts[key]) for key in ("start", "end"))
    assert start <= end
    assert start.tzinfo is not None
    assert facts["done"] and all(count > 0 for count in facts["done"].values())
    assert facts["skipped"] == {}
    assert facts["device_hours"] > 0
    assert (facts["energy_kwh"] is None) == facts["energy_method"].startswith("unknown")


@pytest.mark.parametrize("stage", STAGES)
def test_outputs_are_named_with_size_and_digest(made: dict[str, Path], stage: str) -> None:
    facts = manifest.load(made[stage])
    assert facts["outputs"]
    for output in facts["outputs"]:
        data = (made[stage].parent / output["path"]).read_bytes()
        assert (output["size"], output["sha256"]) == (len(data), digest(data))
        assert output["kind"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_directory_holds_nothing_that_its_manifest_does_not_name(made: dict[str, Path], stage: str) -> None:
    if made[stage].name == "run.json":
        named = {output["path"] for output in manifest.load(made[stage])["outputs"]}
        inside = {path.name for path in made[stage].parent.iterdir()}
        assert inside - named == {"run.json"} | ({"state"} if stage == "pretrain" else set())


@pytest.mark.parametrize("stage", STAGES)
def test_inputs_are_named_by_digest(made: dict[str, Path], stage: str) -> None:
    facts = manifest.load(made[stage])
    assert facts["inputs"]
    for one in facts["inputs"]:
        assert one["as"] and one["kind"] and one["size"] > 0
        place = Path(one["path"])
        if place.is_file():
            assert one["sha256"] == digest(place.read_bytes())
        own = manifest.beside(place)
        assert one.get("manifest") == (manifest.load(own)["sha256"] if own.exists() else None)


def test_the_chain_of_manifests_leads_from_the_scores_to_the_corpus(made: dict[str, Path], corpus_dir: Path) -> None:
    """Each input's own manifest is named by its digest: the lineage can be walked."""
    digests = {manifest.load(path)["sha256"]: stage for stage, path in made.items()}

    def sources(stage: str) -> set[str]:
        return {digests[one["manifest"]] for one in manifest.load(made[stage])["inputs"] if "manifest" in one}

    assert sources("eval perplexity") == sources("generate") == {"pretrain"}
    assert sources("pretrain") == {"tokenize"}
    assert sources("tokenize") == {"train-tokenizer"}
    corpus = {digest(path.read_bytes()) for path in corpus_dir.iterdir()}
    assert {one["sha256"] for one in manifest.load(made["train-tokenizer"])["inputs"]} == corpus


def test_settings_are_resolved(made: dict[str, Path]) -> None:
    """Not only what was asked for, but what it came to: no default is left to be looked up."""
    for stage in STAGES:
        settings = manifest.load(made[stage])["settings"]
        unresolved = {key for key, value in settings.items() if value is None}
        assert not unresolved - {"encoding", "text", "device"}, stage


def test_seeds_are_named(made: dict[str, Path]) -> None:
    assert manifest.load(made["generate"])["seed"] == 5
    assert manifest.load(made["train-tokenizer"])["seed"] == 0
    assert manifest.load(made["pretrain"])["seed"] == 0


def test_counts_are_of_what_was_done(made: dict[str, Path]) -> None:
    assert manifest.load(made["pretrain"])["done"] == {"tokens": 8 * 4 * 128, "samples": 8 * 4}
    assert manifest.load(made["generate"])["done"]["samples"] == 2


def test_training_leaves_its_metrics(made: dict[str, Path]) -> None:
    steps = [orjson.loads(line) for line in (made["pretrain"].parent / "metrics.jsonl").open("rb")]
    assert [step["step"] for step in steps] == list(range(1, 9))


@pytest.mark.parametrize("device", ["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"])
def test_energy_says_how_it_was_found(device: str) -> None:
    run = Run("a test", {}, {})
    run.effort.use(device, ["GPU-of-no-machine"])
    run.effort.devices = 8
    run.effort.go_on(8 * 3600.0, 0.0)
    facts = run.manifest([])
    watts = 700 if "H100" in device else 400
    assert facts["device_hours"] == pytest.approx(8, rel=1e-3)
    assert facts["energy_kwh"] == pytest.approx(8 * watts / 1000, rel=1e-3)
    assert facts["energy_method"].startswith(f"tdp: {watts} W (NVML: ")


# -- digests


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    facts = {"b": 1, "a": {"ü": [1.5, None, True]}, "big": 2**53}
    (tmp_path / "run.json").write_bytes(manifest.dumps(facts))
    loaded = manifest.load_signed(tmp_path / "run.json")
    assert {key: value for key, value in loaded.items() if key != "sha256"} == facts
    assert manifest.dumps(loaded) == manifest.dumps(facts)


def test_order_and_layout_do_not_matter_to_the_digest(tmp_path: Path) -> None:
    """So that tools which read and write JSON again do no harm."""
    facts = orjson.loads(manifest.dumps({"b": 1, "a": {"d": 2, "c": 3}}))
    (tmp_path / "run.json").write_text(json.dumps(dict(reversed(facts.items()))))
    assert manifest.load_signed(tmp_path / "run.json") == facts


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("change", ["device_hours", "a setting", "a new field", "an output"])
def test_an_edit_shows(made: dict[str, Path], tmp_path: Path, stage: str, change: str) -> None:
    facts = orjson.loads(made[stage].read_bytes())
    if change == "device_hours":
        facts["device_hours"] = 0.0
    elif change == "a setting":
        facts["settings"]["seed"] = 42
    elif change == "a new field":
        facts["note"] = "x"
    else:
        facts["outputs"][0]["sha256"] = "0" * 64
    (tmp_path / "run.json").write_bytes(orjson.dumps(facts))
    with pytest.raises(Fault, match=r"run\.json: was changed after it was written"):
        manifest.load(tmp_path / "run.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"5", b'"x"', b"{}", b'{"sha256": 5}', b"\xff\xfe"])
def test_what_is_no_manifest_is_a_fault(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "run.json").write_bytes(data)
    with pytest.raises(Fault) as caught:
        manifest.load(tmp_path / "run.json")
    assert caught.value.subject == str(tmp_path / "run.json")


def test_a_manifest_without_what_is_needed_is_a_fault(tmp_path: Path) -> None:
    """Its digest agrees, but it names no outputs: of another program, or another time."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "run.json").write_bytes(manifest.dumps({"stage": "tokenize"}))
    with pytest.raises(Fault):
        manifest.described("data", str(tmp_path / "shards"))
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "a.jsonl.run.json").write_bytes(manifest.dumps({"stage": "generate"}))
    with pytest.raises(Fault):
        manifest.described("prompts", str(tmp_path / "a.jsonl"))


def test_an_input_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    run = Run("a test", {}, {}, tmp_path / "a.jsonl")
    with run.file() as file:
        file.write(b"made")
    entry = manifest.described("x", str(tmp_path / "a.jsonl"))
    assert entry["manifest"] == manifest.load(tmp_path / "a.jsonl.run.json")["sha256"]
    (tmp_path / "a.jsonl").write_bytes(b"edit")
    with pytest.raises(Fault, match=r"a\.jsonl: its bytes differ from what a\.jsonl\.run\.json says"):
        manifest.described("x", str(tmp_path / "a.jsonl"))


def test_a_directory_from_elsewhere_is_named_by_what_lies_in_it(base_model: Path, tmp_path: Path) -> None:
    leave = shutil.ignore_patterns("run.json", "state", "metrics.jsonl")
    one = Path(shutil.copytree(base_model, tmp_path / "one", ignore=leave))
    two = Path(shutil.copytree(base_model, tmp_path / "two", ignore=leave))
    (two / "README.md").write_text("another card")
    entries = [manifest.described("model", str(path)) for path in (one, two)]
    assert entries[0]["kind"] == "model"
    assert entries[0]["sha256"] == entries[1]["sha256"]
    (two / "config.json").write_bytes((two / "config.json").read_bytes() + b"\n")
    assert manifest.described("model", str(two))["sha256"] != entries[0]["sha256"]


# -- the same command again


def times(directory: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(directory.rglob("*"))}


def test_the_same_command_again_says_so_and_does_nothing(
    tmp_path: Path, corpus_dir: Path, tokenizer_path: Path, llamactl: Command
) -> None:
    commands: dict[Path, tuple[Any, ...]] = {
        tmp_path / "t.model": ("train-tokenizer", corpus_dir, "--vocab-size", 450),
        tmp_path / "shards": ("tokenize", corpus_dir, "--tokenizer", tokenizer_path),
    }
    for out, command in commands.items():
        first = llamactl(*command, "-o", out, status=0)
        assert first.stdout == f"{out}\n"
        before = times(tmp_path)
        again = llamactl(*command, "-o", out, status=0)
        assert again.stdout == f"{out}\n"
        assert f"{out}: already made on " in again.stderr
        assert "nothing to do (--overwrite to redo)" in again.stderr
        assert times(tmp_path) == before
        quiet = llamactl(*command, "-o", out, "-q", status=0)
        assert (quiet.stdout, quiet.stderr) == (f"{out}\n", "")


def test_the_same_training_again_does_nothing(base_model: Path, shards_dir: Path, llamactl: Command) -> None:
    """Whatever the flags that change no result: saving, logging, verifying."""
    before = times(base_model)
    again = llamactl(
        "pretrain", "--size", "tiny", "--precision", "fp32", "--data", shards_dir, "-o", base_model, "--steps", 8,
        "--batch-size", 4, "--context", 128, "--save-every", 5, "--log-every", 2, "--keep", 1, "-q", status=0,
    )  # fmt: skip
    assert (again.stdout, again.stderr) == (f"{base_model}\n", "")
    assert times(base_model) == before


def train(out: Path, corpus: Path, **more: Any) -> None:
    from stages.train_tokenizer import train_tokenizer

    train_tokenizer([str(corpus)], out, **({"vocab_size": 400} | more))


@pytest.fixture
def small(tmp_path: Path, corpus_dir: Path) -> Path:
    return Path(shutil.copy(corpus_dir / "cmd.py.txt", tmp_path / "in.txt"))


def test_another_setting_is_refused_and_named(tmp_path: Path, small: Path) -> None:
    out = tmp_path / "t.model"
    train(out, small)
    before = times(tmp_path)
    with pytest.raises(
        Fault, match=r"t\.model: exists and was made otherwise \(with vocab-size 400, not 401\)"
    ) as caught:
        train(out, small, vocab_size=401)
    assert caught.value.remedy == "--overwrite to redo it, or another -o"
    with pytest.raises(Fault, match=r"\(with seed 0, not 3\)"):
        train(out, small, seed=3)
    assert times(tmp_path) == before


def test_another_input_is_refused_and_named(tmp_path: Path, small: Path) -> None:
    train(tmp_path / "t.model", small)
    small.write_text(small.read_text() + "more")
    with pytest.raises(Fault, match=r"made otherwise .*inputs"):
        train(tmp_path / "t.model", small)


def test_an_input_that_was_moved_is_the_same_input(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "t.model", small)
    moved = small.rename(tmp_path / "moved.txt")
    train(tmp_path / "t.model", moved)
    assert "already made" in capsys.readouterr().err


def test_another_stage_is_refused_and_named(shards_dir: Path, corpus_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Run("another stage", {}, {}, out).directory():
        pass
    with pytest.raises(Fault, match=r"made otherwise \(by another stage\)"):
        Run("tokenize", {}, {}, out).already_made()


def test_overwriting_makes_it_again(tmp_path: Path, small: Path) -> None:
    out = tmp_path / "t.model"
    train(out, small)
    first = out.read_bytes()
    train(out, small, vocab_size=420, overwrite=True)
    assert out.read_bytes() != first
    assert manifest.load(tmp_path / "t.model.run.json")["settings"]["vocab_size"] == 420
    assert manifest.described("x", str(out))
    inode = out.stat().st_ino
    train(out, small, vocab_size=420, overwrite=True)
    assert out.stat().st_ino != inode


def test_a_file_of_someone_else_is_not_replaced(tmp_path: Path, small: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(Fault, match="mine: exists, and not by llamactl"):
        train(tmp_path / "mine", small)
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_directory_of_someone_else_is_not_replaced(tmp_path: Path, small: Path, tokenizer_path: Path) -> None:
    from stages.tokenize import tokenize

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    with pytest.raises(Fault, match="mine: exists, and not by llamactl"):
        tokenize([str(small)], tokenizer_path, tmp_path / "mine", workers=1)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious"]
    (tmp_path / "empty").mkdir()
    tokenize([str(small)], tokenizer_path, tmp_path / "empty", workers=1)
    assert (tmp_path / "empty" / "run.json").exists()


def test_a_training_does_not_begin_where_nothing_could_be_read_again(tmp_path: Path) -> None:
    out = tmp_path / NO_UTF8
    with pytest.raises(Fault, match="is not UTF-8"), Run("a test", {}, {}, out, directory=True).in_place(fresh=False):
        pass
    assert not out.exists()


@pytest.mark.parametrize("flag", [{"resume": False}, {}])
def test_training_does_not_clear_a_directory_of_someone_else(
    tmp_path: Path, shards_dir: Path, flag: dict[str, bool]
) -> None:
    """--no-resume starts a training over; it does not say that anything else may be deleted."""
    from stages.pretrain import pretrain

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    with pytest.raises(Fault, match="mine: exists, and not by llamactl"):
        pretrain(
            size="tiny", data=[str(shards_dir)], out=tmp_path / "mine", steps=1, batch_size=1, context=16,
            device="cpu", quiet=True, **flag,
        )  # fmt: skip
    assert (tmp_path / "mine" / "precious").read_text() == "x"


def test_a_manifest_without_its_artifact_is_not_already_made(tmp_path: Path, small: Path) -> None:
    """Someone has removed the tokenizer, but not the file beside it."""
    out = tmp_path / "t.model"
    train(out, small)
    first = out.read_bytes()
    out.unlink()
    train(out, small)
    assert out.read_bytes() == first


# -- the disk fails between an artifact and its manifest


def full_at(monkeypatch: pytest.MonkeyPatch, at: int) -> list[str]:
    """Make the ``at``-th fsync, rename or replace fail; the calls that were made."""
    calls: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            if len(calls) == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **named)

        return call

    for name in ("fsync", "rename", "replace"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    return calls


def write(out: Path, content: bytes, **settings: Any) -> None:
    """One run of a stage that makes a file."""
    run = Run("a test", settings, {}, out)
    if not run.already_made():
        with run.file() as file:
            file.write(content)


def test_a_run_that_failed_anywhere_is_mended_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full between a file and its manifest must not leave a file that we then call a stranger's."""
    for at in range(1, 50):
        out = tmp_path / str(at)
        calls = full_at(monkeypatch, at)
        try:
            write(out, b"new", x=1)
        except OSError:
            monkeypatch.undo()
        else:
            break
        write(out, b"new", x=1)
        assert out.read_bytes() == b"new"
        assert manifest.described("x", str(out))["manifest"], f"failed at call {at} of {calls}"
    monkeypatch.undo()
    assert at > 4


def test_an_overwrite_that_failed_anywhere_is_never_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the same command says that all is made already, the file is the one that its manifest describes."""
    for at in range(1, 50):
        out = tmp_path / str(at)
        write(out, b"old", x=1)
        calls = full_at(monkeypatch, at)
        try:
            write(out, b"new", x=1, overwrite=True)
        except OSError:
            monkeypatch.undo()
        else:
            break
        assert out.read_bytes() in (b"old", b"new")
        try:
            write(out, b"new", x=1)
        except Fault as fault:  # the new manifest beside the old file: said, not taken for made
            assert "its bytes differ" in str(fault), f"failed at call {at} of {calls}"
        else:
            assert manifest.described("x", str(out))["manifest"], f"failed at call {at} of {calls}"
        write(out, b"new", x=1, overwrite=True)
        assert manifest.described("x", str(out))["manifest"] and out.read_bytes() == b"new"
    monkeypatch.undo()
    assert at > 4


def test_a_directory_and_its_manifest_appear_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in range(1, 50):
        out = tmp_path / str(at)
        full_at(monkeypatch, at)
        try:
            with Run("a test", {}, {}, out).directory() as (directory, outputs):
                (directory / "a").write_bytes(b"x")
                outputs.append({"path": "a", "kind": "x", **files.stamp(directory / "a")._asdict()})
        except OSError:
            monkeypatch.undo()
        else:
            break
        assert not out.exists() or {path.name for path in out.iterdir()} == {"a", "run.json"}
    monkeypatch.undo()
    assert at > 4


# -- what was skipped


def test_skips_are_counted_in_the_manifest_and_aloud_even_when_quiet(
    tmp_path: Path, tokenizer_path: Path, llamactl: Command
) -> None:
    lines = ['{"text":"good"}', "bad", '{"text":""}', "[]", '{"text":"good too"}'] * 3
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    done = llamactl(
        "tokenize", tmp_path / "in.jsonl", "--tokenizer", tokenizer_path, "-o", out, "--skip-bad", "-q", status=0
    )
    facts = manifest.load(out / "run.json")
    assert facts["skipped"] == {"bad records": 9}
    assert facts["done"]["documents"] == 6
    said = done.stderr.splitlines()
    assert len(said) == SHOWN + 1
    assert said[0].startswith(f"skipped {tmp_path / 'in.jsonl'}:2: ")
    assert said[-1] == "tokenize: skipped 9 bad records"


def test_documents_in_another_encoding_are_noted(tmp_path: Path, tokenizer_path: Path) -> None:
    from stages.tokenize import tokenize

    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "b.jsonl").write_text('{"text":"a▁b"}', encoding="utf-8")
    names = [str(tmp_path / name) for name in ("a.txt", "b.jsonl")]
    tokenize(names, tokenizer_path, tmp_path / "out", encoding="latin-1", workers=1)
    noted = manifest.load(tmp_path / "out" / "run.json")["noted"]
    assert noted["documents read as latin-1"] == 1
    assert [count for what, count in noted.items() if "U+2581" in what] == [1]


def test_generating_counts_what_it_skips(tmp_path: Path, base_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from stages.generate import generate

    (tmp_path / "p.jsonl").write_text('{"text":"a"}\n{"text":7}\n{"messages":[]}\n')
    out = tmp_path / "out.jsonl"
    generate(base_model, [str(tmp_path / "p.jsonl")], out=out, skip_bad=True, max_new_tokens=1, device="cpu")
    assert manifest.load(tmp_path / "out.jsonl.run.json")["skipped"] == {"bad records": 2}
    assert len(out.read_bytes().splitlines()) == 1
    assert "generate: skipped 2 bad records" in capsys.readouterr().err


# -- versions and parts


def test_a_manifest_of_a_newer_version_is_a_fault(tmp_path: Path) -> None:
    write(tmp_path / "a", b"x")
    own = tmp_path / "a.run.json"
    own.write_bytes(manifest.dumps(manifest.load(own) | {"format": manifest.FORMAT + 1, "version": "9.0"}))
    with pytest.raises(Fault, match=r"a newer llamactl \(9\.0\), in format 2; this is .*: update it"):
        manifest.load(own)


def test_the_energy_of_parts_is_added_up() -> None:
    run = Run("a test", {}, {})
    part = run.manifest([]) | {"energy_kwh": 1.5, "energy_method": "measured: RAPL", "sha256": "of this part"}
    assert manifest.merged([part, part])["energy_kwh"] == 3.0
    whole = manifest.merged([part, part | {"energy_kwh": 0.5, "energy_method": "tdp: 280 W"}])
    assert (whole["energy_kwh"], whole["energy_method"]) == (2.0, "measured: RAPL, tdp: 280 W")
    assert manifest.merged([part, part | {"energy_kwh": None, "energy_method": "unknown"}])["energy_kwh"] is None


def test_the_power_of_parts_on_several_devices_is_their_mean() -> None:
    """Or all hours would be those of one of them."""
    part = Run("a test", {}, {}).manifest([]) | {"sha256": "of this part", "device_hours": 10.0}
    parts = [part | {"energy_kwh": watts / 100, "energy_method": f"tdp: {watts} W"} for watts in (250, 360)]
    whole = manifest.merged(parts)
    assert (whole["device_hours"], whole["energy_kwh"]) == (20, 6.1)
    assert whole["energy_method"] == "tdp: 305 W on average"
    assert accounts.made(Path("a/run.json"), whole).watts == 305


def test_a_run_that_goes_on_on_another_device_has_the_power_of_both() -> None:
    run = Run("a test", {}, {})
    run.effort.use("NVIDIA A100-SXM4-80GB", ["GPU-of-no-machine"])
    run.effort.go_on({"NVIDIA H100 80GB HBM3": 36_000.0, "NVIDIA A100-SXM4-80GB": 36_000.0}, None)
    facts = run.effort.account()
    assert facts["device_hours"] == pytest.approx(20, rel=1e-3)
    assert facts["energy_kwh"] == pytest.approx(11, rel=1e-3)
    assert facts["energy_method"].startswith("tdp: 550 W on average (NVML: ")
    run.effort.go_on({"a card": 3600.0}, None)
    assert run.effort.account()["energy_kwh"] is None
    run.effort.go_on(3600.0, None)  # as it was recorded before
    assert run.effort.account()["energy_kwh"] == pytest.approx(0.4, rel=1e-3)
