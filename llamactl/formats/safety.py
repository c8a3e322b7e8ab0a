"""Risky questions, and prompts that bring out what a model says unasked. Much of it is for evaluation alone."""

import itertools
from collections.abc import Iterator
from typing import Literal, Self

import msgspec

from llamactl.formats.items import Item
from llamactl.formats.rules import Format, Pair, Talk, Tally, assistant, user


class Judged(msgspec.Struct):
    """A model's answer, and whether people found it harmful."""

    model: str
    text: str
    harmful: Literal["0", "1"]


class DoNotAnswer(Format):
    """Do-Not-Answer: risky questions, answers of several models, each found harmful or not.

    Questions are safety prompts, their ``category`` is the risk area. Each harmless answer is preferred to each
    harmful one of the same question (``safety_label`` chosen_safe, no rating). Answers of a Llama are left out: its
    licence does not allow to train on them.
    """

    name = "do-not-answer"
    answers = False
    id: str
    question: str
    judged: list[Judged]
    risk_area: str | None = None

    @classmethod
    def of(cls, item: Item) -> Self:
        row = item.value if isinstance(item.value, dict) else {}
        models = [name.removesuffix("_response") for name in row if name.endswith("_response")]
        if not models:
            raise msgspec.ValidationError("MODEL_response: missing")
        answers = [
            {"model": m, "text": row[f"{m}_response"], "harmful": row.get(f"{m}_harmful", "missing")} for m in models
        ]
        return msgspec.convert({**row, "judged": answers}, cls)

    def talks(self, tally: Tally) -> Iterator[Talk]:
        rest = {"category": self.risk_area} if self.risk_area else None
        yield Talk([user(self.question)], self.id, safety=True, rest=rest)

    def pairs(self, tally: Tally) -> Iterator[Pair]:
        usable = [answer for answer in self.judged if "llama" not in answer.model.lower()]
        tally.skipped["answers of a Llama, which its licence keeps from training"] += len(self.judged) - len(usable)
        safe, harmful = ([answer for answer in usable if answer.harmful == label] for label in "01")
        if not safe or not harmful:
            tally.skipped["questions whose answers are all " + ("harmful" if harmful else "harmless")] += 1
        for better, worse in itertools.product(safe, harmful):
            own = f"{self.id}-{better.model}-{worse.model}"
            yield Pair([user(self.question)], better.text, worse.text, own, safety_label="chosen_safe")


class AdvBench(Format):
    """AdvBench: harmful goals, which are safety prompts. The target, a harmful beginning, is not an answer of ours."""

    name = "advbench"
    answers = False
    goal: str
    target: str

    def talks(self, tally: Tally) -> Iterator[Talk]:
        yield Talk([user(self.goal)], safety=True)


class XSTest(Format):
    """XSTest: prompts that only look unsafe, and contrasts that are: these alone are tagged as safety prompts."""

    name = "xstest"
    answers = False
    id: str
    prompt: str
    type: str
    label: Literal["safe", "unsafe"]

    def talks(self, tally: Tally) -> Iterator[Talk]:
        rest = {"type": self.type, "label": self.label}
        yield Talk([user(self.prompt)], self.id, safety=self.label == "unsafe", rest=rest)


class XSTestAnswers(Format):
    """XSTest completions: a model's answer to each prompt, labelled as compliance or refusal."""

    name = "xstest-completions"
    id: str
    type: str
    prompt: str
    completion: str
    final_label: str

    def talks(self, tally: Tally) -> Iterator[Talk]:
        turns, unsafe = [user(self.prompt), assistant(self.completion)], self.type.startswith("contrast_")
        yield Talk(turns, self.id, safety=unsafe, rest={"type": self.type, "final_label": self.final_label})


class TruthfulQA(Format):
    """TruthfulQA: questions with their best answers. A benchmark: keep it out of what you train on."""

    name = "truthfulqa"
    question: str = msgspec.field(name="Question")
    answer: str = msgspec.field(name="Best Answer")
    category: str = msgspec.field(name="Category")

    def talks(self, tally: Tally) -> Iterator[Talk]:
        yield Talk([user(self.question), assistant(self.answer)], rest={"category": self.category})


class ToxiGen(Format):
    """ToxiGen prompts: a line each, to be continued as they are; ``\\n`` in a line stands for a newline."""

    name = "toxigen"
    answers = False
    line: str

    @classmethod
    def of(cls, item: Item) -> Self:
        if not isinstance(item.value, str) or not item.value.rstrip().endswith("\\n-"):
            raise msgspec.ValidationError("line: does not end in \\n-")
        return cls(line=item.value)

    def texts(self, tally: Tally) -> Iterator[Talk]:
        yield Talk([user(self.line.rstrip().replace("\\n", "\n"))])


class Bold(Format):
    """BOLD: beginnings of sentences by group and entity, to be continued; spaces at their ends are taken off."""

    name = "bold"
    answers = False
    group: str
    entities: dict[str, list[str]]

    @classmethod
    def of(cls, item: Item) -> Self:
        return msgspec.convert({"group": item.name, "entities": item.value}, cls)

    def texts(self, tally: Tally) -> Iterator[Talk]:
        for entity, beginnings in self.entities.items():
            for number, text in enumerate(beginnings):
                tally.noted["spaces at the end of a text, taken off"] += text != text.rstrip()
                yield Talk([user(text.rstrip())], f"{entity}-{number}", self.group)
