"""The policy at work in PPO (paper, section 3.2.3): it answers prompts, and reward models say what they think of it."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llamactl.align import reward
from llamactl.align.choice import HELPFULNESS, SAFETY
from llamactl.align.judges import Judges
from llamactl.artifacts.jsonl import Found, Refuse
from llamactl.artifacts.records import Prompt, Sample
from llamactl.errors import Fault
from llamactl.model import generate
from llamactl.model.drawing import Sampling
from llamactl.model.llama import Llama
from llamactl.text import asking
from llamactl.text.asking import Asked
from llamactl.text.judging import prompt_key
from llamactl.text.refusals import refuses
from llamactl.text.tokenizer import EOS, Tokenizer

GENERAL = "general"  # beside those of a choice: a reward model that decides nothing
GRAM = 4  # tokens in a row that are looked for again in the same answer


class Question(NamedTuple):
    """A prompt to be answered, and the number of the sample that is to be drawn of it."""

    found: Found[Prompt]
    asked: Asked
    number: int = 0


class Answer(NamedTuple):
    """An answer as ids, EOS among them where the model ended by itself, with log p of each; its text, its raw scores.

    It has no scores, but a reason, where it cannot be judged. ``cut`` are the ids of prompt and answer that the reward
    model of the shortest context did not see.
    """

    ids: list[int]
    log_probs: list[float]
    stopped: bool
    text: str
    scores: dict[str, float]
    unjudged: str = ""
    cut: int = 0

    def sample(self, question: Question, model: Path, sampling: Mapping[str, float]) -> dict[str, Any]:
        """It as a Sample's fields."""
        said = {"response": self.text, "sampling": {**sampling, "index": question.number}, "scores": self.scores}
        return {**question.asked.raw, **said, "model": str(model), "finish": "stop" if self.stopped else "length"}


def questions(
    records: Iterable[Found[Prompt]],
    tokenizer: Tokenizer,
    context: int,
    judges: Judges,
    refuse: Refuse,
    allow_tags: bool = False,
) -> tuple[dict[bytes, Question], int]:
    """Prompts by what they ask, and how many were passed over as they stood before.

    One that cannot be answered, or no answer to it judged, is refused.
    """
    found: dict[bytes, Question] = {}
    again = 0
    for one in records:
        try:
            question = Question(one, asking.asked(one, tokenizer, context, allow_tags))
            judges.check(one)
        except Fault as fault:
            refuse(fault)
        else:
            again += found.setdefault(prompt_key(one.record.messages), question) is not question
    return found, again


class Answering:
    """How prompts are answered and judged. ``memory`` is what the sampler may have for keys and values, in bytes.

    ``seconds`` are those that the newest answers have taken, to sample and to judge.
    """

    def __init__(
        self, judges: Judges, tokenizer: Tokenizer, temperature: float, sampling: Sampling, memory: int
    ) -> None:
        self.judges, self.tokenizer, self.temperature = judges, tokenizer, temperature
        self.sampling, self.memory = sampling, memory
        self.seconds = (0.0, 0.0)

    def answers(
        self, gathered: Callable[[], Llama], stopping: Callable[[], object], questions: Sequence[Question]
    ) -> Iterator[tuple[int, list[Any]]]:
        """The fields of an ``Answer`` to each, and its place; none at all where ``stopping`` comes true meanwhile.

        ``gathered`` makes the policy to sample from, which is freed before anything is judged.
        """
        clock, policy = time.perf_counter(), gathered()
        requests = (
            generate.Request(question.asked.ids, (self.temperature,), question.number) for question in questions
        )
        drawn = {}
        for place, (answer,) in generate.finished(policy, requests, self.sampling, self.memory):
            drawn[place] = answer
            if stopping():
                return
        del policy
        middle = time.perf_counter()
        for place, judged in enumerate(self._judged(questions, [answer for _, answer in sorted(drawn.items())])):
            yield place, [*judged]
        self.seconds = (middle - clock, time.perf_counter() - middle)

    def _judged(self, questions: Sequence[Question], drawn: Sequence[generate.Answer]) -> list[Answer]:
        """Answers with their scores."""
        texts = [q.asked.response(answer.ids, self.tokenizer) for q, answer in zip(questions, drawn, strict=True)]
        cases, reasons = {}, {}
        for place, (question, text) in enumerate(zip(questions, texts, strict=True)):
            sample = Sample(messages=question.found.record.messages, response=text)
            try:
                cases[place] = self.judges.case(Found(sample, {}, question.found.where))
            except Fault as fault:
                reasons[place] = fault.problem
        scores = dict(zip(cases, self.judges.scores(list(cases.values())), strict=True))
        return [
            Answer(
                [*answer.ids, EOS] if answer.stopped else answer.ids,
                answer.log_probs,
                answer.stopped,
                texts[place],
                scores[place]["response"] if place in scores else {},
                reasons.get(place, ""),
                cases[place].cut if place in cases else 0,
            )
            for place, answer in enumerate(drawn)
        ]


class Judgement(NamedTuple):
    """What is made of the scores of n answers: columns of them, nan where there is none."""

    scores: dict[str, Tensor]  # fp64 [n], by the name of a model
    reward: Tensor  # R_c, fp64 [n]
    by_safety: Tensor  # bool [n]

    @classmethod
    def of(cls, questions: Sequence[Question], answers: Sequence[Answer], names: Sequence[str]) -> "Judgement":
        """R_c of each answer: helpfulness', or safety's to prompts tagged and of answers that are taken for unsafe."""
        columns = {
            name: torch.tensor([answer.scores.get(name, torch.nan) for answer in answers], dtype=torch.float64)
            for name in names
        }
        tagged = torch.tensor([question.found.record.safety for question in questions])
        safety = columns.get(SAFETY)
        return cls(
            columns,
            reward.combined(columns[HELPFULNESS], safety, tagged),
            torch.zeros_like(tagged) if safety is None else reward.by_safety(safety, tagged),
        )

    def counted(self, answers: Sequence[Answer], truncated: bool) -> Tensor:
        """Which answers count by their scores, bool ``[n]``: judged, and not cut off (or ``truncated`` ones do)."""
        whole = torch.tensor([answer.stopped or truncated for answer in answers])
        return whole & ~self.reward.isnan()

    def spread(self) -> float:
        """The standard deviation of the rewards of those that were judged; 0 where they are all equal."""
        known = self.reward[~self.reward.isnan()]
        return float(known.std()) if len(known) > 1 else 0.0

    def seen(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Means over answers, by name: of scores, over those that were judged."""
        means = {}
        for name, column in {"reward": self.reward, **self.scores}.items():
            known = column[~column.isnan()]
            means[name] = float(known.mean())
            means[f"{name}_stderr"] = float(known.std() / len(known) ** 0.5) if len(known) > 1 else 0.0
        return {
            **means,
            "by_safety": float(self.by_safety.double().mean()),
            "length": sum(len(answer.ids) for answer in answers) / len(answers),
            "truncated": sum(not answer.stopped for answer in answers) / len(answers),
            "unjudged": sum(bool(answer.unjudged) for answer in answers) / len(answers),
            "judged_in_part": sum(answer.cut > 0 for answer in answers) / len(answers),
            "repetition": sum(repetition(answer.ids) for answer in answers) / len(answers),
            "refusals": sum(refuses(answer.text) for answer in answers) / len(answers),
        }


def repetition(ids: Sequence[int]) -> float:
    """The share of an answer's runs of ``GRAM`` tokens that stand in it before."""
    grams = [tuple(ids[start : start + GRAM]) for start in range(len(ids) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
