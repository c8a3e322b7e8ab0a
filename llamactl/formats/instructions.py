"""Instructions and answers: one question, one answer."""

import re
from collections.abc import Iterator
from typing import ClassVar

import msgspec

from llamactl.artifacts.records import Message
from llamactl.formats.rules import Format, Id, Talk, Tally, assistant, user


def _asked(instruction: str, context: str) -> Message:
    """An instruction, and after a blank line what it is about, if there is something."""
    return user(f"{instruction}\n\n{context}" if context.strip() else instruction)


class Alpaca(Format):
    """Stanford Alpaca: instruction, input, output.

    The user's turn is the instruction and, after a blank line, the input if there is one (``<noinput>`` is none).
    """

    name = "alpaca"
    instruction: str
    output: str
    input: str = ""
    id: Id = None

    def talks(self, tally: Tally) -> Iterator[Talk]:
        given = "" if self.input.strip().lower() == "<noinput>" else self.input
        yield Talk([_asked(self.instruction, given), assistant(self.output)], self.id)


class Dolly(Format):
    """Dolly: instruction, context, response, category. The context follows the instruction after a blank line."""

    name = "dolly"
    instruction: str
    context: str
    response: str
    id: Id = None

    def talks(self, tally: Tally) -> Iterator[Talk]:
        yield Talk([_asked(self.instruction, self.context), assistant(self.response)], self.id)


class DollyWrapped(Format):
    """Dolly and HH as MosaicML ships them: prompt, response. Alpaca's wrapping of the prompt is taken off."""

    name = "dolly-hhrlhf"
    prompt: str
    response: str

    _WRAPPED: ClassVar = re.compile(
        r"Below is an instruction.*?\n\n### Instruction:\n(.*?)(?:\n\n### Input:\n(.*?))?\n\n### Response:\s*",
        re.DOTALL,
    )

    def talks(self, tally: Tally) -> Iterator[Talk]:
        asked = user(self.prompt)
        if wrapped := self._WRAPPED.fullmatch(self.prompt):
            asked = _asked(wrapped[1], wrapped[2] or "")
        else:
            tally.noted["prompts without Alpaca's wrapping, taken as they are"] += 1
        yield Talk([asked, assistant(self.response)])


class Instance(msgspec.Struct):
    """An input and an output of a task."""

    output: str
    input: str = ""


class SelfInstruct(Format):
    """Self-Instruct seed tasks: an instruction with instances, each of which is a dialogue."""

    name = "self-instruct"
    id: str
    instruction: str
    instances: list[Instance]

    def talks(self, tally: Tally) -> Iterator[Talk]:
        for number, instance in enumerate(self.instances):
            own = self.id if len(self.instances) == 1 else f"{self.id}-{number}"
            yield Talk([_asked(self.instruction, instance.input), assistant(instance.output)], own)


class DomainSpecific(Format):
    """Domain-specific preference: a query answered in several registers, each a dialogue; no order among them."""

    name = "dsp"
    query: str
    responses: dict[str, str]

    def talks(self, tally: Tally) -> Iterator[Talk]:
        for register, answer in self.responses.items():
            yield Talk([user(self.query), assistant(answer)], rest={"register": register})

    def prompts(self, tally: Tally) -> Iterator[Talk]:
        yield Talk([user(self.query)])
