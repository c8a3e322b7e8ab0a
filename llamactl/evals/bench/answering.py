"""A model at a benchmark: what it finds likely, what it writes, and what of that is right.

What comes of a question is a JSON value, which processes tell each other: None where it has no room in the context.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from itertools import islice
from math import isfinite
from typing import Any, NamedTuple

import orjson

from llamactl.errors import Fault
from llamactl.evals.bench import programs
from llamactl.evals.bench.answers import cut
from llamactl.evals.bench.known import RULES, Likeliest, Passed, Rule, Written
from llamactl.evals.bench.likelihood import log_probs
from llamactl.evals.bench.questions import (
    NOTHING,
    Choice,
    Ending,
    Item,
    Open,
    Question,
    Task,
    asked,
    ending,
    endings,
    prompt,
)
from llamactl.model import generate as sampler
from llamactl.model.drawing import Sampling
from llamactl.model.llama import Llama
from llamactl.text.asking import Asked
from llamactl.text.tokenizer import Tokenizer

WINDOW = 256  # questions whose options are computed together
TAIL = 16  # ids in which a stop is looked for: more than the longest of them has

Found = dict[str, Any] | None


class Drawing(NamedTuple):
    """How answers are drawn: so many of each, at a temperature."""

    k: int
    temperature: float
    top_p: float
    seed: int
    cache_memory: int | None


def at(
    model: Llama, tokenizer: Tokenizer, how: Likeliest | Written | Passed, drawing: Drawing
) -> Callable[[Sequence[Item]], Iterator[tuple[int, Found]]]:
    """The model at a benchmark of this kind: of questions their places, and what comes of each."""
    if isinstance(how, Likeliest):
        return partial(chosen, model, tokenizer, how)
    if isinstance(how, Written):
        return partial(written, model, tokenizer, how, drawing._replace(k=1, temperature=0.0, top_p=1.0))
    return partial(tested, partial(written, model, tokenizer, how, drawing))


class Ways(NamedTuple):
    """How a question may go on, by each option; the same after ``NOTHING`` where that counts; examples before it."""

    options: list[Ending]
    nothing: list[Ending]
    shots: int


def chosen(model: Llama, tokenizer: Tokenizer, how: Likeliest, items: Sequence[Item]) -> Iterator[tuple[int, Found]]:
    """log p of each question's options."""
    numbered = iter(enumerate(items))
    while window := list(islice(numbered, WINDOW)):
        ways = {place: _ways(tokenizer, how, item, model.config.context) for place, item in window}
        found = log_probs(model, [one for some in ways.values() if some for one in (*some.options, *some.nothing)])
        if not all(map(isfinite, found.values())):
            raise Fault("the model", "its scores are no numbers (NaN or infinite)", "look at how it was trained")
        for place, some in ways.items():
            if some is None:
                yield place, None
                continue
            named = {"log_p": some.options, "nothing": some.nothing}
            log_p = {name: [found[one] for one in endings] for name, endings in named.items() if endings}
            yield place, {"shots": some.shots, **log_p}


def _ways(tokenizer: Tokenizer, how: Likeliest, item: Item, context: int) -> Ways | None:
    question, examples = item
    assert isinstance(question, Choice)
    found = endings(tokenizer, question, examples, context)
    beside = question.options if how.by == "less_nothing" else ()
    return found and Ways(found[0], [ending(tokenizer, NOTHING, option) for option in beside], found[1])


def written(
    model: Llama, tokenizer: Tokenizer, how: Written | Passed, drawing: Drawing, items: Sequence[Item]
) -> Iterator[tuple[int, Found]]:
    """What the model writes after each question, up to a stop; ``cut`` says how often none came."""
    context = model.config.context
    room = _room(how, context)
    places: list[int] = []
    asks: list[tuple[Asked, int]] = []
    for place, (question, examples) in enumerate(items):
        if ask := asked(tokenizer, question, examples, context, room):
            places.append(place)
            asks.append(ask)
        else:
            yield place, None
    stopped = partial(_stopped, tokenizer, how.stops)
    requests = (sampler.Request(one.ids, (drawing.temperature,) * drawing.k, until=stopped) for one, _ in asks)
    sampling = Sampling(drawing.top_p, 0, room, drawing.seed)
    for number, answers in sampler.finished(model, requests, sampling, drawing.cache_memory):
        one, shots = asks[number]
        texts = [one.response(answer.ids, tokenizer) for answer in answers]
        ends = [answer.stopped or len(answer.ids) < room or stopped(answer.ids) for answer in answers]
        told = {"shots": shots, "responses": [cut(text, how.stops) for text in texts], "cut": ends.count(False)}
        yield places[number], told


def _room(how: Written | Passed, context: int) -> int:
    """Tokens that an answer may have: at most half of the context, so that there is some for the question."""
    return min(how.room, context // 2)


def _stopped(tokenizer: Tokenizer, stops: Sequence[str], ids: Sequence[int]) -> bool:
    tail = tokenizer.decode(ids[-TAIL:])
    return any(stop in tail for stop in stops)


def tested(
    writing: Callable[[Sequence[Item]], Iterator[tuple[int, Found]]], items: Sequence[Item]
) -> Iterator[tuple[int, Found]]:
    """What ``writing`` comes to, and which of the programs have passed their tests: run when all are written."""
    found = dict(writing(items))
    runs = [
        (place, question.before + response + question.after)
        for place, (question, _) in enumerate(items)
        if isinstance(question, Task)
        for response in (found[place] or {"responses": ()})["responses"]
    ]
    passed: dict[int, list[bool]] = {}
    for (place, _), one in zip(runs, programs.each([program for _, program in runs]), strict=True):
        passed.setdefault(place, []).append(one)
    for place, told in found.items():
        yield place, told and told | {"passed": passed[place]}


class Outcome(NamedTuple):
    """What came of a question: a digest of what was asked, examples due, its part, its worth by metric, all of it."""

    prompt: bytes
    shots: int
    part: str
    values: dict[str, float]
    record: dict[str, Any]

    @classmethod
    def of(cls, task: str, item: Item, how: Likeliest | Written | Passed, found: dict[str, Any]) -> "Outcome":
        """Of what a model has said to it."""
        question, examples = item
        texts = [prompt(question, text, examples[: found["shots"]]) for text in question.asks]
        worth = values(question, how, found)
        record = {"task": task, "where": question.where, "prompt": texts, **question.known, **found, **worth}
        digest = sha256(orjson.dumps([texts, question.known])).digest()
        return cls(digest, len(examples), question.part, worth, record)


def values(question: Question, how: Likeliest | Written | Passed, found: dict[str, Any]) -> dict[str, float]:
    """What the answer to one question is worth, by metric, the benchmark's own first."""
    if isinstance(how, Passed):
        n, right = len(found["passed"]), sum(found["passed"])
        return {f"pass@{k}": programs.pass_at(k, n, right) for k in (1, 10, 100) if k <= n}
    if isinstance(how, Written):
        assert isinstance(question, Open)
        said = how.read(found["responses"][0])
        return {name: measure(said, question.answers) for name, measure in how.measures.items()}
    assert isinstance(question, Choice)
    rules: list[Rule] = [how.by] if how.by == "log_p" else [how.by, "log_p", "per_character"]
    by = {rule: float(picked(question, rule, found) == question.right) for rule in dict.fromkeys(rules)}
    return {"accuracy": by[how.by]} | {f"accuracy_{rule}": right for rule, right in by.items() if rule != how.by}


def picked(question: Choice, rule: Rule, found: dict[str, Any]) -> int:
    """The option that is likeliest by a rule; the first of several. Its space is no character."""
    log_p = found["log_p"]
    if rule == "per_character":
        log_p = [value / max(1, len(option.strip())) for value, option in zip(log_p, question.options, strict=True)]
    elif rule == "less_nothing":
        log_p = [value - less for value, less in zip(log_p, found["nothing"], strict=True)]
    return max(range(len(log_p)), key=log_p.__getitem__)


def told(how: Likeliest | Written | Passed, drawing: Drawing, context: int) -> str:
    """How it is scored, for Scores, of a model of this context."""
    if isinstance(how, Likeliest):
        return f"the option of the highest {RULES[how.by]}"
    greedy = isinstance(how, Written) or drawing.temperature == 0
    drawn = "greedy" if greedy else f"temperature {drawing.temperature:g}, top-p {drawing.top_p:g}, seed {drawing.seed}"
    stops = ", ".join(map(repr, how.stops))
    after = f"; {drawing.k} samples, run against their tests" if isinstance(how, Passed) else ""
    return f"{drawn}, up to {stops} or {_room(how, context)} tokens{after}"
