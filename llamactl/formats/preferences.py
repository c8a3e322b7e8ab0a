"""Two answers, of which one was preferred, in six ways of saying how much."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar

import msgspec

from llamactl.artifacts.records import Message, Rating
from llamactl.errors import Fault
from llamactl.formats.rules import TIE, Format, Id, Pair, Talk, Tally, assistant, compared, user


class HH(Format):
    """Anthropic's HH-RLHF: two transcripts that differ in the last answer; no strength of preference.

    Turns begin at ``\\n\\nHuman:`` and ``\\n\\nAssistant:`` alone; such words after one newline are text.
    """

    name = "hh-rlhf"
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        if not self.chosen.startswith("\n\nHuman:"):
            raise ValueError("chosen: does not begin with \\n\\nHuman:")

    def talks(self, tally: Tally) -> Iterator[Talk]:
        yield Talk(_transcript(self.chosen, tally))

    def pairs(self, tally: Tally) -> Iterator[Pair]:
        return compared(_transcript(self.chosen, tally), _transcript(self.rejected, tally), tally)


_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_INSIDE = re.compile(r"(?<!\n)\n(?:Human|Assistant):")


def _transcript(text: str, tally: Tally) -> list[Message]:
    """The turns of ``\\n\\nHuman: ... \\n\\nAssistant: ...``, stripped."""
    tally.noted["transcripts with a speaker's name inside a turn, kept as text"] += bool(_INSIDE.search(text))
    pieces = _SPEAKER.split(text)[1:]
    spoken = zip(pieces[::2], pieces[1::2], strict=True)
    return [(user if speaker == "Human" else assistant)(said.strip()) for speaker, said in spoken]


class PlainPreference(Format):
    """TRL's plain preferences: prompt, chosen and rejected as texts. A transcript in HH's form is read as one."""

    name = "plain-preference"
    prompt: str
    chosen: str
    rejected: str
    id: Id = None
    source: str | None = None

    def pairs(self, tally: Tally) -> Iterator[Pair]:
        turns = [user(self.prompt)]
        if self.prompt.startswith("\n\nHuman:"):
            turns = _transcript(self.prompt.rstrip().removesuffix("\n\nAssistant:"), tally)
        yield Pair(turns, self.chosen, self.rejected, self.id, self.source)


def _by_score(difference: float) -> Rating:
    """WebGPT's difference of scores as a rating: 2 and up, 1 and up, 0.5 and up, below."""
    if difference >= 2:
        return "significantly_better"
    return "better" if difference >= 1 else "slightly_better" if difference >= 0.5 else "negligibly_better"


class Graded(Format):
    """A question and two answers with scores."""

    def sides(self) -> tuple[str, list[tuple[float, str]]]:
        """The question; scores and answers, the better one first."""
        raise NotImplementedError

    def talks(self, tally: Tally) -> Iterator[Talk]:
        question, ((_, better), _) = self.sides()
        yield Talk([user(question), assistant(better)])

    def pairs(self, tally: Tally) -> Iterator[Pair]:
        question, ((high, better), (low, worse)) = self.sides()
        if high == low:
            tally.skipped[TIE] += 1
        else:
            yield Pair([user(question)], better, worse, rating=_by_score(high - low))


def _better_first(scores: Sequence[float], answers: Sequence[str]) -> list[tuple[float, str]]:
    return sorted(zip(scores, answers, strict=True), key=lambda side: -side[0])


class Question(msgspec.Struct):
    """What was asked, in WebGPT."""

    full_text: str


class WebGPT(Graded):
    """WebGPT comparisons, as OpenAI ships them: a question, two answers with scores; ties are left out.

    The rating is by the difference of the scores: from 2 on ``significantly_better``, from 1 on ``better``, from 0.5 on
    ``slightly_better``. A dialogue is the question with the better answer, the first of two equals.
    """

    name = "webgpt"
    question: Question
    answer_0: str
    answer_1: str
    score_0: float
    score_1: float

    def sides(self) -> tuple[str, list[tuple[float, str]]]:
        return self.question.full_text, _better_first((self.score_0, self.score_1), (self.answer_0, self.answer_1))


Two = msgspec.Meta(min_length=2, max_length=2)


class WebGPTTexts(Graded):
    """WebGPT comparisons as two texts with scores, each ``## Human: ... ## Assistant: ...``; rules as for webgpt."""

    name = "webgpt-texts"
    text: Annotated[list[str], Two]
    score: Annotated[list[float], Two]

    _TEXT: ClassVar = re.compile(r"## Human:\n(.*?)\n\n## Assistant:\n(.*)", re.DOTALL)

    def sides(self) -> tuple[str, list[tuple[float, str]]]:
        first, second = map(self._TEXT.fullmatch, self.text)
        if not first or not second or first[1] != second[1]:
            raise Fault("text", "are not two answers to one question, as ## Human: ... ## Assistant: ...")
        return first[1].strip(), _better_first(self.score, (first[2].strip(), second[2].strip()))


class AlpacaEval(Format):
    """AlpacaEval annotations: an instruction, two outputs, and which of them was preferred.

    A discrete preference (1 or 2) has no rating; 0, and 1.5, is a tie and left out, null no preference. A continuous
    one, from 1 (output_1) to 2 (output_2), is the judge's probability: its winner's is ``significantly_better`` from
    0.95 on, ``better`` from 0.8, ``slightly_better`` from 0.65, else ``negligibly_better``. It is taken to be
    continuous where it is no whole number, or the annotator's name begins with ``weighted``.
    """

    name = "alpaca-eval"
    instruction: str
    output_1: str
    output_2: str
    preference: float | None
    annotator: str = ""
    dataset: str | None = None

    def talks(self, tally: Tally) -> Iterator[Talk]:
        better = self.output_2 if (self.preference or 0) > 1.5 else self.output_1
        yield Talk([user(self.instruction), assistant(better)], source=self.dataset)

    def pairs(self, tally: Tally) -> Iterator[Pair]:
        if self.preference is None:
            tally.skipped["pairs without a preference"] += 1
        elif self.preference in (0, 1.5):
            tally.skipped[TIE] += 1
        elif not 1 <= self.preference <= 2:
            raise Fault("preference", f"is {self.preference:g}, where 0 to 2 is due")
        else:
            first, second = [self.output_1, self.output_2][:: 1 if self.preference < 1.5 else -1]
            continuous = self.preference not in (1, 2) or self.annotator.startswith("weighted")
            winner = round(0.5 + abs(self.preference - 1.5), 9)  # 1.65 is 0.65, not a little less
            rating = _by_probability(winner) if continuous else None
            yield Pair([user(self.instruction)], first, second, source=self.dataset, rating=rating)


def _by_probability(winner: float) -> Rating:
    if winner >= 0.95:
        return "significantly_better"
    return "better" if winner >= 0.8 else "slightly_better" if winner >= 0.65 else "negligibly_better"
