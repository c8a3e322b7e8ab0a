"""What a reward model is shown: the codec's ids, cut so that the end stays, and the place of whatever is wrong."""

from typing import Any

import pytest
from conftest import turns

from llamactl.artifacts.jsonl import Found
from llamactl.artifacts.records import Comparison, Dialogue, Message, Sample, checked
from llamactl.errors import Fault
from llamactl.text import dialogue, judging
from llamactl.text.judging import Judged, Judging
from llamactl.text.tokenizer import BOS, EOS, Tokenizer

WIDE = Judging(10_000)
LONG = "a word and another " * 12


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Any) -> Tokenizer:
    return Tokenizer.load(tokenizer_path)


def found(raw: dict[str, Any]) -> Found[Any]:
    return Found(checked(raw, (Comparison, Sample, Dialogue), "d:4"), raw, "d:4")


def messages(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, *turns(*contents)]


def answer(content: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": content}]


def ids(tokenizer: Tokenizer, raw: list[dict[str, Any]]) -> list[int]:
    return dialogue.encode(checked({"messages": raw}, (Dialogue,), "").messages, tokenizer).ids


def judged(tokenizer: Tokenizer, prompt: list[dict[str, Any]], said: str, how: Judging) -> Judged:
    given = checked({"messages": prompt}, (Dialogue,), "").messages
    return judging.judged(given, said, tokenizer, how, "d:4: response")


# -- the same everywhere


def test_an_answer_is_the_same_ids_in_every_kind_of_record(tokenizer: Tokenizer) -> None:
    prompt = messages("a", "b", "c", system="s")
    records = [
        {"prompt": prompt, "chosen": answer("d"), "rejected": answer("other")},
        {"messages": prompt, "response": "d"},
        {"messages": [*prompt, *answer("d")]},
    ]
    shown = [judging.sides(found(record), tokenizer, WIDE) for record in records]
    assert [[*sides] for sides in shown] == [["chosen", "rejected"], ["response"], ["messages"]]
    wanted = ids(tokenizer, [*prompt, *answer("d")])
    assert [next(iter(sides.values())) for sides in shown] == [Judged(wanted, 0)] * 3
    assert (wanted[0], wanted[-1]) == (BOS, EOS)
    assert shown[0]["rejected"].ids == ids(tokenizer, [*prompt, *answer("other")])


def test_both_sides_begin_with_the_prompt(tokenizer: Tokenizer) -> None:
    """Also where the answers' first pieces could have joined its last one."""
    prompt = turns("What is it?")
    sides = judging.sides(found({"prompt": prompt, "chosen": answer("1"), "rejected": answer("?")}), tokenizer, WIDE)
    asked = ids(tokenizer, prompt)
    assert all(side.ids[: len(asked)] == asked for side in sides.values())


# -- what is too long


def test_what_fits_is_left_as_it_is(tokenizer: Tokenizer) -> None:
    prompt, said = turns("a", "b", "c"), "an answer"
    whole = ids(tokenizer, [*prompt, *answer(said)])
    for truncate in (False, True):
        assert judged(tokenizer, prompt, said, Judging(len(whole), truncate)) == Judged(whole, 0)
    with pytest.raises(Fault) as fault:
        judged(tokenizer, prompt, said, Judging(len(whole) - 1))
    said_so = f"d:4: response: is {len(whole)} tokens long with its prompt, the context {len(whole) - 1}; "
    assert str(fault.value).startswith(said_so)
    assert "--truncate" in str(fault.value)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_oldest_turns_go_first_and_the_system_message_stays(tokenizer: Tokenizer, system: str | None) -> None:
    prompt = messages("first question", "first answer", "second", "reply", "third", system=system)
    whole = ids(tokenizer, [*prompt, *answer("the end")])
    for dropped in (1, 2):
        rest = messages(*("first question", "first answer", "second", "reply", "third")[2 * dropped :], system=system)
        wanted = ids(tokenizer, [*rest, *answer("the end")])
        assert judged(tokenizer, prompt, "the end", Judging(len(wanted), True)) == Judged(
            wanted, len(whole) - len(wanted)
        )
        more = judged(tokenizer, prompt, "the end", Judging(len(wanted) + 1, True))
        assert more.ids == wanted  # a turn goes whole or not at all


def test_an_answer_that_is_cut_keeps_its_end(tokenizer: Tokenizer) -> None:
    """EOS, at which it is scored."""
    prompt = turns("question")
    whole = ids(tokenizer, [*prompt, *answer(LONG)])
    for context in (len(whole) - 1, len(ids(tokenizer, prompt)) + 2):
        found_ids, cut = judged(tokenizer, prompt, LONG, Judging(context, True))
        assert found_ids == [*whole[: context - 1], EOS]
        assert (len(found_ids), cut) == (context, len(whole) - context)


def test_turns_go_before_any_of_the_answer(tokenizer: Tokenizer) -> None:
    last = ids(tokenizer, [*turns("now?"), *answer(LONG)])
    prompt = turns("first", "one", "now?")
    assert judged(tokenizer, prompt, LONG, Judging(len(last), True)).ids == last
    assert judged(tokenizer, prompt, LONG, Judging(len(last) - 5, True)).ids == [*last[:-6], EOS]


def test_a_question_that_leaves_no_room_for_an_answer_is_refused(tokenizer: Tokenizer) -> None:
    asked = len(ids(tokenizer, turns(LONG)))
    assert len(judged(tokenizer, turns(LONG), "yes indeed", Judging(asked + 2, True)).ids) == asked + 2
    with pytest.raises(
        Fault, match=f"d:4: response: its last question is {asked} tokens long, the context {asked + 1}"
    ):
        judged(tokenizer, turns(LONG), "yes indeed", Judging(asked + 1, True))


def test_answers_that_are_the_same_once_they_are_cut_are_refused(tokenizer: Tokenizer) -> None:
    record = {"prompt": turns("q"), "chosen": answer(LONG + "x"), "rejected": answer(LONG + "y")}
    context = len(ids(tokenizer, [*turns("q"), *answer(LONG)])) - 5
    with pytest.raises(Fault, match="d:4: rejected: is the same as chosen once both are cut"):
        judging.sides(found(record), tokenizer, Judging(context, True))
    assert len(judging.sides(found(record), tokenizer, WIDE)) == 2


# -- which prompt


def test_a_prompt_is_told_by_who_says_what_in_it() -> None:
    def key(*said: tuple[str, str]) -> bytes:
        return judging.prompt_key([Message(role=role, content=content) for role, content in said])  # type: ignore[arg-type]

    plain = key(("user", "a"))
    assert plain == key(("user", " a\n"))
    different = [
        key(("user", "b")), key(("system", "a")), key(("user", "a"), ("assistant", "b"), ("user", "c")),
        key(("user", "a"), ("assistant", "bc"), ("user", "")), key(("system", ""), ("user", "a")),
    ]  # fmt: skip
    assert len({plain, *different}) == 6


# -- what cannot be judged


def comparison(prompt: list[Any], chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": answer(chosen), "rejected": answer(rejected)}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (comparison(turns("a"), "b", " b "), "d:4: rejected: is the same as chosen"),
        (comparison(turns("a"), " ", "b"), "d:4: chosen[0].content: is an answer without a text"),
        (comparison(turns("a"), "b", "c") | {"rejected": turns("c")}, "d:4: rejected[0].role: is user"),
        (comparison(turns("a", "b"), "c", "d"), "d:4: prompt[1].role"),
        (comparison([], "c", "d"), "d:4: prompt: is empty"),
        (comparison(turns("[INST]"), "c", "d"), "d:4: prompt[0].content: holds [INST]"),
        (comparison(turns("a"), "c", "<<SYS>>"), "d:4: rejected[0].content: holds <<SYS>>"),
        ({"messages": turns("a")}, "d:4: messages: ends on a user turn: there is no answer to judge"),
        ({"messages": turns("a", "b"), "response": "c"}, "d:4: messages[2].role: is assistant, where user is due"),
        ({"messages": turns("a"), "response": "[/INST]"}, "holds [/INST]"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tokenizer: Tokenizer, record: dict[str, Any], said: str) -> None:
    with pytest.raises(Fault) as fault:
        judging.sides(found(record), tokenizer, WIDE)
    assert str(fault.value).startswith("d:4: ")
    assert said in str(fault.value)


def test_each_side_that_is_too_long_is_named(tokenizer: Tokenizer) -> None:
    for long, short in (("chosen", "rejected"), ("rejected", "chosen")):
        record = {"prompt": turns("a"), long: answer(LONG), short: answer("b")}
        with pytest.raises(Fault, match=f"d:4: {long}: is .* tokens long"):
            judging.sides(found(record), tokenizer, Judging(40))


def test_tags_are_taken_where_that_is_asked_for(tokenizer: Tokenizer) -> None:
    record = {"prompt": turns("a"), "chosen": answer("[INST]"), "rejected": answer("b")}
    assert len(judging.sides(found(record), tokenizer, Judging(100, allow_tags=True))) == 2
