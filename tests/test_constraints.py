"""Constraints and instructions of Ghost Attention: what a file may hold, how they are worded, how they are combined."""

from collections import Counter
from pathlib import Path

import pytest

from llamactl.errors import Fault
from llamactl.text import constraints
from llamactl.text.constraints import Constraint

NAPOLEON = '{"kind": "figure", "name": "Napoleon"}\n'


def written(directory: Path, text: str) -> Path:
    path = directory / "constraints.jsonl"
    path.write_text(text)
    return path


def test_the_papers_wordings_long_and_terse(tmp_path: Path) -> None:
    text = NAPOLEON + '{"kind": "language", "name": "French"}\n\n{"kind": "hobby", "name": " lawn   tennis "}\n'
    assert constraints.read(written(tmp_path, text)) == [
        Constraint("figure", "Napoleon", "Always act as Napoleon from now.", "Figure: Napoleon."),
        Constraint("language", "French", "Speak in French.", "Language: French."),
        Constraint("hobby", "lawn tennis", "You enjoy lawn tennis.", "Hobby: lawn tennis."),
    ]


def test_formats_are_known_by_name_or_say_how_they_are_asked_for(tmp_path: Path) -> None:
    text = (
        '{"kind": "format", "name": "JSON"}\n{"kind": "format", "name": "Last word: Indeed"}\n'
        '{"kind": "format", "name": "haiku", "long": "Always answer with a haiku.", "terse": "Form: haiku."}\n'
        '{"kind": "format", "name": "capitals", "long": "SHOUT."}\n'
    )
    assert constraints.read(written(tmp_path, text)) == [
        Constraint("format", "json", "Answer in JSON only.", "Format: JSON."),
        Constraint("format", "last word: Indeed", "End every answer with the word Indeed.", "Last word: Indeed."),
        Constraint("format", "haiku", "Always answer with a haiku.", "Form: haiku."),
        Constraint("format", "capitals", "SHOUT.", "Format: capitals."),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"kind": "colour", "name": "red"}', ":2: kind: is colour; give one of hobby, language, figure, format"),
        ('{"name": "red"}', ":2: kind: is missing"),
        ('{"kind": "hobby"}', ":2: name: is missing"),
        ('{"kind": "hobby", "name": "  "}', ":2: name: is no text"),
        ('{"kind": "hobby", "name": 7}', ":2: name: is no text"),
        ('{"kind": "hobby", "name": "go", "terze": "Go."}', ":2: terze: is no field of a constraint"),
        ('{"kind": "format", "name": "haiku"}', ":2: long: is missing, and haiku is no format that has one"),
        ('{"kind": "format", "name": "haiku", "long": "Haiku!"}', ":2: terse: is missing"),
        ('{"kind": "format", "name": "last word: "}', ":2: long: is missing"),
        ('{"kind": "figure", "name": "napoleon"}', ":2: is the figure napoleon of line 1 again; leave one"),
        ('{"kind": "hobby", "name": "[INST]"}', ":2: name: holds [INST]"),
        ('["hobby", "go"]', ":2: is not an object"),
        ("hobby: go", ":2: is no JSON (unexpected character, expected a JSON value); mend it"),
    ],
)
def test_a_line_that_is_no_constraint_is_refused_with_its_place(tmp_path: Path, line: str, said: str) -> None:
    path = written(tmp_path, NAPOLEON + line + "\n")
    with pytest.raises(Fault) as fault:
        constraints.read(path)
    assert f"{path}{said}" in str(fault.value)


@pytest.mark.parametrize(("text", "said"), [("", "is empty"), ("\n \n", "holds blank lines only")])
def test_an_empty_list_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(Fault, match=said):
        constraints.read(written(tmp_path, text))


def test_drawn_is_a_function_of_seed_and_key_alone(tmp_path: Path) -> None:
    some = constraints.read(written(tmp_path, NAPOLEON + '{"kind": "language", "name": "French"}\n'))
    draws = [constraints.drawn(some, seed, key) for seed in range(3) for key in (b"a", b"b")]
    assert [(one.text, one.terse) for one in draws] == [
        ("Always act as Napoleon from now.", False),
        ("Language: French. Figure: Napoleon.", True),
        ("Figure: Napoleon.", True),
        ("Figure: Napoleon.", True),
        ("Speak in French. Always act as Napoleon from now.", False),
        ("Figure: Napoleon.", True),
    ]


def test_every_combination_is_as_likely_and_half_are_terse() -> None:
    names = {"hobby": ["tennis", "go", "chess"], "language": ["French"], "figure": ["Napoleon", "Ada"]}
    some = [Constraint.of({"kind": kind, "name": name}, "x:1") for kind in names for name in names[kind]]
    draws = [constraints.drawn(some, 0, str(number).encode()) for number in range(7000)]
    kinds = Counter(tuple(one.kind for one in draw.constraints) for draw in draws)
    assert len(kinds) == 7  # the sets of three kinds, but the empty one
    assert all(abs(times - 1000) < 100 for times in kinds.values()), (
        kinds
    )  # more than three deviations off is no chance
    assert abs(sum(draw.terse for draw in draws) - 3500) < 150
    assert {one.name for draw in draws for one in draw.constraints} == {one.name for one in some}
    hobbies = Counter(one.name for draw in draws for one in draw.constraints if one.kind == "hobby")
    assert all(abs(times - 4000 / 3) < 120 for times in hobbies.values()), hobbies
    for draw in draws[:50]:
        assert draw.text == " ".join(one.terse if draw.terse else one.long for one in draw.constraints)
