"""The data doctor: what it counts, what it says would be refused, and its exit status."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import DATA, NO_UTF8, Command, turns, written

from llamactl.artifacts.jsonl import Found
from llamactl.artifacts.records import checked
from llamactl.errors import Fault
from llamactl.text import dialogue
from llamactl.text.survey import KINDS, Survey, rows
from llamactl.text.tokenizer import Tokenizer
from stages.validate import validate

U, A = "user", "assistant"
SYSTEM = {"role": "system", "content": "Be brief."}


def pair(prompt: str, chosen: str, rejected: str, **more: object) -> dict[str, Any]:
    answers = {name: [{"role": A, "content": text}] for name, text in (("chosen", chosen), ("rejected", rejected))}
    return {"prompt": turns(prompt), **answers, **more}


def surveyed(
    records: Sequence[dict[str, Any]], tokenizer: Tokenizer | None = None, context: int | None = None
) -> dict[str, Any]:
    survey = Survey(tokenizer, context, allow_tags=False)
    for number, raw in enumerate(records, 1):
        survey.add(Found(checked(raw, KINDS, f"a:{number}"), raw, f"a:{number}"))
    return survey.report({})


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_path)


# -- what is counted


def test_kinds_turns_and_what_is_odd_are_counted() -> None:
    report = surveyed([
        {"messages": turns("What is that?", "A cat.")},
        {"messages": turns("What is that?", "A cat.")},
        {"messages": turns("One", "Two", "Three")},
        {"messages": turns("One", "Two", " ", "Three"), "id": 7},
        {"messages": [{"role": U, "content": "<s> x"}, {"role": A, "content": "y", "weight": 0}], "id": 7},
        {"messages": turns("What?"), "response": "That."},
        {"text": "some text"},
        pair("What?", "yes", "no", rating="better"),
        pair("What?", "no", "yes", safety_label="both_safe"),
    ])  # fmt: skip
    assert report["records"] == 9
    assert report["kinds"] == {"dialogues": 4, "prompts": 1, "samples": 1, "documents": 1, "comparisons": 2}
    assert report["seen"] == {
        "duplicates": 1, "ids used before": 1, "empty turns": 1, "answers without loss (weight 0)": 1,
        "specials in a text (<s>, </s>, <unk>), which stay text": 1,
    }  # fmt: skip
    assert report["turns"] == {"mean": round(10 / 8, 2), "max": 2}
    assert (report["ratings"], report["safety_labels"]) == ({"better": 1, "none": 1}, {"none": 1, "both_safe": 1})
    assert report["refused"] == {"messages: holds no answer to learn from": {"records": 1, "first": "a:5"}}


def test_lengths_are_those_that_a_stage_sees(tokenizer: Tokenizer) -> None:
    records = [
        {"messages": turns("Hi", "Hello there", "And?", "No.")},
        {"text": "def f"},
        pair("Q", "a", "a longer answer"),
    ]
    report = surveyed(records, tokenizer)
    long = [checked(r, KINDS, "").messages for r in ({"messages": turns("Q", "a longer answer")}, records[0])]
    lengths = sorted([2 + len(tokenizer.encode("def f")), *(len(dialogue.encode(m, tokenizer).ids) for m in long)])
    assert report["unit"] == "tokens"
    assert (report["lengths"]["min"], report["lengths"]["median"], report["lengths"]["max"]) == tuple(lengths)
    assert report["total"] == sum(lengths)


def test_without_a_tokenizer_lengths_are_bytes() -> None:
    report = surveyed([{"text": "é" * 10}, {"messages": turns("ab", "c")}])
    assert (report["unit"], report["lengths"]["min"], report["lengths"]["max"]) == ("bytes", 3, 20)


def test_preference_data_has_the_columns_of_table_6() -> None:
    first = pair("12345", "123", "1", source="a")
    second = {**pair("", "1234", "12", source="a"), "prompt": turns("1", "22", "333")}
    third = pair("1", "2", "3")
    report = surveyed([first, second, third])
    assert report["preference"] == {
        "a": {"comparisons": 2, "turns": 1.5, "example": (7 + 9) / 2, "prompt": (5 + 2) / 2, "response": 2.5},
        "no source": {"comparisons": 1, "turns": 1.0, "example": 2.0, "prompt": 1.0, "response": 1.0},
    }


def test_languages_are_told_by_role() -> None:
    english, german = "What would you like to have for dinner tonight?", "Ich weiß es nicht, was meinst du denn dazu?"
    report = surveyed([{"messages": turns(english, german)}, {"messages": turns(english, "Ja.")}])
    assert report["languages"] == {U: {"en": 1.0}, A: {"de": 1.0}}  # "Ja." is too short to have one


# -- what would be refused


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": turns("Say [INST]", "x")}, "messages.content: holds [INST], which is the chat format's own"),
        ({"messages": turns("a", " ")}, "messages.content: is an answer without a text"),
        ({"messages": []}, "messages: is empty"),
        ({"messages": [*turns("a"), *turns("b")]}, "messages.role: is user, where assistant is due"),
        ({"messages": [*turns("a"), SYSTEM]}, "messages.role: is system, where assistant is due"),
        (pair("a", "b", "b "), "rejected: is the same as chosen"),
        (pair("a", "b", ""), "rejected.content: is an answer without a text"),
        ({**pair("a", "b", "c"), "prompt": turns("a", "b")}, "prompt.role: is assistant: a prompt ends on a user turn"),
        ({"messages": turns("a"), "safety": "true"}, "safety: expected `bool`, got `str`"),
        ({"text": ""}, "text: is empty"),
    ],
)  # fmt: skip
def test_what_a_stage_would_refuse_is_counted_by_reason(record: dict[str, Any], reason: str) -> None:
    good = {"messages": turns("q", "a")}
    assert surveyed([good, record, record])["refused"] == {reason: {"records": 2, "first": "a:2"}}


def test_a_record_longer_than_the_context_would_be_refused(tokenizer: Tokenizer) -> None:
    records = [{"text": "a"}, {"text": "word " * 50}]
    assert not surveyed(records, tokenizer, 1000)["refused"]
    assert surveyed(records, tokenizer, 20)["refused"] == {
        "is longer than the context, 20 tokens": {"records": 1, "first": "a:2"}
    }


def test_a_prompt_that_leaves_no_room_for_an_answer_would_be_refused(tokenizer: Tokenizer) -> None:
    prompt, talk = {"messages": turns("a word")}, {"messages": turns("a word", "b")}
    full = surveyed([prompt], tokenizer)["total"]
    assert not surveyed([prompt], tokenizer, full + 1)["refused"]
    reason = f"fills the context, {full} tokens: no room for an answer"
    assert surveyed([prompt], tokenizer, full)["refused"] == {reason: {"records": 1, "first": "a:1"}}
    assert not surveyed([talk], tokenizer, surveyed([talk], tokenizer)["total"])["refused"]


def test_a_chosen_answer_less_safe_than_the_other_is_refused(tmp_path: Path, llamactl: Command) -> None:
    path = written(tmp_path / "p.jsonl", [pair("a", "b", "c"), pair("a", "b", "c", safety_label="rejected_safe")])
    done = llamactl("validate", path, "--json", status=1)
    reason, found = next(iter(json.loads(done.stdout)["refused"].items()))
    assert reason.startswith("safety_label: 'rejected_safe' says that the chosen answer is unsafe and the other safe")
    assert found == {"records": 1, "first": f"{path}:2"}


# -- the command


def test_the_table_and_the_exit_status(tmp_path: Path, llamactl: Command, tokenizer_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    good = json.dumps({"messages": turns("What?", "That.")})
    path.write_text(f"{good}\n{{broken\n{good}\n")
    done = llamactl("validate", path, "--tokenizer", tokenizer_path, status=1)
    assert done.stdout == ""
    said = [" ".join(line.split()) for line in done.stderr.splitlines()]
    assert "records 3: 2 dialogues" in said
    assert "would be refused 1" in said
    assert any(line.startswith("is no JSON") and line.endswith(f"1, first {path}:2") for line in said)
    assert said[-1] == f"llamactl: {path}: 1 records would be refused; mend them, or --skip-bad"
    path.write_text(good)
    assert llamactl("validate", path, "-q", status=0).stderr == ""


def test_prompts_that_a_held_out_file_has_too(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    train = written(tmp_path / "train.jsonl", [{"messages": turns(q, "a")} for q in ("one", "two ", "three")])
    test = written(tmp_path / "test.jsonl", [{"messages": turns(q)} for q in ("two", "three", "four")])
    validate([str(train)], held_out=[str(test)], json=True)
    assert json.loads(capsysbinary.readouterr().out)["shared_prompts"] == {str(test): 2}


def test_a_name_that_is_not_utf_8(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    path = str(written(tmp_path / NO_UTF8, [{"text": "a"}, {"text": ""}]))
    with pytest.raises(Fault):
        validate([path], held_out=[path], json=True)
    report, spelled = json.loads(capsysbinary.readouterr().out), f"{tmp_path}/caf\\xe9"
    assert report["file"] == spelled
    assert report["refused"]["text: is empty"]["first"] == f"{spelled}:2"
    assert report["shared_prompts"] == {spelled: 0}


@pytest.mark.parametrize("content", ['[\n {"instruction": "a", "output": "b"}\n]', "goal,target\na,b\n", '{"goal": 1}'])
def test_a_foreign_file_is_told_from_a_bad_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(Fault, match=f"llamactl convert {path} --to comparisons|prompts|dialogues|documents makes ours"):
        validate([str(path)])


def test_a_report_says_all_it_has() -> None:
    """Each part of the JSON is in the words too."""
    report = surveyed([pair("a", "b", "c", rating="better", safety_label="both_safe"), {"text": "<s>"}, {"text": ""}])
    said = str(rows({**report, "shared_prompts": {"other.jsonl": 3}}))
    for word in ("comparisons", "documents", "is empty", "median", "better", "both_safe", "specials", "other.jsonl"):
        assert word in said


@pytest.mark.shared
@pytest.mark.skipif(not DATA.exists(), reason="the development data is not beside the checkout")
def test_real_preferences_look_as_in_the_paper(tmp_path: Path, llamactl: Command) -> None:
    """Table 6 has 3.0 turns a dialogue for Anthropic's helpful data, and prompts a fifth as long as responses."""
    path = tmp_path / "hh.jsonl"
    source = DATA / "preference" / "hh-rlhf" / "helpful-base" / "test.jsonl.gz"
    llamactl("convert", source, "--to", "comparisons", "--source", "hh", "-o", path, status=0)
    row = json.loads(llamactl("validate", path, "--json", status=0).stdout)["preference"]["hh"]
    assert row["comparisons"] == 1788
    assert 2 < row["turns"] < 3
    assert row["prompt"] < row["response"] / 2
