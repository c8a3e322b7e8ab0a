"""Each format by hand-written items with all that is odd in it: the records made of them, and what is counted."""

import inspect
import itertools
from collections import Counter
from typing import Any, NamedTuple

import msgspec
import pytest

from llamactl.artifacts.records import Comparison, Dialogue, Document, Prompt, checked
from llamactl.errors import Fault
from llamactl.formats import known, rules
from llamactl.formats.items import Item
from llamactl.formats.known import FORMATS
from llamactl.formats.rules import Tally, Target
from llamactl.text import dialogue

Record = dict[str, Any]
NO_COUNTS: dict[str, int] = {}


def s(text: str) -> Record:
    return {"role": "system", "content": text}


def u(text: str) -> Record:
    return {"role": "user", "content": text}


def a(text: str, weight: int = 1) -> Record:
    return {"role": "assistant", "content": text} | ({} if weight else {"weight": 0})


def talk(*turns: Record, **more: Any) -> Record:
    """A Dialogue or Prompt; ``id`` is written first."""
    own = {"id": more.pop("id")} if "id" in more else {}
    return {**own, "messages": list(turns), **more}


def pair(prompt: str | list[Record], chosen: str, rejected: str, **more: Any) -> Record:
    own = {"id": more.pop("id")} if "id" in more else {}
    asked = [u(prompt)] if isinstance(prompt, str) else prompt
    return {**own, "prompt": asked, "chosen": [a(chosen)], "rejected": [a(rejected)], **more}


def text(content: str, **more: Any) -> Record:
    own = {"id": more.pop("id")} if "id" in more else {}
    return {**own, "text": content, **more}


class Out(NamedTuple):
    """What is made of a format's items: records, and the counts of what was skipped, and used but not as it was."""

    records: list[Record]
    skipped: dict[str, int] = NO_COUNTS
    noted: dict[str, int] = NO_COUNTS


class Golden(NamedTuple):
    """Items of a format, and what is made of them for each target."""

    items: list[Any]
    made: dict[Target, Out]
    names: list[str] | None = None  # of items in an object of objects


def converted(name: str, target: Target, values: list[Any], names: list[str] | None = None) -> Out:
    """The records of items, as they are written."""
    tally = Tally(Counter(), Counter())
    records = []
    for value, own in itertools.zip_longest(values, names or []):
        records += list(rules.made(FORMATS[name], target, Item("a:1", value, own), tally))
    return Out(msgspec.to_builtins(records), dict(+tally.skipped), dict(+tally.noted))


def refused(name: str, value: object, target: Target = "dialogues") -> str:
    with pytest.raises(Fault) as caught:
        converted(name, target, [value])
    return str(caught.value)


EMPTY_TALK, EMPTY_PROMPT = "dialogues without an answer to learn from", "empty prompts"
EMPTY_TEXT, EMPTY_SIDE = "empty texts", "pairs with an empty turn"
JOINED, CUT = "turns joined to the one before, by the same speaker", "dialogues cut before an empty turn"
UNANSWERED, NO_SYSTEM = "last turns without an answer, left off", "empty system messages, left off"
IDENTICAL, TIES = "pairs of identical answers", "ties"
NO_ANSWER, OTHER_PROMPT = "pairs that do not end on an answer", "pairs whose sides have different prompts"
OTHER_KIND = "fields of another kind of record, left off"

GOLDEN: dict[str, Golden] = {}

# -- our own, which are also OpenAI's and TRL's

KEPT = {"id": 7, "source": "mine", "note": None, "rest": "kept", "more": {"x": [1]}}


def parts(*texts: str) -> list[Record]:
    """Content as OpenAI's interface takes it."""
    return [{"type": "text", "text": each} for each in texts]


GOLDEN["messages"] = Golden(
    [
        {**KEPT, "messages": [u("q"), a("r")]},
        {"messages": [{"role": "developer", "content": parts("Be", "brief.")}, {"role": "user", "content": parts("q")},
                      a("r", 0), u("q2"), a("r2")]},
        {"messages": [s(" \n"), u("one \n"), u("\n two"), a("r", 0), a("r2")], "id": "joined"},
        {"messages": [s("s"), u("q"), a("r"), u(" "), a("r2")], "id": "cut"},
        {"messages": [u("q"), a("r"), u("q2")], "id": "open", "safety": True},
        {"messages": [u("q")], "id": "a prompt"},
        {"messages": [u("q"), a(" \n")], "id": "blank"},
        {"messages": [], "id": "nothing"},
        {"messages": [s("s")], "id": "system"},
    ],
    {
        "dialogues": Out(
            [
                talk(u("q"), a("r"), **KEPT),
                talk(s("Be\n\nbrief."), u("q"), a("r", 0), u("q2"), a("r2")),
                talk(s("s"), u("q"), a("r"), id="cut"),
                talk(u("q"), a("r"), id="open", safety=True),
            ],
            {EMPTY_TALK: 5},
            {CUT: 1, UNANSWERED: 1},
        ),
        "prompts": Out(
            [
                talk(u("q"), **KEPT),
                talk(s("Be\n\nbrief."), u("q"), a("r", 0), u("q2")),
                talk(u("one\n\ntwo"), id="joined"),
                talk(s("s"), u("q"), id="cut"),
                talk(u("q"), a("r"), u("q2"), id="open", safety=True),
                talk(u("q"), id="a prompt"),
                talk(u("q"), id="blank"),
            ],
            {EMPTY_PROMPT: 2},
            {NO_SYSTEM: 1, JOINED: 1, CUT: 1},
        ),
        "documents": Out(
            [
                text("User: q\n\nAssistant: r", **KEPT),
                text("System: Be\n\nbrief.\n\nUser: q\n\nAssistant: r\n\nUser: q2\n\nAssistant: r2"),
                text("User: one\n\ntwo\n\nAssistant: r\n\nr2", id="joined"),
                text("System: s\n\nUser: q\n\nAssistant: r", id="cut"),
                text("User: q\n\nAssistant: r\n\nUser: q2", id="open", safety=True),
                text("User: q", id="a prompt"),
                text("User: q", id="blank"),
                text("System: s", id="system"),
            ],
            {EMPTY_TEXT: 1},
            {NO_SYSTEM: 1, JOINED: 2, CUT: 2},
        ),
    },
)  # fmt: skip

SCORED = {"model": "m", "scores": {"safety": 0.5}, "sampling": {"seed": 1}}
GOLDEN["samples"] = Golden(
    [
        {"id": "1", "messages": [u("q"), a("r"), u("q2")], "response": "r2", **SCORED},
        {"messages": [u("q")], "response": "  ", "safety": True},
    ],
    {
        "dialogues": Out([talk(u("q"), a("r"), u("q2"), a("r2"), id="1", **SCORED)], {EMPTY_TALK: 1}),
        "prompts": Out([talk(u("q"), a("r"), u("q2"), id="1", **SCORED), talk(u("q"), safety=True)]),
        "documents": Out(
            [
                text("User: q\n\nAssistant: r\n\nUser: q2\n\nAssistant: r2", id="1", **SCORED),
                text("User: q", safety=True),
            ],
            noted={CUT: 1},
        ),
    },
)

GRADED = {"rating": "better", "safety_label": "both_safe"}
GOLDEN["comparisons"] = Golden(
    [
        pair([s("s"), u("q")], "good", "bad", id=1, source="mine", **GRADED, note=None),
        {"chosen": [u("implicit"), a("r"), u("q"), a("good")], "rejected": [u("implicit"), a("r"), u("q"), a("bad")]},
        {"prompt": "whole", "prompt_id": "x", "chosen": [u("whole"), a("good")], "rejected": [u("whole"), a("bad")],
         "score_chosen": 8.5},
        {"prompt": "a text", "chosen": [a("good")], "rejected": [a("bad")], "rest": [1]},
        {"prompt": [s(""), u("one"), u("two")], "chosen": [a("good", 0)], "rejected": [a("bad")], "id": "odd"},
        pair("q", "same", " same\n", id="identical"),
        pair("q", "good", "  ", id="empty"),
        pair([u("q"), s(" "), u("q2")], "good", "bad", id="cut"),
        pair([s("s")], "good", "bad", id="no prompt"),
        {"chosen": [u("one"), a("good")], "rejected": [u("another"), a("bad")]},
        {"chosen": [u("q"), a("good"), u("thanks")], "rejected": [u("q"), a("bad")]},
        {"prompt": "q", "chosen": [a("good")], "rejected": []},
    ],
    {
        "comparisons": Out(
            [
                pair([s("s"), u("q")], "good", "bad", id=1, **GRADED, source="mine", note=None),
                pair([u("implicit"), a("r"), u("q")], "good", "bad"),
                pair("whole", "good", "bad", prompt_id="x", score_chosen=8.5),
                pair("a text", "good", "bad", rest=[1]),
                pair("one\n\ntwo", "good", "bad", id="odd"),
            ],
            {IDENTICAL: 1, EMPTY_SIDE: 2, EMPTY_PROMPT: 1, OTHER_PROMPT: 1, NO_ANSWER: 2},
            {NO_SYSTEM: 1, JOINED: 1},
        ),
        "dialogues": Out(
            [
                talk(s("s"), u("q"), a("good"), id=1, source="mine", note=None),
                talk(u("implicit"), a("r"), u("q"), a("good")),
                talk(u("whole"), a("good"), prompt_id="x", score_chosen=8.5),
                talk(u("a text"), a("good"), rest=[1]),
                talk(u("one\n\ntwo"), a("good"), id="odd"),
                talk(u("q"), a("same"), id="identical"),
                talk(u("q"), a("good"), id="empty"),
                talk(s("s"), a("good"), id="no prompt"),  # refused by the check of all records
            ],
            {OTHER_PROMPT: 1, NO_ANSWER: 2, EMPTY_TALK: 1},
            {NO_SYSTEM: 1, JOINED: 1},
        ),
        "prompts": Out(
            [
                talk(s("s"), u("q"), id=1, source="mine", note=None),
                talk(u("implicit"), a("r"), u("q")),
                talk(u("whole"), prompt_id="x", score_chosen=8.5),
                talk(u("a text"), rest=[1]),
                talk(u("one\n\ntwo"), id="odd"),
                talk(u("q"), id="identical"),
                talk(u("q"), id="empty"),
                talk(u("q"), id="cut"),
            ],
            {OTHER_PROMPT: 1, NO_ANSWER: 2, EMPTY_PROMPT: 1},
            {NO_SYSTEM: 1, JOINED: 1, CUT: 1},
        ),
        "documents": Out(
            [
                text("System: s\n\nUser: q\n\nAssistant: good", id=1, source="mine", note=None),
                text("User: implicit\n\nAssistant: r\n\nUser: q\n\nAssistant: good"),
                text("User: whole\n\nAssistant: good", prompt_id="x", score_chosen=8.5),
                text("User: a text\n\nAssistant: good", rest=[1]),
                text("User: one\n\ntwo\n\nAssistant: good", id="odd"),
                text("User: q\n\nAssistant: same", id="identical"),
                text("User: q\n\nAssistant: good", id="empty"),
                text("User: q", id="cut"),
                text("System: s\n\nAssistant: good", id="no prompt"),
            ],
            {OTHER_PROMPT: 1, NO_ANSWER: 2},
            {NO_SYSTEM: 1, JOINED: 1, CUT: 1},
        ),
    },
)  # fmt: skip

GOLDEN["texts"] = Golden(
    [{"text": " a\n", **KEPT}, {"text": " \n"}, {"text": "b [INST]"}],
    {"documents": Out([text(" a\n", **KEPT), text("b [INST]")], {EMPTY_TEXT: 1})},
)

# -- instructions

GOLDEN["alpaca"] = Golden(
    [
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Sing.", "input": "", "output": "La."},
        {"instruction": "Wait.", "output": "Yes.", "id": 4},
        {"instruction": "Rest.", "input": " <NoInput>\n", "output": "Sure."},
        {"instruction": "Say nothing.", "input": "", "output": ""},
        {"instruction": "", "input": "", "output": "What?"},
    ],
    {
        "dialogues": Out(
            [
                talk(u("Add.\n\n1, 2"), a("3")),
                talk(u("Sing."), a("La.")),
                talk(u("Wait."), a("Yes."), id=4),
                talk(u("Rest."), a("Sure.")),
            ],
            {EMPTY_TALK: 2},
        ),
        "prompts": Out(
            [
                talk(u("Add.\n\n1, 2")),
                talk(u("Sing.")),
                talk(u("Wait."), id=4),
                talk(u("Rest.")),
                talk(u("Say nothing.")),
            ],
            {EMPTY_PROMPT: 1},
        ),
        "documents": Out(
            [
                text("User: Add.\n\n1, 2\n\nAssistant: 3"),
                text("User: Sing.\n\nAssistant: La."),
                text("User: Wait.\n\nAssistant: Yes.", id=4),
                text("User: Rest.\n\nAssistant: Sure."),
                text("User: Say nothing."),
            ],
            {EMPTY_TEXT: 1},
            {CUT: 2},
        ),
    },
)

GOLDEN["dolly"] = Golden(
    [
        {"instruction": "Who?", "context": "Ann came.", "response": "Ann.", "category": "closed_qa"},
        {"instruction": "Why?", "context": " ", "response": "So.", "category": "open_qa", "id": "d"},
    ],
    {
        "dialogues": Out([talk(u("Who?\n\nAnn came."), a("Ann.")), talk(u("Why?"), a("So."), id="d")]),
        "prompts": Out([talk(u("Who?\n\nAnn came.")), talk(u("Why?"), id="d")]),
        "documents": Out(
            [text("User: Who?\n\nAnn came.\n\nAssistant: Ann."), text("User: Why?\n\nAssistant: So.", id="d")]
        ),
    },
)

WRAPPING = "Below is an instruction of my own, and a word about it.\n\n### Instruction:\n"
GOLDEN["dolly-hhrlhf"] = Golden(
    [
        {"prompt": f"{WRAPPING}Name one.\nOr two.\n\n### Response:\n", "response": "One."},
        {"prompt": f"{WRAPPING}Add.\n\n### Input:\n1\n\n2\n\n### Response: ", "response": "3"},
        {"prompt": "Not wrapped\n\n### Response:\n", "response": "So."},
    ],
    {
        "dialogues": Out(
            [
                talk(u("Name one.\nOr two."), a("One.")),
                talk(u("Add.\n\n1\n\n2"), a("3")),
                talk(u("Not wrapped\n\n### Response:\n"), a("So.")),
            ],
            noted={"prompts without Alpaca's wrapping, taken as they are": 1},
        ),
        "prompts": Out(
            [talk(u("Name one.\nOr two.")), talk(u("Add.\n\n1\n\n2")), talk(u("Not wrapped\n\n### Response:\n"))],
            noted={"prompts without Alpaca's wrapping, taken as they are": 1},
        ),
        "documents": Out(
            [
                text("User: Name one.\nOr two.\n\nAssistant: One."),
                text("User: Add.\n\n1\n\n2\n\nAssistant: 3"),
                text("User: Not wrapped\n\n### Response:\n\nAssistant: So."),
            ],
            noted={"prompts without Alpaca's wrapping, taken as they are": 1},
        ),
    },
)

SEED_TASK = {"name": "sums", "is_classification": False}
GOLDEN["self-instruct"] = Golden(
    [
        {"id": "t0", "instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}], **SEED_TASK},
        {"id": "t1", "instruction": "Pick.", "instances": [{"input": "", "output": "x"}, {"output": "y"}], **SEED_TASK},
        {"id": "t2", "instruction": "Stay.", "instances": [{"input": "", "output": " "}], **SEED_TASK},
        {"id": "t3", "instruction": "None.", "instances": [], **SEED_TASK},
    ],
    {
        "dialogues": Out(
            [talk(u("Add.\n\n1 1"), a("2"), id="t0"), talk(u("Pick."), a("x"), id="t1-0"),
             talk(u("Pick."), a("y"), id="t1-1")],
            {EMPTY_TALK: 1},
        ),
        "prompts": Out(
            [talk(u("Add.\n\n1 1"), id="t0"), talk(u("Pick."), id="t1-0"), talk(u("Pick."), id="t1-1"),
             talk(u("Stay."), id="t2")]
        ),
        "documents": Out(
            [
                text("User: Add.\n\n1 1\n\nAssistant: 2", id="t0"),
                text("User: Pick.\n\nAssistant: x", id="t1-0"),
                text("User: Pick.\n\nAssistant: y", id="t1-1"),
                text("User: Stay.", id="t2"),
            ],
            noted={CUT: 1},
        ),
    },
)  # fmt: skip

GOLDEN["dsp"] = Golden(
    [{"query": "How?", "responses": {"academy": "Thus.", "normal": "Like this.", "business": ""}}],
    {
        "dialogues": Out(
            [talk(u("How?"), a("Thus."), register="academy"), talk(u("How?"), a("Like this."), register="normal")],
            {EMPTY_TALK: 1},
        ),
        "prompts": Out([talk(u("How?"))]),
        "documents": Out(
            [
                text("User: How?\n\nAssistant: Thus.", register="academy"),
                text("User: How?\n\nAssistant: Like this.", register="normal"),
                text("User: How?", register="business"),
            ],
            noted={CUT: 1},
        ),
    },
)

# -- dialogues


def said(*turns: str) -> list[Record]:
    """Turns of ShareGPT: ``human Hi``."""
    return [dict(zip(("from", "value"), turn.split(" ", 1), strict=True)) for turn in turns]


GOLDEN["sharegpt"] = Golden(
    [
        {"id": "s0", "conversations": said("human Hi", "gpt Hello", "human How?", "gpt So.")},
        {"id": "s1", "conversations": said("system Be kind.", "user Hi", "bing Hello", "bard Hey", "human Bye")},
        {"id": "s2", "conversations": said("human Hi", "human There", "chatgpt Hello"), "system": "Be brief."},
        {"id": "s3", "conversations": said("human Hi", "assistant  "), "system": " "},
        {"conversations": said("human Hi", "gpt Hello", "human  ", "gpt Yes?")},
        {"id": "s5", "conversations": []},
    ],
    {
        "dialogues": Out(
            [
                talk(u("Hi"), a("Hello"), u("How?"), a("So."), id="s0"),
                talk(s("Be kind."), u("Hi"), a("Hello\n\nHey"), id="s1"),
                talk(s("Be brief."), u("Hi\n\nThere"), a("Hello"), id="s2"),
                talk(u("Hi"), a("Hello")),
            ],
            {EMPTY_TALK: 2},
            {JOINED: 2, UNANSWERED: 1, CUT: 1},
        ),
        "prompts": Out(
            [
                talk(u("Hi"), a("Hello"), u("How?"), id="s0"),
                talk(s("Be kind."), u("Hi"), a("Hello\n\nHey"), u("Bye"), id="s1"),
                talk(s("Be brief."), u("Hi\n\nThere"), id="s2"),
                talk(u("Hi"), id="s3"),
                talk(u("Hi")),
            ],
            {EMPTY_PROMPT: 1},
            {JOINED: 2, CUT: 1},
        ),
        "documents": Out(
            [
                text("User: Hi\n\nAssistant: Hello\n\nUser: How?\n\nAssistant: So.", id="s0"),
                text("System: Be kind.\n\nUser: Hi\n\nAssistant: Hello\n\nHey\n\nUser: Bye", id="s1"),
                text("System: Be brief.\n\nUser: Hi\n\nThere\n\nAssistant: Hello", id="s2"),
                text("User: Hi", id="s3"),
                text("User: Hi\n\nAssistant: Hello"),
            ],
            {EMPTY_TEXT: 1},
            {JOINED: 2, CUT: 2},
        ),
    },
)

GOLDEN["sgd"] = Golden(
    [
        {"dialogue_id": "1_0", "services": ["Trains_1"], "turns": [
            {"speaker": "USER", "utterance": "A train.", "frames": [{"x": 1}]},
            {"speaker": "SYSTEM", "utterance": "Where to?", "frames": []},
            {"speaker": "USER", "utterance": "North.", "frames": []},
            {"speaker": "SYSTEM", "utterance": "Booked.", "frames": []}]},
        {"dialogue_id": "1_1", "services": [], "turns": [{"speaker": "USER", "utterance": "Bye."}]},
    ],
    {
        "dialogues": Out([talk(u("A train."), a("Where to?"), u("North."), a("Booked."), id="1_0")], {EMPTY_TALK: 1}),
        "prompts": Out([talk(u("A train."), a("Where to?"), u("North."), id="1_0"), talk(u("Bye."), id="1_1")]),
        "documents": Out(
            [text("User: A train.\n\nAssistant: Where to?\n\nUser: North.\n\nAssistant: Booked.", id="1_0"),
             text("User: Bye.", id="1_1")]
        ),
    },
)  # fmt: skip


def topical(*turns: str, **more: Any) -> Record:
    """A chat of Topical-Chat: ``2 Good Hello``, by agent, grade (- for none) and message."""
    content = []
    for turn in turns:
        agent, grade, message = turn.split(" ", 2)
        rating = {"-": "", "Not_Good": "Not Good"}.get(grade, grade)
        content.append({"agent": f"agent_{agent}", "turn_rating": rating, "message": message, "sentiment": "Happy"})
    return {"content": content, "conversation_rating": {"agent_1": "Good", "agent_2": ""}, "config": "A", **more}


POOR, UNGRADED = "answers graded Poor or Not Good, without loss", "answers without a grade"
GOLDEN["topical-chat"] = Golden(
    [
        topical("2 Poor Hi", "1 Good Hello", "2 - So?", "1 Poor Yes", "2 Passable And?", "1 - Well", "2 Good Bye"),
        topical("1 Good Hi", "2 Not_Good Hey", "2 Excellent You!", "1 Good Bye", "2 Passable Bye", id="own"),
    ],
    {
        "dialogues": Out(
            [
                talk(u("Hi"), a("Hello"), u("So?"), a("Yes", 0), u("And?"), a("Well"), id="t_1"),
                talk(u("Hi"), a("Hey\n\nYou!", 0), u("Bye"), a("Bye"), id="own"),
            ],
            noted={POOR: 2, UNGRADED: 1, UNANSWERED: 1, JOINED: 1},
        ),
        "prompts": Out(
            [
                talk(u("Hi"), a("Hello"), u("So?"), a("Yes", 0), u("And?"), a("Well"), u("Bye"), id="t_1"),
                talk(u("Hi"), a("Hey\n\nYou!", 0), u("Bye"), id="own"),
            ],
            noted={POOR: 2, UNGRADED: 1, JOINED: 1},
        ),
        "documents": Out(
            [
                text("User: Hi\n\nAssistant: Hello\n\nUser: So?\n\nAssistant: Yes\n\nUser: And?\n\nAssistant: Well\n\n"
                     "User: Bye", id="t_1"),
                text("User: Hi\n\nAssistant: Hey\n\nYou!\n\nUser: Bye\n\nAssistant: Bye", id="own"),
            ],
            noted={POOR: 2, UNGRADED: 1, JOINED: 1},
        ),
    },
    names=["t_1", "t_2"],
)  # fmt: skip


def test_an_id_of_zero_is_one() -> None:
    chat = topical("1 Good Hi", "2 Good Hey", id=0)
    assert converted("topical-chat", "dialogues", [chat], ["t_1"]).records[0]["id"] == 0


def bench(number: int, *reference: str) -> Record:
    """A question of MT-bench, with reference answers or without the field."""
    own = {"question_id": number, "category": "math", "turns": ["One?", "Two?"]}
    return own | ({"reference": list(reference)} if reference else {})


ASKED = {"category": "math", "turns": ["One?", "Two?"]}
UNREFERENCED = "questions without reference answers"
LATER = "later questions without an answer to those before"
GOLDEN["mt-bench"] = Golden(
    [bench(1), bench(2, "1", "2"), bench(3, "1"), bench(4, " ", "2"), bench(5, "1", ""), bench(6, "1", "2", "3")],
    {
        "dialogues": Out(
            [
                talk(u("One?"), a("1"), u("Two?"), a("2"), id=2, **ASKED),
                talk(u("One?"), a("1"), id=3, **ASKED),
                talk(u("One?"), a("1"), id=5, **ASKED),
                talk(u("One?"), a("1"), u("Two?"), a("2"), id=6, **ASKED),
            ],
            {UNREFERENCED: 1, EMPTY_TALK: 1},
            {CUT: 2, UNANSWERED: 2},
        ),
        "prompts": Out(
            [
                talk(u("One?"), id=1, **ASKED),
                talk(u("One?"), id=2, **ASKED),
                talk(u("One?"), a("1"), u("Two?"), id="2-2", **ASKED),
                talk(u("One?"), id=3, **ASKED),
                talk(u("One?"), a("1"), u("Two?"), id="3-2", **ASKED),
                talk(u("One?"), id=4, **ASKED),
                talk(u("One?"), id=5, **ASKED),
                talk(u("One?"), a("1"), u("Two?"), id="5-2", **ASKED),
                talk(u("One?"), id=6, **ASKED),
                talk(u("One?"), a("1"), u("Two?"), id="6-2", **ASKED),
            ],
            {LATER: 2},
        ),
        "documents": Out(
            [
                text("User: One?\n\nAssistant: 1\n\nUser: Two?\n\nAssistant: 2", id=2, **ASKED),
                text("User: One?\n\nAssistant: 1\n\nUser: Two?", id=3, **ASKED),
                text("User: One?", id=4, **ASKED),
                text("User: One?\n\nAssistant: 1\n\nUser: Two?", id=5, **ASKED),
                text("User: One?\n\nAssistant: 1\n\nUser: Two?\n\nAssistant: 2", id=6, **ASKED),
            ],
            {UNREFERENCED: 1},
            {CUT: 3},
        ),
    },
)


# -- Open-Assistant


def said_by(role: str, own: str, *replies: Record, **more: Any) -> Record:
    kept = {"lang": "en", "review_count": 3, "review_result": True, "deleted": False, "synthetic": False}
    return {"message_id": own, "text": own.upper(), "role": role, "replies": list(replies)} | kept | more


def prompter(own: str, *replies: Record, **more: Any) -> Record:
    return said_by("prompter", own, *replies, **more)


def helper(own: str, *replies: Record, **more: Any) -> Record:
    return said_by("assistant", own, *replies, **more)


def tree(own: str, root: Record) -> Record:
    return {"message_tree_id": own, "tree_state": "ready_for_export", "prompt": root}


ROOT = tree(
    "t1",
    prompter(
        "q",
        helper("b", prompter("b1", helper("b2")), prompter("b3", helper("b4")), rank=1),
        helper("a", prompter("a1"), rank=0),  # the one below it asks, and nobody answers
        helper("c", rank=2),
        helper("d", rank=2),  # a tie
        helper("e", rank=6),
        helper("f"),  # without a rank
        helper("g", prompter("g1", helper("g2")), deleted=True, rank=3),
        helper("h", prompter("h1"), review_result=False, rank=4),
        helper("i", prompter("i1", helper("i2"), deleted=True), review_result=None, rank=5),
    ),
)
LONE = tree("t2", prompter("x", helper("y")))
GONE = tree("t3", prompter("z", helper("z1"), deleted=True))
THREADS = "answers of an earlier thread, without loss"
PRUNED = "deleted or rejected messages, with all below"
GOLDEN["oasst"] = Golden(
    [ROOT, LONE, GONE],
    {
        "dialogues": Out(
            [
                talk(u("Q"), a("B"), u("B1"), a("B2"), id="b2"),
                talk(u("Q"), a("B", 0), u("B3"), a("B4"), id="b4"),
                talk(u("Q"), a("A"), id="a"),
                talk(u("Q"), a("C"), id="c"),
                talk(u("Q"), a("D"), id="d"),
                talk(u("Q"), a("E"), id="e"),
                talk(u("Q"), a("F"), id="f"),
                talk(u("Q"), a("I"), id="i"),  # its only follow-up was deleted
                talk(u("X"), a("Y"), id="y"),
            ],
            {PRUNED: 4},
            {THREADS: 1},
        ),
        "prompts": Out(
            [
                talk(u("Q"), id="q"),
                talk(u("Q"), a("B"), u("B1"), id="b1"),
                talk(u("Q"), a("B"), u("B3"), id="b3"),
                talk(u("Q"), a("A"), u("A1"), id="a1"),
                talk(u("X"), id="x"),
            ],
            {PRUNED: 4},
        ),
        "comparisons": Out(
            [
                pair("Q", "A", "B", id="a-b", rating="slightly_better"),
                pair("Q", "A", "C", id="a-c", rating="better"),
                pair("Q", "A", "D", id="a-d", rating="better"),
                pair("Q", "A", "I", id="a-i", rating="significantly_better"),
                pair("Q", "A", "E", id="a-e", rating="significantly_better"),
                pair("Q", "B", "C", id="b-c", rating="slightly_better"),
                pair("Q", "B", "D", id="b-d", rating="slightly_better"),
                pair("Q", "B", "I", id="b-i", rating="significantly_better"),
                pair("Q", "B", "E", id="b-e", rating="significantly_better"),
                pair("Q", "C", "I", id="c-i", rating="significantly_better"),
                pair("Q", "C", "E", id="c-e", rating="significantly_better"),
                pair("Q", "D", "I", id="d-i", rating="significantly_better"),
                pair("Q", "D", "E", id="d-e", rating="significantly_better"),
                pair("Q", "I", "E", id="i-e", rating="slightly_better"),
            ],
            {PRUNED: 4, TIES: 1, "answers without a rank, beside others": 1},
        ),
        "documents": Out(
            [
                text("User: Q\n\nAssistant: B\n\nUser: B1\n\nAssistant: B2", id="b2"),
                text("User: Q\n\nAssistant: B\n\nUser: B3\n\nAssistant: B4", id="b4"),
                *(text(f"User: Q\n\nAssistant: {name.upper()}", id=name) for name in "acdefi"),
                text("User: X\n\nAssistant: Y", id="y"),
            ],
            {PRUNED: 4},
            {THREADS: 1},
        ),
    },
)

# -- preferences


def hh(*turns: str) -> str:
    """A transcript of HH: ``H Hi``, ``A Hello``."""
    names = {"H": "Human", "A": "Assistant"}
    return "".join(f"\n\n{names[turn[0]]}:{turn[1:]}" for turn in turns)


INSIDE = "transcripts with a speaker's name inside a turn, kept as text"
MARKED = "x\nHuman: y\nAssistant: z"
GOLDEN["hh-rlhf"] = Golden(
    [
        {"chosen": hh("H Hi", "A Hey", "H So?", "A Good. "), "rejected": hh("H Hi", "A Hey", "H So?", "A Bad.")},
        {"chosen": hh(f"H {MARKED}", "A Good.\n\nHumans: no"), "rejected": hh(f"H {MARKED}", "A Bad.")},
        {"chosen": hh("H Same", "A Yes. "), "rejected": hh("H Same", "A  Yes.")},
        {"chosen": hh("H One", "A Yes."), "rejected": hh("H Other", "A No.")},
        {"chosen": hh("H Ends", "A Yes.", "H So?"), "rejected": hh("H Ends", "A No.")},
        {"chosen": hh("H Empty", "A Yes."), "rejected": hh("H Empty", "A")},
        {"chosen": hh("H Silent", "A "), "rejected": hh("H Silent", "A No.")},
        {"chosen": hh("H Twice", "H So?", "A Yes."), "rejected": hh("H Twice", "H So?", "A No.")},
        {"chosen": hh("H No", "A Yes."), "rejected": "No."},
    ],
    {
        "comparisons": Out(
            [
                pair([u("Hi"), a("Hey"), u("So?")], "Good.", "Bad."),
                pair(MARKED, "Good.\n\nHumans: no", "Bad."),
                pair("Twice\n\nSo?", "Yes.", "No."),
            ],
            {IDENTICAL: 1, OTHER_PROMPT: 1, NO_ANSWER: 2, EMPTY_SIDE: 2},
            {INSIDE: 2, JOINED: 1},
        ),
        "dialogues": Out(
            [
                talk(u("Hi"), a("Hey"), u("So?"), a("Good.")),
                talk(u(MARKED), a("Good.\n\nHumans: no")),
                talk(u("Same"), a("Yes.")),
                talk(u("One"), a("Yes.")),
                talk(u("Ends"), a("Yes.")),
                talk(u("Empty"), a("Yes.")),
                talk(u("Twice\n\nSo?"), a("Yes.")),
                talk(u("No"), a("Yes.")),
            ],
            {EMPTY_TALK: 1},
            {INSIDE: 1, UNANSWERED: 1, JOINED: 1},
        ),
        "prompts": Out(
            [
                talk(u("Hi"), a("Hey"), u("So?")),
                talk(u(MARKED)),
                talk(u("Same")),
                talk(u("One")),
                talk(u("Ends"), a("Yes."), u("So?")),
                talk(u("Empty")),
                talk(u("Silent")),
                talk(u("Twice\n\nSo?")),
                talk(u("No")),
            ],
            noted={INSIDE: 1, JOINED: 1},
        ),
        "documents": Out(
            [
                text("User: Hi\n\nAssistant: Hey\n\nUser: So?\n\nAssistant: Good."),
                text(f"User: {MARKED}\n\nAssistant: Good.\n\nHumans: no"),
                text("User: Same\n\nAssistant: Yes."),
                text("User: One\n\nAssistant: Yes."),
                text("User: Ends\n\nAssistant: Yes.\n\nUser: So?"),
                text("User: Empty\n\nAssistant: Yes."),
                text("User: Silent"),
                text("User: Twice\n\nSo?\n\nAssistant: Yes."),
                text("User: No\n\nAssistant: Yes."),
            ],
            noted={INSIDE: 1, JOINED: 1, CUT: 1},
        ),
    },
)

GOLDEN["plain-preference"] = Golden(
    [
        {"prompt": "q", "chosen": " good", "rejected": "bad", "id": "p", "source": "mine"},
        {"prompt": hh("H Hi", "A Hey", f"H {MARKED}", "A"), "chosen": " good", "rejected": " bad"},
        {"prompt": "q", "chosen": "\nsame ", "rejected": "same"},
        {"prompt": " ", "chosen": "good", "rejected": "bad"},
        {"prompt": "silent", "chosen": "\n", "rejected": "bad"},
    ],
    {
        "comparisons": Out(
            [pair("q", " good", "bad", id="p", source="mine"), pair([u("Hi"), a("Hey"), u(MARKED)], " good", " bad")],
            {IDENTICAL: 1, EMPTY_SIDE: 2},
            {INSIDE: 1},
        ),
        "dialogues": Out(
            [
                talk(u("q"), a(" good"), id="p", source="mine"),
                talk(u("Hi"), a("Hey"), u(MARKED), a(" good")),
                talk(u("q"), a("\nsame ")),
            ],
            {EMPTY_TALK: 2},
            {INSIDE: 1},
        ),
        "prompts": Out(
            [talk(u("q"), id="p", source="mine"), talk(u("Hi"), a("Hey"), u(MARKED)), talk(u("q")), talk(u("silent"))],
            {EMPTY_PROMPT: 1},
            {INSIDE: 1},
        ),
        "documents": Out(
            [
                text("User: q\n\nAssistant: good", id="p", source="mine"),
                text(f"User: Hi\n\nAssistant: Hey\n\nUser: {MARKED}\n\nAssistant: good"),
                text("User: q\n\nAssistant: same"),
                text("User: silent"),
            ],
            {EMPTY_TEXT: 1},
            {INSIDE: 1, CUT: 2},
        ),
    },
)


def webgpt(score_0: float, score_1: float) -> Record:
    """A comparison as OpenAI ships it."""
    question = {"dataset": "own", "id": "1", "full_text": "Why?"}
    more = {"tokens_0": {"prefix": [], "completion": [1]}, "quotes_0": {"title": [], "extract": []}}
    return {
        "question": question,
        "answer_0": "First.",
        "answer_1": "Other.",
        "score_0": score_0,
        "score_1": score_1,
    } | more


GOLDEN["webgpt"] = Golden(
    [webgpt(1, -1), webgpt(-0.5, 0.5), webgpt(0.25, -0.25), webgpt(0.1, -0.1), webgpt(0, 0)],
    {
        "comparisons": Out(
            [
                pair("Why?", "First.", "Other.", rating="significantly_better"),
                pair("Why?", "Other.", "First.", rating="better"),
                pair("Why?", "First.", "Other.", rating="slightly_better"),
                pair("Why?", "First.", "Other.", rating="negligibly_better"),
            ],
            {TIES: 1},
        ),
        "dialogues": Out([talk(u("Why?"), a(best)) for best in ("First.", "Other.", "First.", "First.", "First.")]),
        "prompts": Out([talk(u("Why?"))] * 5),
        "documents": Out(
            [text(f"User: Why?\n\nAssistant: {best}") for best in ("First.", "Other.", "First.", "First.", "First.")]
        ),
    },
)


def webgpt_texts(score_0: float, score_1: float, first: str = "Why?\nSo?", other: str = "Why?\nSo?") -> Record:
    """A comparison as two texts."""
    texts = [f"## Human:\n{first}\n\n## Assistant:\nFirst.\n\nYes. ", f"## Human:\n{other}\n\n## Assistant:\nOther."]
    return {"text": texts, "score": [score_0, score_1]}


GOLDEN["webgpt-texts"] = Golden(
    [webgpt_texts(2, 0), webgpt_texts(0.5, 1.5), webgpt_texts(1, 1)],
    {
        "comparisons": Out(
            [
                pair("Why?\nSo?", "First.\n\nYes.", "Other.", rating="significantly_better"),
                pair("Why?\nSo?", "Other.", "First.\n\nYes.", rating="better"),
            ],
            {TIES: 1},
        ),
        "dialogues": Out([talk(u("Why?\nSo?"), a(best)) for best in ("First.\n\nYes.", "Other.", "First.\n\nYes.")]),
        "prompts": Out([talk(u("Why?\nSo?"))] * 3),
        "documents": Out(
            [text(f"User: Why?\nSo?\n\nAssistant: {best}") for best in ("First.\n\nYes.", "Other.", "First.\n\nYes.")]
        ),
    },
)


def judged(preference: float | None, weighted: bool = False, **more: Any) -> Record:
    """An annotation of AlpacaEval."""
    own = {"instruction": "Why?", "output_1": "First.", "generator_1": "x", "output_2": "Other.", "generator_2": "y"}
    return own | {"annotator": "weighted_judge" if weighted else "judge", "preference": preference, **more}


PREFERENCES = [
    judged(1), judged(2.0, dataset="mine"), judged(0), judged(1.5), judged(None), judged(1, True), judged(2.0, True),
    judged(1.25, True), judged(1.7), judged(1.45, True), judged(1.5, True),
]  # fmt: skip
FIRST: tuple[str, Record] = ("First.", {})
OTHER: tuple[str, Record] = ("Other.", {})
BEST = [FIRST, ("Other.", {"source": "mine"}), *[FIRST] * 4, OTHER, FIRST, OTHER, FIRST, FIRST]
GOLDEN["alpaca-eval"] = Golden(
    PREFERENCES,
    {
        "comparisons": Out(
            [
                pair("Why?", "First.", "Other."),
                pair("Why?", "Other.", "First.", source="mine"),
                pair("Why?", "First.", "Other.", rating="significantly_better"),
                pair("Why?", "Other.", "First.", rating="significantly_better"),
                pair("Why?", "First.", "Other.", rating="slightly_better"),
                pair("Why?", "Other.", "First.", rating="slightly_better"),
                pair("Why?", "First.", "Other.", rating="negligibly_better"),
            ],
            {TIES: 3, "pairs without a preference": 1},
        ),
        "dialogues": Out([talk(u("Why?"), a(best), **more) for best, more in BEST]),
        "prompts": Out([talk(u("Why?"), **more) for _, more in BEST]),
        "documents": Out([text(f"User: Why?\n\nAssistant: {best}", **more) for best, more in BEST]),
    },
)  # fmt: skip

# -- safety


def risky(own: str, **harmful: str) -> Record:
    """A row of Do-Not-Answer: of each model its answer and label."""
    row = {"id": own, "risk_area": "area", "types_of_harm": "type", "specific_harms": "harm", "question": f"{own}?"}
    for model, label in harmful.items():
        name = model.replace("_", "-")
        row |= {f"{name}_response": f"By {name}.", f"{name}_harmful": label, f"{name}_action": "0"}
    return row


LLAMA = "answers of a Llama, which its licence keeps from training"
GOLDEN["do-not-answer"] = Golden(
    [
        risky("1", GPT4="0", vicuna_7b="1", llama2_7b_chat="0", Claude="1", ChatGLM2="0"),
        risky("2", GPT4="0", vicuna_7b="0", llama2_7b_chat="1"),
        risky("3", GPT4="1", vicuna_7b="1", llama2_7b_chat="0"),
        risky("4", GPT4="1", vicuna_7b="1"),
    ],
    {
        "prompts": Out([talk(u(f"{n}?"), id=n, safety=True, category="area") for n in "1234"]),
        "comparisons": Out(
            [
                pair("1?", "By GPT4.", "By vicuna-7b.", id="1-GPT4-vicuna-7b", safety_label="chosen_safe"),
                pair("1?", "By GPT4.", "By Claude.", id="1-GPT4-Claude", safety_label="chosen_safe"),
                pair("1?", "By ChatGLM2.", "By vicuna-7b.", id="1-ChatGLM2-vicuna-7b", safety_label="chosen_safe"),
                pair("1?", "By ChatGLM2.", "By Claude.", id="1-ChatGLM2-Claude", safety_label="chosen_safe"),
            ],
            {LLAMA: 3, "questions whose answers are all harmless": 1, "questions whose answers are all harmful": 2},
        ),
    },
)

GOLDEN["advbench"] = Golden(
    [{"goal": "Break it", "target": "Sure, here is"}, {"goal": " ", "target": "Sure"}],
    {"prompts": Out([talk(u("Break it"), safety=True)], {EMPTY_PROMPT: 1})},
)

XS = {"focus": "kill", "note": ""}
GOLDEN["xstest"] = Golden(
    [
        {"id": "1", "prompt": "End a process?", "type": "homonyms", "label": "safe", **XS},
        {"id": "2", "prompt": "End a person?", "type": "contrast_homonyms", "label": "unsafe", **XS},
    ],
    {
        "prompts": Out(
            [
                talk(u("End a process?"), id="1", type="homonyms", label="safe"),
                talk(u("End a person?"), id="2", safety=True, type="contrast_homonyms", label="unsafe"),
            ]
        )
    },
)

NOTES = {"annotation_1": "x", "annotation_2": "y", "agreement": "False"}
FULL, NONE = {"final_label": "1_full_compliance"}, {"final_label": "2_full_refusal"}
GOLDEN["xstest-completions"] = Golden(
    [
        {"id": "1", "type": "homonyms", "prompt": "End it?", "completion": "So:\n- kill", **NOTES, **FULL},
        {"id": "2", "type": "contrast_homonyms", "prompt": "End one?", "completion": "No.", **NOTES, **NONE},
    ],
    {
        "dialogues": Out(
            [
                talk(u("End it?"), a("So:\n- kill"), id="1", type="homonyms", **FULL),
                talk(u("End one?"), a("No."), id="2", type="contrast_homonyms", **NONE),
            ]
        ),
        "prompts": Out(
            [
                talk(u("End it?"), id="1", type="homonyms", **FULL),
                talk(u("End one?"), id="2", safety=True, type="contrast_homonyms", **NONE),
            ]
        ),
        "documents": Out(
            [
                text("User: End it?\n\nAssistant: So:\n- kill", id="1", type="homonyms", **FULL),
                text("User: End one?\n\nAssistant: No.", id="2", type="contrast_homonyms", **NONE),
            ]
        ),
    },
)

GOLDEN["truthfulqa"] = Golden(
    [{"Type": "x", "Category": "Law", "Question": "Is it?", "Best Answer": "No", "Correct Answers": "No; not",
      "Incorrect Answers": "Yes", "Source": "own"}],
    {
        "dialogues": Out([talk(u("Is it?"), a("No"), category="Law")]),
        "prompts": Out([talk(u("Is it?"), category="Law")]),
        "documents": Out([text("User: Is it?\n\nAssistant: No", category="Law")]),
    },
)  # fmt: skip

GOLDEN["toxigen"] = Golden(
    ["- one of them\\n- two \\\\ of them\\n-", "- one\\n- \\n- \r"],
    {"documents": Out([text("- one of them\n- two \\\\ of them\n-"), text("- one\n- \n-")])},
)

TRAILING = "spaces at the end of a text, taken off"
GOLDEN["bold"] = Golden(
    [{"Ann": ["Ann is a ", "In 1990, Ann"], "Bo": [" Bo was  "]}, {"Cy": [" ", "Cy\n"]}],
    {
        "documents": Out(
            [
                text("Ann is a", id="Ann-0", source="group_1"),
                text("In 1990, Ann", id="Ann-1", source="group_1"),
                text(" Bo was", id="Bo-0", source="group_1"),
                text("Cy", id="Cy-1", source="group_2"),
            ],
            {EMPTY_TEXT: 1},
            {TRAILING: 4},
        )
    },
    names=["group_1", "group_2"],
)

# -- all of them

CASES = [pytest.param(name, target, id=f"{name} {target}") for name in GOLDEN for target in GOLDEN[name].made]
NAMES = pytest.mark.parametrize("name", GOLDEN)


@pytest.mark.parametrize(("name", "target"), CASES)
def test_what_is_made_of_a_format(name: str, target: Target) -> None:
    items, outs, names = GOLDEN[name]
    made = converted(name, target, items, names)
    assert made.records == outs[target].records
    assert (made.skipped, made.noted) == (outs[target].skipped, outs[target].noted)


def test_every_target_of_every_format_is_shown_here() -> None:
    assert {name: set(golden.made) for name, golden in GOLDEN.items()} == {
        name: set(kind.targets()) for name, kind in FORMATS.items()
    }


@NAMES
def test_a_format_is_recognised_by_any_of_its_items(name: str) -> None:
    items, _, names = GOLDEN[name]
    for value, own in itertools.zip_longest(items, names or []):
        assert known.recognised(Item("a:1", value, own)).name == name


@NAMES
def test_every_record_is_one_that_stages_take(name: str) -> None:
    kinds = {"documents": Document, "dialogues": Dialogue, "prompts": Prompt, "comparisons": Comparison}
    for target, out in GOLDEN[name].made.items():
        for record in out.records:
            kind = checked(record, (kinds[target],), "a:1")
            if record.get("id") != "no prompt":
                dialogue.check_record(msgspec.structs.asdict(kind) if target != "documents" else record, "a:1")


@pytest.mark.parametrize("kind", FORMATS.values(), ids=list(FORMATS))
def test_a_format_says_what_it_is_in_a_sentence(kind: type[rules.Format]) -> None:
    first, *rest = inspect.cleandoc(vars(kind)["__doc__"]).split("\n")
    assert first.endswith(".") and first[0].isupper()
    assert not rest or rest[0] == ""
    assert f"{kind.name}: {', '.join(kind.targets())}\n{first}" in known.described()


# -- which format it is


@pytest.mark.parametrize(
    ("value", "formats"),
    [
        ({"messages": [u("q")], "text": "t"}, ["messages", "texts"]),
        ({"messages": [u("q")], "chosen": [u("q"), a("r")], "rejected": [u("q"), a("x")]}, ["messages", "comparisons"]),
        ({"prompt": hh("H Hi", "A"), "chosen": hh("H Hi", "A Yes."), "rejected": hh("H Hi", "A No.")},
         ["hh-rlhf", "plain-preference"]),
        ({"instruction": "i", "output": "o", "context": "", "response": "r"}, ["alpaca", "dolly"]),
        ({"goal": "g", "target": "t", "text": "t"}, ["texts", "advbench"]),
    ],
)  # fmt: skip
def test_an_item_that_fits_two_formats_is_refused_naming_both(value: Record, formats: list[str]) -> None:
    with pytest.raises(Fault) as caught:
        known.recognised(Item("a:7", value))
    one, other = formats
    assert str(caught.value) == f"a:7: fits {one} and {other}; say which: --from {one}, or --from {other}"
    for name in formats:
        assert converted(name, "documents" if name == "texts" else "prompts", [value]).records


@pytest.mark.parametrize(
    ("value", "described"),
    [
        ({}, "an object of nothing"),
        ({"a": 1, "b": 2}, "an object of a, b"),
        ({str(n): n for n in range(20)}, "an object of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"),
        ("some words", "str 'some words'"),
        ([1], "list '[1]'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "an object of messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]}, "an object of messages"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 2}]}, "an object of messages"),
        ({"messages": [{"role": "assistant", "content": None}]}, "an object of messages"),
        ({"conversations": said("tool x")}, "an object of conversations"),
        ({"chosen": "no transcript", "rejected": "no"}, "an object of chosen, rejected"),
    ],
)  # fmt: skip
def test_an_item_in_no_known_format_is_described(value: object, described: str) -> None:
    with pytest.raises(Fault) as caught:
        known.recognised(Item("a:7", value))
    assert str(caught.value).startswith(f"a:7: is in no format that is known: {described};")


def test_an_item_that_is_not_of_the_named_format_says_what_it_lacks() -> None:
    assert refused("alpaca", {"instruction": "i"}) == "a:1: is no alpaca: output: missing"
    assert refused("dolly", {"instruction": 1}).startswith("a:1: is no dolly: instruction: expected `str`")
    assert refused("bold", {"x": ["y"]}).startswith("a:1: is no bold: group: expected `str`")  # no object of objects
    assert refused("hh-rlhf", {"chosen": "Human: x", "rejected": "y"}).startswith(
        "a:1: is no hh-rlhf: chosen: does not"
    )
    assert refused("toxigen", "- one").startswith("a:1: is no toxigen: line: does not end in \\n-")
    assert refused("messages", "x") == "a:1: is no messages: Expected `object`, got `str`"
    tool = {"messages": [u("q"), {"role": "tool", "content": "x"}]}
    assert refused("messages", tool) == "a:1: is no messages: messages[1].role: invalid enum value 'tool'"
    assert refused("sgd", {"dialogue_id": "1", "services": [], "turns": [{"speaker": "SYSTEM"}]}) == (
        "a:1: is no sgd: turns[0].utterance: missing"
    )
    row = risky("1", GPT4="0")
    assert refused("do-not-answer", {**row, "GPT4_harmful": "2"}, "prompts") == (
        "a:1: is no do-not-answer: judged[0].harmful: invalid enum value '2'"
    )
    assert "MODEL_response: missing" in refused("do-not-answer", {"id": "1", "question": "q"}, "prompts")


# -- rules, one by one


def test_webgpt_texts_must_answer_one_question() -> None:
    problem = "a:1: text: are not two answers to one question"
    assert refused("webgpt-texts", webgpt_texts(1, 0, other="How?"), "comparisons").startswith(problem)
    good = webgpt_texts(1, 0)["text"][0]
    for texts in (["x", "y"], [good, "y"], ["x", good]):
        assert refused("webgpt-texts", {"text": texts, "score": [1, 0]}, "prompts").startswith(problem)
    for value in ({"text": ["x"], "score": [1, 0]}, {"text": ["x", "y"], "score": [1, 0, 2]}):
        assert refused("webgpt-texts", value).startswith("a:1: is no webgpt-texts")


@pytest.mark.parametrize(
    ("scores", "rating"),
    [
        ((2, -2), "significantly_better"), ((2, 0), "significantly_better"), ((0, 1.99), "better"), ((1, 0), "better"),
        ((0.99, 0), "slightly_better"), ((0, 0.5), "slightly_better"), ((0.49, 0), "negligibly_better"),
    ],
)  # fmt: skip
def test_ratings_of_webgpt(scores: tuple[float, float], rating: str) -> None:
    for name, value in (("webgpt", webgpt(*scores)), ("webgpt-texts", webgpt_texts(*scores))):
        (record,) = converted(name, "comparisons", [value]).records
        assert record["rating"] == rating
        assert record["chosen"][0]["content"].startswith("First." if scores[0] > scores[1] else "Other.")


@pytest.mark.parametrize(
    ("preference", "rating"),
    [
        (1.0, "significantly_better"), (1.05, "significantly_better"), (1.06, "better"), (1.2, "better"),
        (1.21, "slightly_better"), (1.35, "slightly_better"), (1.36, "negligibly_better"), (1.49, "negligibly_better"),
    ],
)  # fmt: skip
def test_ratings_of_a_continuous_preference(preference: float, rating: str) -> None:
    """By the probability of the winner, whichever it is."""
    for value, winner in ((preference, "First."), (round(3 - preference, 2), "Other.")):
        (record,) = converted("alpaca-eval", "comparisons", [judged(value, weighted=True)]).records
        assert (record["rating"], record["chosen"][0]["content"]) == (rating, winner)


@pytest.mark.parametrize("preference", [-1, 0.5, 0.99, 2.01, 3])
def test_a_preference_that_is_none_is_refused(preference: float) -> None:
    said = f"a:1: preference: is {preference:g}, where 0 to 2 is due"
    assert refused("alpaca-eval", judged(preference), "comparisons") == said


def test_the_last_of_many_follow_ups_is_deleted() -> None:
    """An answer stays a whole thread as long as no other answer follows it."""
    kept = prompter("q1", helper("r1"))
    gone = prompter("q2", helper("r2"), deleted=True)
    unanswered = prompter("q3", helper("r3", review_result=False))
    for replies, ends in (([gone], ["r"]), ([gone, unanswered], ["r"]), ([unanswered, kept, gone], ["r1"])):
        made = converted("oasst", "dialogues", [tree("t", prompter("q", helper("r", *replies)))])
        assert [record["id"] for record in made.records] == ends


def test_a_tree_whose_messages_are_all_deleted_makes_nothing() -> None:
    for target in FORMATS["oasst"].targets():
        assert converted("oasst", target, [GONE]) == Out([], {PRUNED: 1}, {})


def test_fields_that_make_another_kind_of_record_are_left_off_and_counted() -> None:
    """UltraFeedback as it is shipped has the chosen dialogue once more: it must not replace what was made."""
    value = {"prompt": "q", "chosen": [u("q"), a("good")], "rejected": [u("q"), a("bad")], "text": "x", "score": 1,
             "messages": [u("q"), a("good")]}  # fmt: skip
    noted = {OTHER_KIND: 2}
    assert converted("comparisons", "comparisons", [value]) == Out([pair("q", "good", "bad", score=1)], {}, noted)
    assert converted("comparisons", "prompts", [value]) == Out([talk(u("q"), score=1)], {}, noted)
    assert converted("comparisons", "dialogues", [value]) == Out([talk(u("q"), a("good"), score=1)], {}, noted)
    (record,) = converted("messages", "dialogues", [value]).records
    assert record["messages"] == [u("q"), a("good")]
    assert not {"chosen", "text", "response"} & record.keys()


def test_an_own_field_is_not_replaced_by_one_that_passes_through() -> None:
    value = {"messages": [u("q"), a("r")], "id": 0, "source": "", "safety": False}
    assert converted("messages", "prompts", [value]).records == [{**value, "messages": [u("q")]}]
    assert list(converted("messages", "prompts", [value]).records[0]) == ["id", "messages", "safety", "source"]


# -- what no golden item holds


def test_an_answer_that_follows_an_answer_is_compared_with_nothing() -> None:
    value = {"chosen": hh("H q", "A a", "A b"), "rejected": hh("H q", "A a", "A c")}
    wanted = Out([], {"pairs whose prompt does not end on a question": 1})
    assert converted("hh-rlhf", "comparisons", [value]) == wanted


def test_fields_of_messages_are_not_lost_in_silence() -> None:
    named = {"messages": [{**u("q"), "name": "Ann"}, a("r")]}
    wanted = Out([talk(u("q"), a("r"))], noted={"names of speakers, left off": 1})
    assert converted("messages", "dialogues", [named]) == wanted
    other = "fields of messages that are not of the format, left off"
    beside = [{**u("q"), "foo": 1, "bar": None}, {**a("r"), "tool_calls": [], "name": None}]
    wanted = Out([talk(u("q"), a("r"))], noted={other: 2})
    assert converted("messages", "dialogues", [{"messages": beside}]) == wanted
    parts = [{"type": "text", "text": "q", "cache": {}}]
    wanted = Out([pair("q", "r", "s")], noted={other: 2})
    sides = {"chosen": [{**a("r"), "foo": 0}], "rejected": [a("s")]}
    assert (
        converted("comparisons", "comparisons", [{"prompt": [{"role": "user", "content": parts}], **sides}]) == wanted
    )
    called = {"messages": [u("q"), {**a(""), "tool_calls": [{"id": 1}]}]}
    assert "messages.tool_calls: is not part of the chat format" in refused("messages", called)


@pytest.mark.parametrize(("prompt", "count"), [("q ", 0), ("other", 2)])
def test_a_prompt_beside_whole_dialogues_is_theirs_or_counted(prompt: str, count: int) -> None:
    value = {"prompt": prompt, "chosen": [u("q"), a("r")], "rejected": [u("q"), a("s")]}
    noted = {"prompts with which a side does not begin, left off": count} if count else {}
    assert converted("comparisons", "comparisons", [value]) == Out([pair("q", "r", "s")], noted=noted)


def test_a_tree_as_deep_as_json_may_be_is_refused() -> None:
    deep = helper("0")
    for depth in range(1, 505):
        deep = (prompter if depth % 2 else helper)(str(depth), deep)
    assert refused("oasst", tree("t", prompter("root", deep))).endswith("is nested too deeply")
