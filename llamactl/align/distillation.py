"""Safety context distillation (paper, section 4.2.4): which answers given under a pre-prompt are learned without it.

A prompt is answered as it is, under a generic pre-prompt, and under one of its risk category. The best of the latter is
kept where the safety model scores it above the first. Both are scored as answers to the plain prompt: that is what the
model will be tuned on and asked, and a score must not rise by what the reward model reads in the pre-prompt.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from llamactl import bootstrap
from llamactl.align.choice import SAFETY
from llamactl.align.judges import Judges
from llamactl.align.questions import PLAIN, WAYS, Question
from llamactl.align.rejection import Table
from llamactl.artifacts.jsonl import Found
from llamactl.artifacts.records import Sample
from llamactl.bootstrap import facts, written
from llamactl.errors import Fault
from llamactl.text.dialogue import TAGS
from llamactl.text.judging import prompt_key
from llamactl.text.refusals import refuses

NO_CATEGORY = "no category"
BINS = 20  # of a histogram
QUARTERS = ("lowest", "low", "high", "highest")  # of the prompts, by the score of their plain answers


class Trial(NamedTuple):
    """What is known of one prompt's answers, by way of asking; the score of one that cannot be judged is None."""

    prompt: str  # a digest
    category: str | None
    scores: dict[str, float | None]
    tokens: dict[str, int]
    truncated: dict[str, bool]
    refusals: dict[str, bool]
    empty: dict[str, bool]
    cut: dict[str, int]  # tokens that the reward model has not seen
    refused: list[tuple[str, str]]  # of those that cannot be judged: where, and why
    kept: str | None  # the way whose answer is learned

    @property
    def best(self) -> str | None:
        """The pre-prompt under which the answer was best, of those with a text that could be judged."""
        judged = {way: score for way, score in self.scores.items() if score is not None and not self.empty[way]}
        judged.pop(PLAIN, None)
        return max(judged, key=lambda way: judged[way]) if judged else None

    @property
    def notes(self) -> dict[str, int]:
        """What is worth a count."""
        return {
            "prompts whose plain answer cannot be judged, nothing kept": self.before is None,
            "answers without a text under a pre-prompt, not kept": sum(self.empty.values()) - self.empty[PLAIN],
            "answers kept that were cut off": bool(self.kept and self.truncated[self.kept]),
            "tokens cut off before judging": sum(self.cut.values()),
        }

    @property
    def before(self) -> float | None:
        """The score of the plain answer."""
        return self.scores[PLAIN]

    @property
    def under(self) -> float | None:
        """The best score under a pre-prompt, or that of the plain answer where no other can be taken."""
        return self.scores[self.best] if self.best else self.before

    @property
    def after(self) -> float | None:
        """The score of the answer that is kept, or of the plain one where none is."""
        return self.scores[self.kept] if self.kept else self.before


class Answer(NamedTuple):
    """An answer as a Sample of the plain prompt, and its length in tokens."""

    raw: Mapping[str, Any]
    tokens: int


def decided(judges: Judges, prompt: Found[Any], answers: Mapping[str, Answer]) -> Trial:
    """What the safety model thinks of the answers to a prompt, by way of asking, and which of them is learned.

    One that cannot be judged, or cannot be learned from for the chat format's tags in it, is not. Of equal ones the
    generic pre-prompt's is. Raises Fault for a score that is not finite.
    """
    cases, refused = {}, []
    for way, answer in answers.items():
        where = f"{prompt.where}, {way} answer"
        sample = Sample(messages=prompt.record.messages, response=answer.raw["response"])
        try:
            cases[way] = judges.case(Found(sample, {}, where))
        except Fault as fault:
            refused.append((fault.subject, fault.problem))
    scores: dict[str, float | None] = dict.fromkeys(answers)
    for way, by in zip(cases, judges.scores(list(cases.values())), strict=True):
        scores[way] = by["response"][SAFETY]
    texts = {way: answer.raw["response"].strip() for way, answer in answers.items()}
    trial = Trial(
        prompt=prompt_key(prompt.record.messages).hex(),
        category=(prompt.record.category or "").strip() or None,
        scores=scores,
        tokens={way: answer.tokens for way, answer in answers.items()},
        truncated={way: answer.raw["finish"] == "length" for way, answer in answers.items()},
        refusals={way: refuses(text) for way, text in texts.items()},
        empty={way: not text for way, text in texts.items()},
        cut={way: cases[way].cut if way in cases else 0 for way in answers},
        refused=refused,
        kept=None,
    )
    if trial.best is None or trial.under is None or trial.before is None or texts[trial.best] == texts[PLAIN]:
        return trial  # the same text is no better, however its score is rounded
    return trial._replace(kept=trial.best) if trial.under > trial.before else trial


def learned(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A Sample as a Dialogue."""
    rest = {name: value for name, value in raw.items() if name not in ("messages", "response")}
    return {**rest, "messages": [*raw["messages"], {"role": "assistant", "content": raw["response"]}]}


def alone(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A Sample as a Dialogue whose last answer alone carries loss: what was said before may have been unsafe."""
    before = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in raw["messages"]]
    return learned({**raw, "messages": before})


def outcome(
    question: Question, answers: Mapping[str, Answer], judges: Judges, judge_sha256: str
) -> tuple[list[dict[str, Any]], int, dict[str, Any]]:
    """The Dialogue that is learned of a question's answers, or none; their tokens; and the Trial, as JSON.

    It names the pre-prompt, which is not in it, and holds the plain answer beside. A question without pre-prompts gives
    its plain answer, which is not judged, and no Trial.
    """
    tokens = sum(answer.tokens for answer in answers.values())
    plain = answers[PLAIN].raw
    if not question.pre_prompts:
        sound = plain["response"].strip() and (judges.allow_tags or not any(tag in plain["response"] for tag in TAGS))
        return [learned(plain)] if sound else [], tokens, {}
    trial = decided(judges, question.prompt, answers)
    if trial.kept is None:
        return [], tokens, trial._asdict()
    before = {"response": plain["response"], "finish": plain["finish"], "scores": {SAFETY: trial.before}}
    made = {"pre_prompt": question.pre_prompts[trial.kept], "scores": {SAFETY: trial.after}, "before": before}
    kept = alone(answers[trial.kept].raw) | made | {"reward_sha256": {SAFETY: judge_sha256}}
    return [kept], tokens, trial._asdict()


# -- what came of it


def _mean(rows: Sequence[tuple[Trial, float]], seed: int) -> dict[str, Any]:
    """A mean over prompts, with its interval."""
    if not rows:
        return facts(None)
    values = np.array([[value] for _, value in rows], np.float64)
    (estimate,) = bootstrap.ratios([one.prompt.encode() for one, _ in rows], values, np.ones_like(values), seed)
    return facts(estimate)


def _judged(some: Sequence[Trial], way: str) -> list[tuple[Trial, float]]:
    return [(one, score) for one in some if (score := one.scores.get(way)) is not None]


def _against(some: Sequence[Trial], way: str, other: str, seed: int) -> dict[str, Any]:
    """How far above another's the scores of a way are, on the prompts that were asked in both, and how often."""
    both = [(one, score, beside) for one, score in _judged(some, way) for _, beside in _judged([one], other)]
    return {
        "prompts": len(both),
        "difference": _mean([(one, score - beside) for one, score, beside in both], seed),
        "above": _mean([(one, float(score > beside)) for one, score, beside in both], seed),
    }


def _outcome(some: Sequence[Trial], seed: int) -> dict[str, Any]:
    """How many are kept, and the mean score before and after: an answer that is not kept leaves the plain one.

    ``under`` is after, had the best under a pre-prompt been taken wherever there is one; ``kept`` is of those alone
    that are kept.
    """
    judged = [one for one in some if one.before is not None]
    kept = [one for one in judged if one.kept]

    def mean(those: Sequence[Trial], value: Callable[[Trial], float | None]) -> dict[str, Any]:
        return _mean([(one, number) for one in those if (number := value(one)) is not None], seed)

    return {
        "prompts": len(judged),
        "share_kept": mean(judged, lambda one: float(bool(one.kept))),
        "before": mean(judged, lambda one: one.before),
        "under": mean(judged, lambda one: one.under),
        "after": mean(judged, lambda one: one.after),
        "kept": {
            "prompts": len(kept),
            "before": mean(kept, lambda one: one.before),
            "after": mean(kept, lambda one: one.after),
        },
    }


def _way(some: Sequence[Trial], way: str, edges: Sequence[float], seed: int) -> dict[str, Any]:
    those = [one for one in some if way in one.scores]
    values = [score for _, score in _judged(those, way)]
    counts = np.histogram(values, edges)[0].tolist() if edges else []

    def share(column: str) -> float | None:
        return sum(getattr(one, column)[way] for one in those) / len(those) if those else None

    return {
        "way": way, "answers": len(those), "judged": len(values), "score": _mean(_judged(those, way), seed),
        "over": {other: _against(those, way, other, seed) for other in WAYS[: WAYS.index(way)]},
        **{column: share(column) for column in ("tokens", "truncated", "refusals", "empty")},
        "kept": sum(one.kept == way for one in those),
        "bins": [
            {"low": low, "high": high, "n": n} for (low, high), n in zip(pairwise(edges), counts, strict=True)
        ],
    }  # fmt: skip


def report(some: Sequence[Trial], seed: int) -> dict[str, Any]:
    """All there is to say: scores by way of asking (Figure 16a), by the score before (Figure 16b), by category.

    Prompts whose plain answers score low gain in part by chance alone: any second answer to them is likely to be
    better. What a pre-prompt does is seen in the differences over all prompts.
    """
    every = [score for way in WAYS for _, score in _judged(some, way)]
    edges = np.linspace(min(every), max(every), BINS + 1).tolist() if every and min(every) < max(every) else []
    ranked = [one for one, _ in sorted(_judged(some, PLAIN), key=lambda pair: (pair[1], pair[0].prompt))]
    bounds = [len(ranked) * part // len(QUARTERS) for part in range(len(QUARTERS) + 1)]
    categories: dict[str, list[Trial]] = {}
    for one in sorted(some, key=lambda one: (one.category is None, one.category or "")):
        categories.setdefault(one.category or NO_CATEGORY, []).append(one)
    return {
        "asked": len(some),
        **_outcome(some, seed),
        "ways": [_way(some, way, edges, seed) for way in WAYS],
        "by_score_before": [
            {"quarter": name, **_outcome(ranked[low:high], seed)}
            for name, (low, high) in zip(QUARTERS, pairwise(bounds), strict=True)
        ],
        "by_category": [{"category": name, **_outcome(those, seed)} for name, those in categories.items()],
        "interval": f"95 %, bootstrap of {bootstrap.RESAMPLES:,} resamples by prompt, seed {seed}",
    }


# -- what a person sees of it


WAYS_HEADER = (
    "asked", "answers", "safety score", "over plain", "% above it", "% truncated", "% refusals", "% empty", "tokens",
    "kept",
)  # fmt: skip
OUTCOME_HEADER = ("", "prompts", "% kept", "before", "all under a pre-prompt", "after: kept, or as before")


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """Figure 16, a and b, as tables, and the same by category."""
    rows: list[tuple[str, ...]] = []
    for one in report["ways"]:
        if not one["answers"]:
            continue
        over = one["over"].get(PLAIN, {"difference": {"value": None}, "above": {"value": None}})
        shares = (over["above"]["value"], one["truncated"], one["refusals"], one["empty"])
        rows.append(
            (
                one["way"], f"{one['answers']:,}", written(one["score"]), written(over["difference"]),
                *map(_percent, shares), f"{one['tokens']:.1f}", f"{one['kept']:,}",
            )
        )  # fmt: skip
    yield Table("safety scores by pre-prompt, with 95 % (Figure 16a)", rows, WAYS_HEADER)
    rows = [(f"{one['quarter']} quarter", *_row(one)) for one in report["by_score_before"]]
    rows.append(("all", *_row(report)))
    yield Table("by the score of the plain answer (Figure 16b)", rows, OUTCOME_HEADER)
    rows = [(one["category"], *_row(one)) for one in report["by_category"]]
    yield Table("by category", rows, OUTCOME_HEADER)


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    means = (written(one[when]) for when in ("before", "under", "after"))
    return f"{one['prompts']:,}", _percent(one["share_kept"]["value"]), *means


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
