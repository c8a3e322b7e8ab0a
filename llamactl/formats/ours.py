"""Our own records, which are also OpenAI's messages and TRL's conversational preferences."""

from collections.abc import Iterator
from typing import Any, Literal, Self

import msgspec

from llamactl.artifacts.records import Message, Rating, SafetyLabel
from llamactl.errors import Fault
from llamactl.formats.items import Item
from llamactl.formats.rules import Format, Pair, Talk, Tally, assistant, compared, user

# What passes through: by a name that no file has, so that a field "rest" of a file does too.
_REST: Any = msgspec.field(default_factory=dict, name="(what passes through)")


_SAYING = {"role", "content", "weight", "name"}  # of a message: what is kept, or counted by itself
_WRITTEN = {"type", "text"}  # of a piece of its content


class Part(msgspec.Struct):
    """A piece of a message's content, as OpenAI's interface takes it."""

    type: Literal["text"]
    text: str


class Spoken(msgspec.Struct):
    """A message of a chat interface."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    weight: Literal[0, 1] = 1
    name: str | None = None
    tool_calls: list[Any] | None = None
    beside: int = msgspec.field(default=0, name="(fields that are not of the format)")

    @staticmethod
    def count_beside(turns: "list[Spoken]", raw: list[Any]) -> None:
        """Have each of some turns know how many fields it was given beside its own; a null says nothing."""
        for turn, given in zip(turns, raw, strict=True):
            parts = given["content"] if isinstance(given["content"], list) else ()
            pieces = [(given, _SAYING), *((part, _WRITTEN) for part in parts)]
            turn.beside = sum(
                value is not None and name not in own for piece, own in pieces for name, value in piece.items()
            )

    def ours(self, tally: Tally) -> Message:
        """As a turn of ours: ``developer`` is another word for ``system``; who speaks is not kept."""
        if self.tool_calls:
            raise Fault("messages.tool_calls", "is not part of the chat format", "leave the record out")
        tally.noted["names of speakers, left off"] += self.name is not None
        tally.noted["fields of messages that are not of the format, left off"] += self.beside
        parts = self.content if isinstance(self.content, list) else [Part("text", self.content)]
        text = "\n\n".join(part.text for part in parts)
        return Message(role="system" if self.role == "developer" else self.role, content=text, weight=self.weight)


class Messages(Format, kw_only=True):
    """Dialogues or Prompts of ours; OpenAI's messages; TRL's conversational form.

    Fields beside ``messages`` pass through; those of a message beside its role, content and weight are left off.
    """

    name = "messages"
    messages: list[Spoken]
    rest: dict[str, Any] = _REST

    @classmethod
    def of(cls, item: Item) -> Self:
        one = msgspec.convert(item.value, cls)
        Spoken.count_beside(one.messages, item.value["messages"])
        one.rest = {name: value for name, value in item.value.items() if name not in ("messages", "response")}
        return one

    def talks(self, tally: Tally) -> Iterator[Talk]:
        yield Talk([turn.ours(tally) for turn in self.messages], rest=self.rest)


class Samples(Messages, kw_only=True):
    """Samples of ours: the response is the last answer."""

    name = "samples"
    response: str

    def talks(self, tally: Tally) -> Iterator[Talk]:
        for talk in super().talks(tally):
            yield talk._replace(turns=[*talk.turns, assistant(self.response)])


class Comparisons(Format):
    """Comparisons of ours; TRL's conversational preferences, the prompt apart or in both sides.

    The prompt is what both sides begin with; fields beside it pass through.
    """

    name = "comparisons"
    chosen: list[Spoken]
    rejected: list[Spoken]
    prompt: list[Spoken] | str = msgspec.field(default_factory=list)
    rating: Rating | None = None
    safety_label: SafetyLabel | None = None
    rest: dict[str, Any] = _REST

    @classmethod
    def of(cls, item: Item) -> Self:
        one = msgspec.convert(item.value, cls)
        for name in ("chosen", "rejected", "prompt"):
            if isinstance(raw := item.value.get(name), list):
                Spoken.count_beside(getattr(one, name), raw)
        one.rest = {name: value for name, value in item.value.items() if name not in cls.__struct_encode_fields__}
        return one

    def pairs(self, tally: Tally) -> Iterator[Pair]:
        prompt = self.prompt
        before = [user(prompt)] if isinstance(prompt, str) else [turn.ours(tally) for turn in prompt]
        chosen, rejected = (self._whole(before, side, tally) for side in (self.chosen, self.rejected))
        for pair in compared(chosen, rejected, tally):
            yield pair._replace(rating=self.rating, safety_label=self.safety_label, rest=self.rest)

    @staticmethod
    def _whole(before: list[Message], side: list[Spoken], tally: Tally) -> list[Message]:
        """The prompt and a side; a side that begins with a question is a whole dialogue already."""
        turns = [turn.ours(tally) for turn in side]
        if turns and turns[0].role != "assistant":
            begun = [turn.content.strip() for turn in turns[: len(before)]]
            tally.noted["prompts with which a side does not begin, left off"] += begun != [
                turn.content.strip() for turn in before
            ]
            return turns
        return [*before, *turns]


class Texts(Format):
    """Documents of ours: ``text``, and what passes through."""

    name = "texts"
    answers = False
    text: str
    rest: dict[str, Any] = _REST

    @classmethod
    def of(cls, item: Item) -> Self:
        one = msgspec.convert(item.value, cls)
        one.rest = {name: value for name, value in item.value.items() if name != "text"}
        return one

    def texts(self, tally: Tally) -> Iterator[Talk]:
        yield Talk([user(self.text)], rest=self.rest)
