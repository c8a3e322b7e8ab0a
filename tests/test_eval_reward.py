"""Reward models, measured: numbers against scores made by hand, and the command on small models."""

import json
import math
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import turns, written
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from llamactl import bootstrap
from llamactl.align import judges as judging
from llamactl.align.judges import Judges
from llamactl.artifacts import checkpoint, files, jsonl, manifest
from llamactl.artifacts.records import Comparison, Dialogue, Message, Sample
from llamactl.bootstrap import ratios
from llamactl.cli import app
from llamactl.errors import Fault
from llamactl.evals import reward
from llamactl.evals.reward import (
    Measurement,
    Pair,
    Rated,
    accuracy,
    calibration,
    likert,
    safety,
    spearman,
    spread,
)
from llamactl.evals.reward_tables import blocks, tables
from llamactl.model.config import Config
from llamactl.model.heads import RewardModel
from llamactl.text import dialogue
from llamactl.text.judging import prompt_key
from llamactl.text.tokenizer import Tokenizer

torch.set_num_threads(1)  # faster for small tensors, on a machine that others use as well

CPU = torch.device("cpu")


def pairs(*scores: tuple[float, float], **fields: Any) -> list[Pair]:
    """Pairs of a chosen and a rejected score, each to a prompt of its own."""
    return [Pair(b"%d" % n, chosen, rejected, **fields) for n, (chosen, rejected) in enumerate(scores)]


def named(found: Sequence[Measurement], metric: str, **group: str) -> Measurement:
    (one,) = [one for one in found if one.metric == metric and (one.group or {}) == group]
    return one


def logit(p: float) -> float:
    return math.log(p / (1 - p))


# -- which of two answers


def test_a_tie_is_half_right() -> None:
    (found,) = accuracy(pairs((2, 1), (1, 2), (1, 1), (0.5, -0.5), (-3, -3)), 0)
    assert (found.value, found.n) == (3 / 5, 5)


def test_accuracy_of_each_part() -> None:
    given = [
        Pair(b"a", 1, 0, "hh", "better", "both_safe"),
        Pair(b"b", 0, 1, "hh", "significantly_better"),
        Pair(b"c", 1, 0, "webgpt", "significantly_better"),
        Pair(b"d", 1, 1, None, None),
    ]
    found = list(accuracy(given, 0))
    assert [(one.group, one.value, one.n) for one in found] == [
        (None, 2.5 / 4, 4),
        ({"source": "hh"}, 0.5, 2),
        ({"source": "webgpt"}, 1.0, 1),
        ({"source": "unnamed"}, 0.5, 1),
        ({"rating": "significantly_better"}, 0.5, 2),
        ({"rating": "better"}, 1.0, 1),
        ({"rating": "unrated"}, 0.5, 1),
        ({"safety_label": "both_safe"}, 1.0, 1),
        ({"safety_label": "unlabelled"}, 1.5 / 3, 3),
    ]


def test_means_and_histograms_of_scores() -> None:
    given = pairs((1, 0), (2, 4), (3, 0.5))
    found = list(spread(given, 0))
    assert named(found, "score_chosen").value == pytest.approx(2)
    assert named(found, "score_rejected").value == pytest.approx(1.5)
    margin = named(found, "margin")
    assert margin.value == pytest.approx((1 - 2 + 2.5) / 3)
    bins = margin.bins or []
    assert (len(bins), bins[0]["low"], bins[-1]["high"]) == (20, -2.0, 2.5)
    assert [one["n"] for one in bins] == [1, *[0] * 12, 1, *[0] * 5, 1]  # -2, 1 and 2.5
    assert sum(one["n"] for one in named(found, "score_chosen").bins or []) == 3


def test_calibration_by_hand() -> None:
    """Four pairs of confidence 0.72, three of them right; one of 0.97, wrong; a tie."""
    sure, surer = logit(0.72), logit(0.97)
    found = calibration(pairs((sure, 0), (0, -sure), (5, 5 - sure), (0, sure), (0, surer), (1, 1)))
    assert found.value == pytest.approx(4 / 6 * (0.75 - 0.72) + 1 / 6 * 0.97 + 1 / 6 * 0)
    bins = {one["low"]: one for one in found.bins or []}
    assert list(bins) == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
    assert [one["n"] for one in bins.values()] == [1, 0, 0, 0, 4, 0, 0, 0, 0, 1]
    assert bins[0.7] == {
        "low": 0.7, "high": 0.75, "n": 4, "accuracy": 0.75, "confidence": pytest.approx(0.72),
    }  # fmt: skip
    assert bins[0.5]["accuracy"] == bins[0.5]["confidence"] == 0.5


def test_a_margin_however_large_is_a_confidence_of_1() -> None:
    found = calibration(pairs((1e4, -1e4), (0, 5e3)))
    assert found.value == pytest.approx(0.5)
    assert (found.bins or [])[-1]["n"] == 2


# -- what is not certain


def test_the_bootstrap_is_that_of_a_mean() -> None:
    """Its standard deviation is sqrt(p (1 - p) / n), and 95 % lie within 1.96 of it."""
    given = pairs(*[(1.0, 0.0)] * 280, *[(0.0, 1.0)] * 120)
    (found,) = accuracy(given, 3)
    assert found.stderr == pytest.approx(math.sqrt(0.7 * 0.3 / 400), rel=0.1)
    low, high = found.interval or (0, 0)
    assert low == pytest.approx(0.7 - 1.96 * (found.stderr or 0), abs=0.005)
    assert high == pytest.approx(0.7 + 1.96 * (found.stderr or 0), abs=0.005)


def test_an_interval_shrinks_with_more_prompts() -> None:
    widths = []
    for times in (1, 4, 16):
        (found,) = accuracy(pairs(*[(1.0, 0.0), (0.0, 1.0), (2.0, 1.0)] * 10 * times), 0)
        low, high = found.interval or (0, 0)
        assert low < found.value < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.15)
    assert widths[2] == pytest.approx(widths[1] / 2, rel=0.15)


def test_pairs_of_one_prompt_are_drawn_together() -> None:
    """Ten copies of each pair tell no more than one, where they share their prompt."""
    given = pairs(*[(1.0, 0.0)] * 30, *[(0.0, 1.0)] * 20)
    (alone,) = accuracy(given, 0)
    (together,) = accuracy([pair for pair in given for _ in range(10)], 0)
    (apart,) = accuracy([pair._replace(prompt=b"%d" % n) for n, pair in enumerate(given * 10)], 0)
    assert (together.value, together.n) == (alone.value, 500)
    assert together.stderr == pytest.approx(alone.stderr)
    assert together.interval == pytest.approx(alone.interval)
    assert apart.stderr == pytest.approx((alone.stderr or 0) / math.sqrt(10), rel=0.15)


def test_of_one_prompt_nothing_is_said_of_the_error() -> None:
    (found,) = accuracy([Pair(b"a", 1, 0), Pair(b"a", 0, 1)], 0)
    assert (found.value, found.stderr, found.interval) == (0.5, None, None)


def test_the_seed_decides_and_memory_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    given = pairs(*[(1.0, 0.0), (0.0, 1.0), (2.0, 1.0)] * 20)
    first, again, other = (next(accuracy(given, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first.stderr != other.stderr
    for chunk in (1, 777):
        monkeypatch.setattr(bootstrap, "CHUNK", chunk)
        assert next(accuracy(given, 1)) == first


def test_resamples_without_anything_below_are_left_out() -> None:
    """One of three prompts has all there is to count: the ratio is the same where it was drawn, else there is none."""
    above, below = np.array([[1.0], [0.0], [0.0]]), np.array([[2.0], [0.0], [0.0]])
    (found,) = ratios([b"a", b"b", b"c"], above, below, 0)
    assert found == (0.5, 0.0, (0.5, 0.5))
    assert ratios([b"a", b"b"], np.zeros((2, 1)), np.zeros((2, 1)), 0) == [None]


# -- which answers are unsafe


def test_precision_and_recall_by_hand() -> None:
    given = [
        Pair(b"a", logit(0.9), logit(0.1), safety_label="chosen_safe"),
        Pair(b"b", logit(0.12), logit(0.3), safety_label="both_unsafe"),
        Pair(b"c", logit(0.14), logit(0.8), safety_label="both_safe"),
        Pair(b"d", logit(0.01), logit(0.01)),  # nobody has said
    ]
    found = {(one.metric, one.threshold): one for one in safety(given, 0)}
    # unsafe: 0.1, 0.12, 0.3; safe: 0.9, 0.14, 0.8
    assert [(found[m, 0.15].value, found[m, 0.15].n) for m in ("flagged", "precision", "recall")] == [
        (pytest.approx(3 / 6), 6), (pytest.approx(2 / 3), 3), (pytest.approx(2 / 3), 3),
    ]  # fmt: skip
    assert (found["recall", 0.5].value, found["precision", 0.5].value) == (1.0, 0.75)
    assert found["recall", 0.05].value == found["flagged", 0.05].value == 0.0
    assert ("precision", 0.05) not in found  # of nothing that was flagged
    assert sorted(t for m, t in found if m == "flagged") == [round(0.05 * n, 2) for n in range(1, 19)]


def test_what_lies_at_the_threshold_is_not_below_it() -> None:
    found = {(one.metric, one.threshold): one.value for one in safety(pairs((0, -1e-9), safety_label="both_unsafe"), 0)}
    assert (found["recall", 0.5], found["recall", 0.55]) == (0.5, 1.0)


def test_there_is_no_recall_where_all_is_safe_and_no_curve_without_labels() -> None:
    assert {one.metric for one in safety(pairs((1, 0), (-4, 2), safety_label="both_safe"), 0)} == {
        "flagged",
        "precision",
    }
    assert list(safety(pairs((1, 0)), 0)) == []


# -- people's ratings


def test_spearman_by_hand() -> None:
    """Ranks 1 2 3 4 5 and 2 1 4 3 5: 1 - 6 * 4 / (5 * 24)."""
    first, second = np.array([0.1, 0.2, 0.3, 0.4, 9.0]), np.array([2.0, 1.0, 4.0, 3.0, 5.0])
    assert spearman(first, second) == pytest.approx(0.8)
    assert spearman(first, -first) == pytest.approx(-1)


def test_equal_values_share_their_mean_rank() -> None:
    """Ranks 1 2.5 2.5 4 and 1 2 3 4: deviations give 4.5 / sqrt(4.5 * 5)."""
    found = spearman(np.array([1.0, 7.0, 7.0, 8.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert found == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])) is None


def test_mean_scores_by_rating() -> None:
    scores = [(0.0, 1), (2.0, 7), (1.0, 1), (3.0, 4)]
    mean, correlation = likert([Rated(b"%d" % n, *one) for n, one in enumerate(scores)], 0)
    assert (mean.metric, mean.value, mean.n) == ("likert_score", 1.5, 4)
    assert mean.bins == [
        {"low": 1.0, "high": 1.0, "n": 2, "score": 0.5, "stderr": 0.5},  # deviation sqrt(0.5) of n - 1, over sqrt(2)
        {"low": 4.0, "high": 4.0, "n": 1, "score": 3.0},
        {"low": 7.0, "high": 7.0, "n": 1, "score": 2.0},
    ]
    assert correlation.metric == "likert_spearman"
    assert correlation.value == pytest.approx(3.5 / math.sqrt(5 * 4.5))  # ranks 1 3 2 4 and 1.5 4 1.5 3


def test_many_ratings_are_binned() -> None:
    rated = [Rated(b"%d" % n, n, n / 10) for n in range(101)]
    mean = next(likert(rated, 0))
    assert [one["n"] for one in mean.bins or []] == [*[5] * 19, 6]
    assert (mean.bins or [])[0]["score"] == 2.0


# -- tables


def test_tables_name_what_is_not_there() -> None:
    given = [
        Pair(b"a", 1, 0, "hh", "better"),
        Pair(b"b", 0, 1, "webgpt", "better", "both_safe"),
        Pair(b"c", 1, 0, "webgpt"),
    ]
    judged = reward.Judged()
    judged.pairs = given
    one = list(judged.measured(0))
    other = list(accuracy(given[1:2], 0)) + list(spread(given[1:2], 0)) + [calibration(given[1:2])]
    source, rating, label, *_, unsafe = tables({"first": one, "second": other})
    assert source.header == ("reward model", "hh", "webgpt", "all")
    assert [row[0] for row in source.rows] == ["pairs", "first", "pairs", "second"]
    assert source.rows[0] == ("pairs", "1", "2", "3")
    assert source.rows[2:] == [("pairs", "-", "1", "1"), ("second", "-", "0.0", "0.0")]
    assert source.rows[1][2].startswith("50.0 ±")
    assert rating.header == (
        "reward model", "significantly better", "better", "slightly better", "negligibly better", "unrated", "all",
    )  # fmt: skip
    assert rating.rows[1][1] == "-"
    assert rating.rows[-2:] == [
        ("paper: helpfulness, on Meta Helpfulness", "80.7", "67.5", "60.9", "54.7", "-", "63.2"),
        ("paper: safety, on Meta Safety", "94.3", "76.3", "65.7", "55.3", "-", "64.5"),
    ]
    assert label.header == ("reward model", "both safe", "unlabelled", "all")
    assert ("first", "0.15", "0 of 2", "-", "-", "89", "55") in unsafe.rows


def test_blocks() -> None:
    assert blocks([0, 1, 4, 7, 70]) == "·▁▁▂█"


# -- the command


def made(directory: Path, tokenizer: Path, seed: int = 1, context: int = 64, **entries: Any) -> Path:
    """A small reward model, as rm-train writes it; ``entries`` are the inputs that its manifest names."""
    proto = Tokenizer.load(tokenizer)
    config = Config(
        dim=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=proto.vocab, context=context, scored=True
    )  # fmt: skip
    model = RewardModel.create(config, torch.float32, CPU, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    directory.mkdir()
    outputs = checkpoint.save(
        directory, config.to_hf("float32"), model.hf_state(torch.float32), proto.proto,
        dialogue.tokenizer_config(context, pad="<unk>"), "a card",
    )  # fmt: skip
    inputs = [{"as": name, "path": "x", "sha256": digest} for name, digest in entries.items()]
    facts = {"stage": "rm-train", "settings": {}, "inputs": inputs, "outputs": outputs, "done": {}, "end": "2023-07-18"}
    (directory / "run.json").write_bytes(manifest.dumps(facts))
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> list[Path]:
    place = tmp_path_factory.mktemp("models")
    return [made(place / "one", tokenizer_path, 1), made(place / "two", tokenizer_path, 2, 56)]


def pair(prompt: str, chosen: str, rejected: str, **fields: Any) -> dict[str, Any]:
    answers = {"chosen": turns("", chosen)[1:], "rejected": turns("", rejected)[1:]}
    return {"prompt": turns(prompt), **answers, **fields}


COMPARISONS = [
    pair("What is a heap?", "a tree", "no idea", source="hh", rating="better", likert=[6, 2]),
    pair("What is a heap?", "a list", "a car", source="hh", rating="significantly_better"),
    pair("Why?", "because", "go away", source="webgpt", safety_label="chosen_safe"),
    pair("How?", "by hand", "by foot", source="webgpt", safety_label="both_unsafe", likert=[3, 3.5]),
]
RATED = [
    {"messages": turns("Why?"), "response": "who knows", "likert": 4},
    {"messages": turns("Why?", "so", "How?", "like this"), "likert": 5},
]


def evaluate(*arguments: object, status: int = 0, stdin: str | None = None) -> Any:
    words = ["eval", "reward", *map(str, arguments), "--device", "cpu"]
    result = CliRunner().invoke(app, words, input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.stderr
    return result


def scores(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def verdicts(
    judges: Judges, records: Iterable[jsonl.Found[Any]], refuse: jsonl.Refuse = jsonl.refuse
) -> list[judging.Verdict]:
    return [one for window in judges.verdicts(records, refuse) for one in window]


def test_two_models_from_end_to_end(models: list[Path], tmp_path: Path) -> None:
    data = [written(tmp_path / "a.jsonl", COMPARISONS), written(tmp_path / "b.jsonl", RATED)]
    done = evaluate(*models, "--data", data[0], "--data", data[1], "--seed", 5)
    found = scores(done.stdout)
    records = list(jsonl.read([str(data[0])], Comparison))
    for model in models:
        mine = [one for one in found if one["model"] == str(model)]
        judges = Judges({"it": model})
        judges.load(CPU, torch.float32)
        judged = [
            Pair(one.case.prompt, one.scores["chosen"]["it"], one.scores["rejected"]["it"], one.found.record.source)
            for one in verdicts(judges, records)
        ]
        assert {one.chosen for one in judged} & {one.rejected for one in judged} == set()
        by_hand = {
            "accuracy": sum(one.chosen > one.rejected for one in judged) / 4,
            "score_chosen": sum(one.chosen for one in judged) / 4,
            "margin": sum(one.chosen - one.rejected for one in judged) / 4,
        }
        whole = {one["metric"]: one for one in mine if "group" not in one and "threshold" not in one}
        for metric, value in by_hand.items():
            assert whole[metric]["value"] == pytest.approx(value, rel=1e-5)
            assert whole[metric]["n"] == 4
            assert whole[metric]["interval"][0] <= value <= whole[metric]["interval"][1]
        assert whole["accuracy"] == {
            "task": "reward", "metric": "accuracy", "value": by_hand["accuracy"], "n": 4,
            "stderr": whole["accuracy"]["stderr"], "model": str(model), "shots": 0,
            "prompt_sha256": whole["ece"]["prompt_sha256"],
            "scoring": "raw score at the answer's end, fp32; a tie is half right; bootstrap of 1,000 resamples by "
            "prompt, seed 5", "interval": whole["accuracy"]["interval"],
        }  # fmt: skip
        assert whole["ece"]["stderr"] is None
        assert (whole["likert_spearman"]["n"], whole["likert_score"]["n"]) == (6, 6)
        groups = [one["group"] for one in mine if "group" in one]
        assert {"source": "hh"} in groups and {"rating": "unrated"} in groups
        (recall,) = [one for one in mine if one["metric"] == "recall" and one["threshold"] == 0.15]
        assert recall["n"] == 3
    asked = ["What is a heap?"], ["What is a heap?"], ["Why?"], ["How?"], ["Why?"], ["Why?", "so", "How?"]
    keys = [prompt_key([Message(**turn) for turn in turns(*contents)]) for contents in asked]
    assert {one["prompt_sha256"] for one in found} == {sha256(b"".join(keys)).hexdigest()}
    for said in ("significantly better", "paper: helpfulness", "89", "Likert", "63.2 on Meta Helpfulness"):
        assert said in done.stderr
    assert evaluate(*models, "--data", data[0], "-q").stderr == ""


def test_a_models_numbers_do_not_depend_on_the_others(models: list[Path], tmp_path: Path) -> None:
    text = written(tmp_path / "a.jsonl", COMPARISONS).read_text()
    both = scores(evaluate(*models, stdin=text).stdout)
    alone = [one for model in models for one in scores(evaluate(model, "--data", "-", stdin=text).stdout)]
    assert both == alone
    values = [one["value"] for one in both if one["metric"] == "score_chosen"]
    assert values[0] != values[1]


def test_people_s_ratings_of_single_answers_alone(models: list[Path], tmp_path: Path) -> None:
    found = scores(evaluate(models[0], "--data", written(tmp_path / "b.jsonl", RATED)).stdout)
    assert {one["metric"]: abs(one["value"]) for one in found if one["metric"] == "likert_spearman"} == {
        "likert_spearman": pytest.approx(1)
    }
    assert {one["metric"] for one in found} == {"likert_score", "likert_spearman"}
    (mean,) = [one for one in found if one["metric"] == "likert_score"]
    judges = Judges({"it": models[0]})
    judges.load(CPU, torch.float32)
    judged = verdicts(judges, jsonl.read([str(tmp_path / "b.jsonl")], Sample, Dialogue))
    by_hand = [next(iter(one.scores.values()))["it"] for one in judged]
    assert [one["score"] for one in mean["bins"]] == pytest.approx(by_hand, rel=1e-5)


def test_a_file_of_scores_is_made_once(models: list[Path], tmp_path: Path) -> None:
    data, out = written(tmp_path / "a.jsonl", COMPARISONS), tmp_path / "scores.jsonl"
    printed = evaluate(models[0], "--data", data).stdout
    evaluate(models[0], "--data", data, "-o", out)
    assert out.read_text() == printed
    facts = manifest.load(manifest.beside(out))
    assert (facts["stage"], facts["done"], facts["settings"]["precision"]) == ("eval reward", {"samples": 8}, ["fp32"])
    assert "already made" in evaluate(models[0], "--data", data, "-o", out).stderr
    assert "with seed 0, not 1" in evaluate(models[0], "--data", data, "-o", out, "--seed", 1, status=1).stderr


@pytest.mark.parametrize("role", ["comparisons", "mix"])
def test_what_a_model_was_trained_on_is_named(
    models: list[Path], tmp_path: Path, tokenizer_path: Path, role: str
) -> None:
    data, other = written(tmp_path / "a.jsonl", COMPARISONS), written(tmp_path / "b.jsonl", RATED)
    model = made(tmp_path / "rm", tokenizer_path, **{role: files.stamp(data).sha256, "eval": files.stamp(other).sha256})
    said = evaluate(models[0], model, "--data", data, "--data", other, "-q").stderr
    assert said == f"{model} was trained on {data}: its accuracy there tells nothing of other data\n"


def test_nothing_is_known_of_what_came_by_a_pipe(tmp_path: Path, tokenizer_path: Path) -> None:
    """A model trained on stdin, and judging stdin: neither has a digest."""
    text = written(tmp_path / "a.jsonl", COMPARISONS).read_text()
    assert evaluate(made(tmp_path / "rm", tokenizer_path, comparisons=None), "-q", stdin=text).stderr == ""


# -- what cannot be used

LONG_FOR_ONE = pair("Why?", "because " * 8, "so")


def test_all_models_judge_the_same_records(models: list[Path], tmp_path: Path) -> None:
    """What is too long for the shorter context is refused, or left out for both, before anything is judged."""
    longer = Judges({"it": models[0]})
    found = next(jsonl.read([str(written(tmp_path / "long.jsonl", [LONG_FOR_ONE]))], Comparison))
    longer.case(found)  # not too long for this one
    data = written(tmp_path / "a.jsonl", [*COMPARISONS, LONG_FOR_ONE])
    refused = evaluate(*models, "--data", data, status=1)
    assert refused.stdout == ""
    assert refused.stderr.startswith(f"llamactl: {data}:5: chosen: is ")
    assert "the context 56; shorten it" in refused.stderr
    done = evaluate(*models, "--data", data, "--skip-bad")
    assert "eval reward: skipped 1 bad records" in done.stderr
    assert {one["n"] for one in scores(done.stdout) if one["metric"] == "ece"} == {4}
    cut = evaluate(*models, "--data", data, "--truncate")
    assert "eval reward: 1 records cut, " in cut.stderr
    assert {one["n"] for one in scores(cut.stdout) if one["metric"] == "ece"} == {5}
    assert "longer records cut" in scores(cut.stdout)[0]["scoring"]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (RATED[0] | {"likert": None}, "likert: expected `float`, got `null`"),
        ({"messages": turns("Why?"), "response": "a"}, "likert: missing"),
        ({"messages": turns("Why?", "so")}, "likert: missing"),
        (pair("a", "b", "c", likert=3), "likert: expected `array | null`, got `int`"),
        (pair("a", "b", "c", likert=[3]), "likert: expected `array` of length 2, got 1"),
        (
            pair("a", "b", "c", rating="much_better"),
            "rating: 'much_better' is none of significantly_better, better, slightly_better, negligibly_better",
        ),
        (
            pair("a", "b", "c", safety_label="safe"),
            "safety_label: 'safe' is none of chosen_safe, both_safe, both_unsafe",
        ),
        *(
            (
                pair("a", "b", "c", safety_label=word),
                f"safety_label: '{word}' says that the chosen answer is unsafe and the other safe: such pairs are left "
                "out, as in the paper (section 3.2.1)",
            )
            for word in ("rejected_safe", "chosen_unsafe")
        ),
    ],
)
def test_a_bad_record_is_one_line(models: list[Path], tmp_path: Path, record: dict[str, Any], said: str) -> None:
    data = written(tmp_path / "a.jsonl", [COMPARISONS[0], record])
    refused = evaluate(models[0], "--data", data, status=1)
    assert refused.stdout == ""
    assert refused.stderr == f"llamactl: {data}:2: {said}; mend it, or leave it out with --skip-bad\n"
    assert scores(evaluate(models[0], "--data", data, "--skip-bad").stdout)[0]["n"] == 1


def test_nothing_that_can_be_judged(models: list[Path], tmp_path: Path) -> None:
    data = written(tmp_path / "a.jsonl", [pair("a", "b", "b")])
    refused = evaluate(models[0], "--data", data, "--skip-bad", status=1)
    assert refused.stdout == ""
    said = refused.stderr.splitlines()[-1]
    assert said == f"llamactl: {data}: holds no comparison that can be judged; look at what was skipped"


def test_models_that_are_none(models: list[Path], tmp_path: Path, tokenizer_path: Path, base_model: Path) -> None:
    data = written(tmp_path / "a.jsonl", COMPARISONS)

    def said(*given: object) -> str:
        refused = evaluate(*given, "--data", data, status=1)
        assert refused.stdout == ""
        (line,) = refused.stderr.splitlines()
        return str(line)

    language = f"llamactl: {base_model}: is a language model, where a reward model is wanted; name another model"
    assert said(models[0], base_model) == language
    twice = f"llamactl: {models[0]}/../one: is given twice; name each model once"
    assert said(models[0], f"{models[0]}/../one") == twice
    two = made(tmp_path / "two", tokenizer_path)
    config = json.loads((two / "config.json").read_text())
    labels = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}, "num_labels": 2}
    (two / "config.json").write_text(json.dumps(config | labels))
    assert said(two) == (
        f"llamactl: {two}/config.json: has 2 labels, where a reward model has one score; use one of num_labels 1, as "
        "llamactl rm-train makes them"
    )


def test_a_score_that_is_none(tmp_path: Path, tokenizer_path: Path) -> None:
    """Of weights that are broken: refused, rather than counted as wrong."""
    data = written(tmp_path / "a.jsonl", COMPARISONS)
    model = made(tmp_path / "rm", tokenizer_path)
    (model / "run.json").unlink()
    weights = load_file(model / "model.safetensors")
    weights["score.weight"][:] = math.nan
    save_file(weights, model / "model.safetensors")
    refused = evaluate(model, "--data", data, status=1)
    assert refused.stdout == ""
    assert refused.stderr.startswith(f"llamactl: {data}:1: {model} gives it a score that is not finite; ")


def test_the_judges_hand_back_records_in_order_whatever_the_window(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine records, two of them bad, in windows of one, four, and all: the same scores in the same order."""
    bad = pair("a", "b", "b")
    records = [COMPARISONS[0], bad, *COMPARISONS[1:], bad, *RATED]
    path = written(tmp_path / "a.jsonl", records)
    judges = Judges({"it": models[0]})
    judges.load(CPU, torch.float32)
    runs = []
    for window in (1, 4, 256):
        monkeypatch.setattr(judging, "WINDOW", window)
        faults: list[Fault] = []
        found = verdicts(judges, jsonl.read([str(path)], Comparison, Sample, Dialogue), faults.append)
        assert [one.found.where.rpartition(":")[2] for one in found] == ["1", "3", "4", "5", "7", "8"]
        assert [fault.subject.split(":")[1] for fault in faults] == ["2", "6"]
        runs.append([value["it"] for one in found for value in one.scores.values()])
    assert len(runs[0]) == 10
    assert runs[1] == pytest.approx(runs[0], abs=1e-5)
    assert runs[2] == pytest.approx(runs[0], abs=1e-5)
