"""What a model learns from a record: a Dialogue, or a Sample with its response, as ids of which some carry loss."""

from typing import Any, NamedTuple

from llamactl.artifacts.jsonl import Found
from llamactl.artifacts.records import Message
from llamactl.errors import Fault
from llamactl.text import dialogue
from llamactl.text.tokenizer import Tokenizer


class Learning(NamedTuple):
    """How records are learned from."""

    context: int
    last: bool = False  # only the last answer carries loss
    truncate: bool = False  # cut what is longer than the context, instead of refusing it
    allow_tags: bool = False


class Lesson(NamedTuple):
    """A record as ids, and of each whether it carries loss; ``cut`` is how many ids were left off at its end."""

    ids: list[int]
    loss: list[bool]
    cut: int


def lesson(found: Found[Any], tokenizer: Tokenizer, how: Learning) -> Lesson:
    """A record ready to be learned from; raises Fault, with its place, where there is nothing to learn.

    One that is longer than the context keeps its beginning: an answer that is cut has no EOS, so that nothing is
    learned about where it ends, and answers beyond are lost.
    """
    messages: list[Message] = found.record.turns
    dialogue.check_answers(messages, found.where, how.allow_tags)
    if how.last:
        last = max(n for n, message in enumerate(messages) if message.role == "assistant")
        messages = [
            Message(role=m.role, content=m.content, weight=m.weight if n == last else 0)
            for n, m in enumerate(messages)
        ]  # fmt: skip
    ids, loss = dialogue.encode(messages, tokenizer)
    cut = max(0, len(ids) - how.context)
    if cut and not how.truncate:
        problem = f"is {len(ids):,} tokens long, the context {how.context:,}"
        raise Fault(f"{found.where}: messages", problem, "shorten it, --truncate, or leave it out with --skip-bad")
    ids, loss = ids[: how.context], loss[: how.context]
    if not any(loss):
        what = f"its first {how.context:,} tokens hold no answer" if cut else "holds no answer to learn from"
        raise Fault(f"{found.where}: messages", what, "leave it out with --skip-bad")
    return Lesson(ids, loss, cut)
