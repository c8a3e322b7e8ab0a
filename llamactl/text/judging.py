"""What a reward model is shown of an answer: prompt and answer as ids, the same in training, scoring and PPO.

It is scored at its last token, the answer's EOS, which therefore is never cut off.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from llamactl.artifacts.jsonl import Found
from llamactl.artifacts.records import Comparison, Message, Sample, to_last_question
from llamactl.errors import Fault
from llamactl.text import dialogue
from llamactl.text.tokenizer import EOS, Tokenizer


class Judging(NamedTuple):
    """How answers are shown to a reward model."""

    context: int
    truncate: bool = False  # cut what is longer than the context, instead of refusing it
    allow_tags: bool = False


class Judged(NamedTuple):
    """An answer ready to be scored; ``cut`` is how many ids of it and its prompt were left out."""

    ids: list[int]
    cut: int


def judged(prompt: Sequence[Message], answer: str, tokenizer: Tokenizer, how: Judging, where: str) -> Judged:
    """A checked prompt and an answer to it; raises Fault, with its place, where they are too long.

    To be cut, a dialogue loses its oldest turns first, but for the system message, then the answer its end.
    """
    last = Message(role="assistant", content=answer)
    ids = dialogue.encode([*prompt, last], tokenizer).ids
    whole = len(ids)
    if whole <= how.context:
        return Judged(ids, 0)
    if not how.truncate:
        problem = f"is {whole:,} tokens long with its prompt, the context {how.context:,}"
        raise Fault(where, problem, "shorten it, --truncate, or leave it out with --skip-bad")
    system = list(prompt[:1]) if prompt[0].role == "system" else []
    turns = list(prompt[len(system) :])
    while len(ids) > how.context and len(turns) > 1:
        turns = turns[2:]
        ids = dialogue.encode([*system, *turns, last], tokenizer).ids
    if len(ids) > how.context:
        asked = len(dialogue.encode([*system, *turns], tokenizer).ids)
        if asked + 2 > how.context:
            problem = f"its last question is {asked:,} tokens long, the context {how.context:,}: no room for an answer"
            raise Fault(where, problem, "leave it out with --skip-bad")
        ids = [*ids[: how.context - 1], EOS]
    return Judged(ids, whole - len(ids))


def prompt_key(prompt: Sequence[Message]) -> bytes:
    """What tells one prompt from another: a digest of who says what in it."""
    return sha256(orjson.dumps([(message.role, message.content.strip()) for message in prompt])).digest()


def sides(found: Found[Any], tokenizer: Tokenizer, how: Judging) -> dict[str, Judged]:
    """The answers of a record, by the field they stand in: both of a Comparison, a Sample's, a Dialogue's last.

    Raises Fault, with its place, where it holds none that can be judged.
    """
    record, where = found.record, found.where
    if isinstance(record, Comparison):
        answers = {"chosen": record.chosen[0], "rejected": record.rejected[0]}
        dialogue.check_comparison(record.prompt, answers["chosen"], answers["rejected"], where, how.allow_tags)
        both = {
            field: judged(record.prompt, answer.content, tokenizer, how, f"{where}: {field}")
            for field, answer in answers.items()
        }
        if both["chosen"].ids == both["rejected"].ids:
            raise Fault(f"{where}: rejected", "is the same as chosen once both are cut", "leave the record out")
        return both
    turns = record.turns
    dialogue.check(turns, where, how.allow_tags)
    if turns[-1].role != "assistant":
        raise Fault(f"{where}: messages", "ends on a user turn: there is no answer to judge", "leave it out")
    field = "response" if isinstance(record, Sample) else "messages"
    return {field: judged(to_last_question(turns), turns[-1].content, tokenizer, how, f"{where}: {field}")}
