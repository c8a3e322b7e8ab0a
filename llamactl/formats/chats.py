"""Dialogues of several turns."""

import itertools
from collections.abc import Iterator
from typing import Literal, Self

import msgspec

from llamactl.artifacts.records import Message
from llamactl.formats.items import Item
from llamactl.formats.rules import Format, Id, Talk, Tally, assistant, user


class Uttered(msgspec.Struct):
    """A turn of ShareGPT."""

    speaker: Literal["human", "user", "gpt", "assistant", "chatgpt", "bing", "bard", "system"] = msgspec.field(
        name="from"
    )
    value: str


class ShareGPT(Format):
    """ShareGPT: conversations of human and gpt."""

    name = "sharegpt"
    conversations: list[Uttered]
    system: str = ""
    id: Id = None

    def talks(self, tally: Tally) -> Iterator[Talk]:
        roles: dict[str, Literal["user", "system"]] = {"human": "user", "user": "user", "system": "system"}
        turns = [Message(role=roles.get(turn.speaker, "assistant"), content=turn.value) for turn in self.conversations]
        system = [Message(role="system", content=self.system)] if self.system.strip() else []
        yield Talk([*system, *turns], self.id)


class SchemaTurn(msgspec.Struct):
    """A turn of Schema-Guided Dialogue."""

    speaker: Literal["USER", "SYSTEM"]
    utterance: str


class SchemaGuided(Format):
    """Schema-Guided Dialogue: turns of USER and SYSTEM, who is our assistant. The frames are left out."""

    name = "sgd"
    dialogue_id: str
    services: list[str]
    turns: list[SchemaTurn]

    def talks(self, tally: Tally) -> Iterator[Talk]:
        turns = [(user if turn.speaker == "USER" else assistant)(turn.utterance) for turn in self.turns]
        yield Talk(turns, self.dialogue_id)


class TopicalTurn(msgspec.Struct):
    """A turn of Topical-Chat, and how its grader found it."""

    message: str
    agent: str
    turn_rating: Literal["Poor", "Not Good", "Passable", "Good", "Excellent", ""] = ""


class TopicalChat(Format):
    """Topical-Chat: two people, graded. Who begins is the user, the other the assistant.

    An answer graded Poor or Not Good carries no loss (``weight`` 0); one without a grade carries it.
    """

    name = "topical-chat"
    content: list[TopicalTurn]
    conversation_rating: dict[str, str]
    id: Id = None

    @classmethod
    def of(cls, item: Item) -> Self:
        one = msgspec.convert(item.value, cls)
        one.id = item.name if one.id is None else one.id
        return one

    def talks(self, tally: Tally) -> Iterator[Talk]:
        turns = []
        for turn in self.content:
            poor = turn.turn_rating in ("Poor", "Not Good")
            if turn.agent == self.content[0].agent:
                turns.append(user(turn.message))
            else:
                tally.noted["answers graded Poor or Not Good, without loss"] += poor
                tally.noted["answers without a grade"] += not turn.turn_rating
                turns.append(assistant(turn.message, 0 if poor else 1))
        yield Talk(turns, self.id)


class MTBench(Format):
    """MT-bench questions: two turns each, some with reference answers.

    The first question is a Prompt; the second needs an answer to the first, so it is one where there is a reference.
    All turns stay in the field ``turns``.
    """

    name = "mt-bench"
    question_id: int | str
    category: str
    turns: list[str]
    reference: list[str] = msgspec.field(default_factory=list)

    def talks(self, tally: Tally) -> Iterator[Talk]:
        if not self.reference:
            tally.skipped["questions without reference answers"] += 1
            return
        asked = itertools.zip_longest(self.turns, self.reference[: len(self.turns)], fillvalue="")
        yield self._talk([turn for u, a in asked for turn in (user(u), assistant(a))], "")

    def prompts(self, tally: Tally) -> Iterator[Talk]:
        turns: list[Message] = []
        for number, question in enumerate(self.turns):
            if number and not "".join(self.reference[number - 1 : number]).strip():
                tally.skipped["later questions without an answer to those before"] += len(self.turns) - number
                break
            turns += [assistant(self.reference[number - 1])] if number else []
            turns.append(user(question))
            yield self._talk(turns, f"-{number + 1}" if number else "")

    def _talk(self, turns: list[Message], suffix: str) -> Talk:
        own = f"{self.question_id}{suffix}" if suffix else self.question_id
        return Talk(list(turns), own, rest={"category": self.category, "turns": self.turns})
