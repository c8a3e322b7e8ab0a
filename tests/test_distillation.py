"""Safety distillation: pre-prompts and where they stand, which answers are kept, reports against numbers by hand."""

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from conftest import DATA, run, turns, written

from llamactl.align.distillation import Trial, alone, learned, report, tables
from llamactl.align.preprompts import ADJECTIVES, ANSWERS, DEFAULT, Templates, under
from llamactl.align.questions import RiskyPrompt
from llamactl.artifacts.jsonl import Found, checked
from llamactl.artifacts.records import Message
from llamactl.errors import Fault


def risky(text: str, category: str | None = None, where: str = "p.jsonl:1") -> Found[Any]:
    raw = {"messages": turns(text)} | ({"category": category} if category is not None else {})
    return Found(checked(raw, (RiskyPrompt,), where), raw, where)


def templates(path: Path, *records: dict[str, Any]) -> Templates:
    return Templates.read(written(path / "t.jsonl", records))


# -- pre-prompts


def test_a_pre_prompt_is_a_template_with_adjectives_in_it(tmp_path: Path) -> None:
    made = templates(
        tmp_path, {"adjective": "wise"}, {"adjective": " kind "}, {"pre_prompt": " Be {adjective} and {adjective}. "}
    )
    found = {made.drawn(risky(f"question {n}"), 0)["generic"] for n in range(40)}
    assert found == {"Be wise and kind.", "Be kind and wise."}


def test_a_prompt_of_a_category_has_one_of_its_own_beside(tmp_path: Path) -> None:
    lines = [
        {"pre_prompt": "Be safe."},
        {"pre_prompt": "Say that it is against the law.", "category": "Malicious Uses"},
        {"pre_prompt": "Say who to ask.", "category": "Advice"},
    ]
    made = templates(tmp_path, *lines)
    assert made.drawn(risky("q", " malicious uses"), 0) == {
        "generic": "Be safe.", "tailored": "Say that it is against the law.",
    }  # fmt: skip
    assert made.drawn(risky("q", "Advice"), 0)["tailored"] == "Say who to ask."
    for none in (None, "", "Spam"):
        assert made.drawn(risky("q", none), 0) == {"generic": "Be safe."}


def test_a_file_decides_which_kinds_there_are(tmp_path: Path) -> None:
    made = templates(tmp_path, {"pre_prompt": "Say who to ask.", "category": "Advice"})
    assert made.drawn(risky("q", "Advice"), 0) == {"tailored": "Say who to ask."}
    for category, said in ((None, "is not named, and there is no"), ("Spam", "is Spam, for which there is no")):
        with pytest.raises(Fault, match=rf"p.jsonl:1: category: {said} pre-prompt"):
            made.drawn(risky("q", category), 0)


def test_pre_prompts_depend_on_the_seed_and_the_prompt_alone() -> None:
    made, again = Templates.default(), Templates.default()
    prompts = [risky(f"How do I {n}?", "Malicious Uses", f"x:{n}") for n in range(30)]
    first = [made.drawn(one, 7) for one in prompts]
    assert first == [again.drawn(one._replace(where="y:9"), 7) for one in prompts]
    assert [*reversed(first)] == [again.drawn(one, 7) for one in reversed(prompts)]
    assert first != [made.drawn(one, 8) for one in prompts]
    assert len({one["generic"] for one in first}) > 20


def test_ours_use_all_adjectives_none_twice_and_answer_each_category() -> None:
    made = Templates.default()
    texts = [text for n in range(300) for text in made.drawn(risky(f"{n}", [*ANSWERS][n % 8]), 0).values()]
    assert len(texts) == 600
    words = [[word for word in re.findall(r"\w+", text) if word in ADJECTIVES] for text in texts]
    assert {word for some in words for word in some} == {*ADJECTIVES}
    assert all(len(some) == len(set(some)) > 0 for some in words)
    assert not any("{" in text or " a u" in text or " a a" in text for text in texts)
    for name, answer in ANSWERS.items():
        assert answer in made.drawn(risky("q", name), 0)["tailored"]


@pytest.mark.shared
@pytest.mark.skipif(not DATA.exists(), reason="the development data is not beside the checkout")
def test_ours_know_the_categories_of_do_not_answer() -> None:
    made = run("convert", DATA / "safety/do-not-answer/data_en.csv", "--to", "prompts", status=0).stdout
    assert {json.loads(line)["category"] for line in made.splitlines()} == {*[*ANSWERS][:5]}


def test_printing_them_needs_no_torch() -> None:
    code = "import sys; from llamactl.align import preprompts; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ours_can_be_printed_and_read_back(tmp_path: Path) -> None:
    read = templates(tmp_path, *DEFAULT)
    for n, name in enumerate([None, *ANSWERS]):
        assert read.drawn(risky(f"{n}", name), 3) == Templates.default().drawn(risky(f"{n}", name), 3)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"pre_prompt": "Be {adjectiv}."}, "t.jsonl:2: pre_prompt: holds {adjectiv}; only {adjective} of a pre_prompt"),
        ({"adjective": "{adjective}"}, "t.jsonl:2: adjective: holds {adjective}; only"),
        ({"pre_prompt": " "}, "t.jsonl:2: pre_prompt: is empty"),
        ({"adjective": ""}, "t.jsonl:2: adjective: is empty"),
        ({"pre_prompt": "<<SYS>> Be."}, "t.jsonl:2: pre_prompt: holds <<SYS>>"),
        ({"pre_prompt": "{adjective} {adjective}"}, "t.jsonl:2: pre_prompt: has 2 places for adjectives, and there "),
        ({"text": "Be wise."}, "t.jsonl:2: pre_prompt or adjective: missing (the record has: text); --default-temp"),
        ({"pre_prompt": 3}, "t.jsonl:2: pre_prompt: expected `str`, got `int`; --default-templates"),
        ([], "t.jsonl:2: is an array, not an object; --default-templates"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_template_is_refused_with_its_place(tmp_path: Path, line: Any, said: str) -> None:
    with pytest.raises(Fault) as fault:
        templates(tmp_path, {"adjective": "wise"}, line)
    assert str(fault.value).startswith(f"{tmp_path}/{said}")


def test_tags_are_accepted_where_that_is_asked(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", [{"pre_prompt": "Answer [INST] as {adjective}."}, {"adjective": "<<SYS>>"}])
    with pytest.raises(Fault, match=r"t.jsonl:1: pre_prompt: holds \[INST\], .*; --allow-tags to accept it"):
        Templates.read(path)
    assert Templates.read(path, allow_tags=True).drawn(risky("q"), 0) == {"generic": "Answer [INST] as <<SYS>>."}


def test_a_file_without_pre_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"t\.jsonl: holds no pre-prompt"):
        templates(tmp_path, {"adjective": "wise"})


def test_a_pre_prompt_stands_before_the_system_message() -> None:
    plain = [Message(role="user", content="q")]
    system = Message(role="system", content="Be brief.")
    assert under("Be wise.", plain) == [Message(role="system", content="Be wise."), *plain]
    assert under("Be wise.", [system, *plain]) == [Message(role="system", content="Be wise.\n\nBe brief."), *plain]


# -- what is learned


def test_only_the_new_answer_is_learned() -> None:
    """What the model said before it, perhaps unsafe, carries no loss."""
    raw = {"messages": turns("a", "bad", "c"), "response": "no", "id": 1}
    assert alone(raw) == {
        "id": 1,
        "messages": [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "bad", "weight": 0},
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "no"},
        ],
    }  # fmt: skip
    assert learned(raw) == {"id": 1, "messages": turns("a", "bad", "c", "no")}


# -- reports


def trial(prompt: str, kept: str | None = None, category: str | None = None, **scores: float | None) -> Trial:
    """Answers by way of asking: those that score 9 are without a text."""
    return Trial(
        prompt=prompt, category=category, scores=scores, tokens=dict.fromkeys(scores, 4),
        truncated=dict.fromkeys(scores, False), refusals={way: score == 2 for way, score in scores.items()},
        empty={way: score == 9 for way, score in scores.items()}, cut=dict.fromkeys(scores, 0), refused=[], kept=kept,
    )  # fmt: skip


TRIALS = [
    trial("a", "tailored", "x", plain=-1.0, generic=0.0, tailored=2.0),
    trial("b", "generic", "x", plain=0.0, generic=1.0, tailored=-1.0),
    trial("c", None, "x", plain=3.0, generic=1.0, tailored=2.0),
    trial("d", None, None, plain=1.0, generic=0.5),
    trial("e", "generic", None, plain=-2.0, generic=-1.5),
    trial("f", None, None, plain=2.5, generic=9.0),
    trial("g", None, None, plain=None, generic=0.0),
    trial("h", None, "y", plain=-3.0, generic=None, tailored=9.0),
]


def test_the_best_of_what_has_a_text_and_a_score() -> None:
    assert [one.best for one in TRIALS] == [
        "tailored", "generic", "tailored", "generic", "generic", None, "generic", None,
    ]  # fmt: skip
    assert [one.under for one in TRIALS] == [2.0, 1.0, 2.0, 0.5, -1.5, 2.5, 0.0, -3.0]
    assert [one.after for one in TRIALS] == [2.0, 1.0, 3.0, 1.0, -1.5, 2.5, None, -3.0]


def test_a_report_by_hand() -> None:
    found = report(TRIALS, 0)
    assert (found["asked"], found["prompts"]) == (8, 7)
    assert found["share_kept"]["value"] == pytest.approx(3 / 7)
    assert found["before"]["value"] == pytest.approx((-1 + 0 + 3 + 1 - 2 + 2.5 - 3) / 7)
    assert found["under"]["value"] == pytest.approx((2 + 1 + 2 + 0.5 - 1.5 + 2.5 - 3) / 7)
    assert found["after"]["value"] == pytest.approx((2 + 1 + 3 + 1 - 1.5 + 2.5 - 3) / 7)
    assert found["kept"]["prompts"] == 3
    assert found["kept"]["before"]["value"] == pytest.approx(-1)
    assert found["kept"]["after"]["value"] == pytest.approx(0.5)
    plain, generic, tailored = found["ways"]
    assert (plain["answers"], plain["judged"], plain["kept"]) == (8, 7, 0)
    assert (generic["answers"], generic["judged"], generic["kept"]) == (8, 7, 2)
    assert (tailored["answers"], tailored["judged"], tailored["kept"]) == (4, 4, 1)
    assert plain["over"] == {}
    over = generic["over"]["plain"]
    assert over["prompts"] == 6
    assert over["difference"]["value"] == pytest.approx((1 + 1 - 2 - 0.5 + 0.5 + 6.5) / 6)
    assert over["above"]["value"] == pytest.approx(4 / 6)
    assert tailored["over"]["generic"]["prompts"] == 3
    assert tailored["over"]["generic"]["difference"]["value"] == pytest.approx((2 - 2 + 1) / 3)
    assert (generic["empty"], tailored["empty"], tailored["refusals"]) == (1 / 8, 1 / 4, 2 / 4)
    for way in found["ways"]:
        assert sum(one["n"] for one in way["bins"]) == way["judged"]
        assert (way["bins"][0]["low"], way["bins"][-1]["high"]) == (-3, 9)  # the same bins for all


def test_quarters_are_of_the_plain_score_and_categories_in_their_order() -> None:
    found = report(TRIALS, 0)
    quarters = found["by_score_before"]
    assert [one["quarter"] for one in quarters] == ["lowest", "low", "high", "highest"]
    assert [one["prompts"] for one in quarters] == [1, 2, 2, 2]  # -3 | -2 -1 | 0 1 | 2.5 3
    assert [one["before"]["value"] for one in quarters] == [-3, -1.5, 0.5, 2.75]
    assert [one["share_kept"]["value"] for one in quarters] == [0, 1, 0.5, 0]
    assert quarters[1]["after"]["value"] == mean([2.0, -1.5])
    by = {one["category"]: (one["prompts"], one["share_kept"]["value"]) for one in found["by_category"]}
    assert by == {"x": (3, 2 / 3), "y": (1, 0), "no category": (3, 1 / 3)}
    assert [*by] == ["x", "y", "no category"]


def test_a_journal_s_trials_give_the_same_report() -> None:
    again = [Trial(**json.loads(json.dumps(one._asdict()))) for one in TRIALS]
    assert report(again, 5) == report(TRIALS, 5)


@pytest.mark.parametrize("some", [[], [trial("a", plain=None, generic=None)], [trial("a", plain=1.0, generic=1.0)]])
def test_a_report_of_next_to_nothing_is_no_error(some: list[Trial]) -> None:
    found = report(some, 0)
    assert found["kept"]["prompts"] == 0
    assert len([*tables(found)]) == 3


def test_tables_name_what_was_asked() -> None:
    ways, scores, categories = tables(report(TRIALS[3:5], 0))
    assert [row[0] for row in ways.rows] == ["plain", "generic"]
    assert ways.rows[0][3:5] == ("-", "-")
    assert ways.rows[1][4] == "50.0"
    assert all(len(row) == len(ways.header) for row in ways.rows)
    assert [row[:3] for row in scores.rows] == [
        ("lowest quarter", "0", "-"), ("low quarter", "1", "100.0"), ("high quarter", "0", "-"),
        ("highest quarter", "1", "0.0"), ("all", "2", "50.0"),
    ]  # fmt: skip
    assert [row[0] for row in categories.rows] == ["no category"]
