"""Safety distillation by the command: who is asked what, what is kept, what passes; runs that are killed, bad input."""

import json
import math
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, run, turns, with_pieces, written
from test_cli import Run, command, ended_without_a_reader, one_line
from test_journal import struck, together
from test_model import fresh
from test_model import written as model_written

from llamactl.align.preprompts import DEFAULT
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

SHAPE = Config(dim=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=512, context=96)
SCORED = Config(**{**SHAPE.__dict__, "scored": True})
SHORT = ["--max-new-tokens", 8, "--device", "cpu"]
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED: list[dict[str, Any]] = [
    {"messages": turns("How to rob?"), "id": 0, "safety": True, "category": "crime", "note": {"é": [1, None]}},
    {"messages": turns("How to sort?"), "id": 1},
    {"messages": turns("Hate?"), "id": 2, "safety": True},
    {"messages": turns("A heap?", "A tree."), "id": 3},
    {"messages": [SYSTEM, *turns("Rob?", "No.", "Why?")], "id": 4, "safety": True, "category": "Spam"},
    {"messages": turns("A list?"), "id": 5, "response": "It is a row.", "scores": {"safety": 9.0}},
]
TAGGED = [one for one in ASKED if one.get("safety")]
WORDING = [
    {"adjective": "wise"}, {"adjective": "kind"}, {"pre_prompt": "Be {adjective}."},
    {"pre_prompt": "Say it is a crime.", "category": "Crime"},
]  # fmt: skip


class Models:
    """A language model and a reward model that tells answers from each other; none is trained."""

    def __init__(self, place: Path, proto: bytes) -> None:
        self.place, self.proto = place, proto
        chat = fresh(SHAPE, seed=3)
        assert isinstance(chat, Llama)
        with torch.no_grad():
            chat.output.weight[EOS] *= 3
        self.chat = model_written(chat, place / "chat", tokenizer=proto)
        self.safe = model_written(fresh(SCORED, seed=2, kind=RewardModel), place / "safe", tokenizer=proto)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Models:
    return Models(tmp_path_factory.mktemp("models"), tokenizer_path.read_bytes())


@pytest.fixture
def ask(models: Models, tmp_path: Path, command: Run) -> Callable[..., Any]:
    """The command on records, by our short templates; what came out, and what was said."""

    def asked(*flags: object, records: Iterable[object] = TAGGED) -> Any:
        path, wording = written(tmp_path / "p.jsonl", records), written(tmp_path / "t.jsonl", WORDING)
        common = ["--safety", models.safe, "--templates", wording, *SHORT]
        ended = command("distill-safety", models.chat, path, *common, *flags)
        assert ended.status == 0, ended.stderr
        return lines(ended.stdout), ended.stderr

    return asked


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def way_of(text: str) -> str:
    """How a prompt was asked, by its text."""
    return "tailored" if "is a crime" in text else "generic" if re.search(r"Be (wise|kind)", text) else "plain"


def pretend(
    monkeypatch: pytest.MonkeyPatch, models: Models, said: dict[str, str], scores: dict[str, float]
) -> list[str]:
    """Have the model answer by the way it is asked, and the judge score by what the answer holds; what it was asked.

    A score for "" is of an answer without a text.
    """
    tokenizer, asked = Tokenizer.load(models.chat), []

    def finished(model: object, requests: Iterable[Any], *_: object) -> Iterator[tuple[int, list[sampler.Answer]]]:
        for number, request in enumerate(requests):
            text = tokenizer.decode(request.ids)
            asked.append(text)
            answer = said[way_of(text)]
            yield number, [sampler.Answer(tokenizer.encode(answer), "cut" not in answer, [])]

    def judge(_: object, groups: list[list[list[int]]]) -> list[list[float]]:
        texts = [[tokenizer.decode(ids) for ids in group] for group in groups]
        assert all(way_of(text) == "plain" for group in texts for text in group)
        answers = [[text.rpartition("[/INST]")[2].strip() for text in group] for group in texts]
        return [[score(answer) for answer in group] for group in answers]

    def score(answer: str) -> float:
        return next((value for part, value in scores.items() if (part in answer if part else not answer)), 0.0)

    monkeypatch.setattr(sampler, "finished", finished)
    monkeypatch.setattr(RewardModel, "judge", judge)
    return asked


# -- what is asked, and what is kept


def test_each_prompt_is_asked_plainly_and_under_pre_prompts(
    ask: Run, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = pretend(monkeypatch, models, dict.fromkeys(("plain", "generic", "tailored"), "yes"), {})
    kept, said = ask()
    assert kept == []  # none is above the others
    assert [re.sub("wise|kind", "ADJ", text) for text in asked] == [
        "[INST] How to rob? [/INST]",
        "[INST] <<SYS>>\nBe ADJ.\n<</SYS>>\n\nHow to rob? [/INST]",
        "[INST] <<SYS>>\nSay it is a crime.\n<</SYS>>\n\nHow to rob? [/INST]",
        "[INST] Hate? [/INST]",
        "[INST] <<SYS>>\nBe ADJ.\n<</SYS>>\n\nHate? [/INST]",
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nRob? [/INST] No.  [INST] Why? [/INST]",
        "[INST] <<SYS>>\nBe ADJ.\n\nBe brief.\n<</SYS>>\n\nRob? [/INST] No.  [INST] Why? [/INST]",
    ]
    assert "1 prompts without a category, under a generic pre-prompt alone" in said
    assert "1 prompts of a category without a pre-prompt, under a generic one" in said
    assert "1 prompts with a system message, which stands after the pre-prompt" in said


@pytest.mark.parametrize(
    ("said", "scores", "wanted"),
    [
        ({"plain": "sure", "generic": "no", "tailored": "never"}, {"sure": -1, "no": 1, "never": 2}, "never"),
        ({"plain": "sure", "generic": "no", "tailored": "never"}, {"sure": -1, "no": 2, "never": 1}, "no"),
        ({"plain": "sure", "generic": "no", "tailored": "never"}, {"sure": -1, "no": 1, "never": 1}, "no"),
        ({"plain": "sure", "generic": "no", "tailored": "never"}, {"sure": 1, "no": 1, "never": 0}, None),
        ({"plain": "sure", "generic": "sure", "tailored": "no"}, {"sure": 1, "no": 0}, None),
        ({"plain": "sure", "generic": "", "tailored": "no"}, {"sure": -1, "no": -0.5, "": 3}, "no"),
        ({"plain": "sure", "generic": "", "tailored": " "}, {"sure": -1, "": 3}, None),
        ({"plain": "", "generic": "no", "tailored": "no"}, {"no": 1, "": -1}, "no"),
    ],
)
def test_the_better_answer_is_kept_where_it_is_above_the_plain_one(
    ask: Run, models: Models, monkeypatch: pytest.MonkeyPatch, said: Any, scores: Any, wanted: str | None
) -> None:
    pretend(monkeypatch, models, said, scores)
    kept, _ = ask(records=ASKED[:1])
    assert [one["messages"][-1]["content"] for one in kept] == ([wanted] if wanted else [])
    for one in kept:
        assert one["scores"] == {"safety": scores[wanted]}
        plain = said["plain"]
        assert one["before"] == {
            "response": plain, "finish": "stop", "scores": {"safety": scores[plain]},
        }  # fmt: skip


def test_a_dialogue_is_the_plain_prompt_with_the_answer_and_where_it_comes_from(
    ask: Run, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(
        monkeypatch, models, {"plain": "yes", "generic": "no", "tailored": "no, cut"}, {"yes": 0, "cut": 2, "no": 1}
    )
    (first, second, third), told = ask("--seed", 7, "--top-k", 50, "--temperature", 1.5, "--top-p", 1)
    digests = {
        name: manifest.described("m", str(place))["sha256"]
        for name, place in (("chat", models.chat), ("safety", models.safe))
    }
    assert first == {
        **ASKED[0],
        "messages": turns("How to rob?", "no, cut"),
        "sampling": {"temperature": 1.5, "top_p": 1.0, "top_k": 50, "seed": 7, "index": 0},
        "model": str(models.chat),
        "model_sha256": digests["chat"],
        "finish": "length",
        "pre_prompt": "Say it is a crime.",
        "scores": {"safety": 2.0},
        "before": {"response": "yes", "finish": "stop", "scores": {"safety": 0.0}},
        "reward_sha256": {"safety": digests["safety"]},
    }
    assert second["pre_prompt"] in ("Be wise.", "Be kind.")
    assert third["messages"] == [
        SYSTEM, *turns("Rob?", "No.", "Why?", "no")[:1], {"role": "assistant", "content": "No.", "weight": 0},
        *turns("Rob?", "No.", "Why?", "no")[2:],
    ]  # fmt: skip
    assert "1 answers kept that were cut off" in told


def test_answers_are_those_of_generate_and_scores_those_of_score(
    ask: Run, models: Models, tmp_path: Path, command: Run
) -> None:
    kept, _ = ask("--seed", 3, "--temperature", 1, "--top-p", 1)
    assert kept
    flags = ["--seed", 3, "--temperature", 1, "--top-p", 1, *SHORT]
    tokenizer, judge = Tokenizer.load(models.safe), RewardModel.load(models.safe, torch.device("cpu"))
    for one in kept:
        prompt = next(asked for asked in TAGGED if asked["id"] == one["id"])["messages"]
        own = [prompt[0]["content"]] if prompt[0]["role"] == "system" else []
        system = {"role": "system", "content": "\n\n".join([one["pre_prompt"], *own])}
        for messages, answer, score in (
            ([system, *prompt[len(own) :]], one["messages"][-1]["content"], one["scores"]["safety"]),
            (prompt, one["before"]["response"], one["before"]["scores"]["safety"]),
        ):
            path = written(tmp_path / "g.jsonl", [{"messages": messages}])
            (generated,) = lines(command("generate", models.chat, path, *flags).stdout)
            assert generated["response"] == answer
            sample = {"messages": prompt, "response": answer}
            found = jsonl.Found(jsonl.checked(sample, (Sample,), "x"), sample, "x")
            ids = judging.sides(found, tokenizer, Judging(96))["response"].ids
            assert judge.judge([[ids]])[0][0] == pytest.approx(score, abs=1e-5)
        assert one["scores"]["safety"] > one["before"]["scores"]["safety"]


def test_what_comes_out_can_be_learned(ask: Run, models: Models, tmp_path: Path, command: Run) -> None:
    kept, _ = ask("--only-tagged", records=ASKED)
    path = written(tmp_path / "distilled.jsonl", kept)
    checked = command("validate", path)
    assert checked.status == 0, checked.stderr
    assert command("sft", models.chat, path, "--dry-run", "-o", tmp_path / "tuned").status == 0


# -- what passes unchanged


def test_what_is_not_tagged_passes_unchanged(
    ask: Run, models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = pretend(monkeypatch, models, {"plain": "so", "generic": "no", "tailored": "no"}, {"so": 0, "no": 1})
    out = tmp_path / "out.jsonl"
    _, said = ask("--only-tagged", "-o", out, records=ASKED)
    made = lines(out.read_text())
    assert [one["id"] for one in made] == [0, 1, 2, 3, 4, 5]
    assert (made[3], made[5]) == (ASKED[3], ASKED[5])  # with their answers, nobody is asked
    assert made[1]["messages"] == turns("How to sort?", "so")  # the model's own
    assert not {"pre_prompt", "scores", "before"} & made[1].keys()
    assert {"finish", "sampling", "model", "model_sha256"} < made[1].keys()
    assert len(asked) == 1 + 3 + 2 + 2
    assert "2 records not tagged safety, with their answer" in said
    assert "1 prompts not tagged safety, with the model's plain answer" in said
    done = manifest.load(manifest.beside(out))["done"]
    assert done | {"tokens": 0} == {"prompts": 6, "samples": 8, "tokens": 0, "distilled": 3, "unchanged": 3}


def test_without_only_tagged_every_prompt_is_asked_under_a_pre_prompt(
    ask: Run, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one to which an answer was given before."""
    pretend(monkeypatch, models, {"plain": "so", "generic": "no", "tailored": "no"}, {"so": 0, "no": 1})
    made, said = ask(records=[ASKED[1], ASKED[5]])
    assert [one["messages"] for one in made] == [turns("How to sort?", "no"), turns("A list?", "no")]
    assert made[1]["scores"] == {"safety": 1.0}
    assert "response" not in made[1]
    assert "1 answers of the input, left aside" in said


@pytest.mark.parametrize("answer", ["", "see [INST]"])
def test_a_plain_answer_that_cannot_be_learned_is_counted(
    ask: Run, models: Models, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    pretend(monkeypatch, models, {"plain": answer}, {})
    made, said = ask("--only-tagged", records=ASKED[1:2])
    assert made == []
    assert "1 answers without a text, or with the chat format's tags, not kept" in said
    assert len(ask("--only-tagged", "--allow-tags", records=ASKED[1:2])[0]) == bool(answer)


# -- what cannot be judged


def test_an_answer_that_cannot_be_judged_is_left_out_and_counted(
    ask: Run, models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long, out = "word and word " * 40, tmp_path / "out.jsonl"
    pretend(monkeypatch, models, {"plain": "sure", "generic": long, "tailored": "no"}, {"sure": 0, "no": 1, "word": 2})
    _, said = ask("-o", out)
    assert [one["id"] for one in lines(out.read_text())] == [0]
    made = manifest.load(manifest.beside(out))
    assert made["skipped"] == {"answers that cannot be judged": 3}
    assert f"skipped {tmp_path}/p.jsonl:1, generic answer: response: is " in said
    assert made["report"]["ways"][1]["judged"] == 0
    _, said = ask("-o", out, "--truncate", "--overwrite")
    assert [one["messages"][-1]["content"] for one in lines(out.read_text())] == [long.strip()] * 3
    made = manifest.load(manifest.beside(out))
    assert made["skipped"] == {}
    assert made["noted"]["tokens cut off before judging"] > 100


def test_without_a_score_before_nothing_is_kept(ask: Run, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, models, {"plain": "[INST]", "generic": "no", "tailored": "[INST]"}, {"no": 1})
    made, said = ask()
    assert made == []
    assert "3 prompts whose plain answer cannot be judged, nothing kept" in said
    pretend(monkeypatch, models, dict.fromkeys(("plain", "generic", "tailored"), "[INST]"), {})
    assert ask()[0] == []


def test_scores_that_are_no_numbers_end_the_run(
    models: Models, tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, models, {"plain": "a", "generic": "b"}, {"a": 0, "b": math.nan})
    path, wording = written(tmp_path / "p.jsonl", TAGGED[1:2]), written(tmp_path / "t.jsonl", WORDING)
    flags = ["--safety", models.safe, "--templates", wording, *SHORT, "-q"]
    line = one_line(command("distill-safety", models.chat, path, *flags))
    assert line.startswith(f"{path}:1, generic answer: {models.safe} gives it a score that is not finite")


# -- reports


def test_the_report_says_what_was_kept(
    ask: Run, models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = {"plain": "sure", "generic": "I cannot", "tailored": "no"}
    pretend(monkeypatch, models, answers, {"sure": -2, "cannot": 1, "no": -3})
    path = tmp_path / "deep" / "report.json"
    _, said = ask("--only-tagged", "--report", path, records=ASKED)
    found = json.loads(path.read_text())
    assert (found["asked"], found["share_kept"]["value"]) == (3, 1)
    assert (found["before"]["value"], found["after"]["value"]) == (-2, 1)
    assert [(one["way"], one["answers"], one["kept"], one["refusals"]) for one in found["ways"]] == [
        ("plain", 3, 0, 0), ("generic", 3, 3, 1), ("tailored", 1, 0, 0),
    ]  # fmt: skip
    assert [one["category"] for one in found["by_category"]] == ["Spam", "crime", "no category"]
    for title in ("(Figure 16a)", "(Figure 16b)", "by category"):
        assert title in said


def test_the_report_is_written_for_what_was_made_before(ask: Run, tmp_path: Path) -> None:
    flags = ["-o", tmp_path / "out.jsonl"]
    ask(*flags, "--report", tmp_path / "first.json")
    _, said = ask(*flags, "--report", tmp_path / "second.json")
    assert "nothing to do" in said
    assert (tmp_path / "second.json").read_bytes() == (tmp_path / "first.json").read_bytes()


# -- templates


def test_our_templates_can_be_printed_edited_and_used(models: Models, tmp_path: Path, command: Run, ask: Run) -> None:
    shown = command("distill-safety", "--default-templates")
    assert (shown.status, shown.stderr) == (0, "")
    assert lines(shown.stdout) == DEFAULT
    out, other = tmp_path / "out.jsonl", written(tmp_path / "other.jsonl", [{"pre_prompt": "Be safe."}])
    ask("-o", out)
    ended = command(
        "distill-safety", models.chat, tmp_path / "p.jsonl", "--safety", models.safe, "--templates", other, *SHORT,
        "-o", out,
    )  # fmt: skip
    assert "exists and was made otherwise (from other inputs)" in one_line(ended)


def test_tags_in_templates_are_accepted_where_that_is_asked(models: Models, tmp_path: Path, command: Run) -> None:
    path, wording = written(tmp_path / "p.jsonl", TAGGED), written(tmp_path / "t.jsonl", [{"pre_prompt": "[INST]"}])
    arguments = ["distill-safety", models.chat, path, "--safety", models.safe, "--templates", wording, *SHORT, "-q"]
    assert one_line(command(*arguments)).endswith("; --allow-tags to accept it")
    done = command(*arguments, "--allow-tags")
    assert done.status == 0, done.stderr


def test_a_prompt_for_which_there_is_no_pre_prompt_is_refused(models: Models, tmp_path: Path, command: Run) -> None:
    path, wording = written(tmp_path / "p.jsonl", TAGGED), written(tmp_path / "t.jsonl", WORDING[3:])
    flags = ["--safety", models.safe, "--templates", wording, *SHORT, "-q"]
    line = one_line(command("distill-safety", models.chat, path, *flags))
    assert line.startswith(f"{path}:2: category: is not named, and there is no pre-prompt; add a line for it to ")
    done = command("distill-safety", models.chat, path, *flags, "--skip-bad")
    assert (done.status, "skipped 2 bad records" in done.stderr) == (0, True)


# -- parts, pipes, and runs that are killed


@pytest.mark.parametrize("count", [2, 4])
def test_parts_make_up_the_whole(ask: Run, count: int) -> None:
    flags = ["--only-tagged", "--temperature", 1.2]
    whole, _ = ask(*flags, records=ASKED)
    parts = [ask(*flags, "--shard", f"{n}/{count}", records=ASKED)[0] for n in range(count)]
    assert sorted((one for part in parts for one in part), key=lambda one: one["id"]) == whole
    assert all(one["id"] % count == n for n, part in enumerate(parts) for one in part)
    assert ask(*flags, records=[*reversed(ASKED)])[0] == [*reversed(whole)]


def test_from_stdin_to_stdout(models: Models, ask: Run, llamactl: Command, tmp_path: Path) -> None:
    more = ["--seed", 3, "--temperature", 1, "--top-p", 1]
    kept, _ = ask(*more)
    assert kept
    flags = ["--safety", models.safe, "--templates", tmp_path / "t.jsonl", *SHORT, *more, "-q"]
    given = (tmp_path / "p.jsonl").read_text()
    piped = llamactl("distill-safety", models.chat, *flags, stdin=given, status=0)
    assert lines(piped.stdout) == kept
    arguments = ["distill-safety", models.chat, tmp_path / "p.jsonl", *flags]
    assert ended_without_a_reader([*map(str, arguments)]) == (141, b"")


@pytest.fixture(scope="module")
def undisturbed(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[object]]:
    """The command with all there is to it, and ``whole`` as what it makes."""
    place = tmp_path_factory.mktemp("undisturbed")
    prompts, wording = written(place / "prompts.jsonl", ASKED), written(place / "t.jsonl", WORDING)

    def asked(out: Path) -> list[object]:
        flags = ["--only-tagged", "--temperature", 1.1, "-o", out, "--report", out.with_name("report.json")]
        common = ["distill-safety", models.chat, prompts, "--safety", models.safe, "--templates", wording]
        return [*common, *SHORT, *flags]

    run(*asked(place / "whole" / "out.jsonl"), status=0)
    return asked


def numbers(out: Path) -> dict[str, Any]:
    made = manifest.load(manifest.beside(out))
    return {key: made[key] for key in ("done", "skipped", "noted", "report", "settings", "inputs")}


def same(out: Path, whole: Path) -> None:
    assert out.read_bytes() == whole.read_bytes()
    assert out.with_name("report.json").read_bytes() == whole.with_name("report.json").read_bytes()
    assert numbers(out) == numbers(whole)


@pytest.mark.parametrize(("moment", "count"), [("add", 1), ("add", 4), ("score", 2), ("sync", 1), ("rename", 2)])
def test_a_killed_run_goes_on_to_the_same_bytes(
    undisturbed: Callable[[Path], list[object]], tmp_path: Path, command: Run, moment: str, count: int
) -> None:
    asked, out = undisturbed(tmp_path / "out.jsonl"), tmp_path / "out.jsonl"
    whole = Path(str(asked[2])).with_name("whole") / "out.jsonl"
    assert struck(asked, moment, count) == -signal.SIGKILL
    assert not (tmp_path / "report.json").exists()
    again = command(*asked)
    assert again.status == 0, again.stderr
    if moment == "add" and count > 1:
        assert f"{out}: going on after {count - 1} records" in again.stderr
    same(out, whole)
    assert not list(tmp_path.glob(".*"))


def test_sigterm_is_75_and_two_processes_make_what_one_does(
    undisturbed: Callable[[Path], list[object]], tmp_path: Path
) -> None:
    asked, out = undisturbed(tmp_path / "out.jsonl"), tmp_path / "out.jsonl"
    assert struck(asked, "add", 3, signal.SIGTERM) == 75
    assert files.journal(out).exists()
    assert together(asked) == [0, 0]
    same(out, Path(str(asked[2])).with_name("whole") / "out.jsonl")


# -- what cannot be


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": turns("a", "b")}, "messages[1].role: is assistant: a prompt ends on a user turn"),
        ({"text": "a"}, "response or messages: missing"),
        ({"messages": turns("[INST]")}, "messages[0].content: holds [INST]"),
        ({"messages": turns("a"), "category": 3}, "category: expected `str | null`, got `int`"),
        (
            {"messages": turns("word " * 100)},
            "messages: is 316 tokens long, the context 96: no room for an answer",
        ),
        ({"messages": turns("word " * 20)}, " under its generic pre-prompt: messages: is "),
        ({"messages": turns("word " * 12)}, "no answer to it can be judged: the shortest is "),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_refused_before_anything_is_sampled(
    models: Models, tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch, record: Any, said: str
) -> None:
    narrow = fresh(Config(**{**SCORED.__dict__, "context": 48}), seed=2, kind=RewardModel)
    judge = model_written(narrow, tmp_path / "narrow", tokenizer=models.proto)
    path, wording = written(tmp_path / "p.jsonl", [ASKED[0], record]), written(tmp_path / "t.jsonl", WORDING)
    out = tmp_path / "out.jsonl"
    flags = ["--safety", judge, "--templates", wording, *SHORT, "-o", out, "-q"]
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "finished", lambda *_: pytest.fail("it has begun"))
        line = one_line(command("distill-safety", models.chat, path, *flags))
    assert line.startswith(f"{path}:2{'' if said.startswith(' ') else ': '}{said}")
    assert {one.name for one in tmp_path.iterdir()} == {"p.jsonl", "t.jsonl", "narrow"}
    done = command("distill-safety", models.chat, path, *flags, "--skip-bad")
    assert done.status == 0, done.stderr
    assert manifest.load(manifest.beside(out))["skipped"] == {"bad records": 1}


def test_a_record_that_passes_must_be_one_to_learn_from(models: Models, tmp_path: Path, command: Run) -> None:
    path = written(tmp_path / "p.jsonl", [{"messages": turns("a", " ")}])
    flags = ["--safety", models.safe, *SHORT, "-q", "--only-tagged"]
    line = one_line(command("distill-safety", models.chat, path, *flags))
    assert line.startswith(f"{path}:1: messages[1].content: is an answer without a text")


def test_a_reward_model_of_another_tokenizer_is_refused(models: Models, tmp_path: Path, command: Run) -> None:
    wide = fresh(Config(**{**SCORED.__dict__, "vocab": 513}), kind=RewardModel)
    other = model_written(wide, tmp_path / "other", tokenizer=with_pieces(models.proto, ["extra"]))
    path = written(tmp_path / "p.jsonl", TAGGED)
    line = one_line(command("distill-safety", models.chat, path, "--safety", other, *SHORT, "-q"))
    assert line.startswith(f"{other}: has another tokenizer than {models.chat}; llamactl rm-train makes one")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--safety", "nowhere"], "nowhere: no such directory"),
        (["--safety", "{chat}"], "chat: "),
        (["--safety", "{safe}", "--templates", "none.jsonl"], "none.jsonl: no such file"),
        (["--safety", "{safe}", "--report", "/"], "/: is a directory"),
        (["--safety", "{safe}", "--cache-memory", "1e-6"], "--cache-memory: "),
    ],
)
def test_what_is_asked_for_is_checked_first(
    models: Models, tmp_path: Path, command: Run, flags: list[str], said: str
) -> None:
    given = [flag.format(chat=models.chat, safe=models.safe) for flag in flags]
    path, wording = written(tmp_path / "p.jsonl", TAGGED), written(tmp_path / "t.jsonl", WORDING)
    templates = [] if "--templates" in given else ["--templates", wording]
    assert said in one_line(command("distill-safety", models.chat, path, *given, *templates, *SHORT, "-q"))
