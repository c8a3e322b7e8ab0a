"""Questions with options, whose likelihoods are compared: commonsense, and BoolQ.

The paper does not publish its prompts: where a benchmark has none of its own, these are the usual ones.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamactl.errors import Fault
from llamactl.evals.bench.files import REMEDY, T, checked, content, lines
from llamactl.evals.bench.questions import Choice, plain


def _one_of(options: Sequence[str], right: int, where: str, field: str) -> int:
    if not 0 <= right < len(options):
        raise Fault(f"{where}: {field}", f"{right} is none of the {len(options)} options, from 0 on", REMEDY)
    return right


def choice(where: str, text: str, options: Sequence[str], right: int, **more: Any) -> Choice:
    """A question whose options stand behind a space."""
    ends = tuple(f" {option.strip()}" for option in options)
    return Choice(where=where, text=text, answer=ends[right], options=ends, right=right, **more)


class _Piqa(msgspec.Struct):
    goal: str
    sol1: str
    sol2: str


def labels(path: Path) -> Path:
    """The file of a file's labels: ``valid-labels.lst`` of ``valid.jsonl``."""
    return path.with_name(f"{path.name.partition('.')[0]}-labels.lst")


def _labelled(path: Path, kind: type[T], known: Sequence[str]) -> Iterator[tuple[str, T, int]]:
    """Objects of JSON lines, where each stands, and the place of its label among those that are ``known``."""
    items, right = list(lines(path, kind)), content(labels(path)).split()
    if len(right) != len(items) or not set(right) <= set(known):
        problem = f"does not hold {' or '.join(known)} for each of the {len(items):,} questions of {path.name}"
        raise Fault(labels(path), problem, REMEDY)
    for (where, one), label in zip(items, right, strict=True):
        yield where, one, known.index(label)


def piqa(path: Path) -> Iterator[Choice]:
    """PIQA (Bisk et al., 2020); its labels are in a file beside."""
    for where, one, right in _labelled(path, _Piqa, ("0", "1")):
        yield choice(where, plain(one.goal), (one.sol1, one.sol2), right)


class _Siqa(msgspec.Struct):
    context: str
    question: str

    @property
    def text(self) -> str:
        return f"{self.context.strip()}\n{plain(self.question)}"


class _SiqaLabelled(_Siqa):
    answerA: str  # noqa: N815
    answerB: str  # noqa: N815
    answerC: str  # noqa: N815


class _SiqaListed(_Siqa):
    options: list[str]
    answer: str


def siqa(path: Path) -> Iterator[Choice]:
    """SIQA (Sap et al., 2019), with its labels in a file beside, or with its options in a list."""
    if labels(path).exists():
        for where, one, right in _labelled(path, _SiqaLabelled, ("1", "2", "3")):
            yield choice(where, one.text, (one.answerA, one.answerB, one.answerC), right)
        return
    for where, item in lines(path, _SiqaListed):
        if item.answer not in item.options:
            raise Fault(f"{where}: answer", "is none of the options", REMEDY)
        yield choice(where, item.text, item.options, item.options.index(item.answer))


class _Hellaswag(msgspec.Struct):
    ctx: str
    endings: list[str]
    label: int
    activity_label: str = ""


def hellaswag(path: Path) -> Iterator[Choice]:
    """HellaSwag (Zellers et al., 2019); the marks of wikiHow's headings are taken out."""
    for where, one in lines(path, _Hellaswag):
        right = _one_of(one.endings, one.label, where, "label")
        text = _unmarked(f"{one.activity_label}: {one.ctx}" if one.activity_label else one.ctx)
        yield choice(where, text, [_unmarked(ending) for ending in one.endings], right)


def _unmarked(text: str) -> str:
    return re.sub(r"\s*\[(?:title|header|step|substeps)\]\s*", " ", text).strip()


class _Winograd(msgspec.Struct):
    context_options: list[str]
    continuation: str
    gold: int


def winograd(path: Path) -> Iterator[Choice]:
    """Winograd's schemas: the same words after the sentence's beginning with one name, and with the other."""
    for where, one in lines(path, _Winograd):
        right = _one_of(one.context_options, one.gold, where, "gold")
        yield _after(where, one.context_options, one.continuation, right)


class _Winogrande(msgspec.Struct):
    sentence: str
    option1: str
    option2: str
    answer: str


def winogrande(path: Path) -> Iterator[Choice]:
    """WinoGrande (Sakaguchi et al., 2020): what follows the gap, after each of the names in it."""
    for where, one in lines(path, _Winogrande):
        before, gap, rest = one.sentence.partition("_")
        if not gap or one.answer not in ("1", "2"):
            raise Fault(where, "has no gap (_) in its sentence, or an answer that is neither 1 nor 2", REMEDY)
        yield _after(where, [before + one.option1, before + one.option2], rest, int(one.answer) - 1)


def _after(where: str, texts: Sequence[str], rest: str, right: int) -> Choice:
    ends = (f" {rest.strip()}",) * len(texts)
    return Choice(
        where=where, text=texts[right], answer=ends[0], options=ends, right=right, texts=tuple(map(str.strip, texts))
    )


class _Gold(msgspec.Struct):
    query: str
    choices: list[str]
    gold: int


def _either(path: Path, kind: type[T], made: Callable[[str, T], Choice]) -> Iterator[Choice]:
    """Questions as a query, choices and the right one's place, or ``made`` of a ``kind``."""
    for where, raw in lines(path, dict):
        if "query" not in raw:
            yield made(where, checked(raw, kind, where))
            continue
        one = checked(raw, _Gold, where)
        right = _one_of(one.choices, one.gold, where, "gold")
        yield choice(where, f"{one.query.strip()}\nAnswer:", one.choices, right)


class _Labelled(msgspec.Struct):
    text: str
    label: str


class _Stem(msgspec.Struct):
    stem: str
    choices: list[_Labelled]


class _Ai2(msgspec.Struct):
    question: _Stem
    answerKey: str  # noqa: N815


def ai2(path: Path) -> Iterator[Choice]:
    """OpenBookQA, ARC (Clark et al., 2018) and CommonsenseQA as AI2 publishes them, or as queries with choices."""
    return _either(path, _Ai2, _of_ai2)


def _of_ai2(where: str, one: _Ai2) -> Choice:
    letters = [option.label for option in one.question.choices]
    if one.answerKey not in letters:
        raise Fault(f"{where}: answerKey", f"{one.answerKey} is no label of a choice", REMEDY)
    texts = [option.text for option in one.question.choices]
    return choice(where, plain(one.question.stem), texts, letters.index(one.answerKey))


class _Boolq(msgspec.Struct):
    question: str
    passage: str
    answer: bool


def boolq(path: Path) -> Iterator[Choice]:
    """BoolQ (Clark et al., 2019) as its authors publish it, or as queries with choices."""
    return _either(path, _Boolq, _of_boolq)


def _of_boolq(where: str, one: _Boolq) -> Choice:
    text = f"Passage: {one.passage.strip()}\n{plain(one.question.strip().removesuffix('?') + '?')}"
    return choice(where, text, ("no", "yes"), int(one.answer))
