"""Questions of benchmarks, as text: what is asked, its answer, and how a prompt is made of it and of examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llamactl.text.asking import Asked
from llamactl.text.tokenizer import BOS, Tokenizer

BETWEEN = "\n\n"  # examples and the question
NOTHING = "Answer:"  # after which an option is likely whatever is asked


@dataclass(frozen=True, kw_only=True)
class Question:
    """``text`` is what is asked, up to where the answer begins; ``answer`` is a right one, as an example shows it.

    ``heading`` stands before the examples; ``part`` is the subject, where a benchmark has several.
    """

    where: str
    text: str
    answer: str
    heading: str = ""
    part: str = ""

    @property
    def solved(self) -> str:
        """As an example."""
        return self.text + self.answer

    @property
    def asks(self) -> tuple[str, ...]:
        """What stands before answers."""
        return (self.text,)

    @property
    def known(self) -> dict[str, Any]:
        """What is right, for people to see."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Choice(Question):
    """One of ``options`` is right. ``texts`` are given where options stand after different texts, as in Winograd's."""

    options: tuple[str, ...]
    right: int
    texts: tuple[str, ...] = ()

    @property
    def asks(self) -> tuple[str, ...]:
        """One text for all options, or one for each."""
        return self.texts or (self.text,)

    @property
    def known(self) -> dict[str, Any]:
        """The options, and which is right."""
        return {"options": self.options, "right": self.right}

    def ways(self) -> list[tuple[str, str]]:
        """What is asked and how it goes on, by each option."""
        return list(zip(self.texts or (self.text,) * len(self.options), self.options, strict=True))


@dataclass(frozen=True, kw_only=True)
class Open(Question):
    """Any of ``answers`` is right."""

    answers: tuple[str, ...]

    @property
    def known(self) -> dict[str, Any]:
        """The answers."""
        return {"answers": self.answers}


@dataclass(frozen=True, kw_only=True)
class Task(Question):
    """A program is asked for: ``before``, what is answered and ``after``, its tests, make the one that is run."""

    before: str
    after: str

    @property
    def known(self) -> dict[str, Any]:
        """The tests."""
        return {"tests": self.after}


def plain(question: str) -> str:
    """The usual way to ask."""
    return f"Question: {question.strip()}\nAnswer:"


class Item(NamedTuple):
    """A question, and the examples that stand before it."""

    question: Question
    examples: Sequence[str]


class Ending(NamedTuple):
    """Ids that are given, BOS first, and those that may follow."""

    given: tuple[int, ...]
    ids: tuple[int, ...]


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def prompt(question: Question, text: str, examples: Sequence[str]) -> str:
    """A question's ``text`` behind examples."""
    return question.heading + BETWEEN.join([*examples, text])


def ending(tokenizer: Tokenizer, text: str, after: str) -> Ending:
    """How ``text`` goes on in ids: where a token goes across from one to the other, it is of what follows."""
    return _parted(tokenizer.encode(text + after), tokenizer.encode(text))


def _parted(whole: Sequence[int], text: Sequence[int]) -> Ending:
    shared = alike(whole, text)
    return Ending((BOS, *whole[:shared]), tuple(whole[shared:]))


def endings(
    tokenizer: Tokenizer, question: Choice, examples: Sequence[str], context: int
) -> tuple[list[Ending], int] | None:
    """Each option behind as many of the examples, the first ones, as leave it room, and how many these are.

    None where it has none without any.
    """
    for number in range(len(examples), -1, -1):
        ways = [(prompt(question, text, examples[:number]), option) for text, option in question.ways()]
        texts = {text: tokenizer.encode(text) for text, _ in ways}
        found = [_parted(tokenizer.encode(text + option), texts[text]) for text, option in ways]
        if max(len(one.given) + len(one.ids) for one in found) <= context + 1:  # the last id is not read
            return found, number
    return None


def asked(
    tokenizer: Tokenizer, question: Question, examples: Sequence[str], context: int, room: int
) -> tuple[Asked, int] | None:
    """A prompt that leaves ``room`` for an answer; else as ``endings``."""
    for number in range(len(examples), -1, -1):
        text = prompt(question, question.text, examples[:number])
        ids = [BOS, *tokenizer.encode(text)]
        if len(ids) + room <= context:
            return Asked({}, ids, text), number
    return None
