"""Examinations: those whose options are letters (MMLU, AGIEval), and BIG-Bench Hard, which is thought about first."""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamactl.errors import Fault
from llamactl.evals.bench.choices import choice
from llamactl.evals.bench.files import REMEDY, checked, content, lines, rows, whole
from llamactl.evals.bench.questions import BETWEEN, Choice, Open, Question

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def lettered(question: str, options: Sequence[str]) -> str:
    """A question, its options each on a line, and where a letter is to follow."""
    listed = (f"{letter}. {option.strip()}" for letter, option in zip(LETTERS, options, strict=False))
    return "\n".join([question.strip(), *listed, "Answer:"])


def mmlu(path: Path) -> Iterator[Choice]:
    """MMLU (Hendrycks et al., 2021): rows of a question, four options and a letter; a file a subject."""
    part = re.sub(r"_(test|val|dev)$", "", path.name.partition(".")[0])
    heading = f"The following are multiple choice questions (with answers) about {part.replace('_', ' ')}.{BETWEEN}"
    for where, row in rows(path):
        if len(row) != 6 or row[5].strip() not in list(LETTERS[:4]):
            raise Fault(where, "is no question, four options and one of A to D", REMEDY)
        question, *options, letter = row
        right, text = LETTERS.index(letter.strip()), lettered(question, options)
        yield choice(where, text, LETTERS[:4], right, part=part, heading=heading)


def dev(path: Path) -> Path:
    """The file of ``dev``, in the folder beside, of a subject's file of ``test`` or ``val``."""
    return path.parent.parent / "dev" / re.sub(r"_(test|val)\.", "_dev.", path.name)


def mmlu_examples(path: Path) -> list[Question]:
    """Those of a subject."""
    return list(mmlu(dev(path)))


class _Agieval(msgspec.Struct):
    question: str
    options: list[str]
    label: str
    passage: str | None = None


def agieval(path: Path) -> Iterator[Choice]:
    """AGIEval's questions with options (Zhong et al., 2023); a file an examination."""
    for where, one in lines(path, _Agieval):
        yield _examined(one, where, path.name.partition(".")[0])


def _examined(one: _Agieval, where: str, part: str) -> Choice:
    if one.label not in list(LETTERS[: len(one.options)]):
        raise Fault(f"{where}: label", f"{one.label} is no letter of the {len(one.options)} options", REMEDY)
    question = "\n".join(filter(None, (one.passage, one.question)))
    options = [re.sub(r"^\([A-Z]\)", "", option) for option in one.options]
    letters = LETTERS[: len(options)]
    return choice(where, lettered(question, options), letters, LETTERS.index(one.label), part=part)


def demonstrations(path: Path) -> Path:
    """The table of examples, in the folder above."""
    return path.parent.parent / "few_shot_prompts.csv"


def agieval_examples(path: Path) -> list[Question]:
    """Those of an examination: every second row of its column."""
    table = demonstrations(path)
    (_, names), *examples = [*rows(table)] or [("", [])]
    part = path.name.partition(".")[0]
    passage = part != "sat-en-without-passage"
    if (column := part if passage else "sat-en") not in names:
        raise Fault(table, f"has no column {column}", REMEDY)
    found: list[Question] = []
    for where, row in examples[::2]:
        if cell := dict(zip(names, row, strict=False)).get(column):
            one = checked(_value(cell, where), _Agieval, where)
            found.append(_examined(one if passage else msgspec.structs.replace(one, passage=None), where, part))
    return found


def _value(cell: str, where: str) -> Any:
    """What Python or JSON has written."""
    for read in (ast.literal_eval, json.loads):
        try:
            return read(cell)
        except (ValueError, SyntaxError):
            continue
    raise Fault(where, "an example is neither Python nor JSON", REMEDY)


class _Example(msgspec.Struct):
    input: str
    target: str


class _Bbh(msgspec.Struct):
    examples: list[_Example]


def bbh(path: Path) -> Iterator[Open]:
    """BIG-Bench Hard (Suzgun et al., 2022): a file a task; how to think is said by its chain-of-thought prompt."""
    part = path.name.partition(".")[0]
    heading = _thoughts(path)[0] + BETWEEN
    for number_, one in enumerate(whole(path, _Bbh).examples):
        text = f"Q: {one.input}\nA: Let's think step by step."
        yield Open(
            where=f"{path}: example {number_}", text=text, answer=f"\nSo the answer is {one.target}.", heading=heading,
            part=part, answers=(one.target.strip(),),
        )  # fmt: skip


def thoughts(path: Path) -> Path:
    """A task's chain-of-thought prompt, in the folder beside."""
    return path.parent.parent / "cot-prompts" / f"{path.name.partition('.')[0]}.txt"


def _thoughts(path: Path) -> list[str]:
    """What a task is, and its examples, as text."""
    text = content(thoughts(path)).partition("-----\n")[2]
    return [piece.strip() for piece in re.split(r"\n\n(?=Q: )", text)]


def bbh_examples(path: Path) -> list[Question]:
    """Those of a task's chain-of-thought prompt."""
    return [Question(where=str(path), text=one, answer="") for one in _thoughts(path)[1:]]
