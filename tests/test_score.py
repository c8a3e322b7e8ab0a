"""Scores of records: of each kind, in order, with what they had before; by several models; in parts; from pipes."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, turns, with_pieces, written
from test_cli import Run, command, one_line
from test_model import fresh
from test_model import written as model_written

from llamactl.align.judges import Judges
from llamactl.artifacts import jsonl
from llamactl.artifacts.records import Comparison, Dialogue, Sample
from llamactl.errors import Fault
from llamactl.model.config import Config
from llamactl.model.heads import RewardModel
from llamactl.text import judging
from llamactl.text.judging import Judging
from llamactl.text.tokenizer import Tokenizer

assert command  # a fixture

CPU = torch.device("cpu")
SHAPE = Config(dim=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=512, context=64, scored=True)
LONG = "a word and another " * 30


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> tuple[Path, Path]:
    """Two reward models that were not trained, but tell answers from each other."""
    place, proto = tmp_path_factory.mktemp("models"), tokenizer_path.read_bytes()
    first, second = (
        model_written(fresh(SHAPE, seed=seed, kind=RewardModel), place / name, tokenizer=proto)
        for seed, name in ((1, "helpful"), (2, "safe"))
    )
    return first, second


def comparison(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": turns(prompt), "chosen": turns("", chosen)[1:], "rejected": turns("", rejected)[1:], **more}


def samples() -> list[dict[str, Any]]:
    """Several to a prompt, which do not follow each other, with fields of all kinds."""
    draw = random.Random(0)
    return [
        {
            "messages": turns(f"question {n % 5}"), "response": " ".join(["word"] * draw.randint(1, 12)) + f" {n}",
            "id": n, "sampling": {"index": n // 5}, "model": "m", "more": [None, {"é": n}],
        }
        for n in range(23)
    ]  # fmt: skip


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def alone(model: Path, record: dict[str, Any]) -> dict[str, float]:
    """What a model thinks of each answer of a record, by itself."""
    loaded, tokenizer = RewardModel.load(model, CPU), Tokenizer.load(model)
    kind = Comparison if "chosen" in record else Sample if "response" in record else Dialogue
    found = jsonl.Found(jsonl.checked(record, (kind,), "x"), record, "x")
    sides = judging.sides(found, tokenizer, Judging(64))
    return {field: loaded.judge([[side.ids]])[0][0] for field, side in sides.items()}


# -- what comes out


def test_samples_come_back_in_order_with_their_scores(models: tuple[Path, Path], tmp_path: Path, command: Run) -> None:
    given = samples()
    done = command("score", written(tmp_path / "s.jsonl", given), "--reward", f"helpfulness={models[0]}")
    assert done.status == 0, done.stderr
    found = lines(done.stdout)
    assert [{key: value for key, value in record.items() if key != "scores"} for record in found] == given
    assert [[*record["scores"]] for record in found] == [["helpfulness"]] * 23
    for record, wanted in zip(found[::4], given[::4], strict=True):
        assert record["scores"]["helpfulness"] == pytest.approx(alone(models[0], wanted)["response"], abs=1e-5)
    values = [record["scores"]["helpfulness"] for record in found]
    assert len(set(values)) == 23
    assert f"{sum(values) / 23:.4f}" in done.stderr


def test_a_score_that_is_no_number_ends_the_run(
    models: tuple[Path, Path], tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In JSON it would be null."""
    monkeypatch.setattr(RewardModel, "judge", lambda _, groups: [[math.nan for _ in group] for group in groups])
    given, out = written(tmp_path / "s.jsonl", samples()), tmp_path / "out.jsonl"
    line = one_line(command("score", given, "--reward", f"helpfulness={models[0]}", "-o", out, "-q"))
    assert line.startswith(f"{given}:1: {models[0]} gives it a score that is not finite; try ")
    assert [*tmp_path.iterdir()] == [given]


def test_each_kind_of_record_is_scored_by_its_answers(models: tuple[Path, Path], tmp_path: Path, command: Run) -> None:
    """The last of a Dialogue, both of a Comparison; the same answer has the same score in each."""
    given = [
        {"messages": turns("a", "b", "c"), "response": "yes"},
        {"messages": turns("a", "b", "c", "yes")},
        comparison("", "yes", "no", rating="better") | {"prompt": turns("a", "b", "c")},
    ]
    done = command("score", written(tmp_path / "r.jsonl", given), "--reward", f"h={models[0]}")
    sample, dialogue, pair = (record["scores"] for record in lines(done.stdout))
    assert sample["h"] == dialogue["h"] == pair["chosen"]["h"]
    assert pair["rejected"]["h"] != pair["chosen"]["h"]
    assert [*pair] == ["chosen", "rejected"]
    wanted = alone(models[0], given[2])
    for side in ("chosen", "rejected"):
        assert pair[side]["h"] == pytest.approx(wanted[side], abs=1e-5)
    assert lines(done.stdout)[2]["rating"] == "better"


def test_two_models_give_a_score_each_and_other_scores_stay(
    models: tuple[Path, Path], tmp_path: Path, command: Run
) -> None:
    given = [
        {"messages": turns("a"), "response": "b", "scores": {"length": 1, "helpfulness": 9.0}},
        comparison("a", "b", "c", scores={"chosen": {"length": 1, "safety": 9.0}, "agreed": 3}),
    ]
    path = written(tmp_path / "s.jsonl", given)
    flags = ["--reward", f"helpfulness={models[0]}", "--reward", f"safety={models[1]}"]
    sample, pair = lines(command("score", path, *flags).stdout)
    wanted = [alone(model, given[0])["response"] for model in models]
    assert sample["scores"] == pytest.approx({"length": 1, "helpfulness": wanted[0], "safety": wanted[1]}, abs=1e-5)
    assert wanted[0] != pytest.approx(wanted[1], abs=1e-3)
    assert pair["scores"]["agreed"] == 3
    assert [*pair["scores"]["chosen"]] == ["length", "safety", "helpfulness"]
    assert [*pair["scores"]["rejected"]] == ["helpfulness", "safety"]
    assert pair["scores"]["chosen"]["length"] == 1
    assert pair["scores"]["chosen"]["safety"] == pytest.approx(wanted[1], abs=1e-5)


def test_a_digest_goes_with_the_score_that_it_was_of(models: tuple[Path, Path], tmp_path: Path, command: Run) -> None:
    """Or the pool of a round of rejection sampling would take the new score for that model's."""
    given = samples()[0] | {"scores": {"helpfulness": 9.0, "safety": 8.0}, "reward": 9.0}
    for known, left in (({"helpfulness": "0", "safety": "1"}, {"safety": "1"}), ({}, {}), ("0", "0")):
        path = written(tmp_path / "s.jsonl", [given | {"reward_sha256": known, "reward_precision": "fp32"}])
        (found,) = lines(command("score", path, "--reward", f"helpfulness={models[0]}").stdout)
        assert found == given | {"scores": found["scores"], "reward_sha256": left, "reward_precision": "fp32"}
        assert (found["scores"]["safety"], found["scores"]["helpfulness"] < 9) == (8, True)


def test_what_one_model_has_scored_another_scores_too(models: tuple[Path, Path], tmp_path: Path, command: Run) -> None:
    """One after the other is both at once."""
    path = written(tmp_path / "s.jsonl", [*samples()[:4], comparison("a", "b", "c")])
    first = command("score", path, "--reward", f"x={models[0]}", "-o", tmp_path / "x.jsonl")
    assert (first.status, first.stdout) == (0, "")
    both = command("score", path, "--reward", f"x={models[0]}", "--reward", f"y={models[1]}").stdout
    assert command("score", tmp_path / "x.jsonl", "--reward", f"y={models[1]}").stdout == both


# -- how it is cut into parts


@pytest.mark.parametrize("count", [2, 5])
def test_parts_make_up_the_whole(models: tuple[Path, Path], tmp_path: Path, command: Run, count: int) -> None:
    path = written(tmp_path / "s.jsonl", samples())
    flags = ["--reward", f"h={models[0]}"]
    whole = lines(command("score", path, *flags).stdout)
    parts = [lines(command("score", path, *flags, "--shard", f"{n}/{count}").stdout) for n in range(count)]
    for number, record in enumerate(whole):
        part = parts[number % count][number // count]
        assert part["scores"] == pytest.approx(record["scores"], abs=1e-5)
        assert part | {"scores": 0} == record | {"scores": 0}
    assert sum(map(len, parts)) == len(whole)


def test_a_score_does_not_depend_on_the_window(
    models: tuple[Path, Path], tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "s.jsonl", samples())
    found = []
    for window in (1, 7, 23, 256):
        monkeypatch.setattr("llamactl.align.judges.WINDOW", window)
        found.append(lines(command("score", path, "--reward", f"h={models[0]}").stdout))
    for other in found[1:]:
        assert [r["id"] for r in other] == [r["id"] for r in found[0]]
        for a, b in zip(other, found[0], strict=True):
            assert a["scores"] == pytest.approx(b["scores"], abs=1e-5)


def test_from_stdin_to_stdout_and_to_a_compressed_file(
    models: tuple[Path, Path], tmp_path: Path, llamactl: Command, command: Run
) -> None:
    text = "".join(json.dumps(record) + "\n" for record in samples()[:6])
    piped = llamactl("score", "--reward", f"h={models[0]}", "-q", stdin=text, status=0)
    assert len(lines(piped.stdout)) == 6
    assert piped.stderr == ""
    path, out = tmp_path / "s.jsonl", tmp_path / "out.jsonl.zst"
    path.write_text(text)
    assert command("score", path, "--reward", f"h={models[0]}", "-o", out).status == 0
    again = [found.raw for found in jsonl.read([str(out)], Sample)]
    assert again == lines(piped.stdout)
    made = json.loads((tmp_path / "out.jsonl.zst.run.json").read_text())
    assert (made["stage"], made["done"]) == ("score", {"samples": 6})
    assert made["settings"]["reward"] == ["h"]
    assert [entry["as"] for entry in made["inputs"]] == ["model", "samples"]
    assert "already made" in command("score", path, "--reward", f"h={models[0]}", "-o", out).stderr


# -- what cannot be scored


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": turns("a")}, "messages: ends on a user turn"),
        ({"messages": turns("a", "b"), "response": "c"}, "messages[2].role"),
        ({"messages": turns("a"), "response": LONG}, "response: is "),
        (comparison("a", "b", "b"), "rejected: is the same as chosen"),
        ({"text": "a"}, "chosen or response or messages: missing"),
        ({"messages": turns("a"), "response": "b", "scores": None}, "scores: is no object"),
        ({"messages": turns("a"), "response": "b", "scores": [1]}, "scores: is no object"),
        (comparison("a", "b", "c", scores={"chosen": 1.5}), "scores.chosen: is no object"),
        ([1], "is an array, not an object"),
    ],
)
def test_a_record_of_no_use_is_refused_with_its_place(
    models: tuple[Path, Path], tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch, record: Any, said: str
) -> None:
    """Nothing comes out, to a file or down a pipe, of what was scored before it."""
    monkeypatch.setattr("llamactl.align.judges.WINDOW", 1)
    path, out = written(tmp_path / "s.jsonl", [*samples()[:2], record, *samples()[2:3]]), tmp_path / "out.jsonl"
    flags = ["--reward", f"h={models[0]}", "-q", "-o", out]
    piped = command("score", path, *flags[:-2])
    assert (piped.status, piped.stdout) == (1, "")
    assert one_line(command("score", path, *flags)).startswith(f"{path}:3: {said}")
    assert not out.exists()
    done = command("score", path, *flags, "--skip-bad")
    assert done.status == 0, done.stderr
    assert [record["id"] for record in lines(out.read_text())] == [0, 1, 2]
    assert json.loads(out.with_name("out.jsonl.run.json").read_text())["skipped"] == {"bad records": 1}


def test_what_is_too_long_is_cut_where_that_is_asked_for(
    models: tuple[Path, Path], tmp_path: Path, command: Run
) -> None:
    path = written(tmp_path / "s.jsonl", [{"messages": turns("a"), "response": LONG}, samples()[0]])
    out = tmp_path / "out.jsonl"
    done = command("score", path, "--reward", f"h={models[0]}", "--truncate", "-o", out)
    assert done.status == 0, done.stderr
    assert lines(out.read_text())[0]["response"] == LONG
    noted = json.loads((tmp_path / "out.jsonl.run.json").read_text())["noted"]
    assert noted["records cut"] == 1 and noted["tokens cut off"] > 100


def test_models_of_different_contexts_each_see_what_they_can(
    models: tuple[Path, Path], tmp_path: Path, command: Run, tokenizer_path: Path
) -> None:
    short = Config(**{**SHAPE.__dict__, "context": 24})
    other = model_written(
        fresh(short, seed=2, kind=RewardModel), tmp_path / "short", tokenizer=tokenizer_path.read_bytes()
    )
    record = {"messages": turns("a"), "response": "some words and others, about forty tokens long in all"}
    path = written(tmp_path / "s.jsonl", [record])
    flags = ["--reward", f"wide={models[1]}", "--reward", f"narrow={other}"]
    assert "response: is " in one_line(command("score", path, *flags, "-q"))
    (found,) = lines(command("score", path, *flags, "--truncate").stdout)
    assert found["scores"]["wide"] == pytest.approx(alone(models[1], record)["response"], abs=1e-5)
    assert found["scores"]["wide"] != pytest.approx(found["scores"]["narrow"], abs=1e-3)  # the same weights


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["{0}"], "--reward: {0} is no NAME=DIR"),
        (["h="], "--reward: h= is no NAME=DIR"),
        (["a b={0}"], "--reward: a b={0} is no NAME=DIR"),
        (["h={0}", "h={1}"], "--reward: h is given twice"),
        (["h=nowhere"], "nowhere: no such directory"),
    ],
)
def test_models_are_given_by_name(
    models: tuple[Path, Path], tmp_path: Path, command: Run, given: list[str], said: str
) -> None:
    path = written(tmp_path / "s.jsonl", samples()[:1])
    flags = [word for one in given for word in ("--reward", one.format(*models))]
    assert one_line(command("score", path, *flags)).startswith(said.format(*models))


def test_models_that_read_other_tokens_are_refused(
    models: tuple[Path, Path], tmp_path: Path, command: Run, tokenizer_path: Path
) -> None:
    proto = with_pieces(tokenizer_path.read_bytes(), ["extra"])
    wide = Config(**{**SHAPE.__dict__, "vocab": 513})
    other = model_written(fresh(wide, kind=RewardModel), tmp_path / "other", tokenizer=proto)
    path = written(tmp_path / "s.jsonl", samples()[:1])
    said = one_line(command("score", path, "--reward", f"a={models[0]}", "--reward", f"b={other}"))
    assert said.startswith(f"{other}: has another tokenizer than a's {models[0]}; score by b in a run of its own")
    small = model_written(
        fresh(Config(**{**SHAPE.__dict__, "vocab": 100}), kind=RewardModel),
        tmp_path / "small",
        tokenizer=tokenizer_path.read_bytes(),
    )
    with pytest.raises(Fault, match="a model of 100 ids does not fit a tokenizer of 512"):
        Judges.named([f"h={small}"])
