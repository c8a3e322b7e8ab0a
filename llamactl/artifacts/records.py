"""The records that stages exchange as JSON lines (contract, section 1).

A record is checked when it is read; fields that a stage does not know stay in the raw object and pass through.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import msgspec

from llamactl.errors import Fault


class Record(msgspec.Struct, kw_only=True):
    """What all records share: ``key``, the field by which a record is told from others, and an optional ``id``.

    ``plural`` is what ``llamactl convert --to`` calls them.
    """

    key: ClassVar[str]
    plural: ClassVar[str]
    id: str | int | None = None


R = TypeVar("R", bound=Record)


class Document(Record):
    """A text to learn from, or to continue as it is."""

    key = "text"
    plural = "documents"
    text: str
    source: str | None = None


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One turn. ``weight`` 0 takes an assistant turn out of the loss."""

    role: Literal["system", "user", "assistant"]
    content: str
    weight: Literal[0, 1] = 1


class Dialogue(Record):
    """Turns of user and assistant, a system message first if there is one."""

    key = "messages"
    plural = "dialogues"
    messages: list[Message]

    @property
    def turns(self) -> list[Message]:
        """All that is said in it."""
        return self.messages


class Prompt(Dialogue, kw_only=True):
    """A dialogue that ends on a user turn; ``safety`` tags one that is likely to elicit unsafe answers."""

    plural = "prompts"
    safety: bool = False


class Sample(Prompt, kw_only=True):
    """A prompt and a model's answer to it."""

    key = "response"
    response: str

    @property
    def turns(self) -> list[Message]:
        """The prompt's, and the response as the last answer."""
        return [*self.messages, Message(role="assistant", content=self.response)]


# What stages write of an answer, and people's rating of it: a new answer in its place is described by none of it.
OF_AN_ANSWER = {
    "response", "sampling", "model", "model_sha256", "finish", "log_probs", "scores", "likert",  # of any
    "reward", "rank", "k", "reward_sha256", "reward_precision", "pool",  # of rejection sampling
    "pre_prompt", "before",  # of safety distillation
}  # fmt: skip


def unanswered(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A record without an earlier answer, and without what was said of that; what no stage knows stays."""
    return {name: value for name, value in raw.items() if name not in OF_AN_ANSWER}


def to_last_question(turns: Sequence[Message]) -> list[Message]:
    """Up to the last turn of the user; nothing where there is none."""
    last = max((number for number, turn in enumerate(turns) if turn.role == "user"), default=-1)
    return list(turns[: last + 1])


Rating = Literal["significantly_better", "better", "slightly_better", "negligibly_better"]
SafetyLabel = Literal["chosen_safe", "both_safe", "both_unsafe"]  # a chosen answer less safe than the other: none such
WORDS = {"rating": get_args(Rating), "safety_label": get_args(SafetyLabel)}  # by field, in the order of Table 8

# Whether the chosen and the rejected answer are safe.
SAFE: Mapping[SafetyLabel, tuple[bool, bool]] = {
    "chosen_safe": (True, False),
    "both_safe": (True, True),
    "both_unsafe": (False, False),
}

Answer = Annotated[list[Message], msgspec.Meta(min_length=1, max_length=1)]


class Comparison(Record):
    """Two answers to one prompt, of which one was preferred (paper, section 3.2.1)."""

    key = "chosen"
    plural = "comparisons"
    prompt: list[Message]
    chosen: Answer
    rejected: Answer
    rating: Rating | None = None
    safety_label: SafetyLabel | None = None
    source: str | None = None


class Score(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One measurement of a model, with what it takes to repeat it.

    Of a part of the records: ``group``, for example ``{"source": "webgpt"}``. ``interval`` holds the value with 95 %.
    ``bins`` are those of a histogram or a curve, ``threshold`` is where a classifier decides. ``about`` is what of the
    model it is to be compared by: its ``parameters``, the ``comparisons`` it was trained on.
    """

    task: str
    metric: str
    value: float
    n: int
    stderr: float | None
    model: str
    shots: int
    prompt_sha256: str
    scoring: str
    group: dict[str, str] | None = None
    interval: tuple[float, float] | None = None
    threshold: float | None = None
    bins: list[dict[str, float]] | None = None
    about: dict[str, float | str] | None = None


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th record, starting at ``index``: one part of a job array."""

    index: int = 0
    count: int = 1

    def holds(self, number: int) -> bool:
        """Whether record ``number`` (from 0) is in this part."""
        return number % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def checked(raw: Any, kinds: tuple[type[R], ...], where: str) -> R:
    """``raw``, an object from JSON, as the one of ``kinds`` whose key it has.

    Raises Fault ``FILE:LINE: FIELD: what is wrong``; ``where`` is the ``FILE:LINE``.
    """
    if not isinstance(raw, dict):
        raise Fault(where, f"is {_json_type(raw)}, not an object")
    for kind in kinds:
        if kind.key in raw:
            try:
                return msgspec.convert(raw, kind)
            except msgspec.ValidationError as error:
                raise Fault(where, in_words(error)) from None
    keys = " or ".join(kind.key for kind in kinds)
    has = ", ".join(sorted(raw)[:6]) or "nothing"
    raise Fault(where, f"{keys}: missing (the record has: {has})", converting(where, kinds))


def measured(raw: Any, where: str) -> Score:
    """``raw``, an object from JSON, as a Score; raises Fault, as ``checked`` does."""
    if not isinstance(raw, dict):
        raise Fault(where, f"is {_json_type(raw)}, not an object")
    try:
        return msgspec.convert(raw, Score)
    except msgspec.ValidationError as error:
        raise Fault(where, in_words(error), "llamactl eval writes Scores") from None


def converting(where: str, kinds: Iterable[type[Record]]) -> str:
    """What to do with a ``FILE:LINE`` that may be in somebody else's format."""
    targets = "|".join(dict.fromkeys(kind.plural for kind in kinds))
    return f"llamactl convert {where.rpartition(':')[0]} --to {targets} makes ours of other people's files"


_CHOSEN_UNSAFE = ("'rejected_safe'", "'chosen_unsafe'")  # what people write for it; it is no label of ours


def in_words(error: msgspec.ValidationError) -> str:
    """A validation error as ``FIELD: what is wrong``."""
    text, _, path = str(error).replace("`orjson.Fragment`", "an integer of more than 64 bits").partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    if text.startswith("Object missing required field `"):
        name = text.split("`")[1]
        return f"{field}.{name}: missing" if field else f"{name}: missing"
    if field in WORDS and text.startswith("Invalid enum value"):
        word = text.partition(" value ")[2]
        if word in _CHOSEN_UNSAFE:
            said = "says that the chosen answer is unsafe and the other safe"
            return f"{field}: {word} {said}: such pairs are left out, as in the paper (section 3.2.1)"
        return f"{field}: {word} is none of {', '.join(WORDS[field])}"
    return f"{field}: {text[0].lower()}{text[1:]}" if field else text


def _json_type(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
