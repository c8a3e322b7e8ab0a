"""Instructions that a dialogue is to keep to its end, and the constraints they are made of (paper, section 3.3).

In: a file of constraints, JSON lines for a person to edit, ``{"kind": "figure", "name": "Napoleon"}``, or what a model
says that is asked for them. Out: instructions that combine some of them at random, each in its long wording ("Always
act as Napoleon from now.") or, half of the time, in its terse one ("Figure: Napoleon."). Hobbies, languages and public
figures are the paper's; ours are formats, of which a program can tell whether an answer keeps them, and the choice
among combinations: each set of kinds is as likely as the others.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llamactl.artifacts import jsonl
from llamactl.errors import Fault
from llamactl.text import dialogue

# How a constraint is worded where the file does not say, long and terse: the paper's examples (3.3), as sentences.
WORDINGS = {
    "hobby": ("You enjoy {}.", "Hobby: {}."),
    "language": ("Speak in {}.", "Language: {}."),
    "figure": ("Always act as {} from now.", "Figure: {}."),
}
FORMATS = {
    "capitals": ("Answer in capital letters only.", "Format: capitals."),
    "lower case": ("Answer in lower case only.", "Format: lower case."),
    "one sentence": ("Answer in one sentence.", "Format: one sentence."),
    "json": ("Answer in JSON only.", "Format: JSON."),
}
LAST_WORD = "last word: "  # a format, and the word
ENDING = ("End every answer with the word {}.", "Last word: {}.")
# How a model is asked for them: questions of ours, for the paper does not say its own.
QUESTIONS = {
    "hobby": "List {} hobbies. Write the name of one on each line, and nothing else.",
    "language": "List {} languages that people speak. Write the name of one on each line, and nothing else.",
    "figure": "List {} famous people of all times. Write the name of one on each line, and nothing else.",
}
# Where neither a file nor a model says any.
OURS = {
    "hobby": ("tennis", "chess", "gardening", "cooking", "photography", "hiking", "painting", "astronomy"),
    "language": ("French", "Spanish", "German", "Italian", "Portuguese", "Dutch", "Japanese", "Russian"),
    "figure": (
        "Napoleon", "Cleopatra", "Albert Einstein", "William Shakespeare", "Marie Curie", "Leonardo da Vinci",
        "Julius Caesar", "Isaac Newton",
    ),
}  # fmt: skip
LONGEST = 40  # characters of a name in a model's list
_ITEM = re.compile(r"^\s*(?:\d+\s*[.):]|[-*\N{BULLET}])\s+")  # the number or the sign before one
_BESIDE = re.compile(r"\s+[-\N{EN DASH}\N{EM DASH}]\s+|\s*[:(]")  # after the name: what the model says of it
KINDS = (*WORDINGS, "format")  # in the order in which an instruction names them
FIELDS = ("kind", "name", "long", "terse")


class Constraint(NamedTuple):
    """One wish: what kind it is of, its name, and how an instruction words it."""

    kind: str
    name: str
    long: str
    terse: str

    @classmethod
    def of(cls, raw: Any, where: str) -> "Constraint":
        """From an object of JSON; raises Fault, naming the field, where it is none."""
        if not isinstance(raw, dict):
            raise Fault(where, "is not an object", 'write for example {"kind": "figure", "name": "Napoleon"}')
        for field, value in raw.items():
            if field not in FIELDS:
                raise Fault(f"{where}: {field}", "is no field of a constraint", f"these are {', '.join(FIELDS)}")
            if not isinstance(value, str) or not value.strip():
                raise Fault(f"{where}: {field}", "is no text", "give one, or leave the field off")
        kind, name = (" ".join(raw.get(field, "").split()) for field in ("kind", "name"))
        if kind not in KINDS:
            raise Fault(f"{where}: kind", f"is {kind or 'missing'}", f"give one of {', '.join(KINDS)}")
        if not name:
            raise Fault(f"{where}: name", "is missing", "say what it is called")
        name, wordings = _known(kind, name)
        if not (wordings or ("long" in raw and "terse" in raw)):
            missing = "terse" if "long" in raw else "long"
            known = ", ".join((*FORMATS, f"{LAST_WORD}WORD"))
            problem = f"is missing, and {name} is no format that has one of its own"
            raise Fault(f"{where}: {missing}", problem, f"say how it is asked for; known by name are {known}")
        long, terse = wordings or ("", "")
        return cls(kind, name, raw.get("long", long).strip(), raw.get("terse", terse).strip())

    @property
    def key(self) -> tuple[str, str]:
        """By which it is told from others, however its name is written."""
        return self.kind, self.name.casefold()

    @property
    def named(self) -> dict[str, str]:
        """Its kind and name, by which a record says what was asked."""
        return {"kind": self.kind, "name": self.name}


def _known(kind: str, name: str) -> tuple[str, tuple[str, str] | None]:
    """A name as it is spelled, and the wordings that are known of it."""
    if kind != "format":
        long, terse = WORDINGS[kind]
        return name, (long.format(name), terse.format(name))
    if (spelled := name.casefold()) in FORMATS:
        return spelled, FORMATS[spelled]
    if spelled.startswith(LAST_WORD):
        word = name[len(LAST_WORD) :]
        return LAST_WORD + word, (ENDING[0].format(word), ENDING[1].format(word))
    return name, None


def read(path: str | Path, allow_tags: bool = False) -> list[Constraint]:
    """The constraints of a file, in order; raises Fault ``FILE:LINE`` for one that is none or stands there twice."""
    found: dict[tuple[str, str], str] = {}
    constraints = []
    for where, constraint in jsonl.values([str(path)], Constraint.of):
        for field in FIELDS[1:]:
            dialogue.check_text(getattr(constraint, field), f"{where}: {field}", allow_tags)
        if (first := found.setdefault(constraint.key, where)) != where:
            problem = f"is the {constraint.kind} {constraint.name} of line {first.rpartition(':')[2]} again"
            raise Fault(where, problem, "leave one of them out")
        constraints.append(constraint)
    return constraints


def ours() -> list[Constraint]:
    """The program's own."""
    return [Constraint.of({"kind": kind, "name": name}, "ours") for kind, names in OURS.items() for name in names]


def names(answer: str, whole: bool = True) -> tuple[list[str], int]:
    """The names in a model's list, and how many of its lines are none; of one cut off, not ``whole``, the last is.

    Where lines are numbered or have a sign before them the others are left out: they introduce the list, or end it; and
    where none is, those that are sentences. So are lines that are long, have no letter, or hold the chat format's tags.
    """
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    finished = lines if whole else lines[:-1]
    listed = [line for line in finished if _ITEM.match(line)] or [line for line in finished if line[-1] not in ":.!?"]
    found = []
    for line in listed:
        name = " ".join(_BESIDE.split(_ITEM.sub("", line).strip(" *_\"'"), maxsplit=1)[0].split()).strip(" *_\"'.,;")
        if len(name) <= LONGEST and any(map(str.isalpha, name)) and not any(tag in name for tag in dialogue.TAGS):
            found.append(name)
    return found, len(lines) - len(found)


class Instruction(NamedTuple):
    """What a dialogue is to keep: the constraints that it combines, and their wording."""

    constraints: tuple[Constraint, ...]
    text: str
    terse: bool

    def before(self, message: str) -> str:
        """A message of the user that begins with it."""
        return f"{self.text}\n\n{message}"

    def behind(self, system: str | None) -> str:
        """A system message that ends with it; where there is none, one that is it."""
        return self.text if system is None else f"{system}\n\n{self.text}"


def drawn(constraints: Sequence[Constraint], seed: int, key: bytes) -> Instruction:
    """A random combination, of each kind at most one; terse half of the time.

    A function of ``seed``, ``key`` (of the dialogue) and the constraints. Each set of kinds is as likely as any other,
    and so is each constraint of a kind.
    """
    kinds = [kind for kind in KINDS if any(one.kind == kind for one in constraints)]
    picked = 1 + _number(seed, key, "kinds") % (2 ** len(kinds) - 1)  # a bit says whether a kind is among them
    some = []
    for place, kind in enumerate(kinds):
        if picked >> place & 1:
            among = [one for one in constraints if one.kind == kind]
            some.append(among[_number(seed, key, kind) % len(among)])
    terse = bool(_number(seed, key, "terse") % 2)
    return Instruction(tuple(some), " ".join(one.terse if terse else one.long for one in some), terse)


def _number(seed: int, key: bytes, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {what} ".encode() + key).digest()[:8], "little")
