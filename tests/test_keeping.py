"""What a program can tell of an answer that was to keep an instruction: cases written by hand."""

import pytest

from llamactl.errors import Fault
from llamactl.evals import keeping
from llamactl.text import constraints, languages
from llamactl.text.constraints import Constraint


def constraint(kind: str, name: str) -> Constraint:
    return Constraint.of({"kind": kind, "name": name, "long": "Do it.", "terse": "It."}, "here")


def judged(kind: str, name: str, answer: str) -> bool | None:
    judge = keeping.judge(constraint(kind, name))
    assert judge is not None
    return keeping.kept([judge], answer)


@pytest.mark.parametrize(
    ("name", "answer", "kept"),
    [
        ("French", "Bonjour, je suis très heureux de vous parler de tennis.", True),
        ("French", "BONJOUR, JE SUIS TRÈS HEUREUX DE VOUS PARLER DE TENNIS.", True),
        ("french", "Hello, I am very happy to talk with you about tennis.", False),
        ("de", "Ich denke, dass wir heute Abend ins Kino gehen sollten.", True),
        ("Chinese", "你好，我很高兴能和你谈谈网球和其他的运动项目。", True),
        ("French", "Oui.", None),  # too short to be told
        ("French", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10", None),  # no language: the identifier is not sure, or says so
        ("French", "", False),
    ],
)
def test_a_language(name: str, answer: str, kept: bool | None) -> None:
    assert judged("language", name, answer) is kept


@pytest.mark.parametrize(
    ("name", "answer", "kept"),
    [
        ("Napoleon", "I am Napoleon.", True),
        ("Napoleon", "I AM NAPOLEON'S BROTHER", True),
        ("Napoleon", "the Napoleonic wars", False),
        ("napoleon", 'As "Napoleon", I say', True),
        ("Oscar Wilde", "It was Oscar\nWilde who said so", True),
        ("Oscar Wilde", "It was Oscar; Wilde said so", False),
        ("Beyonc\u00e9", "I am Beyonce\u0301!", True),  # written as two characters
        ("C++", "I like C++.", True),
        ("Napoleon", "  ", False),
    ],
)
def test_a_name(name: str, answer: str, kept: bool) -> None:
    assert judged("figure", name, answer) is kept
    assert judged("hobby", name, answer) is kept


@pytest.mark.parametrize(
    ("name", "answer", "kept"),
    [
        ("capitals", "YES, IT IS 5 O'CLOCK!", True),
        ("capitals", "YES, IT iS.", False),
        ("capitals", "ÉTÉ À PARIS", True),
        ("capitals", "12:30", False),  # no letter
        ("capitals", "你好", False),
        ("lower case", "yes, it is 5 o'clock.", True),
        ("lower case", "Yes, it is.", False),
        ("lower case", "12:30", False),
        ("lower case", "straße", True),
        ("one sentence", "It rains.", True),
        ("one sentence", "It rains", True),
        ("one sentence", "It rains. And it is cold.", False),
        ("one sentence", "It rains! Yes?", False),
        ("one sentence", "He said \"it rains.\" Then he left.", False),
        ("one sentence", "He said \"it rains\", and left.", True),
        ("one sentence", "Dr. Smith of the U.S. Army, e.g. on Mt. X, has 3.14 of J. R. R. Tolkien's.", False),
        ("one sentence", "Dr. Smith of the U.S. Army has 3.14 of J. R. R. Tolkien's books.", True),
        ("one sentence", "I like games, e.g. tennis.", True),
        ("one sentence", "So do I. We agree.", False),
        ("one sentence", "He said no. We agree.", False),
        ("one sentence", "First:\n- one\n- two", False),
        ("one sentence", "\nIt rains.\n", True),
        ("one sentence", "你好，世界。", True),
        ("one sentence", "你好。我是拿破仑。", False),
        ("one sentence", "\"你好。\"", True),
        ("json", '{"answer": 4}', True),
        ("json", " [1, 2]\n", True),
        ("json", '```json\n{"answer": 4}\n```', True),
        ("json", '```\n{"answer": 4}\n```', True),
        ("json", 'Here it is: {"answer": 4}', False),
        ("json", '{"answer": 4', False),
        ("json", "42", False),  # JSON too, and what an answer is by chance
        ("json", "{'answer': 4}", False),
        ("last word: indeed", "It is so, indeed.", True),
        ("last word: indeed", "IT IS SO, \"INDEED\"!\n", True),
        ("last word: indeed", "Indeed it is so.", False),
        ("last word: indeed", "It is so, undoubtedly-indeed.", False),
        ("last word: my friend", "It is so, my friend.", True),
        ("last word: my friend", "It is so, friend.", False),
        *((name, " \n", False) for name in (*constraints.FORMATS, "last word: indeed")),
    ],
)  # fmt: skip
def test_a_format(name: str, answer: str, kept: bool) -> None:
    assert judged("format", name, answer) is kept


def test_all_constraints_of_an_instruction_are_to_be_kept() -> None:
    """One that is broken decides; else one that cannot be judged leaves it open."""
    french, capitals = (keeping.judge(constraint(*one)) for one in (("language", "French"), ("format", "capitals")))
    assert french and capitals
    both = [french, capitals]
    assert keeping.kept(both, "BONJOUR, JE SUIS TRÈS HEUREUX DE VOUS PARLER.") is True
    assert keeping.kept(both, "Bonjour, je suis très heureux de vous parler.") is False
    assert keeping.kept(both, "OUI.") is None
    assert keeping.kept(both, "Oui.") is False


@pytest.mark.parametrize(("kind", "name"), [("format", "haiku"), ("language", "Klingon"), ("format", "Capital")])
def test_what_no_program_can_judge_has_no_judge(kind: str, name: str) -> None:
    assert keeping.judge(constraint(kind, name)) is None


def test_every_format_that_is_known_by_name_has_a_judge() -> None:
    assert keeping.FORMATS.keys() == constraints.FORMATS.keys()
    with pytest.raises(Fault):
        Constraint.of({"kind": "format", "name": "last word: "}, "here")  # of no word there is nothing to judge


def test_every_language_that_has_a_name_is_one_that_the_identifier_knows() -> None:
    assert [name for name in languages.NAMED if languages.code(name) is None] == []
    assert (languages.code(" haitian  Creole"), languages.code("Tibetan")) == ("ht", None)
