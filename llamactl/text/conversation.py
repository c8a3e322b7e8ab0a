"""A conversation with a model: a Dialogue as it grows, what of it the model sees, and the commands that change it.

In: lines, typed by a person or out of a pipe. Out: the ids to continue, and Dialogues (contract, sections 1 and 3).
"""

import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from llamactl.artifacts import jsonl, manifest
from llamactl.artifacts.files import whole_file
from llamactl.artifacts.records import Dialogue, Message
from llamactl.errors import Fault
from llamactl.text import asking, dialogue
from llamactl.text.tokenizer import EOS, Tokenizer

HELP = """\
/system [TEXT]  show the system message; with TEXT, set it and start over
/reset          forget all that was said but the system message
/undo           take the last message and its answer back
/save FILE      write the conversation as a Dialogue, or add it to a .jsonl of Dialogues
/help           this list
/quit           end, as Ctrl-D does; Ctrl-C stops an answer
A line that begins with a space is a message, whatever comes then."""

SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz")  # of files that a conversation may be added to


class Seen(NamedTuple):
    """What a model sees of a conversation: the ids it continues, and how many of the oldest pairs are not in them."""

    ids: list[int]
    left_out: int


class Conversation:
    """Pairs of a message and its answer, behind a system message if there is one.

    ``room`` tokens of the context are kept for an answer: as many as it may have, but at most a half. The oldest pairs
    that do not fit into the rest are not shown to the model; they stay in ``messages``, which is what is saved.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, longest: int, allow_tags: bool = False) -> None:
        self._tokenizer, self._context, self._allow_tags = tokenizer, context, allow_tags
        self._longest, self.room = longest, min(longest, context // 2)
        self.messages: list[Message] = []
        self.ending = ""  # of the last answer, in words, where there is something to say of it

    @property
    def system(self) -> list[Message]:
        """The system message, in a list that is empty where there is none."""
        return [message for message in self.messages[:1] if message.role == "system"]

    @property
    def pairs(self) -> int:
        """Messages that were answered."""
        return len(self.messages) // 2

    def begin(self, system: str, subject: str) -> None:
        """Start over with a system message, or with none where it is blank; raises Fault, naming the subject."""
        self._check(system, subject)
        self.messages = [Message(role="system", content=system.strip())] if system.strip() else []

    def say(self, text: str) -> Seen:
        """Add a message, and what the model sees then; raises Fault, and adds nothing, where it cannot be asked."""
        self._check(text, "the message")
        message = Message(role="user", content=text.strip())
        turns = [*self.messages[len(self.system) :], message]
        first = len(turns) - 1
        ids = self._ids(turns[first:])
        if len(ids) >= self._context:
            problem = f"is {len(ids):,} tokens long{' with the system message' if self.system else ''}"
            problem += f", the model's context {self._context:,}: no room for an answer"
            raise Fault("the message", problem, "shorten it")
        while first and len(more := self._ids(turns[first - 2 :])) + self.room <= self._context:
            ids, first = more, first - 2
        self.messages += [message, Message(role="assistant", content="")]
        return Seen(ids, first // 2)

    def hear(self, drawn: Iterable[Any]) -> Iterator[str]:
        """The answer to the last message, in pieces as it is drawn; what was handed out is kept, wherever it stops."""
        answer, last, count = self.messages[-1], None, 0

        def watched() -> Iterator[Any]:
            nonlocal last, count
            for token in drawn:
                last, count = token.token, count + 1
                yield token

        for piece in asking.streamed(asking.Asked({}, [], None), watched(), self._tokenizer):
            answer.content += piece
            yield piece
        if last != EOS:
            limit = "--max-new-tokens" if count == self._longest else "the end of the context"
            self.ending = f"cut at {count:,} tokens, by {limit}"
        else:
            self.ending = "" if answer.content else "the model ended at once: an empty answer"

    def stop(self) -> None:
        """Leave the last answer at what was said of it; where that is nothing, the message is taken back."""
        if self.messages[-1].content:
            self.ending = "stopped; what was said stays in the conversation"
        else:
            self.ending = f"stopped before anything was said; taken back: {self.undo()}"

    def undo(self) -> str:
        """Take the last pair back; its message."""
        if not self.pairs:
            raise Fault("/undo", "nothing was said yet")
        return [self.messages.pop(), self.messages.pop()][1].content

    def obey(self, line: str) -> str:
        """Carry out a command; what there is to say of it. Raises Fault where it cannot be."""
        name, argument = [*line.strip().split(maxsplit=1), ""][:2]
        if argument and name in ("/reset", "/undo", "/help", "/quit"):
            raise Fault(name, "takes nothing after it", "a space before it makes the line a message")
        if name == "/help":
            return HELP
        if name == "/system" and argument:
            self.begin(argument, name)
            return "the system message is set; the conversation starts over"
        if name == "/system":
            return self.system[0].content if self.system else "there is no system message"
        if name == "/reset":
            forgotten, self.messages = self.pairs, self.system
            return f"{_counted(forgotten)} forgotten" + ("; the system message stays" if self.system else "")
        if name == "/undo":
            return f"taken back: {self.undo()}"
        if name == "/save":
            return self._save(argument)
        raise Fault(name, "is no command", "/help lists them; a space before it makes the line a message")

    def _ids(self, turns: list[Message]) -> list[int]:
        return dialogue.encode([*self.system, *turns], self._tokenizer).ids

    def _check(self, text: str, subject: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Fault(subject, "is not UTF-8", "convert it first, for example with iconv") from None
        dialogue.check_text(text, subject, self._allow_tags)

    def _save(self, name: str) -> str:
        """Write the Dialogue to a new file, or one of Dialogues anew with it at the end: whole or not at all."""
        if not name or "\0" in name:
            raise Fault("/save", "needs the name of a file", "/save FILE")
        if not self.pairs:
            raise Fault("/save", "nothing was said yet")
        path = Path(os.path.expanduser(name))  # noqa: PTH111  (Path's own raises where there is no such user)
        try:
            earlier = _dialogues(path)
            with whole_file(path) as file, jsonl.compressed(file, path.name) as stream:
                if earlier:
                    os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
                for block in jsonl.blocks([str(path)] if earlier else []):
                    stream.write(block.data)
                jsonl.Writer(stream).write({"messages": self.messages})
        except OSError as error:
            raise Fault(path, error.strerror or str(error), "mend that, or name another file") from None
        if earlier:
            return f"{path}: {_counted(self.pairs)} added as Dialogue {earlier + 1:,} of the file"
        return f"{path}: {_counted(self.pairs)} written as a Dialogue"


def _counted(pairs: int) -> str:
    return f"{pairs:,} pair{'s' * (pairs != 1)} of message and answer"


def _dialogues(path: Path) -> int:
    """How many Dialogues a file holds; 0 where it is not there, or empty. Raises Fault where it is anything else."""
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return 0
    remedy = "name another file"
    if not path.is_file():
        raise Fault(path, "exists, and is no file to write", remedy)
    if not path.name.endswith(SUFFIXES):
        raise Fault(path, "exists, and its name is not that of a .jsonl of Dialogues", remedy)
    if manifest.beside(path).exists():
        raise Fault(path, f"is what a run has made, and {manifest.beside(path).name} vouches for its bytes", remedy)
    found = 0
    try:
        for record, raw, where in jsonl.read([str(path)], Dialogue):
            found += 1
            if "response" in raw or [turn.role for turn in record.messages[-1:]] != ["assistant"]:
                raise Fault(where, "is no Dialogue that ends on an answer")
    except Fault as fault:
        raise Fault(path, f"holds something else than Dialogues ({fault.subject}: {fault.problem})", remedy) from None
    return found


def typed(prompt: str) -> Iterator[tuple[str, str]]:
    """Lines that a person types, without a place. Ctrl-D or Ctrl-C at the prompt ends them.

    They are edited and remembered by readline, where Python has it and stdout is a terminal as well.
    """
    with suppress(ImportError):
        import readline  # noqa: F401  (`input` uses it)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is refused when it is said
    while True:
        try:
            if sys.stdout.isatty():
                line = input(prompt)
            else:
                print(prompt, end="", file=sys.stderr, flush=True)
                line = input()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if line.strip():
            yield "", line


def piped() -> Iterator[tuple[str, str]]:
    """Lines of stdin as they come, with their places; blank ones are passed over."""
    if sys.stdin is None:
        raise Fault("stdin", "is closed", "pipe something in, or use a terminal")
    number = 0
    while data := sys.stdin.buffer.readline(jsonl.MAX_LINE + 1):
        number += 1
        where = f"stdin:{number}"
        if len(data) > jsonl.MAX_LINE:
            raise Fault(where, f"the line is longer than {jsonl.MAX_LINE:,} bytes", "split it")
        text = data.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").decode(errors="surrogateescape")
        if text.strip():
            yield where, text.rstrip("\r\n")
