"""Whether a model keeps an instruction that was given once, turn after turn (paper, section 3.3, Table 30).

In: dialogues, of which the user's messages are taken, and an instruction for the first turn; the model gives all
answers itself. Out: of the answers to each turn that could be judged, the share that keeps it.

A turn is a message of the user and its answer. A conversation goes on until it has as many turns as were asked for, or
the context is full: until a message leaves no room for an answer, or an answer is cut off by the end of the context.
That answer is not judged, and there are none to later turns: these are shares of the conversations that came so far.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from llamactl.artifacts.records import Dialogue, Message
from llamactl.bootstrap import Estimate, Floats, ratios
from llamactl.evals.keeping import Judge, kept
from llamactl.evals.reward import Measurement
from llamactl.text import dialogue
from llamactl.text.constraints import Constraint, Instruction, drawn
from llamactl.text.judging import prompt_key
from llamactl.text.tokenizer import Tokenizer

SEEN, UNSEEN = "seen", "unseen"  # in training, as the user of the program says
LATER = "2+"  # all turns after the one that has the instruction

FULL = "the context is full"
TURNS = "all turns that were asked for"


class Case(NamedTuple):
    """A dialogue with an instruction; ``key`` tells dialogues apart, ``part`` is ``SEEN`` or ``UNSEEN``."""

    key: bytes
    id: str | int | None
    opening: list[Message]  # up to the user's first message, with the instruction
    users: Sequence[str]  # all messages of the user, the first without it
    instruction: Instruction
    judges: Sequence[Judge]
    part: str


class Wish(NamedTuple):
    """A constraint with its judge, and whether it is ``SEEN`` or ``UNSEEN``."""

    constraint: Constraint
    judge: Judge
    part: str


def cases(dialogues: Sequence[Dialogue], wishes: Sequence[Wish], turns: int, system: bool, seed: int) -> list[Case]:
    """Each dialogue with each constraint, in the system message or in the user's first; by ``seed`` terse or long.

    Each has as many messages of the user as turns are asked for (``continued``).
    """
    users = [[message.content for message in one.messages if message.role == "user"] for one in dialogues]
    found = []
    for number, one in enumerate(dialogues):
        key, spoken = prompt_key(one.messages), continued(users, number, turns)
        own = one.messages[0].content if one.messages[0].role == "system" else None
        for constraint, judge, part in wishes:
            instruction = drawn([constraint], seed, key + f"{constraint.kind} {constraint.name}".encode())
            first = spoken[0] if system else instruction.before(spoken[0])
            said = instruction.behind(own) if system else own
            opening = [Message(role="system", content=said)] if said is not None else []
            opening.append(Message(role="user", content=first))
            found.append(Case(key, one.id, opening, spoken, instruction, [judge], part))
    return found


def continued(users: Sequence[Sequence[str]], number: int, turns: int) -> list[str]:
    """The user's messages of a dialogue, and where they run out those of the dialogues after it, then of the first."""
    found = list(users[number][:turns])
    while len(found) < turns:
        number = (number + 1) % len(users)
        found += users[number][: turns - len(found)]
    return found


class Conversation:
    """A case as a model goes through it.

    ``asks`` is what it is to continue, None when it is over, for the reason ``ended``; ``verdicts`` are those on its
    answers, of which ``cut`` were cut off by the limit of their length.
    """

    def __init__(self, case: Case, tokenizer: Tokenizer, context: int) -> None:
        self.case, self._tokenizer, self._context = case, tokenizer, context
        self.messages = [*case.opening]
        self.verdicts: list[bool | None] = []
        self.ended, self.cut, self.tokens = "", 0, 0
        self.asks = self._next()

    def _next(self) -> list[int] | None:
        ids = self._ids()
        if len(ids) < self._context:
            return ids
        self._end(FULL)
        return None

    def _ids(self) -> list[int]:
        return dialogue.encode(self.messages, self._tokenizer).ids

    def _end(self, why: str) -> None:
        """Over; a message without an answer is left off, but for the first."""
        self.ended = why
        if self.messages[-1].role == "user" and self.verdicts:
            self.messages.pop()

    def hears(self, ids: Sequence[int], stopped: bool) -> None:
        """Take an answer, which the model has ended by itself where ``stopped``."""
        assert self.asks is not None
        self.tokens += len(ids)
        full, self.asks = len(self.asks) + len(ids) >= self._context and not stopped, None
        if full:
            self._end(FULL)
            return
        answer = self._tokenizer.decode(ids).strip()
        self.cut += not stopped
        self.verdicts.append(kept(self.case.judges, answer))
        self.messages.append(Message(role="assistant", content=answer))
        if len(self.verdicts) == len(self.case.users):
            self._end(TURNS)
            return
        self.messages.append(Message(role="user", content=self.case.users[len(self.verdicts)]))
        self.asks = self._next()

    def ids(self) -> tuple[list[int], int]:
        """All of it that the context holds, and how many more there are: answers are encoded anew, with their end."""
        ids = self._ids()
        return ids[: self._context], max(0, len(ids) - self._context)

    def record(self, model: str) -> dict[str, Any]:
        """The conversation as a Dialogue that a person can look at, with the verdicts."""
        case = self.case
        asked = {
            "instruction": case.instruction.text,
            "terse": case.instruction.terse,
            "constraints": [one.named for one in case.instruction.constraints],
        }
        return {
            **({} if case.id is None else {"id": case.id}),
            "messages": self.messages,
            "gatt": asked | {"part": case.part, "kept": self.verdicts, "ended": self.ended},
            "model": model,
        }


def measured(conversations: Sequence[Conversation], seed: int) -> Iterator[Measurement]:
    """The share of answers that keep their instruction, for seen and unseen constraints.

    By turn; by turn and kind of constraint; and by constraint over all turns after the first. Beside it, by turn, the
    share of conversations that came so far, and, where there are any, of answers that could not be judged.
    """
    for part in (SEEN, UNSEEN):
        some = [one for one in conversations if one.case.part == part]
        if not some:
            continue
        group = {"constraints": part}
        yield from _shares(some, seed, group)
        kinds = dict.fromkeys(_kind(one) for one in some)
        for kind in kinds if len(kinds) > 1 else ():
            yield from _shares([one for one in some if _kind(one) == kind], seed, group | {"kind": kind}, beside=False)
        for name in dict.fromkeys(_name(one) for one in some):
            own = [one for one in some if _name(one) == name]
            (found,) = _kept(own, [LATER], seed)
            if found:
                yield _measurement("kept", *found, group | {"constraint": name, "turn": LATER})


def _kind(one: Conversation) -> str:
    return " + ".join(constraint.kind for constraint in one.case.instruction.constraints)


def _name(one: Conversation) -> str:
    return " + ".join(f"{constraint.kind}: {constraint.name}" for constraint in one.case.instruction.constraints)


def _shares(
    some: Sequence[Conversation], seed: int, group: dict[str, str], beside: bool = True
) -> Iterator[Measurement]:
    turns = [str(turn) for turn in range(1, 1 + max(len(one.verdicts) for one in some))]
    turns += [LATER] if len(turns) > 1 else []
    for turn, found in zip(turns, _kept(some, turns, seed), strict=True):
        if found:
            yield _measurement("kept", *found, group | {"turn": turn})
    if not beside:
        return
    every = [one.case.key for one in some]
    for turn in filter(LATER.__ne__, turns):
        came = (len(one.verdicts) >= int(turn) for one in some)
        (estimate,) = ratios(every, _column(came), _column([1] * len(some)), seed)
        assert estimate
        yield _measurement("reached", estimate, len(some), group | {"turn": turn})
    if any(None in one.verdicts for one in some):
        for turn in turns:
            at = [_at(one, turn) for one in some]
            (open_,) = ratios(every, _column(a.count(None) for a in at), _column(len(a) for a in at), seed)
            if open_:
                yield _measurement("unjudged", open_, sum(map(len, at)), group | {"turn": turn})


def _kept(some: Sequence[Conversation], turns: Sequence[str], seed: int) -> list[tuple[Estimate, int] | None]:
    """The share at each of the turns, and of how many answers; None where none could be judged."""
    above = np.array([[_at(one, turn).count(True) for turn in turns] for one in some], np.float64)
    below = above + np.array([[_at(one, turn).count(False) for turn in turns] for one in some], np.float64)
    found = ratios([one.case.key for one in some], above, below, seed)
    return [(one, int(n)) if one else None for one, n in zip(found, below.sum(0), strict=True)]


def _at(one: Conversation, turn: str) -> list[bool | None]:
    """The verdicts on a conversation's answers at a turn, or all ``LATER`` ones."""
    return one.verdicts[1:] if turn == LATER else one.verdicts[int(turn) - 1 : int(turn)]


def _column(values: Iterable[int]) -> Floats:
    return np.array([[value] for value in values], np.float64)


def _measurement(metric: str, estimate: Estimate, n: int, group: dict[str, str]) -> Measurement:
    return Measurement(metric, estimate.value, n, estimate.stderr, estimate.interval, group)


def endings(conversations: Sequence[Conversation]) -> Counter[str]:
    """What there is to know of conversations, beside what was measured: how many, by what."""
    found: Counter[str] = Counter()
    for one in conversations:
        found["conversations that ended when the context was full"] += one.ended == FULL
        found["conversations without a single answer that is whole"] += not one.verdicts
        found["answers cut off at --max-new-tokens, judged as they are"] += one.cut
        found["answers that cannot be judged"] += one.verdicts.count(None)
    return +found
