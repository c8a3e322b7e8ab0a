"""Rejection sampling by the command: what is kept, of whom, in which order; reports; pools; runs that are killed."""

import json
import math
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, groupby
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
import torch
from conftest import Command, run, turns, with_pieces, written
from test_cli import Run, command, ended_without_a_reader, one_line, tree
from test_journal import struck, together
from test_model import fresh
from test_model import written as model_written

from llamactl.artifacts import files, jsonl, manifest
from llamactl.artifacts.records import Sample
from llamactl.model import generate as sampler
from llamactl.model.config import Config
from llamactl.model.heads import RewardModel
from llamactl.model.llama import Llama
from llamactl.text import judging
from llamactl.text.judging import Judging
from llamactl.text.tokenizer import EOS, Tokenizer

assert command  # a fixture

CPU = torch.device("cpu")
SHAPE = Config(dim=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=512, context=64)
SCORED = Config(**{**SHAPE.__dict__, "scored": True})
SHORT = ["--max-new-tokens", 8, "--device", "cpu"]
ASKED: list[dict[str, Any]] = [
    {"messages": turns(f"What is {word}?"), "id": number, "note": {"é": [number, None]}, **more}
    for number, (word, more) in enumerate(
        [("a heap", {}), ("a list", {"safety": True}), ("x", {}), ("sort", {}), ("a queue", {"safety": True})]
    )
]


class Models:
    """A language model, and reward models that tell answers from each other; none is trained."""

    def __init__(self, place: Path, proto: bytes) -> None:
        self.place, self.proto = place, proto
        chat = fresh(SHAPE, seed=3)
        assert isinstance(chat, Llama)
        with torch.no_grad():
            chat.output.weight[EOS] *= 3
        self.chat = model_written(chat, place / "chat", tokenizer=proto)
        self.helpful, self.safe, self.other = (self.reward(name, seed) for seed, name in enumerate("hso", start=1))

    def reward(self, name: str, seed: int, factor: float = 1.0, **shape: Any) -> Path:
        model = fresh(Config(**{**SCORED.__dict__, **shape}), seed=seed, kind=RewardModel)
        assert isinstance(model, RewardModel)
        with torch.no_grad():
            model.score.weight *= factor
        return model_written(model, self.place / name, tokenizer=self.proto)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Models:
    return Models(tmp_path_factory.mktemp("models"), tokenizer_path.read_bytes())


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return written(tmp_path / "prompts.jsonl", ASKED)


@pytest.fixture
def ask(models: Models, prompts: Path, command: Run) -> Callable[..., Any]:
    """The command on the prompts, by the helpfulness model; its samples, or how it ended where it failed."""

    def run(*flags: object, asked: object = prompts) -> Any:
        ended = command("reject-sample", models.chat, asked, "--helpfulness", models.helpful, *SHORT, *flags)
        assert ended.status == 0, ended.stderr
        return lines(ended.stdout), ended.stderr

    return run


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def by_prompt(samples: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    return {number: list(some) for number, some in groupby(samples, key=lambda one: one["id"])}


def alone(model: Path, sample: dict[str, Any]) -> float:
    """What a reward model thinks of a sample, by itself."""
    found = jsonl.Found(jsonl.checked(sample, (Sample,), "x"), sample, "x")
    sides = judging.sides(found, Tokenizer.load(model), Judging(64))
    return RewardModel.load(model, CPU).judge([[sides["response"].ids]])[0][0]


# -- what is kept


def test_the_best_answer_to_each_prompt_is_kept_in_their_order(ask: Run, models: Models) -> None:
    every, _ = ask("-k", 6, "--keep", "all")
    best, said = ask("-k", 6)
    assert [one["id"] for one in best] == [0, 1, 2, 3, 4]
    for one in best:
        others = by_prompt(every)[one["id"]]
        assert one == others[0]
        assert one["reward"] == max(other["reward"] for other in others)
    assert any(one["sampling"]["index"] for one in best)
    assert "reward of the best and the median" in said


def test_all_answers_are_those_of_generate_with_their_rank(
    ask: Run, models: Models, prompts: Path, command: Run
) -> None:
    every, _ = ask("-k", 5, "--keep", "all", "--seed", 3)
    flags = ["-k", 5, "--temperature", 1, "--top-p", 1, "--seed", 3, *SHORT]
    generated = lines(command("generate", models.chat, prompts, *flags).stdout)
    found = {(one["id"], one["sampling"]["index"]): one for one in every}
    assert len(found) == len(every)
    for wanted in generated:
        key = wanted["id"], wanted["sampling"]["index"]
        assert (key in found) == bool(wanted["response"])
        if key in found:
            assert {name: found[key][name] for name in wanted} == wanted
    for some in by_prompt(every).values():
        assert [one["rank"] for one in some] == [*range(1, len(some) + 1)]
        assert [one["reward"] for one in some] == sorted((one["reward"] for one in some), reverse=True)


def test_a_sample_says_where_it_comes_from(ask: Run, models: Models) -> None:
    (first, *_), _ = ask("-k", 3, "--seed", 7, "--top-k", 50, "--temperature", 1.3, "--safety", models.safe)
    assert {key: first[key] for key in ASKED[0]} == ASKED[0]
    assert first["sampling"] | {"index": 0} == {"temperature": 1.3, "top_p": 1.0, "top_k": 50, "seed": 7, "index": 0}
    assert (first["model"], first["k"], first["rank"]) == (str(models.chat), 3, 1)
    digests = {
        name: manifest.described("m", str(place))["sha256"]
        for name, place in (("chat", models.chat), ("helpfulness", models.helpful), ("safety", models.safe))
    }
    assert first["model_sha256"] == digests.pop("chat")
    assert (first["reward_sha256"], first["reward_precision"]) == (digests, "fp32")
    assert first["finish"] in ("stop", "length")
    assert [*first["scores"]] == ["helpfulness", "safety"]
    added = {
        "response",
        "sampling",
        "model",
        "model_sha256",
        "finish",
        "k",
        "scores",
        "reward",
        "rank",
        "reward_sha256",
        "reward_precision",
    }
    assert first.keys() - ASKED[0].keys() == added


def test_the_n_best(ask: Run) -> None:
    every, _ = ask("-k", 5, "--keep", "all")
    some, _ = ask("-k", 5, "--keep", 2)
    assert some == [one for one in every if one["rank"] <= 2]
    assert ask("-k", 5, "--keep", 99)[0] == every


def test_scores_are_those_of_the_models_by_themselves(ask: Run, models: Models) -> None:
    every, _ = ask("-k", 4, "--keep", "all", "--safety", models.safe)
    for one in every[::3]:
        assert one["scores"]["helpfulness"] == pytest.approx(alone(models.helpful, one), abs=1e-5)
        assert one["scores"]["safety"] == pytest.approx(alone(models.safe, one), abs=1e-5)


def test_the_safety_model_decides_where_the_paper_says(ask: Run, models: Models) -> None:
    plain, _ = ask("-k", 8, "--keep", "all", "--safety", models.safe)
    middle = median(one["scores"]["safety"] for one in plain)
    judge = models.reward("judge", 2, factor=math.log(0.15 / 0.85) / middle)  # takes half of them for unsafe
    every, _ = ask("-k", 8, "--keep", "all", "--safety", judge)
    by_safety = set()
    for one in every:
        unsafe = 1 / (1 + math.exp(-one["scores"]["safety"])) < 0.15
        decides = "safety" if one.get("safety") or unsafe else "helpfulness"
        assert one["reward"] == one["scores"][decides]
        by_safety.add((bool(one.get("safety")), unsafe))
    assert len(by_safety) == 4  # all cases there are


def test_equal_answers_stand_in_the_order_of_their_index(ask: Run) -> None:
    every, said = ask("-k", 4, "--keep", "all", "--temperature", 0)
    assert "--temperature 0 is greedy: its 4 samples of a prompt are all one" in said
    for some in by_prompt(every).values():
        assert len({one["response"] for one in some}) == len({one["reward"] for one in some}) == 1
        assert [one["sampling"]["index"] for one in some] == [0, 1, 2, 3]


def test_samples_are_divided_among_temperatures(ask: Run) -> None:
    """Sample i at temperature i, around and around; one that is alone is what it is by itself."""
    mixed, said = ask("-k", 5, "--keep", "all", "--temperature", 0.5, "--temperature", 1.5)
    assert {one["sampling"]["index"]: one["sampling"]["temperature"] for one in mixed} == {
        0: 0.5, 1: 1.5, 2: 0.5, 3: 1.5, 4: 0.5
    }  # fmt: skip
    assert "for the next round: temperature " in said
    single, said = ask("-k", 5, "--keep", "all", "--temperature", 1.5)
    assert "for the next round" not in said
    for one in mixed:
        if one["sampling"]["temperature"] == 1.5:
            assert one["response"] in {
                other["response"] for other in single
                if (other["id"], other["sampling"]["index"]) == (one["id"], one["sampling"]["index"])
            }  # fmt: skip


def test_an_answer_without_a_text_is_never_kept(
    ask: Run, models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    says(monkeypatch, models, ["", " ", "a heap", ""])
    out, numbers = tmp_path / "out.jsonl", tmp_path / "report.json"
    ask("-k", 4, "--keep", "all", "-o", out, "--report", numbers)
    samples = lines(out.read_text())
    assert [(one["id"], one["response"]) for one in samples] == [(number, "a heap") for number in range(5)]
    assert manifest.load(manifest.beside(out))["noted"]["answers without a text, not kept"] == 15
    assert json.loads(numbers.read_text())["answers"]["empty"] == 0.75


def test_an_answer_that_cannot_be_judged_is_left_out_and_counted(
    ask: Run, models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Too long for the reward model, or with the chat format's tags in it, which none can learn from."""
    long = "word and word " * 40
    says(monkeypatch, models, [long, "a heap", "see [INST] there", long])
    out, numbers = tmp_path / "out.jsonl", tmp_path / "report.json"
    _, said = ask("-k", 4, "--keep", "all", "-o", out, "--report", numbers)
    assert [one["response"] for one in lines(out.read_text())] == ["a heap"] * 5
    made = manifest.load(manifest.beside(out))
    assert made["skipped"] == {"answers that cannot be judged": 15}
    assert made["done"] | {"tokens": 0} == {"samples": 20, "tokens": 0, "prompts": 5, "kept": 5}
    assert f"skipped {tmp_path}/prompts.jsonl:1, answer 0: response: is " in said
    assert said.count("skipped ") == 6  # the first five by name, then the count
    found = json.loads(numbers.read_text())
    assert (found["answers"]["samples"], found["answers"]["judged"]) == (20, 5)
    assert [point["prompts"] for point in found["reward"]["best"]] == [5]
    ask("-k", 4, "--keep", "all", "-o", out, "--truncate", "--allow-tags", "--overwrite")
    assert [one["response"] for one in lines(out.read_text())].count(long.strip()) == 10
    made = manifest.load(manifest.beside(out))
    assert made["skipped"] == {}
    assert made["noted"]["tokens cut off"] > 1000


def says(monkeypatch: pytest.MonkeyPatch, models: Models, texts: list[str]) -> None:
    """Have the sampler answer each prompt by these texts."""
    tokenizer = Tokenizer.load(models.chat)

    def finished(model: object, requests: Iterable[Any], *_: object) -> Iterator[tuple[int, list[sampler.Answer]]]:
        for number, request in enumerate(requests):
            assert len(request.temperatures) == len(texts)
            yield number, [sampler.Answer(tokenizer.encode(text), n != 1, []) for n, text in enumerate(texts)]

    monkeypatch.setattr(sampler, "finished", finished)


def test_what_can_be_learned_is_what_comes_out(ask: Run, tmp_path: Path, command: Run) -> None:
    samples, _ = ask("-k", 4)
    checked = command("validate", written(tmp_path / "best.jsonl", samples), "--json")
    assert checked.status == 0, checked.stderr
    assert lines(checked.stdout)[0]["records"] == 5


def test_a_prompt_that_was_through_a_round_is_asked_as_it_was(ask: Run, tmp_path: Path) -> None:
    """The fields of the earlier round's sample are not those of this one's."""
    first, _ = ask("-k", 2)
    old = {"pool": "an earlier one", "scores": {"style": 1.0}, "log_probs": [-1.0], "likert": 7, "before": {}}
    stained = [{**one, **old} for one in first]
    again, _ = ask("-k", 2, asked=written(tmp_path / "again.jsonl", stained))
    assert again == first


# -- reports


def test_the_report_is_what_all_answers_come_to(ask: Run, tmp_path: Path) -> None:
    """By brute force over the samples that are written with --keep all."""
    out, temperatures = tmp_path / "report.json", (0.6, 1.1)
    flags = [word for one in temperatures for word in ("--temperature", one)]
    for seed in range(99):
        every, _ = ask("-k", 6, "--keep", "all", "--seed", seed, *flags, "--report", out, "--overwrite")
        if len(every) == 30:  # none without a text, which would be in the report, but not kept
            break
    found = json.loads(out.read_text())
    rewards = [[one["reward"] for one in some] for some in by_prompt(every).values()]
    for n in range(1, 7):
        best, middle = found["reward"]["best"][n - 1], found["reward"]["median"][n - 1]
        assert (best["n"], middle["n"], best["prompts"]) == (n, n, 5)
        assert best["value"] == pytest.approx(mean(mean(map(max, combinations(of, n))) for of in rewards))
        assert middle["value"] == pytest.approx(mean(mean(map(median, combinations(of, n))) for of in rewards))
        assert best["interval"][0] <= best["value"] <= best["interval"][1]
    bests = {}
    for one in found["by_temperature"]:
        at = [
            [s["reward"] for s in some if s["sampling"]["temperature"] == one["temperature"]]
            for some in by_prompt(every).values()
        ]
        bests[one["temperature"]] = mean(map(max, at))
        assert [point["n"] for point in one["best"]] == [1, 2, 3]
        assert one["best"][2]["value"] == pytest.approx(bests[one["temperature"]])
        assert one["reward"]["value"] == pytest.approx(mean(map(mean, at)))
    top = max(bests, key=lambda one: bests[one])
    assert found["best_temperature"]["temperature"] == top
    assert found["best_temperature"]["lead"]["value"] == pytest.approx(2 * bests[top] - sum(bests.values()))
    assert (found["prompts"], found["tagged"], found["k"], found["kept"]["all"]) == (5, 2, 6, 30)
    assert found["answers"]["truncated"] == mean(one["finish"] == "length" for one in every)
    distinct = {(one["id"], one["response"]) for one in every}
    assert found["answers"]["duplicates"] == pytest.approx(1 - len(distinct) / 30)


def test_the_report_counts_refusals_duplicates_and_what_is_cut_short(
    ask: Run, models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    says(monkeypatch, models, ["I cannot say.", "a heap", "a heap", "As an AI, no"])
    _, said = ask("-k", 4, "--report", tmp_path / "deep" / "report.json")
    found = json.loads((tmp_path / "deep" / "report.json").read_text())["answers"]
    assert (found["refusals"], found["duplicates"], found["truncated"]) == (0.5, 0.25, 0.25)
    assert "answers of this round" in said


def test_the_report_is_written_for_what_was_made_before(ask: Run, tmp_path: Path) -> None:
    """Its numbers stand in the manifest as well."""
    flags = ["-k", 2, "-o", tmp_path / "out.jsonl"]
    ask(*flags, "--report", tmp_path / "first.json")
    _, said = ask(*flags, "--report", tmp_path / "second.json")
    assert "already made" in said
    assert (tmp_path / "second.json").read_bytes() == (tmp_path / "first.json").read_bytes()


def test_a_report_replaces_nothing_unasked(
    ask: Run, models: Models, prompts: Path, tmp_path: Path, command: Run
) -> None:
    out, report = tmp_path / "out.jsonl", tmp_path / "report.json"
    flags = ["reject-sample", models.chat, prompts, "--helpfulness", models.helpful, *SHORT, "-k", 2, "-q"]
    for more, said in (
        (["--report", prompts], "prompts.jsonl: is read by this command, which would replace it"),
        (["-o", out, "--report", tmp_path / "." / "deep" / ".." / "out.jsonl"], "out.jsonl is what -o writes"),
        (["-o", out, "--report", manifest.beside(out)], "is what -o writes"),
        (["--report", "-"], "--report: - is stdout, where the result goes"),
    ):
        before = tree(tmp_path)
        ended = command(*flags, *more, "--overwrite")
        assert (ended.status, ended.stdout) == (2, "")
        assert said in ended.stderr and ended.stderr.count("\n") == 1
        assert tree(tmp_path) == before
    report.write_text("round 1")
    for more in ([], ["-o", out]):
        assert "report.json: exists; --overwrite" in one_line(command(*flags, *more, "--report", report))
    assert (report.read_text(), out.exists()) == ("round 1", False)
    ask("-k", 2, "-o", out)
    assert f"is not what {out} came to" in one_line(command(*flags, "-o", out, "--report", report))
    assert report.read_text() == "round 1"
    ask("-k", 2, "-o", out, "--report", report, "--overwrite")
    made = tree(tmp_path)
    _, said = ask("-k", 2, "-o", out, "--report", report)
    assert "nothing to do" in said
    assert tree(tmp_path) == made


def test_a_report_goes_to_stdout_where_nothing_else_does(
    ask: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Models, prompts: Path, command: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["reject-sample", models.chat, prompts, "--helpfulness", models.helpful, *SHORT, "-k", 2, "-o", "out.jsonl"]
    first = command(*flags, "--report", "-")
    again = command(*flags, "--report", "-")
    assert (first.status, again.status) == (0, 0)
    assert json.loads(first.stdout) == manifest.load(tmp_path / "out.jsonl.run.json")["report"]
    assert again.stdout == first.stdout
    assert not (tmp_path / "-").exists()


# -- earlier rounds


@pytest.fixture
def pool(ask: Run, tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """What a round with another seed has made: all of its answers, and one to a prompt that is not asked."""
    every, _ = ask("-k", 4, "--seed", 11, "--keep", "all")
    stranger = {**every[0], "messages": turns("Who are you?")}
    return written(tmp_path / "pool.jsonl", [*every, stranger]), every


def test_the_best_of_all_rounds_is_kept(ask: Run, pool: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    path, earlier = pool
    fresh_ones, _ = ask("-k", 4, "--keep", "all")
    out = tmp_path / "out.jsonl"
    ask("-k", 4, "--pool", path, "-o", out, "--report", tmp_path / "report.json")
    found = lines(out.read_text())
    origins = set()
    for one in found:
        new, old = by_prompt(fresh_ones)[one["id"]], by_prompt(earlier)[one["id"]]
        wanted = max([*new, *old], key=lambda other: other["reward"])  # of equal ones the new one is first
        assert one["rank"] == 1
        if wanted in new:
            assert one == wanted
        else:
            assert one == {**wanted, "rank": 1, "pool": str(path)}
        origins.add("pool" in one)
    assert origins == {True, False}
    made = manifest.load(manifest.beside(out))
    assert made["noted"] == {
        "pool samples taken as scored": len(earlier), "prompts tagged safety, where helpfulness alone decides": 2
    }  # fmt: skip
    assert made["skipped"] == {"pool samples of prompts that are not asked": 1}
    assert [one["path"] for one in made["inputs"] if one["as"] == "pool"] == [str(path)]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["kept"]["of_earlier_rounds"] == sum("pool" in one for one in found)
    assert report["kept"]["reward"] == pytest.approx(mean(one["reward"] for one in found))
    alone_report = tmp_path / "alone.json"
    ask("-k", 4, "--report", alone_report)
    assert json.loads(alone_report.read_text())["reward"] == report["reward"]  # of this round's answers alone


def test_a_pooled_answer_has_the_fields_of_the_prompt_that_is_asked(ask: Run, models: Models, tmp_path: Path) -> None:
    """It was asked under another id, with another tag; a prompt that is a Sample gives it nothing of its own answer."""
    spaced = [{**turn, "content": f" {turn['content']}"} for turn in turns("a", "b", "c")]
    said = [
        {"response": "yes", "finish": "stop", "k": 9, "source": "s"},
        {"response": "no", "sampling": {"index": 3}, "id": 7},
    ]
    old = [{"messages": spaced, "id": "old", "safety": True, **said[0]}, {"messages": turns("d"), **said[1]}]
    prompts = [{"messages": turns("a", "b", "c"), "id": "new", "label": 1}, {"messages": turns("d"), "safety": True}]
    asked = [{**prompts[0], "response": "old", "likert": 2, "scores": {"style": 1}, "sampling": {}}, prompts[1]]
    pool = written(tmp_path / "pool.jsonl", old)
    flags = ["-k", 1, "--keep", "all", "--pool", pool, "--safety", models.safe]
    found, _ = ask(*flags, asked=written(tmp_path / "asked.jsonl", asked))
    kept = [one for one in found if "pool" in one]
    judging = {"scores", "reward", "rank", "reward_sha256", "reward_precision"}
    for one, prompt, own in zip(kept, prompts, said, strict=True):
        assert {name: one[name] for name in one if name not in judging} == {**own, **prompt, "pool": str(pool)}
        assert [*one["scores"]] == ["helpfulness", "safety"]
        assert judging < one.keys()
    assert kept[1]["reward"] == kept[1]["scores"]["safety"]


def test_a_pool_is_scored_anew_by_other_models_and_not_by_the_same(
    ask: Run, models: Models, pool: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    path, earlier = pool
    praised = written(path, [{**one, "scores": {"helpfulness": 1e6, "style": 2}} for one in earlier])
    trusting, _ = ask("-k", 2, "--pool", praised)
    assert all(one["reward"] == 1e6 and one["pool"] == str(path) for one in trusting)
    changed, said = ask("-k", 2, "--pool", praised, "--helpfulness", models.other, "--keep", "all")
    assert f"{len(earlier)} pool samples scored anew" in said
    for one in changed:
        assert one["scores"]["helpfulness"] == pytest.approx(alone(models.other, one), abs=1e-5)
        assert one["scores"].get("style") == (2 if "pool" in one else None)
        assert one["reward_sha256"] == {"helpfulness": manifest.described("m", str(models.other))["sha256"]}
    assert sum("pool" in one for one in changed) == len(earlier)


def test_a_prompt_asked_twice_has_the_pool_in_its_choice_once(
    ask: Run, pool: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    path, earlier = pool
    twice = written(tmp_path / "twice.jsonl", [ASKED[0], {**ASKED[0], "id": 9}, *ASKED[1:]])
    found, said = ask("-k", 2, "--pool", path, "--keep", "all", asked=twice)
    old = [one for one in found if "pool" in one]
    assert len(old) == len(earlier)
    assert len({(one["id"], one["sampling"]["index"]) for one in old}) == len(old)
    assert {one["id"] for one in found} == {0, 1, 2, 3, 4, 9}
    assert "1 prompts asked again, whose pool samples are in the choice for the first" in said


def test_a_pool_is_scored_anew_in_another_precision(
    ask: Run, models: Models, pool: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Also where no precision is named: it is that in which the reward models are stored."""
    path, earlier = pool
    anew, said = ask("-k", 1, "--pool", path, "--precision", "bf16", "--keep", "all")
    assert f"{len(earlier)} pool samples scored anew" in said
    assert {one["reward_precision"] for one in anew} == {"bf16"}
    by_answer = {(one["id"], one["sampling"]["index"]): one["scores"]["helpfulness"] for one in earlier}
    old = [one for one in anew if "pool" in one]
    assert len(old) == len(earlier)
    assert any(one["reward"] != by_answer[one["id"], one["sampling"]["index"]] for one in old)
    rounded = written(tmp_path / "rounded.jsonl", anew)
    _, said = ask("-k", 1, "--pool", rounded, "--precision", "bf16")
    assert f"{len(anew)} pool samples taken as scored" in said
    again, said = ask("-k", 1, "--pool", rounded, "--keep", "all", "--seed", 5)
    assert f"{len(anew)} pool samples scored anew" in said
    for one in again:
        assert one["reward"] == pytest.approx(alone(models.helpful, one), abs=1e-5)


def test_a_pool_sample_without_a_text_is_not_in_the_choice_and_counted(
    ask: Run, models: Models, pool: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Beside new ones without a text; those to a prompt that is not asked are not looked at."""
    path, earlier = pool
    praised = [{**one, "scores": {"helpfulness": 1e6}} for one in earlier]
    blank = [{**praised[0], "response": text} for text in ("", " \n")]
    pool_file = written(path, [*blank, *earlier, {**blank[0], "messages": turns("Who are you?")}])
    says(monkeypatch, models, ["", "a heap"])
    out, report = tmp_path / "out.jsonl", tmp_path / "report.json"
    ask("-k", 2, "--keep", "all", "--pool", pool_file, "-o", out, "--report", report)
    assert len(lines(out.read_text())) == len(earlier) + 5
    made = manifest.load(manifest.beside(out))
    assert made["noted"]["pool samples taken as scored"] == len(earlier)
    assert made["noted"]["answers without a text, not kept"] == 2 + 5
    assert made["skipped"] == {"pool samples of prompts that are not asked": 1}
    assert json.loads(report.read_text())["answers"]["empty"] == 0.5  # of the new ones


@pytest.mark.parametrize("lacking", ["reward_sha256", "reward_precision", "scores"])
def test_a_pool_of_samples_that_nobody_has_scored(
    ask: Run, pool: tuple[Path, list[dict[str, Any]]], lacking: str
) -> None:
    path, earlier = pool
    plain = [{key: value for key, value in one.items() if key != lacking} for one in earlier]
    scored, _ = ask("-k", 4, "--pool", path, "--keep", "all")
    anew, said = ask("-k", 4, "--pool", written(path, plain), "--keep", "all")
    assert f"{len(earlier)} pool samples scored anew" in said
    for one, other in zip(anew, scored, strict=True):
        assert one["reward"] == pytest.approx(other["reward"], abs=1e-5)


def test_a_safety_model_that_the_pool_has_not_seen_scores_it(
    ask: Run, models: Models, pool: tuple[Path, list[dict[str, Any]]]
) -> None:
    found, said = ask("-k", 2, "--pool", pool[0], "--safety", models.safe, "--keep", "all")
    assert "pool samples scored anew" in said
    assert all([*one["scores"]] == ["helpfulness", "safety"] for one in found)


def test_pools_of_several_rounds_keep_the_first_they_were_in(
    ask: Run, pool: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    path, earlier = pool
    second = written(tmp_path / "second.jsonl", ask("-k", 1, "--pool", path, "--keep", "all")[0])
    third, _ = ask("-k", 1, "--pool", second, "--pool", path, "--keep", "all", "--seed", 5)
    origins = [one.get("pool") for one in third]
    assert origins.count(str(path)) == 2 * len(earlier)
    assert origins.count(str(second)) == 5
    assert origins.count(None) == 5


def test_a_bad_pool_is_refused_with_its_place(
    ask: Run, models: Models, prompts: Path, tmp_path: Path, command: Run
) -> None:
    good = {"messages": ASKED[0]["messages"], "response": "a tree"}
    for bad, said in (
        ({"messages": turns("a")}, "response: missing"),
        ({**good, "response": "word " * 100}, "response: is "),
        ({**good, "scores": [1]}, "scores: is no object"),
    ):
        path = written(tmp_path / "bad.jsonl", [good, bad])
        flags = ["--helpfulness", models.helpful, "--pool", path, *SHORT, "-k", 2]
        line = one_line(command("reject-sample", models.chat, prompts, *flags, "-q"))
        assert line.startswith(f"{path}:2: {said}")
        _, told = ask("--pool", path, "-k", 2, "--skip-bad")
        assert "skipped 1 bad records" in told


# -- parts, pipes, and runs that are killed


@pytest.mark.parametrize("count", [2, 3])
def test_parts_make_up_the_whole(ask: Run, models: Models, count: int) -> None:
    flags = ["-k", 3, "--safety", models.safe, "--temperature", 1.2]
    whole, _ = ask(*flags)
    parts = [ask(*flags, "--shard", f"{n}/{count}")[0] for n in range(count)]
    assert [one for number in range(5) for one in parts[number % count][number // count :][:1]] == whole


def test_from_stdin_to_stdout_and_into_training(
    models: Models, ask: Run, llamactl: Command, prompts: Path, tmp_path: Path, command: Run
) -> None:
    flags = ["--helpfulness", models.helpful, "--safety", models.safe, "-k", 2, "-q", *SHORT]
    piped = llamactl("reject-sample", models.chat, *flags, stdin=prompts.read_text(), status=0)
    assert piped.stderr == ""
    assert lines(piped.stdout) == ask("-k", 2, "--safety", models.safe)[0]
    path = tmp_path / "samples.jsonl"
    path.write_text(piped.stdout)
    planned = command("sft", models.chat, path, "--dry-run", "-o", tmp_path / "tuned")
    assert planned.status == 0, planned.stderr


def test_a_reader_that_leaves_is_141_in_silence(models: Models, prompts: Path) -> None:
    flags = ["--helpfulness", models.helpful, *SHORT, "-k", 2, "-q"]
    assert ended_without_a_reader([*map(str, ["reject-sample", models.chat, prompts, *flags])]) == (141, b"")


@pytest.fixture(scope="module")
def undisturbed(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[object]]:
    """The command with all there is to it, and ``whole`` as what it makes."""
    place = tmp_path_factory.mktemp("undisturbed")
    prompts, pool = written(place / "prompts.jsonl", ASKED), place / "pool.jsonl"
    common: list[object] = ["reject-sample", models.chat, prompts, "--helpfulness", models.helpful, *SHORT, "-k", 4]

    def asked(out: Path) -> list[object]:
        flags = ["--safety", models.safe, "--keep", 3, "--temperature", 0.7, "--temperature", 1.3, "--pool", pool]
        return [*common, *flags, "-o", out, "--report", out.with_name("report.json")]

    run(*common, "--seed", 5, "--keep", "all", "-o", pool, status=0)
    run(*asked(place / "whole" / "out.jsonl"), status=0)
    return asked


def numbers(out: Path) -> dict[str, Any]:
    made = manifest.load(manifest.beside(out))
    return {key: made[key] for key in ("done", "skipped", "noted", "report", "settings", "inputs")}


@pytest.mark.parametrize(
    ("moment", "count"), [("add", 1), ("add", 3), ("score", 5), ("sync", 1), ("rename", 2), ("remove", 1)]
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    undisturbed: Callable[[Path], list[object]], tmp_path: Path, command: Run, moment: str, count: int
) -> None:
    asked, out = undisturbed(tmp_path / "out.jsonl"), tmp_path / "out.jsonl"
    whole = Path(str(asked[2])).with_name("whole") / "out.jsonl"
    assert struck(asked, moment, count) == -signal.SIGKILL
    assert not (tmp_path / "report.json").exists()
    again = command(*asked)
    assert again.status == 0, again.stderr
    if through := {("add", 3): 2, ("score", 5): 2, ("sync", 1): 5}.get((moment, count)):
        assert f"{out}: going on after {through} records" in again.stderr
    assert out.read_bytes() == whole.read_bytes()
    assert (tmp_path / "report.json").read_bytes() == whole.with_name("report.json").read_bytes()
    assert numbers(out) == numbers(whole)
    assert not list(tmp_path.glob(".*"))


def test_two_processes_make_what_one_does(undisturbed: Callable[[Path], list[object]], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    asked = undisturbed(out)
    whole = Path(str(asked[2])).with_name("whole") / "out.jsonl"
    assert together(asked) == [0, 0]
    assert out.read_bytes() == whole.read_bytes()
    assert (tmp_path / "report.json").read_bytes() == whole.with_name("report.json").read_bytes()
    assert numbers(out) == numbers(whole)
    assert manifest.load(manifest.beside(out))["devices"] == 1  # the machine whose processors both share


def test_two_processes_that_share_the_models_sample_and_keep_the_same(
    undisturbed: Callable[[Path], list[object]], tmp_path: Path
) -> None:
    """Sums of two halves are rounded otherwise than the whole: scores are equal to rounding, tokens are the same."""
    out = tmp_path / "out.jsonl"
    asked = undisturbed(out)
    whole = Path(str(asked[2])).with_name("whole") / "out.jsonl"
    assert together([*asked, "--tensor-parallel", 2]) == [0, 0]
    for mine, its in zip(*(lines(place.read_text()) for place in (out, whole)), strict=True):
        assert {**mine, "scores": 0, "reward": 0} == {**its, "scores": 0, "reward": 0}
        assert mine["scores"] == pytest.approx(its["scores"], abs=1e-4)
    assert numbers(out)["done"] == numbers(whole)["done"]


def test_sigterm_is_75_and_the_run_goes_on(
    undisturbed: Callable[[Path], list[object]], tmp_path: Path, command: Run
) -> None:
    out = tmp_path / "out.jsonl"
    assert struck(undisturbed(out), "add", 3, signal.SIGTERM) == 75
    assert files.journal(out).exists()
    assert "going on after 2 records" in command(*undisturbed(out)).stderr


# -- what cannot be


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": turns("a", "b")}, "messages[1].role: is assistant: a prompt ends on a user turn"),
        ({"text": "a"}, "messages: missing"),
        ({"messages": turns("[INST]")}, "messages[0].content: holds [INST]"),
        (
            {"messages": turns("word " * 100)},
            "messages: is 316 tokens long, the context 64: no room for an answer",
        ),
        ({"messages": turns("word " * 14)}, "no answer to it can be judged: the shortest is 60 tokens long"),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_refused_before_anything_is_sampled(
    models: Models, tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch, record: Any, said: str
) -> None:
    narrow = models.reward("narrow", 1, context=56)
    path, out = written(tmp_path / "p.jsonl", [ASKED[0], record]), tmp_path / "out.jsonl"
    flags = ["--helpfulness", narrow, *SHORT, "-k", 2, "-o", out, "-q"]
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "finished", lambda *_: pytest.fail("it has begun"))
        assert one_line(command("reject-sample", models.chat, path, *flags)).startswith(f"{path}:2: {said}")
    assert {one.name for one in tmp_path.iterdir()} == {"p.jsonl"}
    done = command("reject-sample", models.chat, path, *flags, "--skip-bad")
    assert done.status == 0, done.stderr
    assert [one["id"] for one in lines(out.read_text())] == [0]


def test_a_reward_model_of_another_tokenizer_is_refused(
    models: Models, prompts: Path, tmp_path: Path, command: Run
) -> None:
    wide = fresh(Config(**{**SCORED.__dict__, "vocab": 513}), kind=RewardModel)
    other = model_written(wide, tmp_path / "other", tokenizer=with_pieces(models.proto, ["extra"]))
    for flags in (["--helpfulness", other], ["--helpfulness", models.helpful, "--safety", other]):
        line = one_line(command("reject-sample", models.chat, prompts, *flags, *SHORT, "-q"))
        assert line.startswith(f"{other}: has another tokenizer than {models.chat}; llamactl generate, then score")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--helpfulness", "nowhere"], "nowhere: no such directory"),
        (["--helpfulness", "{chat}"], "chat: "),
        (["--helpfulness", "{helpful}", "--temperature", 1, "--temperature", 1], "--temperature: 1, 1 for 2 samples"),
        (
            ["--helpfulness", "{helpful}", *["--temperature", 1, "--temperature", 2, "--temperature", 3]],
            "--temperature: 1, 2, 3",
        ),
        (["--helpfulness", "{helpful}", "--pool", "none.jsonl"], "none.jsonl: no such file"),
        (["--helpfulness", "{helpful}", "--report", "/"], "/: is a directory"),
    ],
)
def test_what_is_asked_for_is_checked_first(
    models: Models, prompts: Path, command: Run, flags: list[object], said: str
) -> None:
    given = [str(flag).format(chat=models.chat, helpful=models.helpful) for flag in flags]
    assert said in one_line(command("reject-sample", models.chat, prompts, *given, *SHORT, "-k", 2, "-q"))


def test_a_cache_too_small_for_one_sample_is_refused_and_leaves_nothing(
    models: Models, prompts: Path, tmp_path: Path, command: Run
) -> None:
    flags = ["--helpfulness", models.helpful, *SHORT, "-o", tmp_path / "out.jsonl", "-q"]
    line = one_line(command("reject-sample", models.chat, prompts, *flags, "--cache-memory", 1e-6))
    assert line.startswith("--cache-memory: ")
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_scores_that_are_no_numbers_end_the_run(
    models: Models, prompts: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RewardModel, "judge", lambda _, groups: [[math.nan for _ in group] for group in groups])
    line = one_line(command("reject-sample", models.chat, prompts, "--helpfulness", models.helpful, *SHORT, "-q"))
    assert re.match(rf"{prompts}:[1-5], answer 0: {models.helpful} gives it a score that is not finite; try ", line)


def test_no_prompts_at_all(models: Models, tmp_path: Path, command: Run) -> None:
    (tmp_path / "empty.jsonl").touch()
    flags = ["--helpfulness", models.helpful, *SHORT, "-q"]
    line = one_line(command("reject-sample", models.chat, tmp_path / "empty.jsonl", *flags))
    assert line.startswith(f"{tmp_path / 'empty.jsonl'}: is empty")
