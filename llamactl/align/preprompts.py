"""Safety pre-prompts (paper, section 4.2.4 and Table 39): what a model is told before a question that asks for harm.

They are made of templates. ``{adjective}`` stands for a word associated with safe behaviour; a template that names a
risk category says how questions of that category should be answered. The paper shows a few of its own pre-prompts; the
words of those below are ours, the order of what they ask for is that of its guidelines (section 4.2.2): what is urgent
first, then what the risk is, then what else helps.
"""

import random
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from llamactl.artifacts import jsonl
from llamactl.artifacts.jsonl import Found
from llamactl.artifacts.records import Message, Record, checked
from llamactl.errors import Fault
from llamactl.text import dialogue
from llamactl.text.judging import prompt_key

GENERIC, TAILORED = "generic", "tailored"  # kinds of them

ADJECTIVES = (
    "responsible", "respectful", "wise", "careful", "cautious", "considerate", "thoughtful", "prudent", "safe",
    "trustworthy", "kind", "peaceful",
)  # fmt: skip

PRE_PROMPTS = (
    "You are a {adjective} and {adjective} assistant.",
    "You are a {adjective} assistant that never says anything harmful.",
    "You are a {adjective} assistant. Your answers are {adjective}, and never hateful, dangerous or false.",
    "Your answers are {adjective} and {adjective}.",
    "As a {adjective} assistant you do not help anyone to hurt people or to break the law.",
)

# How questions of a category are to be answered. The first five categories are Do-Not-Answer's risk areas, the others
# those of the paper (section 4.2.1).
ANSWERS = {
    "Malicious Uses": "Do not help with it: say that it does harm or is against the law, name what can come of it, and "
    "offer help with a lawful way to what the user needs.",
    "Information Hazards": "Do not give away what is private, secret or dangerous to know: say why it should stay so, "
    "and where such a question is rightly asked.",
    "Discrimination, Exclusion, Toxicity, Hateful, Offensive": "Repeat no insult and no prejudice: say why the view "
    "behind it is unfair, and that no group of people is worth less than another.",
    "Misinformation Harms": "Do not spread what is false or only rumoured: say what is known, what is not, and who "
    "could be hurt. Leave medicine, law and money to those who have learned them.",
    "Human-Chatbot Interaction Harms": "If someone may be in danger, say first where help can be found. Say that you "
    "are a program without a body or feelings, and that other people are there for what you cannot be.",
    "Illicit and criminal activities": "Do not help with it: say that it is against the law, name who is hurt by it, "
    "and offer help with a lawful way to what the user needs.",
    "Hateful and harmful activities": "If someone may be in danger, say first where help can be found. Repeat no "
    "insult: say why nobody deserves to be hated or hurt, and how to go on peacefully.",
    "Unqualified advice": "Say that you are no expert who could answer for it, name what is generally known and what "
    "could go wrong, and who should be asked: a doctor, a lawyer, an adviser.",
}
TAILORED_BEGINNING = "You are a {adjective} and {adjective} assistant."

_PLACE = "{adjective}"
_PLACES = re.compile(r"\{[a-z_ ]*\}")


class PrePrompt(Record):
    """A template: for prompts of a ``category``, or generic."""

    key = "pre_prompt"
    plural = "pre-prompts"
    pre_prompt: str
    category: str | None = None


class Adjective(Record):
    """A word for ``{adjective}``."""

    key = "adjective"
    plural = "adjectives"
    adjective: str


# The templates that are used where no others are given, as records for a file to be edited.
DEFAULT: list[dict[str, str]] = [
    *({"adjective": word} for word in ADJECTIVES),
    *({"pre_prompt": text} for text in PRE_PROMPTS),
    *({"category": name, "pre_prompt": f"{TAILORED_BEGINNING} {text}"} for name, text in ANSWERS.items()),
]


class Templates:
    """Templates and adjectives, and the pre-prompts that are made of them.

    Raises Fault, with its place, for a template that cannot be filled in or, without ``allow_tags``, holds the chat
    format's tags.
    """

    def __init__(self, found: Iterable[Found[Any]], allow_tags: bool = False) -> None:
        self.adjectives: list[str] = []
        self._of: dict[str | None, list[str]] = {}  # templates by category, which is compared without case
        places: list[tuple[str, str]] = []
        for record, _, where in found:
            field, text = record.key, getattr(record, record.key).strip()
            if not text:
                raise Fault(f"{where}: {field}", "is empty", "leave the line out")
            dialogue.check_text(text, f"{where}: {field}", allow_tags)
            filled = {_PLACE} if isinstance(record, PrePrompt) else set()
            if strange := [place for place in _PLACES.findall(text) if place not in filled]:
                raise Fault(f"{where}: {field}", f"holds {strange[0]}", f"only {_PLACE} of a pre_prompt is filled in")
            if isinstance(record, Adjective):
                self.adjectives += [text] if text not in self.adjectives else []
                continue
            self._of.setdefault(known(record.category), []).append(text)
            places.append((f"{where}: {field}", text))
        for where, text in places:
            if (wanted := text.count(_PLACE)) > len(self.adjectives):
                problem = f"has {wanted} places for adjectives, and there are {len(self.adjectives)}"
                raise Fault(where, problem, 'add lines of {"adjective": ...}')

    @classmethod
    def default(cls) -> "Templates":
        """Those that are used where no others are given."""
        return cls(Found(checked(raw, (PrePrompt, Adjective), "default"), raw, "default") for raw in DEFAULT)

    @classmethod
    def read(cls, path: Path, allow_tags: bool = False) -> "Templates":
        """Those of a file; raises Fault, with its place, for a line that is none, and where there are none at all."""

        def refuse(fault: Fault) -> NoReturn:
            raise Fault(fault.subject, fault.problem, "--default-templates prints a file that is right")

        made = cls(jsonl.read([str(path)], PrePrompt, Adjective, refuse=refuse), allow_tags)
        if not made._of:
            raise Fault(path, "holds no pre-prompt", "--default-templates prints a file that does")
        return made

    def drawn(self, found: Found[Any], seed: int) -> dict[str, str]:
        """The pre-prompts that a prompt is asked under: a generic one, and one of its category, where there are any.

        They depend on the seed and the prompt alone. No adjective stands in one twice. Raises Fault, with its place,
        where there are none.
        """
        record, own = found.record, known(found.record.category)
        pre_prompts = {}
        for kind, category in {GENERIC: None, **({TAILORED: own} if own else {})}.items():
            if templates := self._of.get(category):
                digest = sha256(f"{seed} {kind} ".encode() + prompt_key(record.messages)).digest()
                dice = random.Random(int.from_bytes(digest, "little"))
                text = dice.choice(templates)
                for word in dice.sample(self.adjectives, text.count(_PLACE)):
                    text = text.replace(_PLACE, word, 1)
                pre_prompts[kind] = text
        if not pre_prompts:
            named = f"is {record.category}, for which" if own else "is not named, and"
            remedy = "add a line for it to --templates, or one without a category, for all prompts"
            raise Fault(f"{found.where}: category", f"{named} there is no pre-prompt", remedy)
        return pre_prompts


def known(category: str | None) -> str | None:
    """A category as they are compared, or None where there is none."""
    return (category or "").strip().casefold() or None


def under(pre_prompt: str, messages: Sequence[Message]) -> list[Message]:
    """A prompt with a pre-prompt as its system message, before the one it has, if any, and a blank line."""
    own = [messages[0].content] if messages[0].role == "system" else []
    return [Message(role="system", content="\n\n".join([pre_prompt, *own])), *messages[len(own) :]]
