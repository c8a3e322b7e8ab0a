"""Questions whose answers are written: facts, spans of a passage, numbers, formulas, programs."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamactl.errors import Fault
from llamactl.evals.bench.answers import boxed, number
from llamactl.evals.bench.files import REMEDY, lines, whole
from llamactl.evals.bench.questions import Open, Question, Task, plain

# -- knowledge and reading


class _Nq(msgspec.Struct):
    question: str
    answer: list[str]


def natural_questions(path: Path) -> Iterator[Open]:
    """NaturalQuestions without documents (Lee et al., 2019)."""
    for where, one in lines(path, _Nq):
        yield _named(where, plain(one.question.strip().removesuffix("?") + "?"), one.answer)


class _Triviaqa(msgspec.Struct):
    context: str
    answer: str
    aliases: list[str] = []


class _Named(msgspec.Struct, rename="pascal"):
    value: str
    aliases: list[str]


class _Asked(msgspec.Struct, rename="pascal"):
    question: str
    answer: _Named


class _Data(msgspec.Struct, rename="pascal"):
    data: list[_Asked]


def triviaqa(path: Path) -> Iterator[Open]:
    """TriviaQA (Joshi et al., 2017); in JSON lines as a context that ends on ``Answer:``, an answer and its aliases."""
    if ".json" in path.suffixes:
        for place, item in enumerate(whole(path, _Data).data):
            names = [item.answer.value, *item.answer.aliases]
            yield _named(f"{path}: item {place}", plain(item.question), list(dict.fromkeys(names)))
        return
    for where, one in lines(path, _Triviaqa):
        yield _named(where, one.context.strip(), list(dict.fromkeys([one.answer, *one.aliases])))


def _named(where: str, text: str, answers: Sequence[str], **more: Any) -> Open:
    if not answers:
        raise Fault(where, "has no answer", REMEDY)
    return Open(where=where, text=text, answer=f" {answers[0].strip()}", answers=tuple(answers), **more)


class _Span(msgspec.Struct):
    text: str


class _Qa(msgspec.Struct):
    id: str
    question: str
    answers: list[_Span]


class _Paragraph(msgspec.Struct):
    context: str
    qas: list[_Qa]


class _Article(msgspec.Struct):
    title: str
    paragraphs: list[_Paragraph]


class _Squad(msgspec.Struct):
    data: list[_Article]


def squad(path: Path) -> Iterator[Open]:
    """SQuAD (Rajpurkar et al., 2016); of version 2 a question without an answer has the answer ``unanswerable``."""
    for article in whole(path, _Squad).data:
        for paragraph in article.paragraphs:
            for one in paragraph.qas:
                text = f"Passage: {paragraph.context.strip()}\n{plain(one.question)}"
                answers = list(dict.fromkeys(span.text for span in one.answers)) or ["unanswerable"]
                yield _named(f"{path}: {one.id}", text, answers)


# -- mathematics


class _Gsm8k(msgspec.Struct):
    question: str
    answer: str


def gsm8k(path: Path) -> Iterator[Open]:
    """GSM8K (Cobbe et al., 2021), without the marks of its calculator."""
    for where, one in lines(path, _Gsm8k):
        worked = re.sub(r"<<[^<>]*>>", "", one.answer)
        if not (right := number(worked)):
            raise Fault(f"{where}: answer", "holds no number", REMEDY)
        yield Open(where=where, text=plain(one.question), answer=f" {worked.strip()}", answers=(right,))


class _Svamp(msgspec.Struct):
    Body: str
    Question: str
    Answer: float


def svamp(path: Path) -> Iterator[Open]:
    """SVAMP (Patel et al., 2021)."""
    for place, one in enumerate(whole(path, list[_Svamp])):
        body = one.Body.strip()
        text = plain(f"{body}{'' if body[-1:] in '.?!' else '.'} {one.Question.strip()}")
        yield _named(f"{path}: item {place}", text, [f"{one.Answer:.15g}"])


class _Math(msgspec.Struct):
    problem: str
    solution: str
    type: str = ""


def math(path: Path) -> Iterator[Open]:
    """MATH (Hendrycks et al., 2021) and what has its form: a problem, a solution with its answer in a box."""
    for where, one in lines(path, _Math):
        if not (right := boxed(one.solution)):
            raise Fault(f"{where}: solution", "has no answer in a box", REMEDY)
        text = f"Problem:\n{one.problem.strip()}\n\nSolution:"
        yield Open(where=where, text=text, answer=f" {one.solution.strip()}", part=one.type, answers=(right,))


# -- programs


class _Humaneval(msgspec.Struct):
    prompt: str
    canonical_solution: str
    test: str
    entry_point: str


def humaneval(path: Path) -> Iterator[Task]:
    """HumanEval (Chen et al., 2021): the rest of a function."""
    for where, one in lines(path, _Humaneval):
        after = f"\n\n{one.test}\ncheck({one.entry_point})\n"
        yield Task(where=where, text=one.prompt, answer=one.canonical_solution, before=one.prompt, after=after)


class _Mbpp(msgspec.Struct):
    text: str
    code: str
    task_id: int
    test_list: list[str]
    test_setup_code: str = ""


def mbpp(path: Path) -> Iterator[Task]:
    """MBPP (Austin et al., 2021): tasks 11 to 510 are asked."""
    yield from (task for number_, task in _mbpp(path) if 11 <= number_ <= 510)


def mbpp_examples(path: Path) -> list[Question]:
    """Tasks 2, 3 and 4, as in its paper."""
    return [task for number_, task in _mbpp(path) if 2 <= number_ <= 4]


def _mbpp(path: Path) -> Iterator[tuple[int, Task]]:
    for where, one in lines(path, _Mbpp):
        setup, code, *tests = (text.replace("\r\n", "\n") for text in (one.test_setup_code, one.code, *one.test_list))
        asked, checks = one.text.strip(), "\n".join(tests)
        text = f"You are an expert Python programmer, and here is your task: {asked} "
        text += f"Your code should pass these tests:\n\n{checks}\n[BEGIN]\n"
        after = f"\n{setup}\n{checks}\n"  # what prepares the tests may name what the program defines
        yield one.task_id, Task(where=where, text=text, answer=f"{code}\n[DONE]", before="", after=after)
