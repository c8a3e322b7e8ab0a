"""Ghost Attention (paper, section 3.3): dialogues in which the model keeps an instruction that was given once.

In: dialogues, an instruction for each, and a model to continue ids. Sampled, the instruction stands in every message of
the user; written, in the first turn alone, and only the last answer carries loss: the answers before it come from
another context than the one that is learned from, so their loss is 0.

The paper is open on whether the earlier answers are sampled like the last one, or those of the dialogue: both are here.
Ours: the wording of a user's message with the instruction (before it, a blank line between), how the model is asked to
write a message of the user, and where a dialogue ends: always after a whole turn, whose answer the model ended by
itself. Answers that were cut off stay only in the middle, where nothing is learned of their end.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from llamactl.artifacts.jsonl import Found
from llamactl.artifacts.records import Dialogue, Message, Sample, unanswered
from llamactl.errors import Fault
from llamactl.text import constraints, dialogue
from llamactl.text.constraints import Constraint, Instruction
from llamactl.text.judging import prompt_key
from llamactl.text.tokenizer import Tokenizer

WINDOW = 512  # dialogues under way at once: enough for the sampler always to be full
TRIES = 8  # lists that a model is asked for, to find as many names as are wanted
FIELD = "gatt"  # what a dialogue says of how it was made

# The model's turn, where a dialogue is to go on and has no further message of the user.
FOLLOW_UP = "Write the next message that I could send you to go on with this conversation. Write that message only."

# Why a dialogue has fewer turns than it was to have.
OUTGREW = "the next turn outgrows the context"
CUT = "an answer is cut off"
EMPTY = "an answer has no text"
TAGS = "a message holds the chat format's tags"
SILENT = "the model wrote no whole message of the user"

Drawn = Callable[[Sequence[list[int]]], Iterator[tuple[int, Sequence[int], bool]]]


class How(NamedTuple):
    """How dialogues are made. ``turns`` is the fewest, for which the model also plays the user."""

    tokenizer: Tokenizer
    context: int
    turns: int = 1
    given: bool = False  # earlier answers are the dialogue's own
    system: bool = False  # the instruction is written as the system message, not in the first message of the user
    allow_tags: bool = False


class Answer(NamedTuple):
    """A message of the assistant; whole, where the model ended it by itself."""

    message: dict[str, Any]
    whole: bool


def _said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


class Play:
    """A dialogue under way.

    ``asks`` is what the model is to continue next, None when the dialogue is over. Then ``record`` is what is written,
    and ``ended`` why it has fewer turns than it was to have.
    """

    def __init__(self, found: Found[Dialogue], instruction: Instruction, how: How) -> None:
        """Raises Fault, with its place, for a record that is no dialogue, or whose first turn leaves no room."""
        if FIELD in found.raw:
            problem = "was made by gatt-synth: it holds an instruction already"
            raise Fault(f"{found.where}: {FIELD}", problem, "give the dialogues that it was made from")
        dialogue.check(found.record.turns, found.where, how.allow_tags)
        self.instruction, self.how, self.where = instruction, how, found.where
        self.raw = unanswered(found.raw)
        messages = [*found.raw["messages"]]
        if isinstance(found.record, Sample):
            messages.append(_said("assistant", found.record.response))
        self._system = messages[:1] if messages[0]["role"] == "system" else []
        self._users = [message for message in messages if message["role"] == "user"]
        self._wanted, self._played = max(how.turns, len(self._users)), 0  # turns; the user's that the model wrote
        self._answers: list[Answer] = []
        self.ended = ""
        self._heard: Counter[str] = Counter()
        self._asks_the_user = False
        first = self._ids(self._asked(1))
        if len(first) >= how.context:
            own = len(how.tokenizer.encode(instruction.text))
            problem = f"its first turn is {len(first):,} tokens long, {own:,} of them the instruction's, and the "
            problem += f"model's context {how.context:,}: no room for an answer"
            raise Fault(found.where, problem, "shorten the one or the other")
        if how.given:
            theirs = [message for message in messages if message["role"] == "assistant"]
            self._answers = [Answer(message, True) for message in theirs[: len(self._users) - 1]]
        self.asks: list[int] | None = self._next()

    # -- what the model is asked

    def _asked(self, turns: int) -> list[dict[str, Any]]:
        """The dialogue up to the user's message of turn ``turns`` (from 1), the instruction in each of them."""
        users = [self._instructed(user) for user in self._users[:turns]]
        return [*self._system, *_by_turns(users, self._answers[: turns - 1])]

    def _instructed(self, user: dict[str, Any]) -> dict[str, Any]:
        return {**user, "content": self.instruction.before(user["content"])}

    def _next(self) -> list[int] | None:
        """What is to be continued next, shorter by a turn where the dialogue's own answers leave no room."""
        while True:
            turn = len(self._answers) + 1
            if turn > self._wanted:
                return None
            self._asks_the_user = turn > len(self._users)
            if self._asks_the_user:
                users = [*self._users, _said("user", FOLLOW_UP)]
                ids = self._ids([*self._system, *_by_turns(users, self._answers)])
            else:
                ids = self._ids(self._asked(turn))
            if len(ids) < self.how.context:
                return ids
            if not self._shorter(OUTGREW):
                return None

    def _shorter(self, why: str) -> bool:
        """End before the turn that failed; whether there is another to be the last, with an answer to be sampled."""
        self.ended = self.ended or why
        self._wanted = len(self._answers)
        if self.how.given and self._answers:
            self._answers.pop()
            return True
        return False

    # -- what it says

    def hears(self, ids: Sequence[int], stopped: bool) -> None:
        """Take what the model said, which it has ended by itself where ``stopped``."""
        assert self.asks is not None
        self._heard.update(samples=1, tokens=len(ids))
        text = self.how.tokenizer.decode(ids).strip()
        tagged = not self.how.allow_tags and any(tag in text for tag in dialogue.TAGS)
        full = len(self.asks) + len(ids) >= self.how.context
        if self._asks_the_user:
            why = OUTGREW if full and not stopped else TAGS if tagged else "" if text and stopped else SILENT
            if not why:
                self._users.append(_said("user", text))
                self._played += 1
        else:
            answer = Answer(_said("assistant", text), stopped)
            why = EMPTY if not text else TAGS if tagged else OUTGREW if full and not stopped else ""
            why = why or (CUT if self.how.given and not stopped else "")
            if not why and len(self._ids(self._written([*self._answers, answer]))) > self.how.context:
                why = OUTGREW
            if not why:
                self._answers.append(answer)
        self.asks = self._next() if not why or self._shorter(why) else None
        if self.asks is None:
            self._leave_off()

    def _leave_off(self) -> None:
        """A dialogue ends on an answer that is whole."""
        while self._answers and not self._answers[-1].whole:
            self._answers.pop()
            self.ended = self.ended or CUT

    @property
    def done(self) -> Counter[str]:
        """What it came to, in numbers."""
        return Counter(dialogues=int(bool(self._answers)), turns=len(self._answers), **self._heard)

    @property
    def noted(self) -> Counter[str]:
        """What is to be said of a dialogue that is written."""
        turns = len(self._answers)
        return +Counter(
            {
                f"dialogues that end early ({self.ended})": int(bool(turns and self.ended)),
                "dialogues of one turn (nothing to keep after it)": int(turns == 1),
                "earlier answers that are cut off": sum(not answer.whole for answer in self._answers),
                "messages of the user that the model wrote": self._written_by_the_model(),
            }
        )

    def _written_by_the_model(self) -> int:
        return max(0, len(self._answers) - (len(self._users) - self._played))

    # -- what is written

    def _written(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """The dialogue with so many answers: the instruction once, and no loss but on the last."""
        system, users = self._system, self._users[: len(answers)]
        if self.how.system:
            own = system[0] if system else _said("system", "")
            system = [{**own, "content": self.instruction.behind(own["content"] if system else None)}]
        else:
            users = [self._instructed(users[0]), *users[1:]]
        return [*system, *_by_turns(users, [*_weighed(answers)])]

    @property
    def record(self) -> dict[str, Any] | None:
        """The Dialogue to learn from, with what was asked of it; None where no turn is left."""
        if not self._answers:
            return None
        made = {
            "instruction": self.instruction.text,
            "terse": self.instruction.terse,
            "constraints": [one.named for one in self.instruction.constraints],
            "place": "system" if self.how.system else "user",
            "earlier": "given" if self.how.given else "sampled",
            "turns": len(self._answers),
            "played": self._written_by_the_model(),
            "ended": self.ended or None,
        }
        return {**self.raw, "messages": self._written(self._answers), FIELD: made}

    def _ids(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        checked = [Message(role=message["role"], content=message["content"]) for message in messages]
        return dialogue.encode(checked, self.how.tokenizer).ids


def _by_turns(users: Sequence[dict[str, Any]], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Messages of the user, and the answers between them, and after them."""
    turns: list[dict[str, Any]] = []
    for number, user in enumerate(users):
        turns.append(user)
        turns += [answer.message for answer in answers[number : number + 1]]
    return turns


def _weighed(answers: Sequence[Answer]) -> Iterator[Answer]:
    """Answers of which the last alone carries loss."""
    for answer in answers[:-1]:
        yield answer._replace(message={**answer.message, "weight": 0})
    last = {key: value for key, value in answers[-1].message.items() if key != "weight"}
    yield answers[-1]._replace(message=last)


def check(some: Sequence[Constraint], path: object, how: How) -> None:
    """Raise Fault for a constraint that leaves no room in the context, whatever the dialogue."""
    for one in some:
        length = max(len(how.tokenizer.encode(text)) for text in (one.long, one.terse))
        if length >= how.context:
            problem = f"{one.kind} {one.name[:40]} is {length:,} tokens long, the model's context {how.context:,}"
            raise Fault(path, problem, "word it shorter")


def play(found: Found[Dialogue], some: Sequence[Constraint], seed: int, how: How) -> Play:
    """A dialogue with the instruction that is drawn for it, by the seed and what is said in it; raises Fault."""
    return Play(found, constraints.drawn(some, seed, prompt_key(found.record.turns)), how)


def played(plays: Iterable[Play], drawn: Drawn) -> Iterator[tuple[int, Play]]:
    """Dialogues that are over, and their places, as soon as they are; the next turn of all under way is one batch.

    ``drawn`` continues each of a batch: its number in it, ids, and whether they ended by themselves, in any order.
    """
    waiting = enumerate(plays)
    under_way = list(islice(waiting, WINDOW))
    while under_way:
        for number, ids, stopped in drawn([one.asks or [] for _, one in under_way]):
            place, one = under_way[number]
            one.hears(ids, stopped)
            if one.asks is None:
                yield place, one
        under_way = [(place, one) for place, one in under_way if one.asks is not None]
        under_way += islice(waiting, WINDOW - len(under_way))


def lists(wanted: int, tokenizer: Tokenizer, drawn: Drawn) -> tuple[list[Constraint], Counter[str]]:
    """Constraints of each kind of the paper's, as the model names them; and what its lists had beside.

    ``drawn`` gives ``TRIES`` answers to each of a batch. An answer's names come before those of the next; what was
    named before is left out, and so are more than are ``wanted``.
    """
    kinds = list(constraints.QUESTIONS)
    questions = [[Message(role="user", content=constraints.QUESTIONS[kind].format(wanted))] for kind in kinds]
    asked = [dialogue.encode(one, tokenizer).ids for one in questions]
    found: dict[tuple[str, str], Constraint] = {}
    noted: Counter[str] = Counter()
    for number, ids, stopped in sorted(drawn(asked), key=lambda one: one[0]):
        kind = kinds[number]
        if sum(one.kind == kind for one in found.values()) >= wanted:
            continue
        names, others = constraints.names(tokenizer.decode(ids), stopped)
        noted["lines of the model's lists that are no name"] += others
        for name in names:
            one = Constraint.of({"kind": kind, "name": name}, kind)
            if one.key in found:
                noted["names that the model gave again"] += 1
            elif sum(other.kind == kind for other in found.values()) < wanted:
                found[one.key] = one
    for kind in kinds:
        if missing := wanted - sum(one.kind == kind for one in found.values()):
            noted[f"constraints of kind {kind} fewer than were asked for"] = missing
    return list(found.values()), noted
