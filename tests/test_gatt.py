"""Ghost Attention on dialogues worked by hand: what is asked, what is written, where a dialogue ends."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import turns

from llamactl.align import gatt
from llamactl.align.gatt import FOLLOW_UP, How, Play
from llamactl.artifacts import jsonl
from llamactl.artifacts.records import Dialogue, Message, Sample
from llamactl.errors import Fault
from llamactl.text import constraints, dialogue
from llamactl.text.constraints import Constraint, Instruction
from llamactl.text.tokenizer import BOS, Tokenizer

NAPOLEON = Constraint.of({"kind": "figure", "name": "Napoleon"}, "x:1")
ACT = Instruction((NAPOLEON,), "Figure: Napoleon.", True)
MADE = {"instruction": "Figure: Napoleon.", "terse": True, "constraints": [{"kind": "figure", "name": "Napoleon"}]}
MADE |= {"place": "user", "earlier": "sampled", "played": 0, "ended": None}
ROME: dict[str, Any] = {"messages": turns("Where is Rome?", "Italy.", "And Nice?", "France."), "id": 7, "note": ["é"]}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_path)


@pytest.fixture
def how(tokenizer: Tokenizer) -> How:
    return How(tokenizer, context=1000)


def found(raw: dict[str, Any]) -> jsonl.Found[Dialogue]:
    return jsonl.Found(jsonl.checked(raw, (Sample, Dialogue), "d:1"), raw, "d:1")


def ids_of(how: How, *messages: dict[str, Any]) -> list[int]:
    return dialogue.encode([Message(role=m["role"], content=m["content"]) for m in messages], how.tokenizer).ids


def says(play: Play, text: str, stopped: bool = True) -> None:
    play.hears(play.how.tokenizer.encode(text), stopped)


def test_sampled_the_instruction_is_in_every_message_of_the_user(how: How) -> None:
    play = Play(found(ROME), ACT, how)
    first = {"role": "user", "content": "Figure: Napoleon.\n\nWhere is Rome?"}
    assert play.asks == ids_of(how, first)
    says(play, "In my empire.")
    second = {"role": "user", "content": "Figure: Napoleon.\n\nAnd Nice?"}
    assert play.asks == ids_of(how, first, {"role": "assistant", "content": "In my empire."}, second)
    says(play, "Mine, too.")
    assert play.asks is None


def test_written_it_is_in_the_first_turn_and_the_last_answer_alone_carries_loss(how: How) -> None:
    play = Play(found(ROME), ACT, how)
    says(play, "In my empire.")
    says(play, "Mine, too.")
    assert play.record == {
        "messages": [
            {"role": "user", "content": "Figure: Napoleon.\n\nWhere is Rome?"},
            {"role": "assistant", "content": "In my empire.", "weight": 0},
            {"role": "user", "content": "And Nice?"},
            {"role": "assistant", "content": "Mine, too."},
        ],
        "id": 7,
        "note": ["é"],
        "gatt": {**MADE, "turns": 2},
    }
    assert play.ended == ""
    assert play.noted == {}
    spoken = len(how.tokenizer.encode("In my empire.")) + len(how.tokenizer.encode("Mine, too."))
    assert play.done == {"dialogues": 1, "turns": 2, "samples": 2, "tokens": spoken}


def test_of_what_is_written_the_last_answer_and_its_end_are_learned(how: How) -> None:
    play = Play(found(ROME), ACT, how)
    says(play, "In my empire.")
    says(play, "Mine, too.")
    assert play.record is not None
    ids, loss = dialogue.encode(jsonl.checked(play.record, (Dialogue,), "x").messages, how.tokenizer)
    learned = [one for one, carries in zip(ids, loss, strict=True) if carries]
    assert how.tokenizer.decode(learned[:-1]).strip() == "Mine, too."
    assert loss == [False] * (len(ids) - len(learned)) + [True] * len(learned)


def test_the_instruction_as_a_system_message(how: How) -> None:
    play = Play(found({"messages": turns("Where?", "Here.")}), ACT, how._replace(system=True))
    assert play.asks == ids_of(how, {"role": "user", "content": "Figure: Napoleon.\n\nWhere?"})
    says(play, "There.")
    assert play.record is not None
    assert play.record["messages"] == [
        {"role": "system", "content": "Figure: Napoleon."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "There."},
    ]
    assert play.record["gatt"]["place"] == "system"


@pytest.mark.parametrize("system", [False, True])
def test_a_system_message_is_kept(how: How, system: bool) -> None:
    own = {"role": "system", "content": "Be kind.", "name": "s"}
    play = Play(found({"messages": [own, *turns("Where?", "Here.")]}), ACT, how._replace(system=system))
    assert play.asks == ids_of(how, own, {"role": "user", "content": "Figure: Napoleon.\n\nWhere?"})
    says(play, "There.")
    assert play.record is not None
    assert [one["content"] for one in play.record["messages"]] == (
        ["Be kind.\n\nFigure: Napoleon.", "Where?", "There."]
        if system
        else ["Be kind.", "Figure: Napoleon.\n\nWhere?", "There."]
    )
    assert play.record["messages"][0]["name"] == "s"


def test_earlier_answers_that_are_given(how: How) -> None:
    """Only the last is sampled, with the instruction in every message of the user before it."""
    raw = {"messages": turns("a?", "A.", "b?", "B.", "c?")}
    raw["messages"][1]["weight"] = 1
    play = Play(found(raw), ACT, how._replace(given=True))
    users = [{"role": "user", "content": f"Figure: Napoleon.\n\n{letter}?"} for letter in "abc"]
    assert play.asks == ids_of(how, users[0], raw["messages"][1], users[1], raw["messages"][3], users[2])
    says(play, "C!")
    assert play.asks is None
    assert play.record is not None
    assert play.record["messages"] == [
        users[0],
        {"role": "assistant", "content": "A.", "weight": 0},
        {"role": "user", "content": "b?"},
        {"role": "assistant", "content": "B.", "weight": 0},
        {"role": "user", "content": "c?"},
        {"role": "assistant", "content": "C!"},
    ]
    assert play.record["gatt"] == {**MADE, "earlier": "given", "turns": 3}


@pytest.mark.parametrize(("text", "stopped", "why"), [("", True, gatt.EMPTY), ("C", False, gatt.CUT)])
def test_given_a_turn_that_fails_is_left_off_and_the_one_before_is_the_last(
    how: How, text: str, stopped: bool, why: str
) -> None:
    play = Play(found({"messages": turns("a?", "A.", "b?", "B.", "c?")}), ACT, how._replace(given=True))
    says(play, text, stopped)
    users = [{"role": "user", "content": f"Figure: Napoleon.\n\n{letter}?"} for letter in "ab"]
    assert play.asks == ids_of(how, users[0], {"role": "assistant", "content": "A."}, users[1])
    says(play, "B!")
    assert play.asks is None
    assert play.record is not None
    assert [one["content"] for one in play.record["messages"]] == [users[0]["content"], "A.", "b?", "B!"]
    assert play.record["gatt"]["ended"] == why
    assert play.noted == {f"dialogues that end early ({why})": 1}


def test_given_nothing_is_left_where_all_turns_fail(how: How) -> None:
    play = Play(found({"messages": turns("a?", "A.", "b?")}), ACT, how._replace(given=True))
    says(play, "")
    says(play, "", False)
    assert (play.asks, play.record, play.ended, play.noted) == (None, None, gatt.EMPTY, {})
    assert play.done["dialogues"] == play.done["turns"] == 0


def test_played_on_the_model_writes_the_users_messages_without_the_instruction(how: How) -> None:
    play = Play(found({"messages": turns("a?")}), ACT, how._replace(turns=2))
    says(play, "A.")
    follow_up = {"role": "user", "content": FOLLOW_UP}
    assert play.asks == ids_of(how, *turns("a?", "A."), follow_up)
    says(play, "b?")
    asked = [{"role": "user", "content": f"Figure: Napoleon.\n\n{letter}?"} for letter in "ab"]
    assert play.asks == ids_of(how, asked[0], {"role": "assistant", "content": "A."}, asked[1])
    says(play, "B.")
    assert play.asks is None
    assert play.record is not None
    assert [one["content"] for one in play.record["messages"]] == [asked[0]["content"], "A.", "b?", "B."]
    assert play.record["gatt"] == {**MADE, "turns": 2, "played": 1}
    assert play.noted == {"messages of the user that the model wrote": 1}


@pytest.mark.parametrize(
    ("text", "stopped", "why"),
    [(" ", True, gatt.SILENT), ("b and", False, gatt.SILENT), ("[INST] b", True, gatt.TAGS)],
)
def test_without_a_whole_message_of_the_user_a_dialogue_ends(how: How, text: str, stopped: bool, why: str) -> None:
    play = Play(found({"messages": turns("a?")}), ACT, how._replace(turns=3))
    says(play, "A.")
    says(play, text, stopped)
    assert play.asks is None
    assert play.record is not None
    assert (play.record["gatt"]["turns"], play.record["gatt"]["played"], play.ended) == (1, 0, why)
    assert play.noted["dialogues of one turn (nothing to keep after it)"] == 1


def test_a_longer_dialogue_keeps_its_turns(how: How) -> None:
    play = Play(found(ROME), ACT, how._replace(turns=1))
    says(play, "A.")
    assert play.asks is not None


@pytest.mark.parametrize(("text", "why"), [("", gatt.EMPTY), ("see <<SYS>>", gatt.TAGS)])
def test_a_dialogue_ends_before_an_answer_that_cannot_stand_in_it(how: How, text: str, why: str) -> None:
    play = Play(found(ROME), ACT, how)
    says(play, "A.")
    says(play, text)
    assert play.asks is None
    assert play.record is not None
    assert [one["content"] for one in play.record["messages"]] == ["Figure: Napoleon.\n\nWhere is Rome?", "A."]
    assert "weight" not in play.record["messages"][-1]
    assert play.record["gatt"]["ended"] == why
    allowed = Play(found(ROME), ACT, how._replace(allow_tags=True))
    says(allowed, "see <<SYS>>")
    assert allowed.asks is not None


def test_an_answer_that_is_cut_off_is_context_and_never_the_last(how: How) -> None:
    three = {"messages": turns("a?", "A.", "b?", "B.", "c?")}
    middle, end = Play(found(three), ACT, how), Play(found(three), ACT, how)
    for play, whole in ((middle, (True, False, True)), (end, (True, False, False))):
        for stopped in whole:
            says(play, "X", stopped)
        assert play.asks is None
    assert middle.record is not None and end.record is not None
    assert [one.get("weight") for one in middle.record["messages"]] == [None, 0, None, 0, None, None]
    assert middle.noted == {"earlier answers that are cut off": 1}
    assert (end.record["gatt"]["turns"], end.ended) == (1, gatt.CUT)
    none = Play(found({"messages": turns("a?")}), ACT, how)
    says(none, "X", stopped=False)
    assert (none.asks, none.record, none.ended, none.noted) == (None, None, gatt.CUT, {})


def test_a_dialogue_ends_before_the_turn_that_outgrows_the_context(how: How) -> None:
    first = ids_of(how, *turns("Figure: Napoleon.\n\na?"))
    long = {"messages": turns("a?", "A.", "word " * 100)}
    play = Play(found(long), ACT, how._replace(context=len(first) + 50))
    says(play, "A.")
    assert play.asks is None
    assert play.record is not None
    assert (play.record["gatt"]["turns"], play.ended) == (1, gatt.OUTGREW)
    given = Play(found(long), ACT, how._replace(context=len(first) + 50, given=True))
    assert (given.asks, given.ended) == (first, gatt.OUTGREW)


def test_an_answer_that_fills_the_context_outgrows_it(how: How) -> None:
    first = ids_of(how, *turns("Figure: Napoleon.\n\na?"))
    answer = how.tokenizer.encode("word and word")
    play = Play(found({"messages": turns("a?")}), ACT, how._replace(context=len(first) + len(answer)))
    play.hears(answer, False)
    assert (play.record, play.ended) == (None, gatt.OUTGREW)


@pytest.mark.parametrize("room", [0, 1])
def test_what_is_written_fits_the_context(how: How, room: int) -> None:
    """It holds the answer's last space, which the model need not have said before it ended."""
    asked = turns("Figure: Napoleon.\n\na?")
    answer = how.tokenizer.encode("A.")
    whole = ids_of(how, *asked, {"role": "assistant", "content": "A."})
    play = Play(found({"messages": turns("a?")}), ACT, how._replace(context=len(whole) - 1 + room))
    play.hears(answer, True)
    assert (play.record is not None, play.ended) == (bool(room), "" if room else gatt.OUTGREW)


def test_the_first_turn_is_never_cut(how: How) -> None:
    first = ids_of(how, *turns("Figure: Napoleon.\n\na?"))
    own = len(how.tokenizer.encode("Figure: Napoleon."))
    with pytest.raises(Fault) as fault:
        Play(found({"messages": turns("a?")}), ACT, how._replace(context=len(first)))
    said = f"d:1: its first turn is {len(first)} tokens long, {own} of them the instruction's, and the model's context"
    assert str(fault.value) == f"{said} {len(first)}: no room for an answer; shorten the one or the other"


def test_an_instruction_longer_than_the_context(how: How) -> None:
    long = Constraint.of({"kind": "format", "name": "x", "long": "word " * 90, "terse": "X."}, "x:1")
    gatt.check([NAPOLEON, long], "c.jsonl", how)
    with pytest.raises(Fault, match=r"^c.jsonl: format x is \d+ tokens long, the model's context 60; word it shorter$"):
        gatt.check([NAPOLEON, long], "c.jsonl", how._replace(context=60))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"messages": [{"role": "system", "content": "a"}]}, "d:1: messages: holds no user turn"),
        ({"messages": []}, "d:1: messages: is empty"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "d:1: messages[0].role: is assistant"),
        ({"messages": turns("a [INST]", "b")}, "d:1: messages[0].content: holds [INST]"),
        ({"messages": turns("a", "b"), "gatt": {}}, "d:1: gatt: was made by gatt-synth: it holds an instruction"),
    ],
)
def test_what_is_no_dialogue_is_refused(how: How, raw: dict[str, Any], said: str) -> None:
    with pytest.raises(Fault) as fault:
        Play(found(raw), ACT, how)
    assert str(fault.value).startswith(said)


def test_a_sample_is_a_dialogue_without_what_was_said_of_its_response(how: How) -> None:
    sample = {"messages": turns("a?", "A.", "b?"), "response": "B.", "scores": {"helpfulness": 1.0}, "id": 3, "x": 1}
    sample |= {"log_probs": [-1.0], "likert": 7, "pre_prompt": "Be kind.", "before": {"response": "A."}}
    play = Play(found(sample), ACT, how)
    says(play, "C")
    says(play, "D")
    assert play.record is not None
    assert set(play.record) == {"messages", "id", "x", "gatt"}


def test_the_instruction_is_drawn_by_the_seed_and_the_dialogue(how: How) -> None:
    some = constraints.ours()
    texts = [
        gatt.play(found({**ROME, "id": number}), some, seed, how).instruction.text
        for seed, number in ((0, 1), (0, 2), (1, 1))
    ]
    assert texts[0] == texts[1] != texts[2]
    other = gatt.play(found({"messages": turns("Where is Nice?")}), some, 0, how).instruction.text
    assert other != texts[0]


# -- many


def echo(asked: Sequence[list[int]]) -> Iterator[tuple[int, Sequence[int], bool]]:
    """A model that says the newest two ids, the last one asked first."""
    for number in reversed(range(len(asked))):
        yield number, [one for one in asked[number] if one != BOS][-6:-4], True


def test_the_next_turn_of_all_under_way_is_one_batch(how: How, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gatt, "WINDOW", 3)
    lengths = [1, 3, 2, 1, 2]
    raws = [
        {"messages": turns(*[f"question {letter}{n}" for n in range(2 * length - 1)])}
        for letter, length in zip("abcde", lengths, strict=True)
    ]
    batches: list[int] = []

    def counted(asked: Sequence[list[int]]) -> Iterator[tuple[int, Sequence[int], bool]]:
        batches.append(len(asked))
        return echo(asked)

    over = list(gatt.played([Play(found(raw), ACT, how) for raw in raws], counted))
    assert batches == [3, 3, 2, 1]  # a b c; d in a's place; b and e, in c's; e's last
    assert sorted(place for place, _ in over) == [0, 1, 2, 3, 4]
    for place, play in over:
        (_, alone), *_ = gatt.played([Play(found(raws[place]), ACT, how)], echo)
        assert play.record == alone.record
        assert play.record is not None and play.record["gatt"]["turns"] == lengths[place]


# -- lists


@pytest.mark.parametrize(
    ("answer", "whole", "names", "others"),
    [
        ("1. Tennis\n2. Chess\n", True, ["Tennis", "Chess"], 0),
        (
            "Sure! Here are some:\n\n- Tennis: a game\n* **Lawn  bowls** - for the old\n",
            True,
            ["Tennis", "Lawn bowls"],
            1,
        ),
        ("Marie Curie (1867-1934)\nJean-Paul Sartre\n42\n" + "x" * 41, True, ["Marie Curie", "Jean-Paul Sartre"], 2),
        ("Here are some:\nTennis\nI like them!", True, ["Tennis"], 2),
        ("1) Tennis\n2) Che", False, ["Tennis"], 1),
        ("[INST]\n", True, [], 1),
        ("", True, [], 0),
    ],
)
def test_names_in_a_models_list(answer: str, whole: bool, names: list[str], others: int) -> None:
    assert constraints.names(answer, whole) == (names, others)


def test_lists_are_asked_of_the_model(tokenizer: Tokenizer) -> None:
    said = {
        "List 3 hobbies": [("1. Chess\n2. chess\n3. Go", True), ("Tennis\nRiding\nBad", True)],
        "List 3 languages": [("I do not know what you mean by that, and will not say.", True), ("French\nDut", False)],
        "List 3 famous people": [("Ada\nPlato\nBach\nCleopatra", True), ("Zeno\n", True)],
    }

    def drawn(asked: Sequence[list[int]]) -> Iterator[tuple[int, Sequence[int], bool]]:
        for number, ids in reversed(list(enumerate(asked))):
            question = next(one for one in said if one in tokenizer.decode(ids))
            for text, stopped in said[question]:
                yield number, tokenizer.encode(text), stopped

    found, noted = gatt.lists(3, tokenizer, drawn)
    assert [(one.kind, one.name) for one in found] == [
        ("hobby", "Chess"), ("hobby", "Go"), ("hobby", "Tennis"),
        ("language", "French"),
        ("figure", "Ada"), ("figure", "Plato"), ("figure", "Bach"),
    ]  # fmt: skip
    assert noted == {
        "lines of the model's lists that are no name": 2,
        "names that the model gave again": 1,
        "constraints of kind language fewer than were asked for": 2,
    }
