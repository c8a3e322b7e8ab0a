"""What a model is asked, and its answer as text: Prompts in the chat format, Documents continued as they are."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llamactl.artifacts.jsonl import Found
from llamactl.artifacts.records import Document, Prompt, unanswered
from llamactl.errors import Fault
from llamactl.text import dialogue
from llamactl.text.tokenizer import BOS, EOS, Tokenizer


class Asked(NamedTuple):
    """A record as ids for the model to continue; ``text`` is what a Document's continuation is appended to."""

    raw: dict[str, Any]
    ids: list[int]
    text: str | None

    def sample(self, answer: Sequence[int], tokenizer: Tokenizer) -> dict[str, Any]:
        """The record with the answer as its ``response``."""
        return {**self.raw, "response": self.response(answer, tokenizer)}

    def sampled(
        self, answer: Sequence[int], stopped: bool, tokenizer: Tokenizer, model: Path, **sampling: float
    ) -> dict[str, Any]:
        """The same as a Sample: with how and by what it was sampled, and whether the model ended by itself."""
        how = {"sampling": sampling, "model": str(model), "finish": "stop" if stopped else "length"}
        return self.sample(answer, tokenizer) | how

    def response(self, answer: Sequence[int], tokenizer: Tokenizer) -> str:
        """The answer as text. A Document is decoded with it, or the answer's first space would be lost."""
        if self.text is None:
            return tokenizer.decode(answer).strip()
        return tokenizer.decode([*self.ids, *answer])[len(tokenizer.decode(self.ids)) :]


def document(text: str) -> Found[Prompt | Document]:
    """A text from the command line as if it had been read; raises Fault where the shell gave bytes that are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Fault("--text", "is not UTF-8", 'give it in a file: {"text": ...}') from None
    return Found(Document(text=text), {"text": text}, "--text")


def asked(found: Found[Any], tokenizer: Tokenizer, context: int, allow_tags: bool) -> Asked:
    """A record ready to be answered, without an earlier answer; raises Fault, with its place, where it cannot be."""
    record, raw = found.record, unanswered(found.raw)
    if isinstance(record, Document):
        one, field = Asked(raw, [BOS, *tokenizer.encode(record.text)], record.text), "text"
    else:
        dialogue.check_prompt(record.messages, found.where, allow_tags)
        one, field = Asked(raw, dialogue.encode(record.messages, tokenizer).ids, None), "messages"
    if len(one.ids) >= context:
        problem = f"is {len(one.ids):,} tokens long, the context {context:,}: no room for an answer"
        raise Fault(f"{found.where}: {field}" if ":" in found.where else found.where, problem, "shorten it")
    return one


def streamed(one: Asked, drawn: Iterable[Any], tokenizer: Tokenizer) -> Iterator[str]:
    """The answer to one request in pieces, as soon as its characters are whole."""
    ids: list[int] = []
    shown = ""
    for token in drawn:
        if token.token != EOS:
            ids.append(token.token)
        text = one.response(ids, tokenizer)
        if token.done or not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
