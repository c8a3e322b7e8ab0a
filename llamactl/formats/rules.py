"""A format: the shape of other people's records, and what of ours can be made of one (contract, section 1).

A format is a class whose fields are what an item must have; its methods give talks (dialogues, or prompts where there
is no answer) and pairs (an answer preferred to another). What all formats share is here: which format an item has, the
rules for what is odd in a talk or a pair, and our records as they are written. Nothing is mended or left out without a
count.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

import msgspec

from llamactl.artifacts.records import (
    Comparison,
    Dialogue,
    Document,
    Message,
    Rating,
    SafetyLabel,
    Sample,
    in_words,
    to_last_question,
)
from llamactl.errors import Fault
from llamactl.formats.items import Item

Target = Literal["documents", "dialogues", "prompts", "comparisons"]
TARGETS: tuple[Target, ...] = get_args(Target)
Id = str | int | None

# What is done with what is odd: the words of the counts.
JOINED = "turns joined to the one before, by the same speaker"
CUT = "dialogues cut before an empty turn"
UNANSWERED = "last turns without an answer, left off"
NO_SYSTEM = "empty system messages, left off"
EMPTY_TALK = "dialogues without an answer to learn from"
EMPTY_PROMPT = "empty prompts"
EMPTY_SIDE = "pairs with an empty turn"
IDENTICAL = "pairs of identical answers"
TIE = "ties"
NO_ANSWER = "pairs that do not end on an answer"
UNASKED = "pairs whose prompt does not end on a question"
OTHER_PROMPT = "pairs whose sides have different prompts"
EMPTY_TEXT = "empty texts"
OTHER_KIND = "fields of another kind of record, left off"

_KEYS = {kind.key for kind in (Document, Dialogue, Sample, Comparison)}  # each says what kind of record it is


class Tally(NamedTuple):
    """What was odd in a file: what was skipped, and what was used, but not as it was; by reason."""

    skipped: Counter[str]
    noted: Counter[str]


class Talk(NamedTuple):
    """Turns; as a prompt, those up to the last user's."""

    turns: list[Message]
    id: Id = None
    source: str | None = None
    safety: bool = False
    rest: Mapping[str, Any] | None = None  # fields that pass through


class Pair(NamedTuple):
    """A prompt, an answer, and one that it was preferred to."""

    prompt: list[Message]
    chosen: str
    rejected: str
    id: Id = None
    source: str | None = None
    rating: Rating | None = None
    safety_label: SafetyLabel | None = None
    safety: bool = False  # of the prompt
    rest: Mapping[str, Any] | None = None


def user(text: str) -> Message:
    """A turn of the user."""
    return Message(role="user", content=text)


def assistant(text: str, weight: Literal[0, 1] = 1) -> Message:
    """An answer; without loss where ``weight`` is 0."""
    return Message(role="assistant", content=text, weight=weight)


def compared(chosen: list[Message], rejected: list[Message], tally: Tally) -> Iterator[Pair]:
    """Two whole dialogues as a pair, if they differ in their last answer alone."""
    if not (chosen and rejected and chosen[-1].role == rejected[-1].role == "assistant"):
        tally.skipped[NO_ANSWER] += 1
    elif chosen[:-1] != rejected[:-1]:
        tally.skipped[OTHER_PROMPT] += 1
    else:
        yield Pair(chosen[:-1], chosen[-1].content, rejected[-1].content)


class Format(msgspec.Struct, kw_only=True):
    """One item, checked. The first line of a subclass's docstring says what the format is, the rest its rules."""

    name: ClassVar[str]
    answers: ClassVar[bool] = True  # whether its talks hold answers, and so make dialogues

    @classmethod
    def of(cls, item: Item) -> Self:
        """An item as this format; raises msgspec.ValidationError where it is none."""
        return msgspec.convert(item.value, cls)

    def talks(self, tally: Tally) -> Iterable[Talk]:
        """Dialogues: here the preferred answer of each pair."""
        for pair in self.pairs(tally):
            yield Talk([*pair.prompt, assistant(pair.chosen)], pair.id, pair.source, pair.safety, pair.rest)

    def prompts(self, tally: Tally) -> Iterable[Talk]:
        """Talks to be cut after the last turn of the user."""
        return self.talks(tally)

    def pairs(self, tally: Tally) -> Iterable[Pair]:
        """Preferences; none, unless a format has them."""
        return ()

    def texts(self, tally: Tally) -> Iterable[Talk]:
        """Documents, each as the one turn of a talk; here transcripts of its dialogues."""
        for talk in self.talks(tally):
            turns = mended(talk.turns, tally.noted)
            yield talk._replace(turns=[user("\n\n".join(f"{t.role.title()}: {t.content.strip()}" for t in turns))])

    @classmethod
    def targets(cls) -> list[Target]:
        """What can be made of it."""
        own = {name for kind in cls.__mro__[: cls.__mro__.index(Format)] for name in vars(kind)}
        talks, pairs = "talks" in own, "pairs" in own
        can = {
            "documents": "texts" in own or (cls.answers and (talks or pairs)),
            "dialogues": cls.answers and (talks or pairs),
            "prompts": talks or pairs,
            "comparisons": pairs,
        }
        return [target for target in TARGETS if can[target]]


def fitting(item: Item, formats: Sequence[type[Format]]) -> list[type[Format]]:
    """The formats that an item has; of two that are of one family the closer one."""
    found = []
    for kind in formats:
        try:
            kind.of(item)
        except msgspec.ValidationError:
            continue
        found.append(kind)
    return [kind for kind in found if not any(other is not kind and issubclass(other, kind) for other in found)]


def made(kind: type[Format], target: Target, item: Item, tally: Tally) -> Iterator[dict[str, Any]]:
    """Our records of one item; raises Fault, with its place, where it is not of this format."""
    try:
        one = kind.of(item)
        if target == "comparisons":
            yield from filter(None, (comparison(pair, tally) for pair in one.pairs(tally)))
        elif target == "dialogues":
            yield from filter(None, (dialogue(talk, tally) for talk in one.talks(tally)))
        elif target == "prompts":
            yield from filter(None, (prompt(talk, tally) for talk in one.prompts(tally)))
        else:
            yield from filter(None, (document(talk, tally) for talk in one.texts(tally)))
    except msgspec.ValidationError as error:
        raise Fault(item.where, f"is no {kind.name}: {in_words(error)}") from None
    except RecursionError:
        raise Fault(item.where, "is nested too deeply") from None
    except Fault as fault:
        raise Fault(f"{item.where}: {fault.subject}", fault.problem, fault.remedy) from None


# -- the rules for what is odd, the same for all formats


def mended(turns: Sequence[Message], noted: Counter[str]) -> list[Message]:
    """Turns without an empty system message, none by the same speaker twice, up to the first that is empty."""
    kept: list[Message] = []
    for turn in turns:
        blank = not turn.content.strip()
        if turn.role == "system" and blank and not kept:
            noted[NO_SYSTEM] += 1
        elif blank:
            noted[CUT] += 1
            break
        elif kept and kept[-1].role == turn.role != "system":
            noted[JOINED] += 1
            joined = f"{kept[-1].content.rstrip()}\n\n{turn.content.lstrip()}"
            kept[-1] = Message(role=turn.role, content=joined, weight=min(kept[-1].weight, turn.weight))
        else:
            kept.append(turn)
    return kept


def dialogue(talk: Talk, tally: Tally) -> dict[str, Any] | None:
    """A Dialogue, which ends on an answer; None where it has none, or none that carries loss."""
    noted: Counter[str] = Counter()
    turns = mended(talk.turns, noted)
    if not any(turn.role == "assistant" and turn.weight for turn in turns):
        tally.skipped[EMPTY_TALK] += 1
        return None
    if turns[-1].role == "user":
        noted[UNANSWERED] += 1
        turns.pop()
    tally.noted.update(noted)
    return _record(talk, tally, messages=turns)


def prompt(talk: Talk, tally: Tally) -> dict[str, Any] | None:
    """A Prompt: the turns up to the last of the user; None where there is none."""
    noted: Counter[str] = Counter()
    turns = to_last_question(mended(to_last_question(talk.turns), noted))
    if not turns:
        tally.skipped[EMPTY_PROMPT] += 1
        return None
    tally.noted.update(noted)
    return _record(talk, tally, messages=turns, safety=talk.safety or None)


def comparison(pair: Pair, tally: Tally) -> dict[str, Any] | None:
    """A Comparison; None where its sides are the same, or a turn is empty."""
    noted: Counter[str] = Counter()
    prompt = mended(pair.prompt, noted)
    if noted[CUT] or not pair.chosen.strip() or not pair.rejected.strip():  # a cut prompt would be another one
        tally.skipped[EMPTY_SIDE] += 1
    elif not any(turn.role != "system" for turn in prompt):
        tally.skipped[EMPTY_PROMPT] += 1
    elif prompt[-1].role != "user":
        tally.skipped[UNASKED] += 1
    elif pair.chosen.strip() == pair.rejected.strip():
        tally.skipped[IDENTICAL] += 1
    else:
        tally.noted.update(noted)
        return _record(
            pair,
            tally,
            prompt=prompt,
            chosen=[assistant(pair.chosen)],
            rejected=[assistant(pair.rejected)],
            rating=pair.rating,
            safety_label=pair.safety_label,
        )
    return None


def document(talk: Talk, tally: Tally) -> dict[str, Any] | None:
    """A Document; None where it is empty."""
    text = talk.turns[0].content
    if not text.strip():
        tally.skipped[EMPTY_TEXT] += 1
        return None
    return _record(talk, tally, text=text)


def _record(one: Talk | Pair, tally: Tally, **fields: Any) -> dict[str, Any]:
    """The fields that have a value, ``id`` first, ``source`` last but what passes through, which replaces none."""
    rest = one.rest or {}
    every = {"id": one.id, **fields, "source": one.source}
    tally.noted[OTHER_KIND] += len(_KEYS & rest.keys())
    every |= {name: value for name, value in rest.items() if name not in _KEYS and every.get(name) is None}
    return {name: value for name, value in every.items() if value is not None or name in rest}
