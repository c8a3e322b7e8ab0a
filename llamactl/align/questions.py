"""Prompts as a model is asked them in safety distillation (paper, section 4.2.4): plainly, and under pre-prompts."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from llamactl.align.preprompts import GENERIC, TAILORED, known, under
from llamactl.artifacts.jsonl import Found
from llamactl.artifacts.records import Prompt, Sample, unanswered
from llamactl.text import asking, dialogue
from llamactl.text.asking import Asked
from llamactl.text.tokenizer import Tokenizer

PLAIN = "plain"
WAYS = (PLAIN, GENERIC, TAILORED)  # of asking


class RiskyPrompt(Prompt, kw_only=True):
    """A prompt whose risk may have been named."""

    category: str | None = None


class RiskySample(Sample, kw_only=True):
    """The same with an answer that has been given to it."""

    category: str | None = None


class Question(NamedTuple):
    """A prompt as the model is asked it, by way of asking, and the pre-prompts; it is asked nothing where none are."""

    prompt: Found[Any]
    asked: dict[str, Asked]
    pre_prompts: dict[str, str]
    notes: dict[str, int]  # how many records of what kind it is, by reason

    @property
    def fate(self) -> str:
        """What becomes of it."""
        return "distilled" if self.pre_prompts else "unchanged"


def question(
    found: Found[Any], pre_prompts: Mapping[str, str], tokenizer: Tokenizer, context: int, allow_tags: bool
) -> Question:
    """A prompt that is asked plainly and under pre-prompts; raises Fault, with its place, where it cannot be.

    An answer that has been given to it is left aside.
    """
    record, where = found.record, found.where
    plain = _prompt(found)
    asked = {PLAIN: asking.asked(plain, tokenizer, context, allow_tags)}
    for way, text in pre_prompts.items():
        longer = Prompt(messages=under(text, record.messages))
        one = asking.asked(Found(longer, {}, f"{where} under its {way} pre-prompt"), tokenizer, context, allow_tags)
        asked[way] = one._replace(raw=plain.raw)
    named = bool(known(record.category))
    notes = {
        "answers of the input, left aside": isinstance(record, Sample),
        "prompts with a system message, which stands after the pre-prompt": record.messages[0].role == "system",
        "prompts without a category, under a generic pre-prompt alone": not named,
        "prompts of a category without a pre-prompt, under a generic one": named and TAILORED not in pre_prompts,
    }
    return Question(plain, asked, dict(pre_prompts), {what: 1 for what, so in notes.items() if so})


def unchanged(found: Found[Any], tokenizer: Tokenizer, context: int, allow_tags: bool) -> Question:
    """A record that is learned as it is, or where it has no answer with that to the plain prompt.

    Raises Fault, with its place, where it cannot be learned or asked.
    """
    if found.record.turns[-1:] and found.record.turns[-1].role == "assistant":
        dialogue.check_answers(found.record.turns, found.where, allow_tags)
        return Question(found, {}, {}, {"records not tagged safety, with their answer": 1})
    plain = _prompt(found)
    asked = {PLAIN: asking.asked(plain, tokenizer, context, allow_tags)}
    return Question(plain, asked, {}, {"prompts not tagged safety, with the model's plain answer": 1})


def _prompt(found: Found[Any]) -> Found[Any]:
    """A record without what an earlier stage has answered."""
    return found._replace(raw=unanswered(found.raw))
