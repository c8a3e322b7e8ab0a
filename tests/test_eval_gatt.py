"""Instructions kept, or not, turn by turn: conversations whose answers are written by hand, and the command."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import turns, written
from typer.testing import CliRunner

from llamactl.align import gatt as synthesis
from llamactl.artifacts import jsonl, manifest
from llamactl.artifacts.records import Dialogue, Message
from llamactl.artifacts.run import Run
from llamactl.cli import app
from llamactl.evals import gatt
from llamactl.evals.gatt import FULL, SEEN, TURNS, UNSEEN, Conversation, Wish, cases, continued, measured
from llamactl.evals.gatt_tables import tables
from llamactl.evals.keeping import judge
from llamactl.evals.reward import Measurement
from llamactl.text import constraints, dialogue
from llamactl.text.constraints import Constraint
from llamactl.text.tokenizer import Tokenizer

torch.set_num_threads(1)

CAPITALS = Constraint.of({"kind": "format", "name": "capitals"}, "here")
FRENCH = Constraint.of({"kind": "language", "name": "French"}, "here")
INDEED = Constraint.of({"kind": "format", "name": "last word: indeed"}, "here")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_path)


def wish(constraint: Constraint, part: str = SEEN) -> Wish:
    found = judge(constraint)
    assert found
    return Wish(constraint, found, part)


def talk(*contents: str, system: str = "") -> Dialogue:
    own = [{"role": "system", "content": system}] if system else []
    return Dialogue(messages=[Message(**one) for one in (*own, *turns(*contents))])


def held(case: gatt.Case, tokenizer: Tokenizer, *answers: str, context: int = 1000) -> Conversation:
    """A conversation with these answers, each ended by the model."""
    one = Conversation(case, tokenizer, context)
    for answer in answers:
        one.hears(tokenizer.encode(answer), True)
    return one


# -- what is asked


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("own", ["", "Be brief."])
def test_the_instruction_stands_where_gatt_synth_puts_it(tokenizer: Tokenizer, system: bool, own: str) -> None:
    given = talk("Hello.", "Hi.", "And?", system=own)
    (case,) = cases([given], [wish(CAPITALS)], 2, system, 0)
    raw = {"messages": [{"role": one.role, "content": one.content} for one in given.messages]}
    how = synthesis.How(tokenizer, 1000, system=system)
    play = synthesis.Play(jsonl.Found(given, raw, "here:1"), case.instruction, how)
    for _ in range(2):
        play.hears(tokenizer.encode("YES."), True)
    record = play.record
    assert record
    learned = [(one["role"], one["content"]) for one in record["messages"]]
    one = held(case, tokenizer, "YES.", "YES.")
    assert [(message.role, message.content) for message in one.messages] == learned
    assert one.verdicts == [True, True]


def test_each_dialogue_goes_with_each_constraint_long_or_terse_by_the_seed() -> None:
    dialogues = [talk(f"Question {n}") for n in range(40)]
    wishes = [wish(CAPITALS), wish(INDEED, UNSEEN)]
    found = cases(dialogues, wishes, 1, False, 0)
    assert [(one.part, one.instruction.constraints[0].name) for one in found[:2]] == [
        (SEEN, "capitals"), (UNSEEN, "last word: indeed"),
    ]  # fmt: skip
    assert len({one.key for one in found}) == 40 and len(found) == 80
    terse = sum(one.instruction.terse for one in found)
    assert 25 < terse < 55
    assert {one.instruction.text for one in found if one.part == SEEN} == {CAPITALS.long, CAPITALS.terse}
    alone = cases(dialogues[7:8], wishes[1:], 1, False, 0)
    assert alone[0].instruction == found[15].instruction  # whatever else is asked
    assert [one.instruction.terse for one in cases(dialogues, wishes, 1, False, 1)] != [
        one.instruction.terse for one in found
    ]


def test_where_messages_of_the_user_run_out_those_of_the_next_dialogues_follow() -> None:
    users = [["a", "b"], ["c"], ["d", "e", "f"]]
    assert continued(users, 0, 5) == ["a", "b", "c", "d", "e"]
    assert continued(users, 2, 2) == ["d", "e"]
    assert continued(users, 2, 8) == ["d", "e", "f", "a", "b", "c", "d", "e"]
    assert continued([["a"]], 0, 3) == ["a", "a", "a"]


# -- how it goes


def test_a_conversation_is_asked_as_the_chat_format_has_it_and_ends_after_its_turns(tokenizer: Tokenizer) -> None:
    (case,) = cases([talk("Hello.", "Hi.", "And?", "So.")], [wish(CAPITALS)], 2, False, 0)
    one = Conversation(case, tokenizer, 1000)
    asked = [Message(role="user", content=f"{case.instruction.text}\n\nHello.")]
    assert one.asks == dialogue.encode(asked, tokenizer).ids
    one.hears(tokenizer.encode(" YES. "), True)
    asked += [Message(role="assistant", content="YES."), Message(role="user", content="And?")]
    assert one.asks == dialogue.encode(asked, tokenizer).ids
    one.hears(tokenizer.encode("no"), False)
    assert (one.asks, one.ended, one.verdicts, one.cut) == (None, TURNS, [True, False], 1)
    assert gatt.endings([one]) == {"answers cut off at --max-new-tokens, judged as they are": 1}


def test_an_answer_that_the_context_cuts_off_does_not_count(tokenizer: Tokenizer) -> None:
    """Nor does what would come after it; one that ends with the last token of the context does."""
    (case,) = cases([talk("Hello.", "Hi.", "And?")], [wish(CAPITALS)], 3, False, 0)
    answer = tokenizer.encode("YES")
    for beyond, verdicts in ((-1, []), (0, []), (1, [True])):
        one = Conversation(case, tokenizer, 1000)
        assert one.asks
        one = Conversation(case, tokenizer, len(one.asks) + len(answer) + beyond)
        one.hears(answer[: len(answer) + min(0, beyond)], False)
        assert (one.verdicts, one.ended, one.asks) == (verdicts, FULL, None)
        assert [message.role for message in one.messages] == ["user", "assistant"][: 1 + len(verdicts)]
    whole = Conversation(case, tokenizer, len(Conversation(case, tokenizer, 1000).asks or []) + len(answer))
    whole.hears(answer, True)
    assert (whole.verdicts, whole.ended) == ([True], FULL)  # for the next message there is no room


def test_a_first_message_that_fills_the_context_is_a_conversation_without_an_answer(tokenizer: Tokenizer) -> None:
    (case,) = cases([talk("Hello. " * 40)], [wish(CAPITALS)], 3, False, 0)
    one = Conversation(case, tokenizer, 30)
    assert (one.asks, one.ended, one.verdicts) == (None, FULL, [])
    assert gatt.endings([one])["conversations without a single answer that is whole"] == 1
    ids, beyond = one.ids()
    assert len(ids) == 30 and beyond > 0


# -- shares


def found(measurements: Sequence[Measurement], metric: str, **group: str) -> Measurement:
    (one,) = [one for one in measurements if one.metric == metric and one.group == group]
    return one


def test_shares_by_hand(tokenizer: Tokenizer) -> None:
    """Three dialogues in capitals, of which one comes to the second turn alone; one in French, unseen."""
    dialogues = [talk("a", "b", "c"), talk("d", "e", "f"), talk("g", "h", "i")]
    first, second, third = cases(dialogues, [wish(CAPITALS)], 3, False, 0)
    (french,) = cases(dialogues[:1], [wish(FRENCH, UNSEEN)], 3, False, 0)
    talks = [
        held(first, tokenizer, "YES", "YES", "no"),
        held(second, tokenizer, "YES", "no", "no"),
        held(third, tokenizer, "YES", "YES"),
        held(french, tokenizer, "Bonjour, je suis très heureux de vous parler.", "Oui.", "I do not know at all, sir."),
    ]
    by = list(measured(talks, 0))
    seen, unseen = {"constraints": SEEN}, {"constraints": UNSEEN}
    values = {
        turn: (one.value, one.n) for turn in ("1", "2", "3", "2+") for one in [found(by, "kept", **seen, turn=turn)]
    }
    assert values == {"1": (1, 3), "2": (pytest.approx(2 / 3), 3), "3": (0, 2), "2+": (pytest.approx(2 / 5), 5)}
    assert [found(by, "reached", **seen, turn=turn).value for turn in "123"] == [1, 1, pytest.approx(2 / 3)]
    assert found(by, "reached", **seen, turn="3").n == 3
    assert not [one for one in by if one.metric == "unjudged" and one.group and one.group["constraints"] == SEEN]
    # of French the second answer is too short to be judged
    assert [one.group["turn"] for one in by if one.metric == "kept" and one.group and len(one.group) == 2
            and one.group["constraints"] == UNSEEN] == ["1", "3", "2+"]  # fmt: skip
    assert (found(by, "kept", **unseen, turn="2+").value, found(by, "kept", **unseen, turn="2+").n) == (0, 1)
    assert [found(by, "unjudged", **unseen, turn=turn).value for turn in ("1", "2", "3", "2+")] == [0, 1, 0, 0.5]
    low, high = found(by, "kept", **seen, turn="2").interval or (1, 0)
    assert low == 0 and high == 1  # three dialogues say little
    one = found(by, "kept", **unseen, constraint="language: French", turn="2+")
    assert (one.value, one.n, one.interval) == (0, 1, None)
    assert gatt.endings(talks)["answers that cannot be judged"] == 1


def test_kinds_are_apart_where_there_are_several(tokenizer: Tokenizer) -> None:
    both = cases([talk("a", "b")], [wish(CAPITALS), wish(FRENCH)], 1, False, 0)
    by = list(measured([held(both[0], tokenizer, "YES"), held(both[1], tokenizer, "Je ne sais pas du tout.")], 0))
    assert found(by, "kept", constraints=SEEN, turn="1").n == 2
    assert [found(by, "kept", constraints=SEEN, turn="1", kind=kind).n for kind in ("format", "language")] == [1, 1]
    assert not [one for one in by if one.group and one.group["turn"] == "2+"]  # there is one turn only


def test_constraints_of_one_dialogue_are_drawn_together(tokenizer: Tokenizer) -> None:
    """Two conversations of each of 30 dialogues, with one outcome, tell no more than one."""
    dialogues = [talk(f"a{n}", "b") for n in range(30)]
    every = cases(dialogues, [wish(CAPITALS), wish(INDEED)], 1, False, 0)
    two = [held(case, tokenizer, "INDEED" if n // 2 % 3 else "no") for n, case in enumerate(every)]
    pair, alone = (next(iter(measured(some, 0))) for some in (two, two[::2]))
    assert (pair.value, pair.n) == (alone.value, 60)
    assert pair.stderr == pytest.approx(alone.stderr)


def test_the_table_has_the_papers_numbers_at_the_papers_turns() -> None:
    def kept(turn: str, value: float, part: str = SEEN) -> Measurement:
        return Measurement("kept", value, 8, 0.1, (value / 2, value), {"constraints": part, "turn": turn})

    by_turn = [kept(str(turn), 1 / turn) for turn in (*range(1, 24), 30)] + [kept("2+", 0.2)]
    (title, rows, header), unseen = tables({"a": by_turn, "b": [*by_turn[:3], kept("1", 0.5, UNSEEN)]})
    assert "Table 30" in title
    assert header == ("turn", "a", "b", "paper: without GAtt", "paper: with GAtt")
    assert [row[0] for row in rows] == ["1", *map(str, range(2, 21, 2)), "30", "2+"]
    assert rows[1] == ("2", "50.0 (25 to 50) of 8", "50.0 (25 to 50) of 8", "100", "100")
    assert rows[2] == ("4", "25.0 (12 to 25) of 8", "-", "10", "100")
    assert rows[10][3:] == ("0", "100") and rows[4][3:] == ("-", "-")
    assert unseen.rows == [("1", "-", "50.0 (25 to 50) of 8")]
    assert "paper: with GAtt" not in unseen.header


# -- the command

DIALOGUES = [
    {"id": 7, "messages": turns("What is a heap?", "A tree.", "Why?", "So.")},
    {"messages": [{"role": "system", "content": "Be brief."}, *turns("How do I sort a list?", "sorted()")]},
    {"messages": turns("Say it again.")},
]
WISHES = [{"kind": "format", "name": "lower case"}, {"kind": "language", "name": "French"}]


def evaluate(*arguments: object, status: int = 0, stdin: str | None = None) -> Any:
    result = CliRunner().invoke(app, ["eval", "gatt", *map(str, arguments)], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.stderr
    return result


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def given(tmp_path: Path) -> list[object]:
    data, seen = written(tmp_path / "d.jsonl", DIALOGUES), written(tmp_path / "c.jsonl", WISHES)
    return ["--data", data, "--constraints", seen, "--max-new-tokens", 6, "--turns", 3]


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory, shards_dir: Path) -> Path:
    """A second model, of a longer context."""
    path = tmp_path_factory.mktemp("other") / "other"
    arguments = ["--size", "tiny", "--precision", "fp32", "--data", shards_dir, "--steps", 2, "--context", 200]
    done = CliRunner().invoke(app, ["pretrain", *map(str, arguments), "--batch-size", "2", "-o", str(path)])
    assert done.exit_code == 0, done.stderr
    return path


def test_scores_follow_from_the_conversations(
    base_model: Path, other_model: Path, given: list[object], tmp_path: Path
) -> None:
    """Two models: what is written of their conversations gives what is counted, and every answer is the model's own."""
    samples, unseen = tmp_path / "s.jsonl", written(tmp_path / "u.jsonl", [{"kind": "format", "name": "capitals"}])
    done = evaluate(base_model, other_model, *given, "--unseen", unseen, "--samples", samples, "--seed", 3)
    scores, talks = lines(done.stdout), lines(samples.read_text())
    assert len(talks) == 2 * 3 * 3
    assert {one["model"] for one in scores} == {str(base_model), str(other_model)}
    assert {one["task"] for one in scores} == {"gatt"} and len({one["prompt_sha256"] for one in scores}) == 1
    assert "greedy, at most 6 new tokens, until turn 3 or the context is full" in scores[0]["scoring"]
    for model in (base_model, other_model):
        for part in ("seen", "unseen"):
            mine = [one for one in talks if one["model"] == str(model) and one["gatt"]["part"] == part]
            for turn in (1, 2, 3):
                verdicts = [v for one in mine for v in one["gatt"]["kept"][turn - 1 : turn]]
                group = {"constraints": part, "turn": str(turn)}
                some = {one["metric"]: one for one in scores if one["group"] == group and one["model"] == str(model)}
                judged = [v for v in verdicts if v is not None]
                if judged:
                    assert (some["kept"]["value"], some["kept"]["n"]) == (sum(judged) / len(judged), len(judged))
                else:
                    assert "kept" not in some
                assert some["reached"]["value"] == pytest.approx(len(verdicts) / len(mine))
                if None in verdicts:
                    assert some["unjudged"]["value"] == pytest.approx(verdicts.count(None) / len(verdicts))
    assert "3 dialogues with fewer turns, which went on with the user's messages of the next ones" in done.stderr
    assert "Table 30" in done.stderr and "format: capitals (unseen)" in done.stderr
    for one in talks:
        answers = [m["content"] for m in one["messages"] if m["role"] == "assistant"]
        (named,) = one["gatt"]["constraints"]
        found_judge = judge(Constraint.of(named, "here"))
        assert found_judge
        assert one["gatt"]["kept"] == [False if not text else found_judge(text) for text in answers]
        users = [m["content"] for m in one["messages"] if m["role"] == "user"]
        assert users[0].startswith(one["gatt"]["instruction"])
        assert not any(one["gatt"]["instruction"] in text for text in users[1:])
    (first,) = [one for one in talks if one.get("id") == 7 and one["model"] == str(base_model)
                and one["gatt"]["constraints"] == [WISHES[0]]]  # fmt: skip
    prompt = written(tmp_path / "p.jsonl", [{"messages": first["messages"][:3]}])
    made = CliRunner().invoke(
        app, ["generate", str(base_model), str(prompt), "--temperature", "0", "--max-new-tokens", "6", "--seed", "3"]
    )
    assert json.loads(made.stdout)["response"] == first["messages"][3]["content"]


def test_the_same_command_gives_the_same_and_models_do_not_matter_to_each_other(
    base_model: Path, other_model: Path, given: list[object]
) -> None:
    flags = [*given, "--temperature", "1.2"]
    both = lines(evaluate(base_model, other_model, *flags).stdout)
    assert both == lines(evaluate(base_model, other_model, *flags).stdout)
    alone = [one for model in (base_model, other_model) for one in lines(evaluate(model, *flags).stdout)]
    assert both == alone


def test_dialogues_from_stdin_and_the_programs_own_constraints(base_model: Path) -> None:
    text = json.dumps(DIALOGUES[2]) + "\n"
    done = evaluate(base_model, "--turns", 1, "--max-new-tokens", 2, stdin=text)
    names = {one["group"]["constraints"] for one in lines(done.stdout)}
    hobbies = {"constraints": "seen", "turn": "1", "kind": "hobby"}
    (kept,) = [one for one in lines(done.stdout) if one["group"] == hobbies and one["metric"] == "kept"]
    assert "constraints of ours: --constraints names a file of others" in done.stderr
    assert names == {"seen"} and kept["n"] == len(constraints.OURS["hobby"])


def test_attention_and_its_figure(base_model: Path, other_model: Path, given: list[object], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data, figure = tmp_path / "attention.json", tmp_path / "gatt.png"
    flags = [*given, "--place", "system", "--attention", data, "--plot", figure]
    scores = lines(evaluate(base_model, other_model, *flags).stdout)
    drawn, first = json.loads(data.read_text()), figure.read_bytes()
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    assert drawn["conversations"] == 6 and [one["name"] for one in drawn["models"]] == ["base", "other"]
    for one, model in zip(drawn["models"], (base_model, other_model), strict=True):
        mine = [score for score in scores if score["metric"] == "attention" and score["model"] == str(model)]
        (whole,) = [score for score in mine if "group" not in score]
        assert whole["bins"] == one["curve"]
        assert 0 < whole["value"] <= 1
        assert whole["n"] == sum(part["n"] for part in one["curve"]) == sum(part["n"] for part in one["turns"])
        assert {score["group"]["turn"]: score["value"] for score in mine if "group" in score} == {
            str(part["turn"]): part["attention"] for part in one["turns"]
        }
        assert one["map"]["width"] == 4  # 200 tokens in 64 bins, for both
        rows = one["map"]["rows"]
        assert {len(row) for row in rows} == {one["map"]["own"] + len(rows)}
        assert all(not any(row[one["map"]["own"] + at + 1 :]) for at, row in enumerate(rows))  # nothing of the future
        assert one["mapped"]["messages"][0]["content"].endswith(one["mapped"]["gatt"]["instruction"])
    evaluate(base_model, other_model, *flags, "--overwrite")
    assert figure.read_bytes() == first
    short = evaluate(base_model, *given, "--turns", 1, "--max-new-tokens", 1, "--attention", data, "--overwrite").stderr
    assert "user's messages of the next ones" not in short and "beyond the context" not in short
    evaluate(base_model, *given, "--plot", tmp_path / "gatt.svg")
    assert (tmp_path / "gatt.svg").read_text().startswith("<?xml")


def test_a_file_of_scores_is_made_once(base_model: Path, given: list[object], tmp_path: Path) -> None:
    out, samples = tmp_path / "scores.jsonl", tmp_path / "s.jsonl"
    evaluate(base_model, *given, "-o", out)
    assert out.read_text() == evaluate(base_model, *given).stdout
    facts = manifest.load(manifest.beside(out))
    assert facts["stage"] == "eval gatt" and facts["done"]["answers"] > 0
    assert [one["as"] for one in facts["inputs"]] == ["models", "data", "constraints"]
    assert "already made" in evaluate(base_model, *given, "-o", out).stderr
    refused = evaluate(base_model, *given, "-o", out, "--samples", samples, status=1).stderr
    assert f"{samples}: is not there, and {out} was made without it; --overwrite" in refused
    assert "with turns 3, not 2" in evaluate(base_model, *given, "-o", out, "--turns", 2, status=1).stderr


def test_conversations_replace_nothing_unasked(base_model: Path, given: list[object], tmp_path: Path) -> None:
    out, samples, data = tmp_path / "scores.jsonl", tmp_path / "s.jsonl", Path(str(given[1]))
    read = data.read_bytes()
    for flags, said in (
        (["--samples", data], "d.jsonl: is read by this command, which would replace it; name another --samples"),
        (["--samples", out, "-o", out], "--samples: {} is what -o writes"),
        (["--samples", samples, "--attention", samples], "--attention: {} is what --samples writes"),
        (["--samples", "-"], "--samples: - is stdout, where the result goes"),
    ):
        refused = evaluate(base_model, *given, *flags, "--overwrite", status=2).stderr
        assert said.format(flags[1]) in refused
    assert data.read_bytes() == read
    assert not out.exists() and not samples.exists()
    samples.write_text("precious")
    flags = [*given, "-o", out, "--samples", samples]
    assert "s.jsonl: exists; --overwrite" in evaluate(base_model, *flags, status=1).stderr
    assert samples.read_text() == "precious"
    evaluate(base_model, *flags, "--overwrite")
    assert lines(samples.read_text())
    before = samples.stat()
    assert "already made" in evaluate(base_model, *flags).stderr
    assert samples.stat() == before


def test_a_run_that_ended_early_has_left_nothing_in_its_way(
    base_model: Path, given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*given, "-o", tmp_path / "scores.jsonl", "--samples", tmp_path / "s.jsonl"]
    with monkeypatch.context() as broken:
        broken.setattr(Run, "records", struck)
        with pytest.raises(KeyError):
            evaluate(base_model, *flags)
    evaluate(base_model, *flags)


def struck(_: Run) -> None:
    raise KeyError


# -- what cannot be used


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": turns("Say [INST]")}, "messages[0].content: holds [INST], which is the chat format's own"),
        ({"messages": []}, "messages: is empty"),
        ({"text": "a"}, "messages: missing (the record has: text)"),
        (
            {"messages": turns("a", "b"), "gatt": {"instruction": "Be."}},
            "gatt: was made by gatt-synth: it holds an instruction already; give the dialogues that it was made from",
        ),
    ],
)
def test_a_bad_dialogue_is_one_line(base_model: Path, given: list[object], record: dict[str, Any], said: str) -> None:
    data = written(Path(str(given[1])), [*DIALOGUES, record])
    refused = evaluate(base_model, *given, status=1)
    assert refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"llamactl: {data}:4: {said}")
    done = evaluate(base_model, *given, "--skip-bad")
    assert "eval gatt: skipped 1 bad records" in done.stderr
    assert max(one["n"] for one in lines(done.stdout) if one["metric"] == "reached") == 6


def test_a_constraint_that_cannot_be_judged_is_refused_or_left_out(
    base_model: Path, given: list[object], tmp_path: Path
) -> None:
    haiku = {"kind": "format", "name": "haiku", "long": "Always answer with Haiku.", "terse": "Haiku."}
    unseen = written(tmp_path / "u.jsonl", [haiku, {"kind": "format", "name": "json"}])
    problem = f"{unseen}: has the format haiku, of which no program here can tell whether it is kept"
    refused = evaluate(base_model, *given, "--unseen", unseen, status=1)
    assert (refused.stdout, refused.stderr) == (
        "", f"llamactl: {problem}; mend it, or leave it out with --skip-bad\n",
    )  # fmt: skip
    done = evaluate(base_model, *given, "--unseen", unseen, "--skip-bad")
    assert f"skipped {problem}" in done.stderr
    named = {one["group"]["constraint"] for one in lines(done.stdout) if "constraint" in one["group"]}
    assert named <= {"format: lower case", "language: French", "format: json"} and "format: json" in named


def test_what_is_asked_for_wrongly_is_one_line(
    base_model: Path, given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*flags: object) -> str:
        refused = evaluate(base_model, *given, *flags, status=1)
        assert refused.stdout == ""
        (line,) = refused.stderr.splitlines()
        return str(line).removeprefix("llamactl: ")

    both = written(tmp_path / "u.jsonl", WISHES[1:])
    assert said("--unseen", both) == (
        f"{both}: has the language French, which is among those seen; leave it out of one of them"
    )
    assert said(base_model) == f"{base_model}: is given twice; name each model once"
    pytest.importorskip("matplotlib")
    assert said("--plot", tmp_path / "a.gif").endswith("a.gif: has a name that is of none of png, svg; name it a.png")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    missing = "--plot: needs matplotlib, which is not installed; pip install 'llamactl[plot]'"
    assert said("--plot", tmp_path / "a.png") == missing


def test_nothing_to_measure(base_model: Path, given: list[object]) -> None:
    data = written(Path(str(given[1])), [{"messages": []}])
    refused = evaluate(base_model, *given, "--skip-bad", status=1)
    said = f"llamactl: {data}: leaves nothing to measure; look at what was skipped"
    assert refused.stdout == "" and refused.stderr.splitlines()[-1] == said
