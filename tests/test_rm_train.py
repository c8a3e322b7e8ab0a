"""Reward models trained by the command: that it learns, what is held out and mixed in, resumption, what is refused."""

import json
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SERVER, Command, turns, written
from safetensors.torch import load_file
from test_cli import Run, command, one_line
from test_model import fresh
from test_model import written as model_written
from test_parallel import Trouble, ended, environment, meeting, process_of_command
from test_resume import Moment
from test_sft import stopped_after
from torch.nn.functional import softplus
from transformers import AutoModelForSequenceClassification

from llamactl.artifacts.jsonl import Found
from llamactl.artifacts.records import Comparison, checked
from llamactl.errors import Fault, Interrupted
from llamactl.model import device
from llamactl.model.config import Config
from llamactl.model.heads import RewardModel
from llamactl.model.llama import Llama
from llamactl.text import judging
from llamactl.text.judging import Judging
from llamactl.text.tokenizer import Tokenizer
from llamactl.train.pairs import Pairs
from stages.rm_train import rm_train

assert command  # a fixture

CPU = torch.device("cpu")
WORDS = ("list", "file")


def comparison(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": turns(prompt), "chosen": turns("", chosen)[1:], "rejected": turns("", rejected)[1:], **more}


def repeating(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Of two answers the one that is chosen repeats the question's word."""
    draw, records = random.Random(first), []
    for number in range(first, first + count):
        asked, other = draw.sample(WORDS, 2)
        records.append(comparison(f"{number} {asked}", asked, other, id=f"c{number}"))
    return records


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_PROBE", 32)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """A language model whose attention is not uniform, so that it learns fast."""
    config = Config(dim=32, layers=2, heads=4, kv_heads=2, ffn=64, vocab=512, context=64)
    return model_written(fresh(config), tmp_path_factory.mktemp("base") / "chat", tokenizer=tokenizer_path.read_bytes())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("comparisons") / "c.jsonl", repeating(24))


def run(model: Path, data: Path | Sequence[Path], out: Path, kind: Any = "helpfulness", **more: Any) -> dict[str, Any]:
    """The manifest of a training of few steps."""
    files = [data] if isinstance(data, Path) else data
    settings = {"precision": "fp32", "batch_size": 4, "lr": 1e-2, "device": "cpu", "quiet": True}
    rm_train(model, kind, [str(file) for file in files], out=out, **{**settings, **more})
    return manifest(out)


def manifest(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "run.json").read_text())
    return found


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


# -- what comes of it


@pytest.fixture(scope="module")
def learned(
    base: Path, tmp_path_factory: pytest.TempPathFactory, llamactl: Command
) -> tuple[Path, list[dict[str, Any]]]:
    """A model trained by the command, and what it was trained on, with 40 held out."""
    place, records = tmp_path_factory.mktemp("learned"), repeating(240)
    path, out = written(place / "c.jsonl", records), place / "rm"
    done = llamactl(
        "rm-train", base, path, "--kind", "helpfulness", "--precision", "fp32", "--batch-size", 24, "--lr", "2e-2",
        "--epochs", 4, "--hold-out", 40, "--eval-every", 10, "--save-every", 99, "--device", "cpu", "-o", out, status=0,
    )  # fmt: skip
    assert done.stdout == f"{out}\n"
    assert "40, no prompt of which is trained on" in " ".join(done.stderr.split())
    return out, records


def test_it_learns_what_holds_for_prompts_it_has_not_seen(learned: tuple[Path, list[dict[str, Any]]]) -> None:
    lines = metrics(learned[0])
    measured = {line["step"]: line for line in lines if "eval_loss" in line}
    assert [*measured] == [10, 20, 30, 34]
    assert measured[34]["eval_accuracy"] > 0.9
    assert measured[34]["eval_loss"] < 0.5 * measured[10]["eval_loss"]
    assert measured[34]["eval_margin"] > 0.7
    assert lines[0]["loss"] == pytest.approx(torch.tensor(2.0).log().item())  # scores begin at 0
    assert (lines[0]["accuracy"], lines[0]["margin"]) == (0.5, 0)
    assert lines[-1]["accuracy"] > 0.9


def test_the_manifest_says_what_was_done(learned: tuple[Path, list[dict[str, Any]]]) -> None:
    out, records = learned
    made = manifest(out)
    settings = made["settings"]
    assert (settings["kind"], settings["margin"], settings["hold_out"]) == ("helpfulness", "small", 40)
    assert (settings["batch_size"], settings["steps"], settings["warmup"]) == (24, 34, 5)
    assert (settings["mix_share"], settings["safety_loss"]) == (None, 0.0)
    assert (made["comparisons"], made["mixed_in"], made["labelled"]) == (200, 0, 0)
    assert made["tokens_computed"] < made["tokens_written_out"]
    assert (made["done"]["samples"], made["epochs"]) == (816, 4.08)
    assert 4 * made["tokens_computed"] < made["done"]["tokens"] < 4.16 * made["tokens_computed"]
    unrated = "comparisons without a rating: margin 0"
    assert made["noted"] == {unrated: 200, f"held-out {unrated}": 40}
    assert [step for step, _ in made["held_out_loss"]] == [10, 20, 30, 34]
    assert len(made["held_out"]) == 40
    assert [entry["path"] for entry in made["outputs"]] == [
        "model.safetensors", "tokenizer.model", "tokenizer_config.json", "generation_config.json", "README.md",
        "config.json", "held-out.jsonl", "metrics.jsonl",
    ]  # fmt: skip
    kept = [json.loads(line) for line in (out / "held-out.jsonl").read_text().splitlines()]
    assert [record["id"] for record in kept] == made["held_out"]
    assert kept == [record for record in records if record["id"] in made["held_out"]]


def test_tokens_are_those_of_the_pairs_that_were_trained_on(base: Path, tmp_path: Path, parts: list[Pairs]) -> None:
    """Not so many of average length: here every eighth pair is a long one."""
    skewed = [comparison(f"{n} " + "word " * (10 * (n % 8 == 0)), "yes", "no") for n in range(40)]
    made = run(base, written(tmp_path / "c.jsonl", skewed), tmp_path / "x", steps=2, batch_size=2)
    assert made["done"]["tokens"] == sum(pair.tree.places for pair in parts[0].batch(0, 4).pairs)


@torch.no_grad()
def test_transformers_gives_its_scores_from_text(learned: tuple[Path, list[dict[str, Any]]]) -> None:
    out, records = learned
    other, report = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report
    ours, tokenizer, how = RewardModel.load(out, CPU), Tokenizer.load(out), Judging(64)
    for record in records[:10]:
        sides = judging.sides(Found(checked(record, (Comparison,), ""), record, ""), tokenizer, how).values()
        ids = [side.ids for side in sides]
        longest = max(map(len, ids))
        theirs = other(torch.tensor([[*one, *[0] * (longest - len(one))] for one in ids])).logits[:, 0].tolist()
        assert ours.judge([ids])[0] == pytest.approx(theirs, abs=1e-4)


def test_it_is_no_language_model(
    learned: tuple[Path, list[dict[str, Any]]], base: Path, data: Path, tmp_path: Path, command: Run
) -> None:
    out = learned[0]
    dialogues = written(tmp_path / "d.jsonl", [{"messages": turns("a", "b")}])
    for arguments in (
        ["sft", out, dialogues, "-o", tmp_path / "x"],
        ["generate", out, dialogues],
        ["rm-train", out, data, "--kind", "safety", "-o", tmp_path / "x"],
    ):
        assert one_line(command(*arguments)).startswith(f"{out}: is a reward model, where a language model is wanted")
    said = one_line(command("score", dialogues, "--reward", f"a={base}"))
    assert said.startswith(f"{base}: is a language model, where a reward model is wanted")


def test_finished_it_does_nothing(
    learned: tuple[Path, list[dict[str, Any]]], base: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = learned
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    same = [
        "rm-train", base, out.parent / "c.jsonl", "--kind", "helpfulness", "--precision", "fp32", "--batch-size", 24,
        "--lr", "2e-2", "--epochs", 4, "--hold-out", 40, "--device", "cpu", "-o", out,
    ]  # fmt: skip
    again = command(*same)
    assert (again.status, again.stdout) == (0, f"{out}\n")
    assert "already made" in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for flags, said in ((["--margin", "large"], "margin small, not large"), (["--seed", 1], "seed 0, not 1")):
        assert f"was made otherwise (with {said})" in command(*same, *flags).stderr


def test_stored_in_bf16_its_score_is_in_fp32(base: Path, data: Path, tmp_path: Path) -> None:
    run(base, data, tmp_path / "x", steps=2, precision="bf16")
    kinds = {name: tensor.dtype for name, tensor in load_file(tmp_path / "x" / "model.safetensors").items()}
    assert kinds.pop("score.weight") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}
    assert json.loads((tmp_path / "x" / "config.json").read_text())["torch_dtype"] == "bfloat16"


# -- how it goes


@pytest.mark.parametrize("stop", [1, 4])
def test_interrupted_it_goes_on_to_the_same_bits(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    how = {"steps": 6, "hold_out": 5, "eval_every": 2}
    run(base, data, tmp_path / "whole", **how)
    with stopped_after(stop, monkeypatch), pytest.raises(Interrupted):
        run(base, data, tmp_path / "parts", **how)
    run(base, data, tmp_path / "parts", **how)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    keys = ("step", "loss", "accuracy", "margin", "eval_loss", "eval_accuracy")
    seen = [[[m.get(key) for key in keys] for m in metrics(tmp_path / name)] for name in ("whole", "parts")]
    assert seen[0] == seen[1]
    made = [manifest(tmp_path / name) for name in ("whole", "parts")]
    for fact in ("held_out", "held_out_loss", "settings", "done", "epochs"):
        assert made[0][fact] == made[1][fact], fact


def test_how_a_batch_is_cut_changes_nothing_but_rounding(base: Path, data: Path, tmp_path: Path) -> None:
    losses = []
    for micro_batch in (1, 3, 8):
        out = tmp_path / str(micro_batch)
        run(base, data, out, steps=3, batch_size=8, micro_batch=micro_batch, hold_out=7)
        losses.append([m[key] for m in metrics(out) for key in ("loss", "margin", "accuracy")])
        losses[-1] += [metrics(out)[-1][key] for key in ("eval_loss", "eval_accuracy")]
    assert losses[0] == pytest.approx(losses[2], rel=1e-4, abs=1e-6)
    assert losses[1] == pytest.approx(losses[2], rel=1e-4, abs=1e-6)


def test_the_loss_is_a_mean_over_pairs_with_their_margins(base: Path, tmp_path: Path) -> None:
    """In the first step, where all scores are 0: of -log sigmoid(-m), and of -log 1/2 for each label."""
    rated = [
        comparison("a", "b", "c", rating="significantly_better", safety_label="chosen_safe"),
        comparison("d", "e", "f", rating="better"),
        comparison("g", "h", "i", rating="slightly_better", safety_label="both_safe"),
        comparison("j", "k", "l"),
    ]
    path = written(tmp_path / "c.jsonl", rated)
    for margin, values in {"none": [0, 0, 0, 0], "small": [1, 2 / 3, 1 / 3, 0], "large": [3, 2, 1, 0]}.items():
        made = run(base, path, tmp_path / margin, margin=margin, steps=1)
        wanted = softplus(torch.tensor(values, dtype=torch.float64)).mean().item()
        assert metrics(tmp_path / margin)[0]["loss"] == pytest.approx(wanted, rel=1e-5)
        assert made["settings"]["safety_loss"] == 0.0
        assert made["noted"] == ({} if margin == "none" else {"comparisons without a rating: margin 0": 1})
    made = run(base, path, tmp_path / "safety", "safety", margin="none", steps=1)
    assert (made["settings"]["safety_loss"], made["labelled"]) == (1.0, 2)
    line = metrics(tmp_path / "safety")[0]
    log_2 = torch.tensor(2.0).log().item()
    assert (line["loss"], line["safety_loss"]) == pytest.approx((1.5 * log_2, 0.5 * log_2), rel=1e-5)
    made = run(base, path, tmp_path / "weighted", margin="none", steps=1, safety_loss=0.25)
    assert metrics(tmp_path / "weighted")[0]["loss"] == pytest.approx(1.125 * log_2, rel=1e-5)


@pytest.mark.parametrize("flags", [[], ["--tensor-parallel", "2"]], ids=["sharded", "tensor parallel"])
def test_two_processes_come_to_what_one_comes_to(base: Path, data: Path, tmp_path: Path, flags: list[str]) -> None:
    """Also where they have an odd number of held-out pairs to share; and one goes on from what two have left."""
    how = {"steps": 4, "hold_out": 5, "eval_every": 1, "micro_batch": 2}
    run(base, data, tmp_path / "one", **how)
    arguments = [
        "rm-train", base, data, "--kind", "helpfulness", "--precision", "fp32", "--batch-size", 4, "--lr", "1e-2",
        "--device", "cpu", "--steps", 4, "--hold-out", 5, "--eval-every", 1, "--micro-batch", 2, "-o", tmp_path / "two",
        *flags,
    ]  # fmt: skip

    def together(moment: Moment | None = None) -> list[int | None]:
        store, processes = meeting(), []
        for rank in range(2):
            streams = tmp_path / f"out{rank}", tmp_path / f"err{rank}"
            trouble = Trouble(moment if rank else None)
            given = ([*map(str, arguments)], streams, environment(rank, 2, store.port), trouble)
            processes.append(SERVER.Process(target=process_of_command, args=given))
        for each in processes:
            each.start()
        return ended(processes, 60)

    def said() -> str:
        return (tmp_path / "err0").read_text() + (tmp_path / "err1").read_text()

    if not flags:
        assert together(Moment("step", 2, signal.SIGTERM)) == [75, 75], said()
    assert together() == [0, 0], said()
    assert flags or "going on after step 2" in said()
    keys = ("loss", "grad_norm", "accuracy", "margin", "eval_loss", "eval_accuracy", "eval_margin")
    one, two = ([[m[key] for key in keys] for m in metrics(tmp_path / name)] for name in ("one", "two"))
    assert len(one) == len(two) == 4
    for mine, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-6)
    ours, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert ours.keys() == other.keys()
    for name, tensor in ours.items():
        assert (tensor - other[name]).norm() < 1e-3 * tensor.norm(), name
    made = [manifest(tmp_path / name) for name in ("one", "two")]
    assert made[0]["held_out"] == made[1]["held_out"]
    assert made[1]["job"]["processes"] == 2
    assert (tmp_path / "one" / "held-out.jsonl").read_bytes() == (tmp_path / "two" / "held-out.jsonl").read_bytes()


def test_a_dry_run_says_what_would_be_done(
    base: Path, data: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, command: Run
) -> None:
    flags = ["--kind", "safety", "--batch-size", 6, "--hold-out", 4, "--dry-run", "--device", "a100-80gb"]
    bad = tmp_path_factory.mktemp("bad") / "bad.jsonl"
    bad.write_bytes(b"[]\n" * 7)
    done = command("rm-train", base, data, bad, "--skip-bad", *flags, "-o", tmp_path / "x")
    assert (done.status, done.stdout) == (0, "")
    said = " ".join(done.stderr.split())
    for words in (
        "skipped 7 bad records",
        "comparisons 20",
        "mixed in none",
        "held out 4, no",
        "pairs 20, of",
        "steps 4 of 6 pairs",
        ": 1.20 epochs",
        "it fits",
    ):
        assert words in said
    assert list(tmp_path.iterdir()) == []


# -- what is mixed in, and held out


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[Pairs]:
    """The pairs that a run trains on, and those that it is tested on."""
    found, only = [], Pairs.only

    def noted(pairs: Pairs, numbers: Sequence[int]) -> Pairs:
        found.append(only(pairs, numbers))
        return found[-1]

    monkeypatch.setattr(Pairs, "only", noted)
    return found


def asked(pairs: Pairs, tokenizer: Tokenizer) -> set[str]:
    """Their prompts, as a model reads them."""
    trees = (pairs[number].tree for number in range(len(pairs)))
    return {tokenizer.decode([*tree.stem, *tree.branches[0]]).partition("[/INST]")[0] for tree in trees}


@pytest.mark.parametrize(
    ("kind", "share", "mixed"),
    [("helpfulness", None, 20), ("safety", None, 2), ("helpfulness", 0.2, 5), ("safety", 0.0, 0), ("safety", 0.9, 60)],
)
def test_as_much_is_mixed_in_as_is_said(base: Path, tmp_path: Path, kind: str, share: float | None, mixed: int) -> None:
    """By default half of all for helpfulness, a tenth for safety (paper, section 3.2.2); at most all there is."""
    main, other = written(tmp_path / "a.jsonl", repeating(20)), written(tmp_path / "b.jsonl", repeating(60, 100))
    made = run(base, main, tmp_path / "x", kind, mix=[str(other)], mix_share=share, steps=1)
    assert (made["mixed_in"], made["comparisons"]) == (mixed, 20)
    wanted = {"helpfulness": 0.5, "safety": 0.1}[kind] if share is None else share
    assert made["settings"]["mix_share"] == wanted
    assert [entry["as"] for entry in made["inputs"]] == ["model", "comparisons", "mix"]


def test_too_little_to_mix_in_is_said(base: Path, tmp_path: Path, command: Run) -> None:
    main, other = written(tmp_path / "a.jsonl", repeating(20)), written(tmp_path / "b.jsonl", repeating(5, 100))
    flags = ["--mix", other, "--kind", "helpfulness", "--batch-size", 4, "--dry-run", "--device", "cpu"]
    said = " ".join(command("rm-train", base, main, *flags).stderr.split())
    assert "mixed in 5 drawn from 5, where 20 were wanted: 20.0% of all" in said


def test_nothing_that_is_held_out_is_trained_on(base: Path, tmp_path: Path, parts: list[Pairs]) -> None:
    """Neither of the files themselves, nor of what is mixed in, which has some of the same prompts."""
    both = repeating(30)
    main = written(tmp_path / "a.jsonl", [*both, *[comparison(r["prompt"][0]["content"], "x", "y") for r in both[:9]]])
    other = written(tmp_path / "b.jsonl", [*repeating(30), *repeating(20, 50)])
    made = run(base, main, tmp_path / "x", hold_out=12, mix=[str(other)], mix_share=0.5, steps=1)
    trained, held = (asked(part, Tokenizer.load(base)) for part in parts)
    assert 6 < len(made["held_out"]) == len(parts[1]) <= 12
    assert len(held) > 5 and len(trained) > 20
    assert not trained & held
    assert made["noted"]["comparisons of --mix left out: their prompt is held out"] == len(held)
    assert 2 * made["comparisons"] == len(parts[0]) == 2 * (39 - len(parts[1]))


def test_what_is_evaluated_on_may_come_from_a_file(base: Path, data: Path, tmp_path: Path) -> None:
    test = written(tmp_path / "test.jsonl", repeating(6, 500))
    made = run(base, data, tmp_path / "x", eval=test, steps=2, eval_every=1)
    assert made["comparisons"] == 24
    assert made["held_out"] == []
    assert not (tmp_path / "x" / "held-out.jsonl").exists()
    assert len(made["held_out_loss"]) == 2
    again = run(base, data, tmp_path / "y", eval=test, steps=2, eval_every=2)
    assert made["held_out_loss"][1:] == again["held_out_loss"]


def test_a_model_whose_held_out_loss_is_not_finite_is_no_result(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="x: the last held-out loss is not finite; the state of step 1 is saved; look"):
        run(base, data, tmp_path / "x", hold_out=5, steps=1, lr=1e40)
    assert not (tmp_path / "x" / "run.json").exists()


def test_without_a_test_there_is_none(base: Path, data: Path, tmp_path: Path) -> None:
    made = run(base, data, tmp_path / "x", steps=1)
    assert (made["held_out"], made["held_out_loss"]) == ([], [])
    assert not (tmp_path / "x" / "held-out.jsonl").exists()


# -- bad input


LONG = "a word and another " * 30


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (comparison("a", "b", " b"), "rejected: is the same as chosen"),
        (comparison("a", "", "b"), "chosen[0].content: is an answer without a text"),
        (comparison("a", "b", "c", rating="much_better"), "rating: "),
        (comparison("a", "b", "c", safety_label="rejected_safe"), "safety_label: "),
        (comparison("a", "b", LONG), "rejected: is "),
        (comparison("a [INST]", "b", "c"), "prompt[0].content: holds [INST]"),
        ({"messages": turns("a", "b")}, "chosen: missing"),
    ],
)
def test_a_record_of_no_use_is_refused_with_its_place(
    base: Path, tmp_path: Path, command: Run, record: dict[str, Any], said: str
) -> None:
    path = written(tmp_path / "c.jsonl", [*repeating(4), record])
    flags = ["--kind", "safety", "--precision", "fp32", "--steps", 1, "--batch-size", 2, "--device", "cpu"]
    line = one_line(command("rm-train", base, path, *flags, "-q", "-o", tmp_path / "x"))
    assert line.startswith(f"{path}:5: {said}")
    assert not (tmp_path / "x").exists()
    done = command("rm-train", base, path, *flags, "--skip-bad", "-q", "-o", tmp_path / "x")
    assert done.status == 0, done.stderr
    made = manifest(tmp_path / "x")
    assert made["skipped"] == {"bad records": 1}
    assert made["comparisons"] == 4


def test_what_is_too_long_is_cut_where_that_is_asked_for(base: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", [*repeating(4), comparison("a", "b", LONG)])
    with pytest.raises(Fault, match=f"^{path}:5: rejected: is .* the context 64; shorten it, --truncate"):
        run(base, path, tmp_path / "x", steps=1)
    made = run(base, path, tmp_path / "x", steps=1, truncate=True)
    assert made["noted"]["comparisons cut"] == 1
    assert made["comparisons"] == 5
    same = written(tmp_path / "same.jsonl", [*repeating(4), comparison("a", LONG + "b", LONG + "c")])
    with pytest.raises(Fault, match=f"^{same}:5: rejected: is the same as chosen once both are cut"):
        run(base, same, tmp_path / "y", steps=1, truncate=True)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"hold_out": 24}, "--hold-out: 24 leaves nothing to train on"),
        ({"hold_out": 2.5}, "--hold-out: 2.5 is neither a number of comparisons nor a share"),
        ({"hold_out": 1e-9}, "--hold-out: 1e-09 sets no prompt aside"),
        ({"hold_out": 2, "eval": True}, "--hold-out: given together with --eval"),
        ({"eval": True}, "1: prompt: is also held out"),
        ({"context": 65}, "--context: 65 is longer than the model's, 64"),
        ({"epochs": 1.0, "steps": 3}, "given together with"),
        ({"tensor_parallel": 2}, "--tensor-parallel: 2 does not divide the 1 processes"),
        ({"tensor_parallel": 3}, "--tensor-parallel: 3 does not divide 8, of which a row of pairs is a multiple"),
        ({"devices": 8}, "--devices: is for a plan"),
    ],
)
def test_what_cannot_be_is_said(base: Path, data: Path, tmp_path: Path, flags: dict[str, Any], said: str) -> None:
    with pytest.raises(Fault) as fault:
        run(base, data, tmp_path / "x", **{**flags, **({"eval": data} if "eval" in flags else {})})
    assert said in str(fault.value)
    assert "\n" not in str(fault.value)
    assert not (tmp_path / "x").exists()


def test_no_comparisons_are_a_fault(base: Path, tmp_path: Path, command: Run) -> None:
    flags = ["--kind", "safety", "-o", tmp_path / "x"]
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert one_line(command("rm-train", base, empty, *flags)).startswith(f"{empty}: is empty")
    bad = written(tmp_path / "bad.jsonl", [comparison("a", "b", "b")])
    said = command("rm-train", base, bad, *flags, "--skip-bad", "-q")
    assert said.status == 1
    assert f"{bad}: holds no comparison to learn from" in said.stderr
    assert "no such file" in one_line(command("rm-train", base, tmp_path / "none.jsonl", *flags))
    assert not (tmp_path / "x").exists()


def test_the_kind_has_to_be_said(base: Path, data: Path, command: Run) -> None:
    assert command("rm-train", base, data).status == 2
    assert command("rm-train", base, data, "--kind", "honesty").status == 2


def test_it_begins_from_what_it_was_given(base: Path, data: Path, tmp_path: Path) -> None:
    """With a learning rate of next to nothing the body stays as it is."""
    run(base, data, tmp_path / "x", steps=1, lr=1e-12, weight_decay=0.0)
    body, reward = dict(Llama.load(base, CPU).named_parameters()), RewardModel.load(tmp_path / "x", CPU)
    for name, parameter in reward.named_parameters():
        if name != "score.weight":
            torch.testing.assert_close(parameter, body[name], rtol=0, atol=1e-9)
